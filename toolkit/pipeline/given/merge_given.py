"""`ftk merge` (also with --config): merge existing adapters, all in one or in groups."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit import environment
from toolkit.answer.evaluate import EvaluationUnit, Subject, evaluate_unit
from toolkit.errors import GATE_SAID_NO
from toolkit.measurement.run import read_prompts
from toolkit.merging import (
    MergeReport,
    find_method,
    merge_adapters,
    merge_folders,
    merge_into_base,
    merged_of,
    mergekit_yaml,
    planned,
)
from toolkit.model.adapters import read_adapter
from toolkit.model.base import check_cache, load_base
from toolkit.pipeline.given.inspect_given import basins
from toolkit.pipeline.given.sources import collections_of, one_suite, setting_of
from toolkit.pipeline.job import RunError
from toolkit.pipeline.merge_groups import describe_merge
from toolkit.recipe import Mitigation
from toolkit.record import shapes
from toolkit.record.folders import (
    MERGED,
    MERGES,
    check_claim,
    check_outputs,
    claim,
    is_record,
)
from toolkit.record.outcomes import read_outcomes
from toolkit.record.plain import read_json
from toolkit.record.population import (
    groups,
)
from toolkit.report.card import check_card


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
    reports, notes = [], dict[str, None]()
    _, values = find_method(method, parameters)
    if dense and buffer:
        raise RunError("--buffer bounds the sum of an adapter: leave it out with --dense")
    if (method == "greedy_soup") != (prompts is not None):
        raise RunError(
            "--prompts SUITE belongs to greedy_soup, which needs it: what its scores are taken on"
        )
    collections = collections_of(sources)
    targets = {
        folder: _targets(folder, paths, method, k, rank, values, dense, out)
        for folder, paths in collections
    }
    everything = [path for of_folder in targets.values() for path in of_folder]
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
    for folder, members in own_of.items():
        for target, group in zip(targets[folder], members, strict=True):
            check_target(
                target, planned(group, method, rank, buffer=buffer, dense=dense, **values), force
            )
    judges = {
        folder: validation_score(prompts, folder, paths, base, score) if prompts else None
        for folder, paths in collections
    }
    if guard:

        def tried(folder: Path, members: Sequence[Path], to: Path) -> Path:
            return merge_adapters(
                members,
                to,
                method=method,
                rank=rank,
                base=base,
                buffer=buffer,
                score=judges[folder],
                **values,
            ).out

        looks = basins(sources, prompts=guard, base=base, k=k, method=method, merge=tried)
        for folder, basin in looks:
            for reason in basin.reasons or ["no barrier on these prompts"]:
                note(f"guard: {folder}: {basin.verdict}: {reason}")
        if strict and any(basin.verdict == "warn" for _, basin in looks):
            raise GuardError("nothing was merged: leave --strict out to merge anyway")
    for folder, _ in collections:
        size, judge = len(own_of[folder][0]), judges[folder]
        if out is not None and k:
            claim(out, MERGES, force=force)
        for target, members in zip(targets[folder], own_of[folder], strict=True):
            made: dict[str, Any] = {"out": str(target), "method": method, "k": size}
            if dense:
                model = merge_into_base(
                    members, target, method=method, rank=rank, base=base, score=judge, **values
                )
                notes |= dict.fromkeys(model.notes)
                made |= {
                    "energy": model.energy,
                    "dtype": model.dtype,
                    "rounding": model.rounding,
                    "soup": len(model.inputs),
                }
            else:
                report = merge_folders(
                    members,
                    target,
                    method=method,
                    rank=rank,
                    base=base,
                    buffer=buffer,
                    score=judge,
                    **values,
                )
                describe_merge(target)
                notes |= dict.fromkeys(report.notes)
                made |= {"rank": report.rank, "energy": report.energy, "sha256": report.sha256}
                if isinstance(report, MergeReport) and report.error_bound_of_module:
                    made["error_bound"] = max(report.error_bound_of_module.values())
            reports.append(made)
    for line in notes:
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
    merged = merged_of(read_json(record)) if is_record(record, shapes.Merge) else None
    check_claim(target, MERGED, of, made_before=merged, force=force)
    if not force:
        check_card(target)


class GuardError(RunError):
    """A merge that lies in another basin than its members."""

    exit_code = GATE_SAID_NO


def validation_score(
    prompts: str, folder: Path, adapters: Sequence[Path], base: str | None, statistic: str
) -> Callable[[Path], float]:
    """What a greedy soup goes by: share of right answers, or mean log-probability of the references
    (nats), of an adapter folder.
    """
    run_recipe, base, evaluation = setting_of([folder, *adapters[:1]], adapters[0], base)
    recipe = one_suite("validation", prompts, base, evaluation, {"candidate": adapters}, run_recipe)
    with_reference = [
        prompt
        for prompt in read_prompts(recipe)[next(iter(recipe.data.suites))]
        if prompt.reference is not None
    ]
    if not with_reference:
        raise RunError(
            f"{prompts}: no prompt has a reference, so nothing is right or wrong; a "
            "greedy soup needs some"
        )
    check_cache(base)
    model = load_base(
        base,
        run_recipe.dtype if run_recipe else "float32",
        environment.resolve_device(run_recipe.device if run_recipe else "auto"),
    )
    scores: dict[str, float] = {}  # under a guard the same soup is made twice

    def score(adapter: Path) -> float:
        digest = read_adapter(adapter).sha256()
        if digest not in scores:
            scores[digest] = answered(adapter)
        return scores[digest]

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
                unit,
                model,
                with_reference,
                combine=None,
                progress=lambda _: None,
                **evaluation.model_dump(),
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
    request = mergekit_yaml.read_request(path)
    check_outputs([out], [path, *request.adapters])
    check_target(
        out,
        planned(request.adapters, request.method, rank, request.weights, **request.parameters),
        force,
    )
    report = merge_adapters(
        request.adapters,
        out,
        method=request.method,
        rank=rank,
        weights=request.weights,
        base=request.base,
        **request.parameters,
    )
    describe_merge(out)
    merged = {
        "out": str(out),
        "method": request.method,
        "k": len(request.adapters),
        "rank": report.rank,
        "energy": report.energy,
    }
    return merged | {"sha256": report.sha256}, [*request.notes, *report.notes]
