"""Conditions against each other, families of mitigations along K, and p-values adjusted for their number."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from toolkit import statistics as st
from toolkit.analyse.cells import mitigation_arms, run_accuracies
from toolkit.analyse.table import Arm, Table
from toolkit.results import Cell, ConditionDesign, ConditionResult, Contrast, Scaling, Thresholds


def contrasts(table: Table, designs: Sequence[ConditionDesign], level: float, paired: bool) -> tuple[Contrast, ...]:
    """Every condition against the first, on every shift; p-values of the ratios adjusted by Holm's method.

    Students of the first condition are not among them: they are measured as a mitigation of it, group by group.
    """
    if len(designs) < 2:
        return ()
    baseline, *others = designs
    students = {mitigation.condition for mitigation in baseline.mitigations}
    found = []
    for design in [design for design in others if design.name not in students]:
        common = sorted(set(design.replicas) & set(baseline.replicas)) if paired and _same_teachers(design, baseline) else []
        together = len(common) >= 2
        b = table.arm(design.name, "replica", common if together else list(design.replicas))
        a = table.arm(baseline.name, "replica", common if together else list(baseline.replicas))
        if b is None or a is None or min(len(b.answer_RP), len(a.answer_RP)) < 2:
            continue
        for shift, at in table.shifts.items():
            place = b.on(at), a.on(at), table.cluster_P[at]
            found.append(Contrast(design.name, baseline.name, shift, together, **_contrast(*place, level, together)))
    adjusted = _known(st.holm([contrast.ratio.p for contrast in found]))
    return tuple(replace(contrast, p_adjusted=p) for contrast, p in zip(found, adjusted, strict=True))


def _same_teachers(a: ConditionDesign, b: ConditionDesign) -> bool:
    """Replicas of the same index are a pair if both learned from the same teacher, or both from the labels."""
    if a.teacher is None or b.teacher is None:
        return a.teacher is b.teacher
    (of_a, of_b) = ({r: tuple(m) for r, m in zip(d.replicas, d.teacher.members, strict=True)} for d in (a, b) if d.teacher)
    return a.teacher.condition == b.teacher.condition and all(of_a[r] == of_b[r] for r in of_a.keys() & of_b.keys())


def _known(p: np.ndarray) -> list[float | None]:
    """None where nothing was tested."""
    return [None if np.isnan(x) else float(x) for x in p]


def _contrast(b: Arm, a: Arm, cluster_P: np.ndarray, level: float, paired: bool) -> dict:
    options = {"cluster_P": cluster_P, "paired": paired, "level": level}
    pair = b.answer_RP, a.answer_RP
    found = {"ratio": st.population_ratio(*pair, **options), "change": st.population_difference(*pair, **options)}
    if b.marked and a.marked:
        found["accuracy_change"] = st.population_accuracy_change(b.correct_RP, a.correct_RP, **options)
        scores = [np.array([np.nan if s is None else s for s in run_accuracies(arm.correct_RP)]) for arm in (b, a)]
        found["score_variance_ratio"] = st.variance_ratio(*scores, paired=paired, level=level)
    return found


def adjusted(conditions: Sequence[ConditionResult]) -> list[ConditionResult]:
    """p-values of all mitigations of all conditions, adjusted: by Holm over the shifts, which are the primary question, and by
    Benjamini and Hochberg over the categories, which are looked through for leads."""
    cells = [cell for condition in conditions for procedure in condition.procedures for cell in procedure.cells]
    p_of: dict[int, float | None] = {}
    for of_category, method in ((False, st.holm), (True, st.benjamini_hochberg)):
        chosen = [cell for cell in cells if bool(cell.category) == of_category and cell.ratio is not None]
        p_of |= dict(zip(map(id, chosen), _known(method([cell.ratio.p if cell.ratio else None for cell in chosen])), strict=True))

    def mark(cell: Cell) -> Cell:
        return replace(cell, p_adjusted=p_of[id(cell)]) if id(cell) in p_of else cell

    return [
        replace(condition, procedures=tuple(replace(p, cells=tuple(map(mark, p.cells))) for p in condition.procedures))
        for condition in conditions
    ]


def scaling(table: Table, design: ConditionDesign, level: float, thresholds: Thresholds) -> tuple[Scaling, ...]:
    """Families that were measured at two or more K: how disagreement falls with K, on every shift."""
    single = table.arm(design.name, "replica", list(design.replicas))
    if single is None:
        return ()
    families: dict[str, dict[int, np.ndarray]] = {}
    for mitigation, arm, members in mitigation_arms(table, design, single):
        blocks = [row for group in members for row in group.tolist()]
        if blocks == list(range(len(blocks))) and len(members) > 1:  # groups in index order: the blocks of the jackknife are whole groups
            families.setdefault(mitigation.title, {1: single.answer_RP})[mitigation.k] = arm.answer_RP
    found = []
    for title, answers in families.items():
        if len(answers) < 3:
            continue
        for shift, at in table.shifts.items():
            on_shift = {k: answer_GP[:, at] for k, answer_GP in sorted(answers.items())}
            fit = st.fit_disagreement(on_shift, cluster_P=table.cluster_P[at], level=level)
            target = max(thresholds.acceptable, 0.001)  # no K reaches none at all
            best = st.smallest_k(fit, target)
            found.append(Scaling(title, shift, fit.floor, fit.slope, fit.exponent, fit.power, target, best.k, best.high, best.note))
    return tuple(found)
