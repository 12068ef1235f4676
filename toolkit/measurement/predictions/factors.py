"""Which source had which level in every replica, from a small table beside the predictions."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from toolkit.data import DataError, Row, read_rows
from toolkit.data.rows import keys_aside
from toolkit.measurement.predictions.gather import Predictions
from toolkit.measurement.predictions.layout import NAMES, PredictionsError, listed
from toolkit.measurement.predictions.metrics import RunTable
from toolkit.text.values import text

Told = TypeVar("Told", Predictions, RunTable)


def with_factors(predictions: Told, path: Path) -> Told:
    """The same predictions, or runs, with the columns of a table (a row a replica: `replica`, maybe
    `condition`) as their factors.

    Raises PredictionsError, one line, for a replica that the table lacks or has twice, a level that
    is missing, or a factor that the predictions name themselves.
    """
    if not path.is_file():
        raise PredictionsError(f"{path}: no such file")
    try:
        rows = read_rows(str(path))
    except DataError as error:
        raise PredictionsError(str(error)) from None
    replica = next((name for name in NAMES["replica"] if name in rows[0]), None)
    factors = [name for name in rows[0] if name not in (replica, "condition")]
    if replica is None or not factors:
        shape = "a row is a replica: replica, and a column for each source, such as init and order"
        raise PredictionsError(
            f"{rows[0].where}: no column for {'a source' if replica else 'the replica'} "
            f"({listed(rows[0])}); {shape}"
        )
    table: dict[tuple[str | None, str], Row] = {}
    for row in rows:
        key = _word(row, "condition") if "condition" in row else None, _level(row, replica)
        if key in table:
            raise PredictionsError(
                f"{row.where}: replica {key[1]!r} stands at {table[key].where} already; "
                "keep one of the two"
            )
        table[key] = row
    arms, used = {}, set()
    for condition, arm in predictions.arms.items():
        if both := sorted(set(arm.factors) & set(factors)):
            raise PredictionsError(
                f"{path}: the predictions have a column {both[0]!r} themselves; leave it "
                "out of one of the two"
            )
        keys = [
            (condition, name) if (condition, name) in table else (None, name)
            for name in arm.replicas
        ]
        lacking = next(
            (name for key, name in zip(keys, arm.replicas, strict=True) if key not in table), None
        )
        if lacking is not None:
            raise PredictionsError(
                f"{path}: no row for replica "
                f"{lacking!r}{f' of {condition}' if len(predictions.arms) > 1 else ''}"
            )
        used |= set(keys)
        levels = {name: tuple(_level(table[key], name) for key in keys) for name in factors}
        arms[condition] = replace(arm, factors={**arm.factors, **levels})
    idle = len(table) - len(used)
    notes = (f"{path.name}: {idle} of its replicas have no predictions",) if idle else ()
    notes = (*predictions.notes, *keys_aside(path), *notes)
    return replace(predictions, arms=arms, notes=notes)


def _word(row: Row, name: str) -> str | None:
    return text(row.get(name)) or None


def _level(row: Row, name: str) -> str:
    level = _word(row, name)
    if level is None or not level.strip():
        raise PredictionsError(f"{row.where}: field {name!r} is missing; every replica needs one")
    return level
