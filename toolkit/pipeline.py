"""The whole of ftk in the order in which data flows: read `run` first, then the stage that concerns you.

    recipe -> plan -> train -> population -> merge / ensemble -> predict -> outcomes -> statistics -> results -> report

Every arrow leaves files in the run folder, and every stage skips what it finds finished there.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import distill, environment, mergekit_yaml, seeds
from toolkit.adapters import CONFIG, WEIGHTS, read_adapter
from toolkit.adopt import adopt, check_base, find_adapters, layer_shapes
from toolkit.base import Base, fastest_dtype, load_base, load_config
from toolkit.card import CARD, write_card
from toolkit.compiled import TESTED
from toolkit.data import Example, Prompt, encode_prompt, encode_reference, encode_rows, read_rows
from toolkit.engines import ENGINES, LocalEngine, Progress, RayEngine
from toolkit.ensemble import ENSEMBLES, SIMILARITIES, mbr
from toolkit.evaluate import EvaluationUnit, Subject, evaluate_unit, shard_name, token_probability, vote_outcomes
from toolkit.full import FULL, MODEL, FullModel, check_whole, read_weights
from toolkit.measure import measure_run, read_prompts, save_design
from toolkit.merge import accepted, find_method, merge_folders, same_input
from toolkit.outcomes import read_outcomes
from toolkit.plan import (
    SOFT_TARGET_BYTES,
    WEIGHT_BYTES,
    TrainingPlan,
    pays_to_compile,
    plan_training,
    soft_target_bytes,
    stacks_for,
    whole_width,
)
from toolkit.population import Replica, fingerprint, groups, read_population, replica_folder, write_text
from toolkit.recipe import Condition, Evaluation, Mitigation, Recipe, Sequential, Teacher, dump_recipe, parse_recipe
from toolkit.results import ConditionDesign, MitigationDesign, Price, Results
from toolkit.stack import target_modules
from toolkit.students import Teaching, as_mitigation, student_design, student_notes, teacher_members
from toolkit.until import Looks, asked_about, stopping_note, train_until

CHECKPOINTS = "checkpoints"
"""folder of a condition with the stacks that are at work; what a killed run leaves there is where the next one goes on"""
EVALUATION_WIDTH = 8
"""adapters on the stack while prompts are answered; fixed, so that the shapes never depend on how many there are"""


class RunError(RuntimeError):
    """A run that cannot go on; one line with the reason and the way out."""


@dataclass
class Console:
    """How a stage speaks to the outside: notes, and progress of counted work. The default is silent."""

    note: Callable[[str], None] = lambda text: None
    progress: Callable[[str, int], Callable[[float], None]] = lambda title, count: lambda share: None
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


@dataclass
class Run:
    """A recipe, its folder, and what it needs at hand."""

    recipe: Recipe
    folder: Path
    device: str
    engine: LocalEngine | RayEngine
    console: Console

    def condition(self, name: str) -> Path:
        return self.folder / name


# -- the arrows --------------------------------------------------------------------------------------------------------


def run(recipe: Recipe, folder: Path, *, workers: int | None = None, engine: str = "local", console: Console | None = None) -> Results:
    """Everything, from a recipe to a report. Run it again: only what is missing is done."""
    with open_run(recipe, folder, workers=workers, engine=engine, console=console) as job:
        for name in recipe.training_order:
            train(job, name)
        merge(job)
        evaluate(job)
        results = measure(job)
        for record in sorted(folder.glob("*/merged/*/*/merge.json")):
            write_card(record.parent)
        return results


@contextmanager
def open_run(
    recipe: Recipe, folder: Path, *, workers: int | None = None, engine: str = "local", console: Console | None = None
) -> Iterator[Run]:
    """Write down what is asked and where it runs; refuse a folder that holds another recipe's run. `engine`: see `ENGINES`.

    Raises RunError, RecipeError or BaseError in one line.
    """
    console = console or Console()
    try:
        device = environment.resolve_device(recipe.device)
    except ValueError as error:
        raise RunError(str(error)) from None
    recipe = settle(recipe, device, folder)
    base = load_base(recipe.base, recipe.dtype, device)
    prompts = read_prompts(recipe)  # a suite that is wrong should stop a run before it trains
    _check_against_base(recipe, base)
    _check_ensembles(recipe, prompts)
    for figure in recipe.replicas.until if isinstance(recipe.replicas, Sequential) else ():
        asked_about(figure, prompts)
    check_lengths(recipe, base, prompts, device)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        for leftover in list(folder.rglob(".*.tmp")):  # half-written files of a run that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
        write_text(folder / "environment.json", _json(environment.describe(device)))
        write_text(folder / "base.json", _json(base.to_dict()))
        with ENGINES[engine](device, workers) as at_work:
            yield Run(recipe, folder, device, at_work, console)
            if len(at_work.machines) > 1:
                console.note(f"different processors did the work, and may round differently: {', '.join(sorted(at_work.machines))}")


def settle(recipe: Recipe, device: str, folder: Path | None = None) -> Recipe:
    """What `auto` means for this base on this machine; in a run folder, what it meant when its first replica was trained.

    Raises BaseError where there is no such base.
    """
    if folder and (folder / "recipe.yaml").is_file():
        then = open_folder(folder)
        kept = {key: getattr(then, key) for key in ("dtype", "compile") if getattr(recipe, key) == "auto"}
        recipe = recipe.model_copy(update=kept)
    config = load_config(recipe.base)
    if recipe.dtype == "auto":
        recipe = recipe.model_copy(update={"dtype": fastest_dtype(config.get_text_config().hidden_size, device)})
    if recipe.compile == "auto" and not (device == "cpu" and environment.compiler() and config.model_type in TESTED):
        recipe = recipe.model_copy(update={"compile": "never"})
    return recipe


def _check_against_base(recipe: Recipe, base: Base) -> None:
    """Refuse what this base cannot do, or mergekit does not know, before anything is trained."""
    along = []
    for mitigation in recipe.mitigations:
        if mitigation.merge:
            try:
                chosen, parameters = find_method(mitigation.merge, mitigation.parameters)
            except ValueError as error:
                raise RunError(f"mitigation {mitigation.label}: {error}") from None
            along.append(partial(chosen.along, **accepted(chosen.along, parameters)))
    for condition in recipe.given.values():
        shape_of = layer_shapes(base)
        for path in find_adapters(condition.adapters):
            weights = read_weights(path)
            if isinstance(weights, FullModel):
                weights.check({name: tuple(p.shape) for name, p in base.model.named_parameters()})
            else:
                check_base(weights, base, shape_of)
            for trajectory in along:
                trajectory(path)  # raises where the method needs snapshots that are not there
    for name in recipe.conditions:
        own = recipe.trained.get(name)
        try:
            if own and own.method == "full":
                check_whole(base.model)
            layers = target_modules(base.model, own.targets if own else "all-linear")
        except ValueError as error:
            raise RunError(f"conditions.{name}{'' if own and own.method == 'full' else '.targets'}: {error}") from None
        if own and own.threads > 1 and base.model.device.type != "cpu":
            raise RunError(f"conditions.{name}.threads: are those of a CPU, and this run is on {base.model.device.type}; leave it out")
        largest = max(min(layer.weight.shape) for layer in layers.values())
        for mitigation in [*recipe.mitigations, *([own.teacher] if own and own.teacher else [])]:
            if isinstance(mitigation.rank, int) and mitigation.rank > largest:
                raise RunError(f"mitigation {mitigation.label}: the changes of this base have ranks 1 to {largest}")


def _check_ensembles(recipe: Recipe, prompts: dict[str, list[Prompt]]) -> None:
    """Refuse an ensemble that could not be made after everything has been trained."""
    for mitigation in recipe.mitigations:
        suite = (mitigation.weights or "").partition(":")[2]
        if suite and all(prompt.reference is None for prompt in prompts[suite]):
            raise RunError(f"mitigation {mitigation.label}: the prompts of suite {suite} have no `reference`, so no accuracy to weigh by")
        if mitigation.similarity:
            try:
                SIMILARITIES[mitigation.similarity](["a", "b"])
            except ValueError as error:
                raise RunError(f"mitigation {mitigation.label}: {error}") from None


def check_lengths(recipe: Recipe, base: Base, prompts: dict[str, list[Prompt]], device: str) -> None:
    """Refuse rows and prompts that are longer than the base: it would fail on them, or answer nonsense."""
    limit = base.max_positions
    if limit is None:
        return
    longest = max((len(example.ids) for example in training_examples(recipe, device)), default=0) if recipe.data.train else 0
    if longest > limit:
        raise RunError(
            f"data.max_length: a training row has {longest:,} tokens, base {recipe.base!r} takes {limit:,}; set `max_length: {limit}`"
        )
    for suite, asked in prompts.items():
        for prompt in asked:
            known = encode_prompt(prompt.prompt, base.tokenizer)
            reference = encode_reference(prompt.prompt, prompt.reference, base.tokenizer) if prompt.reference is not None else []
            answer = max(recipe.evaluation.max_new_tokens, len(reference))
            if len(known) + answer > limit:
                raise RunError(
                    f"suite {suite}, prompt {prompt.id!r}: {len(known):,} tokens and an answer of up to {answer:,} are more than "
                    f"the {limit:,} that base {recipe.base!r} takes; shorten the prompt or set a smaller `evaluation.max_new_tokens`"
                )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it whenever and however this process ends."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another ftk is at work here; wait for it, or choose another --out") from None
        yield


def open_folder(folder: Path) -> Recipe:
    """The recipe of an existing run folder."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RunError(f"{folder}: not a run folder (no recipe.yaml); `ftk run RECIPE --out {folder}` makes one")
    return parse_recipe(path.read_text(encoding="utf-8"), str(path))


