"""The whole of ftk in the order in which data flows: read `run` first, then the stage that concerns you.

    recipe -> plan -> train -> population -> merge / ensemble -> predict -> outcomes -> statistics -> results -> report

Every arrow leaves files in the run folder, and every stage skips what it finds finished there.
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit import environment, mergekit_yaml, seeds
from toolkit.adapters import CONFIG, WEIGHTS, read_adapter
from toolkit.adopt import adopt, check_base, find_adapters, linear_shapes
from toolkit.analyse import OutcomeTable
from toolkit.base import Base, load_base
from toolkit.card import write_card
from toolkit.data import Example, Prompt, encode_prompt, encode_reference, encode_rows, read_rows
from toolkit.engines import LocalEngine, Progress
from toolkit.ensemble import ENSEMBLES, vote
from toolkit.evaluate import EvaluationUnit, Subject, evaluate_unit, shard_name, vote_outcomes
from toolkit.measure import measure_run, read_prompts, save_design
from toolkit.merge import METHODS, merge_adapters
from toolkit.outcomes import read_outcomes
from toolkit.plan import TrainingPlan, plan_training, stacks_for
from toolkit.population import Replica, fingerprint, groups, read_population, replica_folder, sha256_file, write_text
from toolkit.recipe import Evaluation, Given, Mitigation, Recipe, Sequential, dump_recipe, parse_recipe
from toolkit.results import ConditionDesign, MitigationDesign, Price, Results, number
from toolkit.stack import target_modules
from toolkit.statistics.sequential import ANYTIME, ConfidenceSequence, Decision, Stopping, pair_disagreement

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
    engine: LocalEngine
    console: Console

    def condition(self, name: str) -> Path:
        return self.folder / name


# -- the arrows --------------------------------------------------------------------------------------------------------


def run(recipe: Recipe, folder: Path, *, workers: int | None = None, console: Console | None = None) -> Results:
    """Everything, from a recipe to a report. Run it again: only what is missing is done."""
    with open_run(recipe, folder, workers=workers, console=console) as job:
        for name in recipe.conditions:
            train(job, name)
        merge(job)
        evaluate(job)
        results = measure(job)
        for record in sorted(folder.glob("*/merged/*/*/merge.json")):
            write_card(record.parent)
        return results


@contextmanager
def open_run(recipe: Recipe, folder: Path, *, workers: int | None = None, console: Console | None = None) -> Iterator[Run]:
    """Write down what is asked and where it runs; refuse a folder that holds another recipe's run.

    Raises RunError, RecipeError or BaseError in one line.
    """
    console = console or Console()
    try:
        device = environment.resolve_device(recipe.device)
    except ValueError as error:
        raise RunError(str(error)) from None
    base = load_base(recipe.base, recipe.dtype, device)
    prompts = read_prompts(recipe)  # a suite that is wrong should stop a run before it trains
    _check_against_base(recipe, base)
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
        with LocalEngine(device, workers) as engine:
            yield Run(recipe, folder, device, engine, console)


def _check_against_base(recipe: Recipe, base: Base) -> None:
    """Refuse what this base cannot do before anything is trained."""
    for condition in recipe.given.values():
        shape_of = linear_shapes(base)
        for path in find_adapters(condition.adapters):
            check_base(read_adapter(path), base, shape_of)
            for mitigation in recipe.mitigations:
                if mitigation.merge:
                    METHODS[mitigation.merge].along(path)  # raises where the method needs a trajectory that is not there
    for name, condition in recipe.conditions.items():
        try:
            layers = target_modules(base.model, "all-linear" if isinstance(condition, Given) else condition.targets)
        except ValueError as error:
            raise RunError(f"conditions.{name}.targets: {error}") from None
        largest = max(min(layer.weight.shape) for layer in layers.values())
        for mitigation in recipe.mitigations:
            if isinstance(mitigation.rank, int) and mitigation.rank > largest:
                raise RunError(f"mitigation {mitigation.label}: the changes of this base have ranks 1 to {largest}")


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
    fingerprint: str
    device: str


def train(job: Run, name: str, *, replicas: int | None = None, only: Sequence[int] | None = None) -> dict[int, Replica]:
    """Train what is missing of a condition's population; return all of it. Adapters that are given are taken as they are.

    `replicas` trains 0 to N-1, whatever number or rule the recipe has. `only` names replicas to train again even if they are finished
    (their stack is trained whole, those alone are written).
    """
    if name in job.recipe.given:
        return take(job, name)
    rule = job.recipe.until_of(name)
    with job.console.stage("train"):
        plan, mark = training_plan(job.recipe, name, job.device)
        population = read_population(job.condition(name))
    if rule and replicas is None and only is None:
        train_until(job, name, rule, plan, mark, population)
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
    job: Run, name: str, asked: Sequence[int], plan: TrainingPlan, mark: str, population: dict[int, Replica], *, again: bool = False
) -> None:
    """Train the replicas of `asked` that the population lacks, and add them to it."""
    recipe, folder = job.recipe, job.condition(name)
    with job.console.stage("train"):
        _claim(folder, name, recipe, plan, mark, asked, population)
        missing = [r for r in asked if again or r not in population or population[r].fingerprint != mark]
        units = [
            TrainingUnit(recipe, name, folder, s, tuple(r for r in missing if r // plan.stack == s), plan, mark, job.device)
            for s in stacks_for(missing, plan.stack)
        ]
        progress = job.console.progress(f"train {name}", len(missing))
        for _, records in job.engine.run(_train_unit, units, progress):
            for record in records:
                population[record.replica] = record
                if record.status == "failed":
                    job.console.note(f"{name}: replica {record.replica} diverged at step {record.failed_step}; recorded as failed")


def training_plan(recipe: Recipe, name: str, device: str) -> tuple[TrainingPlan, str]:
    """The plan of a condition, and the fingerprint of all that defines its replicas' bits on one machine."""
    condition = recipe.trained[name]
    base = load_base(recipe.base, recipe.dtype, device)
    examples = training_examples(recipe, device)
    lengths, targets = [len(e.ids) for e in examples], [sum(e.loss_mask[1:]) for e in examples]
    plan = plan_training(condition, lengths, targets, stack=recipe.stack, device=device)
    data = [(e.ids, e.loss_mask) for e in examples]
    mark = fingerprint(
        {
            "condition": condition.model_dump(exclude={"replicas", "vary", "crossed", "repeats"}),
            "vary": condition.crossed or sorted(recipe.vary_of(name)),
            "seed": recipe.seed,
            "plan": asdict(plan),
            "data": fingerprint({"rows": data}),
            "base": base.sha256,
        }
    )
    return plan, mark


