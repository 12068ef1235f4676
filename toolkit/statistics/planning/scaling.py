"""How a merge or ensemble of K replicas gets steadier with K, whether something is left that no K
removes, and which K is enough.

All from disjoint groups of the same replicas at several K. Two groups of one K share nothing; the
figures at different K rest on the same replicas, so the unit of resampling is a block: as many
replicas in a row as hold whole groups at every K. Leaving it out leaves out its groups everywhere.

What ALL replicas share (one initialisation, one data order, one teacher, one base) is invisible
here: a floor is what is left of the randomness that replicas differ in. To see the other, repeat
the whole under several draws of what is shared.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from operator import attrgetter

import numpy as np

from toolkit.statistics.arrays import (
    ROUNDING,
    Clusters,
    as_answers,
    as_clusters,
    as_level,
    same_prompts,
)
from toolkit.statistics.conclusive import few_clusters_of
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import (
    NEVER,
    TwoWay,
    jackknife_variance,
    log_jackknife,
    share_interval,
    t_quantile,
    two_way,
)
from toolkit.statistics.pairs import count_pairs, leave_group_out

MIN_BLOCKS = 5  # the intervals were seen to cover from here
EXTRAPOLATE = 4  # times the largest K measured; beyond, no curve is drawn
# sizes whose exponent the extrapolation of disagreement goes on with: the exponent changes with K
LAST = 3
SMOOTH = 0.5  # power of K by which disagreement falls where margins have a smooth density about 0


@dataclass(frozen=True)
class Point:
    """The curve at one K. measured: there are groups of this size; extrapolated: larger than all of
    them.
    """

    k: int
    value: float
    low: float
    high: float
    measured: bool
    extrapolated: bool


@dataclass(frozen=True)
class ScalingFit:
    """How a figure y falls with K.

    floor, slope: of y(K) = floor + slope / K^power. exponent: of y ~ K^-exponent, without a floor.
    flattening: exponent among the smaller groups less that among the larger ones; above 0 where a
    floor shows. None for a variance, whose power is known, and with fewer than three sizes.
    curve: y(K) with limits for every K up to EXTRAPOLATE times the largest measured; empty where
    nothing can be said.
    """

    power: float
    floor: Estimate
    slope: Estimate
    exponent: Estimate
    flattening: Estimate | None
    curve: tuple[Point, ...]

    def to_dict(self) -> dict:
        """As plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SmallestK:
    """The least K whose expected figure is at most the target; low, high: the least K whose lower,
    upper limit is.

    None where no K of the curve does.
    """

    k: int | None
    low: int | None
    high: int | None
    note: str = ""


def smallest_k(fit: ScalingFit, target: float) -> SmallestK:
    """How many replicas must one merge or ensemble have, for the figure to be at most `target`?

    Read off the curve of the fit, which ends at EXTRAPOLATE times the largest K measured. `high` is
    the K to rely on: its upper limit meets the target. Raises ValueError for a target that is not
    above 0.
    """
    if not target > 0:
        raise ValueError(f"target must be above 0, not {target}")
    if not fit.curve:
        return SmallestK(None, None, None, fit.floor.note)
    ends = (attrgetter(name) for name in ("value", "low", "high"))
    k, low, high = (
        next((point.k for point in fit.curve if end(point) <= target), None) for end in ends
    )
    measured, last = max(point.k for point in fit.curve if point.measured), fit.curve[-1].k
    notes = [fit.floor.note] if not fit.exponent.conclusive else []
    if fit.floor.conclusive and fit.floor.low is not None and fit.floor.low > target:
        return SmallestK(None, None, None, "the floor lies above the target: no K reaches it")
    if k is None:
        notes.append(f"not reached up to K = {last}, {EXTRAPOLATE} times the largest K measured")
    elif high is None:
        notes.append(f"the upper limit does not reach the target up to K = {last}")
    if max(k or 0, high or 0) > measured:
        notes.append(f"extrapolated beyond the largest K measured, {measured}")
    return SmallestK(k, low, high, "; ".join(notes))


