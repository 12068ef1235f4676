"""results.json as one HTML file for people."""

from itertools import combinations, islice
from pathlib import Path
from typing import NamedTuple

from toolkit.record import words
from toolkit.record.folders import FolderError, check_sealed, is_report, read_marker
from toolkit.record.population import sha256_file, write_text
from toolkit.record.results import (
    Claims,
    ConditionResult,
    Judgement,
    Procedure,
    Results,
    Trade,
    is_loss,
    load_claims,
    load_results,
)
from toolkit.report import charts
from toolkit.report.sweeps import Control, controls, sweeps
from toolkit.statistics import MIN_GROUPS, Estimate
from toolkit.text import escape, tables

DRAWN = 40
"""Categories of a shift in the chart; the tables have all of them."""
PICTURED = 20
"""Conditions with charts; the tables have all of them."""
BEST = 2
"""Mitigations drawn beside the single replica in the chart by category."""


def write_report(run: Path | str) -> Path:
    """RUN/results.json, and claims.json where it is of the same outcomes -> RUN/report.html.

    Raises FolderError where a report.html is there that ftk has not written.
    """
    run = Path(run)
    check_sealed(run)
    path = run / "report.html"
    if path.is_file() and read_marker(run) is None and not is_report(path):
        raise FolderError(f"{path}: ftk has not written it; move it away")
    claims = load_claims(run / "claims.json") if (run / "claims.json").is_file() else None
    if claims and (
        (run / "design.json").is_file() and claims.design != sha256_file(run / "design.json")
    ):
        claims = None  # the run has gone on since
    write_text(run / "report.html", render(load_results(run / "results.json"), claims))
    return run / "report.html"


