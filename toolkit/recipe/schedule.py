"""From what is asked to what will run: steps, stacks, files. Plain numbers, no torch, so that `ftk
check` can show it at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.recipe import Condition

# a step of this many tokens suits the caches of a core, or fills a large GPU
CPU_TOKENS, GPU_TOKENS = (
    3072,
    32768,
)
# floating-point operations of a stack: some ten seconds, as long as it takes to compile
COMPILED_WORK = 5e11
# of the weights of whole models on one worker; a large base is trained alone
CPU_BYTES, GPU_BYTES = (
    2**31,
    2**35,
)
# a weight by itself; in training with its gradient and two moments, all in float32
WEIGHT_BYTES, TRAINED_BYTES = (
    4,
    16,
)
# numbers at the output head that are formed at a time where a step has PIECES times as many
CPU_LOGITS, GPU_LOGITS = (
    2**26,
    2**29,
)
PIECES = 4
SOFT_TARGET_BYTES = 2**30
"""what a worker may keep of its teachers' distributions; above it they are computed again at every
step, never cut
"""


@dataclass(frozen=True)
class TrainingPlan:
    """The shapes of one condition's training. All of them are part of a replica's bits, none
    depends on N.
    """

    rows: int
    length: int  # tokens every row is padded to
    targets: int  # positions with a loss every row is padded to
    micro_batch: int
    accumulation: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    stack: int
    compiled: bool = False
    """decoder layers run as compiled code, which rounds differently"""
    piece: int = 0
    """tokens whose logits are formed at a time, see `head_piece`; 0: all of a step"""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, to be written down and to make a fingerprint of: what is not used is
        left out.
        """
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("compiled", "piece") or value
        }

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one micro-batch of all replicas of a stack, padding included."""
        return self.stack * self.micro_batch * self.length


def plan_training(
    condition: Condition,
    lengths: Sequence[int],
    targets: Sequence[int],
    *,
    stack: int | None,
    device: str,
    parameters: int = 0,
) -> TrainingPlan:
    """lengths, targets: tokens and loss positions of every training row. stack: the recipe's.
    parameters: of the base.
    """
    rows, length = len(lengths), max(lengths)
    steps_per_epoch = math.ceil(rows / (condition.batch_size * condition.gradient_accumulation))
    steps = max(1, math.ceil(condition.epochs * steps_per_epoch))
    chosen = stack_width(condition.batch_size * length, device)
    if condition.method == "full":
        chosen = min(chosen, whole_width(parameters, TRAINED_BYTES, device))
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
        stack=condition.stack or stack or chosen,
    )


def stack_width(tokens_per_replica: int, device: str) -> int:
    """Replicas trained together: the power of two that brings a step near the token budget, at
    least 4.

    At least 4, because kernels for fewer rows may round differently; a power of two, because N
    often is. It never depends on N: a replica keeps its bits when more are added.
    """
    budget, most = (CPU_TOKENS, 64) if device == "cpu" else (GPU_TOKENS, 128)
    return min(most, max(4, 2 ** round(math.log2(max(1.0, budget / tokens_per_replica)))))


def whole_width(parameters: int, bytes_each: int, device: str) -> int:
    """Whole models that a worker holds at once: the largest power of two that its memory is asked
    for, at least 1.
    """
    budget = CPU_BYTES if device == "cpu" else GPU_BYTES
    return min(
        64, 2 ** max(0, int(math.log2(max(1.0, budget / (bytes_each * max(1, parameters))))))
    )


def pays_to_compile(plan: TrainingPlan, parameters: int) -> bool:
    """Whether one stack on a base of so many parameters has work enough for compiled code; like all
    of a plan it does not depend on N.
    """
    return 4 * parameters * plan.tokens_per_step * plan.accumulation * plan.steps > COMPILED_WORK


def head_piece(plan: TrainingPlan, vocabulary: int, device: str) -> int:
    """Tokens whose logits are formed at a time; 0 where those of a whole step fit."""
    limit = CPU_LOGITS if device == "cpu" else GPU_LOGITS
    tokens = plan.stack * plan.micro_batch * plan.targets
    return max(1, limit // vocabulary) if tokens * vocabulary > PIECES * limit else 0


def soft_target_bytes(
    condition: Condition, targets: Sequence[int], vocabulary: int, stack: int
) -> int:
    """Bytes of the distributions (float32, whole vocabulary, every position with a loss) of all
    teachers of one stack of students.
    """
    per_group = (
        condition.students if condition.teacher and condition.teacher.groups == "fresh" else stack
    )
    # a group may reach over the edge of a stack
    groups = min(stack, math.ceil(stack / per_group) + (stack % per_group > 0))
    return groups * sum(targets) * vocabulary * 4


def stacks_for(replicas: Iterable[int], width: int) -> dict[int, tuple[int, ...]]:
    """Stacks that hold the given replicas, with those of each: stack s is always replicas s * width
    ... (s + 1) * width - 1.

    A stack is trained whole even if only one of it is wanted: the shape is part of the bits.
    """
    return {
        stack: tuple(members)
        for stack, members in itertools.groupby(
            sorted(set(replicas)), lambda replica: replica // width
        )
    }


def learning_rate(step: int, plan: TrainingPlan, condition: Condition) -> float:
    """Warm-up from 0, then linear or cosine to 0, constant, or cyclic;
    `transformers.get_scheduler`'s convention (step counts from 0).

    cyclic: constant until snapshots begin, then down to a share `cycle_floor` before each of them
    and back up after it, as stochastic weight averaging has it (arXiv:1803.05407).
    """
    lr = condition.lr
    if step < plan.warmup_steps:
        return lr * step / max(1, plan.warmup_steps)
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    if condition.schedule == "linear":
        return lr * (1 - progress)
    if condition.schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * progress))
    points = condition.snapshots
    if condition.schedule == "cyclic" and points:
        edges = [int(points.start * plan.steps), *snapshot_steps(plan, points.count, points.start)]
        for begin, end in itertools.pairwise(edges):
            if begin <= step < end:
                share = (step - begin + 1) / (end - begin)
                return lr * (1 - share + share * condition.cycle_floor)
    return lr


def snapshot_steps(plan: TrainingPlan, count: int, start: float) -> list[int]:
    """Numbers of finished steps after which a snapshot is taken: equally spaced after `start`, the
    last at the end.
    """
    first = start * plan.steps
    return sorted(
        {math.ceil(first + (plan.steps - first) * (i + 1) / count) for i in range(count)} - {0}
    )
