"""Conditions of a single run, which have no spread to compare: how far the runs of the others are
from it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from toolkit import statistics as st
from toolkit.measurement.analyse.table import Arm, Table
from toolkit.record.results import ConditionDesign, Distance
from toolkit.record.words import change_of_accuracy, interval, number


def distances(
    table: Table, designs: Sequence[ConditionDesign], level: float
) -> tuple[Distance, ...]:
    """Every condition against the first where one of the two is a single run, on every shift."""
    rows: list[Distance] = []
    for design in designs[1:]:
        if 1 in (len(design.replicas), len(designs[0].replicas)):
            rows += _on_every_shift(table, design, designs[0], level)
    return tuple(rows)


def _on_every_shift(
    table: Table, design: ConditionDesign, first: ConditionDesign, level: float
) -> Iterator[Distance]:
    lone, other = (first, design) if len(first.replicas) == 1 else (design, first)
    fixed_arm, other_arm = (table.arm(x.name, "replica", list(x.replicas)) for x in (lone, other))
    if fixed_arm is None or other_arm is None:
        return
    for shift, index_P in table.shifts.items():
        fixed, runs = fixed_arm.on(index_P), other_arm.on(index_P)
        options = {"cluster_P": table.cluster_P[index_P], "level": level}
        differs_RP = np.where(
            (runs.answer_RP >= 0) & (fixed.answer_RP[0] >= 0),
            (runs.answer_RP != fixed.answer_RP[0]).astype(np.float64),
            np.nan,
        )
        share = (
            st.model_accuracy(differs_RP[0], **options)
            if len(differs_RP) == 1
            else st.accuracy(differs_RP, **options)
        )
        counted_R = np.isfinite(differs_RP).sum(axis=1)
        each = [
            float(np.nansum(row) / n) if n else None
            for row, n in zip(differs_RP, counted_R, strict=True)
        ]
        change = _accuracy_change(runs, fixed, options, turned=lone is design)
        yield Distance(
            design.name,
            first.name,
            shift,
            lone.name,
            share,
            change,
            tuple(zip(table.run_names(other), each, strict=True)),
        )


def _accuracy_change(runs: Arm, fixed: Arm, options: dict, turned: bool) -> st.Estimate | None:
    """Of several runs over a fixed one; turned: the other way round."""
    if not (runs.marked and fixed.marked) or len(runs.answer_RP) < 2:
        return None
    gain = st.accuracy_gain(runs.correct_RP, fixed.correct_RP[0], **options)
    return st.negated(gain) if turned else gain


def in_notes(distances: Sequence[Distance]) -> Iterator[str]:
    """A sentence for each: a condition of one run has no contrast, and this is what can be said
    instead.
    """
    for x in distances:
        other = x.condition if x.single == x.baseline else x.baseline
        shares = [share for _, share in x.runs if share is not None]
        ends = (
            f", run by run {number(min(shares), '%')} to {number(max(shares), '%')} %"
            if len(shares) > 1
            else ""
        )
        differs = f"{number(x.differs.value, '%')} % {interval(x.differs, '%')}"
        says = f"runs of {other} answer {differs}".rstrip()
        yield (
            f"{x.single} is one run, whose spread is not known: on {x.shift} prompts {says} "
            f"of prompts otherwise{ends}{_gain(x)}"
        )


def _gain(x: Distance) -> str:
    change = x.accuracy_change
    return f"; {x.condition} against {x.baseline}: {change_of_accuracy(change)}" if change else ""