def render(results: Results, claims: Claims | None = None) -> str:
    """One file without a network: charts inline, no script, and every text of a model escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("toolkit.report"),
        autoescape=True,
        finalize=escape.seen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "words": words,
        "number": words.number,
        "interval": words.interval,
        "price": _price,
        "too_few": _too_few,
        "judged": _judged,
        "criteria_rows": _criteria_rows,
        "metric_rows": _metric_rows,
        "multiplicity": _multiplicity,
        "source_figures": _source_figures,
        "module_table": lambda spread: Markup(tables.html(words.module_rows(spread))),
        "trade_rows": _trade_rows,
    }
    pictured, others = results.conditions[:PICTURED], results.conditions[PICTURED:]
    drawn = [
        (condition, {key: Markup(svg) for key, svg in _charts(results, condition).items()})
        for condition in pictured
    ]
    without = f"Charts are drawn for the first {PICTURED} of {len(results.conditions)} conditions."
    drawn += [(condition, {"category": without}) for condition in others]
    return environment.get_template("report.html.j2").render(
        results=results,
        conditions=drawn,
        methods=_methods(results),
        claims=claims,
        figures={name: Markup(svg) for name, svg in figures(results).items()},
    )


def figures(results: Results) -> dict[str, str]:
    """Figures over all conditions, as SVG, those that there is something for: `controls`,
    `dependence`, `sources`.
    """
    drawn = {}
    crossed = {
        f"{condition.name} ({words.replicas_in_words(condition)})": _parts(condition)
        for condition in results.conditions
        if condition.sources
    }
    if any(crossed.values()):
        drawn["sources"] = charts.by_source({name: rows for name, rows in crossed.items() if rows})
    if results.contrasts and len(rows := controls(results)) > 1:
        target, baseline = results.shifts[-1], results.conditions[0].name
        drawn["controls"] = charts.against_baseline(
            {remedy.name: (_dot(remedy.ratio), _note(remedy)) for remedy in rows}, baseline, target
        )
    panels = {}
    for sweep in sweeps(results):
        lines = {
            shift: [(setting, c.single.cell(shift), c.n_replicas) for setting, c in sweep.points]
            for shift in results.shifts
        }
        name = (
            sweep.key
            if sweep.key not in panels
            else f"{sweep.key} ({sweep.points[0][1].name}, ...)"
        )
        panels[name] = {
            shift: [(setting, _dot(cell.disagreement), n) for setting, cell, n in line if cell]
            for shift, line in lines.items()
        }
    if panels:
        drawn["dependence"] = charts.against_setting(panels)
    return drawn


def _parts(condition: ConditionResult) -> dict[str, dict[str, charts.Dot]]:
    """The disagreement of a crossed design by source, on every shift, and its total."""
    taken = {
        s.shift: {**s.parts, "in all": s.total}
        for s in condition.sources
        if s.figure == "disagreement"
    }
    names = dict.fromkeys(name for parts in taken.values() for name in parts)
    return {
        name: {shift: _dot(parts[name]) for shift, parts in taken.items() if name in parts}
        for name in names
    }


def _note(control: Control) -> str:
    """How many independent runs there are, and what one costs."""
    price, parts = control.price, [f"N = {control.runs:,}"]
    trainings = "a training" if price.training_runs == 1 else f"{price.training_runs} trainings"
    if price.seconds is not None:
        parts.append(
            f"{price.seconds:.3g} s {'' if price.training_runs == 1 else 'for '}{trainings}"
        )
    elif price.training_runs > 1:
        parts.append(trainings)
    if price.inference_streams > 1:
        parts.append(f"{price.inference_streams:.2g} models answer")
    if is_loss(control.accuracy_change) and control.accuracy_change:
        parts.append(
            f"accuracy {words.number(control.accuracy_change.value, '%', signed=True)} points"
        )
    return ", ".join(parts)


# -- what the charts show ------------------------------------------------------------------------


def _charts(results: Results, condition: ConditionResult) -> dict[str, str]:
    """The charts of one condition, those left out that would be empty."""
    drawn = {"category": charts.by_category(_category_panels(results, condition))}
    base = results.base
    panels = {}
    for shift in results.shifts:
        cell = condition.single.cell(shift)
        scores = [score for score in cell.scores if score is not None] if cell else []
        if cell and cell.accuracy and scores:
            of_base = base.cell(shift) if base else None
            panels[shift] = (
                scores,
                of_base.accuracy.value if of_base and of_base.accuracy else None,
                cell.accuracy.n_prompts,
            )
    if panels:
        drawn["accuracy"] = charts.accuracies(panels)
    curves = {
        shift: cell.survival
        for shift in results.shifts
        if (cell := condition.single.cell(shift)) and cell.survival
    }
    if curves:
        drawn["survival"] = charts.survival(
            {shift: (c.token, c.share, c.low, c.high) for shift, c in curves.items()}
        )
    if any(p.kind != "replica" and p.n_runs > 1 for p in condition.procedures):
        drawn["k"] = charts.against_k(
            {shift: _curves(condition, shift) for shift in results.shifts}
        )
    return drawn


def _category_panels(
    results: Results, condition: ConditionResult
) -> dict[str, dict[str, dict[str, charts.Dot]]]:
    target = results.shifts[-1]

    def rank(procedure: Procedure) -> float | None:
        cell, home = procedure.cell(target), procedure.cell(results.shifts[0])
        lost = any(place and (place.collapsed or place.loses) for place in (cell, home))
        return cell.ratio.value if cell and cell.ratio and not lost else None

    ranked = sorted(
        (p for p in condition.procedures if rank(p) is not None), key=lambda p: (rank(p), p.label)
    )
    families = {p.family: p for p in reversed(ranked)}  # the best K of each method
    best = [p for p in ranked if families[p.family] is p][:BEST]
    panels = {}
    for shift in results.shifts:
        rows: dict[str, dict[str, charts.Dot]] = {}
        for cell in condition.single.cells:
            if cell.category and cell.shift == shift:
                here = [(p, p.cell(shift, cell.category)) for p in (condition.single, *best)]
                rows[f"{cell.category} ({cell.n_prompts})"] = {
                    words.procedure_name(p): _dot(c.disagreement) for p, c in here if c
                }
        panels[
            shift
            if len(rows) <= DRAWN
            else f"{shift} ({DRAWN} categories; {len(rows) - DRAWN} more in the table)"
        ] = dict(islice(rows.items(), DRAWN))
    return panels


def _curves(
    condition: ConditionResult, shift: str
) -> tuple[charts.Dot, dict[str, dict[int, charts.Dot]]]:
    curves: dict[str, dict[int, charts.Dot]] = {}
    for procedure in condition.procedures[1:]:
        cell = procedure.cell(shift)
        if cell and cell.disagreement and cell.disagreement.value is not None:
            curves.setdefault(procedure.title, {})[procedure.k] = _dot(cell.disagreement)
    single = condition.single.cell(shift)
    return _dot(single.disagreement if single else None), curves


def _dot(estimate: Estimate | None) -> charts.Dot:
    return (
        charts.Dot(estimate.value, estimate.low, estimate.high)
        if estimate
        else charts.Dot(None, None, None)
    )


# -- words ---------------------------------------------------------------------------------------


def _price(procedure: Procedure) -> str:
    price = procedure.price
    parts = [
        f"{price.training_runs} training{'s' * (price.training_runs != 1)}",
        f"{price.inference_streams:.3g}x inference",
    ]
    if price.seconds is not None:
        parts[0] += f" ({price.seconds:,.{1 if price.seconds < 10 else 0}f} s)"
    return ", ".join([*parts, f"rank {price.rank}"] if price.rank is not None else parts)


def _too_few(procedure: Procedure) -> str:
    """Said once for the row, not in each of its cells."""
    if procedure.n_runs >= MIN_GROUPS:
        return ""
    estimates = [
        e
        for cell in procedure.cells
        if not cell.category
        for e in (cell.disagreement, cell.ratio)
        if e
    ]
    return (
        words.remedy(max(estimates, key=lambda e: e.needed or 0), procedure.k) if estimates else ""
    )


def _judged(results: Results, judgement: Judgement) -> str:
    """The name of the procedure that a judgement is about."""
    condition = next(c for c in results.conditions if c.name == judgement.condition)
    return next(
        words.procedure_name(p) for p in condition.procedures if p.label == judgement.procedure
    )


def _criteria_rows(results: Results, condition: ConditionResult) -> list[list[Judgement]]:
    """One row a criterion, its judgements in the order of the condition's procedures."""
    order = {p.label: i for i, p in enumerate(condition.procedures)}
    rows: dict[str, list[Judgement]] = {}
    for judgement in results.judgements:
        if judgement.condition == condition.name:
            rows.setdefault(judgement.criterion, []).append(judgement)
    return [sorted(row, key=lambda j: order[j.procedure]) for row in rows.values()]


