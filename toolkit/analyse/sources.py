"""Which source makes runs differ: the parts of a crossed design, or of students nested in their teachers."""

import numpy as np

from toolkit import statistics as st
from toolkit.analyse.cells import run_accuracies
from toolkit.analyse.table import Arm, Table
from toolkit.results import ConditionDesign, Sources


def sources(table: Table, design: ConditionDesign, level: float) -> tuple[Sources, ...]:
    """Disagreement and accuracy of a crossed condition, taken apart on every shift; of one with several students of each teacher group
    their accuracy; nothing for any other design."""
    if not design.factors:
        return ()
    arm = table.arm(design.name, "replica", list(design.everyone or design.replicas))
    if arm is None or len(arm.answer_RP) < 4:
        return ()
    if len(design.factors) == 1:
        return _nested(table, arm, design, level)
    levels = {name: np.asarray(level_R) for name, level_R in design.factors.items()}
    together = np.unique(np.stack(list(levels.values()), axis=1), axis=0, return_inverse=True)[1]  # a combination of seeds
    found = []
    for shift, at in table.shifts.items():
        here = arm.on(at)
        if len(levels) == 2:
            (first, first_R), (second, second_R) = levels.items()
            answers = st.behaviour_components(here.answer_RP, first_R, second_R, cluster_P=table.cluster_P[at], level=level)
            parts = {_named(name, first, second): estimate for name, estimate in answers.parts.items()}
            found.append(Sources(shift, "disagreement", parts, answers.disagreement["fresh"]))
        if here.marked:
            score_R = np.array([np.nan if s is None else s for s in run_accuracies(here.correct_RP)])
            score = st.crossed(score_R, levels, level=level)
            precision = st.iso_5725(score_R, together, level=level)
            words = {"repeatability": precision.repeatability, "intermediate precision": precision.intermediate_precision}
            known = {word: estimate for word, estimate in words.items() if estimate is not None}
            found.append(Sources(shift, "accuracy", dict(score.parts), score.total, known, precision.notes))
    return tuple(found)


def _nested(table: Table, arm: Arm, design: ConditionDesign, level: float) -> tuple[Sources, ...]:
    ((name, group_R),) = design.factors.items()
    found = []
    for shift, at in table.shifts.items():
        here = arm.on(at)
        if here.marked:
            score_R = np.array([np.nan if s is None else s for s in run_accuracies(here.correct_RP)])
            score = st.nested(score_R, np.asarray(group_R), level=level)
            found.append(Sources(shift, "accuracy", {name: score.parts["between"], "residual": score.parts["residual"]}, score.total))
    return tuple(found)


def _named(part: str, first: str, second: str) -> str:
    """The statistics speak of init and order; the design may cross others."""
    return " x ".join({"init": first, "order": second}.get(word, word) for word in part.split(" x "))
