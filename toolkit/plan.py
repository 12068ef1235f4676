"""From what is asked to what will run: steps, stacks, files. Plain numbers, no torch, so that `ftk check` can show it at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from toolkit.recipe import Condition

CPU_TOKENS, GPU_TOKENS = 3072, 32768  # a step of this many tokens suits the caches of a core, or fills a large GPU
SOFT_TARGET_BYTES = 2**30
"""what a worker may keep of its teachers' distributions; above it they are computed again at every step, never cut"""


@dataclass(frozen=True)
class TrainingPlan:
    """The shapes of one condition's training. All of them are part of a replica's bits, none depends on N."""

    rows: int
    length: int  # tokens every row is padded to
    targets: int  # positions with a loss every row is padded to
    micro_batch: int
    accumulation: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    stack: int

    @property
    def tokens_per_step(self) -> int:
        return self.stack * self.micro_batch * self.length


def plan_training(condition: Condition, lengths: Sequence[int], targets: Sequence[int], *, stack: int | None, device: str) -> TrainingPlan:
    """lengths, targets: tokens and loss positions of every training row."""
    rows, length = len(lengths), max(lengths)
    steps_per_epoch = math.ceil(rows / (condition.batch_size * condition.gradient_accumulation))
    steps = max(1, math.ceil(condition.epochs * steps_per_epoch))
    warmup = condition.warmup * steps if condition.warmup < 1 else condition.warmup
    return TrainingPlan(
        rows=rows,
        length=length,
        targets=max(targets),
        micro_batch=condition.batch_size,
        accumulation=condition.gradient_accumulation,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup_steps=min(steps, math.ceil(warmup)),
        stack=stack or stack_width(condition.batch_size * length, device),
    )


def stack_width(tokens_per_replica: int, device: str) -> int:
    """Replicas trained together: the power of two that brings a step near the token budget, at least 4.

    At least 4, because kernels for fewer rows may round differently; a power of two, because N often is. It never depends on N: a
    replica keeps its bits when more are added.
    """
    budget = CPU_TOKENS if device == "cpu" else GPU_TOKENS
    return min(64, max(4, 2 ** round(math.log2(max(1.0, budget / tokens_per_replica)))))


def soft_target_bytes(condition: Condition, targets: Sequence[int], vocabulary: int, stack: int) -> int:
    """Bytes of the distributions (float32, whole vocabulary, every position with a loss) of all teachers of one stack of students."""
    per_group = condition.students if condition.teacher and condition.teacher.groups == "fresh" else stack
    groups = min(stack, math.ceil(stack / per_group) + (stack % per_group > 0))  # a group may reach over the edge of a stack
    return groups * sum(targets) * vocabulary * 4


def stacks_for(replicas: Iterable[int], width: int) -> dict[int, tuple[int, ...]]:
    """Stacks that hold the given replicas, with those of each: stack s is always replicas s * width ... (s + 1) * width - 1.

    A stack is trained whole even if only one of it is wanted: the shape is part of the bits.
    """
    return {stack: tuple(members) for stack, members in groupby(sorted(set(replicas)), lambda replica: replica // width)}


def learning_rate(step: int, plan: TrainingPlan, lr: float, schedule: str) -> float:
    """Warm-up from 0, then linear or cosine to 0, or constant; `transformers.get_scheduler`'s convention (step counts from 0)."""
    if step < plan.warmup_steps:
        return lr * step / max(1, plan.warmup_steps)
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    if schedule == "linear":
        return lr * (1 - progress)
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * progress))
    return lr


def snapshot_steps(plan: TrainingPlan, count: int, start: float) -> list[int]:
    """Numbers of finished steps after which a snapshot is taken: equally spaced after `start`, the last at the end."""
    first = start * plan.steps
    return sorted({math.ceil(first + (plan.steps - first) * (i + 1) / count) for i in range(count)} - {0})
