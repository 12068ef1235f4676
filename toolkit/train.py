"""Stacked LoRA training: R replicas of one condition at once on one frozen base, each with its own seeds, loss, clipping and moments.

Nothing is shared between replicas but the base, so a replica becomes what it would become alone (the same peft + PyTorch loop, to
rounding), and a replica that diverges harms no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit import seeds as seed
from toolkit.adapters import write_adapter
from toolkit.compiled import compiled
from toolkit.data import Example
from toolkit.delta import concat, ema_weights, swa_weights, truncate
from toolkit.distill import Said, Teacher, soft_targets
from toolkit.environment import seconds_used
from toolkit.outcomes import write_table
from toolkit.plan import TrainingPlan, learning_rate, snapshot_steps
from toolkit.population import RECORD, Replica, replica_folder, write_text
from toolkit.recipe import Condition
from toolkit.stack import CounterDropout, Stack, lora_scale, stacked

Factors_R = dict[str, tuple[Tensor, Tensor]]  # module -> A [R, r, I], B [R, O, r]


@dataclass
class Trained:
    """What a stack became. Losses are means of `token_losses` over a replica's own completion tokens, before the update of that step."""

    factors: Factors_R
    scale: float
    fan_in_fan_out: bool  # the adapted layers are GPT-2's Conv1D
    loss_SR: np.ndarray
    norm_SR: np.ndarray  # gradient norm before clipping
    lr_S: np.ndarray
    row_SRB: np.ndarray  # training row of every position in a batch, -1 where the batch is padded
    row_loss_SRB: np.ndarray
    seconds: float  # what the whole stack cost, see `seconds_used`
    snapshots: list[Factors_R] = field(default_factory=list)

    def failed_step(self, r: int) -> int | None:
        """First step with a loss or gradient that is not finite; the number of steps when only the last update broke the weights."""
        bad = ~(np.isfinite(self.loss_SR[:, r]) & np.isfinite(self.norm_SR[:, r]))
        if bad.any():
            return int(bad.argmax())
        finite = all(bool(torch.isfinite(x[r]).all()) for pair in self.factors.values() for x in pair)
        return None if finite else len(bad)


def initial_factors(stack: Stack, rank: int, init_seeds: Sequence[int], dtype: torch.dtype, device: torch.device) -> Factors_R:
    """PEFT's default: A uniform in +-1/sqrt(I) (Kaiming with a = sqrt(5)), B zero.

    Each (replica, module) has a generator of its own, on the CPU, so a draw depends on nothing else.
    """
    factors = {}
    for name, layer in stack.layers.items():
        bound = layer.in_features**-0.5
        A = torch.empty(len(init_seeds), rank, layer.in_features)
        for r, init_seed in enumerate(init_seeds):
            generator = torch.Generator().manual_seed(seed.derive(init_seed, name))
            A[r].uniform_(-bound, bound, generator=generator)
        B = torch.zeros(len(init_seeds), rank, layer.out_features, device=device, dtype=dtype).transpose(1, 2)  # [R, r, O] in memory
        factors[name] = (A.to(device, dtype).requires_grad_(), B.requires_grad_())
    return factors


def batch_rows(plan: TrainingPlan, order_seed: int, step: int) -> np.ndarray:
    """Training rows of one replica's step, [accumulation * batch]; `plan.rows` stands for an empty row that fills the last batch.

    A fresh permutation each epoch, a function of (order seed, epoch) alone.
    """
    epoch, position = divmod(step, plan.steps_per_epoch)
    size = plan.micro_batch * plan.accumulation
    order = np.random.default_rng(seed.derive(order_seed, "epoch", epoch)).permutation(plan.rows)
    rows = order[position * size : (position + 1) * size]
    return np.concatenate([rows, np.full(size - len(rows), plan.rows)])


