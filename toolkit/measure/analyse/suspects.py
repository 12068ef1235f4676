"""Runs that stand far off the others, by name, and what a figure is without them."""

from collections.abc import Iterator

import numpy as np

from toolkit import statistics as st
from toolkit.measure.analyse.table import Arm, Table
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
    for shift, at in table.shifts.items():
        here, options = single.on(at), {"cluster_P": table.cluster_P[at], "level": level}
        odd = {what: rows for what, rows in _standing_off(here).items() if len(rows)}
        if not odd:
            continue
        odd_R = np.unique(np.concatenate(list(odd.values())))
        keep_R = np.setdiff1d(np.arange(len(names)), odd_R)
        if len(keep_R) >= 2:
            told, seen_in = tuple(names[row] for row in odd_R), tuple(odd)
            with_, without = _figures(here, options), _figures(_of(here, keep_R), options)
            for what in with_:
                yield Suspects(design.name, shift, told, what, with_[what], without[what], seen_in)


def _standing_off(arm: Arm) -> dict[str, np.ndarray]:
    """In which figure which rows stand far off."""
    found = {"disagreement": st.odd_answers(arm.answer_RP)}
    if arm.marked:
        found["accuracy"] = st.odd_marks(arm.correct_RP)
    if arm.score_RP is not None and np.isfinite(arm.score_RP).any():
        found["score"] = st.odd_runs(np.asarray(arm.score_RP, np.float64))
    return found


def _figures(arm: Arm, options: dict) -> dict[str, st.Estimate]:
    found = {"disagreement": st.disagreement(arm.answer_RP, **options)}
    if arm.marked:
        found["accuracy"] = st.accuracy(arm.correct_RP, **options)
    if arm.score_RP is not None and np.isfinite(arm.score_RP).any():
        found["score"] = st.score_mean(arm.score_RP, **options)
    return found


def _of(arm: Arm, rows: np.ndarray) -> Arm:
    return Arm(*(None if table is None else table[rows] for table in arm))  # type: ignore[arg-type]
