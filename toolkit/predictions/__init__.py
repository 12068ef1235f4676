"""Anybody's predictions: one file of answers, as integer tables [replicas, prompts].

Long: one row for each condition, replica and prompt. Wide: one row for each prompt, one column for each replica. A file is read in
batches and kept as codes, so that 10,000 replicas x 10,000 prompts fit into memory; no loop runs over cells.
"""

from pathlib import Path

from toolkit.predictions.cells import Arm, Cells, PredictedPrompt, Predictions
from toolkit.predictions.factors import with_factors
from toolkit.predictions.files import SUFFIXES, PredictionsError, batches

__all__ = ["SUFFIXES", "Arm", "PredictedPrompt", "Predictions", "PredictionsError", "read_predictions", "with_factors"]


def read_predictions(path: Path, *, replica: str | None = None, prompt: str | None = None, output: str | None = None) -> Predictions:
    """The answers of a JSONL, JSON, CSV (JSONL and CSV also as .gz) or Parquet file, whose layout is told from its columns.

    Long: `replica`, `prompt` (or `prompt_id`, `id`) and `output` (or `answer`, `text`, `prediction`). Wide: a prompt, and the
    replicas are the columns called replica_..., seed..., run... or by a number, or else all that are not known by name. Both may
    have `condition`, `suite`, `category`, `shift`, `cluster` and `reference`, long files also `score`, and `init`, `order` and `dropout`:
    the level (a seed, say) that a replica has in this source of variation, the same on all its rows. Numbers, booleans and
    objects become their JSON. Missing is a cell without a row, null, nan, and a field of a CSV file that is empty and not quoted.

    replica, prompt, output: names of the columns where they have others; for a wide file `replica` is what its columns begin with.

    Without a column `condition` the one condition is called after the file. Raises PredictionsError, a ValueError of one line, for
    what cannot be understood, for two rows of one condition, replica and prompt, and for a prompt of two references, categories,
    shifts or clusters, or a replica of two levels of a source.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionsError(f"{path}: no such file")
    cells = Cells(path, {"replica": replica, "prompt": prompt, "output": output})
    for batch in batches(path, cells.see):
        cells.add(batch)
    return cells.predictions()
