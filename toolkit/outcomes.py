"""Outcomes: what one subject did on one prompt. Parquet shards, one per unit of work, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("prompt_id", pa.string()),
        ("condition", pa.string()),  # "" for the base
        ("procedure", pa.string()),  # "base", "replica", or the label of a mitigation
        ("index", pa.int32()),  # replica, or number of the group; 0 for the base
        ("text", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),  # null without a reference
        ("logprob", pa.float32()),  # of the generated tokens, nats; null for a vote
        ("n_tokens", pa.int32()),
        ("reference_logprob", pa.float32()),  # nats, end of sequence included; null without a reference
        ("first_ids", pa.list_(pa.int32())),  # most probable first tokens
        ("first_logprobs", pa.list_(pa.float32())),
    ]
)


def write_table(path: Path, table: pa.Table) -> None:
    """Write beside, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(staging, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def write_outcomes(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_table(path, pa.Table.from_pylist(list(rows), schema=SCHEMA))


def read_outcomes(paths: Iterable[Path]) -> pa.Table:
    """All shards as one table, in the order of the paths."""
    tables = [pq.read_table(path, schema=SCHEMA) for path in paths]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
