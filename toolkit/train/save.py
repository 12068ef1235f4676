"""Write a trained stack: replicas, averages and snapshots of their trajectories, losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.model.adapters import CONFIG, WEIGHTS, write_adapter
from toolkit.model.base import Base
from toolkit.model.delta import concat, ema_weights, swa_weights, truncate
from toolkit.model.full import MODEL, model_files, write_model
from toolkit.recipe import AdapterCondition, Condition
from toolkit.recipe.schedule import TrainingPlan
from toolkit.record.files import sha256_file
from toolkit.record.outcomes import write_table
from toolkit.record.population import RECORD, Replica, replica_folder, write_text
from toolkit.train.initial import Weights_R
from toolkit.train.loop import Trained


def average_weights(condition: Condition, S: int) -> dict[str, list[float]]:
    """Name of each average in the condition -> weights of the S snapshots.

    The average itself is exact in delta space; that of adapters is then cut to the replica's rank.
    """
    if not condition.averages:
        return {}
    last = min(condition.lawa_last, S)
    weights_of = {
        "swa": ("swa", swa_weights(S)),
        "ema": ("ema", ema_weights(S, condition.ema_decay)),
        "lawa": (f"lawa-last{condition.lawa_last}", [0.0] * (S - last) + swa_weights(last)),
    }
    return dict(weights_of[average] for average in condition.averages)


class _Adapters:
    """Replicas of a stack as PEFT adapters."""

    file = WEIGHTS
    beside = (CONFIG,)

    def __init__(self, trained: Trained, condition: AdapterCondition, base: Base):
        targets = (
            sorted({name.rsplit(".", 1)[-1] for name in trained.factors})
            if condition.targets == "all-linear"
            else condition.targets
        )
        self.rank, self.scale = condition.rank, trained.scale
        self.common = {
            "target_modules": targets,
            "base": base.source,
            "revision": base.revision,
            "fan_in_fan_out": trained.fan_in_fan_out,
        }
        self.as_trained = {
            "r": condition.rank,
            "alpha": condition.lora_alpha,
            "use_rslora": condition.rslora,
            "config": {"lora_dropout": condition.dropout},
            **self.common,
        }

    def write(self, path: Path, weights: Weights_R, r: int) -> str:
        """The adapter of slot r, and its sha256."""
        return write_adapter(
            path, {name: (A[r], B[r]) for name, (A, B) in weights.items()}, **self.as_trained
        )

    def write_average(
        self, path: Path, snapshots: Sequence[Weights_R], r: int, weights: Sequence[float]
    ) -> tuple[str, float]:
        """An average of its snapshots; also the share of the squared norm that its rank keeps."""
        merged, energy = average_snapshots(snapshots, r, self.scale, weights, self.rank)
        return write_adapter(path, merged, r=self.rank, alpha=self.rank, **self.common), energy


class _Models:
    """Replicas of a stack as folders of whole models."""

    file = MODEL

    def __init__(self, base: Base):
        self.files = model_files(base)
        self.beside = tuple(self.files)

    def write(self, path: Path, weights: Weights_R, r: int) -> str:
        return write_model(path, {name: W[r] for name, (W,) in weights.items()}, self.files)

    def write_average(
        self, path: Path, snapshots: Sequence[Weights_R], r: int, weights: Sequence[float]
    ) -> tuple[str, float]:
        """The mean of weights is the mean of changes, and nothing is cut."""
        mean = {}
        for name, (W,) in snapshots[0].items():
            total = sum(
                weight * snapshot[name][0][r].double()
                for snapshot, weight in zip(snapshots, weights, strict=True)
            )
            mean[name] = torch.as_tensor(total).to(W.dtype)
        return write_model(path, mean, self.files), 1.0


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
    base: Base,
    machine: str = "",
) -> list[Replica]:
    """Write the replicas of a stack that are in `keep`, their averages and snapshots first,
    `replica.json` last.

    Adapters are PEFT folders, whole models those of `toolkit.model.full`. machine: see
    `environment.machine`. Raises AdapterError or OSError when the disk refuses; what was finished
    stays.
    """
    _save_losses(folder, trained, replicas=replicas, plan=plan)
    files = _Models(base) if condition.method == "full" else _Adapters(trained, condition, base)
    averages = average_weights(condition, len(trained.snapshots))
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
            "machine": machine,
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
                hashes |= _hashes(path, name, files.write(path / name, snapshot, r), files)
        for average, weights in averages.items():
            name = f"averages/{average}"
            digest, energy[average] = files.write_average(
                path / name, trained.snapshots, r, weights
            )
            hashes |= _hashes(path, name, digest, files)
        # the hash of the weights is known only once they are written, and the record must come last
        hashes |= _hashes(path, "", files.write(path, trained.factors, r), files)
        done = Replica(status="ok", sha256=hashes, energy=energy, **record)
        write_text(path / RECORD, done.to_json())
        records.append(done)
    return records


def _hashes(path: Path, name: str, digest: str, files: _Adapters | _Models) -> dict[str, str]:
    """Of all that was written to the folder `name` of a replica: what stands beside weights decides
    what they mean.
    """
    hashes = {file: sha256_file(path / name / file) for file in files.beside}
    return {
        f"{name}/{file}" if name else file: value
        for file, value in {files.file: digest, **hashes}.items()
    }


def average_snapshots(
    snapshots: Sequence[Weights_R], r: int, scale: float, weights: Sequence[float], rank: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Weighted mean of one replica's snapshots in delta space, cut to `rank`; and the share of its
    squared norm that is kept.

    A mean of A and a mean of B would be another model (cross terms B_i A_j).
    """
    merged, kept, total = {}, 0.0, 0.0
    used = [(s, weight) for s, weight in zip(snapshots, weights, strict=True) if weight]
    for name in snapshots[0]:
        A, B = concat(
            [(s[name][0][r], s[name][1][r], scale) for s, _ in used], [weight for _, weight in used]
        )
        energy = float(((A @ A.T) * (B.T @ B)).sum())
        size = min(rank, A.shape[1], B.shape[0])
        A, B, share = truncate(A, B, rank=size)
        pad = rank - size  # a layer smaller than the rank: rows of zeros keep one rank for all
        merged[name] = (F.pad(A, (0, 0, 0, pad)).float(), F.pad(B, (0, pad)).float())
        kept, total = kept + share * energy, total + energy
    return merged, kept / total if total else 1.0


