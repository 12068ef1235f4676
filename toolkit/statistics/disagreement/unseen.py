"""Kinds of runs that are not among those at hand: what a verdict must allow for where the runs show
no difference.

An interval is made from the spread that the sample shows. Runs without a difference show none, so
that only prompts are left in their interval, and five equal runs on 600 prompts look as sure as
five hundred. For a figure that is fair, and its note says so; a verdict (a colour, PASS,
"supported") needs both bounds: of kinds of prompts, and of kinds of runs.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np

from toolkit.statistics.arrays import MISSING, as_answers, filled_rows
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import zero_event_bound


def disagreement_for_verdict(differ: Estimate, answer_RP: np.ndarray) -> Estimate:
    """The interval of a disagreement that a verdict may rest on.

    Where no two runs differ, but for one run at most, its upper end is at least the zero-event
    bound over disjoint pairs of the equal runs, as in `disagreement(fresh_prompts=False)`; where
    all pairs differ on all prompts, the lower end accordingly. Else as it is. answer_RP: the codes
    that `differ` was estimated from. Raises ValueError for what are no codes.
    """
    if differ.value is None or differ.low is None or differ.high is None:
        return differ
    if differ.value == 1.0:
        runs = differ.n_replicas
        bound = zero_event_bound(max(1, runs // 2), differ.level)
        return replace(
            differ,
            low=min(differ.low, 1 - bound),
            note=_note(runs, bound, "agreement", differ.note),
        )
    runs = equal_runs(answer_RP)
    if runs is None:
        return differ
    bound = zero_event_bound(max(1, runs // 2), differ.level)
    return replace(
        differ, high=max(differ.high, bound), note=_note(runs, bound, "difference", differ.note)
    )


def share_for_verdict(share: Estimate, mark_RP: np.ndarray) -> Estimate:
    """The same for a share that every run has by itself, an accuracy or a rate, from its marks 1,
    0, and nan or -1 (missing).

    Of N equal runs a kind that makes up q = 1 - (1-level)^(1/N) of all runs may not be among them,
    and may be all right, or all wrong.
    """
    if share.value is None or share.low is None or share.high is None:
        return share
    runs = equal_runs(encode_marks(mark_RP))
    if runs is None:
        return share
    q = zero_event_bound(runs, share.level)
    low, high = (
        min(share.low, (1 - q) * share.value),
        max(share.high, share.value + q * (1 - share.value)),
    )
    return replace(share, low=low, high=high, note=_note(runs, q, "difference", share.note))


def encode_marks(mark_RP: np.ndarray) -> np.ndarray:
    """Marks as codes: equal code, equal mark; -1 = missing."""
    mark_RP = np.asarray(mark_RP)
    codes, code_N = np.unique(mark_RP, return_inverse=True)
    known_RP = np.isfinite(mark_RP) & (mark_RP >= 0)
    return np.where(known_RP, code_N.reshape(mark_RP.shape), MISSING).astype(np.int32)


def equal_runs(answer_RP: np.ndarray) -> int | None:
    """How many runs answer all prompts alike, if that are all of them, or all but one; else None.

    A run without any answer is none; a missing answer (-1) differs from nothing. Fewer than two
    equal runs are none, either.
    """
    answer_RP = as_answers(answer_RP, "answer_RP", at_least=1)
    row_R = filled_rows(answer_RP)
    if not any(_alike(answer_RP[list(pair)]).all() for pair in combinations(row_R[:3], 2)):
        return None  # of any three runs two must be alike: told without a look at the others
    if len(row_R) < len(answer_RP):
        answer_RP = answer_RP[row_R]
    differs_P = ~_alike(answer_RP)
    if not differs_P.any():
        return len(answer_RP)
    answer_RP = answer_RP[:, differs_P]
    for run in _runs_alone(answer_RP[:, 0]):
        rest_RP = np.delete(answer_RP, run, axis=0)
        if len(rest_RP) > 1 and _alike(rest_RP).all():
            return len(rest_RP)
    return None


def _alike(answer_RP: np.ndarray) -> np.ndarray:
    """Prompts that all runs that answered them answer alike."""
    highest_P = answer_RP.max(axis=0)
    alike_P = np.ones(len(highest_P), dtype=bool)
    for row_P in answer_RP:  # row by row: a table may fill the memory
        alike_P &= (row_P < 0) | (row_P == highest_P)
    return alike_P


def _runs_alone(answer_R: np.ndarray) -> list[int]:
    """Runs that are alone with their answer to a prompt, where there are two answers: without one
    of them the others agree.
    """
    codes, count_V = np.unique(answer_R[answer_R >= 0], return_counts=True)
    alone = codes[count_V == 1] if len(codes) == 2 else codes[:0]
    return np.flatnonzero(np.isin(answer_R, alone)).tolist()


def _note(runs: int, bound: float, what: str, before: str) -> str:
    """A bound that is said already is not said twice."""
    warning = (
        f"{runs} runs without a {what} may lack other kinds of runs: an upper limit of "
        f"{bound:.2g} for these"
    )
    return before if warning in before else "; ".join(filter(None, [warning, before]))
