"""Are the replicas of a run what its recipe makes? Train some again, in a scratch folder, and
compare hashes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import environment
from toolkit.model import delta
from toolkit.model.adapters import CONFIG, read_adapter
from toolkit.pipeline.job import Console, RunError, open_folder
from toolkit.pipeline.opening import open_run
from toolkit.pipeline.populations import teacher_groups
from toolkit.pipeline.train_stacks import replica_mark, train_missing, training_plan
from toolkit.record.plain import read_record
from toolkit.record.population import RECORD, Replica, changed_files, replica_folder, sha256_file
from toolkit.record.shapes import Environment

SAME, DIFFERENT, DAMAGED = "same", "different", "damaged"
DEFINING = (
    "r",
    "lora_alpha",
    "use_rslora",
    "target_modules",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
)
"""keys of an adapter's configuration that decide what its weights mean"""


@dataclass(frozen=True)
class Verified:
    """One replica, trained again."""

    condition: str
    replica: int
    # same bits; different bits; damaged: the files on disk are not those that were recorded
    verdict: str
    files: tuple[str, ...] = ()  # that differ
    compared: tuple[str, ...] = ()  # that were held against what training makes now
    # ||dW' - dW|| / ||dW|| of the final weights: 1e-6 is rounding, 1 another model
    distance: float | None = None


def verify(
    folder: Path,
    *,
    conditions: Sequence[str] = (),
    replicas: Sequence[int] = (),
    workers: int | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train the stacks of `replicas` again (default: the first stack of every condition) and
    compare all that they share with the run.

    Nothing that was trained is touched. Returns `replicas`, a list of `Verified` as dictionaries,
    and `environment`: what this machine has otherwise than the run had, as {name: [then, now]};
    where that is empty, different bits are a defect. Raises RunError in one line when there is
    nothing to verify, or when recipe, data or base are not what trained the replicas.
    """
    # what trained the replicas is told by their fingerprints
    recipe = open_folder(folder, as_it_is=True)
    names = list(conditions) or [
        name for name in recipe.trained if (folder / name / "replicas").is_dir()
    ]
    unknown = [name for name in names if name not in recipe.trained]
    if unknown or not names:
        trained_conditions = ", ".join(recipe.trained)
        raise RunError(
            f"{folder}: trains no condition {unknown[0]!r}; there are: {trained_conditions}"
            if unknown
            else f"{folder}: no replicas yet"
        )
    verified: list[Verified] = []
    scratch = Path(tempfile.mkdtemp(prefix="ftk-verify-"))
    try:
        with open_run(recipe, scratch, workers=workers, console=console, answers=False) as job:
            for name in names:
                plan, mark = training_plan(recipe, name, job.device)
                records = _records(folder / name)
                chosen = list(replicas) or list(range(plan.stack))
                stacks = {r // plan.stack for r in chosen}
                requested = [r for r in sorted(records) if r // plan.stack in stacks]
                missing = sorted(set(replicas) - set(requested))
                if missing or not requested:
                    raise RunError(
                        f"{folder / name}: replica {missing[0] if missing else 0} is not "
                        "there to be verified"
                    )
                condition = recipe.trained[name]
                teachers = (
                    teacher_groups(replace(job, folder=folder), name) if condition.teacher else []
                )
                other = [
                    r
                    for r in requested
                    if records[r].fingerprint != replica_mark(condition, mark, teachers, r)
                ]
                if other:
                    raise RunError(
                        f"{replica_folder(folder / name, other[0])}: was trained from "
                        "another recipe, data, base or teacher (fingerprint "
                        f"{records[other[0]].fingerprint}); bring those back, or train it "
                        f"again with --only {other[0]}"
                    )
                again: dict[int, Replica] = {}
                train_missing(job, name, requested, plan, mark, again, teachers=teachers)
                verified += [
                    _compare(name, folder / name, scratch / name, records[r], again[r])
                    for r in requested
                ]
            now = environment.describe(job.device)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {
        "run": str(folder),
        "replicas": [asdict(replica) for replica in verified],
        "environment": _changes(folder, now),
    }


def _records(condition: Path) -> dict[int, Replica]:
    """The records of finished replicas as they were written, whatever has become of their files."""
    records = {}
    for path in condition.glob(f"replicas/*/{RECORD}"):
        try:
            record = read_record(path, Replica)
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path}: cannot be read ({error}); delete the folder, and `ftk run` "
                "trains the replica again"
            ) from None
        records[record.replica] = record
    return records


def _compare(name: str, run: Path, scratch: Path, then: Replica, now: Replica) -> Verified:
    ours, theirs = replica_folder(run, then.replica), replica_folder(scratch, now.replica)
    compared = tuple(sorted(now.sha256))
    if damaged := changed_files(ours, then):
        return Verified(name, then.replica, DAMAGED, tuple(damaged), compared)
    files = tuple(
        file
        for file in sorted(then.sha256 | now.sha256)
        if not _same(file, ours, theirs, then, now)
    )
    if not files and (then.status, then.failed_step) == (now.status, now.failed_step):
        return Verified(name, then.replica, SAME, (), compared)
    both = (ours / CONFIG).is_file() and (theirs / CONFIG).is_file()
    return Verified(
        name, then.replica, DIFFERENT, files, compared, _distance(ours, theirs) if both else None
    )


def _same(file: str, ours: Path, theirs: Path, then: Replica, now: Replica) -> bool:
    """Whether a file is what training makes now: by its hash, or where none was recorded by what is
    in it.
    """
    if file in then.sha256 or file not in now.sha256:
        return then.sha256.get(file) == now.sha256.get(file)
    if not (ours / file).is_file():
        return False
    if Path(file).name != CONFIG:
        return sha256_file(ours / file) == now.sha256[file]
    config, other = (read_record(folder / file, dict[str, Any]) for folder in (ours, theirs))
    return all((config.get(key) or None) == (other.get(key) or None) for key in DEFINING)


def _distance(first: Path, second: Path) -> float:
    """||dW_2 - dW_1|| / ||dW_1|| over all modules."""
    adapter, other = read_adapter(first), read_adapter(second)
    apart = total = 0.0
    for name in adapter.modules:
        A, B = delta.concat([adapter.factors(name), other.factors(name)], [1.0, -1.0])
        apart += delta.norm((A, B, 1.0)) ** 2
        total += delta.norm(adapter.factors(name)) ** 2
    return (apart / total) ** 0.5 if total else 0.0


def _changes(folder: Path, now: dict[str, Any]) -> dict[str, list[Any]]:
    """What can change bits and is not as it was when the run was last at work."""
    try:
        then = read_record(folder / "environment.json", Environment)
    except (OSError, ValueError):
        return {"environment.json": ["unknown", "known"]}
    flat_then, flat_now = (
        {"ftk": e.get("ftk"), **e.get("versions", {}), **e.get("numerics", {})} for e in (then, now)
    )
    return {
        name: [flat_then.get(name), flat_now.get(name)]
        for name in flat_now
        if flat_then.get(name) != flat_now.get(name)
    }
