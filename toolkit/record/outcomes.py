"""Outcomes: what one subject did on one prompt. Parquet shards, one per unit of work, written whole
or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.errors import FtkError
from toolkit.record.files import replacing
from toolkit.record.folders import again
from toolkit.record.plain import parse

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
        (
            "margin",
            pa.float32(),
        ),  # nats by which the best token led the second where that was least; null for a vote
        ("streams", pa.int32()),  # adapters that ran for this answer
        (
            "reference_logprob",
            pa.float32(),
        ),  # nats, end of sequence included; null without a reference
        ("first_ids", pa.list_(pa.int32())),  # most probable first tokens
        ("first_logprobs", pa.list_(pa.float32())),
    ]
)

MEASURED = (
    "suite",
    "prompt_id",
    "condition",
    "procedure",
    "index",
    "text",
    "answer",
    "correct",
    "reference_logprob",
)
"""the columns that statistics need; the others are half of the memory"""
ROWS = 10_000
"""that are turned into columns at a time"""

TOKEN_SCHEMA = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("suite", "prompt_id", "condition", "procedure", "index")),
        ("choice", pa.string()),  # null: the reference
        ("logprobs", pa.list_(pa.float32())),  # of each token, nats, end of sequence included
        ("best", pa.list_(pa.bool_())),  # it is the first choice of the subject
    ]
)


DIGESTS = b"ftk.sha256"
"""key of a shard's metadata: column -> hash of what it held when it was written"""


class OutcomesError(FtkError, ValueError):
    """A shard that cannot be read, or does not hold what was written; one line with the reason and
    the way out.
    """


def write_table(path: Path, table: pa.Table) -> None:
    """Write beside, sync, rename."""
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")


def _write_shard(path: Path, table: pa.Table) -> None:
    """A table that says in its metadata what it holds."""
    digests = {name: column_digest(table[name]) for name in table.column_names}
    write_table(path, table.replace_schema_metadata({DIGESTS: json.dumps(digests).encode()}))


def column_digest(column: pa.ChunkedArray) -> str:
    """Hash of the values of a column, however they are laid out in memory."""
    digest = hashlib.sha256()
    _digest(column.combine_chunks(), digest)
    return digest.hexdigest()[:32]


