"""Soft targets for distillation: what teachers predict for the training rows, over the whole
vocabulary.

A teacher is a group of adapters on the same frozen base, combined by a rule of an ensemble, or a
single (merged) one. It runs alone, in shapes that depend on its size only, so its predictions
depend neither on the students of a stack nor on other teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.answer.predict import TOKENS, Combine, load_adapters
from toolkit.model.adapters import Adapter
from toolkit.model.stack import Stack

LOGITS = 2**26
"""of all members together, in one forward pass over rows that are kept"""

SoftTargets = Callable[[Tensor], Tensor]
"""training rows [R, b], one line for each student -> log-probabilities [R * b, L, V] of its
teacher, at the positions with a loss
"""


@dataclass(frozen=True)
class Teacher:
    """Adapters combined into one distribution; None stands for the base. Without a rule: a single
    adapter.
    """

    members: tuple[Adapter | None, ...]
    combine: Combine | None = None


def soft_targets(
    student: Stack,
    teachers_R: Sequence[Teacher],
    ids: Tensor,
    position: Tensor,
    weight: Tensor,
    *,
    temperature: float,
    keep: bool,
) -> SoftTargets:
    """Teacher distributions for the rows ids [N, T] at position [N, L]; weight [N, L] is 0 where a
    position is padding.

    keep: compute them once for all rows and look them up; otherwise compute them at every step for
    its rows. Students that share a teacher pass the same object. Raises AdapterError or ValueError
    in one line for an adapter that does not fit the base.
    """
    teachers_G = list({id(teacher): teacher for teacher in teachers_R}.values())
    group_R = torch.tensor(
        [
            next(g for g, shared in enumerate(teachers_G) if shared is teacher)
            for teacher in teachers_R
        ]
    )
    stacks_G = [_teacher_stack(student, teacher) for teacher in teachers_G]

    def log_probs_of(g: int, rows: Tensor) -> Tensor:
        with _in_place_of(student, stacks_G[g]) as stack:
            return group_log_probs(stack, teachers_G[g], ids[rows], position[rows], temperature)

    if not keep:
        return lambda index_Rb: torch.cat(
            [log_probs_of(g, rows) for g, rows in zip(group_R.tolist(), index_Rb, strict=True)]
        )

    real_NL = weight > 0
    # padding points at a neighbour, and weighs nothing
    place_NL = (real_NL.flatten().cumsum(0) - 1).clamp(min=0).view(real_NL.shape)
    K = max(len(teacher.members) for teacher in teachers_G)
    vocabulary = student.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    chunk = max(
        1, min(TOKENS // (K * ids.shape[1]), LOGITS // (K * position.shape[1] * vocabulary))
    )
    targets_GNV: list[Tensor] = []
    for g in range(len(teachers_G)):
        rows = torch.arange(len(ids), device=ids.device)
        targets_GNV.append(
            torch.cat([log_probs_of(g, part)[real_NL[part]] for part in rows.split(chunk)])
        )

    def look_up(index_Rb: Tensor) -> Tensor:
        return torch.cat(
            [
                targets_GNV[g][place_NL[rows]]
                for g, rows in zip(group_R.tolist(), index_Rb, strict=True)
            ]
        )

    return look_up


@torch.no_grad()
def group_log_probs(
    stack: Stack, teacher: Teacher, ids: Tensor, position: Tensor, temperature: float = 1.0
) -> Tensor:
    """log p [N, L, V] of a teacher whose members are on the stack, in float32 or better.

    A temperature T applies to the combined distribution, p^(1/T) normalised; T = 1 is the ensemble
    as it answers.
    """
    K, (N, L) = len(teacher.members), position.shape
    logits = stack.logits(ids.repeat(K, 1), position.repeat(K, 1))
    log_KNV = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1).view(
        1, K, N * L, -1
    )
    log_NV = teacher.combine(log_KNV)[0] if teacher.combine else log_KNV[0, 0]
    if temperature != 1:
        log_NV = (log_NV / temperature).log_softmax(-1)
    return log_NV.view(N, L, -1)


def _teacher_stack(student: Stack, teacher: Teacher) -> Stack:
    """The teacher's members on a stack of their own, not attached."""
    student.remove()
    try:
        stack = Stack(student.model)
        stack.remove()
    finally:
        student.attach()
    load_adapters(stack, teacher.members, len(teacher.members))
    return stack


@contextmanager
def _in_place_of(student: Stack, teacher: Stack) -> Iterator[Stack]:
    student.remove()
    teacher.attach()
    try:
        with torch.compiler.set_stance(
            "force_eager"
        ):  # layers that are compiled are so for the student
            yield teacher
    finally:
        teacher.remove()
        student.attach()