@dataclass
class Rows:
    """The training set as padded tensors, with one empty row at the end. `position` is where a target's logits stand."""

    ids: Tensor  # [rows + 1, T]
    position: Tensor  # [rows + 1, L]
    target: Tensor  # [rows + 1, L]
    weight: Tensor  # [rows + 1, L], 1 where there is a target

    @staticmethod
    def of(examples: Sequence[Example], plan: TrainingPlan, dtype: torch.dtype, device: str) -> Rows:
        ids = torch.zeros(plan.rows + 1, plan.length, dtype=torch.long)
        position = torch.zeros(plan.rows + 1, plan.targets, dtype=torch.long)
        target = torch.zeros(plan.rows + 1, plan.targets, dtype=torch.long)
        weight = torch.zeros(plan.rows + 1, plan.targets, dtype=dtype)
        for i, example in enumerate(examples):
            ids[i, : len(example.ids)] = torch.tensor(example.ids)
            where = torch.tensor([t for t, counts in enumerate(example.loss_mask) if counts and t > 0])
            position[i, : len(where)] = where - 1
            target[i, : len(where)] = ids[i, where]
            weight[i, : len(where)] = 1
        return Rows(*(x.to(device) for x in (ids, position, target, weight)))


def token_losses(logits: Tensor, target: Tensor, soft: Tensor | None, temperature: float, mix: float) -> Tensor:
    """Loss of every position, [N, L], in nats, from logits [N, L, V] and targets [N, L].

    soft: log-probabilities [N, L, V] of a teacher at `temperature`; then mix * T^2 KL(teacher || student at T) + (1 - mix) *
    cross-entropy (Hinton, Vinyals & Dean 2015, arXiv:1503.02531: T^2 keeps the size of the gradient). Without: cross-entropy.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    hard = torch.zeros((), device=logits.device)
    if soft is None or mix < 1:
        hard = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    if soft is None:
        return hard
    kl = F.kl_div(F.log_softmax(logits / temperature, -1), soft.to(logits.dtype), reduction="none", log_target=True).sum(-1)
    return mix * temperature**2 * kl + (1 - mix) * hard


def train_stack(
    model: torch.nn.Module,
    examples: Sequence[Example],
    condition: Condition,
    plan: TrainingPlan,
    seeds_R: Sequence[dict[str, int]],
    *,
    teachers_R: Sequence[Teacher] | None = None,
    keep_soft_targets: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> Trained:
    """Train one replica for every entry of `seeds_R`. `on_step` is called with the number of finished steps.

    teachers_R: of a distilled condition, whom each replica learns from. keep_soft_targets: see `soft_targets`.
    The base is given back unchanged.
    """
    device = next(model.parameters()).device
    start = seconds_used(device.type)
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)  # adapters and moments: float32 or better
    R = len(seeds_R)
    rows = Rows.of(examples, plan, dtype, str(device))
    tokens = rows.weight.sum(1)  # per row
    losses_of = compiled(token_losses) if plan.compiled else token_losses
    with stacked(model, condition.targets, compiled=plan.length if plan.compiled else None) as stack:
        scale = lora_scale(condition.rank, condition.alpha or 2 * condition.rank, condition.rslora)
        factors = initial_factors(stack, condition.rank, [s["init"] for s in seeds_R], dtype, device)
        stack.load(factors, scale)
        dropout = None
        if condition.dropout:
            dropout = CounterDropout(condition.dropout, torch.tensor([s["dropout"] for s in seeds_R], device=device))
        stack.set_dropout(dropout)
        parameters = [x for pair in factors.values() for x in pair]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=condition.lr,
            betas=(condition.betas[0], condition.betas[1]),
            eps=condition.eps,
            weight_decay=condition.weight_decay,
            fused=True,
        )
        points = condition.snapshots
        record_at = set(snapshot_steps(plan, points.count, points.start)) if points else set()
        said: Said | None = None
        if teachers_R is not None and condition.mix > 0:
            texts = rows.ids, rows.position, rows.weight
            said = soft_targets(stack, teachers_R, *texts, temperature=condition.temperature, keep=keep_soft_targets)
        snapshots, losses, norms, row_losses, row_ids, lrs = [], [], [], [], [], []
        for step in range(plan.steps):
            order_RB = np.stack([batch_rows(plan, s["order"], step) for s in seeds_R])
            index_RB = torch.from_numpy(order_RB).to(device)
            count_R = tokens[index_RB].sum(1).clamp(min=1)
            loss_R = torch.zeros(R, dtype=dtype, device=device)
            step_row_losses = []
            for micro, index_Rb in enumerate(index_RB.split(plan.micro_batch, dim=1)):
                if dropout:
                    dropout.step = step * plan.accumulation + micro
                index = index_Rb.reshape(-1)
                logits = stack.logits(rows.ids[index], rows.position[index])
                soft = said(index_Rb) if said else None
                loss_NL = losses_of(logits, rows.target[index], soft, condition.temperature, condition.mix)
                loss_N = (loss_NL * rows.weight[index]).sum(1)  # per row
                micro_R = loss_N.view(R, -1).sum(1) / count_R
                micro_R.sum().backward()
                loss_R += micro_R.detach()
                step_row_losses.append((loss_N.detach() / tokens[index].clamp(min=1)).view(R, -1))
            norm_R = gradient_norms(parameters)
            if condition.clip:
                clip_gradients(parameters, norm_R, condition.clip)
            lr = learning_rate(step, plan, condition.lr, condition.schedule)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss_R)
            norms.append(norm_R)
            lrs.append(lr)
            row_losses.append(torch.cat(step_row_losses, 1))
            row_ids.append(np.where(order_RB == plan.rows, -1, order_RB))
            if step + 1 in record_at:
                snapshots.append({name: (A.detach().cpu().clone(), B.detach().cpu().clone()) for name, (A, B) in factors.items()})
            if on_step:
                on_step(step + 1)
        fan_in_fan_out = any(layer.is_conv for layer in stack.layers.values())
    return Trained(
        factors={name: (A.detach().cpu(), B.detach().cpu()) for name, (A, B) in factors.items()},
        scale=scale,
        fan_in_fan_out=fan_in_fan_out,
        loss_SR=torch.stack(losses).cpu().numpy(),
        norm_SR=torch.stack(norms).cpu().numpy(),
        lr_S=np.array(lrs),
        row_SRB=np.stack(row_ids),
        row_loss_SRB=torch.stack(row_losses).cpu().numpy(),
        seconds=seconds_used(device.type) - start,
        snapshots=snapshots,
    )


def gradient_norms(parameters: Sequence[Tensor]) -> Tensor:
    """Gradient norm of each replica, [R], over all its tensors. The norm of the stack would tie replicas together."""
    return torch.stack([p.grad.square().flatten(1).sum(1) for p in parameters if p.grad is not None]).sum(0).sqrt()


def clip_gradients(parameters: Sequence[Tensor], norm_R: Tensor, largest: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` for every replica by itself."""
    factor_R = (largest / (norm_R + 1e-6)).clamp(max=1)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor_R[:, None, None])


