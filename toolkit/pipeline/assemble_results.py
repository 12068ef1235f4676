"""Outcomes of a run -> its design -> results.json and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.answer.ensemble import ENSEMBLES, SIMILARITIES, mbr
from toolkit.answer.evaluate import token_probability, vote_outcomes
from toolkit.data import known_prompts
from toolkit.measurement.run import measure_run, read_prompts, save_design
from toolkit.model.adapters import read_adapter
from toolkit.model.base import load_base
from toolkit.pipeline.answer_prompts import accuracies, all_subjects, answer_units
from toolkit.pipeline.job import Run, RunError, successful
from toolkit.pipeline.merge_groups import merged_folder
from toolkit.pipeline.populations import given_note
from toolkit.pipeline.sequential_training import stopping_note
from toolkit.pipeline.train_stacks import training_examples
from toolkit.recipe import Mitigation
from toolkit.record import shapes
from toolkit.record.outcomes import read_outcomes
from toolkit.record.plain import read_record
from toolkit.record.population import groups, read_population, replica_folder
from toolkit.record.results import ConditionDesign, MitigationDesign, Price, Results
from toolkit.train.students import as_mitigation, student_design, student_notes


def measure(job: Run) -> Results:
    """Outcomes -> statistics -> results.json -> report.html. Raises RunError where fewer than two
    replicas of any condition succeeded.
    """
    recipe = job.recipe
    prompts = read_prompts(recipe)
    with job.console.stage("measure"):
        families = all_subjects(job)
        units = [
            unit.unit
            for suite, suite_prompts in prompts.items()
            for family in families
            for unit in answer_units(job, family, suite, suite_prompts)
        ]
        shards = Shards(
            [(unit.subjects[0].condition, unit.subjects[0].procedure, unit.shard) for unit in units]
        )
        designs, voted = [], []
        for name in recipe.conditions:
            design = condition_design(job, name, shards)
            if len(design.replicas) < 2:
                job.console.note(
                    f"{name}: left out, {len(design.replicas)} of its replicas succeeded "
                    f"and {design.failed} failed"
                )
                continue
            designs.append(design)
            voted += votes(job, name, shards)
        if not designs:
            raise RunError(
                f"{job.folder}: fewer than two replicas of any condition succeeded, "
                "nothing can be compared; try a lower `lr`"
            )
        stopped = [job.condition(name) for name in recipe.conditions if recipe.until_of(name)]
        notes = [
            stopping_note(folder) for folder in stopped if (folder / "stopping.json").is_file()
        ]
        notes += [
            f"{design.name}: {given_note(len(design.replicas))}"
            for design in designs
            if design.name in recipe.given
        ]
        for design in designs:
            condition = recipe.trained.get(design.name)
            for note in (
                student_notes(condition, design, recipe.vary_of(design.name)) if condition else ()
            ):
                job.console.note(note)
                notes.append(note)
        if recipe.data.train:
            examples = training_examples(recipe, job.device)
            notes += known_prompts(
                prompts, examples, load_base(recipe.base, recipe.dtype, job.device).tokenizer
            )
        command = f"ftk run {job.folder / 'recipe.yaml'} --out {job.folder}"
        return conclude(job, [*shards.all, *voted], designs, command=command, notes=notes)


def conclude(
    job: Run,
    shards: Sequence[Path],
    designs: Sequence[ConditionDesign],
    *,
    command: str,
    notes: Sequence[str] = (),
) -> Results:
    """Write down what the outcomes in `shards` are of; measure them."""
    save_design(job.folder, shards, designs, command, notes, prompts=read_prompts(job.recipe))
    return measure_run(job.folder)


class Shards:
    """Files of outcomes by whose they are. What a file is called says nothing: a condition's name
    may begin with another's.
    """

    def __init__(self, owned: Sequence[tuple[str, str, Path]]):
        """owned: (condition, procedure, file), the procedure `replica` or the label of a
        mitigation.
        """
        self.all = [path for *_, path in owned]
        self._of: dict[tuple[str, str], list[Path]] = {}
        for condition, procedure, path in owned:
            self._of.setdefault((condition, procedure), []).append(path)

    def of(self, condition: str, procedure: str) -> list[Path]:
        """The files of one procedure of a condition."""
        return self._of.get((condition, procedure), [])


def votes(job: Run, name: str, shards: Shards) -> list[Path]:
    """Shards of the rules over whole answers, made from the replicas' outcomes."""
    made = []
    replica_shards = shards.of(name, "replica")
    for mitigation in job.recipe.mitigations_of(name):
        if mitigation.ensemble and ENSEMBLES[mitigation.ensemble].needs == "answers":
            path = job.folder / "outcomes" / "votes" / name / f"{mitigation.label}.parquet"
            members = groups(successful(job.condition(name)), mitigation.k)
            choose = partial(mbr, similarity=SIMILARITIES[mitigation.similarity or "exact"])
            weight = _weight(job, name, mitigation)
            vote_outcomes(
                replica_shards,
                condition=name,
                procedure=mitigation.label,
                members=members,
                choose=choose,
                weight=weight,
                out=path,
            )
            made.append(path)
    return made


