"""Runs that stand far off the others, as runs do that failed and were not recognised as failed.

They are named, so that a person can say whether they failed. Means, shares and standard deviations
are not withheld because of them: only samples that happen to lack such runs would be left, and
those know least. Ratios of variances are, below MIN_RUNS_ODD runs. Three things are looked at, each
with one rule; spread = 1.4826 times the median absolute deviation, the standard deviation of normal
values:

    a number on either side  `far_from_median`   more than 6 spreads off the median;
                                                 nothing can be told of fewer than 8 numbers
    a distance, 0 at best    `far_from_centre`   more than 2.5 medians, and 8 spreads (12 for
                                                 rates of single events) above the median
    a share that differs     `odd_replicas`      more than 2 medians, and 6 spreads above it,
                                                 counting on the prompts at hand allowed for
"""

import math

import numpy as np

from toolkit.statistics.arrays import ROUNDING, blocks, cells, filled_rows, marks
from toolkit.statistics.pairs import Pairs, count_pairs

# Of standard deviations, where such a run weighs by its square: seen to be covered from here.
MIN_RUNS_ODD = 100


FEWEST = 8


def far_from_median(x_N: np.ndarray, scale: float = 0.0) -> np.ndarray:
    """Places of numbers more than six spreads off the median.

    Where more than half are equal, all others are: an interval for their standard deviation was
    seen to cover 72 to 93 % with 10 to 30 runs. scale: size of the numbers that x are deviations
    of; what is below 1e-12 of it, or of the largest x, is rounding.
    """
    x_N = np.ravel(x_N)
    if len(x_N) < FEWEST:
        return np.zeros(0, dtype=np.int64)
    distance_N = np.abs(x_N - np.median(x_N))
    rounding = ROUNDING * max(scale, float(np.abs(x_N).max()))
    return np.flatnonzero(distance_N > max(6 * _spread(distance_N), rounding))


def far_from_centre(distance_N: np.ndarray, deviations: float = 8.0) -> np.ndarray:
    """Places of distances that are more than 2.5 times the median one, and `deviations` spreads
    above it.

    Distances are skewed: limits of 2 and 6 would find one in a fifth of the populations of 30
    normal runs.
    """
    if not len(distance_N):
        return np.zeros(0, dtype=np.int64)
    middle = float(np.median(distance_N))
    return np.flatnonzero(
        (distance_N > 2.5 * middle)
        & (distance_N > middle + deviations * _spread(np.abs(distance_N - middle)))
    )


def run_distance(distance_RP: np.ndarray, present_RP: np.ndarray) -> np.ndarray:
    """Root mean square distance of every run, of squared distances per cell."""
    mean_R = np.where(present_RP, distance_RP, 0.0).sum(axis=1) / np.maximum(
        present_RP.sum(axis=1), 1
    )
    return np.sqrt(np.maximum(mean_R, 0.0))


def odd_replicas(pairs: Pairs) -> np.ndarray:
    """Rows whose share of answers that differ from those of the others is far above that of the
    median replica.
    """
    return Differing(len(pairs.present_RP)).add(pairs).rows()


class Differing:
    """The same for a table that comes in blocks of prompts."""

    def __init__(self, n_replicas: int) -> None:
        self.agreeing_R, self.answered_R, self.n_prompts = (
            np.zeros(n_replicas),
            np.zeros(n_replicas, dtype=np.int64),
            0,
        )

    def add(self, pairs: Pairs) -> "Differing":
        """Count, for each replica, the share of the others that agree with it, and the prompts that
        it answered.
        """
        others_P = np.maximum(pairs.present_RP.sum(axis=0) - 1, 1)
        self.agreeing_R += np.sum(pairs.others_RP / others_P, axis=1)
        self.answered_R += pairs.present_RP.sum(axis=1)
        self.n_prompts += pairs.present_RP.shape[1]
        return self

    def rows(self) -> np.ndarray:
        """The rows that differ from the others far more often than the median one."""
        differ_R = 1.0 - self.agreeing_R / np.maximum(self.answered_R, 1)
        if not len(differ_R) or not self.n_prompts:
            return np.zeros(0, dtype=np.int64)
        middle = float(np.median(differ_R))
        counting = math.sqrt(max(middle, 1 / self.n_prompts) / self.n_prompts)
        limit = 6 * math.hypot(_spread(np.abs(differ_R - middle)), counting)
        return np.flatnonzero((differ_R > 2 * middle) & (differ_R > middle + limit))


def odd_note(row_R: np.ndarray) -> str:
    """A note that names odd rows [R]; empty without any."""
    names = ", ".join(str(row) for row in row_R[:5]) + (", ..." if len(row_R) > 5 else "")
    return (
        f"rows {names} differ from the others more than twice as often as the median one: "
        "did they fail?"
        if names
        else ""
    )


def _spread(distance_N: np.ndarray) -> float:
    """Of distances from the median, a standard deviation that a few of them cannot upset."""
    return 1.4826 * float(np.median(distance_N))


def odd_answers(answer_RP: np.ndarray) -> np.ndarray:
    """Rows whose answers differ from the others' far more often than the median row's (see
    `odd_replicas`), in blocks of prompts.
    """
    row_R = filled_rows(answer_RP)
    differing = Differing(len(row_R))
    for block_P in blocks(*answer_RP.shape):
        differing.add(count_pairs(cells(answer_RP, row_R, block_P)))
    return row_R[differing.rows()]


def odd_marks(correct_RP: np.ndarray) -> np.ndarray:
    """Rows whose accuracy stands far off that of the others (see `far_from_median`), counting on
    the prompts at hand allowed for.
    """
    row_R = filled_rows(correct_RP)
    right_R, marked_R = np.zeros(len(row_R)), np.zeros(len(row_R))
    for block_P in blocks(*correct_RP.shape):
        mark_RP = marks(cells(correct_RP, row_R, block_P))
        right_R += np.nansum(mark_RP, axis=1)
        marked_R += np.isfinite(mark_RP).sum(axis=1)
    right_R = right_R / np.maximum(marked_R, 1)
    middle, n = (
        float(np.median(right_R)) if len(right_R) else 0.0,
        max(1.0, float(np.max(marked_R, initial=1))),
    )
    counting = math.sqrt(max(middle * (1 - middle), 1 / n) / n)
    far_R = far_from_median(right_R)
    return row_R[far_R[np.abs(right_R[far_R] - middle) > 6 * counting]]


def odd_runs(score_RP: np.ndarray) -> np.ndarray:
    """Rows whose mean score, about what prompts are like, stands far off those of the others."""
    known_RP = np.isfinite(score_RP)
    count_R, count_P = known_RP.sum(axis=1), known_RP.sum(axis=0)
    filled_RP = np.where(known_RP, score_RP, 0.0)
    mean_P = filled_RP.sum(axis=0) / np.maximum(count_P, 1)
    row_R = np.flatnonzero(count_R)
    mean_R = np.where(known_RP, filled_RP - mean_P, 0.0)[row_R].sum(axis=1) / count_R[row_R]
    return row_R[far_from_median(mean_R, float(np.abs(filled_RP).max(initial=0.0)))]
