"""The side doors: adapters that are there already, from this tool or another, to be merged or to
answer prompts.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit import environment
from toolkit.answer.evaluate import EvaluationUnit, Subject, evaluate_unit
from toolkit.data import is_chat, read_rows, read_suite
from toolkit.embedded import with_version
from toolkit.measure.run import changed_prompts, read_prompts, save_design, save_modules
from toolkit.merge import (
    MergeReport,
    common_base,
    find_method,
    merge_adapters,
    merge_folders,
    merge_into_base,
    merged_of,
    mergekit_yaml,
    planned,
    under_one_naming,
)
from toolkit.merge.basin import Basin, look
from toolkit.merge.module_spread import Population, modules
from toolkit.model.adapters import adapter_paths, read_adapter
from toolkit.model.adopt import check_base, layer_shapes, read_all, remarks
from toolkit.model.base import EMBEDDED, check_cache, load_base
from toolkit.model.full import FULL, copies, read_weights
from toolkit.pipeline import evaluate, measure, merge
from toolkit.pipeline.answering import answer, answer_units, weights_digest
from toolkit.pipeline.job import Console, RunError, open_folder, successful
from toolkit.pipeline.measuring import conclude
from toolkit.pipeline.merging import describe_merge
from toolkit.pipeline.opening import free_folder, kind_of_run, open_run
from toolkit.pipeline.populations import take
from toolkit.recipe import SHIFTS, Data, Evaluation, Given, Mitigation, Recipe
from toolkit.record import shapes
from toolkit.record.folders import (
    EVALUATED,
    MERGED,
    MERGES,
    check_claim,
    check_outputs,
    claim,
    is_record,
    is_run,
)
from toolkit.record.outcomes import read_outcomes
from toolkit.record.plain import read_json
from toolkit.record.population import (
    changed_files,
    groups,
    read_records,
    read_replica,
    replica_folder,
)
from toolkit.record.results import ConditionDesign, Modules, Results
from toolkit.report.card import check_card
from toolkit.text.nearest import nearest


def merge_sources(
    sources: Sequence[Path],
    *,
    method: str,
    k: int | None,
    rank: str,
    out: Path | None,
    parameters: dict[str, Any],
    base: str | None = None,
    buffer: int | None = None,
    dense: bool = False,
    prompts: str | None = None,
    score: str = "accuracy",
    guard: Sequence[str] = (),
    strict: bool = False,
    note: Callable[[str], None] = lambda text: None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Merge a run, conditions of one, or adapter folders: all into one, or every disjoint group of
    k. One record a merge.

    `dense` writes full models instead of adapters. A greedy soup goes by the `score` (accuracy or
    logprob) on `prompts`. On the suites of `guard` the loss of each merge is held against that of
    its members before anything is written; what speaks against it is noted, and with `strict`
    raises GuardError. force: write into folders that are not ftk's, too, replacing only what a
    merge has by name. Raises FolderError in one line, before anything is written, where a merge
    would go over something else.
    """
    reports, told = [], dict[str, None]()
    _, values = find_method(method, parameters)
    if dense and buffer:
        raise RunError("--buffer bounds the sum of an adapter: leave it out with --dense")
    if (method == "greedy_soup") != (prompts is not None):
        raise RunError(
            "--prompts SUITE belongs to greedy_soup, which needs it: what its scores are taken on"
        )
    collections = _collections(sources)
    targets = {
        folder: _targets(folder, paths, method, k, rank, values, dense, out)
        for folder, paths in collections
    }
    everything = [path for one in targets.values() for path in one]
    own_of = {
        folder: [[paths[i] for i in group] for group in groups(range(len(paths)), k or len(paths))]
        for folder, paths in collections
    }
    if twice := [path for path, count in Counter(everything).items() if count > 1]:
        raise RunError(
            f"{twice[0]}: merges of several conditions would go there; name one of them, "
            "or leave --out out"
        )
    inputs = [*sources, *(path for _, paths in collections for path in paths)]
    check_outputs([*everything, *([out] if out and k else [])], inputs)
    if out and k:
        check_claim(out, MERGES, force=force)
    for folder, own in own_of.items():
        for target, group in zip(targets[folder], own, strict=True):
            check_target(
                target, planned(group, method, rank, buffer=buffer, dense=dense, **values), force
            )
    judges = {
        folder: validation_score(prompts, folder, paths, base, score) if prompts else None
        for folder, paths in collections
    }
    if guard:

        def tried(folder: Path, own: Sequence[Path], to: Path) -> Path:
            return merge_adapters(
                own,
                to,
                method=method,
                rank=rank,
                base=base,
                buffer=buffer,
                score=judges[folder],
                **values,
            ).out

        looks = basins(sources, prompts=guard, base=base, k=k, method=method, merge=tried)
        for folder, found in looks:
            for reason in found.reasons or ["no barrier on these prompts"]:
                note(f"guard: {folder}: {found.verdict}: {reason}")
        if strict and any(found.verdict == "warn" for _, found in looks):
            raise GuardError("nothing was merged: leave --strict out to merge anyway")
    for folder, _ in collections:
        size, judge = len(own_of[folder][0]), judges[folder]
        if out is not None and k:
            claim(out, MERGES, force=force)
        for target, own in zip(targets[folder], own_of[folder], strict=True):
            made: dict[str, Any] = {"out": str(target), "method": method, "k": size}
            if dense:
                model = merge_into_base(
                    own, target, method=method, rank=rank, base=base, score=judge, **values
                )
                told |= dict.fromkeys(model.notes)
                made |= {
                    "energy": model.energy,
                    "dtype": model.dtype,
                    "rounding": model.rounding,
                    "soup": len(model.inputs),
                }
            else:
                report = merge_folders(
                    own,
                    target,
                    method=method,
                    rank=rank,
                    base=base,
                    buffer=buffer,
                    score=judge,
                    **values,
                )
                describe_merge(target)
                told |= dict.fromkeys(report.notes)
                made |= {"rank": report.rank, "energy": report.energy, "sha256": report.sha256}
                if isinstance(report, MergeReport) and report.error_bound_of_module:
                    made["error_bound"] = max(report.error_bound_of_module.values())
            reports.append(made)
    for line in told:
        note(line)
    return reports