AVERAGES = {"swa": lambda S, decay: swa_weights(S), "ema": ema_weights}
"""name -> weights of the S snapshots; the average itself is exact in delta space, then cut to the replica's rank."""


def save_stack(
    folder: Path,
    trained: Trained,
    condition: Condition,
    *,
    replicas: Sequence[int],
    keep: Sequence[int],
    seeds_R: Sequence[dict[str, int]],
    plan: TrainingPlan,
    fingerprints: Mapping[int, str],
    base: str,
    revision: str | None,
) -> list[Replica]:
    """Write the replicas of a stack that are in `keep` as PEFT adapters, their averages and snapshots first, `replica.json` last.

    Raises AdapterError or OSError when the disk refuses; what was finished stays.
    """
    _save_losses(folder, trained, replicas=replicas, plan=plan)
    targets = sorted({name.rsplit(".", 1)[-1] for name in trained.factors}) if condition.targets == "all-linear" else condition.targets
    common = {"target_modules": targets, "base": base, "revision": revision, "fan_in_fan_out": trained.fan_in_fan_out}
    as_trained = {
        "r": condition.rank,
        "alpha": condition.alpha or 2 * condition.rank,
        "use_rslora": condition.rslora,
        "config": {"lora_dropout": condition.dropout},
        **common,
    }
    records = []
    for r, replica in enumerate(replicas):
        if replica not in keep:
            continue
        path = replica_folder(folder, replica)
        failed = trained.failed_step(r)
        loss = float(trained.loss_SR[-1, r])
        record = {
            "replica": replica,
            "seeds": seeds_R[r],
            "steps": plan.steps,
            "final_loss": loss if np.isfinite(loss) else None,
            "failed_step": failed,
            "seconds": round(trained.seconds / len(replicas), 3),
            "fingerprint": fingerprints[replica],
        }
        if failed is not None:
            done = Replica(status="failed", **record)
            write_text(path / RECORD, done.to_json())
            records.append(done)
            continue
        hashes, energy = {}, {}
        if condition.snapshots and condition.snapshots.save:
            for s, snapshot in enumerate(trained.snapshots):
                name = f"snapshots/s{s:03d}"
                hashes[f"{name}/adapter_model.safetensors"] = write_adapter(path / name, _one(snapshot, r), **as_trained)
        for average in condition.averages:
            weights = AVERAGES[average](len(trained.snapshots), condition.ema_decay)
            merged, energy[average] = average_snapshots(trained.snapshots, r, trained.scale, weights, condition.rank)
            name = f"averages/{average}"
            digest = write_adapter(path / name, merged, r=condition.rank, alpha=condition.rank, **common)
            hashes[f"{name}/adapter_model.safetensors"] = digest
        # the hash of the weights is known only once they are written, and the record must come last
        hashes["adapter_model.safetensors"] = write_adapter(path, _one(trained.factors, r), **as_trained)
        done = Replica(status="ok", sha256=hashes, energy=energy, **record)
        write_text(path / RECORD, done.to_json())
        records.append(done)
    return records