def _weight(
    job: Run, name: str, mitigation: Mitigation
) -> Callable[[dict[str, Any]], float] | None:
    """What the voice of a member counts, by its outcome; None: all alike."""
    if mitigation.weights == "confidence":
        return token_probability
    accuracy_of = accuracies(job, name, mitigation)
    return (lambda row: accuracy_of[row["index"]]) if accuracy_of else None


def streams(name: str, mitigation: Mitigation, shards: Shards) -> float:
    """Adapters that run for an answer: the mean over what was answered where a gate decides."""
    if mitigation.ensemble != "gated":
        return 1 if mitigation.merge else mitigation.k
    ran = read_outcomes(shards.of(name, mitigation.label), ["streams"])["streams"].to_numpy()
    return float(ran.mean()) if len(ran) else mitigation.k


def condition_design(job: Run, name: str, shards: Shards) -> ConditionDesign:
    """Which replicas stand behind which row of the results, and at what price."""
    folder = job.condition(name)
    population = read_population(folder)
    replicas = successful(folder)
    condition = job.recipe.trained.get(name)
    rank_of_one = (
        condition.adapter_rank
        if condition
        else max((read_adapter(replica_folder(folder, r)).rank for r in replicas), default=None)
    )
    measured = [record.seconds for record in population.values() if record.seconds is not None]
    seconds = sum(measured) / len(measured) if measured else None
    tokens = None
    if condition:
        plan = read_record(folder / "population.json", shapes.Population)["plan"]
        tokens = plan["steps"] * plan["micro_batch"] * plan["accumulation"] * plan["length"]
    mitigations = []
    for mitigation in job.recipe.mitigations_of(name):
        members = groups(replicas, mitigation.k)
        rank = rank_of_one
        if mitigation.merge and members:
            rank = read_record(
                merged_folder(folder, mitigation.label, 0) / "merge.json", shapes.Merge
            ).get("rank")
        spent = None if seconds is None else mitigation.k * seconds
        of_all = None if tokens is None else mitigation.k * tokens
        price = Price(mitigation.k, streams(name, mitigation, shards), rank, spent, of_all)
        kind = "merge" if mitigation.merge else "ensemble"
        mitigations.append(
            MitigationDesign(mitigation.label, mitigation.title, kind, mitigation.k, members, price)
        )
    failed = sum(record.status == "failed" for record in population.values())
    factors = {
        source: [population[r].seeds[source] for r in replicas]
        for source in (condition.crossed if condition else ())
    }
    if condition and condition.teacher:
        return student_design(
            job.folder, condition, ConditionDesign(name, replicas, failed, factors=factors), seconds
        )
    for student, other in job.recipe.trained.items():
        if (
            other.teacher
            and (other.teacher.condition, other.teacher.groups) == (name, "fresh")
            and successful(job.condition(student))
        ):
            mitigations.append(
                as_mitigation(condition_design(job, student, shards), other.teacher.k)
            )
    price = Price(rank=rank_of_one, seconds=seconds, tokens=tokens)
    return ConditionDesign(name, replicas, failed, mitigations, price, factors)
