"""Conditions against each other, families of mitigations along K, and p-values adjusted for their number."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from toolkit import statistics as st
from toolkit.analyse.cells import mitigation_arms, run_accuracies
from toolkit.analyse.table import Arm, Table, marked, together
from toolkit.results import Cell, ConditionDesign, ConditionResult, Contrast, Scaling, Thresholds


def contrasts(table: Table, designs: Sequence[ConditionDesign], level: float, paired: bool) -> tuple[Contrast, ...]:
    """Every condition against the first, on every shift; p-values of the ratios adjusted by Holm's method."""
    if len(designs) < 2:
        return ()
    baseline, *others = designs
    found = []
    for design in others:
        common = sorted(set(design.replicas) & set(baseline.replicas)) if paired else []
        by_pairs = len(common) >= 2
        b = table.arm(design.name, "replica", common if by_pairs else list(design.replicas))
        a = table.arm(baseline.name, "replica", common if by_pairs else list(baseline.replicas))
        if b is None or a is None or min(len(b.answer_RP), len(a.answer_RP)) < 2:
            continue
        for shift, at in table.shifts.items():
            options = {"cluster_P": table.cluster_P[at], "paired": by_pairs, "level": level}
            found.append(Contrast(design.name, baseline.name, shift, by_pairs, **_contrast(b, a, at, options)))
    adjusted = _known(st.holm([contrast.ratio.p for contrast in found]))
    return tuple(replace(contrast, p_adjusted=p) for contrast, p in zip(found, adjusted, strict=True))


def _known(p: np.ndarray) -> list[float | None]:
    """None where nothing was tested."""
    return [None if np.isnan(x) else float(x) for x in p]


def _contrast(b: Arm, a: Arm, at: np.ndarray, options: dict) -> dict:
    """On the prompts `at`. Answers first, then marks: two tables fill the memory."""
    place = together(at)
    pair = b.answer_RP[:, place], a.answer_RP[:, place]
    found = {"ratio": st.population_ratio(*pair, **options), "change": st.population_difference(*pair, **options)}
    del pair
    marks = b.correct_RP[:, place], a.correct_RP[:, place]
    if all(map(marked, marks)):
        found["accuracy_change"] = st.population_accuracy_change(*marks, **options)
        scores = [np.array([np.nan if s is None else s for s in run_accuracies(mark_RP)]) for mark_RP in marks]
        found["score_variance_ratio"] = st.variance_ratio(*scores, paired=options["paired"], level=options["level"])
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