def average_snapshots(
    snapshots: Sequence[Factors_R], r: int, scale: float, weights: Sequence[float], rank: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Weighted mean of one replica's snapshots in delta space, cut to `rank`; and the share of its squared norm that is kept.

    A mean of A and a mean of B would be another model (cross terms B_i A_j).
    """
    merged, kept, total = {}, 0.0, 0.0
    for name in snapshots[0]:
        factors = [(s[name][0][r], s[name][1][r], scale) for s in snapshots]
        A, B = concat(factors, weights)
        energy = float(((A @ A.T) * (B.T @ B)).sum())
        size = min(rank, A.shape[1], B.shape[0])
        A, B, share = truncate(A, B, rank=size)
        pad = rank - size  # a layer smaller than the rank: rows of zeros keep one rank for all
        merged[name] = (F.pad(A, (0, 0, 0, pad)).float(), F.pad(B, (0, pad)).float())
        kept, total = kept + share * energy, total + energy
    return merged, kept / total if total else 1.0


def _one(factors: Factors_R, r: int) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (A[r], B[r]) for name, (A, B) in factors.items()}


def _save_losses(folder: Path, trained: Trained, *, replicas: Sequence[int], plan: TrainingPlan) -> None:
    """training/steps-*.parquet: loss, gradient norm and rate per replica and step; examples-*: loss per replica, epoch and row."""
    S, R = trained.loss_SR.shape
    tag = f"{replicas[0]:05d}"
    replica_SR, step_SR = np.broadcast_to(np.array(replicas), (S, R)), np.broadcast_to(np.arange(S)[:, None], (S, R))
    lr_SR = np.broadcast_to(trained.lr_S[:, None], (S, R))
    steps = {"replica": replica_SR, "step": step_SR, "loss": trained.loss_SR, "gradient_norm": trained.norm_SR, "lr": lr_SR}
    write_table(folder / "training" / f"steps-{tag}.parquet", pa.table({k: np.ravel(v) for k, v in steps.items()}))
    real = trained.row_SRB >= 0
    shape = trained.row_SRB.shape
    epoch = np.broadcast_to((np.arange(S) // plan.steps_per_epoch)[:, None, None], shape)
    replica = np.broadcast_to(np.array(replicas)[None, :, None], shape)
    examples = {"replica": replica, "epoch": epoch, "row": trained.row_SRB, "loss": trained.row_loss_SRB.astype(np.float32)}
    write_table(folder / "training" / f"examples-{tag}.parquet", pa.table({k: v[real] for k, v in examples.items()}))
