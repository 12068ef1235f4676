"""Claims held against a run: an estimate of what each says, and a verdict only where the interval
gives one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit import statistics as st
from toolkit.errors import missing_extra
from toolkit.measurement.analyse import Arm, OutcomeTable, run_accuracies, zone
from toolkit.measurement.claims.schema import EVERY, ORIGIN, Claim, read_claims
from toolkit.measurement.run import DESIGN, outcome_table, read_run, thresholds_of
from toolkit.model.adapters import AdapterError
from toolkit.recipe import Recipe
from toolkit.record.folders import check_outputs
from toolkit.record.population import read_population, replica_folder, sha256_file
from toolkit.record.results import (
    Claims,
    ConditionDesign,
    Outlook,
    Tested,
    Thresholds,
    save_results,
)
from toolkit.report.html import write_report
from toolkit.statistics.planning.power import pilot_spread, replicas_for_range

CLAIMS = "claims.json"
RUNS = 10_000
"""runs that the outlook is for"""
UNRESOLVED = "not resolvable"
READ = 200
"""replicas whose weights are read: their inner products grow with the square"""


def hold_claims(folder: Path, file: Path = ORIGIN, *, runs: int = RUNS) -> Claims:
    """Outcomes and populations of a run -> claims.json, and a section in its report where that is
    there.

    Raises RecipeError for a claims file that cannot be read, MeasureError for a folder without
    outcomes; both in one line.
    """
    claims = read_claims(file)
    recipe, design = read_run(folder)
    check_outputs([folder / CLAIMS], [file])
    table, _ = outcome_table(folder, recipe, design)
    tested = [
        row for claim in claims for row in _tested(claim, folder, recipe, table, design.conditions)
    ]
    outlook = [
        row
        for condition in design.conditions
        for row in outlook_of(table, condition, runs, recipe.level, thresholds_of(recipe))
    ]
    assessed = Claims(
        file.name, recipe.level, runs, sha256_file(folder / DESIGN), tuple(tested), tuple(outlook)
    )
    save_results(folder / CLAIMS, assessed)
    if (folder / "results.json").is_file():
        write_report(folder)
    return assessed


# -- one claim -----------------------------------------------------------------------------------


def _tested(
    claim: Claim,
    folder: Path,
    recipe: Recipe,
    table: OutcomeTable,
    designs: Sequence[ConditionDesign],
) -> Iterator[Tested]:
    """A row for each condition that the claim speaks of."""
    where = f"{claim.prompts}, {claim.category}" if claim.category else claim.prompts
    row = Tested(
        claim.name, claim.says, "", claim.quantity, where, claim.ends, None, "not in this run"
    )
    meant = [
        candidate
        for candidate in designs
        if claim.about.means(
            candidate.name, recipe.trained.get(candidate.name), _varied(recipe, candidate.name)
        )
    ]
    if not meant:
        yield replace(row, remark="no condition of this run is meant")
    for design in meant:
        of_condition = replace(row, condition=design.name)
        if claim.behaviour:
            yield _behaviour(of_condition, claim, table, design, recipe.level)
        else:
            estimate, remark = _weights(claim, folder, recipe, design)
            outcome = verdict(estimate, row.claimed) if estimate else row.verdict
            yield replace(of_condition, estimate=estimate, verdict=outcome, remark=remark)


def _varied(recipe: Recipe, name: str) -> bool:
    condition = recipe.trained.get(name)
    return condition is None or bool(condition.crossed or condition.teacher or recipe.vary_of(name))


def verdict(estimate: st.Estimate, claimed: tuple[float, float] | None) -> str:
    """The interval within the claimed range: supported; wholly outside: contradicted; anything else
    is not resolvable.
    """
    if claimed is None:
        return "measured"
    low, high = estimate.low, estimate.high
    if not estimate.conclusive or low is None or high is None:
        return UNRESOLVED
    if claimed[0] <= low and high <= claimed[1]:
        return "supported"
    return "contradicted" if high < claimed[0] or low > claimed[1] else UNRESOLVED


def _behaviour(
    row: Tested, claim: Claim, table: OutcomeTable, design: ConditionDesign, level: float
) -> Tested:
    """The agreement or disagreement of two runs, for fresh prompts and for these alone, and what it
    would take to decide.

    Where no two runs differ, the interval for fresh prompts is that of runs such as these (see
    `st.disagreement`); the verdict allows for kinds of runs that are not among them, too
    (`st.disagreement_for_verdict`).
    """
    index_P = _prompts(table, claim)
    whole = list(design.everyone or design.replicas)
    arm, levels = table.arm(design.name, "replica", whole), design.sources
    if index_P is None or arm is None or len(arm.answer_RP) < 2:
        return replace(
            row,
            remark="no such prompts in this run; there are "
            f"{', '.join(dict.fromkeys([*table.shifts, *table.suites]))}",
        )
    answer_RP, cluster_P = arm.on(index_P).answer_RP, table.cluster_P[index_P]
    differ, alone = (
        st.disagreement(
            answer_RP, cluster_P=cluster_P, level=level, fresh_prompts=fresh, levels=levels
        )
        for fresh in (True, False)
    )
    turned = claim.quantity == "agreement"
    fresh_RP = answer_RP[st.independent_runs(levels, len(whole))]
    decides = st.disagreement_for_verdict(differ, fresh_RP)
    estimate, alone, decides = (
        st.complement(disagreement) if turned else disagreement
        for disagreement in (differ, alone, decides)
    )
    of_runs, outcome = (verdict(disagreement, claim.ends) for disagreement in (alone, decides))
    remark = (
        _what_it_takes(claim, differ, fresh_RP, cluster_P, level) if outcome == UNRESOLVED else ""
    )
    return replace(
        row, estimate=estimate, verdict=outcome, remark=remark, alone=alone, alone_verdict=of_runs
    )


def _what_it_takes(
    claim: Claim, differ: st.Estimate, answer_RP: np.ndarray, cluster_P: np.ndarray, level: float
) -> str:
    """How many replicas and prompts would decide a claim that these do not."""
    assert claim.ends is not None
    low, high = (
        (1 - claim.ends[1], 1 - claim.ends[0]) if claim.quantity == "agreement" else claim.ends
    )
    spread = pilot_spread(answer_RP, cluster_P=cluster_P)
    if spread is None:
        return f"at least {differ.needed or st.MIN_REPLICAS} replicas are needed"
    size = replicas_for_range(spread, low, high, level=level)
    if size.replicas is None:
        return (
            "the estimate is too near to an edge of what is claimed for any number of "
            "replicas and prompts"
        )
    prompts = spread.parts.n_clusters
    if spread.value in (0.0, 1.0):
        # from what every pair of runs showed
        near, far = (low, high) if spread.value == 0.0 else (1 - high, 1 - low)
        # the inverse of `zero_event_bound`
        pairs = math.ceil(math.log(1 - level) / math.log1p(-(near or far)))
        lacking = [f"{size.prompts:,} independent prompts (there are {prompts:,})"] * (
            size.prompts > prompts
        )
        lacking += [f"{2 * pairs:,} replicas (there are {differ.n_replicas:,})"] * (
            2 * pairs > differ.n_replicas
        )
        return f"would take about {' and '.join(lacking)} with the same outcome on all"
    on_prompts = (
        f" and {size.prompts:,} independent prompts (there are {prompts:,})"
        if size.prompts > prompts
        else ""
    )
    return f"would take about {size.replicas:,} replicas{on_prompts}"


def _prompts(table: OutcomeTable, claim: Claim) -> np.ndarray | None:
    every = {EVERY: np.arange(len(table.prompts))}
    index_P = (table.shifts | table.suites | every).get(claim.prompts)
    if index_P is not None and claim.category is not None:
        index_P = index_P[[table.prompts[i][1].category == claim.category for i in index_P]]
    return index_P if index_P is not None and len(index_P) else None


def _weights(
    claim: Claim, folder: Path, recipe: Recipe, design: ConditionDesign
) -> tuple[st.Estimate | None, str]:
    replicas = list(design.replicas)
    if claim.quantity == "files":
        population = read_population(folder / design.name)
        files = [_file(population[r].sha256) for r in replicas if r in population]
        estimate = st.files_differ(files, level=recipe.level)
        return (estimate, estimate.note) if files else (None, "its replicas are not in the folder")
    try:  # here: what takes torch
        from toolkit.model.base import load_base
        from toolkit.model.full import FullModel, read_weights
        from toolkit.model.grams import gram, whole_gram
    except ImportError as error:
        missing = missing_extra(error, "reading weights")
        if missing is None:
            raise
        return None, str(missing)
    try:
        members = [read_weights(replica_folder(folder / design.name, r)) for r in replicas[:READ]]
        models = [model for model in members if isinstance(model, FullModel)]
        if models:
            base = load_base(
                recipe.base, recipe.dtype if recipe.dtype != "auto" else "float32", "cpu"
            ).model
            inner_RR = whole_gram(
                models, {name: weight.detach() for name, weight in base.named_parameters()}
            )
        else:
            inner_RR = gram([model for model in members if not isinstance(model, FullModel)])
    except AdapterError as error:
        return None, f"the weights of its replicas cannot be read: {error}"
    estimate = st.weight_spread(inner_RR, level=recipe.level)
    return estimate, estimate.note


def _file(sha256: dict[str, str]) -> str:
    """Hash of the weights in a replica's own folder; averages of its trajectory lie deeper."""
    return " ".join(
        digest
        for name, digest in sorted(sha256.items())
        if "/" not in name and name.endswith(".safetensors")
    )