def _targets(
    folder: Path,
    paths: Sequence[Path],
    method: str,
    k: int | None,
    rank: str,
    values: dict[str, Any],
    dense: bool,
    out: Path | None,
) -> list[Path]:
    """Where the merges of a population go, one folder for each group."""
    members = groups(range(len(paths)), k or len(paths))
    if not members:
        raise RunError(f"{folder}: {len(paths)} adapters are fewer than a group of {k}")
    label = Mitigation.model_construct(
        merge=method, k=len(members[0]), rank=rank, parameters=values
    ).label
    home = out or folder / ("merged-models" if dense else "merged") / label
    return [home / f"g{g:03d}" if k or out is None else home for g in range(len(members))]


def check_target(target: Path, of: Mapping[str, str], force: bool) -> None:
    """Refuse to merge over another merge, over what is no merge, or over a card that ftk has not
    written. Raises FolderError or CardError.

    of: the merge that would go there, see `planned`.
    """
    record = target / "merge.json"
    # older versions say it there alone
    known = merged_of(read_json(record)) if is_record(record, shapes.Merge) else None
    check_claim(target, MERGED, of, known=known, force=force)
    if not force:
        check_card(target)


class GuardError(RunError):
    """A merge that lies in another basin than its members."""


def validation_score(
    prompts: str, folder: Path, adapters: Sequence[Path], base: str | None, statistic: str
) -> Callable[[Path], float]:
    """What a greedy soup goes by: share of right answers, or mean log-probability of the references
    (nats), of an adapter folder.
    """
    known, base, evaluation = _setting([folder, *adapters[:1]], adapters[0], base)
    recipe = _one_suite("validation", prompts, base, evaluation, {"candidate": adapters}, known)
    asked = [
        prompt
        for prompt in read_prompts(recipe)[next(iter(recipe.data.suites))]
        if prompt.reference is not None
    ]
    if not asked:
        raise RunError(
            f"{prompts}: no prompt has a reference, so nothing is right or wrong; a "
            "greedy soup needs some"
        )
    check_cache(base)
    model = load_base(
        base,
        known.dtype if known else "float32",
        environment.resolve_device(known.device if known else "auto"),
    )
    known_scores: dict[str, float] = {}  # under a guard the same soup is made twice

    def score(adapter: Path) -> float:
        digest = read_adapter(adapter).sha256()
        if digest not in known_scores:
            known_scores[digest] = answered(adapter)
        return known_scores[digest]

    def answered(adapter: Path) -> float:
        with tempfile.TemporaryDirectory() as scratch:
            shard = Path(scratch) / "outcomes.parquet"
            unit = EvaluationUnit(
                (Subject("", "candidate", 0, (str(adapter),), ("",)),),
                "validation",
                1,
                1,
                None,
                shard,
            )
            evaluate_unit(
                unit, model, asked, combine=None, progress=lambda _: None, **evaluation.model_dump()
            )
            rows = read_outcomes([shard]).to_pylist()
        column = "correct" if statistic == "accuracy" else "reference_logprob"
        return sum(row[column] for row in rows) / len(rows)

    return score


