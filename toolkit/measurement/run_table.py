"""Metrics of runs, one row a run: mean, spread and range of each, and conditions against each
other. No prompts, no model.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import toolkit
from toolkit import statistics as st
from toolkit.measurement.predictions import PredictionsError, RunScores, RunTable, with_factors
from toolkit.measurement.predictions.layout import listed
from toolkit.record.folders import MEASURED, check_claim, check_outputs, claim, made_of
from toolkit.record.results import About, RunMetric, RunMetricContrast, RunMetrics, save_results
from toolkit.record.words import figure, number, percent, unpaired
from toolkit.text import escape, tables
from toolkit.text.nearest import counted, nearest

METRICS = "metrics.json"


def measure_run_table(
    table: RunTable,
    path: Path,
    out: Path | None,
    *,
    in_memory: bool = False,
    baseline: str | None = None,
    base: str | None = None,
    failed: Sequence[str] = (),
    paired: bool = False,
    factors: Path | None = None,
    level: float = 0.95,
    force: bool = False,
) -> RunMetrics:
    """Metrics of runs -> metrics.json in `out`, if any.

    in_memory: `path` is a name, not a file.
    baseline: the condition that the others are held against (default: the first). base: the
    condition whose one run is the base model, over which the others gain. failed: runs that are in
    no figure, `RUN` or `CONDITION/RUN`. paired: runs of one name share their seeds.
    factors: a table that says which level each run has in each source; of runs that share one only
    some that share none are measured.
    force: take a folder that is not ftk's, or has results of something else. Raises
    PredictionsError or FolderError in one line.
    """
    of = {"source": "metrics in memory"} if in_memory else made_of(path)
    if out is not None:
        check_outputs([out / METRICS], [path, *([factors] if factors else [])])
        check_claim(out, MEASURED, of, force=force)
    if factors is not None:
        table = with_factors(table, factors)
    arms = _without(table.arms, failed, path)
    for name in filter(None, (baseline, base)):
        if name not in arms:
            raise PredictionsError(f"{path}: no condition {name!r}{nearest(name, list(arms))}")
    fixed = arms.pop(base) if base else None
    if fixed is not None and len(fixed.runs) != 1:
        raise PredictionsError(
            f"{path}: the base {base!r} has {len(fixed.runs)} runs; it is one model: keep "
            "one run of it"
        )
    if empty := next((name for name, arm in arms.items() if not arm.runs), None) or (
        "" if arms else base
    ):
        raise PredictionsError(
            f"{path}: no run beside the failed ones and the base is left of {empty}; "
            "there is nothing to measure"
        )
    sources = {name: st.shared_sources(arm.factors, len(arm.runs)) for name, arm in arms.items()}
    whole, arms = arms, {name: _independent(arm) for name, arm in arms.items()}
    sharing = [
        f"{name}: of {len(whole[name].runs)} runs some share "
        f"{' or '.join(sources[name])}; its figures are of {len(arm.runs)} of them that "
        f"share none ({listed(arm.runs)})"
        for name, arm in arms.items()
        if len(arm.runs) < len(whole[name].runs)
    ]
    names = sorted(arms, key=lambda name: name != (baseline or next(iter(arms))))
    if paired and len(names) < 2:
        raise PredictionsError(
            f"{path}: --paired is about runs of several conditions, and there is one; leave it out"
        )
    first = arms[names[0]]
    settings = _settings(arms, table.metrics)
    measured = [metric for metric in table.metrics if metric not in settings]
    rows = [
        _metric(name, arms[name], metric, fixed, level) for name in names for metric in measured
    ]
    contrasts = [
        _contrast(name, arms[name], names[0], first, metric, paired, level)
        for name in names[1:]
        for metric in measured
    ]
    adjusted = st.holm([contrast.mean_change.p for contrast in contrasts])
    contrasts = [
        replace(c, p_adjusted=None if np.isnan(p) else float(p))
        for c, p in zip(contrasts, adjusted, strict=True)
    ]
    excluded = [
        f"{name}: counted as failed, and in no figure: {', '.join(arm.failed)}"
        for name, arm in arms.items()
        if arm.failed
    ]
    lacking = [
        f"{row.condition}, {row.metric}: {lack} of {len(row.scores)} runs have no number, "
        "and its figures are of the others"
        for row in rows
        if (lack := sum(score is None or not math.isfinite(score) for score in row.scores))
    ]
    apart = [
        unpaired(name, names[0])
        for name in dict.fromkeys(c.condition for c in contrasts if paired and not c.paired)
    ]
    words = [
        ("--baseline", baseline),
        ("--base", base),
        ("--factors", factors),
        *(("--failed", name) for name in failed),
    ]
    options = [word for option, value in words if value for word in (option, str(value))] + [
        "--paired"
    ] * paired
    about = About(
        toolkit.__version__,
        recipe=path.name,
        command="" if in_memory else shlex.join(["ftk", "measure", str(path), *options]),
    )
    metrics = RunMetrics(
        about,
        level,
        tuple(rows),
        tuple(contrasts),
        (*table.notes, *settings.values(), *excluded, *sharing, *lacking, *apart),
    )
    if out is not None:
        claim(out, MEASURED, of, force=force)
        save_results(out / METRICS, metrics)
    return metrics


def _settings(arms: Mapping[str, RunScores], metrics: Sequence[str]) -> dict[str, str]:
    """Columns of numbers that are no figures of runs, each with what is said of it: all runs of
    every condition have one and the same. Where that is so of all columns, none is left aside.
    """
    remarks = {}
    for metric in metrics:
        values = {name: set(arm.scores[metric]) for name, arm in arms.items()}
        if (
            all(len(of) == 1 for of in values.values())
            and max(len(a.runs) for a in arms.values()) > 1
        ):
            measured = ", ".join(f"{next(iter(of)):g} ({name})" for name, of in values.items())
            remarks[metric] = (
                f"{metric} is the same in all runs of a condition, so it is taken as a setting "
                f"and not measured: {measured}"
            )
    return remarks if len(remarks) < len(metrics) else {}


def _without(
    arms: Mapping[str, RunScores], failed: Sequence[str], path: Path
) -> dict[str, RunScores]:
    """The arms without the runs that the user says have failed."""
    left = dict(arms)
    for name in failed:
        owners = [
            condition
            for condition, arm in left.items()
            if name in arm.runs or name.removeprefix(f"{condition}/") in arm.runs
        ]
        if len(owners) != 1:
            names = [run for arm in arms.values() for run in arm.runs]
            why = (
                f"runs of {', '.join(owners)} have this name; write {owners[0]}/{name}"
                if owners
                else f"no run has it{nearest(name, names)}"
            )
            raise PredictionsError(f"{path}: --failed {name}: {why}")
        arm = left[owners[0]]
        run = name if name in arm.runs else name.removeprefix(f"{owners[0]}/")
        keep = [row for row, other in enumerate(arm.runs) if other != run]
        left[owners[0]] = replace(arm.only(keep), failed=(*arm.failed, run))
    return left


def _independent(arm: RunScores) -> RunScores:
    """Of runs that share levels of sources a set that shares none: what is measured here has a run
    as its unit.
    """
    return arm.only(st.independent_runs(arm.factors, len(arm.runs)).tolist())


def _metric(
    condition: str, arm: RunScores, metric: str, fixed: RunScores | None, level: float
) -> RunMetric:
    score_R = arm.scores[metric]
    known_R = score_R[np.isfinite(score_R)]
    ends = (float(known_R.min()), float(known_R.max())) if len(known_R) else (None, None)
    outlying = [
        arm.runs[row] for row in np.flatnonzero(np.isfinite(score_R))[st.far_from_median(known_R)]
    ]
    gain = (
        st.run_mean(score_R - fixed.scores[metric][0], level=level) if fixed is not None else None
    )
    figures = st.run_mean(score_R, level=level), st.run_sd(score_R, level=level)
    return RunMetric(
        condition,
        metric,
        arm.runs,
        tuple(score_R.tolist()),
        len(arm.failed),
        *figures,
        *ends,
        gain,
        tuple(outlying),
    )


def _contrast(
    condition: str,
    b: RunScores,
    baseline: str,
    a: RunScores,
    metric: str,
    paired: bool,
    level: float,
) -> RunMetricContrast:
    common = [run for run in b.runs if run in a.runs]
    by_pairs = paired and len(common) >= 2
    score_b, score_a = (
        arm.scores[metric][[arm.runs.index(run) for run in common]]
        if by_pairs
        else arm.scores[metric]
        for arm in (b, a)
    )
    mean = st.run_mean_change(score_b, score_a, paired=by_pairs, level=level)
    if min(len(score_b), len(score_a)) < 2:
        return RunMetricContrast(condition, baseline, metric, by_pairs, mean)
    spread = st.variance_contrast(score_b, score_a, paired=by_pairs, level=level)
    return RunMetricContrast(
        condition, baseline, metric, by_pairs, mean, spread.difference, spread.ratio
    )


def metrics_text(report: RunMetrics) -> str:
    """The figures in plain ASCII, a line a metric."""
    lines = []
    for condition in dict.fromkeys(row.condition for row in report.metrics):
        rows = [row for row in report.metrics if row.condition == condition]
        failed = f", {rows[0].n_failed} failed" if rows[0].n_failed else ""
        lines.append(f"{condition}: {counted(len(rows[0].runs), 'run')}{failed}")
        table = [["metric", "mean", "SD between runs", "range"]]
        table += [
            [
                row.metric,
                figure(row.mean, "e"),
                figure(row.sd, "e"),
                f"{number(row.lowest, 'e')} to {number(row.highest, 'e')}",
            ]
            for row in rows
        ]
        lines += tables.plain(table)
        metrics_of: dict[str, dict[str, None]] = {}
        for row in rows:
            for estimate in (row.mean, row.sd, row.gain_over_base):
                if estimate is not None and not estimate.conclusive:
                    needs = f"needs {counted(estimate.needed, 'run')}" if estimate.needed else ""
                    reason = estimate.note or needs or "inconclusive"
                    metrics_of.setdefault(reason, {})[row.metric] = None
        lines += [f" ? {reason}: {listed(metrics)}" for reason, metrics in metrics_of.items()]
        for row in rows:
            if row.gain_over_base is not None:
                gain = figure(row.gain_over_base, "e", signed=True)
                lines.append(f" {row.metric} over the base by {gain}")
            if row.suspects:
                lines.append(
                    f" {row.metric} far off the others: "
                    f"{', '.join(row.suspects)}; did they fail? then --failed NAME"
                )
        lines.append("")
    for c in report.contrasts:
        spread = f"; SD by {figure(c.sd_change, 'e', signed=True)}" if c.sd_change else ""
        lines.append(
            f"{c.condition} against {c.baseline}, {c.metric}: mean by "
            f"{figure(c.mean_change, 'e', signed=True)}{spread}"
        )
    lines.append(f"{percent(report.level)} intervals in brackets, each by itself; '?' inconclusive")
    return escape.lines([*lines, *(f"note: {note}" for note in report.notes)])