def _digest(values: Any, into: Any) -> None:
    into.update(f"{len(values)};".encode())
    into.update(np.packbits(values.is_valid().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_list(values.type):
        into.update(pc.fill_null(values.value_lengths(), 0).to_numpy().tobytes())
        _digest(values.flatten(), into)
    elif pa.types.is_string(values.type):
        whole = pc.fill_null(values, "").cast(pa.large_binary())
        if len(whole):
            ends = np.frombuffer(whole.buffers()[1], np.int64)[
                whole.offset : whole.offset + len(whole) + 1
            ]
            into.update(np.diff(ends).tobytes())
            into.update(memoryview(whole.buffers()[2] or b"")[ends[0] : ends[-1]])
    else:
        into.update(
            pc.fill_null(values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values, 0)
            .to_numpy()
            .tobytes()
        )


def write_outcomes(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write a shard; return how many rows it has. Rows may come one by one: few of them are in
    memory as they come.
    """
    rest, tables = iter(rows), [SCHEMA.empty_table()]
    while part := list(islice(rest, ROWS)):
        tables.append(pa.Table.from_pylist(part, schema=SCHEMA))
    table = pa.concat_tables(tables)
    _write_shard(path, table)
    return table.num_rows


def read_outcomes(paths: Iterable[Path], columns: Sequence[str] = SCHEMA.names) -> pa.Table:
    """All shards as one table, in the order of the paths. Raises OutcomesError for one that does
    not hold what was written.
    """
    tables = [_read_shard(path, SCHEMA, columns) for path in paths]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table().select(list(columns))


def _read_shard(path: Path, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Columns of a shard, held against their hashes; shards of older versions have none."""
    try:
        written = (pq.read_schema(path).metadata or {}).get(DIGESTS)
        table = pq.read_table(path, schema=schema, columns=list(columns))
        digests = parse(written) if written else {}
        changed = [
            name
            for name in columns
            if name in digests and column_digest(table[name]) != digests[name]
        ]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise OutcomesError(f"{path}: damaged ({reason}); {again(path)}") from None
    if changed:  # every digest begins with the number of rows
        rows = f"has {table.num_rows} rows, and other ones were written"
        what = (
            rows
            if len(changed) == len(columns) > 1
            else f"its column {changed[0]!r} is not what was written"
        )
        raise OutcomesError(f"{path}: {what}; {again(path)}")
    return table


def is_sound(path: Path, rows: int, *, tokens: bool = False) -> bool:
    """Whether a shard is there and holds what was written, `rows` outcomes; with `tokens` so does
    the one of token scores beside it.
    """
    try:
        table = _read_shard(path, SCHEMA, SCHEMA.names)
        if tokens:
            _read_shard(token_shard(path), TOKEN_SCHEMA, TOKEN_SCHEMA.names)
    except (OutcomesError, FileNotFoundError):
        return False
    return table.num_rows == rows


def write_token_scores(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file of scores of single tokens, whole or not there."""
    _write_shard(path, pa.Table.from_pylist(list(rows), schema=TOKEN_SCHEMA))


@dataclass(frozen=True)
class TokenScores:
    """What runs of one procedure think of fixed continuations, token by token: nan and False behind
    the end, and where there is none.

    indexes: of the runs [R]. prompts: (suite, id) [P]. choices: [C], None is the reference.
    """

    indexes: list[int]
    prompts: list[tuple[str, str]]
    choices: list[str | None]
    log_RPCT: np.ndarray
    best_RPCT: np.ndarray


def token_shard(shard: Path) -> Path:
    """Where the token scores beside a shard of outcomes lie."""
    return shard.parent / "tokens" / shard.name


def read_token_scores(
    shards: Iterable[Path], *, condition: str, procedure: str = "replica"
) -> TokenScores:
    """Token scores of one procedure that lie beside shards of outcomes.

    Raises ValueError where there are none, and for two rows of one cell, since nothing says which
    one counts.
    """
    wanted = [("condition", "=", condition), ("procedure", "=", procedure)]
    paths = [token_shard(shard) for shard in shards]
    rows = [
        row
        for path in paths
        if path.exists()
        for row in pq.read_table(path, schema=TOKEN_SCHEMA, filters=wanted).to_pylist()
    ]
    if not rows:
        raise ValueError(
            f"no token scores of {condition}, {procedure}: set `evaluation: "
            f"{{token_scores: true}}` and run again"
        )
    indexes = sorted({row["index"] for row in rows})
    prompts = list(dict.fromkeys((row["suite"], row["prompt_id"]) for row in rows))
    choices = list(dict.fromkeys(row["choice"] for row in rows))
    r, p, c = ({name: i for i, name in enumerate(names)} for names in (indexes, prompts, choices))
    shape = len(indexes), len(prompts), len(choices), max(len(row["logprobs"]) for row in rows)
    log_RPCT, best_RPCT = np.full(shape, np.nan, dtype=np.float32), np.zeros(shape, dtype=bool)
    for row in rows:
        place = (
            r[row["index"]],
            p[row["suite"], row["prompt_id"]],
            c[row["choice"]],
            slice(len(row["logprobs"])),
        )
        if not np.isnan(log_RPCT[place]).all():
            raise ValueError(
                f"token scores of {condition}, {procedure} {row['index']}: two rows for "
                f"prompt {row['prompt_id']!r}"
            )
        log_RPCT[place], best_RPCT[place] = row["logprobs"], row["best"]
    return TokenScores(indexes, prompts, choices, log_RPCT, best_RPCT)
