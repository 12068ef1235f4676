"""Two arms that answer the same prompts: where the error of their ratio and difference comes from,
and what may be said of them.

The arms come in blocks of prompts (see `toolkit.statistics.arrays`). What is kept of them is a
number a prompt and a number a unit of resampling, so that two tables of 10,000 x 10,000 answers
need no more memory than the tables themselves.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from toolkit.statistics.arrays import cluster_blocks
from toolkit.statistics.conclusive import clusters_in_words, enough_clusters
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import (
    Leverage,
    TwoWay,
    between_clusters,
    cluster_sums,
    effective,
    jackknife_variance,
    leverage,
    logit_interval,
    zero_event_bound,
)
from toolkit.statistics.pairs import second_order

# seen to cover in simulation from here, where runs differ by at most 1 on the logit of an answer
MIN_GROUPS = 3
SAME_RATIO = 1.25  # ratios within [0.8, 1.25] are called practically no change
SAME_SHARE = 0.01  # and so are differences of at most one percentage point
# where fewer clusters make up a contrast, it was seen to be covered by 78 to 92 %
MIN_CARRIED = 10.0
# the same of shares of right answers, which a few prompts change and nearly all make up
MIN_CARRIED_MEANS = 15.0
# where arms differ on fewer clusters, more of the kind may have been missed than the jackknife sees
MIN_DIFFERING = 10.0
NO_WIDTH = 1e-12  # an interval narrower than this is rounding: nothing differs from anything
SMALLEST_P = 1e-15  # closer to 0 a level has no floating-point number of its own
_BOUND = "zero-event bound over {} prompts or clusters"
AT_LEAST = ", at least the " + _BOUND
Ends = tuple[float, float]


class Parts(Protocol):
    """Where the error of a contrast comes from (see `TwoWay`)."""

    def half_width(self, level: float) -> float:
        """Half the width of the interval."""
        raise NotImplementedError

    def runs_needed(self, effect: float, level: float, at_least: int) -> int | None:
        """Runs from which the interval excludes 0 at this effect; None where no number does."""
        raise NotImplementedError


class Block(NamedTuple):
    """A statistic of both arms on some prompts, sorted by cluster: with all units, and with each
    unit left out (nan: nothing is left).
    """

    b_P: np.ndarray
    a_P: np.ndarray
    left_b_JP: np.ndarray
    left_a_JP: np.ndarray
    cluster_P: np.ndarray


@dataclass(frozen=True)
class Sums:
    """What is kept of the blocks.

    left_b_J, left_a_J: the mean over prompts without each unit; a prompt that has no value left
    keeps its own. shift_b_J, shift_a_J: how far the mean moves; of units that are left out of both
    arms at once, a prompt without a value left in one arm moves in neither.
    has_left: whether any prompt has a value without a unit, in b and in a. noise: [cluster, arm,
    arm], what `between_clusters` calls noise_C, with the covariance of the arms.
    """

    b_P: np.ndarray
    a_P: np.ndarray
    cluster_P: np.ndarray
    left_b_J: np.ndarray
    left_a_J: np.ndarray
    shift_b_J: np.ndarray
    shift_a_J: np.ndarray
    has_left: tuple[bool, bool]
    noise: np.ndarray

    @property
    def clusters(self) -> int:
        """Independent clusters of prompts."""
        return int(self.cluster_P.max()) + 1

    def prompts(self, weight_b: float, weight_a: float, runs: float) -> float:
        """Variance of weight_b * b + weight_a * a that the choice of prompts adds to that of the
        runs (V_P less V_RP, see `two_way`).
        """
        if self.sizes is None:
            return math.nan
        value_P, weight = weight_b * self.b_P + weight_a * self.a_P, np.array([weight_b, weight_a])
        return between_clusters(value_P, self.cluster_P, weight @ self.noise @ weight, runs)[0]

    @cached_property
    def sizes(self) -> Leverage | None:
        """What the clusters are worth; None of one alone."""
        return leverage(np.bincount(self.cluster_P)) if self.clusters > 1 else None


def summed(blocks: Iterable[Block], n_b: int, n_a: int, together: bool) -> Sums | None:
    """Sums over blocks that cover every prompt once; None without a prompt. together: unit j is
    left out of both arms at once.
    """
    values: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    left_J, shift_J, has_left = np.zeros(n_b + n_a), np.zeros(n_b + n_a), [False, False]
    noise: list[np.ndarray] = []

    def shifts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for block in blocks:
            values.append((block.b_P, block.a_P, block.cluster_P))
            known_b, known_a = np.isfinite(block.left_b_JP), np.isfinite(block.left_a_JP)
            left = (
                np.where(known_b, block.left_b_JP, block.b_P),
                np.where(known_a, block.left_a_JP, block.a_P),
            )
            np.add(left_J, np.concatenate([x_JP.sum(axis=1) for x_JP in left]), out=left_J)
            if together:
                known_b = known_a = known_b & known_a
            has_left[0] |= bool(known_b.any())
            has_left[1] |= bool(known_a.any())
            moved = (
                np.where(known_b, left[0] - block.b_P, 0.0),
                np.where(known_a, left[1] - block.a_P, 0.0),
            )
            moved_JP = np.concatenate(moved)
            np.add(shift_J, moved_JP.sum(axis=1), out=shift_J)
            yield moved_JP, block.cluster_P

    for shift_JC in cluster_sums(shifts()):
        b_JC, a_JC = (x_JC - x_JC.mean(axis=0) for x_JC in (shift_JC[:n_b], shift_JC[n_b:]))
        both_C = (
            (n_b - 1) / n_b * np.sum(b_JC * a_JC, axis=0) if together else np.zeros(b_JC.shape[1])
        )
        of_b, of_a = (
            (len(x_JC) - 1) / len(x_JC) * np.sum(x_JC**2, axis=0) for x_JC in (b_JC, a_JC)
        )
        noise.append(np.stack([of_b, both_C, both_C, of_a], axis=1).reshape(-1, 2, 2))
    if not values:
        return None
    b_P, a_P, cluster_P = (np.concatenate(column) for column in zip(*values, strict=True))
    per_unit = (x_J / len(b_P) for x_J in (*np.split(left_J, [n_b]), *np.split(shift_J, [n_b])))
    return Sums(
        b_P,
        a_P,
        np.unique(cluster_P, return_inverse=True)[1],
        *per_unit,
        has_left=(has_left[0], has_left[1]),
        noise=np.concatenate(noise) / len(b_P) ** 2,
    )


def places(used: np.ndarray, cluster_P: np.ndarray, n_rows: int) -> Iterator[np.ndarray]:
    """The prompts `used` in blocks, sorted by cluster."""
    return (used[block] for block in cluster_blocks(n_rows, cluster_P[used]))


@dataclass(frozen=True)
class Arms:
    """Arms whose units are left out of both at once: a group with its members, or a pair of runs
    that share their seeds.

    least, least_carried: units and clusters (see `carried`) from which the interval is known to
    hold what it says. of_pairs: b and a of pairs of units, where they are means over pairs (see
    `PairShares`).
    """

    sums: Sums
    remark: str = ""
    unit: str = "groups"
    resampled: str = "paired delete-a-group"
    least: int = MIN_GROUPS
    least_carried: float = MIN_CARRIED
    of_pairs: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def b(self) -> float:
        """The mean over prompts of the first arm."""
        return float(self.sums.b_P.mean())

    @property
    def a(self) -> float:
        """The mean over prompts of the second arm."""
        return float(self.sums.a_P.mean())

    @property
    def units(self) -> int:
        """Independent units that are left out one by one."""
        return len(self.sums.left_b_J)

    @property
    def clusters(self) -> int:
        """Independent clusters of prompts."""
        return self.sums.clusters

    @property
    def effective(self) -> float:
        """So many clusters of equal size know as much as these."""
        return self.sums.sizes.effective if self.sums.sizes else float(self.clusters)

    @property
    def sizes(self) -> Leverage | None:
        """What the clusters are worth to this contrast."""
        return self.sums.sizes.carried_by(self.carried) if self.sums.sizes else None

    @property
    def prompts(self) -> int:
        """Prompts that both arms answer."""
        return len(self.sums.b_P)

    @cached_property
    def carried(self) -> float:
        """So many clusters of equal weight make up what both arms show."""
        return effective(np.abs(self.sums.a_P) + np.abs(self.sums.b_P), self.sums.cluster_P)

    @cached_property
    def differing(self) -> float:
        """So many clusters of equal weight make up what the arms differ by; 0: in nothing."""
        gap_P = np.abs(self.sums.b_P - self.sums.a_P)
        return effective(gap_P, self.sums.cluster_P) if gap_P.any() else 0.0

    @property
    def nearly_equal(self) -> bool:
        """Means that differ on a few of the clusters of prompts, or on none."""
        few = min(MIN_DIFFERING, self.effective / 4)
        return self.of_pairs is None and self.differing < few

    @property
    def enough(self) -> bool:
        """Whether units and clusters are enough for the interval to hold what it says."""
        return (
            self.units >= self.least
            and enough_clusters(self.clusters, self.effective)
            and self.carried >= self.least_carried
        )

    @property
    def needed(self) -> int | None:
        """Units that an interval needs, where these are fewer; else None."""
        return self.least if self.units < self.least else None

    @property
    def too_few(self) -> str:
        """Why there is no interval, in words; empty where there may be one."""
        if self.units >= MIN_GROUPS and enough_clusters(self.clusters, self.effective):
            if self.carried >= self.least_carried:
                return ""
            worth = f"{self.carried:.0f} equal ones would (at least {self.least_carried:g})"
            return f"few prompts make up most of it: they tell no more than {worth}"
        return (
            f"{self.units} {self.unit} on {clusters_in_words(self.clusters, self.effective)} "
            "are too few for an honest interval"
        )

    def parts(self, weight_b: float, weight_a: float) -> Parts:
        """Variance of weight_b * b + weight_a * a, from units and from prompts."""
        return self._two_way(weight_b, weight_a)

    def log_parts(self) -> Parts:
        """Variance of ln(b / a)."""
        parts = self._two_way(1 / self.b, -1 / self.a)
        with np.errstate(divide="ignore", invalid="ignore"):
            left_J = np.log(self.sums.left_b_J) - np.log(self.sums.left_a_J)
        if np.isfinite(left_J).all() and math.isfinite(
            parts.runs
        ):  # else one unit holds all disagreement: errors to first order
            parts = replace(
                parts,
                runs=max(jackknife_variance(left_J), self.second_order(1 / self.b, -1 / self.a)),
            )
        return parts

    def difference_ends(self) -> Callable[[float], Ends]:
        """The interval of b - a at a level, before it is cut to what a difference of shares can
        be.
        """
        parts, value = self.parts(1.0, -1.0), self.b - self.a
        return lambda level: (value - parts.half_width(level), value + parts.half_width(level))

    def _two_way(self, weight_b: float, weight_a: float) -> TwoWay:
        if not all(self.sums.has_left):  # two groups leave no pair of groups when one is left out
            return TwoWay(math.nan, math.nan, self.units, self.clusters, self.sizes)
        runs = jackknife_variance(weight_b * self.sums.shift_b_J + weight_a * self.sums.shift_a_J)
        prompts = self.sums.prompts(weight_b, weight_a, runs)
        return TwoWay(
            max(runs, self.second_order(weight_b, weight_a)),
            prompts,
            self.units,
            self.clusters,
            self.sizes,
        )

    def second_order(self, weight_b: float, weight_a: float) -> float:
        """Variance of weight_b * b + weight_a * a that no unit left out shows. It counts where it
        is the larger: added to the other it makes contrasts of four groups cover 99 to 100 %.
        """
        if self.of_pairs is None:
            return 0.0
        pair_N = weight_b * self.of_pairs[0] + weight_a * self.of_pairs[1]
        return second_order(pair_N[np.isfinite(pair_N)], self.units)


def ratio(arms: Arms | None, n_rows: int, level: float) -> Estimate:
    """b / a on the log scale; see `disagreement_ratio`. arms None: nothing to compare; n_rows: runs
    of b that were handed in.
    """
    if arms is None or (arms.a == 0 and arms.b == 0):
        return unknown(arms, n_rows, level, "neither arm disagrees, so there is no ratio")
    if arms.a == 0:
        return unknown(
            arms,
            n_rows,
            level,
            "runs of the baseline never disagreed and those of the other arm do: no ratio",
        )
    if arms.b == 0:
        return zero_ratio(arms, level, 1.0, "no two mitigated runs differed", contrast=True)
    value, parts = arms.b / arms.a, arms.log_parts()
    method, ends_at = (
        f"{arms.resampled} jackknife-t with prompt term, log scale",
        _log_ends(value, parts),
    )
    if parts.half_width(level) < NO_WIDTH:
        method, ends_at = (
            f"{_BOUND.format(arms.clusters)} / lower limit of the baseline",
            ratio_around(value, arms),
        )
    low, high = ends_at(level)
    same = low >= 1 / SAME_RATIO and high <= SAME_RATIO
    p = p_value(lambda level: excludes(ends_at(level), 1.0)) if math.isfinite(low) else None
    return verdict(arms, value, (low, high), 1.0, math.log(value), parts, same, level, method, p)


def difference(arms: Arms | None, n_rows: int, level: float) -> Estimate:
    """b - a; see `disagreement_difference`."""
    if arms is None:
        return unknown(arms, n_rows, level, "")
    value, parts, ends_at = arms.b - arms.a, arms.parts(1.0, -1.0), arms.difference_ends()
    method = f"{arms.resampled} jackknife-t with prompt term"
    low, high = ends_at(level)
    if high - low < NO_WIDTH:
        method, ends_at = _BOUND.format(arms.clusters), _around(value, arms.effective)
    elif arms.nearly_equal:
        method += AT_LEAST.format(arms.clusters)
        ends_at = widest(ends_at, _around(value, arms.effective))
    low, high = ends_at(level)
    same = max(abs(low), abs(high)) <= SAME_SHARE
    p = p_value(lambda level: excludes(ends_at(level), 0.0)) if math.isfinite(low) else None
    ends = (max(-1.0, low), min(1.0, high)) if math.isfinite(low) else (low, high)
    return verdict(arms, value, ends, 0.0, value, parts, same, level, method, p)


def score_difference(arms: Arms | None, n_rows: int, level: float) -> Estimate:
    """b - a of a number in a unit of its own: nothing is cut to what shares can be, and no change
    is small by itself.
    """
    if arms is None:
        return unknown(arms, n_rows, level, "")
    value, parts = arms.b - arms.a, arms.parts(1.0, -1.0)

    def ends_at(level: float) -> Ends:
        half = parts.half_width(level)
        return value - half, value + half

    low, high = ends_at(level)
    if high - low < NO_WIDTH * max(1.0, abs(arms.a), abs(arms.b)):
        nothing = "nothing varies, so there is no spread to put an interval around"
        return replace(unknown(arms, n_rows, level, nothing), value=value)
    p = p_value(lambda level: excludes(ends_at(level), 0.0)) if math.isfinite(low) else None
    return verdict(
        arms,
        value,
        (low, high),
        0.0,
        value,
        parts,
        False,
        level,
        f"{arms.resampled} jackknife-t with prompt term",
        p,
    )


def _log_ends(value: float, parts: Parts) -> Callable[[float], Ends]:
    def ends_at(level: float) -> Ends:
        half = parts.half_width(level)
        return value * math.exp(-half), value * math.exp(min(half, 300.0))

    return ends_at


def widest(*ends_at: Callable[[float], Ends]) -> Callable[[float], Ends]:
    """From the lowest end to the highest; none where one of the intervals has no ends."""

    def joined(level: float) -> Ends:
        lows, highs = zip(*(ends(level) for ends in ends_at), strict=True)
        return (
            (min(lows), max(highs)) if np.isfinite([*lows, *highs]).all() else (lows[0], highs[0])
        )

    return joined


def _around(value: float, clusters: float) -> Callable[[float], Ends]:
    """No unit and no prompt differs from the others: fresh prompts are bounded as for an event
    never seen.
    """
    return lambda level: (
        value - zero_event_bound(clusters, level),
        value + zero_event_bound(clusters, level),
    )


def ratio_around(value: float, arms: Arms) -> Callable[[float], Ends]:
    """The same for a ratio: half of the error to the bound, the other half to the lower limit of
    the denominator.
    """

    def ends_at(level: float) -> Ends:
        step = zero_event_bound(arms.effective, (1 + level) / 2) / max(
            _low_a(arms, arms.parts(0.0, 1.0), level), NO_WIDTH
        )
        return max(0.0, value - step), value + step

    return ends_at


def _low_a(arms: Arms, parts: Parts, level: float) -> float:
    """Lower limit of the denominator; not above 0 where it is not clear of it, or has none."""
    half = parts.half_width(level)
    if not math.isfinite(half):
        return 0.0
    return logit_interval(arms.a, half)[0] if 0 < arms.a < 1 else abs(arms.a) - half


def excludes(ends: Ends, border: float) -> bool:
    """Whether an interval leaves a value out."""
    return not ends[0] <= border <= ends[1]


def p_value(excluded_at: Callable[[float], bool]) -> float:
    """The smallest 1 - level at which an interval excludes "no change", by bisection; intervals of
    rising level must be nested.
    """
    if excluded_at(1 - SMALLEST_P):
        return SMALLEST_P
    within, outside = math.log(SMALLEST_P), 0.0
    for _ in range(40):
        middle = (within + outside) / 2
        within, outside = (
            (within, middle) if excluded_at(1 - math.exp(middle)) else (middle, outside)
        )
    return math.exp(outside)


def unknown(arms: Arms | None, n_rows: int, level: float, note: str) -> Estimate:
    """An estimate without value and interval, which says why."""
    if arms is None:
        note = "no prompt was answered by enough runs of both arms"
        return without_interval(None, level, n_rows, 0, MIN_GROUPS, note)
    needed = arms.needed
    return without_interval(None, level, arms.units, arms.prompts, needed, arms.too_few or note)


def verdict(
    arms: Arms,
    value: float,
    ends: Ends,
    border: float,
    effect: float,
    parts: Parts,
    same: bool,
    level: float,
    method: str,
    p: float | None = None,
) -> Estimate:
    """Conclusive if there are enough units and the interval leaves the border outside, or says
    `same`.
    """
    shape = (level, arms.units, arms.prompts, method)
    if not math.isfinite(ends[0]):
        return Estimate(value, None, None, *shape, False, arms.needed, arms.too_few)
    resolved = excludes(ends, border)
    conclusive = arms.enough and (resolved or same)
    needed, note = None, arms.too_few or arms.remark
    if not conclusive and (resolved or same):
        needed = arms.needed
    elif not conclusive:
        needed = parts.runs_needed(effect, level, max(arms.least, arms.units + 1))
        hopeless = (
            f"no number of {arms.unit} would resolve a change this small on these prompts: "
            "more prompts might"
        )
        note = note or ("" if needed else hopeless)
    elif same and not resolved:
        note = "; ".join(filter(None, ["practically no change", arms.remark]))
    return Estimate(value, *ends, *shape, conclusive, needed, note, p)


def zero_ratio(
    arms: Arms, level: float, border: float, note: str, *, contrast: bool = False
) -> Estimate:
    """The numerator is 0: its zero-event bound over the lower limit of the denominator, half of the
    error to each.
    """
    method = f"{_BOUND.format(arms.clusters)} / lower limit of the baseline"
    parts = arms.parts(0.0, 1.0)

    def high_at(level: float) -> float:
        low_a = _low_a(arms, parts, level)
        return zero_event_bound(arms.effective, (1 + level) / 2) / low_a if low_a > 0 else math.inf

    high = high_at(level)
    conclusive = arms.enough and high < border
    needed = arms.needed
    p = p_value(lambda level: high_at(level) < border) if contrast and math.isfinite(high) else None
    shape = (level, arms.units, arms.prompts, method)
    return Estimate(
        0.0,
        0.0,
        high if math.isfinite(high) else None,
        *shape,
        conclusive,
        needed,
        arms.too_few or note,
        p,
    )