def _save_losses(
    folder: Path, trained: Trained, *, replicas: Sequence[int], plan: TrainingPlan
) -> None:
    """training/steps-*.parquet: loss, gradient norm and rate per replica and step; examples-*: loss
    per replica, epoch and row.
    """
    S, R = trained.loss_SR.shape
    tag = f"{replicas[0]:05d}"
    replica_SR, step_SR = (
        np.broadcast_to(np.array(replicas), (S, R)),
        np.broadcast_to(np.arange(S)[:, None], (S, R)),
    )
    lr_SR = np.broadcast_to(trained.lr_S[:, None], (S, R))
    steps = {
        "replica": replica_SR,
        "step": step_SR,
        "loss": trained.loss_SR,
        "gradient_norm": trained.norm_SR,
        "lr": lr_SR,
    }
    write_table(
        folder / "training" / f"steps-{tag}.parquet",
        pa.table({k: np.ravel(v) for k, v in steps.items()}),
    )
    real = trained.row_SRB >= 0
    shape = trained.row_SRB.shape
    epoch = np.broadcast_to((np.arange(S) // plan.steps_per_epoch)[:, None, None], shape)
    replica = np.broadcast_to(np.array(replicas)[None, :, None], shape)
    examples = {
        "replica": replica,
        "epoch": epoch,
        "row": trained.row_SRB,
        "loss": trained.row_loss_SRB.astype(np.float32),
    }
    write_table(
        folder / "training" / f"examples-{tag}.parquet",
        pa.table({k: v[real] for k, v in examples.items()}),
    )
