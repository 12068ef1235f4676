"""results.json as one HTML file for people, and as a plain table for the terminal."""

from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from toolkit.record.folders import FolderError, check_sealed, is_report, read_marker
from toolkit.record.population import sha256_file, write_text
from toolkit.record.results import (
    MEAN_SCORE,
    Claims,
    ConditionResult,
    Contrast,
    Judgement,
    Procedure,
    Results,
    Trade,
    claimed_range,
    floor_text,
    has_scores,
    interval,
    is_loss,
    load_claims,
    load_results,
    number,
    remedy,
    return_to_base,
    tested_unit,
    warnings,
)
from toolkit.report import charts
from toolkit.report.sweeps import Control, controls, sweeps
from toolkit.statistics import MIN_GROUPS, Estimate
from toolkit.text import escape
from toolkit.text.nearest import counted

WIDTH = 120
"""columns of a line of text below a table"""

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
        "number": number,
        "interval": interval,
        "remedy": remedy,
        "name": _name,
        "price": _price,
        "too_few": _too_few,
    }
    environment.globals |= {
        "procedure_name": _procedure_name,
        "criteria_rows": _criteria_rows,
        "metric_rows": _metric_rows,
    }
    environment.globals |= {
        "claimed_range": claimed_range,
        "tested_unit": tested_unit,
        "floor_text": floor_text,
    }
    environment.globals |= {
        "warnings": warnings,
        "return_to_base": return_to_base,
        "has_scores": has_scores,
    }
    environment.globals |= {
        "multiplicity": _multiplicity,
        "source_figures": _source_figures,
        "p_value": _p_value,
    }
    pictured, others = results.conditions[:PICTURED], results.conditions[PICTURED:]
    drawn = [
        (condition, {key: Markup(svg) for key, svg in _charts(results, condition).items()})
        for condition in pictured
    ]
    untold = f"Charts are drawn for the first {PICTURED} of {len(results.conditions)} conditions."
    drawn += [(condition, {"category": untold}) for condition in others]
    return environment.get_template("report.html.j2").render(
        results=results,
        conditions=drawn,
        methods=_methods(results),
        claims=claims,
        figures={name: Markup(svg) for name, svg in figures(results).items()},
        trade_rows=_trade_rows,
    )


def figures(results: Results) -> dict[str, str]:
    """Figures over all conditions, as SVG, those that there is something for: `controls`,
    `dependence`, `sources`.
    """
    found = {}
    crossed = {
        f"{one.name} ({one.in_words})": _parts(one) for one in results.conditions if one.sources
    }
    if any(crossed.values()):
        found["sources"] = charts.by_source({name: rows for name, rows in crossed.items() if rows})
    if results.contrasts and len(rows := controls(results)) > 1:
        target, baseline = results.shifts[-1], results.conditions[0].name
        found["controls"] = charts.against_baseline(
            {one.name: (_dot(one.ratio), _note(one)) for one in rows}, baseline, target
        )
    panels = {}
    for sweep in sweeps(results):
        lines = {
            shift: [(at, c.single.cell(shift), c.n_replicas) for at, c in sweep.points]
            for shift in results.shifts
        }
        name = (
            sweep.key
            if sweep.key not in panels
            else f"{sweep.key} ({sweep.points[0][1].name}, ...)"
        )
        panels[name] = {
            shift: [(at, _dot(cell.disagreement), n) for at, cell, n in line if cell]
            for shift, line in lines.items()
        }
    if panels:
        found["dependence"] = charts.against_setting(panels)
    return found


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


def _note(one: Control) -> str:
    """How many independent runs there are, and what one costs."""
    price, parts = one.price, [f"N = {one.runs:,}"]
    trainings = "a training" if price.training_runs == 1 else f"{price.training_runs} trainings"
    if price.seconds is not None:
        parts.append(
            f"{price.seconds:.3g} s {'' if price.training_runs == 1 else 'for '}{trainings}"
        )
    elif price.training_runs > 1:
        parts.append(trainings)
    if price.inference_streams > 1:
        parts.append(f"{price.inference_streams:.2g} models answer")
    if is_loss(one.accuracy_change) and one.accuracy_change:
        parts.append(f"accuracy {number(one.accuracy_change.value, '%', signed=True)} points")
    return ", ".join(parts)


# -- what the charts show ------------------------------------------------------------------------