# -- train -------------------------------------------------------------------------------------------------------------


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
    teachers: tuple[tuple[str, ...], ...] = ()  # of a distilled condition: for every replica of the stack, the adapters that it learns from


def train(job: Run, name: str, *, replicas: int | None = None, only: Sequence[int] | None = None) -> dict[int, Replica]:
    """Train what is missing of a condition's population; return all of it. Adapters that are given are taken as they are.

    `replicas` trains 0 to N-1, whatever number or rule the recipe has. `only` names replicas to train again even if they are finished
    (their stack is trained whole, those alone are written). Raises StudentsError for students whose teachers are not trained.
    """
    if name in job.recipe.given:
        return take(job, name)
    rule = job.recipe.until_of(name)
    with job.console.stage("train"):
        plan, mark = training_plan(job.recipe, name, job.device)
        population = read_population(job.condition(name))
    if job.recipe.trained[name].teacher:
        asked = range(job.recipe.replicas_of(name) if replicas is None else replicas) if only is None else only
        train_students(job, name, asked, plan, mark, population, again=only is not None)
        return population
    if rule and replicas is None and only is None:
        _train_until(job, name, rule, plan, mark, population)
    else:
        asked = range(replicas or job.recipe.replicas_of(name)) if only is None else only
        train_missing(job, name, asked, plan, mark, population, again=only is not None)
    return population


