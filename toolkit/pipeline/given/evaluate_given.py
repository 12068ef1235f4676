"""`ftk evaluate`: a run, adapters, merges or ensembles of them answer the user's prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from toolkit.answer.evaluate import Subject
from toolkit.measurement.run import changed_prompts, read_prompts, save_design
from toolkit.merging import (
    common_base,
)
from toolkit.model.adapters import adapter_paths
from toolkit.model.adopt import read_all, remarks
from toolkit.model.full import copies, read_weights
from toolkit.pipeline import evaluate, measure, merge
from toolkit.pipeline.answer_prompts import answer, answer_units, weights_digest
from toolkit.pipeline.assemble_results import conclude
from toolkit.pipeline.given.sources import (
    collections_of,
    home_of,
    one_suite,
    refuse_damaged,
    setting_of,
    unlike,
)
from toolkit.pipeline.job import Console, RunError, open_folder
from toolkit.pipeline.opening import free_folder, kind_of_run, open_run
from toolkit.pipeline.populations import adopt_condition
from toolkit.recipe import Evaluation, Given, Mitigation, Recipe
from toolkit.record.folders import (
    EVALUATED,
    check_outputs,
    is_run,
)
from toolkit.record.results import ConditionDesign, Results
from toolkit.text.nearest import nearest


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
    """Let existing populations answer prompts; return the folder of outcomes and the results.

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
    collections = collections_of(sources)
    if base is None and not home_of(sources):
        common_base([read_weights(path) for _, paths in collections for path in paths])
    run_recipe, base, evaluation = setting_of(sources, collections[0][1][0], base)
    changes = {"answer": answer_rule, "max_new_tokens": max_new_tokens}
    evaluation = Evaluation.model_validate(
        evaluation.model_dump() | {key: value for key, value in changes.items() if value}
    )
    names = unlike([folder for folder, _ in collections]) if len(collections) > 1 else ["adapters"]
    for line in remarks([path for _, paths in collections for path in paths], base):
        console.note(line)
    paths_of = {name: paths for name, (_, paths) in zip(names, collections, strict=True)}
    recipe = one_suite("evaluate", prompts, base, evaluation, paths_of, run_recipe)
    suite = next(iter(recipe.data.suites))
    if ensemble:
        recipe = recipe.model_copy(update={"mitigations": [_of_groups(ensemble, paths_of)]})
    folder = out or free_folder(Path("runs") / "evaluate", recipe)
    check_outputs([folder], sources)
    if ensemble:
        with open_run(recipe, folder, workers=workers, console=console, kind=EVALUATED) as job:
            for name in recipe.conditions:
                adopt_condition(job, name)
            evaluate(job)
            return folder, measure(job)
    with open_run(recipe, folder, workers=workers, console=console, kind=EVALUATED) as job:
        prompts_of = read_prompts(job.recipe)
        for note in changed_prompts(folder, prompts_of):
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
            answer(job, families, prompts_of)
        shards = [
            unit.unit.shard
            for family in families
            for unit in answer_units(job, family, suite, prompts_of[suite])
        ]
        designs = [
            ConditionDesign(name, range(len(paths)))
            for name, (_, paths) in zip(names, collections, strict=True)
        ]
        command = "ftk evaluate " + " ".join(map(str, sources)) + f" --prompts {prompts}"
        return folder, conclude(job, shards, designs, command=command)


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
        prompts_of = read_prompts(job.recipe)
        family = [
            Subject("candidate", "replica", i, (str(path),), (weights_digest(path),))
            for i, path in enumerate(paths)
        ]
        if twins := copies(read_all(paths, recipe.base)):
            console.note(f"{twins}: the disagreement is that of fewer runs")
        for line in remarks(paths, recipe.base):
            console.note(line)
        with console.stage("evaluate"):
            answer(job, [family], prompts_of)
        shards = [
            unit.unit.shard
            for suite, prompts in prompts_of.items()
            for unit in answer_units(job, family, suite, prompts)
        ]
        save_design(
            out,
            shards,
            [ConditionDesign("candidate", range(len(paths)))],
            f"ftk gate --candidate {' '.join(map(str, adapters))}",
            prompts=prompts_of,
        )
    return out


def _of_groups(ensemble: Mapping[str, Any], paths_of: Mapping[str, Sequence[Path]]) -> Mitigation:
    """An ensemble of groups that every population has. Raises RunError in one line for what does
    not fit.
    """
    smallest = min(paths_of, key=lambda name: len(paths_of[name]))
    k, n_adapters = ensemble["k"], len(paths_of[smallest])
    if k is None and any(len(paths) != n_adapters for paths in paths_of.values()):
        raise RunError(
            f"{smallest}: {n_adapters} adapters, others have more; say with -k how large a group is"
        )
    if n_adapters < (k or 2):
        raise RunError(f"{smallest}: {n_adapters} adapters are fewer than a group of {k or 2}")
    if str(ensemble.get("weights")).startswith("accuracy"):
        raise RunError(
            "--set weights=accuracy:SUITE needs a second suite: write a recipe with "
            "`adapters:` and `mitigations:`"
        )
    try:
        return Mitigation.model_validate({**ensemble, "k": k or n_adapters})
    except ValidationError as error:
        first = error.errors()[0]
        settings = [
            name
            for name in ("similarity", "threshold", "weights")
            if first["type"] == "extra_forbidden"
        ]
        text = (
            f"unknown setting{nearest(str(first['loc'][-1]), settings)}"
            if settings
            else first["msg"].removeprefix("Value error, ")
        )
        raise RunError(f"--ensemble {ensemble['ensemble']}: {text}") from None
