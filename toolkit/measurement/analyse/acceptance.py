"""The user's own criteria, held against every procedure: PASS or FAIL only where a one-sided limit
says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from toolkit import statistics as st
from toolkit.errors import FtkError
from toolkit.measurement.analyse.procedures import mitigation_arms, run_accuracies
from toolkit.measurement.analyse.table import Arm, Table
from toolkit.measurement.meaning import canonical, code_answers
from toolkit.recipe import Criterion
from toolkit.record.results import ConditionDesign, Judgement
from toolkit.record.words import percent


class CriterionError(FtkError, ValueError):
    """A criterion about prompts that are not there; one line."""


Answer = tuple[st.Estimate, str]  # the estimate, and its unit


def judge(
    table: Table, designs: Sequence[ConditionDesign], criteria: Sequence[Criterion]
) -> tuple[Judgement, ...]:
    """Each criterion for single replicas and for every mitigation of each condition."""
    judgements = []
    for criterion in criteria:
        places = _places(table, criterion)
        for design in designs:
            single = table.arm(design.name, "replica", list(design.replicas))
            if single is None:
                continue
            arms = [
                ("replica", 1, single),
                *((m.label, m.k, arm) for m, arm, _ in mitigation_arms(table, design, single)),
            ]
            for label, k, arm in arms:
                judgements.append(_judgement(table, criterion, places, design.name, label, k, arm))
    return tuple(judgements)


def _places(table: Table, criterion: Criterion) -> dict[str, np.ndarray]:
    """Name -> prompts: the suite, one category of it, or with `aggregation: worst` each category by
    itself.

    Raises CriterionError where the criterion names what is not there.
    """
    index_P = table.suites.get(criterion.suite, table.shifts.get(criterion.suite))
    if index_P is None:
        names_there = ", ".join(dict.fromkeys([*table.suites, *table.shifts]))
        raise CriterionError(
            f"criterion {criterion.name!r}: no suite {criterion.suite!r}; there are: {names_there}"
        )
    category_P = np.array([prompt.category for _, prompt in table.prompts])[index_P]
    names = list(dict.fromkeys(category_P.tolist()))
    if criterion.category is not None:
        if criterion.category not in names:
            raise CriterionError(
                f"criterion {criterion.name!r}: no category {criterion.category!r} in "
                f"{criterion.suite}; there are: {', '.join(names)}"
            )
        names = [criterion.category]
    elif criterion.aggregation == "mean":
        return {criterion.suite: index_P}
    return {f"{criterion.suite}, {name}": index_P[category_P == name] for name in names}


def _judgement(
    table: Table,
    criterion: Criterion,
    places: dict[str, np.ndarray],
    condition: str,
    label: str,
    k: int,
    arm: Arm,
) -> Judgement:
    """Over several places the worst counts: PASS when all pass, FAIL when one fails, each at its
    share of the error (Bonferroni).
    """
    confidence = 1 - (1 - criterion.confidence) / len(places)
    judged = []
    for where, index_P in places.items():
        estimate, unit = _one_sided(
            lambda level, index_P=index_P: _measure(
                table, criterion, arm.on(index_P), table.cluster_P[index_P], level
            ),
            confidence,
        )
        judged.append((where, estimate, unit, *_verdict(criterion, estimate)))
    rank = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
    sign = -1.0 if criterion.at_most else 1.0
    worst = min(
        judged, key=lambda j: (rank[j[3]], sign * (j[1].value if j[1].value is not None else 0.0))
    )
    where, estimate, unit, verdict, reason = worst
    limit = f"{'at most' if criterion.at_most else 'at least'} {percent(criterion.limit)}"
    names = criterion.name, where, limit, criterion.confidence, criterion.consequence
    return Judgement(*names, condition, label, k, verdict, estimate, unit, reason)


def _one_sided(measure: Callable[[float], Answer], confidence: float) -> Answer:
    """An estimate whose ends each hold with `confidence` by itself: an interval of twice the error.

    At 0 and 1 the interval is one-sided already, so it is taken at the confidence itself. It allows
    for kinds of prompts and of runs.
    """
    estimate, unit = measure(round(2 * confidence - 1, 12))
    if estimate.value in (0.0, 1.0):
        estimate, unit = measure(confidence)
    return estimate, unit


def _verdict(criterion: Criterion, estimate: st.Estimate) -> tuple[str, str]:
    low, high = estimate.low, estimate.high
    if estimate.value is None or low is None or high is None:
        return "INCONCLUSIVE", estimate.note or "nothing to measure it with"
    if not estimate.conclusive:
        return "INCONCLUSIVE", estimate.note or "too few runs"
    below, above = high <= criterion.limit, low >= criterion.limit
    if below != above:
        return ("PASS" if below == criterion.at_most else "FAIL"), ""
    return "INCONCLUSIVE", "; ".join(
        filter(None, ["the limit lies within the interval", estimate.note])
    )


def _measure(
    table: Table, criterion: Criterion, arm: Arm, cluster_P: np.ndarray, level: float
) -> Answer:
    options = {"cluster_P": cluster_P, "level": level}
    runs = len(arm.answer_RP)
    if runs < 2:
        return st.without_interval(
            None, level, runs, len(cluster_P), st.MIN_GROUPS, "fewer than two runs"
        ), "%"
    if criterion.statistic == "disagreement":
        answer_RP = _observed(table, criterion.observable, arm)
        return st.disagreement_for_verdict(st.disagreement(answer_RP, **options), answer_RP), "%"
    if criterion.statistic in ("rate", "accuracy"):
        mark_RP = (
            _matches(table, criterion.observable, arm)
            if criterion.statistic == "rate"
            else arm.correct_RP
        )
        return st.share_for_verdict(st.accuracy(mark_RP, **options), mark_RP), "%"
    if criterion.statistic == "accuracy-sd":
        spread = st.accuracy_spread(arm.correct_RP, **options).sd
        return spread, "%"
    scores = [score for score in run_accuracies(arm.correct_RP) if score is not None]
    if not scores:
        return st.without_interval(
            None, level, 0, len(cluster_P), None, "no prompt has a reference"
        ), "%"
    below = sum(score < (criterion.below or 0.0) for score in scores)
    tail = st.failure_rate(below, len(scores), level=level)
    return replace(
        tail, n_prompts=len(cluster_P), method="Clopper-Pearson over runs, on these prompts"
    ), "%"


def _observed(table: Table, observable: str, arm: Arm) -> np.ndarray:
    """Codes of what the criterion looks at: equal code, equal in the user's eyes."""
    if observable == "answer":
        return arm.answer_RP
    if observable == "text":
        return arm.text_RP
    if observable == "correct":
        marks_RP = arm.correct_RP
        known_RP = np.isfinite(marks_RP) & (marks_RP >= 0)
        return np.where(known_RP, marks_RP, st.MISSING).astype(np.int32)
    return code_answers(arm.text_RP, table.texts, observable)[0]


def _matches(table: Table, observable: str, arm: Arm) -> np.ndarray:
    """1 where the text holds the pattern, 0 where not, nan where there is no text; `correct` marks
    wrong answers.
    """
    if observable == "correct":
        marks_RP = np.where(
            np.isfinite(arm.correct_RP) & (arm.correct_RP >= 0), arm.correct_RP, np.nan
        )
        return 1.0 - marks_RP
    seen = np.unique(arm.text_RP)
    seen = seen[seen >= 0]
    match_V = np.full(len(table.texts) + 1, np.nan)
    match_V[seen] = [bool(canonical(table.texts[v], observable)) for v in seen.tolist()]
    return match_V[arm.text_RP]