def take(job: Run, name: str) -> dict[int, Replica]:
    """The population of a condition whose adapters are given, as they are now."""
    recipe = job.recipe
    with job.console.stage("adapters"):
        population = adopt(
            job.condition(name), find_adapters(recipe.given[name].adapters), load_base(recipe.base, recipe.dtype, job.device)
        )
    job.console.note(f"{name}: {given_note(len(population))}")
    return population


def given_note(count: int) -> str:
    """What readers must know of a population that was made elsewhere."""
    return f"{count} adapters that were there already; their seeds are not known here: what varies is whatever their trainer varied"


def train_missing(
    job: Run,
    name: str,
    asked: Sequence[int],
    plan: TrainingPlan,
    mark: str,
    population: dict[int, Replica],
    *,
    again: bool = False,
    teachers: Sequence[Teaching] = (),
) -> None:
    """Train the replicas of `asked` that the population lacks, and add them to it. teachers: the groups of a distilled condition."""
    recipe, folder = job.recipe, job.condition(name)
    condition = recipe.trained[name]
    with job.console.stage("train"):
        _claim(folder, name, recipe, plan, mark, asked, population, teachers)
        stale = {r for r in asked if r in population and population[r].fingerprint != replica_mark(condition, mark, teachers, r)}
        if stale and teachers:
            job.console.note(f"{name}: the teachers of {len(stale)} students are not what they were; these students are trained again")
        missing = [r for r in asked if again or r not in population or r in stale]
        units = []
        for s, keep in stacks_for(missing, plan.stack).items():
            slots = range(s * plan.stack, (s + 1) * plan.stack)  # one that is there for the shape alone may have any teacher
            learns_from = tuple(teachers[condition.group_of(r) % len(teachers)].adapters for r in slots) if teachers else ()
            marks = {r: replica_mark(condition, mark, teachers, r) for r in keep}
            units.append(TrainingUnit(recipe, name, folder, s, keep, plan, marks, job.device, learns_from))
        progress = job.console.progress(f"train {name}", len(missing))
        for _, records in job.engine.run(_train_unit, units, progress):
            for record in records:
                population[record.replica] = record
                if record.status == "failed":
                    job.console.note(f"{name}: replica {record.replica} diverged at step {record.failed_step}; recorded as failed")
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def replica_mark(condition: Condition, mark: str, teachers: Sequence[Teaching], replica: int) -> str:
    """Fingerprint of one replica of a condition with the fingerprint `mark`; a student is defined by its teachers' bits, too."""
    return fingerprint({"condition": mark, "teachers": teachers[condition.group_of(replica)].sha256}) if teachers else mark


