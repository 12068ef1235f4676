"""results.json as plain tables and lines for the terminal."""

from collections.abc import Iterable, Sequence
from textwrap import wrap

from toolkit.record.results import ConditionResult, Contrast, Metric, Procedure, Results, is_loss
from toolkit.record.words import (
    IN_TERMINAL,
    caveats,
    contrast_return,
    figure,
    number,
    percent,
    procedure_name,
    replicas_in_words,
    warnings,
)
from toolkit.statistics import Estimate
from toolkit.text import escape, tables
from toolkit.text.nearest import counted

WIDTH = 120
"""columns of a line of text below a table"""
NAME = 21
"""columns of a procedure's name and K"""


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
        replicas = f"{replicas_in_words(condition)}{failed}"
        lines += [
            f"{condition.name}: {replicas}; disagreement between two runs in %",
            *_procedure_lines(results, condition),
            *_remarks(results, condition),
            "",
        ]
    for part in (
        _accuracy_lines(results),
        _source_lines(results),
        _contrast_lines(results),
        _criteria_lines(results),
        _wrapped(f"note: {note}" for note in results.notes),
    ):
        lines += [*part, ""] if part else []
    lines.append(f"{percent(results.level)} intervals in brackets; '?' inconclusive")
    if any(len(condition.procedures) > 1 for condition in results.conditions):
        lines += [
            f"accuracy: change on {target} prompts in points, '!' shown to be a loss",
            f"kept: of the fine-tuning on {home} prompts (answers that it changed, accuracy that "
            "it gained: the lower);",
            "      '!' shown to be below 0.9, the lowest of all shifts",
        ]
    return escape.lines(lines)


def _procedure_lines(results: Results, condition: ConditionResult) -> list[str]:
    shifts = results.shifts
    # spaces before "kept" and behind both heads are those of a sign and of "!"
    gains = [f"ratio, {shifts[-1]} ", "accuracy ", " kept "] if condition.procedures[1:] else []
    rows = [["procedure", "runs", *shifts, *gains]]
    for procedure in condition.procedures:
        k = "" if procedure.kind == "replica" else f" K={procedure.k}"
        cells = [procedure.cell(shift) for shift in shifts]
        shares = [figure(cell.disagreement if cell else None, "%") for cell in cells]
        name = procedure.title[: NAME - len(k)] + k
        row = [name, str(procedure.n_runs), *shares]
        rows.append(row if procedure.kind == "replica" else row + _gains(procedure, shifts))
    last = 2 + len(shifts)
    return tables.plain(rows, right=(1, last + 1, last + 2), gap=1)


def _gains(procedure: Procedure, shifts: Sequence[str]) -> list[str]:
    """Ratio and change of accuracy on the last shift, and what is kept."""
    cells = [cell for shift in shifts if (cell := procedure.cell(shift))]
    target, home = procedure.cell(shifts[-1]), procedure.cell(shifts[0])
    ratio = figure(target.ratio) if target and target.ratio else ""
    change = target.accuracy_change.value if target and target.accuracy_change else None
    loss = "!" if target and target.loses else " "
    lost = [
        cell.kept.value
        for cell in cells
        if cell.collapsed and cell.kept and cell.kept.value is not None
    ]
    kept = min(lost) if lost else home.kept.value if home and home.kept else None
    return [ratio, number(change, "%", signed=True) + loss, number(kept) + ("!" if lost else " ")]


def _remarks(results: Results, condition: ConditionResult) -> list[str]:
    """What the rows have no room for: replicas that inconclusive figures need, and losses with
    their intervals.
    """
    needs: dict[int, list[str]] = {}
    for procedure in condition.procedures:
        cell = procedure.cell(results.shifts[-1])
        estimate = (cell.ratio or cell.disagreement) if cell else None
        if estimate and not estimate.conclusive and estimate.needed:
            count = estimate.needed * procedure.k
            needs.setdefault(count, []).append(procedure_name(procedure))
    lines = [
        f"? needs {counted(count, 'replica')}: {', '.join(names)}"
        for count, names in sorted(needs.items())
    ]
    single = [(shift, condition.single.cell(shift)) for shift in results.shifts]
    open_ = ((s, cell.disagreement) for s, cell in single if cell and cell.disagreement)
    reasons = _reasons((shift, estimate) for shift, estimate in open_ if not estimate.needed)
    lines += [f"? single replica, {shifts}: {why}" for why, shifts in reasons.items()]
    lines += [
        f"! {procedure_name(procedure)}: {warning}"
        for procedure in condition.procedures
        for warning in warnings(procedure, condition.single, results.shifts)
    ]
    return _wrapped(lines, "  ")


def _reasons(estimates: Iterable[tuple[str, Estimate | None]]) -> dict[str, str]:
    """Why estimates on shifts are inconclusive, each reason once: reason -> shifts."""
    shifts_of: dict[str, dict[str, None]] = {}
    for shift, estimate in estimates:
        if estimate is not None and not estimate.conclusive and estimate.note:
            shifts_of.setdefault(estimate.note, {})[shift] = None
    return {reason: ", ".join(shifts) for reason, shifts in shifts_of.items()}


