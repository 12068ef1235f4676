"""The whole of ftk in the order in which data flows: read `run` first, then the stage that concerns you.

    recipe -> plan -> train -> population -> merge / ensemble -> predict -> outcomes -> statistics -> results -> report

Every arrow leaves files in the run folder, and every stage skips what it finds finished there.
"""

from __future__ import annotations

from pathlib import Path

from toolkit.card import describe
from toolkit.measure import read_prompts
from toolkit.pipeline.answering import EVALUATION_WIDTH as EVALUATION_WIDTH
from toolkit.pipeline.answering import accuracies as accuracies
from toolkit.pipeline.answering import all_subjects as all_subjects
from toolkit.pipeline.answering import answer as answer
from toolkit.pipeline.answering import answer_units as answer_units
from toolkit.pipeline.answering import evaluate as evaluate
from toolkit.pipeline.answering import subjects_of as subjects_of
from toolkit.pipeline.answering import weights_digest as weights_digest
from toolkit.pipeline.checks import check_all as check_all
from toolkit.pipeline.job import Console as Console
from toolkit.pipeline.job import Run as Run
from toolkit.pipeline.job import RunError as RunError
from toolkit.pipeline.job import open_folder as open_folder
from toolkit.pipeline.job import successful as successful
from toolkit.pipeline.measuring import conclude as conclude
from toolkit.pipeline.measuring import measure as measure
from toolkit.pipeline.merging import MergeUnit as MergeUnit
from toolkit.pipeline.merging import describe_merge as describe_merge
from toolkit.pipeline.merging import merge as merge
from toolkit.pipeline.merging import merge_units as merge_units
from toolkit.pipeline.merging import merged_folder as merged_folder
from toolkit.pipeline.opening import check_folder as check_folder
from toolkit.pipeline.opening import free_folder as free_folder
from toolkit.pipeline.opening import kind_of_run as kind_of_run
from toolkit.pipeline.opening import open_run as open_run
from toolkit.pipeline.opening import settle as settle
from toolkit.pipeline.populations import given_note as given_note
from toolkit.pipeline.populations import take as take
from toolkit.pipeline.populations import teacher_groups as teacher_groups
from toolkit.pipeline.populations import train as train
from toolkit.pipeline.training import TrainingUnit as TrainingUnit
from toolkit.pipeline.training import data_notes as data_notes
from toolkit.pipeline.training import examples_of as examples_of
from toolkit.pipeline.training import replica_mark as replica_mark
from toolkit.pipeline.training import seeds_of as seeds_of
from toolkit.pipeline.training import train_missing as train_missing
from toolkit.pipeline.training import train_unit as train_unit
from toolkit.pipeline.training import training_examples as training_examples
from toolkit.pipeline.training import training_plan as training_plan
from toolkit.recipe import Recipe
from toolkit.results import Results


def run(recipe: Recipe, folder: Path, *, workers: int | None = None, engine: str = "local", console: Console | None = None) -> Results:
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
