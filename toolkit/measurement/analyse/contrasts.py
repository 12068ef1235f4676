"""Conditions against each other, in all and prompt by prompt, families of mitigations along K, and
p-values adjusted for their number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit import statistics as st
from toolkit.measurement.analyse.procedures import (
    as_base,
    in_words,
    mitigation_arms,
    run_accuracies,
)
from toolkit.measurement.analyse.table import Arm, Table, marked, together
from toolkit.record.results import (
    Cell,
    ChangedPrompt,
    ConditionDesign,
    ConditionResult,
    Contrast,
    Gaps,
    PromptContrast,
    Scaling,
    Thresholds,
)
from toolkit.record.words import mitigation_of

SHOWN = 10
"""Prompts shown of those on which two conditions differ."""
SAME_COMPUTE = 0.05
"""Trainings whose tokens differ by no more than this share cost the same."""


def contrasts(
    table: Table, designs: Sequence[ConditionDesign], level: float, paired: bool
) -> tuple[Contrast, ...]:
    """Every condition against the first, on every shift; p-values of the ratios adjusted by Holm's
    method.

    Students of the first condition are not among them: they are measured as a mitigation of it,
    group by group.
    """
    rows = []
    for design, b, a, by_pairs in _against_first(table, designs, paired):
        rows += _on_every_shift(table, design.name, designs[0].name, b, a, level, by_pairs)
    return _holm(rows)


def mitigated(
    table: Table, designs: Sequence[ConditionDesign], level: float, paired: bool
) -> tuple[Contrast, ...]:
    """Every mitigation of the other conditions against single replicas of the first: averages over
    another schedule, say.

    Of one replica each (K = 1), it is paired with the replica of the first condition that has the
    same seeds.
    """
    first, rows = designs[0], []
    for design in designs[1:]:
        single = table.arm(design.name, "replica", list(design.replicas))
        for m, b, _ in mitigation_arms(table, design, single) if single is not None else ():
            alone = [replica for group in m.members if len(group) == 1 for replica in group]
            by_pairs = (
                paired
                and m.k == 1
                and _same_teachers(design, first)
                and set(alone) <= set(first.replicas)
            )
            a = table.arm(first.name, "replica", alone if by_pairs else list(first.replicas))
            if a is not None and min(len(b.answer_RP), len(a.answer_RP)) >= 2:
                name = mitigation_of(m.title, m.k, design.name)
                rows += _on_every_shift(table, name, first.name, b, a, level, by_pairs)
    return _holm(rows)


def same_compute(
    table: Table, designs: Sequence[ConditionDesign], level: float
) -> tuple[Contrast, ...]:
    """Every mitigation against the conditions whose single training takes as many tokens as all of
    its trainings: K times the epochs, say.

    The compute might have been spent on training longer; of one replica (K = 1) nothing was spent
    beside its training. Groups share no replica with the other condition; that replicas of the same
    number have the same seeds makes the intervals a little wide.
    """
    rows = []
    for design in designs:
        single = table.arm(design.name, "replica", list(design.replicas))
        for other in designs if single is not None else ():
            a = (
                table.arm(other.name, "replica", list(other.replicas))
                if other is not design and other.price.tokens
                else None
            )
            if a is None or single is None or len(a.answer_RP) < 2:
                continue
            for m, b, _ in mitigation_arms(table, design, single):
                spent = (
                    m.price.tokens / other.price.tokens
                    if m.k > 1 and m.price.tokens and other.price.tokens
                    else 0.0
                )
                if abs(spent - 1) <= SAME_COMPUTE and len(b.answer_RP) >= 2:
                    name = mitigation_of(m.title, m.k, design.name)
                    rows += _on_every_shift(table, name, other.name, b, a, level, False)
    return _holm(rows)


def by_prompt(
    table: Table, designs: Sequence[ConditionDesign], level: float, paired: bool
) -> tuple[PromptContrast, ...]:
    """Every condition against the first, prompt by prompt; p-values adjusted by the method of
    Benjamini and Hochberg over all prompts.
    """
    contrasts = []
    for design, b, a, by_pairs in _against_first(table, designs, paired):
        names = design.name, designs[0].name
        contrasts.append(
            _prompts(
                table,
                *names,
                "disagreement",
                by_pairs,
                st.disagreement_by_prompt(b.answer_RP, a.answer_RP, paired=by_pairs),
                level,
            )
        )
        if b.marked and a.marked:
            tests = st.accuracy_by_prompt(b.correct_RP, a.correct_RP, paired=by_pairs)
            contrasts.append(_prompts(table, *names, "accuracy", by_pairs, tests, level))
    return tuple(contrast for contrast in contrasts if contrast.tested)


def _prompts(
    table: Table,
    condition: str,
    baseline: str,
    figure: str,
    paired: bool,
    tests: st.PromptTests,
    level: float,
) -> PromptContrast:
    adjusted_P = st.benjamini_hochberg(tests.p_P)
    order = np.lexsort((-np.abs(tests.b_P - tests.a_P), tests.p_P))  # nan comes last
    shown = []
    for i in order[:SHOWN]:
        suite, prompt = table.prompts[i]
        if tests.p_P[i] < 1:
            numbers = (float(x_P[i]) for x_P in (tests.b_P, tests.a_P, tests.p_P, adjusted_P))
            shown.append(
                ChangedPrompt(
                    suite,
                    prompt.id,
                    in_words(prompt.prompt),
                    prompt.category,
                    prompt.shift,
                    *numbers,
                )
            )
    clear = int(np.sum(adjusted_P < 1 - level))
    return PromptContrast(
        condition, baseline, figure, paired, int(np.sum(~np.isnan(tests.p_P))), clear, tuple(shown)
    )


def _against_first(
    table: Table, designs: Sequence[ConditionDesign], paired: bool
) -> Iterator[tuple[ConditionDesign, Arm, Arm, bool]]:
    """Of every other condition but its students: its replicas, those of the first, and whether they
    are pairs of the same seeds.
    """
    students = {mitigation.condition for design in designs[:1] for mitigation in design.mitigations}
    for design in [design for design in designs[1:] if design.name not in students]:
        pairs = paired and _same_teachers(design, designs[0])
        common = sorted(set(design.replicas) & set(designs[0].replicas)) if pairs else []
        by_pairs = len(common) >= 2
        b, a = (
            table.arm(condition.name, "replica", common if by_pairs else list(condition.replicas))
            for condition in (design, designs[0])
        )
        if b is not None and a is not None and min(len(b.answer_RP), len(a.answer_RP)) >= 2:
            yield design, b, a, by_pairs


def _on_every_shift(
    table: Table, condition: str, baseline: str, b: Arm, a: Arm, level: float, by_pairs: bool
) -> Iterator[Contrast]:
    base = table.arm("", "base", [0])
    for shift, index_P in table.shifts.items():
        options = {"cluster_P": table.cluster_P[index_P], "paired": by_pairs, "level": level}
        yield Contrast(
            condition,
            baseline,
            shift,
            by_pairs,
            **_contrast(b, a, index_P, options, base.on(index_P) if base else None),
        )


def _holm(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    adjusted = p_or_none(st.holm([contrast.ratio.p for contrast in contrasts]))
    return tuple(
        replace(contrast, p_adjusted=p) for contrast, p in zip(contrasts, adjusted, strict=True)
    )


def _same_teachers(a: ConditionDesign, b: ConditionDesign) -> bool:
    """Replicas of the same index are a pair if both learned from the same teacher, or both from the
    labels.
    """
    if a.teacher is None or b.teacher is None:
        return a.teacher is b.teacher
    (of_a, of_b) = (
        {r: tuple(m) for r, m in zip(d.replicas, d.teacher.members, strict=True)}
        for d in (a, b)
        if d.teacher
    )
    return a.teacher.condition == b.teacher.condition and all(
        of_a[r] == of_b[r] for r in of_a.keys() & of_b.keys()
    )


def p_or_none(p: np.ndarray) -> list[float | None]:
    """None where nothing was tested."""
    return [None if np.isnan(x) else float(x) for x in p]


def _contrast(b: Arm, a: Arm, index_P: np.ndarray, options: dict, base: Arm | None) -> dict:
    """On the prompts `at`. Answers first, then marks: two tables fill the memory."""
    place = together(index_P)
    pair = b.answer_RP[:, place], a.answer_RP[:, place]
    figures: dict[str, Any] = {
        "ratio": st.population_ratio(*pair, **options),
        "change": st.population_difference(*pair, **options),
    }
    if options["paired"]:
        b_RP, a_RP = pair
        differs_RP = np.where((b_RP < 0) | (a_RP < 0), np.nan, b_RP != a_RP)
        figures["pair_differs"] = st.accuracy(
            differs_RP, cluster_P=options["cluster_P"], level=options["level"]
        )
        del b_RP, a_RP, differs_RP
    if base is not None:
        figures["effect_size"] = st.population_effect_size(*pair, base.answer_RP[0], **options)
        alone = {name: value for name, value in options.items() if name != "paired"}
        figures["as_base"], figures["baseline_as_base"] = (
            as_base(answer_RP, base.answer_RP[0], alone) for answer_RP in pair
        )
    marks = b.correct_RP[:, place], a.correct_RP[:, place]
    figures["gaps"] = _gaps(pair, marks, options)
    del pair
    if all(map(marked, marks)):
        figures["accuracy_change"] = st.population_accuracy_change(*marks, **options)
        scores = [
            np.array([np.nan if s is None else s for s in run_accuracies(mark_RP)])
            for mark_RP in marks
        ]
        figures["score_variance_ratio"] = st.variance_ratio(
            *scores, paired=options["paired"], level=options["level"]
        )
        if base is not None and base.marked:
            figures["gain_kept"] = st.population_gain_kept(*marks, base.correct_RP[0], **options)
    del marks
    scores = [arm.score_RP[:, place] for arm in (b, a) if arm.score_RP is not None]
    if len(scores) == 2 and all(np.isfinite(score).any() for score in scores):
        figures["score_change"] = st.population_score_change(*scores, **options)
    return figures


def _gaps(
    pair: tuple[np.ndarray, np.ndarray], marks: tuple[np.ndarray, np.ndarray], options: dict
) -> Gaps | None:
    """Answers that one of two conditions lacks; None where neither does."""
    if all((answer_RP >= 0).all() for answer_RP in pair):
        return None
    answered_P = [(answer_RP >= 0).any(axis=0) for answer_RP in pair]
    both_P = answered_P[0] & answered_P[1]
    common, either = int(both_P.sum()), int((answered_P[0] | answered_P[1]).sum())
    lost, lost_a = (
        float((answer_RP[:, both_P] < 0).mean()) if common else 0.0 for answer_RP in pair
    )
    gaps = Gaps(common, either, lost, lost_a)
    if not (lost or lost_a) or not all(map(marked, marks)):
        return gaps
    known_P = both_P & ((marks[0] >= 0).any(axis=0) | (marks[1] >= 0).any(axis=0))
    worst = [
        np.where((answer_RP < 0) & known_P, mark_RP.dtype.type(0), mark_RP)
        for answer_RP, mark_RP in zip(pair, marks, strict=True)
    ]
    at_worst = st.population_accuracy_change(worst[0], worst[1], **options)
    return replace(gaps, at_worst=at_worst)


def adjusted(conditions: Sequence[ConditionResult]) -> list[ConditionResult]:
    """p-values of all mitigations of all conditions, adjusted: by Holm over the shifts, which are
    the primary question, and by Benjamini and Hochberg over the categories, which are looked
    through for leads.
    """
    cells = [
        cell
        for condition in conditions
        for procedure in condition.procedures
        for cell in procedure.cells
    ]
    p_of: dict[int, float | None] = {}
    for of_category, method in ((False, st.holm), (True, st.benjamini_hochberg)):
        chosen = [
            cell for cell in cells if bool(cell.category) == of_category and cell.ratio is not None
        ]
        p_of |= dict(
            zip(
                map(id, chosen),
                p_or_none(method([cell.ratio.p if cell.ratio else None for cell in chosen])),
                strict=True,
            )
        )

    def mark(cell: Cell) -> Cell:
        return replace(cell, p_adjusted=p_of[id(cell)]) if id(cell) in p_of else cell

    return [
        replace(
            condition,
            procedures=tuple(
                replace(p, cells=tuple(map(mark, p.cells))) for p in condition.procedures
            ),
        )
        for condition in conditions
    ]


def scaling(
    table: Table, design: ConditionDesign, level: float, thresholds: Thresholds
) -> tuple[Scaling, ...]:
    """Families that were measured at two or more K: how disagreement falls with K, on every
    shift.
    """
    single = table.arm(design.name, "replica", list(design.replicas))
    if single is None:
        return ()
    families: dict[str, dict[int, np.ndarray]] = {}
    for mitigation, arm, members in mitigation_arms(table, design, single):
        blocks = [row for group in members for row in group.tolist()]
        if (
            blocks == list(range(len(blocks))) and len(members) > 1
        ):  # groups in index order: the blocks of the jackknife are whole groups
            families.setdefault(mitigation.title, {1: single.answer_RP})[mitigation.k] = (
                arm.answer_RP
            )
    curves = []
    for title, answers in families.items():
        if len(answers) < 3:
            continue
        for shift, index_P in table.shifts.items():
            on_shift = {k: answer_GP[:, index_P] for k, answer_GP in sorted(answers.items())}
            fit = st.fit_disagreement(on_shift, cluster_P=table.cluster_P[index_P], level=level)
            target = max(thresholds.acceptable, 0.001)  # no K reaches none at all
            best = st.smallest_k(fit, target)
            curves.append(
                Scaling(
                    title,
                    shift,
                    fit.floor,
                    fit.slope,
                    fit.exponent,
                    fit.power,
                    target,
                    best.k,
                    best.high,
                    best.note,
                )
            )
    return tuple(curves)
