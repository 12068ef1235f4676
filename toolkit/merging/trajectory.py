"""The adapters that one source stands for: itself, or its training trajectory, with weights that
sum to 1.
"""

from pathlib import Path

from toolkit.model import delta
from toolkit.model.adapters import CONFIG, FULL, AdapterError

Trajectory = list[tuple[Path, float]]


def itself(source: Path) -> Trajectory:
    """The adapter in `source`."""
    return [(source, 1.0)]


def swa(source: Path, *, last: int | None) -> Trajectory:
    """Stochastic weight averaging: `averages/swa` as training wrote it, or the mean of all (`last`)
    snapshots.
    """
    if last is None and _is_adapter(source / "averages" / "swa"):
        return itself(source / "averages" / "swa")
    return lawa(source, last=last)


def lawa(source: Path, *, last: int | None) -> Trajectory:
    """Latest weight averaging: the mean of the `last` snapshots (None: of all), as training wrote
    it or from the snapshots.
    """
    if _is_adapter(source / "averages" / f"lawa-last{last}"):
        return itself(source / "averages" / f"lawa-last{last}")
    paths = _snapshots(source)
    if last is not None and last > len(paths):
        raise AdapterError(
            f"{source}: {len(paths)} snapshots, fewer than the last {last}; set `last` to "
            "at most that"
        )
    paths = paths if last is None else paths[-last:]
    return list(zip(paths, delta.swa_weights(len(paths)), strict=True))


def ema(source: Path, *, decay: float | None) -> Trajectory:
    """Exponential moving average: `averages/ema` as training wrote it; with `decay`, from the
    snapshots.
    """
    if decay is None and _is_adapter(source / "averages" / "ema"):
        return itself(source / "averages" / "ema")
    if decay is None:
        raise AdapterError(f"{source}: no averages/ema here; give `decay` to average the snapshots")
    paths = _snapshots(source)
    return list(zip(paths, delta.ema_weights(len(paths), decay), strict=True))


def _is_adapter(path: Path) -> bool:
    return any((path / name).is_file() for name in (CONFIG, FULL))


def _snapshots(source: Path) -> list[Path]:
    """`snapshots/s*` in the order of training: s9 comes before s10."""
    paths = [path for path in (source / "snapshots").glob("s*") if _is_adapter(path)]
    if not paths:
        raise AdapterError(
            f"{source}: no adapters in snapshots/; train with snapshots, or merge with `mean`"
        )
    return sorted(paths, key=lambda path: (len(path.name), path.name))