def _wrapped(lines: Iterable[str], indent: str = "") -> list[str]:
    further = indent + " " * 4
    return [
        line
        for text in lines
        for line in wrap(
            text, WIDTH, initial_indent=indent, subsequent_indent=further, break_on_hyphens=False
        )
    ]


def _accuracy_lines(results: Results) -> list[str]:
    """How good runs are, for which the table has no place, and what became of the base in them; and
    the metrics that `IN_TERMINAL` names.
    """
    lines = []
    for condition in results.conditions:
        cells = [cell for shift in results.shifts if (cell := condition.single.cell(shift))]
        rows = {"accuracy in %": [(c.shift, figure(c.accuracy, "%")) for c in cells if c.accuracy]}
        for name in dict.fromkeys(metric.name for cell in cells for metric in cell.metrics):
            if name in IN_TERMINAL:
                rows[IN_TERMINAL[name].label] = [
                    (cell.shift, _metric_figure(metric))
                    for cell in cells
                    for metric in cell.metrics
                    if metric.name == name
                ]
        rows["answers equal to the base's in %"] = [
            (c.shift, figure(c.as_base, "%")) for c in cells if c.as_base
        ]
        lines += [
            f"{condition.name}, {label}: {_beside(row)}" for label, row in rows.items() if row
        ]
    of_base = [
        (cell.shift, figure(cell.accuracy, "%"))
        for cell in (results.base.cells if results.base else ())
        if cell.accuracy and not cell.category
    ]
    if lines and of_base:
        lines.insert(0, f"base model, accuracy in %: {_beside(of_base)}")
    return _wrapped(lines)


def _metric_figure(metric: Metric) -> str:
    change = IN_TERMINAL[metric.name].change
    loss = "!" if change and is_loss(metric.estimate) else ""
    return figure(metric.estimate, metric.unit, signed=change) + loss


def _beside(figures: Iterable[tuple[str, str]]) -> str:
    return "   ".join(f"{name} {text}" for name, text in figures)


def _source_lines(results: Results) -> list[str]:
    return [
        f"{condition.name}, {s.shift}, what each source adds to the disagreement in %: "
        + _beside((name, figure(estimate, "%")) for name, estimate in s.parts.items())
        for condition in results.conditions
        for s in condition.sources
        if s.figure == "disagreement"
    ]


def _contrast_lines(results: Results) -> list[str]:
    lines = []
    for (name, baseline), contrasts in _by_pair(results.contrasts):
        lines += _beside_each_other(contrasts, f"{name} against {baseline}", results.has_scores)
        lines += [
            f"{name} against {baseline}, {c.figure} by prompt: {c.clear} of "
            f"{c.tested:,} prompts differ after adjustment (BH)"
            for c in results.by_prompt
            if (c.condition, c.baseline) == (name, baseline)
        ]
    for (name, baseline), contrasts in _by_pair(results.mitigated):
        lines += _beside_each_other(contrasts, f"{name} against single replicas of {baseline}")
    for (name, baseline), contrasts in _by_pair(results.same_compute):
        who = f"{name} against one training of the same compute, {baseline}"
        lines += _beside_each_other(contrasts, who)
    return lines


def _by_pair(contrasts: Sequence[Contrast]) -> Iterable[tuple[tuple[str, str], list[Contrast]]]:
    """Contrasts of one condition with one baseline together: they differ in the shift."""
    pairs: dict[tuple[str, str], list[Contrast]] = {}
    for contrast in contrasts:
        pairs.setdefault((contrast.condition, contrast.baseline), []).append(contrast)
    return pairs.items()


def _beside_each_other(contrasts: Sequence[Contrast], who: str, scored: bool = False) -> list[str]:
    """What is won, and below it what is lost: the change of accuracy on the same shifts, of the
    mean score where predictions come with one, and a return to the base.
    """
    ratios = _beside((c.shift, figure(c.ratio)) for c in contrasts)
    points = _beside(
        (c.shift, figure(c.accuracy_change, "%", signed=True) + " a loss" * c.loses)
        for c in contrasts
        if c.accuracy_change is not None
    )
    scores = _beside(
        (c.shift, figure(c.score_change, signed=True))
        for c in contrasts
        if scored and c.score_change
    )
    reasons = _reasons(
        (c.shift, estimate) for c in contrasts for estimate in (c.ratio, c.accuracy_change)
    )
    return [
        f"{who}, ratio of disagreement: {ratios}",
        f"  change of accuracy in points: {points or 'not known, the prompts have no references'}",
        *([f"  change of the mean score: {scores}"] if scores else []),
        *(f"  ! {contrast_return(c)}" for c in contrasts if c.returned),
        *_wrapped((f"? {shifts}: {why}" for why, shifts in reasons.items()), "  "),
        *(f"  ! {caveat}" for c in contrasts for caveat in caveats(c)),
    ]


def _criteria_lines(results: Results) -> list[str]:
    names = {
        (condition.name, procedure.label): procedure_name(procedure)
        for condition in results.conditions
        for procedure in condition.procedures
    }
    rows = [
        [
            j.verdict,
            f"{j.criterion} ({j.where}: {j.limit}): {j.condition}, "
            f"{names[j.condition, j.procedure]} {figure(j.estimate, '%')}",
        ]
        for j in results.judgements
    ]
    return tables.plain(rows, indent=0)
