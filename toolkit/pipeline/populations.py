"""Where the replicas of a condition come from: trained, taught, trained until enough is known, or
given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.data import Prompt
from toolkit.measurement.run import read_prompts
from toolkit.model.adapters import CONFIG, AdapterError, read_adapter
from toolkit.model.adopt import adopt, find_adapters, remarks
from toolkit.model.base import load_base
from toolkit.pipeline.answer_prompts import (
    EVALUATION_WIDTH,
    answer,
    answer_units,
    digest,
    replica_subjects,
)
from toolkit.pipeline.job import Run, RunError
from toolkit.pipeline.merge_groups import merge_units, merged_folder, run_merges
from toolkit.pipeline.sequential_training import Looks, train_until
from toolkit.pipeline.train_stacks import train_missing, training_plan
from toolkit.recipe import Sequential
from toolkit.recipe.schedule import TrainingPlan
from toolkit.record.population import Replica, read_population, read_records, replica_folder
from toolkit.train.students import Teaching, teacher_members


def train(
    job: Run, name: str, *, replicas: int | None = None, only: Sequence[int] | None = None
) -> dict[int, Replica]:
    """Train what is missing of a condition's population; return all of it. Given adapters are
    adopted as they are.

    `replicas` trains 0 to N-1, whatever number or rule the recipe has. `only` names replicas to
    train again even if they are finished (their stack is trained whole, those alone are written).
    Raises StudentsError for students whose teachers are not trained.
    """
    if name in job.recipe.given:
        return adopt_condition(job, name)
    rule = job.recipe.until_of(name)
    with job.console.stage("train"):
        plan, mark = training_plan(job.recipe, name, job.device)
        population = intact(job, name)
    if job.recipe.trained[name].teacher:
        requested = (
            range(job.recipe.replicas_of(name) if replicas is None else replicas)
            if only is None
            else only
        )
        train_students(job, name, requested, plan, mark, population, again=only is not None)
        return population
    if rule and replicas is None and only is None:
        _train_until(job, name, rule, plan, mark, population)
    else:
        requested = range(replicas or job.recipe.replicas_of(name)) if only is None else only
        train_missing(job, name, requested, plan, mark, population, again=only is not None)
    return population


def intact(job: Run, name: str) -> dict[int, Replica]:
    """The complete replicas of a condition that is trained; the others are noted, and will be
    trained again.

    Records of older versions have no hash of an adapter's configuration: there its scale must be
    the recipe's.
    """
    folder, condition = job.condition(name), job.recipe.trained[name]
    population = read_population(folder)
    for r, record in list(population.items()):
        unhashed = record.status == "ok" and CONFIG not in record.sha256
        if condition.method == "full" or not unhashed:
            continue
        if not has_scale(replica_folder(folder, r), condition.scale):
            del population[r]
    if changed := sorted(set(read_records(folder)) - set(population)):
        shown = ", ".join(map(str, changed[:10])) + (", ..." if len(changed) > 10 else "")
        job.console.note(
            f"{name}: files of replicas {shown} are not what was recorded; these replicas "
            "are trained again where they are asked for"
        )
    return population


def has_scale(path: Path, scale: float) -> bool:
    """Whether an adapter's configuration gives all modules this scale."""
    try:
        return all(
            abs(module.scale - scale) <= 1e-9 * scale
            for module in read_adapter(path).modules.values()
        )
    except AdapterError:
        return False


def adopt_condition(job: Run, name: str) -> dict[int, Replica]:
    """Adopt the given adapters of a condition as its population, as they are now on disk."""
    recipe = job.recipe
    with job.console.stage("adapters"):
        population = adopt(
            job.condition(name),
            find_adapters(recipe.given[name].adapters),
            load_base(recipe.base, recipe.dtype, job.device),
        )
    job.console.note(f"{name}: {given_note(len(population))}")
    for line in remarks(
        [Path(record.source) for record in population.values() if record.source], recipe.base
    ):
        job.console.note(line)
    return population


def given_note(count: int) -> str:
    """The note for readers of a population that was made elsewhere."""
    return (
        f"{count} adapters that were there already; their seeds are not known here: what "
        "varies is whatever their trainer varied"
    )


def train_students(
    job: Run,
    name: str,
    requested: Sequence[int],
    plan: TrainingPlan,
    mark: str,
    population: dict[int, Replica],
    *,
    again: bool,
) -> None:
    """Train the students that have a teacher group; of failed teachers there may be fewer groups
    than the recipe hoped for.
    """
    condition = job.recipe.trained[name]
    teachers = teacher_groups(job, name)
    taught = [r for r in requested if condition.group_of(r) < len(teachers)]
    if condition.teacher and len(taught) < len(requested):
        reason = (
            f"{condition.teacher.condition} has {len(teachers)} groups of "
            f"{condition.teacher.k} successful replicas"
        )
        job.console.note(f"{name}: {len(taught)} of {len(requested)} students, since {reason}")
    train_missing(job, name, taught, plan, mark, population, again=again, teachers=teachers)


def teacher_groups(job: Run, name: str) -> list[Teaching]:
    """The groups that a distilled condition learns from, merged where its teacher is a merge.
    Raises StudentsError as `teacher_members`.
    """
    teacher = job.recipe.trained[name].teacher
    assert teacher is not None
    folder = job.condition(teacher.condition)
    members = teacher_members(job.folder, name, teacher)
    population = read_population(folder)
    if teacher.condition in job.recipe.trained:
        _, mark = training_plan(job.recipe, teacher.condition, job.device)
        if any(record.fingerprint != mark for record in population.values()):
            raise RunError(
                f"{folder}: holds replicas of another recipe, base or data; choose "
                "another --out, or delete that folder"
            )
    if not teacher.merge:
        return [
            Teaching(
                tuple(group),
                tuple(str(replica_folder(folder, r)) for r in group),
                tuple(digest(population[r]) for r in group),
            )
            for group in members
        ]
    with job.console.stage("merge"):
        run_merges(job, merge_units(folder, [r for group in members for r in group], teacher))
    merged = [merged_folder(folder, teacher.label, g) for g in range(len(members))]
    return [
        Teaching(tuple(group), (str(path),), (read_adapter(path).sha256(),))
        for group, path in zip(members, merged, strict=True)
    ]


def _train_until(
    job: Run,
    name: str,
    rule: Sequential,
    plan: TrainingPlan,
    mark: str,
    population: dict[int, Replica],
) -> None:
    folder = job.condition(name)

    def train_up_to(replicas: int) -> list[int]:
        train_missing(job, name, range(replicas), plan, mark, population)
        return [r for r in range(replicas) if population[r].status == "ok"]

    def shards_of(replicas: Sequence[int], prompts: dict[str, list[Prompt]]) -> list[Path]:
        subjects = replica_subjects(folder, name, {r: population[r] for r in replicas})
        with job.console.stage("evaluate"):
            answer(job, [subjects], prompts)
        return [
            unit.unit.shard
            for suite, suite_prompts in prompts.items()
            for unit in answer_units(job, subjects, suite, suite_prompts)
        ]

    looks = Looks(
        folder, rule, read_prompts(job.recipe), job.recipe.level, plan.stack, EVALUATION_WIDTH
    )
    train_until(looks, train_up_to, shards_of, job.console.note)
