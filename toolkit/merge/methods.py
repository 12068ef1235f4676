"""The merge methods: one table at the end, name -> functions and paper.

A method has two parts. `along` turns one source into the adapters it stands for, with weights that sum to 1: the
adapter itself, or its training trajectory. `combine` turns the changes of one module, read one at a time, into the
factors of the merged change. The keyword-only arguments of both are the parameters of the method.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from toolkit import delta
from toolkit.adapters import CONFIG, AdapterError


def mean(factors: Iterable[delta.Factors], weights: Iterable[float]) -> tuple[Tensor, Tensor]:
    """Weighted mean of the changes, exact. Averaging A and B by themselves would return about 1/K of it."""
    return delta.concat(factors, weights)


def ties(factors: Iterable[delta.Factors], weights: Iterable[float], *, density: float = 0.2) -> tuple[Tensor, Tensor]:
    """TIES: keep the largest entries of every change, elect a sign per entry, average those that agree with it.

    `density` is the share that is kept; the default is the paper's. Unlike the mean, it is not bound to reduce the
    variance between runs: measure.
    The result has full rank before truncation; memory is a few times K dense changes of one module.
    """
    from mergekit.merge_methods import merge_tensors  # LGPL: called, not copied

    if not 0 < density <= 1:
        raise ValueError(f"density {density} is impossible: a share of entries, above 0 and at most 1")
    changes = [delta.dense(one).float() for one in factors]
    weights = list(weights)
    # Only ratios matter; with equal weights exactly 1.0 nothing is rounded.
    relative = [weight / max(weights) for weight in weights]
    with torch.no_grad():
        merged = merge_tensors(
            [torch.zeros_like(changes[0]), *changes],  # the base: its change is zero
            "ties",
            base_index=0,
            parameters={"weight": relative, "density": density},
            dtype=torch.float32,
        )
    return delta.from_dense(merged.double())


def itself(source: Path) -> list[tuple[Path, float]]:
    """The adapter in `source`."""
    return [(source, 1.0)]


def swa(source: Path, *, last: int | None = None) -> list[tuple[Path, float]]:
    """Stochastic weight averaging: `averages/swa` as training wrote it, or the mean of all (`last`) snapshots."""
    if last is None and _is_adapter(source / "averages" / "swa"):
        return itself(source / "averages" / "swa")
    if last is not None and last < 1:
        raise ValueError(f"last {last} is impossible: a number of snapshots, at least 1")
    paths = _snapshots(source)
    paths = paths if last is None else paths[-last:]
    return list(zip(paths, delta.swa_weights(len(paths)), strict=True))


def ema(source: Path, *, decay: float | None = None) -> list[tuple[Path, float]]:
    """Exponential moving average: `averages/ema` as training wrote it; with `decay`, from the snapshots."""
    if decay is None and _is_adapter(source / "averages" / "ema"):
        return itself(source / "averages" / "ema")
    if decay is None:
        raise AdapterError(f"{source}: no averages/ema here; give `decay` to average the snapshots")
    paths = _snapshots(source)
    return list(zip(paths, delta.ema_weights(len(paths), decay), strict=True))


def _is_adapter(path: Path) -> bool:
    return (path / CONFIG).is_file()


def _snapshots(source: Path) -> list[Path]:
    """`snapshots/s*` in the order of training: s9 comes before s10."""
    paths = [path for path in (source / "snapshots").glob("s*") if _is_adapter(path)]
    if not paths:
        raise AdapterError(f"{source}: no adapters in snapshots/; train with snapshots, or merge with `mean`")
    return sorted(paths, key=lambda path: (len(path.name), path.name))


class Method(NamedTuple):
    """One row of the table."""

    combine: Callable[..., tuple[Tensor, Tensor]]  # (factors, weights, **parameters) -> A [q, I], B [O, q]
    along: Callable[..., list[tuple[Path, float]]]  # (source, **parameters) -> adapters and weights
    needs: str
    paper: str


METHODS = {
    "mean": Method(mean, itself, "adapters", "https://arxiv.org/abs/2203.05482"),
    "swa": Method(mean, swa, "averages/swa or snapshots of every replica", "https://arxiv.org/abs/1803.05407"),
    "ema": Method(mean, ema, "averages/ema or snapshots of every replica", "https://arxiv.org/abs/2411.18704"),
    "ties": Method(ties, itself, "adapters", "https://arxiv.org/abs/2306.01708"),
}
