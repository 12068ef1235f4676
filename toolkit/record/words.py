"""Results in words: how a number, an interval and what they show are written for people. The
terminal, the report, model cards, verdicts and the tables of the documents all use these.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from toolkit.record.results import (
    GAINED,
    MEAN_SCORE,
    UNEVEN,
    ConditionResult,
    Contrast,
    Modules,
    Outlook,
    Procedure,
    Tested,
    is_loss,
)
from toolkit.statistics import Estimate
from toolkit.text.nearest import counted


class TerminalFigure(NamedTuple):
    """How the terminal shows a further figure of single replicas (`Metric`).

    label: what stands before it, with its unit. change: it has a sign, and `!` where it is shown to
    be a loss.
    """

    label: str
    change: bool = False


IN_TERMINAL = {
    GAINED: TerminalFigure("gained over the base in points", change=True),
    MEAN_SCORE: TerminalFigure("mean of the score"),
}
"""By the name of the metric. The report and results.json show every metric, the terminal these."""

# -- figures -------------------------------------------------------------------------------------


def number(value: float | None, unit: str = "", signed: bool = False) -> str:
    """`12.3` for a share with unit "%", `0.62` for a ratio: one form everywhere, so that tables and
    sentences agree.

    "%%": a variance of shares, in squared points. "e", "e4": any unit, in three digits or in four.
    "nats": a loss, or a length relative to another, in three decimals.
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    scale, digits = {
        "%": (100, ".1f"),
        "%%": (10_000, ".2f"),
        "e": (1, ".3g"),
        "e4": (1, ".4g"),
        "nats": (1, ".3f"),
    }.get(unit, (1, ".2f"))
    text = f"{scale * value:+{digits}}"
    text = text if signed else text.removeprefix("+")
    return text[1:] if text[0] in "+-" and float(text) == 0 else text


def percent(share: float) -> str:
    """`95 %`: a share that somebody chose, with as many digits as it has."""
    return f"{100 * share:g} %"


def interval(estimate: Estimate, unit: str = "", signed: bool = False) -> str:
    """`[10.1, 14.9]`, or nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low, unit, signed)}, {number(estimate.high, unit, signed)}]"


def figure(
    estimate: Estimate | None,
    unit: str = "",
    signed: bool = False,
    *,
    doubt: str = "?",
    unknown: str = "?",
) -> str:
    """`0.62 [0.50, 0.77]`, for a cell of a table.

    doubt: stands behind the value of what is inconclusive. unknown: the cell where there is no
    value.
    """
    if estimate is None or estimate.value is None:
        return unknown
    mark = "" if estimate.conclusive else doubt
    value = f"{number(estimate.value, unit, signed)}{mark}"
    return f"{value} {interval(estimate, unit, signed)}".rstrip()


def p_value(p: float | None) -> str:
    """`0.012`, or `< 0.001`."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def remedy(estimate: Estimate, k: int = 1) -> str:
    """`inconclusive; needs about 96 replicas`: a run of the procedure is a group of k replicas."""
    needed = f"; needs about {estimate.needed * k:,} replicas" if estimate.needed else ""
    return f"inconclusive{needed}"


def estimate_in_words(
    estimate: Estimate | None, unit: str = "", signed: bool = False, k: int = 1
) -> str:
    """`0.62 [0.50, 0.77]`, with what it lacks where it is inconclusive."""
    if estimate is None or estimate.value is None:
        return f"unknown ({estimate.note})" if estimate and estimate.note else "unknown"
    text = figure(estimate, unit, signed, doubt="")
    return text if estimate.conclusive else f"{text} ({remedy(estimate, k)})"


def share_in_words(estimate: Estimate | None) -> str:
    """`12.3 % [10.1, 14.9]`, with what it lacks where it is inconclusive."""
    if estimate is None or estimate.value is None:
        return f"an unknown share ({remedy(estimate)})" if estimate else "an unknown share"
    text = _share(estimate)
    return text if estimate.conclusive else f"{text} ({remedy(estimate)})"


