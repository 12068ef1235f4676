"""The training loop of a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from toolkit.data import Example
from toolkit.environment import seconds_used
from toolkit.model.compiled import compiled
from toolkit.model.full import stacked_whole
from toolkit.model.stack import CounterDropout, stacked
from toolkit.recipe import Condition
from toolkit.recipe.schedule import TrainingPlan, learning_rate, snapshot_steps
from toolkit.train.checkpoint import Checkpoint
from toolkit.train.distill import SoftTargets, Teacher, soft_targets
from toolkit.train.head import token_losses_in_pieces
from toolkit.train.initial import Weights_R, initial_weights
from toolkit.train.objective import Rows, batch_rows, token_losses
from toolkit.train.optimise import Optimiser


@dataclass
class Trained:
    """A trained stack. Losses are means of `token_losses` over a replica's own completion tokens,
    before the update of that step.
    """

    factors: Weights_R
    scale: float
    fan_in_fan_out: bool  # the adapted layers are GPT-2's Conv1D
    loss_SR: np.ndarray
    norm_SR: np.ndarray  # gradient norm before clipping
    lr_S: np.ndarray
    row_SRB: np.ndarray  # training row of every position in a batch, -1 where the batch is padded
    row_loss_SRB: np.ndarray
    seconds: float  # what the whole stack cost, see `seconds_used`
    snapshots: list[Weights_R] = field(default_factory=list)

    def failed_step(self, r: int) -> int | None:
        """First step with a loss or gradient that is not finite; the number of steps when only the
        last update broke the weights.
        """
        bad = ~(np.isfinite(self.loss_SR[:, r]) & np.isfinite(self.norm_SR[:, r]))
        if bad.any():
            return int(bad.argmax())
        finite = all(
            bool(torch.isfinite(x[r]).all()) for tensors in self.factors.values() for x in tensors
        )
        return None if finite else len(bad)


@dataclass
class TrainingHistory:
    """The record of every step, kept as tensors so that a checkpoint can hold it."""

    loss: list[torch.Tensor] = field(default_factory=list)  # [R]
    norm: list[torch.Tensor] = field(default_factory=list)  # [R]
    lr: list[float] = field(default_factory=list)
    row: list[torch.Tensor] = field(default_factory=list)  # [R, B], -1 where the batch is padded
    row_loss: list[torch.Tensor] = field(default_factory=list)  # [R, B]
    snapshots: list[Weights_R] = field(default_factory=list)


def train_stack(
    model: torch.nn.Module,
    examples: Sequence[Example],
    condition: Condition,
    plan: TrainingPlan,
    seeds_R: Sequence[dict[str, int]],
    *,
    teachers_R: Sequence[Teacher] | None = None,
    keep_soft_targets: bool = True,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Trained:
    """Train one replica for every entry of `seeds_R`. `on_step` is called with the number of
    finished steps.

    teachers_R: for distillation, the teacher of each replica. keep_soft_targets: see
    `soft_targets`. checkpoint: where to resume from and save to. The base is given back unchanged.
    """
    device = next(model.parameters()).device
    start = seconds_used(device.type)
    # adapters and moments: float32 or better
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    R = len(seeds_R)
    rows = Rows.of(examples, plan, dtype, str(device))
    tokens = rows.weight.sum(1)  # per row
    losses_of = compiled(token_losses) if plan.compiled else token_losses
    adapted = stacked(model, condition.targets, compiled=plan.length if plan.compiled else None)
    with stacked_whole(model) if condition.method == "full" else adapted as stack:
        weights, scale = initial_weights(stack, condition, seeds_R, dtype, device)
        stack.load(weights, scale)
        dropout = None
        if condition.dropout:
            dropout = CounterDropout(
                condition.dropout, torch.tensor([s["dropout"] for s in seeds_R], device=device)
            )
        stack.set_dropout(dropout)
        optimiser = Optimiser(model, weights, condition)
        points = condition.snapshots
        record_at = snapshot_steps(plan, points.count, points.start) if points else []
        targets: SoftTargets | None = None
        if teachers_R is not None and condition.mix > 0:
            texts = rows.ids, rows.position, rows.weight
            targets = soft_targets(
                stack, teachers_R, *texts, temperature=condition.temperature, keep=keep_soft_targets
            )
        history = TrainingHistory()
        saved = checkpoint.load() if checkpoint else None
        if saved:
            optimiser.restore(saved["optimiser"])
            history = TrainingHistory(**saved["noted"])
        for step in range(len(history.loss), plan.steps):
            order_RB = np.stack([batch_rows(plan, s["order"], step) for s in seeds_R])
            index_RB = torch.from_numpy(order_RB).to(device)
            count_R = tokens[index_RB].sum(1).clamp(min=1)
            loss_R = torch.zeros(R, dtype=dtype, device=device)
            step_row_losses = []
            for micro, index_Rb in enumerate(index_RB.split(plan.micro_batch, dim=1)):
                if dropout:
                    dropout.step = step * plan.accumulation + micro
                index = index_Rb.reshape(-1)
                inputs, smoothing = (
                    (rows.ids[index], rows.position[index]),
                    condition.label_smoothing,
                )
                if plan.piece:
                    options = {"replicas": R, "piece": plan.piece, "label_smoothing": smoothing}
                    loss_NL = token_losses_in_pieces(stack, *inputs, rows.target[index], **options)
                else:
                    soft = targets(index_Rb) if targets else None
                    loss_NL = losses_of(
                        stack.logits(*inputs),
                        rows.target[index],
                        soft,
                        condition.temperature,
                        condition.mix,
                        smoothing,
                    )
                loss_N = (loss_NL * rows.weight[index]).sum(1)  # per row
                micro_R = loss_N.view(R, -1).sum(1) / count_R
                micro_R.sum().backward()
                loss_R += micro_R.detach()
                step_row_losses.append((loss_N.detach() / tokens[index].clamp(min=1)).view(R, -1))
            lr = learning_rate(step, plan, condition)
            history.norm.append(optimiser.step(lr, step + 1, last=step + 1 == plan.steps))
            history.loss.append(loss_R)
            history.lr.append(lr)
            history.row_loss.append(torch.cat(step_row_losses, 1))
            history.row.append(index_RB.where(index_RB != plan.rows, -1))
            if step + 1 in record_at:
                history.snapshots.append(_on_cpu(weights, copy=True))
            if checkpoint:
                checkpoint.save_when_due({"optimiser": optimiser.state(), "noted": vars(history)})
            if on_step:
                on_step(step + 1)
        fan_in_fan_out = any(layer.is_conv for layer in stack.layers.values())
    return Trained(
        factors=_on_cpu(weights),
        scale=scale,
        fan_in_fan_out=fan_in_fan_out,
        loss_SR=torch.stack(history.loss).cpu().numpy(),
        norm_SR=torch.stack(history.norm).cpu().numpy(),
        lr_S=np.array(history.lr),
        row_SRB=torch.stack(history.row).cpu().numpy(),
        row_loss_SRB=torch.stack(history.row_loss).cpu().numpy(),
        seconds=seconds_used(device.type) - start,
        snapshots=history.snapshots,
    )


def _on_cpu(weights: Weights_R, copy: bool = False) -> Weights_R:
    return {
        name: tuple(x.detach().to("cpu", copy=copy) for x in tensors)
        for name, tensors in weights.items()
    }