def training_plan(recipe: Recipe, name: str, device: str) -> tuple[TrainingPlan, str]:
    """The plan of a condition, and the fingerprint of all that defines its replicas' bits on one machine."""
    condition = recipe.trained[name]
    base = load_base(recipe.base, recipe.dtype, device)
    examples = examples_of(recipe, name, device)
    lengths, targets = [len(e.ids) for e in examples], [sum(e.loss_mask[1:]) for e in examples]
    plan = plan_training(condition, lengths, targets, stack=recipe.stack, device=device, parameters=base.parameters)
    asked = condition.compile or recipe.compile
    worth = asked == "always" or asked == "auto" and pays_to_compile(plan, base.parameters)
    plan = replace(plan, compiled=worth and condition.method != "full")  # whole models are eager
    data = [(e.ids, e.loss_mask) for e in examples]
    defining = {
        "condition": condition.model_dump(exclude={"replicas", "vary", "crossed", "repeats", "rows"}),
        "vary": condition.crossed or sorted(recipe.vary_of(name)),
        "seed": recipe.seed,
        "plan": plan.to_dict(),
        "data": fingerprint({"rows": data}),
        "base": base.sha256,
    }
    if condition.teacher:  # what is kept may differ in rounding from what is computed again
        defining["soft targets kept"] = keeps_soft_targets(recipe, name, plan, device)
    return plan, fingerprint(defining)


def keeps_soft_targets(recipe: Recipe, name: str, plan: TrainingPlan, device: str) -> bool:
    """Whether what the teachers of a stack say about all training rows fits the budget."""
    vocabulary = load_base(recipe.base, recipe.dtype, device).model.config.get_text_config().vocab_size
    targets = [sum(e.loss_mask[1:]) for e in examples_of(recipe, name, device)]
    return soft_target_bytes(recipe.trained[name], targets, vocabulary, plan.stack) <= SOFT_TARGET_BYTES


def _claim(
    folder: Path,
    name: str,
    recipe: Recipe,
    plan: TrainingPlan,
    mark: str,
    asked: Sequence[int],
    population: dict[int, Replica],
    teachers: Sequence[Teaching] = (),
) -> None:
    """Write population.json, or refuse a folder whose replicas another recipe trained."""
    path = folder / "population.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found["fingerprint"] != mark and population:
            raise RunError(
                f"{folder}: holds replicas of another recipe, base or data (fingerprint {found['fingerprint']}, this one is {mark}); "
                "choose another --out, or delete that folder"
            )
    condition = recipe.trained[name]
    all_replicas = sorted(set(population) | set(asked))
    record = {
        "condition": name,
        "design": "crossed" if condition.crossed else "independent",
        "vary": condition.crossed or recipe.vary_of(name),
        "root_seed": recipe.seed,
        "fingerprint": mark,
        "plan": plan.to_dict(),
        "seeds": {str(r): seeds_of(recipe, name, r) for r in all_replicas},
    }
    if condition.teacher:
        members = [{"replicas": one.members, "sha256": one.sha256} for one in teachers]
        record["teachers"] = {"condition": condition.teacher.condition, "groups": members}
        record["group"] = {str(r): condition.group_of(r) for r in all_replicas}
    write_text(path, _json(record))


def seeds_of(recipe: Recipe, name: str, replica: int) -> dict[str, int]:
    """The seed of every source for a replica of a condition.

    Students draw from a root of their own: student 5 would otherwise share its seeds with replica 5, who may teach another student, and
    students of disjoint groups would not be independent.
    """
    condition = recipe.trained[name]
    root = seeds.derive(recipe.seed, "student") if condition.teacher else recipe.seed
    own = seeds.replica_seeds(root, replica, recipe.vary_of(name), {**condition.crossed})
    return own | ({"perturb": seeds.derive(root, "perturb", replica)} if condition.perturb else {})