def _trade_rows(trade: Trade) -> list[tuple[str, list[tuple[Estimate | None, float | None]]]]:
    """Name of each category, and its correlations with those before it, each with its adjusted
    p-value.
    """
    p_of = dict(zip(combinations(range(len(trade.places)), 2), trade.p_adjusted, strict=True))
    rows = enumerate(zip(trade.places, trade.tradeoff.correlation_CC, strict=True))
    return [
        (f"{shift}: {category}", [(row[j], p_of[j, i]) for j in range(i)])
        for i, ((shift, category), row) in rows
    ]


class MetricRow(NamedTuple):
    """A row of the table of metrics."""

    name: str
    unit: str
    estimates: list[Estimate | None]  # one a shift


def _metric_rows(results: Results, condition: ConditionResult) -> list[MetricRow]:
    cells = [condition.single.cell(shift) for shift in results.shifts]
    metrics_of_shift = [
        {metric.name: metric for metric in cell.metrics} if cell else {} for cell in cells
    ]
    units = {
        name: metric.unit for of_shift in metrics_of_shift for name, metric in of_shift.items()
    }
    return [
        MetricRow(name, unit, [m[name].estimate if name in m else None for m in metrics_of_shift])
        for name, unit in units.items()
    ]


def _source_figures(condition: ConditionResult) -> list[tuple[str, str, str, str]]:
    """Figures that were taken apart by source: name, words, unit of their parts, and of their
    SDs.
    """
    figures = {
        "disagreement": ("disagreement, %", "%", "%"),
        "accuracy": ("variance of accuracy, squared points", "%%", "%"),
    }
    names = dict.fromkeys(s.figure for s in condition.sources)
    return [
        (name, *figures.get(name, (f"variance of the mean {name}", "e", "e"))) for name in names
    ]


def _multiplicity(results: Results) -> str:
    """How many of the comparisons with single replicas are still clear of no change once their
    number is allowed for.
    """
    cells = [
        cell
        for c in results.conditions
        for p in c.procedures
        for cell in p.cells
        if cell.ratio and cell.p_adjusted is not None
    ]
    parts = []
    for what, method, chosen in (
        ("shifts", "Holm", [c for c in cells if not c.category]),
        ("categories", "Benjamini-Hochberg", [c for c in cells if c.category]),
    ):
        if chosen:
            clear = sum((c.p_adjusted or 0.0) < 1 - results.level for c in chosen)
            parts.append(
                f"Of {len(chosen)} ratios on {what}, {clear} are clear of 1 after "
                f"adjustment ({method})."
            )
    return " ".join(parts)


def _methods(results: Results) -> dict[str, list[str]]:
    """How the intervals of each figure were made, as the estimates say it themselves."""
    methods_of: dict[str, list[str]] = {}
    figures = (
        "disagreement",
        "ratio",
        "disagreement_change",
        "accuracy",
        "accuracy_change",
        "effect_size",
        "gain_kept",
    )
    for cell in (
        cell
        for condition in results.conditions
        for procedure in condition.procedures
        for cell in procedure.cells
    ):
        for figure in figures:
            estimate = getattr(cell, figure)
            if estimate and estimate.method != "none" and "zero-event" not in estimate.method:
                methods = methods_of.setdefault(figure.replace("_", " "), [])
                if estimate.method not in methods:
                    methods.append(estimate.method)
    return methods_of