def fit_floor(values: Mapping[int, np.ndarray], *, level: float = 0.95) -> ScalingFit:
    """Does the variance of a score fall as 1/K, or is something left that no K removes?

    Estimand: floor and slope of Var(score of a group of K) = floor + slope / K, and the exponent of
    Var ~ K^-exponent over the sizes measured. For a mean of independent replicas slope is the
    variance of one and the floor 0; what is left is noise of decoding or evaluation, lost rank, or
    a score that is no linear function of the members. Least squares on 1/K weighted by (G_K - 1) /
    (2 Var_K^2), with the fitted variances in the weights: the observed ones would favour the K
    whose variance happens to come out small, and bias the floor downwards. Resampled: blocks of
    replicas, t with blocks-1 degrees of freedom. Floor, slope and the curve are differences of two
    weighted means of variances; each has its log-variance jackknife interval, put together by the
    square-and-add rule (Zou & Donner 2008) as if independent. They are positively correlated, so
    the interval is conservative. (A plain jackknife of the floor covers 84-92 %: where it comes out
    low, its error does too.)

    Conclusive floor: MIN_BLOCKS blocks and a lower limit above 0; `needed` is in replicas.
    Conclusive slope and exponent: MIN_BLOCKS blocks.

    values[K][g]: score of group g, made of replicas gK .. gK + K-1; nan = none. Groups beyond the
    last whole block take no part. Raises ValueError for fewer than two sizes, a size below 1, or
    scores that are not one number per group.
    """
    level = as_level(level)
    score_KG = {k: np.asarray(values[k], dtype=np.float64) for k in sorted(values)}
    if any(score_G.ndim != 1 for score_G in score_KG.values()):
        raise ValueError("values must hold one number for each group of K replicas")
    block, blocks = _blocks({k: len(score_G) for k, score_G in score_KG.items()})
    shape, (note, needed) = (level, blocks * block, 0), _too_few(block, blocks)
    if blocks < 3:
        return _nothing(1.0, shape, needed, note)
    size_K = np.array(list(score_KG))
    value_K, left_KB, group_K = (
        np.array(column)
        for column in zip(
            *(
                _variance(score_G[: blocks * block // k].reshape(blocks, -1))
                for k, score_G in score_KG.items()
            ),
            strict=True,
        )
    )
    if not (value_K.min() > 0 and left_KB.min() > 0):
        return _nothing(
            1.0,
            shape,
            needed,
            "the scores of some size have no variance, or one block has all of it",
        )

    t = t_quantile(level, blocks - 1)
    method = (
        "weighted least squares on 1/K; conservative: log-variance block jackknives by "
        "square-and-add"
    )
    floor_K, slope_K = _law(size_K, group_K, value_K)
    floor = _estimate(*_combination(floor_K, value_K, left_KB, t), shape, method, needed, note)
    slope = _estimate(*_combination(slope_K, value_K, left_KB, t), shape, method, needed, note)

    exponent_K = _power(size_K, group_K)[1]
    centre, se = log_jackknife(float(exponent_K @ np.log(value_K)), exponent_K @ np.log(left_KB))
    method = "weighted least squares of ln Var on ln K; block jackknife-t"
    exponent = _estimate(centre, centre - t * se, centre + t * se, shape, method, needed, note)
    curve = (
        Point(
            k,
            *_combination(floor_K + slope_K / k, value_K, left_KB, t),
            k in size_K,
            bool(k > size_K[-1]),
        )
        for k in range(int(size_K[0]), EXTRAPOLATE * int(size_K[-1]) + 1)
    )
    return ScalingFit(1.0, _floor(floor, block), slope, exponent, None, tuple(curve))


def fit_disagreement(
    answers: Mapping[int, np.ndarray],
    *,
    power: float = SMOOTH,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> ScalingFit:
    """How does the disagreement of two runs of a mitigation fall with K, and is there a floor?

    Estimands: with D(K) the disagreement of two fresh groups of K on fresh prompts, floor and slope
    of the law floor + slope / K^power that comes nearest to the sizes measured, the exponent of D ~
    K^-exponent over them, and how much it flattens. D is no variance: a mean margin has a standard
    deviation of K^-1/2, and D is in proportion to that where the density of margins about 0 is
    smooth. So power is 1/2. (power=1, the law of a variance, shows floors of a third of D(1) and
    more where there is none.) The law is not exact for small K either; so the floor is conclusive
    only if, besides a lower limit above 0, the exponent flattens (lower limit above 0) and is below
    1/2 among the larger groups (upper limit). Weights as in `fit_floor`. Resampled: blocks of
    replicas (jackknife), and clusters of prompts (see `two_way`), each with its own degrees of
    freedom; exponents and curve on the log scale. The curve joins the measured sizes by straight
    lines of ln D on ln K. Beyond them its limits hold three laws: K^-exponent (of the LAST sizes),
    floor + slope / K^power, and K^-1/2 from the largest size on. Its value is the first, or the
    second once the floor is conclusive.

    answers[K]: codes of the groups' answers, encoded together, -1 = missing; row g is made of
    replicas gK .. gK + K-1. The sizes are compared on the prompts that two groups of every size
    answered. Raises ValueError for fewer than two sizes, a size below 1, a power that is not above
    0, tables that are no answers, or different prompts.
    """
    if not power > 0:
        raise ValueError(f"power must be above 0, not {power}")
    level = as_level(level)
    answer_KGP = {k: as_answers(answers[k], f"answers[{k}]") for k in sorted(answers)}
    block, blocks = _blocks({k: len(answer_GP) for k, answer_GP in answer_KGP.items()})
    same_prompts(*answer_KGP.values())
    clusters_P = as_clusters(cluster_P, next(iter(answer_KGP.values())).shape[1])
    note, needed = _too_few(block, blocks, clusters_P)
    if blocks < 3:
        return _nothing(power, (level, blocks * block, len(clusters_P)), needed, note)
    d_KP, left_KBP = [], []
    for k, answer_GP in answer_KGP.items():
        answer_GP = answer_GP[: blocks * block // k]
        pairs = count_pairs(answer_GP)
        d_KP.append(pairs.d_P)
        left_KBP.append(
            leave_group_out(answer_GP, pairs, list(np.arange(len(answer_GP)).reshape(blocks, -1)))
        )
    used_P = np.isfinite(d_KP).all(axis=0)
    shape, clusters_P = (level, blocks * block, int(used_P.sum())), clusters_P[used_P]
    note, needed = _too_few(block, blocks, clusters_P)
    if len(np.unique(clusters_P)) < 2:
        return _nothing(power, shape, needed, note)
    d_KP, left_KBP = np.array(d_KP)[:, used_P], np.array(left_KBP)[:, :, used_P]
    table = _Table(
        np.array(list(answer_KGP)),
        d_KP,
        np.where(np.isfinite(left_KBP), left_KBP, d_KP[:, None]),
        clusters_P,
    )
    if len(table.live) < 2:
        return _nothing(power, shape, needed, "fewer than two sizes show any disagreement")

    def estimate(value: float, parts: TwoWay, method: str) -> Estimate:
        half = parts.half_width(level)
        return _estimate(value, value - half, value + half, shape, method, needed, note)

    law_2K = _law(
        table.size_K**power,
        blocks * block / table.size_K,
        np.maximum(table.d_K, 0.5 / d_KP.shape[1]),
    )
    method = f"weighted least squares on 1/K^{power:g}; block jackknife-t with prompt term"
    floor, slope = (
        estimate(float(weight_K @ table.d_K), table.parts(weight_K), method) for weight_K in law_2K
    )
    method = "weighted least squares of ln D on ln K; block jackknife-t with prompt term"
    exponent = estimate(*table.log(table.exponent(table.live)), method)
    half = max(2, (len(table.live) + 1) // 2)
    large_K = table.exponent(table.live[-half:])
    flattening = (
        estimate(*table.log(table.exponent(table.live[:half]) - large_K), method)
        if len(table.live) > 2
        else None
    )
    steep = estimate(*table.log(large_K), method)
    flat = flattening is not None and (flattening.low or 0.0) > 0 and (steep.high or 1.0) < SMOOTH
    unshown = (
        ""
        if flat
        else f"no floor shown: the fall does not flatten out below K^-{SMOOTH:g}, as it would "
        "above a floor"
    )
    floor = _floor(floor, block, unshown)
    curve = table.curve(law_2K, power, floor.conclusive, level)
    return ScalingFit(power, floor, slope, exponent, flattening, tuple(curve))


@dataclass(frozen=True)
class _Table:
    """d of every size on every prompt, and the same without each block of replicas."""

    size_K: np.ndarray
    d_KP: np.ndarray
    left_KBP: np.ndarray
    cluster_P: np.ndarray

    @property
    def d_K(self) -> np.ndarray:
        return self.d_KP.mean(axis=1)

    @property
    def live(self) -> np.ndarray:
        """Sizes that disagree at all."""
        return np.flatnonzero(self.d_K > 0)

    def parts(self, weight_K: np.ndarray) -> TwoWay:
        """Variance of a weighted sum of D over the sizes."""
        return two_way(
            weight_K @ self.d_KP, np.tensordot(weight_K, self.left_KBP, 1), self.cluster_P
        )

    def log(self, weight_K: np.ndarray) -> tuple[float, TwoWay]:
        """A weighted sum of ln D over sizes that disagree at all, and its variance."""
        used, d_K = weight_K != 0, self.d_K
        parts = self.parts(np.divide(weight_K, d_K, out=np.zeros(len(d_K)), where=used))
        with np.errstate(divide="ignore"):
            left_B = weight_K[used] @ np.log(self.left_KBP[used].mean(axis=2))
        if np.isfinite(
            left_B
        ).all():  # else one block holds all disagreement of a size: errors to first order
            parts = replace(parts, runs=jackknife_variance(left_B))
        return float(weight_K[used] @ np.log(d_K[used])), parts

    def exponent(self, some: np.ndarray) -> np.ndarray:
        """Weights of ln D in the exponent over some of the sizes."""
        weight_K = np.zeros(len(self.size_K))
        weight_K[some] = _power(self.size_K[some], 1 / self.size_K[some])[1]
        return weight_K

    def curve(self, law_2K: np.ndarray, power: float, floored: bool, level: float) -> list[Point]:
        points, last = [], Point(1, 0.0, 0.0, 0.0, False, False)
        for k in range(int(self.size_K[0]), EXTRAPOLATE * int(self.size_K[-1]) + 1):
            measured, beyond = k in self.size_K, bool(k > self.size_K[-1])
            if measured and not self.d_K[self.size_K == k][0]:
                value, parts = 0.0, self.parts(1.0 * (self.size_K == k))
            elif self.size_K[self.live[0]] <= k and (
                k <= self.size_K[self.live[-1]] or beyond and self.live[-1] == len(self.size_K) - 1
            ):
                log_value, parts = self.log(self._line(k, beyond))
                value = min(1.0, math.exp(log_value))
                parts = replace(parts, runs=value**2 * parts.runs, prompts=value**2 * parts.prompts)
            else:
                continue
            low, high = share_interval(value, parts, level)
            if beyond:
                weight_K = law_2K[0] + law_2K[1] / k**power
                other = min(1.0, max(0.0, float(weight_K @ self.d_K)))
                other_low, other_high = share_interval(other, self.parts(weight_K), level)
                # what the exponent may still rise to, from the largest size measured
                least = last.low * (last.k / k) ** SMOOTH
                low, high = (
                    min(low or 0.0, other_low or 0.0, least),
                    max(high or 0.0, other_high or 0.0),
                )
                value = other if floored else value
            points.append(
                Point(k, value, low or 0.0, 1.0 if high is None else high, measured, beyond)
            )
            last = points[-1] if measured else last
        return points

    def _line(self, k: int, beyond: bool) -> np.ndarray:
        """Weights of ln D in ln D(k): a straight line between the neighbours of k, or through the
        LAST sizes.
        """
        live_K = self.size_K[self.live]
        above = int(np.searchsorted(live_K, k))
        some = self.live[-LAST:] if beyond else self.live[max(0, above - 1) : max(0, above - 1) + 2]
        intercept_K, exponent_K = _power(self.size_K[some], 1 / self.size_K[some])
        weight_K = np.zeros(len(self.size_K))
        weight_K[some] = intercept_K - math.log(k) * exponent_K
        return weight_K


def _blocks(groups: Mapping[int, int]) -> tuple[int, int]:
    """Replicas of one block, and whole blocks that all sizes have."""
    if len(groups) < 2:
        raise ValueError("a law in K needs groups of at least two sizes")
    if any(k != int(k) or k < 1 for k in groups):
        raise ValueError(f"sizes of groups are whole numbers of at least 1, not {sorted(groups)}")
    block = math.lcm(*(int(k) for k in groups))
    return block, min(n * int(k) // block for k, n in groups.items())


def _too_few(
    block: int, blocks: int, cluster_P: np.ndarray | None = None
) -> tuple[str, int | None]:
    needed = MIN_BLOCKS * block if blocks < MIN_BLOCKS else None
    if needed:
        return (
            f"{blocks} blocks of {block} replicas are too few for an honest interval (at "
            f"least {MIN_BLOCKS})",
            needed,
        )
    return "" if cluster_P is None else few_clusters_of(cluster_P), None


def _nothing(
    power: float, shape: tuple[float, int, int], needed: int | None, note: str
) -> ScalingFit:
    unknown = without_interval(None, *shape, needed, note)
    return ScalingFit(power, unknown, unknown, unknown, None, ())


def _estimate(
    value: float,
    low: float,
    high: float,
    shape: tuple[float, int, int],
    method: str,
    needed: int | None,
    note: str,
) -> Estimate:
    if not high - low > ROUNDING * (abs(low) + abs(high)):
        return Estimate(
            value,
            None,
            None,
            *shape,
            method,
            False,
            needed,
            note or "no block differs from the others: no error to see",
        )
    return Estimate(value, low, high, *shape, method, not note, needed, note)


def _floor(floor: Estimate, block: int, unshown: str = "") -> Estimate:
    """A floor is conclusive only above 0. Else: what to say, and the replicas at which a floor of
    the observed size would show.
    """
    if (
        not floor.conclusive
        or floor.value is None
        or floor.low is None
        or (floor.low > 0 and not unshown)
    ):
        return floor
    needed = None
    if floor.low <= 0 < floor.value:
        needed = (
            math.ceil(floor.n_replicas / block * ((floor.value - floor.low) / floor.value) ** 2)
            * block
        )
    note = unshown or "no floor shown: its interval holds 0"
    return replace(
        floor, conclusive=False, needed=needed if needed and needed <= NEVER else None, note=note
    )


def _variance(score_BG: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Variance between groups, the same without each block of them (nan below two groups), and how
    many groups have a score.
    """
    good_BG = np.isfinite(score_BG)
    n = int(good_BG.sum())
    if n < 2:
        return math.nan, np.full(len(score_BG), math.nan), n
    x_BG = np.where(good_BG, score_BG - np.mean(score_BG, where=good_BG), 0.0)
    n_B, sum_B, square_B = (
        n - good_BG.sum(axis=1),
        x_BG.sum() - x_BG.sum(axis=1),
        np.sum(x_BG**2) - np.sum(x_BG**2, axis=1),
    )
    left_B = np.full(len(score_BG), math.nan)
    np.divide(square_B - sum_B**2 / np.maximum(n_B, 1), n_B - 1, out=left_B, where=n_B > 1)
    return float(np.sum(x_BG**2) / (n - 1)), left_B, n


def _law(size_K: np.ndarray, group_K: np.ndarray, value_K: np.ndarray) -> np.ndarray:
    """Weights of value_K in the floor and in the slope of value = floor + slope / size."""
    term_K2, fitted_K = np.stack([np.ones(len(size_K)), 1 / size_K], axis=1), value_K
    weight_2K = np.zeros((2, len(size_K)))
    for _ in range(30):
        weighted_2K = term_K2.T * (group_K - 1) / (2 * fitted_K**2)
        weight_2K = np.linalg.solve(weighted_2K @ term_K2, weighted_2K)
        # a fit near 0 would get all the weight
        fitted_K = np.maximum(term_K2 @ weight_2K @ value_K, value_K / 4)
    return weight_2K


def _power(size_K: np.ndarray, group_K: np.ndarray) -> np.ndarray:
    """Weights of ln value in the intercept and in the exponent of value = e^intercept *
    K^-exponent.
    """
    term_K2 = np.stack([np.ones(len(size_K)), -np.log(size_K)], axis=1)
    weighted_2K = term_K2.T * group_K
    return np.linalg.solve(weighted_2K @ term_K2, weighted_2K)


def _combination(
    weight_K: np.ndarray, value_K: np.ndarray, left_KB: np.ndarray, t: float
) -> tuple[float, float, float]:
    """A weighted sum of variances with its limits: those of the sums with positive and with
    negative weights, by square-and-add.
    """
    (plus, plus_low, plus_high), (minus, minus_low, minus_high) = (
        _positive(np.maximum(sign * weight_K, 0.0), value_K, left_KB, t) for sign in (1, -1)
    )
    value = plus - minus
    return (
        value,
        value - math.hypot(plus - plus_low, minus_high - minus),
        value + math.hypot(plus_high - plus, minus - minus_low),
    )


def _positive(
    weight_K: np.ndarray, value_K: np.ndarray, left_KB: np.ndarray, t: float
) -> tuple[float, float, float]:
    value = float(weight_K @ value_K)
    if value == 0.0:
        return 0.0, 0.0, 0.0
    centre, se = log_jackknife(math.log(value), np.log(weight_K @ left_KB))
    return (
        value,
        min(value, math.exp(centre - t * se)),
        max(value, math.exp(min(centre + t * se, 700.0))),
    )