# -- many runs -----------------------------------------------------------------------------------


def outlook_of(
    table: OutcomeTable, design: ConditionDesign, runs: int, level: float, thresholds: Thresholds
) -> Iterator[Outlook]:
    """What to expect of `runs` runs of a condition on every shift and category. Nothing of fewer
    than two replicas.
    """
    arm = table.arm(design.name, "replica", list(design.replicas))
    whole = table.arm(design.name, "replica", list(design.everyone or design.replicas))
    if arm is None or len(arm.answer_RP) < 2:
        return
    places = {(shift, ""): index_P for shift, index_P in table.shifts.items()} | table.parts
    order = list(table.shifts)
    for (shift, category), index_P in sorted(
        places.items(), key=lambda place: (order.index(place[0][0]), place[0][1] != "")
    ):
        options = {"cluster_P": table.cluster_P[index_P], "level": level}
        differ = st.disagreement(
            (whole or arm).on(index_P).answer_RP, levels=design.sources, **options
        )
        yield _outlook(
            design.name, shift, category, arm.on(index_P), differ, options, runs, thresholds
        )


def _outlook(
    condition: str,
    shift: str,
    category: str,
    arm: Arm,
    differ: st.Estimate,
    options: dict,
    runs: int,
    thresholds: Thresholds,
) -> Outlook:
    scores = (
        [np.nan if score is None else score for score in run_accuracies(arm.correct_RP)]
        if arm.marked
        else None
    )
    return Outlook(
        condition,
        shift,
        category,
        arm.answer_RP.shape[1],
        zone(st.disagreement_for_verdict(differ, arm.answer_RP), thresholds.of(category)),
        differ,
        st.deviation(arm.answer_RP, **options),
        st.distinct_answers(arm.answer_RP, runs, **options),
        None if scores is None else st.accuracy_floor(np.array(scores)),
    )
