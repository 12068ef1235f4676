"""The objective: which rows are in each replica's batch, and the loss of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit import seeds as seed
from toolkit.data import Example
from toolkit.recipe.schedule import TrainingPlan


def batch_rows(plan: TrainingPlan, order_seed: int, step: int) -> np.ndarray:
    """Training rows of one replica's step, [accumulation * batch]; `plan.rows` stands for an empty
    row that fills the last batch.

    A fresh permutation each epoch, a function of (order seed, epoch) alone.
    """
    epoch, position = divmod(step, plan.steps_per_epoch)
    size = plan.micro_batch * plan.accumulation
    order = np.random.default_rng(seed.derive(order_seed, "epoch", epoch)).permutation(plan.rows)
    rows = order[position * size : (position + 1) * size]
    return np.concatenate([rows, np.full(size - len(rows), plan.rows)])


@dataclass
class Rows:
    """The training set as padded tensors, with one empty row at the end. `position` is where a
    target's logits stand.
    """

    ids: Tensor  # [rows + 1, T]
    position: Tensor  # [rows + 1, L]
    target: Tensor  # [rows + 1, L]
    weight: Tensor  # [rows + 1, L], 1 where there is a target

    @staticmethod
    def of(
        examples: Sequence[Example], plan: TrainingPlan, dtype: torch.dtype, device: str
    ) -> Rows:
        """The rows of examples that were encoded."""
        ids = torch.zeros(plan.rows + 1, plan.length, dtype=torch.long)
        position = torch.zeros(plan.rows + 1, plan.targets, dtype=torch.long)
        target = torch.zeros(plan.rows + 1, plan.targets, dtype=torch.long)
        weight = torch.zeros(plan.rows + 1, plan.targets, dtype=dtype)
        for i, example in enumerate(examples):
            ids[i, : len(example.ids)] = torch.tensor(example.ids)
            where = torch.tensor(
                [t for t, counts in enumerate(example.loss_mask) if counts and t > 0]
            )
            position[i, : len(where)] = where - 1
            target[i, : len(where)] = ids[i, where]
            weight[i, : len(where)] = 1
        return Rows(*(x.to(device) for x in (ids, position, target, weight)))


def token_losses(
    logits: Tensor,
    target: Tensor,
    soft: Tensor | None,
    temperature: float,
    mix: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of every position, [N, L], in nats, from logits [N, L, V] and targets [N, L].

    soft: log-probabilities [N, L, V] of a teacher at `temperature`; then mix * T^2 KL(teacher ||
    student at T) + (1 - mix) * cross-entropy (Hinton, Vinyals & Dean 2015, arXiv:1503.02531: T^2
    keeps the size of the gradient). Without: cross-entropy.
    label_smoothing: share of a target's probability that goes evenly to the whole vocabulary
    (arXiv:1512.00567).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    hard = torch.zeros((), device=logits.device)
    if soft is None or mix < 1:
        hard = F.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            reduction="none",
            label_smoothing=label_smoothing,
        ).view(target.shape)
    if soft is None:
        return hard
    kl = F.kl_div(
        F.log_softmax(logits / temperature, -1),
        soft.to(logits.dtype),
        reduction="none",
        log_target=True,
    ).sum(-1)
    return mix * temperature**2 * kl + (1 - mix) * hard
