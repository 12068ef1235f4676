"""Predictions that a program holds: arrays, rows, data frames and Arrow tables, as one table of the
shapes that files have.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.measurement.predictions.layout import PredictionsError
from toolkit.measurement.predictions.readers import IN_MEMORY, table_of_rows
from toolkit.text.values import text

if TYPE_CHECKING:
    import pyarrow as pa


def as_table(data: Any, reference: Sequence[Any] | np.ndarray | None = None) -> "pa.Table":
    """What a program holds as one Arrow table.

    data: answers [replicas, prompts] as an array or nested lists, or such answers by condition; a
    list of rows as mappings; a mapping of columns; or any table that speaks Arrow, such as a pandas
    or polars DataFrame. None and nan are missing answers.

    reference: of answers as arrays, the right answer to every prompt, [prompts]. Raises
    PredictionsError in one line for anything else.
    """
    import pyarrow as pa

    arms = _answers(data)
    if arms is not None:
        return _long(arms, reference)
    if reference is not None:
        raise PredictionsError(
            f"{IN_MEMORY}: reference= goes with arrays; a table has a column of that name"
        )
    try:
        if isinstance(data, Sequence) and not isinstance(data, str | bytes):
            if not all(isinstance(row, Mapping) for row in data):
                raise PredictionsError(
                    f"{IN_MEMORY}: answers are rows with named fields, or a table [replicas, "
                    "prompts]"
                )
            return table_of_rows([{str(key): row[key] for key in row} for row in data])
        return pa.table(data).replace_schema_metadata()
    except (pa.ArrowException, TypeError, ValueError) as error:
        if isinstance(error, PredictionsError):
            raise
        raise PredictionsError(
            f"{IN_MEMORY}: {type(data).__name__} is no table that can be read: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def _answers(data: Any) -> dict[str, np.ndarray] | None:
    """Answers [replicas, prompts] by condition, or None where `data` is a table of columns."""
    if isinstance(data, Mapping):
        tables = [_nested(value) for value in data.values()]
        if not tables or not all(tables):
            return None
        return {str(name): _array(value) for name, value in data.items()}
    return {"": _array(data)} if _nested(data) else None


def _nested(data: Any) -> bool:
    """Whether data are an array, or lists in a list."""
    if isinstance(data, np.ndarray):
        return data.ndim != 1
    inner = list | tuple | np.ndarray
    return isinstance(data, list | tuple) and bool(data) and isinstance(data[0], inner)


def _array(data: Any) -> np.ndarray:
    try:
        answer_RP = data if isinstance(data, np.ndarray) else np.array(data, dtype=object)
    except ValueError:
        answer_RP = np.empty(0)
    if answer_RP.ndim != 2:
        raise PredictionsError(
            f"{IN_MEMORY}: answers are a table [replicas, prompts] of texts, numbers or booleans; "
            "every replica answers every prompt, None where it does not"
        )
    return answer_RP


def _long(
    arms: Mapping[str, np.ndarray], reference: Sequence[Any] | np.ndarray | None
) -> "pa.Table":
    """A row for each condition, replica and prompt; both are numbered from 0."""
    import pyarrow as pa

    tables = []
    for condition, answer_RP in arms.items():
        n_replicas, n_prompts = answer_RP.shape
        replica_N, prompt_N = np.divmod(np.arange(answer_RP.size), max(n_prompts, 1))
        columns = {
            "replica": pa.array(replica_N),
            "prompt": pa.array(prompt_N),
            "output": pa.array(
                [text(answer) for answer in answer_RP.ravel().tolist()], pa.string()
            ),
        }
        if condition:
            columns["condition"] = pa.array([condition] * answer_RP.size, pa.string())
        if reference is not None:
            right = [text(value) for value in np.asarray(reference, dtype=object).tolist()]
            if len(right) != n_prompts:
                raise PredictionsError(
                    f"{IN_MEMORY}: {len(right)} references for {n_prompts} prompts"
                )
            columns["reference"] = pa.array(right * n_replicas, pa.string())
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)