def _charts(results: Results, condition: ConditionResult) -> dict[str, str]:
    """The charts of one condition, those left out that would be empty."""
    found = {"category": charts.by_category(_category_panels(results, condition))}
    base = results.base
    panels = {}
    for shift in results.shifts:
        cell = condition.single.cell(shift)
        scores = [score for score in cell.scores if score is not None] if cell else []
        if cell and cell.accuracy and scores:
            at = base.cell(shift) if base else None
            panels[shift] = (
                scores,
                at.accuracy.value if at and at.accuracy else None,
                cell.accuracy.n_prompts,
            )
    if panels:
        found["accuracy"] = charts.accuracies(panels)
    curves = {
        shift: cell.survival
        for shift in results.shifts
        if (cell := condition.single.cell(shift)) and cell.survival
    }
    if curves:
        found["survival"] = charts.survival(
            {shift: (c.token, c.share, c.low, c.high) for shift, c in curves.items()}
        )
    if any(p.kind != "replica" and p.n_runs > 1 for p in condition.procedures):
        found["k"] = charts.against_k(
            {shift: _curves(condition, shift) for shift in results.shifts}
        )
    return found


def _category_panels(
    results: Results, condition: ConditionResult
) -> dict[str, dict[str, dict[str, charts.Dot]]]:
    target = results.shifts[-1]

    def rank(procedure: Procedure) -> float | None:
        cell, home = procedure.cell(target), procedure.cell(results.shifts[0])
        given_back = any(one and (one.collapsed or one.loses) for one in (cell, home))
        return cell.ratio.value if cell and cell.ratio and not given_back else None

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
                    _name(p): _dot(c.disagreement) for p, c in here if c
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


def _name(procedure: Procedure) -> str:
    return (
        procedure.title
        if procedure.kind in ("replica", "base")
        else f"{procedure.title}, K = {procedure.k}"
    )


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
    return remedy(max(estimates, key=lambda e: e.needed or 0), procedure.k) if estimates else ""


def _procedure_name(results: Results, judgement: Judgement) -> str:
    condition = next(c for c in results.conditions if c.name == judgement.condition)
    return next(_name(p) for p in condition.procedures if p.label == judgement.procedure)


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
    found = [{metric.name: metric for metric in cell.metrics} if cell else {} for cell in cells]
    units = {name: metric.unit for of_shift in found for name, metric in of_shift.items()}
    return [
        MetricRow(name, unit, [m[name].estimate if name in m else None for m in found])
        for name, unit in units.items()
    ]