def _claim(
    folder: Path, name: str, recipe: Recipe, plan: TrainingPlan, mark: str, asked: Sequence[int], population: dict[int, Replica]
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
        "plan": asdict(plan),
        "seeds": {str(r): seeds_of(recipe, name, r) for r in all_replicas},
    }
    write_text(path, _json(record))


def seeds_of(recipe: Recipe, name: str, replica: int) -> dict[str, int]:
    """The seed of every source for a replica of a condition."""
    return seeds.replica_seeds(recipe.seed, replica, recipe.vary_of(name), {**recipe.trained[name].crossed})


def _train_unit(unit: TrainingUnit, progress: Progress) -> list[Replica]:
    from toolkit.train import save_stack, train_stack

    recipe, condition, plan = unit.recipe, unit.recipe.trained[unit.condition], unit.plan
    base = load_base(recipe.base, recipe.dtype, unit.device)
    examples = training_examples(recipe, unit.device)
    replicas = range(unit.stack * plan.stack, (unit.stack + 1) * plan.stack)
    seeds_R = [seeds_of(recipe, unit.condition, r) for r in replicas]
    every = max(1, plan.steps // 50)
    trained = train_stack(
        base.model, examples, condition, plan, seeds_R, on_step=lambda step: progress(step / plan.steps) if step % every == 0 else None
    )
    return save_stack(
        unit.folder,
        trained,
        condition,
        replicas=replicas,
        keep=unit.keep,
        seeds_R=seeds_R,
        plan=plan,
        fingerprint=unit.fingerprint,
        base=base.source,
        revision=base.revision,
    )


def training_examples(recipe: Recipe, device: str) -> tuple[Example, ...]:
    """The training rows as tokens. Raises DataError in one line."""
    data = recipe.data
    return _examples(data.train, data.format, data.max_length, recipe.base, recipe.dtype, device)


@lru_cache(maxsize=4)  # a worker trains many stacks on the same rows
def _examples(train: str, form: str, max_length: int, base: str, dtype: str, device: str) -> tuple[Example, ...]:
    tokenizer = load_base(base, dtype, device).tokenizer
    return tuple(encode_rows(read_rows(train), tokenizer, max_length=max_length, fmt=form))


# -- train until enough is known ---------------------------------------------------------------------------------------


def train_until(job: Run, name: str, rule: Sequential, plan: TrainingPlan, mark: str, population: dict[int, Replica]) -> None:
    """Train whole stacks and let them answer, until the rule is met or its `max` is reached; stopping.json tells every look.

    What is decided depends on the outcomes in index order at fixed looks and on nothing else. So a run that was killed comes to the same
    decision, and one that has stopped finds all its looks answered and trains no more.
    """
    folder, suites = job.condition(name), read_prompts(job.recipe)
    targets = {figure: target.model_dump(exclude_none=True) for figure, target in rule.until.items()}
    prompts = {suite: rows for figure in targets for suite, rows in asked_about(figure, suites).items()}
    sequences = {figure: ConfidenceSequence(job.recipe.level) for figure in targets}
    looks: list[dict[str, Any]] = []
    answered = 0
    for replicas in look_points(rule, plan.stack):
        train_missing(job, name, range(replicas), plan, mark, population)
        subjects = replica_subjects(folder, name, {r: population[r] for r in range(replicas)})
        last = replicas == rule.max
        # a shard that is not full would be answered again when more replicas fill it
        ready = len(subjects) if last else len(subjects) - len(subjects) % EVALUATION_WIDTH
        with job.console.stage("evaluate"):
            _watch(job, subjects[answered:ready], prompts, sequences)
        answered = ready
        decision = Stopping(targets).decide(sequences) if subjects else Decision(True, "no replica succeeded")
        verdict = "stop" if decision.stop else "max" if last else "continue"
        figures = {figure: sequence.to_dict() for figure, sequence in sequences.items()}
        failed = replicas - len(subjects)
        looks.append({"replicas": replicas, "failed": failed, "figures": figures, "decision": verdict, "reason": decision.reason})
        asked = {"max": rule.max, "min": rule.min, "batch": rule.batch, "until": targets}
        write_text(folder / "stopping.json", _json({"rule": asked, "level": job.recipe.level, "method": ANYTIME, "looks": looks}))
        job.console.note(f"{name}: {replicas} replicas, {verdict}: {decision.reason}")
        if decision.stop:
            return


def look_points(rule: Sequential, stack: int) -> list[int]:
    """Numbers of replicas at which the rule looks: `min`, then every `batch`, in whole stacks, the last one `max`."""
    first, step = (math.ceil(n / stack) * stack for n in (rule.min, rule.batch))
    return [*range(first, rule.max, step), rule.max]


def asked_about(figure: str, suites: dict[str, list[Prompt]]) -> dict[str, list[Prompt]]:
    """The prompts that `disagreement.NAME` is about, by suite: those of the suite NAME, or all of the shift NAME."""
    name = figure.partition(".")[2]
    if name in suites:
        return {name: suites[name]}
    found = {suite: rows for suite, rows in suites.items() if any(p.shift == name for p in rows)}
    if not found:
        raise RunError(f"replicas.until: {figure}: no suite has {name} prompts; there are: {', '.join(suites) or 'no suites'}")
    return found


def _watch(job: Run, subjects: list[Subject], prompts: dict[str, list[Prompt]], sequences: dict[str, ConfidenceSequence]) -> None:
    """Let new replicas answer, and give every figure's sequence the pairs that they make."""
    if not subjects:
        return
    answer(job, [subjects], prompts)
    shards = [unit.unit.shard for suite, rows in prompts.items() for unit in answer_units(job, subjects, suite, rows)]
    table = OutcomeTable(read_outcomes(shards), prompts)
    arm = table.arm(subjects[0].condition, "replica", [subject.index for subject in subjects])
    assert arm is not None  # the shards hold nothing else
    for figure, sequence in sequences.items():
        name = figure.partition(".")[2]
        at = table.suites[name] if name in table.suites else table.shifts[name]
        for x in pair_disagreement(arm.answer_RP[:, at]):
            sequence.add(float(x))


def stopping_note(folder: Path) -> str:
    """What readers of a condition's intervals must know when its number of replicas was decided by looking at them."""
    found = json.loads((folder / "stopping.json").read_text())
    look = found["looks"][-1]
    ends = "; ".join(
        f"{figure} {number(f['mean'], '%')} % [{number(f['low'], '%')}, {number(f['high'], '%')}] from {f['pairs']} pairs"
        for figure, f in look["figures"].items()
    )
    met = "" if look["decision"] == "stop" else ", its targets not met"
    return (
        f"{folder.name}: the number of replicas, {look['replicas']}, was decided by a rule that looked at their answers{met}; the "
        "intervals of this report are made for a number given beforehand and are too narrow for that; "
        f"{100 * found['level']:g} % intervals that hold, for these prompts only: {ends}"
    )


# -- merge -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeUnit:
    sources: tuple[Path, ...]
    out: Path
    method: str
    rank: str | int
    parameters: tuple[tuple[str, Any], ...]


def merge(job: Run) -> None:
    """Every weight-space mitigation on every condition, one adapter for each disjoint group."""
    units = []
    for name in job.recipe.conditions:
        replicas = successful(job.condition(name))
        for mitigation in job.recipe.mitigations:
            if len(replicas) < mitigation.k:
                job.console.note(f"{name}: {len(replicas)} replicas are too few for {mitigation.label}")
            if mitigation.merge:
                units += merge_units(job.condition(name), replicas, mitigation)
    with job.console.stage("merge"):
        run_merges(job, units)


def merge_units(folder: Path, replicas: Sequence[int], mitigation: Mitigation) -> list[MergeUnit]:
    """Merges of a mitigation that are not on disk yet, or whose inputs have changed since."""
    parameters = () if mitigation.density is None else (("density", mitigation.density),)
    units = [
        MergeUnit(
            sources=tuple(replica_folder(folder, r) for r in group),
            out=merged_folder(folder, mitigation.label, g),
            method=mitigation.merge or "",
            rank=mitigation.rank,
            parameters=parameters,
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
    merge_adapters(list(unit.sources), unit.out, method=unit.method, rank=unit.rank, **dict(unit.parameters))
    describe_merge(unit.out)


def describe_merge(folder: Path) -> None:
    """A card and, where mergekit can say it, its YAML beside a merged adapter."""
    write_card(folder)
    if text := mergekit_yaml.config_of(folder):
        write_text(folder / mergekit_yaml.NAME, text)


def _is_merged(unit: MergeUnit) -> bool:
    """True when merge.json is there and names the inputs as they are now."""
    try:
        record = json.loads((unit.out / "merge.json").read_text())
        inputs = [(Path(item["path"]), item["sha256"], item["config_sha256"]) for item in record["inputs"]]
        same = {source for source in unit.sources for path, *_ in inputs if path.is_relative_to(source)} == set(unit.sources)
        return same and all((sha256_file(path / WEIGHTS), sha256_file(path / CONFIG)) == (w, c) for path, w, c in inputs)
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
    with job.console.stage("evaluate"):
        answer(job, all_subjects(job), read_prompts(job.recipe))


def all_subjects(job: Run) -> list[list[Subject]]:
    """The base, and every condition's replicas, merged adapters and ensembles: one list for each procedure."""
    families = [[Subject("", "base", 0)]]
    for name in job.recipe.conditions:
        families += subjects_of(job.condition(name), name, job.recipe.mitigations)
    return families


def subjects_of(folder: Path, name: str, mitigations: Sequence[Mitigation]) -> list[list[Subject]]:
    """Subjects of a condition, one list for each procedure. Whole-answer votes need no model and are not among them."""
    single = {subject.index: subject for subject in replica_subjects(folder, name, read_population(folder))}
    families = [list(single.values())]
    for mitigation in mitigations:
        members = groups(single, mitigation.k)
        if mitigation.merge:
            merged = [merged_folder(folder, mitigation.label, g) for g in range(len(members))]
            families.append([Subject(name, mitigation.label, g, (str(p),), (read_adapter(p).sha256(),)) for g, p in enumerate(merged)])
        elif ENSEMBLES[mitigation.ensemble or ""].rule:
            paths = [tuple(single[r].adapters[0] for r in group) for group in members]
            digests = [tuple(single[r].sha256[0] for r in group) for group in members]
            families.append([Subject(name, mitigation.label, g, *own) for g, own in enumerate(zip(paths, digests, strict=True))])
    return families


def replica_subjects(folder: Path, name: str, population: dict[int, Replica]) -> list[Subject]:
    """The replicas that succeeded, in index order."""
    return [
        Subject(name, "replica", r, (str(replica_folder(folder, r)),), (_digest(record),))
        for r, record in sorted(population.items())
        if record.status == "ok"
    ]


def _digest(record: Replica) -> str:
    """Of the weights, and of the configuration where something else than ftk could change it: alpha decides what weights mean."""
    return "-".join(record.sha256[name] for name in (WEIGHTS, CONFIG) if name in record.sha256)


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
    width = max(1, EVALUATION_WIDTH // members)
    settings = fingerprint({"prompts": [asdict(p) for p in prompts], "evaluation": recipe.evaluation.model_dump(), "dtype": recipe.dtype})
    rule = None
    if members > 1:
        rule = next(m.ensemble for m in recipe.mitigations if m.label == family[0].procedure)
    units = []
    for start in range(0, len(family), width):
        part = tuple(family[start : start + width])
        shard = job.folder / "outcomes" / suite / shard_name(part, settings)
        unit = EvaluationUnit(part, suite, width, members, rule, shard)
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
            design = condition_design(job, name)
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
        command = f"ftk run {job.folder / 'recipe.yaml'} --out {job.folder}"
        return conclude(job, shards, designs, command=command, notes=notes)


def conclude(job: Run, shards: Sequence[Path], designs: Sequence[ConditionDesign], *, command: str, notes: Sequence[str] = ()) -> Results:
    """Write down what the outcomes in `shards` are of; measure them."""
    save_design(job.folder, shards, designs, command, notes)
    return measure_run(job.folder)


def votes(job: Run, name: str, shards: Sequence[Path]) -> list[Path]:
    """Shards of the majority votes over whole answers, made from the replicas' outcomes."""
    made = []
    own = [path for path in shards if path.name.startswith(f"{name}-replica-")]
    for mitigation in job.recipe.mitigations:
        if mitigation.ensemble == "vote":
            path = job.folder / "outcomes" / "votes" / f"{name}-{mitigation.label}.parquet"
            members = groups(successful(job.condition(name)), mitigation.k)
            vote_outcomes(own, condition=name, procedure=mitigation.label, members=members, choose=vote, out=path)
            made.append(path)
    return made


def condition_design(job: Run, name: str) -> ConditionDesign:
    """Which replicas stand behind which row of the results, and at what price."""
    folder = job.condition(name)
    population = read_population(folder)
    replicas = successful(folder)
    own = job.recipe.trained.get(name)
    rank_of_one = own.rank if own else max((read_adapter(replica_folder(folder, r)).rank for r in replicas), default=None)
    measured = [record.seconds for record in population.values() if record.seconds is not None]
    seconds = sum(measured) / len(measured) if measured else None
    mitigations = []
    for mitigation in job.recipe.mitigations:
        members = groups(replicas, mitigation.k)
        rank = rank_of_one
        if mitigation.merge and members:
            rank = json.loads((merged_folder(folder, mitigation.label, 0) / "merge.json").read_text())["rank"]
        streams = 1 if mitigation.merge else mitigation.k
        price = Price(mitigation.k, streams, rank, mitigation.k * seconds if seconds is not None else None)
        title = mitigation.label.rpartition("-k")[0].replace("-density", ", density ")
        kind = "merge" if mitigation.merge else "ensemble"
        mitigations.append(MitigationDesign(mitigation.label, title, kind, mitigation.k, members, price))
    failed = sum(record.status == "failed" for record in population.values())
    factors = {source: [population[r].seeds[source] for r in replicas] for source in (own.crossed if own else ())}
    price = Price(rank=rank_of_one, seconds=seconds)
    return ConditionDesign(name, replicas, failed, mitigations, price, factors)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
