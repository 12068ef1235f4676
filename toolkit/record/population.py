"""A population on disk: a folder of replicas, which is its own ledger.

A replica is complete when its `replica.json`, written last, is there and the hashes in it agree
with the files. Nothing else records
progress: a run survives a kill at any point, can be copied, merged by hand, or half deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolkit.record.files import sha256_file as sha256_file
from toolkit.record.files import write_text as write_text
from toolkit.record.plain import read_json, read_record

RECORD = "replica.json"
LEDGER = "population.json"
"""of a condition: how its replicas were trained, or where they were found"""


@dataclass(frozen=True)
class Replica:
    """The record of one finished run of a condition. `failed_step` is the first step whose loss was
    not finite.
    """

    replica: int
    status: str  # "ok" or "failed"
    seeds: dict[str, int]
    steps: int
    final_loss: float | None
    failed_step: int | None = None
    # of a core (CPU) or of the device, its share of the stack's training
    seconds: float | None = None
    fingerprint: str = ""
    # file, relative to the replica's folder -> hash
    sha256: dict[str, str] = field(default_factory=dict)
    # average -> share of the squared norm that its rank keeps
    energy: dict[str, float] = field(default_factory=dict)
    machine: str = ""  # what did the work, as far as it can change bits; see `environment.machine`
    source: str = ""  # folder of an adapter that was there already; its seeds are not known

    def to_json(self) -> str:
        """The text of its record."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def replica_folder(condition: Path, replica: int) -> Path:
    """The folder of a replica of a condition's folder."""
    return condition / "replicas" / f"{replica:05d}"


def read_replica(folder: Path) -> Replica | None:
    """The record of a complete replica; None when it is missing, half written, or its files were
    changed.
    """
    try:
        record = read_record(folder / RECORD, Replica)
        complete = all(
            sha256_file(folder / name) == digest for name, digest in record.sha256.items()
        )
    except (OSError, ValueError):
        return None
    return record if complete else None


def read_records(condition: Path) -> dict[int, Replica]:
    """The records of replicas as they were written, whatever has become of the files; without those
    that cannot be read.
    """
    records = {}
    for path in sorted(condition.glob(f"replicas/*/{RECORD}")):
        try:
            record: Replica = read_record(path, Replica)
        except (OSError, ValueError):
            continue
        records[record.replica] = record
    return records


def changed_files(folder: Path, record: Replica) -> list[str]:
    """Files of a replica that are not, or no longer, what was recorded."""
    return [
        name
        for name, digest in record.sha256.items()
        if not (folder / name).is_file() or sha256_file(folder / name) != digest
    ]


def read_ledger(condition: Path) -> dict[str, Any]:
    """population.json; empty where it is lost or broken."""
    try:
        ledger = read_json(condition / LEDGER)
    except (OSError, ValueError):
        return {}
    return ledger if isinstance(ledger, dict) else {}


def read_population(condition: Path) -> dict[int, Replica]:
    """All complete replicas of a condition by index, failed ones included."""
    records = {}
    folders = (
        sorted((condition / "replicas").iterdir()) if (condition / "replicas").is_dir() else []
    )
    for folder in folders:
        if folder.name.isdigit() and (record := read_replica(folder)) is not None:
            records[record.replica] = record
    return records


def fingerprint(values: dict[str, Any]) -> str:
    """A short hash of everything that defines the bits of a population's replicas."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def groups(replicas: Iterable[int], k: int) -> list[list[int]]:
    """Disjoint groups of K in index order; a remainder is left out. Groups share no replica, so
    they are independent runs.
    """
    ordered = sorted(replicas)
    return [ordered[i : i + k] for i in range(0, len(ordered) - k + 1, k)]
