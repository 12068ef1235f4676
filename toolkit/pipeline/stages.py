"""Everything, from a recipe to a report."""

from __future__ import annotations

from pathlib import Path

from toolkit.measurement.run import read_prompts
from toolkit.pipeline.answer_prompts import evaluate
from toolkit.pipeline.assemble_results import measure
from toolkit.pipeline.job import Console, Run, RunError, open_folder
from toolkit.pipeline.merge_groups import merge
from toolkit.pipeline.opening import open_run
from toolkit.pipeline.populations import train
from toolkit.pipeline.train_stacks import data_notes
from toolkit.recipe import Recipe
from toolkit.record.results import Results
from toolkit.report.card import describe

__all__ = [
    "Console",
    "Run",
    "RunError",
    "evaluate",
    "measure",
    "merge",
    "open_folder",
    "open_run",
    "run",
    "train",
]


def run(
    recipe: Recipe,
    folder: Path,
    *,
    workers: int | None = None,
    engine: str = "local",
    console: Console | None = None,
) -> Results:
    """Everything, from a recipe to a report. Run it again: only what is missing is done."""
    with open_run(recipe, folder, workers=workers, engine=engine, console=console) as job:
        for note in data_notes(job.recipe, read_prompts(job.recipe), job.device):
            job.console.note(note)
        for name in recipe.training_order:
            train(job, name)
        merge(job)
        evaluate(job)
        results = measure(job)
        for record in sorted(folder.glob("*/merged/*/*/merge.json")):
            describe(record.parent, job.console.note)
        return results