def _share(estimate: Estimate) -> str:
    return f"{number(estimate.value, '%')} % {interval(estimate, '%')}".rstrip()


# -- names ---------------------------------------------------------------------------------------


def procedure_name(procedure: Procedure) -> str:
    """`mean, K = 8`; the title alone of what is no mitigation."""
    if procedure.kind in ("replica", "base"):
        return procedure.title
    return f"{procedure.title}, K = {procedure.k}"


def mitigation_of(title: str, k: int, condition: str) -> str:
    """`mean, K = 8 (lora)`: a mitigation among those of several conditions."""
    return f"{title}, K = {k} ({condition})"


def replicas_in_words(condition: ConditionResult) -> str:
    """`64 replicas`; where some share a seed, `36 runs, of which 6 share no seed`."""
    succeeded = condition.n_trained - condition.n_failed
    if succeeded == condition.n_replicas:
        return counted(condition.n_replicas, "replica")
    return f"{counted(succeeded, 'run')}, of which {condition.n_replicas} share no seed"


# -- what is lost --------------------------------------------------------------------------------


def change_of_accuracy(change: Estimate | None) -> str:
    """What stands beside every gain in stability: `it loses accuracy: -48.0 points [-52.1,
    -43.9]`.
    """
    if change is None or change.value is None:
        return "accuracy is not known"
    if is_loss(change):
        return f"it loses accuracy: {_points(change)}"
    return f"accuracy moves by {_points(change)}" + ("" if change.conclusive else ", inconclusive")


def _points(change: Estimate) -> str:
    return f"{number(change.value, '%', True)} points {interval(change, '%', True)}".rstrip()


def return_to_base(
    shift: str, kept: Estimate | None, as_base: Estimate | None, before: Estimate | None, whose: str
) -> str:
    """`on far prompts the gain is a return to the base: 100.0 % [98.1, 100.0] of its answers are
    the base's, 40.2 % [...] of ...`.
    """
    finding = f"on {shift} prompts the gain is a return to the base"
    if as_base is None or as_base.value is None or before is None or before.value is None:
        kept_words = estimate_in_words(kept)
        return f"{finding}: it keeps {kept_words} of the answers that fine-tuning changed"
    return (
        f"{finding}: {_share(as_base)} of its answers are the base's, "
        f"{_share(before)} of those of {whose}"
    )


def contrast_return(contrast: Contrast) -> str:
    """`return_to_base` of a contrast that has `returned`."""
    c = contrast
    return return_to_base(c.shift, c.effect_size, c.as_base, c.baseline_as_base, c.baseline)


def warnings(procedure: Procedure, single: Procedure, shifts: Sequence[str]) -> list[str]:
    """What is shown to be lost, shift by shift: of single replicas accuracy against the base; of a
    mitigation the fine-tuning, the accuracy that it gained, accuracy.
    """
    losses = []
    for shift in shifts:
        cell, before = procedure.cell(shift), single.cell(shift)
        if cell is not None and procedure.kind == "replica" and is_loss(cell.gained):
            losses.append(
                f"on {shift} prompts the base is more accurate: "
                f"{estimate_in_words(cell.gained, '%', signed=True)} points"
            )
        if cell is None or procedure.kind in ("base", "replica"):
            continue
        if cell.returned:
            of_single = before and before.as_base
            losses.append(
                return_to_base(shift, cell.effect_size, cell.as_base, of_single, "single replicas")
            )
        elif cell.collapsed:
            losses.append(
                f"on {shift} prompts it keeps {estimate_in_words(cell.kept)} of the "
                "accuracy that fine-tuning gained"
            )
        if cell.loses:
            losses.append(f"on {shift} prompts {change_of_accuracy(cell.accuracy_change)}")
    return losses


# -- contrasts -----------------------------------------------------------------------------------


