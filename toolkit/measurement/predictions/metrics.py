"""Tables of one row a run: its name, maybe its condition, and numbers such as MCC, F1 or
perplexity.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from toolkit.data import DataError
from toolkit.data.rows import keys_aside
from toolkit.measurement.predictions.gather import FAILED, FINISHED
from toolkit.measurement.predictions.layout import (
    FACTORS,
    INDEX_COLUMN,
    LARGEST,
    NAMES,
    Layout,
    PredictionsError,
    different,
    listed,
    maybe_sources,
    source_of,
)
from toolkit.measurement.predictions.readers import Batch, batches, distinct, place, stem
from toolkit.statistics import shared_sources
from toolkit.text.nearest import counted, nearest

if TYPE_CHECKING:
    import pyarrow as pa

NO_METRIC = {
    *NAMES["replica"],
    *FACTORS,
    "suite",
    "category",
    "shift",
    "cluster",
    "step",
    "epoch",
    "timestamp",
}
"""Numbers that say which run it is, or when, not how good."""


@dataclass(frozen=True)
class RunScores:
    """The runs of one condition. scores: metric -> a number for each run, nan = none; failed: runs
    that are in none of them.

    factors: for each source of which some runs share a level, such as `init`, the level of every
    run.
    """

    runs: tuple[str, ...]
    scores: dict[str, np.ndarray]
    failed: tuple[str, ...] = ()
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def replicas(self) -> tuple[str, ...]:
        """The names of the runs."""
        return self.runs

    def only(self, rows: Sequence[int]) -> "RunScores":
        """The same with these of its runs."""
        return replace(
            self,
            runs=tuple(self.runs[row] for row in rows),
            scores={metric: score_R[list(rows)] for metric, score_R in self.scores.items()},
            factors={
                name: tuple(level_R[row] for row in rows) for name, level_R in self.factors.items()
            },
        )


@dataclass(frozen=True)
class RunTable:
    """arms: condition -> its runs; notes: how the file was understood."""

    arms: dict[str, RunScores]
    metrics: tuple[str, ...]
    notes: tuple[str, ...]


class _Predictions(Exception):
    """The file has prompts: it is no table of runs."""


def read_run_table(
    path: Path, columns: Mapping[str, str] | None = None, table: "pa.Table | None" = None
) -> RunTable | None:
    """A table of one row a run, or None where a column for the prompt, or none for the run, says
    that it is something else.

    columns: `replica`, `condition`, `failed` and the sources of variation where they have other
    names. table: as in `batches`.
    Raises PredictionsError, one line, for a run that stands twice, a number that is none, a
    level that is missing, and a table without numbers.
    """
    roles = dict(columns or {})
    known = {"replica", "condition", "failed", *FACTORS}
    if (table is None and not path.is_file()) or set(roles) - known:
        return None

    def role_of(names: list[str]) -> dict[str, str]:
        usual = {
            "replica": NAMES["replica"],
            "condition": ("condition",),
            "failed": NAMES["failed"],
        } | dict.fromkeys(roles, ())
        named = {
            part: roles.get(part, next((name for name in usual[part] if name in names), ""))
            for part in usual
        }
        texts = {*NAMES["prompt"], *NAMES["output"]} - set(named.values())
        if named["replica"] not in names or texts & set(names):
            raise _Predictions
        return {part: name for part, name in named.items() if name}

    def see(names: list[str], _: int | None = None) -> Layout:
        role_of(names)
        return Layout({name: name for name in names}, (), ())

    rows: list[dict[str, str | None]] = []
    role: dict[str, str] = {}
    try:
        for batch in batches(path, see, table):
            role = role_of(batch.table.column_names)
            rows += _rows(batch)
    except _Predictions:
        return None
    except DataError as error:
        raise PredictionsError(str(error)) from None
    if not rows:
        raise PredictionsError(f"{path}: no rows")
    return _table(path, rows, role, {part for part, name in roles.items() if not name})


def _rows(batch: Batch) -> list[dict[str, str | None]]:
    columns = {}
    for name in batch.table.column_names:
        index_N, values = distinct([batch.table[name]])
        columns[name] = [None if index < 0 else values[index] for index in index_N.tolist()]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _table(
    path: Path, rows: list[dict[str, str | None]], role: Mapping[str, str], aside: Container[str]
) -> RunTable:
    """aside: sources that the user wants left aside."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    for part, name in role.items():
        if name not in names:
            raise PredictionsError(
                f"{path}: no column {name!r} for the {part}{nearest(name, names)}"
            )
    free = [
        name for name in names if name not in role.values() and not INDEX_COLUMN.fullmatch(name)
    ]
    named = [role[name] for name in FACTORS if name in role]
    seeds = {name: source for name in free if (source := source_of(name))}
    sources = named + [name for name, source in seeds.items() if source not in aside]
    measured = [name for name in free if name not in NO_METRIC and name not in seeds]
    numbers = {name: _numbers(path, name, [row.get(name) for row in rows]) for name in measured}
    metrics = {name: value_N for name, value_N in numbers.items() if value_N is not None}
    if not metrics:
        raise PredictionsError(
            f"{path}: a row is a run, and no column has numbers (columns "
            f"{listed(names)}); predictions need a prompt"
        )
    place_of: dict[tuple[str, str], int] = {}
    lost: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        run, condition = (
            row.get(role[part]) or "" if part in role else stem(path)
            for part in ("replica", "condition")
        )
        if not run.strip() or not condition.strip():
            part = "condition" if run.strip() else "replica"
            raise PredictionsError(
                f"{place(path, number)}: field {role[part]!r} is missing; every run needs one"
            )
        if (condition, run) in place_of:
            before = place(path, place_of[condition, run])
            raise PredictionsError(
                f"{place(path, number)}: run {run!r} stands at {before} already; a row is "
                "a run here: keep one, or add a column "
                "for the prompt"
            )
        place_of[condition, run] = number
        lost.setdefault(condition, [])
        if _has_failed(path, number, row, role):
            lost[condition].append(run)
    arms = {}
    for condition, failed in lost.items():
        runs = {
            run: number
            for (of, run), number in place_of.items()
            if of == condition and run not in failed
        }
        rows_used = list(runs.values())
        scores = {name: value_N[rows_used] for name, value_N in metrics.items()}
        levels = {
            name: [(rows[number].get(name) or "").strip() for number in rows_used]
            for name in sources
        }
        shared = {name: tuple(levels[name]) for name in shared_sources(levels, len(rows_used))}
        if lacking := next(
            ((name, level_R.index("")) for name, level_R in shared.items() if "" in level_R), None
        ):
            name, row = lacking
            raise PredictionsError(
                f"{place(path, rows_used[row])}: field {name!r} is missing; other runs have one, "
                "and some share it"
            )
        arms[condition] = RunScores(tuple(runs), scores, tuple(failed), different(shared))
    unused = [
        name
        for name in free
        if name not in metrics and not any(name in arm.factors for arm in arms.values())
    ]
    notes = [
        f"a row is a run ({role['replica']}), with {counted(len(metrics), 'number')}: "
        f"{listed(metrics)}"
    ]
    notes += keys_aside(path)
    notes += [f"columns not used: {listed(unused)}"] if unused else []
    groups = [
        [rows[place_of[condition, run]] for run in arm.runs] for condition, arm in arms.items()
    ]
    if shared := [
        name
        for name in unused
        if name not in seeds
        and any(
            shared_sources({name: [row.get(name) or "" for row in runs]}, len(runs))
            for runs in groups
        )
    ]:
        notes.append(maybe_sources(shared))
    return RunTable(arms, tuple(metrics), tuple(notes))


def _has_failed(
    path: Path, number: int, row: Mapping[str, str | None], role: Mapping[str, str]
) -> bool:
    word = (row.get(role.get("failed", "")) or "").strip().lower()
    if word and word not in FAILED | FINISHED:
        cure = (
            "write true or false, failed or finished, or leave the column aside with --column "
            "failed="
        )
        raise PredictionsError(
            f"{place(path, number)}: field {role['failed']!r} is {word[:40]!r}; {cure}"
        )
    return word in FAILED


def _numbers(path: Path, name: str, cells: list[str | None]) -> np.ndarray | None:
    """A column as numbers, nan where there is none; None for a column of text."""

    def number(cell: str | None) -> float:
        try:
            return float(cell.strip() or "nan") if cell is not None else math.nan
        except ValueError:
            return math.inf

    value_N = np.array([number(cell) for cell in cells])
    if not np.isfinite(value_N).any():
        return None
    if (beyond_N := np.abs(value_N) > LARGEST).any():
        row = int(beyond_N.argmax())
        says = (
            f"must be a finite number, not {str(cells[row])[:40]!r} ({LARGEST:g} at most); "
            "leave it empty for none"
        )
        raise PredictionsError(f"{place(path, row)}: field {name!r} {says}")
    return value_N