def _train_unit(unit: TrainingUnit, progress: Progress) -> list[Replica]:
    from toolkit.train import Checkpoint, save_stack, train_stack

    recipe, condition, plan = unit.recipe, unit.recipe.trained[unit.condition], unit.plan
    examples = examples_of(recipe, unit.condition, unit.device)
    keep_soft = bool(condition.teacher) and keeps_soft_targets(recipe, unit.condition, plan, unit.device)
    base = load_base(recipe.base, condition.dtype or recipe.dtype, unit.device)
    replicas = range(unit.stack * plan.stack, (unit.stack + 1) * plan.stack)
    seeds_R = [seeds_of(recipe, unit.condition, r) for r in replicas]
    every = max(1, plan.steps // 50)
    machine = environment.machine(unit.device)
    mark = fingerprint({"replicas": sorted({*unit.fingerprints.values()}), "machine": machine, "teachers": unit.teachers})
    checkpoint = Checkpoint(unit.folder / CHECKPOINTS / f"stack-{unit.stack:05d}.pt", mark)
    with environment.threads(condition.threads, unit.device):
        trained = train_stack(
            base.model,
            examples,
            condition,
            plan,
            seeds_R,
            teachers_R=_teachers(condition.teacher, unit.teachers) if condition.teacher else None,
            keep_soft_targets=keep_soft,
            checkpoint=checkpoint,
            on_step=lambda step: progress(step / plan.steps) if step % every == 0 else None,
        )
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
    return _examples(data.train, data.format, data.max_length, recipe.base, recipe.dtype, device)


def examples_of(recipe: Recipe, name: str, device: str) -> tuple[Example, ...]:
    """Those that a condition trains on. Raises RunError where it asks for more than there are."""
    everything, rows = training_examples(recipe, device), recipe.trained[name].rows
    if rows is None:
        return everything
    if rows > len(everything):
        raise RunError(f"conditions.{name}.rows: there are {len(everything):,} training rows, not {rows:,}")
    order = np.random.default_rng(seeds.derive(recipe.seed, "rows")).permutation(len(everything))
    return tuple(everything[i] for i in order[:rows])


@lru_cache(maxsize=4)  # a worker trains many stacks on the same rows
def _examples(train: str, form: str, max_length: int, base: str, dtype: str, device: str) -> tuple[Example, ...]:
    tokenizer = load_base(base, dtype, device).tokenizer
    return tuple(encode_rows(read_rows(train), tokenizer, max_length=max_length, fmt=form))


# -- distill -----------------------------------------------------------------------------------------------------------


def train_students(
    job: Run, name: str, asked: Sequence[int], plan: TrainingPlan, mark: str, population: dict[int, Replica], *, again: bool
) -> None:
    """Train the students that have a teacher group; of failed teachers there may be fewer groups than the recipe hoped for."""
    condition = job.recipe.trained[name]
    teachers = teacher_groups(job, name)
    taught = [r for r in asked if condition.group_of(r) < len(teachers)]
    if condition.teacher and len(taught) < len(asked):
        there = f"{condition.teacher.condition} has {len(teachers)} groups of {condition.teacher.k} successful replicas"
        job.console.note(f"{name}: {len(taught)} of {len(asked)} students, since {there}")
    train_missing(job, name, taught, plan, mark, population, again=again, teachers=teachers)


def teacher_groups(job: Run, name: str) -> list[Teaching]:
    """The groups that a distilled condition learns from, merged where its teacher is a merge. Raises StudentsError as `teacher_members`."""
    teacher = job.recipe.trained[name].teacher
    assert teacher is not None
    folder = job.condition(teacher.condition)
    members = teacher_members(job.folder, name, teacher)
    population = read_population(folder)
    if teacher.condition in job.recipe.trained:
        _, mark = training_plan(job.recipe, teacher.condition, job.device)
        if any(record.fingerprint != mark for record in population.values()):
            raise RunError(f"{folder}: holds replicas of another recipe, base or data; choose another --out, or delete that folder")
    if not teacher.merge:
        return [
            Teaching(tuple(group), tuple(str(replica_folder(folder, r)) for r in group), tuple(_digest(population[r]) for r in group))
            for group in members
        ]
    with job.console.stage("merge"):
        run_merges(job, merge_units(folder, [r for group in members for r in group], teacher))
    merged = [merged_folder(folder, teacher.label, g) for g in range(len(members))]
    return [Teaching(tuple(group), (str(path),), (read_adapter(path).sha256(),)) for group, path in zip(members, merged, strict=True)]


def _teachers(teacher: Teacher, adapters_R: Sequence[tuple[str, ...]]) -> list[distill.Teacher]:
    """For every student of a stack its teacher; those of one group share the object, so that it speaks once."""
    rule = ENSEMBLES[teacher.ensemble].rule if teacher.ensemble else None
    made = {paths: distill.Teacher(tuple(read_adapter(path) for path in paths), rule) for paths in dict.fromkeys(adapters_R)}
    return [made[paths] for paths in adapters_R]


# -- train until enough is known ---------------------------------------------------------------------------------------


def _train_until(job: Run, name: str, rule: Sequential, plan: TrainingPlan, mark: str, population: dict[int, Replica]) -> None:
    folder = job.condition(name)

    def train_up_to(replicas: int) -> list[int]:
        train_missing(job, name, range(replicas), plan, mark, population)
        return [r for r in range(replicas) if population[r].status == "ok"]

    def shards_of(replicas: Sequence[int], prompts: dict[str, list[Prompt]]) -> list[Path]:
        subjects = replica_subjects(folder, name, {r: population[r] for r in replicas})
        with job.console.stage("evaluate"):
            answer(job, [subjects], prompts)
        return [unit.unit.shard for suite, asked in prompts.items() for unit in answer_units(job, subjects, suite, asked)]

    looks = Looks(folder, rule, read_prompts(job.recipe), job.recipe.level, plan.stack, EVALUATION_WIDTH)
    train_until(looks, train_up_to, shards_of, job.console.note)


# -- merge -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeUnit:
    sources: tuple[Path, ...]
    out: Path
    method: str
    rank: str | int
    parameters: dict[str, Any]  # of the method, all of them


def merge(job: Run) -> None:
    """Every weight-space mitigation on every condition, one adapter for each disjoint group."""
    units = []
    for name in job.recipe.conditions:
        replicas = successful(job.condition(name))
        for mitigation in job.recipe.mitigations_of(name):
            if len(replicas) < mitigation.k:
                job.console.note(f"{name}: {len(replicas)} replicas are too few for {mitigation.label}")
            if mitigation.merge:
                units += merge_units(job.condition(name), replicas, mitigation)
    with job.console.stage("merge"):
        run_merges(job, units)


def merge_units(folder: Path, replicas: Sequence[int], mitigation: Mitigation) -> list[MergeUnit]:
    """Merges of a mitigation that are not on disk yet, or whose inputs have changed since."""
    units = [
        MergeUnit(
            sources=tuple(replica_folder(folder, r) for r in group),
            out=merged_folder(folder, mitigation.label, g),
            method=mitigation.merge or "",
            rank=mitigation.rank,
            parameters=mitigation.parameters,
        )
        for g, group in enumerate(groups(replicas, mitigation.k))
    ]
    return [unit for unit in units if not _is_merged(unit)]


def run_merges(job: Run, units: Sequence[MergeUnit]) -> None:
    progress = job.console.progress("merge", len(units))
    for _ in job.engine.run(_merge_unit, units, progress):
        pass


def merged_folder(folder: Path, label: str, group: int) -> Path:
    return folder / "merged" / label / f"g{group:03d}"


def _merge_unit(unit: MergeUnit, progress: Progress) -> None:
    merge_folders(list(unit.sources), unit.out, method=unit.method, rank=unit.rank, **unit.parameters)
    describe_merge(unit.out)


def describe_merge(folder: Path) -> None:
    """A card and, where mergekit can say it, its YAML beside a merged adapter. The card comes last: it says that nothing is missing."""
    if text := mergekit_yaml.config_of(folder):
        write_text(folder / mergekit_yaml.NAME, text)
    write_card(folder)


def _is_merged(unit: MergeUnit) -> bool:
    """True when merge.json is there and names this method, these parameters, and these inputs as they are now; and a card."""
    try:
        record = json.loads((unit.out / "merge.json").read_text())
        asked = json.loads(json.dumps({**unit.parameters, "rank": unit.rank}))
        inputs = [Path(item["path"]) for item in record["inputs"]]
        homes = [source for path in inputs for source in {path, *path.parents}.intersection(unit.sources)]
        return (
            (record["method"], record["parameters"]) == (unit.method, asked)
            and set(homes) == set(unit.sources)
            and len(homes) == len(inputs)
            and any((unit.out / file).is_file() for file in (WEIGHTS, MODEL))
            and (unit.out / CARD).is_file()
            and all(same_input(path, item) for path, item in zip(inputs, record["inputs"], strict=True))
        )
    except (OSError, ValueError, KeyError):
        return False


def successful(folder: Path) -> list[int]:
    return sorted(r for r, record in read_population(folder).items() if record.status == "ok")


# -- evaluate ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerUnit:
    unit: EvaluationUnit
    base: str
    dtype: str
    device: str
    prompts: tuple[Prompt, ...]
    evaluation: Evaluation


def evaluate(job: Run) -> None:
    """The base, all replicas, all merged adapters and all ensembles answer all suites."""
    prompts = read_prompts(job.recipe)
    with job.console.stage("evaluate"):
        if any((m.weights or "").startswith("accuracy:") for m in job.recipe.mitigations):  # what members are weighed by
            answer(job, [_replicas(job, name) for name in job.recipe.conditions], prompts)
        answer(job, all_subjects(job), prompts)


def all_subjects(job: Run) -> list[list[Subject]]:
    """The base, and every condition's replicas, merged adapters and ensembles: one list for each procedure."""
    families = [[Subject("", "base", 0)]]
    for name in job.recipe.conditions:
        families += subjects_of(job, name)
    return families


def subjects_of(job: Run, name: str) -> list[list[Subject]]:
    """Subjects of a condition, one list for each procedure. Rules over whole answers need no model and are not among them."""
    folder = job.condition(name)
    single = {subject.index: subject for subject in _replicas(job, name)}
    families = [list(single.values())]
    for mitigation in job.recipe.mitigations_of(name):
        members = groups(single, mitigation.k)
        if mitigation.merge:
            merged = [merged_folder(folder, mitigation.label, g) for g in range(len(members))]
            families.append([Subject(name, mitigation.label, g, (str(p),), (read_weights(p).sha256(),)) for g, p in enumerate(merged)])
        elif ENSEMBLES[mitigation.ensemble or ""].rule:
            weigh = accuracies(job, name, mitigation)
            paths = [tuple(single[r].adapters[0] for r in group) for group in members]
            digests = [tuple(single[r].sha256[0] for r in group) for group in members]
            weights = [_not_all_zero([weigh[r] for r in group]) if weigh else () for group in members]
            families.append([Subject(name, mitigation.label, g, *own) for g, own in enumerate(zip(paths, digests, weights, strict=True))])
    return families


def _replicas(job: Run, name: str) -> list[Subject]:
    folder = job.condition(name)
    return replica_subjects(folder, name, read_population(folder))


def accuracies(job: Run, name: str, mitigation: Mitigation) -> dict[int, float]:
    """Accuracy of every replica on the suite by which a mitigation weighs its members, from their outcomes; empty without one."""
    suite = (mitigation.weights or "").partition(":")[2]
    if not suite:
        return {}
    units = answer_units(job, _replicas(job, name), suite, read_prompts(job.recipe)[suite])
    marks = read_outcomes((unit.unit.shard for unit in units), ["index", "correct"]).drop_null()
    replica_N, right_N = marks["index"].to_numpy(), marks["correct"].cast("int64").to_numpy()
    asked_R, right_R = np.bincount(replica_N), np.bincount(replica_N, weights=right_N)
    return {int(r): float(right_R[r] / asked_R[r]) for r in np.flatnonzero(asked_R)}


def _not_all_zero(weights: Sequence[float]) -> tuple[float, ...]:
    """Members that are all useless are equally useful."""
    return tuple(weights) if any(weights) else (1.0,) * len(weights)


def replica_subjects(folder: Path, name: str, population: dict[int, Replica]) -> list[Subject]:
    """The replicas that succeeded, in index order."""
    return [
        Subject(name, "replica", r, (str(replica_folder(folder, r)),), (_digest(record),))
        for r, record in sorted(population.items())
        if record.status == "ok"
    ]


def _digest(record: Replica) -> str:
    """Of the weights, and of the configuration where something else than ftk could change it: alpha decides what weights mean."""
    return "-".join(record.sha256[name] for name in (WEIGHTS, MODEL, CONFIG) if name in record.sha256)


def answer(job: Run, families: Sequence[Sequence[Subject]], prompts: dict[str, list[Prompt]]) -> None:
    """Write the outcome shards that are missing."""
    units = []
    for suite, asked in prompts.items():
        for family in families:
            units += [unit for unit in answer_units(job, family, suite, asked) if not unit.unit.shard.exists()]
    progress = job.console.progress("evaluate", len(units))
    for _ in job.engine.run(_answer_unit, units, progress):
        pass


def answer_units(job: Run, family: Sequence[Subject], suite: str, prompts: Sequence[Prompt]) -> list[AnswerUnit]:
    if not family:
        return []
    recipe = job.recipe
    members = max(1, len(family[0].adapters))
    at_once = EVALUATION_WIDTH
    if family[0].adapters and (Path(family[0].adapters[0]) / FULL).is_file():
        at_once = min(at_once, whole_width(load_base(recipe.base, recipe.dtype, job.device).parameters, WEIGHT_BYTES, job.device))
    width = max(1, at_once // members)
    settings = fingerprint({"prompts": [asdict(p) for p in prompts], "evaluation": recipe.evaluation.model_dump(), "dtype": recipe.dtype})
    rule = threshold = None
    if members > 1:
        rule, threshold = next((m.ensemble, m.threshold) for m in recipe.mitigations if m.label == family[0].procedure)
    units = []
    for start in range(0, len(family), width):
        part = tuple(family[start : start + width])
        shard = job.folder / "outcomes" / suite / shard_name(part, settings)
        unit = EvaluationUnit(part, suite, width, members, rule, shard, threshold)
        units.append(AnswerUnit(unit, recipe.base, recipe.dtype, job.device, tuple(prompts), recipe.evaluation))
    return units


def _answer_unit(unit: AnswerUnit, progress: Progress) -> int:
    base = load_base(unit.base, unit.dtype, unit.device)
    combine = ENSEMBLES[unit.unit.rule].rule if unit.unit.rule else None
    return evaluate_unit(unit.unit, base, unit.prompts, combine=combine, progress=progress, **unit.evaluation.model_dump())


# -- measure -----------------------------------------------------------------------------------------------------------


def measure(job: Run) -> Results:
    """Outcomes -> statistics -> results.json -> report.html. Raises RunError where fewer than two replicas of any condition succeeded."""
    recipe = job.recipe
    prompts = read_prompts(recipe)
    with job.console.stage("measure"):
        families = all_subjects(job)
        shards = [
            unit.unit.shard for suite, asked in prompts.items() for family in families for unit in answer_units(job, family, suite, asked)
        ]
        designs = []
        for name in recipe.conditions:
            design = condition_design(job, name, shards)
            if len(design.replicas) < 2:
                job.console.note(f"{name}: left out, {len(design.replicas)} of its replicas succeeded and {design.failed} failed")
                continue
            designs.append(design)
            shards += votes(job, name, shards)
        if not designs:
            raise RunError(f"{job.folder}: fewer than two replicas of any condition succeeded, nothing can be compared; try a lower `lr`")
        stopped = [job.condition(name) for name in recipe.conditions if recipe.until_of(name)]
        notes = [stopping_note(folder) for folder in stopped if (folder / "stopping.json").is_file()]
        notes += [f"{design.name}: {given_note(len(design.replicas))}" for design in designs if design.name in recipe.given]
        for design in designs:
            own = recipe.trained.get(design.name)
            for note in student_notes(own, design, recipe.vary_of(design.name)) if own else ():
                job.console.note(note)
                notes.append(note)
        command = f"ftk run {job.folder / 'recipe.yaml'} --out {job.folder}"
        return conclude(job, shards, designs, command=command, notes=notes)


def conclude(job: Run, shards: Sequence[Path], designs: Sequence[ConditionDesign], *, command: str, notes: Sequence[str] = ()) -> Results:
    """Write down what the outcomes in `shards` are of; measure them."""
    save_design(job.folder, shards, designs, command, notes)
    return measure_run(job.folder)


def votes(job: Run, name: str, shards: Sequence[Path]) -> list[Path]:
    """Shards of the rules over whole answers, made from the replicas' outcomes."""
    made = []
    own = [path for path in shards if path.name.startswith(f"{name}-replica-")]
    for mitigation in job.recipe.mitigations_of(name):
        if mitigation.ensemble and ENSEMBLES[mitigation.ensemble].needs == "answers":
            path = job.folder / "outcomes" / "votes" / f"{name}-{mitigation.label}.parquet"
            members = groups(successful(job.condition(name)), mitigation.k)
            choose = partial(mbr, similarity=SIMILARITIES[mitigation.similarity or "exact"])
            weight = _weight(job, name, mitigation)
            vote_outcomes(own, condition=name, procedure=mitigation.label, members=members, choose=choose, weight=weight, out=path)
            made.append(path)
    return made


def _weight(job: Run, name: str, mitigation: Mitigation) -> Callable[[dict[str, Any]], float] | None:
    """What the voice of a member counts, by its outcome; None: all alike."""
    if mitigation.weights == "confidence":
        return token_probability
    known = accuracies(job, name, mitigation)
    return (lambda row: known[row["index"]]) if known else None


def streams(job: Run, name: str, mitigation: Mitigation, shards: Sequence[Path]) -> float:
    """Adapters that run for an answer: the mean over what was answered where a gate decides."""
    if mitigation.ensemble != "gated":
        return 1 if mitigation.merge else mitigation.k
    own = [path for path in shards if path.name.startswith(f"{name}-{mitigation.label}-")]
    ran = read_outcomes(own, ["streams"])["streams"].to_numpy()
    return float(ran.mean()) if len(ran) else mitigation.k


def condition_design(job: Run, name: str, shards: Sequence[Path]) -> ConditionDesign:
    """Which replicas stand behind which row of the results, and at what price."""
    folder = job.condition(name)
    population = read_population(folder)
    replicas = successful(folder)
    own = job.recipe.trained.get(name)
    rank_of_one = own.adapter_rank if own else max((read_adapter(replica_folder(folder, r)).rank for r in replicas), default=None)
    measured = [record.seconds for record in population.values() if record.seconds is not None]
    seconds = sum(measured) / len(measured) if measured else None
    tokens = None
    if own:
        plan = json.loads((folder / "population.json").read_text())["plan"]
        tokens = plan["steps"] * plan["micro_batch"] * plan["accumulation"] * plan["length"]
    mitigations = []
    for mitigation in job.recipe.mitigations_of(name):
        members = groups(replicas, mitigation.k)
        rank = rank_of_one
        if mitigation.merge and members:
            rank = json.loads((merged_folder(folder, mitigation.label, 0) / "merge.json").read_text())["rank"]
        spent = None if seconds is None else mitigation.k * seconds
        of_all = None if tokens is None else mitigation.k * tokens
        price = Price(mitigation.k, streams(job, name, mitigation, shards), rank, spent, of_all)
        kind = "merge" if mitigation.merge else "ensemble"
        mitigations.append(MitigationDesign(mitigation.label, mitigation.title, kind, mitigation.k, members, price))
    failed = sum(record.status == "failed" for record in population.values())
    factors = {source: [population[r].seeds[source] for r in replicas] for source in (own.crossed if own else ())}
    if own and own.teacher:
        return student_design(job.folder, own, ConditionDesign(name, replicas, failed, factors=factors), seconds)
    for student, other in job.recipe.trained.items():
        if other.teacher and (other.teacher.condition, other.teacher.groups) == (name, "fresh") and successful(job.condition(student)):
            mitigations.append(as_mitigation(condition_design(job, student, shards), other.teacher.k))
    price = Price(rank=rank_of_one, seconds=seconds, tokens=tokens)
    return ConditionDesign(name, replicas, failed, mitigations, price, factors)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
