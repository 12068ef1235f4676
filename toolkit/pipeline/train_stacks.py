"""A condition of a recipe -> stacks of replicas on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import OutOfMemoryError

from toolkit import environment, seeds
from toolkit.answer.ensemble import ENSEMBLES
from toolkit.data import Example, Prompt, encode_rows, read_rows, survey
from toolkit.model.adapters import read_adapter
from toolkit.model.base import load_base
from toolkit.pipeline.engines import Progress
from toolkit.pipeline.job import Run, RunError, as_json
from toolkit.recipe import Condition, Recipe, Teacher
from toolkit.recipe.schedule import (
    SOFT_TARGET_BYTES,
    TrainingPlan,
    head_piece,
    pays_to_compile,
    plan_training,
    soft_target_bytes,
    stacks_for,
)
from toolkit.record.population import (
    LEDGER,
    Replica,
    fingerprint,
    read_ledger,
    read_records,
    write_text,
)
from toolkit.train import distill, plain_head
from toolkit.train.students import Teaching

ALGORITHMS = {
    1: "adapted layers by the autograd of torch",
    2: "one autograd function for each adapted layer: sums of gradients round otherwise",
    3: "dropout: masks from lanes of 31 bits, before of 16; without dropout as 2",
}
"""How replicas are trained, as far as it decides their bits and stands in no recipe, plan or data.
A change of bits adds a line here.
"""
LAST_UNRECORDED = 3
"""the last one before populations said by which of them they were trained; fingerprints name later
ones alone, and so stay as they were
"""
CHECKPOINTS = "checkpoints"
"""folder of a condition with the stacks that are at work; what a killed run leaves there is where
the next one goes on
"""


@dataclass(frozen=True)
class TrainingUnit:
    """One stack of one condition: everything that a worker needs, as plain values."""

    recipe: Recipe
    condition: str
    folder: Path
    stack: int
    keep: tuple[int, ...]  # replicas to write; the others of the stack are there for its shape
    plan: TrainingPlan
    fingerprints: dict[int, str]  # of those to write
    device: str
    teachers: tuple[
        tuple[str, ...], ...
        # of a distilled condition: for every replica of the stack, the adapters that it learns from
    ] = ()


def train_missing(
    job: Run,
    name: str,
    requested: Sequence[int],
    plan: TrainingPlan,
    mark: str,
    population: dict[int, Replica],
    *,
    again: bool = False,
    teachers: Sequence[Teaching] = (),
) -> None:
    """Train the requested replicas that the population lacks, and add them to it. teachers: the
    groups of a distilled condition.
    """
    recipe, folder = job.recipe, job.condition(name)
    condition = recipe.trained[name]
    with job.console.stage("train"):
        trainable = [
            r
            for r in {*population, *requested}
            if not teachers or condition.group_of(r) < len(teachers)
        ]
        marks = {r: replica_mark(condition, mark, teachers, r) for r in trainable}
        if population:
            check_population(folder, mark, marks)
        stale = {r for r in requested if r in population and population[r].fingerprint != marks[r]}
        kept = {
            r: replica
            for r, replica in population.items()
            if replica.status == "ok" and r not in stale and not (again and r in requested)
        }
        algorithm = read_ledger(folder).get("algorithm") if kept else algorithm_of(condition)
        if algorithm is None and (again or any(r not in population for r in requested)):
            algorithm = _same_algorithm(job, name, plan, mark, kept, teachers)
        _write_ledger(folder, name, recipe, plan, mark, requested, population, teachers, algorithm)
        if stale and teachers:
            job.console.note(
                f"{name}: the teachers of {len(stale)} students are not what they were; "
                "these students are trained again"
            )
        missing = [r for r in requested if again or r not in population or r in stale]
        units = [
            _unit(job, name, folder, s, keep, plan, mark, teachers)
            for s, keep in stacks_for(missing, plan.stack).items()
        ]
        progress = job.console.progress(f"train {name}", len(missing))
        for _, records in job.engine.run(train_unit, units, progress):
            for record in records:
                population[record.replica] = record
                if record.status == "failed":
                    job.console.note(
                        f"{name}: replica {record.replica} diverged at step "
                        f"{record.failed_step}; recorded as failed"
                    )
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _unit(
    job: Run,
    name: str,
    folder: Path,
    stack: int,
    keep: Sequence[int],
    plan: TrainingPlan,
    mark: str,
    teachers: Sequence[Teaching],
) -> TrainingUnit:
    condition = job.recipe.trained[name]
    # one that is there for the shape alone may have any teacher
    slots = range(stack * plan.stack, (stack + 1) * plan.stack)
    learns_from = (
        tuple(teachers[condition.group_of(r) % len(teachers)].adapters for r in slots)
        if teachers
        else ()
    )
    marks = {r: replica_mark(condition, mark, teachers, r) for r in keep}
    return TrainingUnit(
        job.recipe, name, folder, stack, tuple(keep), plan, marks, job.device, learns_from
    )


def _same_algorithm(
    job: Run,
    name: str,
    plan: TrainingPlan,
    mark: str,
    trained: Mapping[int, Replica],
    teachers: Sequence[Teaching],
) -> int | None:
    """Which of `ALGORITHMS` trained the replicas that are there; None where that cannot be told on
    this machine.

    Before replicas are added to some that do not say by which of `ALGORITHMS` they were trained:
    train the first of these again.

    Raises RunError where it comes out with other bits: two procedures under one fingerprint are
    never mixed. On another machine bits may differ for other reasons, which is noted.
    """
    folder, first = job.condition(name), min(trained)
    machine = environment.machine(job.device)
    if trained[first].machine not in ("", machine):
        job.console.note(
            f"{name}: trained on {trained[first].machine}, by a version of ftk that did not "
            "say how; what is added may differ"
        )
        return None
    job.console.note(
        f"{name}: its replicas do not say by which version of the training they were "
        "made; one of them is trained again"
    )
    scratch = folder / CHECKPOINTS / "again"
    unit = _unit(job, name, scratch, first // plan.stack, (first,), plan, mark, teachers)
    try:
        [(_, [now])] = job.engine.run(train_unit, [unit])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if any(now.sha256.get(file) != digest for file, digest in trained[first].sha256.items()):
        raise RunError(
            f"{folder}: its replicas were trained by another version of ftk, whose "
            "procedure gives other bits, and no more can be added to "
            "them; choose another --out, or delete that folder"
        )
    return algorithm_of(job.recipe.trained[name])


def replica_mark(
    condition: Condition, mark: str, teachers: Sequence[Teaching], replica: int
) -> str:
    """Fingerprint of one replica of a condition with the fingerprint `mark`; a student is defined
    by its teachers' bits, too.
    """
    return (
        fingerprint({"condition": mark, "teachers": teachers[condition.group_of(replica)].sha256})
        if teachers
        else mark
    )


def training_plan(recipe: Recipe, name: str, device: str) -> tuple[TrainingPlan, str]:
    """The plan of a condition, and the fingerprint of all that defines its replicas' bits on one
    machine.
    """
    condition = recipe.trained[name]
    base = load_base(recipe.base, recipe.dtype, device)
    examples = examples_of(recipe, name, device)
    lengths, targets = [len(e.ids) for e in examples], [sum(e.loss_mask[1:]) for e in examples]
    plan = plan_training(
        condition, lengths, targets, stack=recipe.stack, device=device, parameters=base.parameters
    )
    compile_rule = condition.compile or recipe.compile
    worth = (
        compile_rule == "always"
        or compile_rule == "auto"
        and pays_to_compile(plan, base.parameters)
    )
    # not made for compiled code
    eager = condition.method == "full" or (condition.dtype or recipe.dtype) == "nf4"
    plan = replace(plan, compiled=worth and not eager)
    if piece := head_piece(plan, base.model.config.get_text_config().vocab_size, device):
        # else the head learns, or the teacher speaks of all logits
        frozen = condition.method != "full" and not condition.teacher
        plan = replace(plan, piece=piece if frozen and plain_head(base.model) else 0)
    data = [(e.ids, e.loss_mask) for e in examples]
    defining = {
        "condition": condition.model_dump(
            exclude={"replicas", "vary", "crossed", "repeats", "rows"}
        ),
        "vary": condition.crossed or sorted(recipe.vary_of(name)),
        "seed": recipe.seed,
        "plan": plan.to_dict(),
        "data": fingerprint({"rows": data}),
        "base": base.sha256,
    }
    if condition.teacher:  # what is kept may differ in rounding from what is computed again
        defining["soft targets kept"] = keeps_soft_targets(recipe, name, plan, device)
    if (algorithm := algorithm_of(condition)) > LAST_UNRECORDED:
        defining["algorithm"] = algorithm
    return plan, fingerprint(defining)


def algorithm_of(condition: Condition) -> int:
    """Which of `ALGORITHMS` trains a condition: the last one that concerns it."""
    return 3 if condition.dropout else 2


def keeps_soft_targets(recipe: Recipe, name: str, plan: TrainingPlan, device: str) -> bool:
    """Whether what the teachers of a stack say about all training rows fits the budget."""
    vocabulary = (
        load_base(recipe.base, recipe.dtype, device).model.config.get_text_config().vocab_size
    )
    targets = [sum(e.loss_mask[1:]) for e in examples_of(recipe, name, device)]
    return (
        soft_target_bytes(recipe.trained[name], targets, vocabulary, plan.stack)
        <= SOFT_TARGET_BYTES
    )


def _write_ledger(
    folder: Path,
    name: str,
    recipe: Recipe,
    plan: TrainingPlan,
    mark: str,
    requested: Sequence[int],
    population: dict[int, Replica],
    teachers: Sequence[Teaching],
    algorithm: int | None,
) -> None:
    """Write population.json."""
    condition = recipe.trained[name]
    all_replicas = sorted(set(population) | set(requested))
    record = {
        "condition": name,
        "design": "crossed" if condition.crossed else "independent",
        "vary": condition.crossed or recipe.vary_of(name),
        "root_seed": recipe.seed,
        "fingerprint": mark,
        **({} if algorithm is None else {"algorithm": algorithm}),
        "plan": plan.to_dict(),
        "seeds": {str(r): seeds_of(recipe, name, r) for r in all_replicas},
    }
    if condition.teacher:
        members = [{"replicas": teacher.members, "sha256": teacher.sha256} for teacher in teachers]
        record["teachers"] = {"condition": condition.teacher.condition, "groups": members}
        record["group"] = {str(r): condition.group_of(r) for r in all_replicas}
    write_text(folder / LEDGER, as_json(record))


def check_population(folder: Path, mark: str, mark_of: Mapping[int, str] | None = None) -> None:
    """Refuse replicas that were trained otherwise than the fingerprint `mark` says. Raises RunError
    in one line.

    population.json says how they were; where it is lost each replica does, and `mark_of` says what
    it should say.
    """
    of_all = read_ledger(folder).get("fingerprint")
    if of_all is not None:
        pairs = [(str(of_all), mark)]
    else:
        records = read_records(folder)
        pairs = [
            (replica.fingerprint, mark_of[r] if mark_of else mark)
            for r, replica in records.items()
            if not mark_of or r in mark_of
        ]
    if other := next((pair for pair in pairs if pair[0] != pair[1]), None):
        raise RunError(
            f"{folder}: holds replicas of another recipe, base, data or version of the training "
            f"(fingerprint {other[0] or 'none'}, this one is {other[1]}); choose another "
            "--out, or delete that folder"
        )


def seeds_of(recipe: Recipe, name: str, replica: int) -> dict[str, int]:
    """The seed of every source for a replica of a condition.

    Students draw from a root of their own: student 5 would otherwise share its seeds with replica
    5, who may teach another student, and students of disjoint groups would not be independent.
    """
    condition = recipe.trained[name]
    root = seeds.derive(recipe.seed, "student") if condition.teacher else recipe.seed
    replica_seeds = seeds.replica_seeds(root, replica, recipe.vary_of(name), {**condition.crossed})
    return replica_seeds | (
        {"perturb": seeds.derive(root, "perturb", replica)} if condition.perturb else {}
    )


def train_unit(unit: TrainingUnit, progress: Progress) -> list[Replica]:
    """Train one stack from its checkpoint or from the start, save its replicas; return their
    records.
    """
    from toolkit.train import Checkpoint, save_stack, train_stack

    recipe, condition, plan = unit.recipe, unit.recipe.trained[unit.condition], unit.plan
    examples = examples_of(recipe, unit.condition, unit.device)
    keep_soft = bool(condition.teacher) and keeps_soft_targets(
        recipe, unit.condition, plan, unit.device
    )
    base = load_base(recipe.base, condition.dtype or recipe.dtype, unit.device)
    replicas = range(unit.stack * plan.stack, (unit.stack + 1) * plan.stack)
    seeds_R = [seeds_of(recipe, unit.condition, r) for r in replicas]
    every = max(1, plan.steps // 50)
    machine = environment.machine(unit.device)
    mark = fingerprint(
        {
            "replicas": sorted({*unit.fingerprints.values()}),
            "machine": machine,
            "teachers": unit.teachers,
        }
    )
    checkpoint = Checkpoint(unit.folder / CHECKPOINTS / f"stack-{unit.stack:05d}.pt", mark)
    try:
        with environment.threads(condition.threads, unit.device):
            trained = train_stack(
                base.model,
                examples,
                condition,
                plan,
                seeds_R,
                teachers_R=_teachers(condition.teacher, unit.teachers)
                if condition.teacher
                else None,
                keep_soft_targets=keep_soft,
                checkpoint=checkpoint,
                on_step=lambda step: progress(step / plan.steps) if step % every == 0 else None,
            )
    except OutOfMemoryError:
        smaller = (
            f"`stack: {plan.stack // 2}`"
            if plan.stack > 1
            else "a smaller `batch_size` or `data.max_length`"
        )
        raise RunError(
            f"conditions.{unit.condition}: a stack of {plan.stack} does not fit the "
            f"memory of the GPU; set {smaller} and choose another "
            "--out, or run again with nothing else on the GPU; finished replicas are kept"
        ) from None
    records = save_stack(
        unit.folder,
        trained,
        condition,
        replicas=replicas,
        keep=unit.keep,
        seeds_R=seeds_R,
        plan=plan,
        fingerprints=unit.fingerprints,
        base=base,
        machine=machine,
    )
    checkpoint.remove()
    return records


def training_examples(recipe: Recipe, device: str) -> tuple[Example, ...]:
    """The training rows as tokens. Raises DataError in one line."""
    data = recipe.data
    return _examples(
        data.train, data.format, data.max_length, data.date, recipe.base, recipe.dtype, device
    )


def data_notes(recipe: Recipe, prompts: dict[str, list[Prompt]], device: str) -> list[str]:
    """What of the data is not used, or not as one may think. See `toolkit.data.survey`."""
    examples = training_examples(recipe, device) if recipe.data.train else ()
    tokenizer = load_base(recipe.base, recipe.dtype, device).tokenizer
    return survey(
        recipe.data.train, recipe.data.format, recipe.data.suites, prompts, examples, tokenizer
    )


def examples_of(recipe: Recipe, name: str, device: str) -> tuple[Example, ...]:
    """Those that a condition trains on. Raises RunError where it asks for more than there are."""
    everything, rows = training_examples(recipe, device), recipe.trained[name].rows
    if rows is None:
        return everything
    if rows > len(everything):
        raise RunError(
            f"conditions.{name}.rows: there are {len(everything):,} training rows, not {rows:,}"
        )
    order = np.random.default_rng(seeds.derive(recipe.seed, "rows")).permutation(len(everything))
    return tuple(everything[i] for i in order[:rows])


@lru_cache(maxsize=4)  # a worker trains many stacks on the same rows
def _examples(
    train: str, form: str, max_length: int, date: str | None, base: str, dtype: str, device: str
) -> tuple[Example, ...]:
    tokenizer = load_base(base, dtype, device).tokenizer
    return tuple(
        encode_rows(read_rows(train), tokenizer, max_length=max_length, fmt=form, date=date)
    )


def _teachers(teacher: Teacher, adapters_R: Sequence[tuple[str, ...]]) -> list[distill.Teacher]:
    """For every student of a stack its teacher; those of one group share the object, so that it
    speaks once.
    """
    rule = ENSEMBLES[teacher.ensemble].rule if teacher.ensemble else None
    made = {
        paths: distill.Teacher(tuple(read_adapter(path) for path in paths), rule)
        for paths in dict.fromkeys(adapters_R)
    }
    return [made[paths] for paths in adapters_R]