def merge_request(
    path: Path, *, rank: str, out: Path, force: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Merge as a mergekit file asks; return the record and what of the file is not used.

    Raises RecipeError, AdapterError or FolderError in one line. force: as in `merge_sources`.
    """
    asked = mergekit_yaml.read_request(path)
    check_outputs([out], [path, *asked.adapters])
    check_target(
        out, planned(asked.adapters, asked.method, rank, asked.weights, **asked.parameters), force
    )
    report = merge_adapters(
        asked.adapters,
        out,
        method=asked.method,
        rank=rank,
        weights=asked.weights,
        base=asked.base,
        **asked.parameters,
    )
    describe_merge(out)
    found = {
        "out": str(out),
        "method": asked.method,
        "k": len(asked.adapters),
        "rank": report.rank,
        "energy": report.energy,
    }
    return found | {"sha256": report.sha256}, [*asked.notes, *report.notes]


def _collections(sources: Sequence[Path]) -> list[tuple[Path, list[Path]]]:
    """(folder for results, adapters) for each population that the sources mean; loose adapter
    folders are one population.
    """
    loose: list[Path] = []
    found = []
    for source in sources:
        if not source.exists():
            raise RunError(
                f"{source}: no such folder; name a run, a condition of it, or folders of "
                "PEFT adapters"
            )
        if is_run(source):
            conditions = [source / name for name in open_folder(source).conditions]
        else:
            conditions = [source] if (source / "replicas").is_dir() else []
        for condition in conditions:
            refuse_damaged(condition)
            if replicas := successful(condition):
                found.append((condition, [replica_folder(condition, r) for r in replicas]))
        if not conditions:
            loose += adapter_paths(source)
    if loose:
        found.append((sources[0] if len(sources) == 1 else Path("."), loose))
    if not found:
        raise RunError(f"{sources[0]}: no finished replicas there; `ftk train-replicas` makes them")
    return found


def refuse_damaged(condition: Path) -> None:
    """Refuse a population in which a finished replica is not, or no longer, what was recorded:
    nobody would see that it is left out.

    Raises RunError in one line.
    """
    for r, record in read_records(condition).items():
        if changed := changed_files(replica_folder(condition, r), record):
            raise RunError(
                f"{replica_folder(condition, r)}: {changed[0]} is not what was recorded; "
                f"`ftk run {condition.parent / 'recipe.yaml'} --out {condition.parent}` "
                "makes it again"
            )


def basins(
    sources: Sequence[Path],
    *,
    prompts: Sequence[str],
    base: str | None = None,
    k: int | None = None,
    method: str = "mean",
    merge: Callable[[Path, Sequence[Path], Path], Path] | None = None,
) -> list[tuple[Path, Basin]]:
    """Whether the members of each population lie in one basin, on prompts that have references.

    merge: (population, members, folder to write) -> the adapter that `method` makes of a group;
    None: their mean. Raises RunError, AdapterError, BaseError, BasinError or DataError in one line.
    """
    collections = _collections(sources)
    known, base, _ = _setting(sources, collections[0][1][0], base)
    check_cache(base)
    loaded = load_base(base, known.dtype if known else "float32")
    chat = (
        known is not None
        and bool(known.data.train)
        and is_chat(read_rows(known.data.train), known.data.format)
    )
    date = known.data.date if known else None
    asked = [
        prompt
        for source in prompts
        for prompt in read_suite(source, name=_suite_name(source), chat=chat, date=date)
    ]
    shape_of = layer_shapes(loaded.model)
    found = []
    for folder, paths in collections:
        adapters = [check_base(read_adapter(path), loaded, shape_of) for path in paths]
        if merge is None and not any(map(read_replica, paths)) and (twins := copies(adapters)):
            raise RunError(f"{twins}; leave one out")
        with tempfile.TemporaryDirectory() as scratch:
            merged = None
            if merge:
                members = groups(range(len(paths)), k or len(paths))
                made = [
                    merge(folder, [paths[i] for i in group], Path(scratch) / f"g{g:03d}")
                    for g, group in enumerate(members)
                ]
                merged = [read_adapter(path) for path in made]
            found.append(
                (folder, look(adapters, loaded, asked, k=k, method=method, merged_G=merged))
            )
    return found


def module_spreads(sources: Sequence[Path]) -> tuple[Modules, ...]:
    """The spread of weight changes by module, of each population, against the first one; kept in a
    run's results where it is one.

    Of a run, conditions that train all weights are left out: they have no factors to take inner
    products of. Raises RunError or AdapterError in one line.
    """
    populations, of_run = [], len(sources) == 1 and is_run(sources[0])
    collections = _collections(sources)
    for name, (folder, paths) in zip(
        unlike([folder for folder, _ in collections]), collections, strict=True
    ):
        if of_run and paths and (paths[0] / FULL).is_file():
            continue
        if len(paths) < 2:
            raise RunError(f"{folder}: {len(paths)} adapter; a spread takes two or more")
        shapes = [read_replica(path) for path in paths]
        numbers = [record.replica if record else i for i, record in enumerate(shapes)]
        seeds = [record.seeds if record else {} for record in shapes]
        adapters = [read_adapter(path) for path in paths]
        adapters, _ = under_one_naming(adapters, (adapters[0].base, adapters[0].revision))
        if not any(shapes) and (twins := copies(adapters)):
            raise RunError(f"{twins}; leave one out")
        populations.append(Population(name or "adapters", adapters, numbers, seeds))
    if not populations:
        raise RunError(f"{sources[0]}: none of its conditions trains adapters")
    found = modules(populations)
    if of_run:
        save_modules(sources[0], found)
    return found


def unlike(folders: Sequence[Path]) -> list[str]:
    """A name for each folder, no two alike: its own, and as many of those above it as it takes,
    `b-lora` beside `a-lora`.
    """
    whole = [folder.absolute().parts[1:] for folder in folders]
    for count in range(1, max(map(len, whole)) + 1):
        names = [
            re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(parts[-count:])) if count > 1 else folder.name
            for parts, folder in zip(whole, folders, strict=True)
        ]
        if len(set(names)) == len(names):
            return names
    return [f"{folder.name}-{i}" for i, folder in enumerate(folders)]


def _suite_name(prompts: str) -> str:
    shift = prompts.rpartition(":")[2]
    return shift if shift in SHIFTS else re.sub(r"[^A-Za-z0-9._-]", "-", Path(prompts).stem)


def evaluate_subjects(
    sources: Sequence[Path],
    *,
    prompts: str | None,
    base: str | None,
    answer_rule: str | None,
    max_new_tokens: int | None,
    out: Path | None,
    workers: int | None,
    console: Console,
    ensemble: Mapping[str, Any] | None = None,
) -> tuple[Path, Results]:
    """Let populations that are there already answer prompts; return the folder of outcomes and the
    results.

    A run answers its own suites with its own mitigations unless `prompts` says otherwise; any other
    folder of adapters is one population, numbered in the order of the names, of unknown seeds.
    ensemble: what each disjoint group of `k` adapters (None: all of them) does as one, in the words
    of a recipe: `{"ensemble": "probabilities", "k": 8}`.
    """
    if len(sources) == 1 and is_run(sources[0]) and not (prompts or base or out):
        if ensemble:
            raise RunError(
                f"{sources[0]}: a run makes the ensembles of its recipe; with --prompts "
                "SUITE its replicas are as any others"
            )
        if answer_rule or max_new_tokens:
            raise RunError(
                f"{sources[0]}: a run answers its own suites as its recipe says; --answer and "
                "--max-new-tokens go with --prompts SUITE"
            )
        recipe = open_folder(sources[0])
        for name in recipe.trained:  # a condition that is given is taken anew
            refuse_damaged(sources[0] / name)
        with open_run(
            recipe, sources[0], workers=workers, console=console, kind=kind_of_run(sources[0])
        ) as job:
            merge(job)
            evaluate(job)
            return sources[0], measure(job)
    if not prompts:
        raise RunError(
            "--prompts SUITE says what to ask: a .jsonl, .csv or .parquet file, or "
            "embedded:typical, embedded:near, embedded:far"
        )
    collections = _collections(sources)
    if base is None and not _home(sources):
        common_base([read_weights(path) for _, paths in collections for path in paths])
    known, base, evaluation = _setting(sources, collections[0][1][0], base)
    changes = {"answer": answer_rule, "max_new_tokens": max_new_tokens}
    evaluation = Evaluation.model_validate(
        evaluation.model_dump() | {key: value for key, value in changes.items() if value}
    )
    names = unlike([folder for folder, _ in collections]) if len(collections) > 1 else ["adapters"]
    for line in remarks([path for _, paths in collections for path in paths], base):
        console.note(line)
    paths_of = {name: paths for name, (_, paths) in zip(names, collections, strict=True)}
    recipe = _one_suite("evaluate", prompts, base, evaluation, paths_of, known)
    suite = next(iter(recipe.data.suites))
    if ensemble:
        recipe = recipe.model_copy(update={"mitigations": [_of_groups(ensemble, paths_of)]})
    folder = out or free_folder(Path("runs") / "evaluate", recipe)
    check_outputs([folder], sources)
    if ensemble:
        with open_run(recipe, folder, workers=workers, console=console, kind=EVALUATED) as job:
            for name in recipe.conditions:
                take(job, name)
            evaluate(job)
            return folder, measure(job)
    with open_run(recipe, folder, workers=workers, console=console, kind=EVALUATED) as job:
        asked = read_prompts(job.recipe)
        for note in changed_prompts(folder, asked):
            console.note(f"{note}; the prompts as they are now are asked")
        families = [[Subject("", "base", 0)]]
        for name, (_, paths) in zip(names, collections, strict=True):
            families.append(
                [
                    Subject(name, "replica", i, (str(path),), (weights_digest(path),))
                    for i, path in enumerate(paths)
                ]
            )
            if twins := copies(read_all(paths, base)):
                console.note(f"{twins}: the disagreement is that of fewer runs")
        with console.stage("evaluate"):
            answer(job, families, asked)
        shards = [
            unit.unit.shard
            for family in families
            for unit in answer_units(job, family, suite, asked[suite])
        ]
        designs = [
            ConditionDesign(name, range(len(paths)))
            for name, (_, paths) in zip(names, collections, strict=True)
        ]
        command = "ftk evaluate " + " ".join(map(str, sources)) + f" --prompts {prompts}"
        return folder, conclude(job, shards, designs, command=command)


def _of_groups(ensemble: Mapping[str, Any], paths_of: Mapping[str, Sequence[Path]]) -> Mitigation:
    """An ensemble of groups that every population has. Raises RunError in one line for what does
    not fit.
    """
    smallest = min(paths_of, key=lambda name: len(paths_of[name]))
    k, there = ensemble["k"], len(paths_of[smallest])
    if k is None and any(len(paths) != there for paths in paths_of.values()):
        raise RunError(
            f"{smallest}: {there} adapters, others have more; say with -k how large a group is"
        )
    if there < (k or 2):
        raise RunError(f"{smallest}: {there} adapters are fewer than a group of {k or 2}")
    if str(ensemble.get("weights")).startswith("accuracy"):
        raise RunError(
            "--set weights=accuracy:SUITE needs a second suite: write a recipe with "
            "`adapters:` and `mitigations:`"
        )
    try:
        return Mitigation.model_validate({**ensemble, "k": k or there})
    except ValidationError as error:
        first = error.errors()[0]
        known = [
            name
            for name in ("similarity", "threshold", "weights")
            if first["type"] == "extra_forbidden"
        ]
        text = (
            f"unknown setting{nearest(str(first['loc'][-1]), known)}"
            if known
            else first["msg"].removeprefix("Value error, ")
        )
        raise RunError(f"--ensemble {ensemble['ensemble']}: {text}") from None


def _home(sources: Sequence[Path]) -> Path | None:
    """The run that the sources lie in, if any."""
    return next(
        (path for source in sources for path in (source, source.parent) if is_run(path)), None
    )


def _setting(
    sources: Sequence[Path], adapter: Path, base: str | None
) -> tuple[Recipe | None, str, Evaluation]:
    """The recipe of the run that the sources lie in, if any; the base model; and how answers are
    given.
    """
    home = _home(sources)
    known = open_folder(home) if home else None
    base = base or (known.base if known else None) or read_weights(adapter).base
    if not base:
        raise RunError(f"{adapter}: does not say its base model; name it with --base")
    return (
        known,
        "embedded" if base == str(EMBEDDED) else base,
        known.evaluation if known else Evaluation(),
    )


def _one_suite(
    name: str,
    prompts: str,
    base: str,
    evaluation: Evaluation,
    adapters: Mapping[str, Sequence[Path]],
    known: Recipe | None,
) -> Recipe:
    """A recipe that asks one suite and trains nothing. known: of the run that the adapters are
    from.
    """
    return Recipe(
        name=name,
        base=base,
        data=Data(
            train="",
            suites={_suite_name(prompts): with_version(prompts)},
            date=known.data.date if known else None,
        ),
        conditions={
            condition: Given(adapters=[str(path) for path in paths])
            for condition, paths in adapters.items()
        },
        evaluation=evaluation,
    )


def answer_suites(
    recipe: Recipe, adapters: Sequence[Path], out: Path, *, workers: int | None, console: Console
) -> Path:
    """Let adapters answer all suites of a recipe, in order; return the folder of their outcomes
    (see `measure.read_design`).

    out: that folder, or where other answers are there already one beside it.
    """
    paths = [path for source in adapters for path in adapter_paths(source)]
    given = {"candidate": Given(adapters=[str(path) for path in paths])}
    alone = recipe.model_copy(
        update={
            "name": "candidate",
            "conditions": given,
            "mitigations": [],
            "criteria": [],
            "replicas": 2,
        }
    )
    out = free_folder(out, alone)
    with open_run(alone, out, workers=workers, console=console, kind=EVALUATED) as job:
        asked = read_prompts(job.recipe)
        family = [
            Subject("candidate", "replica", i, (str(path),), (weights_digest(path),))
            for i, path in enumerate(paths)
        ]
        if twins := copies(read_all(paths, recipe.base)):
            console.note(f"{twins}: the disagreement is that of fewer runs")
        for line in remarks(paths, recipe.base):
            console.note(line)
        with console.stage("evaluate"):
            answer(job, [family], asked)
        shards = [
            unit.unit.shard
            for suite, prompts in asked.items()
            for unit in answer_units(job, family, suite, prompts)
        ]
        save_design(
            out,
            shards,
            [ConditionDesign("candidate", range(len(paths)))],
            f"ftk gate --candidate {' '.join(map(str, adapters))}",
            prompts=asked,
        )
    return out
