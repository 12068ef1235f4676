"""Intervals that may be looked at after every replica, and the rule that stops when they say
enough.

An interval made for a fixed N fails when N is chosen by looking at it. A confidence sequence holds
at all sizes at once, so training may stop whenever it pleases. Its price: pairs of replicas are
disjoint (N/2 values instead of N(N-1)/2 pairs), the interval is wider than one for a fixed N, and
it speaks of the prompts at hand only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import as_answers, as_level, filled_rows
from toolkit.statistics.estimate import Estimate

LARGEST_BET = 0.75
"""Share of the capital that one value may cost: any constant below 1 is valid, 1/2 and 3/4 are
Waudby-Smith & Ramdas' own. 3/4 needed a quarter fewer pairs than 1/2 for a half-width of one point
in simulation, where D is 0.02 to 0.1.
"""
ANYTIME = (
    "anytime-valid hedged-capital confidence sequence over disjoint pairs of replicas, "
    "conservative, for these prompts only"
)


def pair_disagreement(answer_RP: np.ndarray) -> np.ndarray:
    """x_J: for the disjoint pairs of replicas (0, 1), (2, 3), ..., the share of prompts that a pair
    answers differently.

    Given the prompts, x_J are independent draws with mean D, the disagreement of two fresh runs on
    these prompts. answer_RP: int codes in index order of the replicas, -1 = missing. A replica
    without any answer has failed: it is passed over before pairs are made (report it by
    `failure_rate`), and a last one without a partner waits. Of a pair only the prompts that both
    answered count; nan where there are none. Raises ValueError for other shapes or dtypes.
    """
    answer_RP = as_answers(answer_RP, "answer_RP", at_least=0)
    answer_RP = answer_RP[filled_rows(answer_RP)]
    one_JP, other_JP = answer_RP[: len(answer_RP) // 2 * 2 : 2], answer_RP[1::2]
    both_JP = (one_JP >= 0) & (other_JP >= 0)
    differ_J, both_J = ((one_JP != other_JP) & both_JP).sum(axis=1), both_JP.sum(axis=1)
    return np.where(both_J > 0, differ_J / np.maximum(both_J, 1), np.nan)


class ConfidenceSequence:
    """An interval for the mean of values in [0, 1] seen one by one, valid at every moment at once.

    Which question: what is the mean, when nobody said beforehand how many values there would be?
    Estimand: the mean m of independent draws (more generally: the mean of each value given those
    before it, as long as that is the same for all). P(m lies in [low, high] after 1, 2, 3, ...
    values, all of them) >= level.

    Hedged capital (Waudby-Smith & Ramdas 2024, JRSS B 86:1, section 4): for each candidate mean m
    two gamblers bet, one that the values lie above m, one below. If m is true their capital is a
    martingale, and that its mean ever exceeds 1/alpha has a probability of at most alpha (Ville). A
    candidate that makes them rich is rejected for ever, so the interval only shrinks. The stakes
    come from the mean and variance of earlier values.

    The capital is monotone in m on either side, so the candidates left are an interval; they are a
    grid, finer near 0 and 1, and the ends reported are the nearest rejected candidates: outward, by
    1e-4 or 2 % of the mean at most. nan values (a pair without a common prompt) are passed over and
    counted. Where every candidate is rejected, which independent draws do with probability below
    alpha, low and high are nan: the values are not draws with one mean.
    """

    def __init__(self, level: float = 0.95):
        self.level = as_level(level)
        self.low, self.high = 0.0, 1.0
        self.count = self.missing = 0
        self.total = 0.0
        self._square = 0.25
        self._m_M = _candidates()
        # logs of capital
        self._above_M, self._below_M = (
            np.zeros_like(self._m_M),
            np.zeros_like(self._m_M),
        )

    @property
    def half_width(self) -> float:
        """Half the width of the interval now."""
        return (self.high - self.low) / 2

    def add(self, x: float) -> None:
        """One more value. Raises ValueError outside [0, 1]."""
        if math.isnan(x):
            self.missing += 1
            return
        if not 0.0 <= x <= 1.0:
            raise ValueError(f"a confidence sequence takes values from 0 to 1, not {x}")
        self.count += 1
        t, stake = self.count, math.log(2 / (1 - self.level))
        # the variance so far is _square / t
        bet = math.sqrt(2 * stake / (self._square * math.log(t + 1)))
        m_M = self._m_M
        with np.errstate(divide="ignore"):
            self._above_M += np.log1p(np.minimum(bet, LARGEST_BET / m_M) * (x - m_M))
            self._below_M += np.log1p(np.minimum(bet, LARGEST_BET / (1 - m_M)) * (m_M - x))
        self.total += x
        self._square += (x - (0.5 + self.total) / (t + 1)) ** 2
        left = np.flatnonzero(np.maximum(self._above_M, self._below_M) < stake)
        if len(left) == len(m_M):
            return
        if len(left) == 0:
            self.low = self.high = math.nan
        else:
            first, last = int(left[0]), int(left[-1])
            self.low = float(m_M[first - 1]) if first else self.low
            self.high = float(m_M[last + 1]) if last + 1 < len(m_M) else self.high
        self._m_M, self._above_M, self._below_M = (
            m_M[left],
            self._above_M[left],
            self._below_M[left],
        )

    def to_dict(self) -> dict[str, float | int | None]:
        """The mean and its interval now, for JSON."""
        bounded = self.low <= self.high  # nan is not
        mean = self.total / self.count if self.count else None
        return {
            "pairs": self.count,
            "mean": mean,
            "low": self.low if bounded else None,
            "high": self.high if bounded else None,
        }

    def estimate(self, n_prompts: int) -> Estimate:
        """The state as an Estimate of D on n_prompts prompts, from values of
        `pair_disagreement`.
        """
        shape = (self.level, 2 * self.count, n_prompts, ANYTIME)
        note = f"{self.missing} pairs had no prompt in common" if self.missing else ""
        if self.count == 0:
            return Estimate(None, None, None, *shape, False, 2, note or "no pair of replicas yet")
        if math.isnan(self.low):
            return Estimate(
                self.total / self.count,
                None,
                None,
                *shape,
                False,
                None,
                "the pairs do not look like draws with one mean",
            )
        return Estimate(self.total / self.count, self.low, self.high, *shape, True, None, note)


def confidence_sequence(x_T: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """low_T, high_T: the interval of `ConfidenceSequence` after each value of x_T; nan values leave
    it as it is.

    Raises ValueError unless x_T is one row of values from 0 to 1 or nan.
    """
    x_T = np.asarray(x_T, dtype=np.float64)
    if x_T.ndim != 1:
        raise ValueError(f"x_T must be one row of values, not shape {x_T.shape}")
    sequence = ConfidenceSequence(level)
    ends_T2 = np.empty((len(x_T), 2))
    for t, x in enumerate(x_T):
        sequence.add(float(x))
        ends_T2[t] = sequence.low, sequence.high
    return ends_T2[:, 0], ends_T2[:, 1]


def _candidates() -> np.ndarray:
    """Means from 0 to 1: steps of 1e-4 in the middle, of 2 % below 0.005 and above 0.995, down to
    1e-6 from the ends.
    """
    end = np.geomspace(1e-6, 0.005, 430, endpoint=False)
    return np.concatenate([[0.0], end, np.linspace(0.005, 0.995, 9901), 1 - end[::-1], [1.0]])


@dataclass(frozen=True)
class Decision:
    """Whether to stop training replicas, and why."""

    stop: bool
    reason: str


@dataclass(frozen=True)
class Stopping:
    """When enough replicas have been seen: pure logic, from intervals to a decision.

    targets: figure -> what must be known of it. `{"half_width": 0.01}`: the interval is +- 0.01 or
    narrower. `{"below": 0.05}` or `{"above": 0.05}`: the interval lies on one side of 0.05,
    whichever it is: the question is settled then, be the answer no. All targets must be met. Every
    interval holds at its level by itself, not all of them together.
    """

    targets: Mapping[str, Mapping[str, float]]

    def decide(self, sequences: Mapping[str, ConfidenceSequence]) -> Decision:
        """Continue or stop, given the state of each figure's sequence. Raises ValueError for a
        target that there is not.
        """
        outcomes = [
            _judge(name, kind, limit, sequences[name])
            for name, target in self.targets.items()
            for kind, limit in target.items()
        ]
        stop = all(met for met, _ in outcomes)
        return Decision(stop, "; ".join(sentence for met, sentence in outcomes if met == stop))


def _judge(name: str, kind: str, limit: float, sequence: ConfidenceSequence) -> tuple[bool, str]:
    low, high = sequence.low, sequence.high
    if math.isnan(low):
        return (
            False,
            f"{name}: the pairs do not look like draws with one mean, so no interval can settle it",
        )
    ends = f"[{low:.4f}, {high:.4f}]"
    if kind == "half_width":
        met = sequence.half_width <= limit
        return (
            met,
            f"{name} is known to +- {sequence.half_width:.4f} {ends}, "
            f"{'at most' if met else 'more than'} {limit:g}",
        )
    if kind not in ("below", "above"):
        raise ValueError(f"a target is half_width, below or above, not {kind!r}")
    side = "below" if high <= limit else "above" if low >= limit else ""
    if not side:
        return False, f"{name} {ends} may lie on either side of {limit:g}"
    return True, f"{name} {ends} lies {side} {limit:g}" + (
        "" if side == kind else f", so it is not {kind}"
    )