def unpaired(condition: str, baseline: str) -> str:
    """Where `paired` was asked and cannot be."""
    return (
        f"{condition} and {baseline} have fewer than two run names in common: no pairs, "
        "compared as independent runs"
    )


def caveats(contrast: Contrast) -> list[str]:
    """Which answers a contrast rests on, where either condition lacks some, and what that may
    hide.
    """
    gaps = contrast.gaps
    if gaps is None:
        return []
    remarks = []
    if gaps.common < gaps.n_prompts:
        remarks.append(
            f"on the {gaps.common:,} {contrast.shift} prompts that both answered, of "
            f"{gaps.n_prompts:,}"
        )
    if abs(gaps.missing - gaps.baseline_missing) >= UNEVEN:
        missing = (
            f"missing are {number(gaps.missing, '%')} % of the answers of {contrast.condition} "
            f"and {number(gaps.baseline_missing, '%')} % of {contrast.baseline}"
        )
        if gaps.at_worst is not None and contrast.accuracy_change is not None:
            missing += f"; were they all wrong, accuracy would move by {_points(gaps.at_worst)}"
            if _side(gaps.at_worst) != _side(contrast.accuracy_change):
                missing += ", so that what happens to accuracy depends on them"
        remarks.append(missing)
    return remarks


def _side(change: Estimate) -> int:
    """-1, 1: shown to be below, above 0; 0 neither."""
    if not change.conclusive or change.low is None or change.high is None:
        return 0
    return (change.low > 0) - (change.high < 0)


# -- claims --------------------------------------------------------------------------------------


def claimed_range(tested: Tested) -> str:
    """`95 to 98 %`, or nothing where nothing is claimed; spreads of weights are plain numbers."""
    if tested.claimed is None:
        return ""
    scale, unit = (100, " %") if tested_unit(tested) else (1, "")
    low, high = (f"{scale * end:.6g}" for end in tested.claimed)
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def tested_unit(tested: Tested) -> str:
    """Of the estimates of a claim, as `number` takes it."""
    return "" if tested.quantity == "weights" else "%"


def runs_off(row: Outlook, runs: int) -> str:
    """`1,520 [980, 2,301]`: how many of so many runs answer otherwise than the majority."""
    if row.off.value is None:
        return "n/a"
    text = f"{runs * row.off.value:,.0f}"
    if row.off.low is None or row.off.high is None:
        return text
    return f"{text} [{runs * row.off.low:,.0f}, {runs * row.off.high:,.0f}]"


def floor_text(row: Outlook) -> str:
    """`99 % of runs reach 81.4 %`, or how many runs it takes to say so."""
    floor = row.floor
    if floor is None:
        return "no references"
    if floor.low is None:
        return f"needs {floor.needed} replicas" if floor.needed else "n/a"
    return f"{percent(floor.content)} of runs reach {number(floor.low, '%')} %"


# -- tables that stand in several places ---------------------------------------------------------


def module_rows(spread: Modules) -> list[list[str]]:
    """Head, titles of groups (one cell each) and rows of the spread of weight changes."""
    more = ["ratio", "p, adjusted"] if spread.baseline else []
    table = [["module", "size, %", "spread", *more]]
    for title, modules in spread.shown():
        table.append([title])
        for module in modules:
            row = [module.name, number(module.share, "%"), figure(module.spread)]
            p = "" if module.p_adjusted is None else p_value(module.p_adjusted)
            against = [figure(module.ratio, unknown=""), p] if spread.baseline else []
            table.append([*row, *against])
    return table


def outlook_figures(row: Outlook, runs: int) -> list[str]:
    """What to expect of so many runs: how many per cent of prompts two of them answer differently,
    runs off the majority, different answers to a prompt, accuracy.
    """
    distinct = figure(row.distinct, doubt="")
    return [
        figure(row.differ, "%", doubt=""),
        runs_off(row, runs),
        distinct if row.distinct.conclusive else f">{distinct}",
        floor_text(row),
    ]
