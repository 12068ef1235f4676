"""What a stack became, on disk: replicas, averages and snapshots of their trajectories, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from toolkit.adapters import write_adapter
from toolkit.delta import concat, ema_weights, swa_weights, truncate
from toolkit.outcomes import write_table
from toolkit.plan import TrainingPlan
from toolkit.population import RECORD, Replica, replica_folder, write_text
from toolkit.recipe import Condition
from toolkit.train.initial import Factors_R
from toolkit.train.loop import Trained

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
