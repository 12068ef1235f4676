"""Mitigation against baseline, when the groups of the mitigation were built from the replicas of the baseline.

The two arms are not independent: a replica that is off pulls its group with it. So the unit everywhere is the group
with its members. Leaving out group g leaves out its row in the mitigated arm and its members' rows in the baseline
arm at the same time, and prompts are compared prompt by prompt. Replicas that are in no group take no part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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

Members = Sequence[np.ndarray | Sequence[int]]
Clusters = np.ndarray | Sequence[int] | None


@dataclass(frozen=True)
class _Arms:
    """A statistic of the mitigated arm (b) and of the baseline (a) per prompt: with all groups, and with each one left out."""

    b_P: np.ndarray
    a_P: np.ndarray
    left_b_GP: np.ndarray
    left_a_GP: np.ndarray
    cluster_P: np.ndarray
    remark: str = ""

    @property
    def b(self) -> float:
        return float(self.b_P.mean())

    @property
    def a(self) -> float:
        return float(self.a_P.mean())

    @property
    def groups(self) -> int:
        return len(self.left_b_GP)

    @property
    def clusters(self) -> int:
        return len(np.unique(self.cluster_P))

    @property
    def prompts(self) -> int:
        return len(self.b_P)

    @property
    def enough(self) -> bool:
        return self.groups >= MIN_GROUPS and self.clusters >= MIN_CLUSTERS

    @property
    def too_few(self) -> str:
        if self.enough:
            return ""
        return f"{self.groups} groups on {self.clusters} prompts or clusters are too few for an honest interval"

    def parts(self, weight_b: float, weight_a: float) -> TwoWay:
        """Variance of weight_b * b + weight_a * a, from groups with their members and from prompts."""
        left_GP = weight_b * self.left_b_GP + weight_a * self.left_a_GP
        if not np.isfinite(left_GP).any():  # two groups leave no pair of groups when one is left out
            return TwoWay(math.nan, math.nan, self.groups, self.clusters)
        return two_way(weight_b * self.b_P + weight_a * self.a_P, left_GP, self.cluster_P)


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
    method = "paired delete-a-group jackknife-t with prompt term, log scale"
    if arms is None or (arms.a == 0 and arms.b == 0):
        return _unknown(arms, mitigated_GP, level, method, "neither arm disagrees, so there is no ratio")
    if arms.a == 0:
        return _unknown(arms, mitigated_GP, level, method, "single replicas never disagreed and the mitigated runs do: no ratio")
    if arms.b == 0:
        return _zero_ratio(arms, level, 1.0, "no two mitigated runs differed")
    parts = arms.parts(1 / arms.b, -1 / arms.a)
    with np.errstate(divide="ignore"):
        left_G = np.log(_whole(arms.left_b_GP, arms.b_P)) - np.log(_whole(arms.left_a_GP, arms.a_P))
    if np.isfinite(left_G).all() and math.isfinite(parts.runs):  # else one group holds all disagreement: errors to first order
        parts = replace(parts, runs=jackknife_variance(left_G))
    log_ratio, half = math.log(arms.b / arms.a), parts.half_width(level)
    ends = math.exp(log_ratio - half), math.exp(min(log_ratio + half, 300.0))
    same = abs(log_ratio) + half <= math.log(SAME_RATIO)
    return _verdict(arms, arms.b / arms.a, ends, 1.0, log_ratio, parts, same, level, method)


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
    return _difference(arms, mitigated_GP, level)


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
    return _difference(arms, mitigated_GP, level)


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
    return _kept(arms, mitigated_GP, level, "the replicas answer as the base does: there is no effect to keep")


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
    return _kept(arms, mitigated_GP, level, "the replicas are as accurate as the base: there is no gain to keep")


def _disagreements(mitigated_GP: np.ndarray, baseline_RP: np.ndarray, members: Members, cluster_P: Clusters) -> _Arms | None:
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
    return _Arms(b_P, a_P, left_b_GP, left_a_GP, clusters_P[used_P], remark)


def _means(
    mitigated_GP: np.ndarray, baseline_RP: np.ndarray, zero_P: np.ndarray | None, members: Members, cluster_P: Clusters
) -> _Arms | None:
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
    return _Arms(b_P, a_P, left_b_GP, left_a_GP, clusters_P[used_P])


def _only_members(members: Members, present_GP: np.ndarray, n_replicas: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Groups that answered anything, the baseline rows behind them, and where in those rows each group's members stand."""
    groups = as_members(members, len(present_GP), n_replicas)
    alive_G = np.flatnonzero(present_GP.any(axis=1))
    ends = np.cumsum([0] + [len(groups[g]) for g in alive_G])
    row_R = np.concatenate([groups[g] for g in alive_G]) if len(alive_G) else np.array([], dtype=np.int64)
    return alive_G, row_R, [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def _whole(left_GP: np.ndarray, value_P: np.ndarray) -> np.ndarray:
    """Mean over prompts; one that loses its last pair with the group keeps its value."""
    return np.where(np.isfinite(left_GP), left_GP, value_P).mean(axis=1)


def _unknown(arms: _Arms | None, mitigated_GP: np.ndarray, level: float, method: str, note: str) -> Estimate:
    if arms is None:
        note = "no prompt was answered by enough runs of both arms"
        return Estimate(None, None, None, level, len(mitigated_GP), 0, method, False, MIN_GROUPS, note)
    needed = MIN_GROUPS if arms.groups < MIN_GROUPS else None
    return Estimate(None, None, None, level, arms.groups, arms.prompts, method, False, needed, arms.too_few or note)


def _verdict(
    arms: _Arms,
    value: float,
    ends: tuple[float, float],
    border: float,
    effect: float,
    parts: TwoWay,
    same: bool,
    level: float,
    method: str,
) -> Estimate:
    """Conclusive if there are enough units and the interval leaves the border outside, or says `same`."""
    shape = (level, arms.groups, arms.prompts, method)
    if not math.isfinite(ends[0]):
        return Estimate(value, None, None, *shape, False, MIN_GROUPS if arms.groups < MIN_GROUPS else None, arms.too_few)
    resolved = not ends[0] <= border <= ends[1]
    conclusive = arms.enough and (resolved or same)
    needed, note = None, arms.too_few or arms.remark
    if not conclusive and (resolved or same):
        needed = MIN_GROUPS if arms.groups < MIN_GROUPS else None
    elif not conclusive:
        needed = parts.runs_needed(effect, level, max(MIN_GROUPS, arms.groups + 1))
        note = note or ("" if needed else "no number of groups would resolve a change this small on these prompts: more prompts might")
    elif same and not resolved:
        note = "; ".join(filter(None, ["practically no change", arms.remark]))
    return Estimate(value, *ends, *shape, conclusive, needed, note)


def _difference(arms: _Arms | None, mitigated_GP: np.ndarray, level: float) -> Estimate:
    method = "paired delete-a-group jackknife-t with prompt term"
    if arms is None:
        return _unknown(arms, mitigated_GP, level, method, "")
    value = arms.b - arms.a
    parts = arms.parts(1.0, -1.0)
    half = parts.half_width(level)
    if half == 0.0:
        # No group and no prompt differs from the others: fresh prompts are bounded as for an event never seen.
        half = zero_event_bound(arms.clusters, level)
        method = f"zero-event bound over {arms.clusters} prompts or clusters"
    ends = max(-1.0, value - half), min(1.0, value + half)
    same = max(abs(value - half), abs(value + half)) <= SAME_SHARE
    return _verdict(arms, value, ends, 0.0, value, parts, same, level, method)


def _zero_ratio(arms: _Arms, level: float, border: float, note: str) -> Estimate:
    """The numerator is 0: its zero-event bound over the lower limit of the denominator, half of the error to each."""
    bound = zero_event_bound(arms.clusters, (1 + level) / 2)
    method = f"zero-event bound over {arms.clusters} prompts or clusters / lower limit of the baseline"
    half = arms.parts(0.0, 1.0).half_width(level)
    low_a = 0.0
    if math.isfinite(half):
        low_a = logit_interval(arms.a, half)[0] if 0 < arms.a < 1 else abs(arms.a) - half
    high = bound / low_a if low_a > 0 else None
    conclusive = arms.enough and high is not None and high < border
    needed = MIN_GROUPS if arms.groups < MIN_GROUPS else None
    shape = (level, arms.groups, arms.prompts, method)
    return Estimate(0.0, 0.0, high, *shape, conclusive, needed, arms.too_few or note)


def _kept(arms: _Arms | None, mitigated_GP: np.ndarray, level: float, nothing: str) -> Estimate:
    """Fieller's interval of b / a: all ratios theta for which b - theta * a is no further from 0 than t standard errors."""
    method = "Fieller interval, paired delete-a-group jackknife with prompt term"
    if arms is None or arms.a == 0:
        return _unknown(arms, mitigated_GP, level, method, nothing)
    if arms.b == 0 and not arms.b_P.any():
        return _zero_ratio(arms, level, EFFECT_KEPT, "no mitigated run differs from the base")
    value = arms.b / arms.a
    # Squared half widths of b, a and b - value * a stand for t^2 times their variances; the last one gives the covariance.
    square_b, square_a, square_gap = (arms.parts(*w).half_width(level) ** 2 for w in ((1.0, 0.0), (0.0, 1.0), (1.0, -value)))
    covariance = (square_b + value**2 * square_a - square_gap) / (2 * value) if value else 0.0
    square, slope, constant = arms.a**2 - square_a, arms.a * arms.b - covariance, arms.b**2 - square_b
    if square <= 0:
        needed = arms.parts(0.0, 1.0).runs_needed(arms.a, level, max(MIN_GROUPS, arms.groups + 1))
        shape = (level, arms.groups, arms.prompts, method)
        return Estimate(None, None, None, *shape, False, needed, "not clear of the base: " + nothing)
    root = math.sqrt(max(0.0, slope**2 - square * constant)) if math.isfinite(square) else math.nan
    ends = (slope - root) / square, (slope + root) / square
    border = arms.parts(1 / arms.a, -EFFECT_KEPT / arms.a)
    return _verdict(arms, value, ends, EFFECT_KEPT, value - EFFECT_KEPT, border, False, level, method)
