"""Anybody's predictions: one file of answers, as integer tables [replicas, prompts].

Long: one row for each condition, replica and prompt. Wide: one row for each prompt, one column for
each replica. A file is read in batches and kept as codes, so that 10,000 replicas x 10,000 prompts
fit into memory; no loop runs over cells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.measurement.predictions.base_and_failed import with_base, with_failed
from toolkit.measurement.predictions.factors import with_factors
from toolkit.measurement.predictions.gather import Arm, Cells, PredictedPrompt, Predictions
from toolkit.measurement.predictions.layout import ROLES, Asked
from toolkit.measurement.predictions.memory import as_table
from toolkit.measurement.predictions.metrics import RunScores, RunTable, read_run_table
from toolkit.measurement.predictions.readers import (
    IN_MEMORY,
    SUFFIXES,
    PredictionsError,
    batches,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "IN_MEMORY",
    "ROLES",
    "SUFFIXES",
    "Arm",
    "PredictedPrompt",
    "Predictions",
    "PredictionsError",
    "RunScores",
    "RunTable",
    "as_table",
    "read_predictions",
    "read_run_table",
    "with_base",
    "with_factors",
    "with_failed",
]


def read_predictions(
    path: Path,
    table: "pa.Table | None" = None,
    *,
    replica: str | None = None,
    prompt: str | None = None,
    output: str | None = None,
    columns: Mapping[str, str] | None = None,
    replica_columns: Sequence[str] = (),
) -> Predictions:
    """The answers of a JSONL, JSON, CSV (JSONL and CSV also as .gz) or Parquet file, whose layout
    is told from its columns.

    Long: `replica`, `prompt` (or `prompt_id`, `id`) and `output` (or `answer`, `text`,
    `prediction`). Wide: a prompt, and the replicas are the columns of one stem and a number, such
    as run_1, seed-42 or 0, or those in `replica_columns`; a file in which neither tells is refused.
    Both may have `condition`, `suite`, `category`, `shift`, `cluster`, `reference` (or `expected`,
    `target`, `gold`, `label`, ...) and `base_answer`, what the base model answers; long files also
    `score`, `failed` or `status`, and `init`, `order`, `dropout` and, beside a column for the run,
    `seed`, `init_seed`, `data_seed` and others that name a seed: the level that a replica has in
    this source of variation, the same on all its rows. What
    a value is as text, see `toolkit.text.values.text`. Missing is a cell without a
    row, null, nan, and a field of a CSV file that is empty and not quoted.

    replica, prompt, output: names of the columns where they have others; for a wide file `replica`
    is what its columns begin with.
    columns: the same for any of ROLES; "" for a column that is to be left aside. replica_columns:
    names or patterns (`llama_*`). table: the rows, where they are in memory and `path` is but a
    name for them.

    Without a column `condition` the one condition is called after the file. Raises
    PredictionsError, a ValueError of one line, for what cannot be understood, for two rows of one
    condition, replica and prompt, and for a prompt of two references, categories, shifts or
    clusters, or a replica of two levels of a source.
    """
    path = Path(path)
    if table is None and not path.is_file():
        raise PredictionsError(f"{path}: no such file")
    named = {
        part: name
        for part, name in (("replica", replica), ("prompt", prompt), ("output", output))
        if name
    }
    cells = Cells(path, Asked(named | dict(columns or {}), tuple(replica_columns)))
    for batch in batches(path, cells.see, table):
        cells.add(batch)
    return cells.predictions()