def _p_value(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _source_figures(condition: ConditionResult) -> list[tuple[str, str, str, str]]:
    """Figures that were taken apart by source: name, words, unit of their parts, and of their
    SDs.
    """
    known = {
        "disagreement": ("disagreement, %", "%", "%"),
        "accuracy": ("variance of accuracy, squared points", "%%", "%"),
    }
    names = dict.fromkeys(s.figure for s in condition.sources)
    return [(name, *known.get(name, (f"variance of the mean {name}", "e", "e"))) for name in names]


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
    found: dict[str, list[str]] = {}
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
                methods = found.setdefault(figure.replace("_", " "), [])
                if estimate.method not in methods:
                    methods.append(estimate.method)
    return found


# -- the terminal --------------------------------------------------------------------------------


def table_text(results: Results) -> str:
    """The main table in plain ASCII, one line per procedure, at most 120 columns wide with three
    shifts.

    Below the rows of a condition stand the replicas that its inconclusive ratios need, and what its
    mitigations lose.
    """
    target, home = results.shifts[-1], results.shifts[0]
    lines = []
    for condition in results.conditions:
        failed = f", {condition.n_failed} failed" if condition.n_failed else ""
        lines += [
            f"{condition.name}: {condition.in_words}{failed}; disagreement between two runs in %"
        ]
        width = _width(results, condition)
        shifts = "".join(f"{shift:<{width}}" for shift in results.shifts)
        gains = f"{'ratio, ' + target:<17}{'accuracy':>9}{'kept':>7}"
        mitigated = len(condition.procedures) > 1
        lines.append(f" {'procedure':<21}{'runs':>5}  {shifts}{gains * mitigated}".rstrip())
        lines += [_row(results, procedure, width) for procedure in condition.procedures]
        lines += _below(results, condition)
        lines.append("")
    lines += (
        _accuracy_lines(results)
        + _source_lines(results)
        + _contrast_lines(results)
        + _criteria_lines(results)
        + _note_lines(results)
    )
    lines.append(f"{100 * results.level:g} % intervals in brackets; '?' inconclusive")
    if any(len(condition.procedures) > 1 for condition in results.conditions):
        lines += [
            f"accuracy: change on {target} prompts in points, '!' shown to be a loss",
            f"kept: of the fine-tuning on {home} prompts (answers that it changed, accuracy that "
            "it gained: the lower);",
            "      '!' shown to be below 0.9, the lowest of all shifts",
        ]
    return escape.lines(lines)


def _width(results: Results, condition: ConditionResult) -> int:
    """Columns of a shift: two more than its longest text, so that nothing runs together."""
    cells = [
        cell for procedure in condition.procedures for cell in procedure.cells if not cell.category
    ]
    return max(
        19,
        *(
            len(text) + 2
            for text in (*results.shifts, *(_short(cell.disagreement, "%") for cell in cells))
        ),
    )


def _row(results: Results, procedure: Procedure, width: int) -> str:
    target, home = results.shifts[-1], results.shifts[0]
    cells = [procedure.cell(shift) for shift in results.shifts]
    shares = "".join(
        f"{_short(cell.disagreement if cell else None, '%'):<{width}}" for cell in cells
    )
    k = "" if procedure.kind == "replica" else f" K={procedure.k}"
    line = f" {procedure.title[: 21 - len(k)] + k:<21}{procedure.n_runs:>5}  {shares}"
    if procedure.kind == "replica":
        return line.rstrip()
    cell, at_home = procedure.cell(target), procedure.cell(home)
    ratio = _short(cell.ratio) if cell and cell.ratio else ""
    change = number(
        cell.accuracy_change.value if cell and cell.accuracy_change else None, "%", signed=True
    )
    change += "!" if cell and cell.loses else " "
    lost = [
        c.kept.value for c in cells if c and c.collapsed and c.kept and c.kept.value is not None
    ]
    kept = min(lost) if lost else at_home.kept.value if at_home and at_home.kept else None
    moved = change.rjust(max(27 - len(ratio), len(change) + 1))
    return f"{line}{ratio}{moved}{number(kept):>6}{'!' * bool(lost)}".rstrip()


def _below(results: Results, condition: ConditionResult) -> list[str]:
    """What the rows have no room for: replicas that inconclusive figures need, and losses with
    their intervals.
    """
    needs: dict[int, list[str]] = {}
    for procedure in condition.procedures:
        cell = procedure.cell(results.shifts[-1])
        figure = (cell.ratio or cell.disagreement) if cell else None
        if figure and not figure.conclusive and figure.needed:
            needs.setdefault(figure.needed * procedure.k, []).append(_name(procedure))
    lines = [
        f"? needs {counted(count, 'replica')}: {', '.join(names)}"
        for count, names in sorted(needs.items())
    ]
    whys: dict[str, list[str]] = {}
    for shift in results.shifts:
        figure = cell.disagreement if (cell := condition.single.cell(shift)) else None
        if figure and not figure.conclusive and not figure.needed and figure.note:
            whys.setdefault(figure.note, []).append(shift)
    lines += [f"? single replica, {', '.join(shifts)}: {why}" for why, shifts in whys.items()]
    lost = {_name(p): warnings(p, condition.single, results.shifts) for p in condition.procedures}
    lines += [f"! {name}: {said}" for name, several in lost.items() for said in several]
    return _wrapped(lines, "  ")


def _wrapped(lines: Sequence[str], indent: str = "") -> list[str]:
    further = indent + " " * 4
    return [
        line
        for text in lines
        for line in wrap(
            text, WIDTH, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False
        )
    ]


def _note_lines(results: Results) -> list[str]:
    lines = _wrapped([f"note: {note}" for note in results.notes])
    return [*lines, ""] if lines else []


def _accuracy_lines(results: Results) -> list[str]:
    """How good runs are, for which the table has no place; and what became of the base in them."""
    lines = []
    for condition in results.conditions:
        cells = [cell for shift in results.shifts if (cell := condition.single.cell(shift))]
        rows = {
            "accuracy in %": [(c.shift, _short(c.accuracy, "%")) for c in cells if c.accuracy],
            "gained over the base in points": [
                (c.shift, _short(c.gained, "%", signed=True) + "!" * is_loss(c.gained))
                for c in cells
                if c.gained
            ],
            "answers equal to the base's in %": [
                (c.shift, _short(c.as_base, "%")) for c in cells if c.as_base
            ],
            "mean of the score": [
                (c.shift, _short(m.estimate))
                for c in cells
                for m in c.metrics
                if m.name == MEAN_SCORE
            ],
        }
        lines += [
            f"{condition.name}, {what}: {_of_shifts(row)}" for what, row in rows.items() if row
        ]
    base = (
        [
            (c.shift, _short(c.accuracy, "%"))
            for c in results.base.cells
            if c.accuracy and not c.category
        ]
        if results.base
        else []
    )
    if lines and base:
        lines.insert(0, f"base model, accuracy in %: {_of_shifts(base)}")
    return [*_wrapped(lines), ""] if lines else []


def _of_shifts(row: Sequence[tuple[str, str]]) -> str:
    return "   ".join(f"{shift} {figure}" for shift, figure in row)


def _source_lines(results: Results) -> list[str]:
    lines = []
    for condition in results.conditions:
        for s in condition.sources:
            if s.figure == "disagreement":
                parts = "   ".join(f"{name} {_short(e, '%')}" for name, e in s.parts.items())
                lines.append(
                    f"{condition.name}, {s.shift}, what each source adds to the "
                    f"disagreement in %: {parts}"
                )
    return [*lines, ""] if lines else []


def _contrast_lines(results: Results) -> list[str]:
    lines = []
    for name in dict.fromkeys(contrast.condition for contrast in results.contrasts):
        lines += _beside_each_other(
            [c for c in results.contrasts if c.condition == name],
            f"{name} against {results.contrasts[0].baseline}",
            scored=has_scores(results),
        )
        lines += [
            f"{name} against {c.baseline}, {c.figure} by prompt: {c.clear} of "
            f"{c.tested:,} prompts differ after adjustment (BH)"
            for c in results.by_prompt
            if c.condition == name
        ]
    for name in dict.fromkeys(c.condition for c in results.mitigated):
        found = [c for c in results.mitigated if c.condition == name]
        lines += _beside_each_other(found, f"{name} against single replicas of {found[0].baseline}")
    for condition, baseline in dict.fromkeys(
        (c.condition, c.baseline) for c in results.same_compute
    ):
        found = [
            c for c in results.same_compute if (c.condition, c.baseline) == (condition, baseline)
        ]
        lines += _beside_each_other(
            found, f"{condition} against one training of the same compute, {baseline}"
        )
    return [*lines, ""] if lines else []


def _beside_each_other(contrasts: Sequence[Contrast], who: str, scored: bool = False) -> list[str]:
    """What is won, and below it what is lost: the change of accuracy on the same shifts, of the
    mean score where predictions come with one, and a return to the base.
    """
    ratios = "   ".join(f"{c.shift} {_short(c.ratio)}" for c in contrasts)
    changes = [(c, c.accuracy_change) for c in contrasts if c.accuracy_change is not None]
    points = "   ".join(
        f"{c.shift} {_short(e, '%', signed=True)}{' a loss' if c.loses else ''}" for c, e in changes
    )
    scores = "   ".join(
        f"{c.shift} {_short(c.score_change, signed=True)}"
        for c in contrasts
        if scored and c.score_change
    )
    whys: dict[str, list[str]] = {}
    for c in contrasts:
        for estimate in (c.ratio, c.accuracy_change):
            if estimate is not None and not estimate.conclusive and estimate.note:
                whys.setdefault(estimate.note, []).append(c.shift)
    returns = [
        return_to_base(c.shift, c.effect_size, c.as_base, c.baseline_as_base, c.baseline)
        for c in contrasts
        if c.returned
    ]
    return [
        f"{who}, ratio of disagreement: {ratios}",
        f"  change of accuracy in points: {points or 'not known, the prompts have no references'}",
        *([f"  change of the mean score: {scores}"] if scores else []),
        *(f"  ! {said}" for said in returns),
        *_wrapped(
            [f"? {', '.join(dict.fromkeys(shifts))}: {why}" for why, shifts in whys.items()], "  "
        ),
        *(f"  ! {said}" for c in contrasts for said in c.caveats),
    ]


def _criteria_lines(results: Results) -> list[str]:
    lines = []
    for j in results.judgements:
        who = f"{j.condition}, {_procedure_name(results, j)}"
        lines.append(
            f"{j.verdict:<12} {j.criterion} ({j.where}: {j.limit}): {who} "
            f"{_short(j.estimate, '%')}".rstrip()
        )
    return [*lines, ""] if lines else []


def _short(estimate: Estimate | None, unit: str = "", signed: bool = False) -> str:
    if estimate is None or estimate.value is None:
        return "?"
    sure = "" if estimate.conclusive else "?"
    return (
        f"{number(estimate.value, unit, signed)}{sure} {interval(estimate, unit, signed)}".strip()
    )
