"""Mitigation against baseline, when the groups of the mitigation were built from the replicas of the baseline.

The two arms are not independent: a replica that is off pulls its group with it. So the unit everywhere is the group
with its members. Leaving out group g leaves out its row in the mitigated arm and its members' rows in the baseline
arm at the same time, and prompts are compared prompt by prompt. Replicas that are in no group take no part.

Every contrast carries p: the two-sided level at which its own interval would just touch "no change".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from toolkit.statistics.accuracy import prompt_means
from toolkit.statistics.arrays import as_answers, as_clusters, as_correct, as_level, as_members, same_prompts
from toolkit.statistics.disagreement import MIN_CLUSTERS, odd_note, odd_replicas
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import (
    TwoWay,
    jackknife_variance,
    logit_interval,
    two_way,
    zero_event_bound,
)
from toolkit.statistics.pairs import count_pairs, leave_group_out, leave_one_out

MIN_GROUPS = 5  # seen to cover in simulation from here, where runs differ by at most 1 on the logit of an answer
SAME_RATIO = 1.25  # ratios within [0.8, 1.25] are called practically no change
SAME_SHARE = 0.01  # and so are differences of at most one percentage point
EFFECT_KEPT = 0.9  # an effect size below this may be a collapse towards the base
NO_WIDTH = 1e-12  # an interval narrower than this is rounding: nothing differs from anything
SMALLEST_P = 1e-15  # closer to 0 a level has no floating-point number of its own

_BOUND = "zero-event bound over {} prompts or clusters"

Members = Sequence[np.ndarray | Sequence[int]]
Clusters = np.ndarray | Sequence[int] | None
Ends = tuple[float, float]


class Parts(Protocol):
    """Where the error of a contrast comes from (see `TwoWay`)."""

    def half_width(self, level: float) -> float: ...
    def runs_needed(self, effect: float, level: float, at_least: int) -> int | None: ...


@dataclass(frozen=True)
class Arms:
    """A statistic of arm b and of arm a per prompt: with all units, and with each unit left out of both arms at once.

    A unit is a group with its members, or a pair of runs that share their seeds. least: units from which the interval
    is known to hold what it says.
    """

    b_P: np.ndarray
    a_P: np.ndarray
    left_b_JP: np.ndarray
    left_a_JP: np.ndarray
    cluster_P: np.ndarray
    remark: str = ""
    unit: str = "groups"
    resampled: str = "paired delete-a-group"
    least: int = MIN_GROUPS

    @property
    def b(self) -> float:
        return float(self.b_P.mean())

    @property
    def a(self) -> float:
        return float(self.a_P.mean())

    @property
    def units(self) -> int:
        return len(self.left_b_JP)

    @property
    def clusters(self) -> int:
        return len(np.unique(self.cluster_P))

    @property
    def prompts(self) -> int:
        return len(self.b_P)

    @property
    def enough(self) -> bool:
        return self.units >= self.least and self.clusters >= MIN_CLUSTERS

    @property
    def needed(self) -> int | None:
        return self.least if self.units < self.least else None

    @property
    def too_few(self) -> str:
        if self.units >= MIN_GROUPS and self.clusters >= MIN_CLUSTERS:
            return ""
        return f"{self.units} {self.unit} on {self.clusters} prompts or clusters are too few for an honest interval"

    def parts(self, weight_b: float, weight_a: float) -> Parts:
        """Variance of weight_b * b + weight_a * a, from units and from prompts."""
        return self._two_way(weight_b, weight_a)

    def log_parts(self) -> Parts:
        """Variance of ln(b / a)."""
        parts = self._two_way(1 / self.b, -1 / self.a)
        with np.errstate(divide="ignore"):
            left_J = np.log(whole(self.left_b_JP, self.b_P)) - np.log(whole(self.left_a_JP, self.a_P))
        if np.isfinite(left_J).all() and math.isfinite(parts.runs):  # else one unit holds all disagreement: errors to first order
            parts = replace(parts, runs=jackknife_variance(left_J))
        return parts

    def difference_ends(self) -> Callable[[float], Ends]:
        """The interval of b - a at a level, before it is cut to what a difference of shares can be."""
        parts, value = self.parts(1.0, -1.0), self.b - self.a
        return lambda level: (value - parts.half_width(level), value + parts.half_width(level))

    def _two_way(self, weight_b: float, weight_a: float) -> TwoWay:
        left_JP = weight_b * self.left_b_JP + weight_a * self.left_a_JP
        if not np.isfinite(left_JP).any():  # two groups leave no pair of groups when one is left out
            return TwoWay(math.nan, math.nan, self.units, self.clusters)
        return two_way(weight_b * self.b_P + weight_a * self.a_P, left_JP, self.cluster_P)


def disagreement_ratio(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """By what factor does the mitigation change how often two runs differ? Below 1 = more stable.

    Estimand: D of fresh runs of the mitigation / D of fresh single replicas, on fresh prompts.
    Resampled: groups with their members (delete-a-group jackknife of ln(D_b/D_a), both arms at once), and clusters of
    prompts by d_bi/D_b - d_ai/D_a (see `two_way`), each with the t quantile of its own degrees of freedom, on the log
    scale.

    D_b = 0: the value is 0 and `high` the zero-event bound of D_b (one-sided, half the error) over the lower limit of
    D_a (the other half). D_a = 0: no ratio; both 0: not estimable.
    Conclusive: at least MIN_GROUPS groups, and an interval on one side of 1 or inside [0.8, 1.25] (practically no
    change). Otherwise `needed` is the number of groups at which the observed ratio would leave 1 outside, at the same
    spread; None where only more prompts, or no number, would help.

    mitigated_GP: codes of group g's answers; baseline_RP: codes of the replicas' answers (encoded together); -1 =
    missing. members[g]: rows of baseline_RP that group g was built from, disjoint. Raises ValueError for shapes that
    do not fit.
    """
    level = as_level(level)
    arms = _disagreements(mitigated_GP, baseline_RP, members, cluster_P)
    return ratio(arms, len(mitigated_GP), level)


def disagreement_difference(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """By how many points does the mitigation change how often two runs differ? Below 0 = more stable.

    Estimand: D of fresh runs of the mitigation - D of fresh single replicas, on fresh prompts. Unit: share of
    prompts. Resampling, arguments and errors as in `disagreement_ratio`, on the plain scale. Conclusive: an interval
    on one side of 0, or within one percentage point of it.
    """
    level = as_level(level)
    arms = _disagreements(mitigated_GP, baseline_RP, members, cluster_P)
    return difference(arms, len(mitigated_GP), level)


def accuracy_change(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """By how many points is a run of the mitigation more accurate than a single replica?

    Estimand: accuracy of a fresh run of the mitigation - accuracy of a fresh replica, on fresh prompts. Unit: share
    of prompts.
    Resampled: groups with their members (both arms at once) and clusters of prompts, paired, as in
    `disagreement_ratio`.
    Conclusive: an interval on one side of 0, or within one percentage point of it.

    mitigated_GP, baseline_RP: 1 right, 0 wrong, nan missing; `members` and errors as in `disagreement_ratio`.
    """
    level = as_level(level)
    mitigated_GP, baseline_RP = as_correct(mitigated_GP, "mitigated_GP"), as_correct(baseline_RP, "baseline_RP")
    arms = _means(mitigated_GP, baseline_RP, None, members, cluster_P)
    return difference(arms, len(mitigated_GP), level)


def effect_size(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    base_P: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """How much of the fine-tuning does the mitigation keep, as the share of answers that it changes against the base?

    Estimand: P(a mitigated run answers other than the base) / P(a single replica does), for fresh runs and prompts.
    About 1 = kept; 0 = collapsed to the base, which is perfectly stable and of no use. Flag below EFFECT_KEPT (0.9).
    Resampled: groups with their members and clusters of prompts, paired. Fieller's interval of a ratio. No interval
    where the replicas' distance to the base is itself not clear of 0.
    Conclusive: at least MIN_GROUPS groups and an interval on one side of EFFECT_KEPT.

    Codes of answers, encoded together; base_P: the base's answer per prompt. -1 = missing; errors as in
    `disagreement_ratio`.
    """
    level = as_level(level)
    mitigated_GP, baseline_RP = as_answers(mitigated_GP, "mitigated_GP"), as_answers(baseline_RP, "baseline_RP")
    base_P = as_answers(np.asarray(base_P)[None], "base_P", at_least=1)[0]
    same_prompts(mitigated_GP, baseline_RP, base_P)

    def differs(answer_RP: np.ndarray) -> np.ndarray:
        return np.where((answer_RP >= 0) & (base_P >= 0), (answer_RP != base_P).astype(np.float64), np.nan)

    arms = _means(differs(mitigated_GP), differs(baseline_RP), None, members, cluster_P)
    return _kept(arms, len(mitigated_GP), level, "the replicas answer as the base does: there is no effect to keep")


def collapsed(effect: Estimate, kept: float = EFFECT_KEPT) -> Literal["kept", "collapsed", "cannot be told"]:
    """Is the fine-tuning still there after the mitigation? From a one-sided limit of an effect size, never from its value.

    "kept": the lower limit is at least `kept`; "collapsed": the upper limit is below it, so a good part of whatever stability
    was won is the base's. "cannot be told": neither, or too few groups for the limits to hold what they say.
    Raises ValueError for a border that is not above 0.
    """
    if not kept > 0:
        raise ValueError(f"kept must be a share above 0, not {kept}")
    low, high = -math.inf if effect.low is None else effect.low, math.inf if effect.high is None else effect.high
    few = effect.n_replicas < MIN_GROUPS or effect.n_prompts < MIN_CLUSTERS
    if few or (excludes((low, high), EFFECT_KEPT) and not effect.conclusive):
        return "cannot be told"
    return "kept" if low >= kept else "collapsed" if high < kept else "cannot be told"


def accuracy_effect_size(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    base_P: np.ndarray,
    members: Members,
    *,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """How much of the accuracy that fine-tuning gained (or lost) does the mitigation keep?

    Estimand: (accuracy of a mitigated run - accuracy of the base) / (accuracy of a single replica - accuracy of the
    base). May be above 1 where the mitigation is better than one replica. Everything else as in `effect_size`, on
    marks 1/0/nan.
    """
    level = as_level(level)
    mitigated_GP, baseline_RP = as_correct(mitigated_GP, "mitigated_GP"), as_correct(baseline_RP, "baseline_RP")
    base_P = as_correct(np.asarray(base_P)[None], "base_P", at_least=1)[0]
    same_prompts(mitigated_GP, baseline_RP, base_P)
    arms = _means(mitigated_GP, baseline_RP, base_P, members, cluster_P)
    return _kept(arms, len(mitigated_GP), level, "the replicas are as accurate as the base: there is no gain to keep")


def _disagreements(mitigated_GP: np.ndarray, baseline_RP: np.ndarray, members: Members, cluster_P: Clusters) -> Arms | None:
    mitigated_GP, baseline_RP = as_answers(mitigated_GP, "mitigated_GP"), as_answers(baseline_RP, "baseline_RP")
    same_prompts(mitigated_GP, baseline_RP)
    clusters_P = as_clusters(cluster_P, mitigated_GP.shape[1])
    alive_G, row_R, groups = _only_members(members, mitigated_GP >= 0, len(baseline_RP))
    mitigated_GP, baseline_RP = mitigated_GP[alive_G], baseline_RP[row_R]
    if len(mitigated_GP) < 2:
        return None
    used_P = ((mitigated_GP >= 0).sum(axis=0) >= 2) & ((baseline_RP >= 0).sum(axis=0) >= 2)
    if not used_P.any():
        return None
    mitigated_GP, baseline_RP = mitigated_GP[:, used_P], baseline_RP[:, used_P]
    pairs_b, pairs_a = count_pairs(mitigated_GP), count_pairs(baseline_RP)
    b_P, a_P = pairs_b.d_P, pairs_a.d_P
    left_b_GP, left_a_GP = leave_one_out(pairs_b), leave_group_out(baseline_RP, pairs_a, groups)
    remark = odd_note(row_R[odd_replicas(pairs_a)])
    return Arms(b_P, a_P, left_b_GP, left_a_GP, clusters_P[used_P], remark)


def _means(
    mitigated_GP: np.ndarray, baseline_RP: np.ndarray, zero_P: np.ndarray | None, members: Members, cluster_P: Clusters
) -> Arms | None:
    """Arms of means over prompts, measured from zero_P (nan = prompt without a zero) if it is given."""
    same_prompts(mitigated_GP, baseline_RP)
    clusters_P = as_clusters(cluster_P, mitigated_GP.shape[1])
    if zero_P is not None:
        mitigated_GP, baseline_RP = mitigated_GP - zero_P, baseline_RP - zero_P
    alive_G, row_R, groups = _only_members(members, np.isfinite(mitigated_GP), len(baseline_RP))
    mitigated_GP, baseline_RP = mitigated_GP[alive_G], baseline_RP[row_R]
    if len(mitigated_GP) < 2:
        return None
    used_P = np.isfinite(mitigated_GP).any(axis=0) & np.isfinite(baseline_RP).any(axis=0)
    if not used_P.any():
        return None
    b_P, left_b_GP = prompt_means(mitigated_GP[:, used_P], np.arange(len(mitigated_GP))[:, None])
    a_P, left_a_GP = prompt_means(baseline_RP[:, used_P], groups)
    return Arms(b_P, a_P, left_b_GP, left_a_GP, clusters_P[used_P])


def _only_members(members: Members, present_GP: np.ndarray, n_replicas: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Groups that answered anything, the baseline rows behind them, and where in those rows each group's members stand."""
    groups = as_members(members, len(present_GP), n_replicas)
    alive_G = np.flatnonzero(present_GP.any(axis=1))
    ends = np.cumsum([0] + [len(groups[g]) for g in alive_G])
    row_R = np.concatenate([groups[g] for g in alive_G]) if len(alive_G) else np.array([], dtype=np.int64)
    return alive_G, row_R, [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def whole(left_JP: np.ndarray, value_P: np.ndarray) -> np.ndarray:
    """Mean over prompts; one that loses its last pair with the unit keeps its value."""
    return np.where(np.isfinite(left_JP), left_JP, value_P).mean(axis=1)


def ratio(arms: Arms | None, n_rows: int, level: float) -> Estimate:
    """b / a on the log scale; see `disagreement_ratio`. arms None: nothing to compare; n_rows: runs of b that were handed in."""
    if arms is None or (arms.a == 0 and arms.b == 0):
        return _unknown(arms, n_rows, level, "neither arm disagrees, so there is no ratio")
    if arms.a == 0:
        return _unknown(arms, n_rows, level, "runs of the baseline never disagreed and those of the other arm do: no ratio")
    if arms.b == 0:
        return _zero_ratio(arms, level, 1.0, "no two mitigated runs differed", contrast=True)
    value, parts = arms.b / arms.a, arms.log_parts()
    method, ends_at = f"{arms.resampled} jackknife-t with prompt term, log scale", _log_ends(value, parts)
    if parts.half_width(level) < NO_WIDTH:
        method, ends_at = f"{_BOUND.format(arms.clusters)} / lower limit of the baseline", _ratio_around(value, arms)
    low, high = ends_at(level)
    same = low >= 1 / SAME_RATIO and high <= SAME_RATIO
    p = p_value(lambda level: excludes(ends_at(level), 1.0)) if math.isfinite(low) else None
    return _verdict(arms, value, (low, high), 1.0, math.log(value), parts, same, level, method, p)


def difference(arms: Arms | None, n_rows: int, level: float) -> Estimate:
    """b - a; see `disagreement_difference`."""
    if arms is None:
        return _unknown(arms, n_rows, level, "")
    value, parts, ends_at = arms.b - arms.a, arms.parts(1.0, -1.0), arms.difference_ends()
    method = f"{arms.resampled} jackknife-t with prompt term"
    low, high = ends_at(level)
    if high - low < NO_WIDTH:
        method, ends_at = _BOUND.format(arms.clusters), _around(value, arms.clusters)
    low, high = ends_at(level)
    same = max(abs(low), abs(high)) <= SAME_SHARE
    p = p_value(lambda level: excludes(ends_at(level), 0.0)) if math.isfinite(low) else None
    return _verdict(arms, value, (max(-1.0, low), min(1.0, high)), 0.0, value, parts, same, level, method, p)


def _log_ends(value: float, parts: Parts) -> Callable[[float], Ends]:
    def ends_at(level: float) -> Ends:
        half = parts.half_width(level)
        return value * math.exp(-half), value * math.exp(min(half, 300.0))

    return ends_at


def _around(value: float, clusters: int) -> Callable[[float], Ends]:
    """No unit and no prompt differs from the others: fresh prompts are bounded as for an event never seen."""
    return lambda level: (value - zero_event_bound(clusters, level), value + zero_event_bound(clusters, level))


def _ratio_around(value: float, arms: Arms) -> Callable[[float], Ends]:
    """The same for a ratio: half of the error to the bound, the other half to the lower limit of the denominator."""

    def ends_at(level: float) -> Ends:
        step = zero_event_bound(arms.clusters, (1 + level) / 2) / max(_low_a(arms, arms.parts(0.0, 1.0), level), NO_WIDTH)
        return max(0.0, value - step), value + step

    return ends_at


def _low_a(arms: Arms, parts: Parts, level: float) -> float:
    """Lower limit of the denominator; not above 0 where it is not clear of it, or has none."""
    half = parts.half_width(level)
    if not math.isfinite(half):
        return 0.0
    return logit_interval(arms.a, half)[0] if 0 < arms.a < 1 else abs(arms.a) - half


def excludes(ends: Ends, border: float) -> bool:
    return not ends[0] <= border <= ends[1]


def p_value(excluded_at: Callable[[float], bool]) -> float:
    """The smallest 1 - level at which an interval excludes "no change", by bisection; intervals of rising level must be nested."""
    if excluded_at(1 - SMALLEST_P):
        return SMALLEST_P
    within, outside = math.log(SMALLEST_P), 0.0
    for _ in range(40):
        middle = (within + outside) / 2
        within, outside = (within, middle) if excluded_at(1 - math.exp(middle)) else (middle, outside)
    return math.exp(outside)


def _unknown(arms: Arms | None, n_rows: int, level: float, note: str) -> Estimate:
    if arms is None:
        note = "no prompt was answered by enough runs of both arms"
        return Estimate(None, None, None, level, n_rows, 0, "none", False, MIN_GROUPS, note)
    needed = arms.needed
    return Estimate(None, None, None, level, arms.units, arms.prompts, "none", False, needed, arms.too_few or note)


def _verdict(
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
    """Conclusive if there are enough units and the interval leaves the border outside, or says `same`."""
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
        hopeless = f"no number of {arms.unit} would resolve a change this small on these prompts: more prompts might"
        note = note or ("" if needed else hopeless)
    elif same and not resolved:
        note = "; ".join(filter(None, ["practically no change", arms.remark]))
    return Estimate(value, *ends, *shape, conclusive, needed, note, p)


def _zero_ratio(arms: Arms, level: float, border: float, note: str, *, contrast: bool = False) -> Estimate:
    """The numerator is 0: its zero-event bound over the lower limit of the denominator, half of the error to each."""
    method = f"{_BOUND.format(arms.clusters)} / lower limit of the baseline"
    parts = arms.parts(0.0, 1.0)

    def high_at(level: float) -> float:
        low_a = _low_a(arms, parts, level)
        return zero_event_bound(arms.clusters, (1 + level) / 2) / low_a if low_a > 0 else math.inf

    high = high_at(level)
    conclusive = arms.enough and high < border
    needed = arms.needed
    p = p_value(lambda level: high_at(level) < border) if contrast and math.isfinite(high) else None
    shape = (level, arms.units, arms.prompts, method)
    return Estimate(0.0, 0.0, high if math.isfinite(high) else None, *shape, conclusive, needed, arms.too_few or note, p)


def _kept(arms: Arms | None, n_rows: int, level: float, nothing: str) -> Estimate:
    """Fieller's interval of b / a: all ratios theta for which b - theta * a is no further from 0 than t standard errors."""
    method = "Fieller interval, paired delete-a-group jackknife with prompt term"
    if arms is None or arms.a == 0:
        return _unknown(arms, n_rows, level, nothing)
    if arms.b == 0 and not arms.b_P.any():
        return _zero_ratio(arms, level, EFFECT_KEPT, "no mitigated run differs from the base")
    value = arms.b / arms.a
    # Squared half widths of b, a and b - value * a stand for t^2 times their variances; the last one gives the covariance.
    square_b, square_a, square_gap = (arms.parts(*w).half_width(level) ** 2 for w in ((1.0, 0.0), (0.0, 1.0), (1.0, -value)))
    covariance = (square_b + value**2 * square_a - square_gap) / (2 * value) if value else 0.0
    square, slope, constant = arms.a**2 - square_a, arms.a * arms.b - covariance, arms.b**2 - square_b
    if square <= 0:
        needed = arms.parts(0.0, 1.0).runs_needed(arms.a, level, max(arms.least, arms.units + 1))
        shape = (level, arms.units, arms.prompts, method)
        return Estimate(None, None, None, *shape, False, needed, "not clear of the base: " + nothing)
    root = math.sqrt(max(0.0, slope**2 - square * constant)) if math.isfinite(square) else math.nan
    ends = (slope - root) / square, (slope + root) / square
    border = arms.parts(1 / arms.a, -EFFECT_KEPT / arms.a)
    return _verdict(arms, value, ends, EFFECT_KEPT, value - EFFECT_KEPT, border, False, level, method)
