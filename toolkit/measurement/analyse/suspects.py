"""Runs that stand far off the others, by name, and what a figure is without them."""

from collections.abc import Iterator

import numpy as np

from toolkit import statistics as st
from toolkit.measurement.analyse.table import Arm, Table
from toolkit.record.results import ConditionDesign, Suspects


def suspects(table: Table, design: ConditionDesign, level: float) -> Iterator[Suspects]:
    """On every shift, the runs that stand far off in answers, accuracy or score, and each of these
    figures with and without them.

    Nothing where too few are left for a figure. What stands far off, see
    `toolkit.statistics.outliers`.
    """
    single = table.arm(design.name, "replica", list(design.replicas))
    if single is None or len(single.answer_RP) < 4:
        return
    names = table.run_names(design)
    for shift, index_P in table.shifts.items():
        here, options = single.on(index_P), {"cluster_P": table.cluster_P[index_P], "level": level}
        outlying = {what: rows for what, rows in _standing_off(here).items() if len(rows)}
        if not outlying:
            continue
        odd_R = np.unique(np.concatenate(list(outlying.values())))
        keep_R = np.setdiff1d(np.arange(len(names)), odd_R)
        if len(keep_R) >= 2:
            suspected, seen_in = tuple(names[row] for row in odd_R), tuple(outlying)
            with_, without = _figures(here, options), _figures(_of(here, keep_R), options)
            for what in with_:
                yield Suspects(
                    design.name, shift, suspected, what, with_[what], without[what], seen_in
                )


def _standing_off(arm: Arm) -> dict[str, np.ndarray]:
    """In which figure which rows stand far off."""
    rows = {"disagreement": st.odd_answers(arm.answer_RP)}
    if arm.marked:
        rows["accuracy"] = st.odd_marks(arm.correct_RP)
    if arm.score_RP is not None and np.isfinite(arm.score_RP).any():
        rows["score"] = st.odd_runs(np.asarray(arm.score_RP, np.float64))
    return rows


def _figures(arm: Arm, options: dict) -> dict[str, st.Estimate]:
    figures = {"disagreement": st.disagreement(arm.answer_RP, **options)}
    if arm.marked:
        figures["accuracy"] = st.accuracy(arm.correct_RP, **options)
    if arm.score_RP is not None and np.isfinite(arm.score_RP).any():
        figures["score"] = st.score_mean(arm.score_RP, **options)
    return figures


def _of(arm: Arm, rows: np.ndarray) -> Arm:
    return Arm(*(None if table is None else table[rows] for table in arm))  # type: ignore[arg-type]
