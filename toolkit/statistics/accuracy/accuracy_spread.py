"""How much of the spread of accuracy between runs is more than test-set noise."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from toolkit.statistics.arrays import (
    ROUNDING,
    as_clusters,
    as_level,
    as_marks,
    blocks,
    cells,
    cluster_blocks,
    marks,
)
from toolkit.statistics.conclusive import MIN_REPLICAS_SPREAD, few_clusters_of
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import (
    cluster_sums,
    jackknife_variance,
    leave_one_out_variance,
    leverage,
    log_variance_interval,
    t_quantile,
)


@dataclass(frozen=True)
class AccuracySpread:
    """How much runs of one procedure differ in accuracy, split into test-set noise and what is
    beyond it.

    sd: standard deviation over replicas of the accuracy on this suite.
    noise: sqrt(c / 2n), the sd that runs show when each prompt falls right or wrong independently
        of the others; c is the disagreement in correctness. None without disagreement.
    excess: sd / noise. 1 = test-set noise only; clearly above 1 = runs that differ in quality.
    distribution_variance: variance between runs of the accuracy on a suite without end.
        Unclipped: it may come out negative.
    """

    sd: Estimate
    noise: float | None
    excess: Estimate
    distribution_variance: Estimate

    def to_dict(self) -> dict:
        """As plain values, for JSON."""
        return asdict(self)


def accuracy_spread(
    correct_RP: np.ndarray,
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
) -> AccuracySpread:
    """How different are runs in accuracy, and is that more than the luck of a finite suite?

    Resampled: replicas, by the delete-one jackknife of ln(variance) with t and N-1 degrees of
    freedom (which holds for other than normal accuracies too). `sd` and `excess` speak of this
    suite; `distribution_variance` of fresh prompts too, and so its interval adds a jackknife over
    prompts (clusters).

    distribution_variance is the covariance over replicas between the accuracies on two halves of
    the suite, averaged over ALL ways to halve it. That has a closed form, the mean covariance
    between prompts of different clusters: (var_r(T_r) - sum_c var_r(T_rc)) / (n^2 - sum_c n_c^2),
    T_rc = number right in cluster c. So no splits are drawn.

    correct_RP: 1 right, 0 wrong, nan (or -1 in integers) missing. A missing mark counts as the
    prompt's mean, rescaled per replica to the full suite. Inconclusive: fewer than
    MIN_REPLICAS_SPREAD replicas, or an accuracy that all replicas (but one) share. No guard looks
    at how far off single runs are: it would leave only samples that happen to lack them. They make
    the interval wide instead. Raises ValueError for other shapes or values, or fewer than two rows.
    """
    level = as_level(level)
    correct_RP = as_marks(correct_RP, "correct_RP")
    cluster_P = as_clusters(cluster_P, correct_RP.shape[1])
    marked_R = np.zeros(len(correct_RP), dtype=np.int64)
    n_P = np.empty(correct_RP.shape[1], dtype=np.int64)
    for block_P in blocks(*correct_RP.shape):
        mark_RP = marks(correct_RP[:, block_P])
        present_RP = np.isfinite(mark_RP)
        n_P[block_P] = present_RP.sum(axis=0)
        marked_R += present_RP[:, n_P[block_P] >= 2].sum(axis=1)
    used_P, row_R = n_P >= 2, np.flatnonzero(marked_R)
    n_replicas, n_prompts = len(row_R), int(used_P.sum())
    needed = MIN_REPLICAS_SPREAD if n_replicas < MIN_REPLICAS_SPREAD else None

    def unknown(value: float | None, note: str) -> Estimate:
        return without_interval(value, level, n_replicas, n_prompts, needed, note)

    if n_prompts < 2 or n_replicas < 3:
        nothing = unknown(None, "needs three replicas with marks on two common prompts")
        return AccuracySpread(nothing, None, nothing, nothing)

    def deviations() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Marks less the prompt's mean (0 where missing), where they are missing, and the clusters
        of the prompts.
        """
        for block_P in cluster_blocks(n_replicas, cluster_P):
            mark_RP = marks(cells(correct_RP, row_R, block_P))[:, used_P[block_P]]
            present_RP = np.isfinite(mark_RP)
            filled_RP = np.where(present_RP, mark_RP, 0.0)
            mean_P = filled_RP.sum(axis=0) / present_RP.sum(axis=0)
            yield (
                np.where(present_RP, filled_RP - mean_P, 0.0),
                present_RP,
                cluster_P[block_P][used_P[block_P]],
            )

    scale_R = n_prompts / marked_R[row_R]
    noise_variance, noise_left_R, sum_R = 0.0, np.zeros(n_replicas), np.zeros(n_replicas)
    for deviation_RP, present_RP, _ in deviations():
        square_RP, m_P = deviation_RP**2, present_RP.sum(axis=0)
        square_P = square_RP.sum(axis=0)
        noise_variance += float(np.sum(square_P / (m_P - 1))) / n_prompts**2
        # Without replica r prompt i loses r's square and the shift of its mean, n/(n-1) * (x_r -
        # mean)^2 in all.
        square_left_RP = square_P - square_RP * (m_P / (m_P - 1))
        noise_left_R += (
            np.sum(square_left_RP / np.maximum(m_P - present_RP - 1, 1), axis=1) / n_prompts**2
        )
        sum_R += deviation_RP.sum(axis=1) * scale_R
    noise = math.sqrt(noise_variance) or None
    accuracy_R = sum_R / n_prompts
    variance, left_R = float(accuracy_R.var(ddof=1)), leave_one_out_variance(accuracy_R)
    scaled = (
        (deviation_RP * scale_R[:, None], cluster_P) for deviation_RP, _, cluster_P in deviations()
    )
    size_C = np.bincount(as_clusters(cluster_P[used_P], n_prompts))
    covariance, left_C, a, b = _mean_covariance(cluster_sums(scaled), sum_R - sum_R.mean(), size_C)
    if left_R.min() < ROUNDING * max(ROUNDING, variance):
        note = (
            "all replicas, or all but one, have the same accuracy: there is no spread to put "
            "an interval around"
        )
        spread = math.sqrt(variance) if variance >= ROUNDING**2 else 0.0
        excess = unknown(spread / noise if noise else None, note)
        return AccuracySpread(unknown(spread, note), noise, excess, unknown(covariance, note))

    def interval(log_variance: float, left_out_R: np.ndarray) -> tuple[float, float]:
        low, high = log_variance_interval(log_variance, left_out_R, accuracy_R, level)
        return math.exp(low), math.exp(high)

    note = (
        f"{n_replicas} replicas say little about a spread (at least {MIN_REPLICAS_SPREAD})"
        if needed
        else ""
    )
    ends = interval(math.log(variance), np.log(left_R))
    shape = (level, n_replicas, n_prompts)
    verdict = (not needed, needed, note)
    method = "log-variance jackknife-t over replicas, widened for heavy tails, these prompts"
    sd = Estimate(
        math.sqrt(variance), math.sqrt(ends[0]), math.sqrt(ends[1]), *shape, method, *verdict
    )
    excess = unknown(
        math.sqrt(variance / noise_variance),
        "without one of the replicas no two of them differ on a prompt",
    )
    if noise_left_R.min() > ROUNDING * noise_variance:
        ratio = interval(math.log(variance / noise_variance), np.log(left_R / noise_left_R))
        excess = replace(sd, value=excess.value, low=math.sqrt(ratio[0]), high=math.sqrt(ratio[1]))
    if covariance is None:
        return AccuracySpread(sd, noise, excess, unknown(None, "all prompts are one cluster"))

    # Over replicas the covariance is a * s^2 - b, so the interval of s^2 carries over; what the
    # choice of prompts adds is put on by the square-and-add rule (Zou & Donner 2008), which keeps
    # the skew.
    low_P, high_P = _prompt_ends(covariance, left_C, size_C, level)
    low = covariance - math.hypot(covariance - (a * ends[0] - b), covariance - low_P)
    high = covariance + math.hypot(a * ends[1] - b - covariance, high_P - covariance)
    method = (
        "covariance between prompts; log-variance jackknife-t over replicas, jackknife-t over "
        "prompts, leaning upwards"
    )
    if doubt := few_clusters_of(cluster_P[used_P]):
        verdict = (False, needed, "; ".join(filter(None, [note, doubt])))
    return AccuracySpread(
        sd, noise, excess, Estimate(covariance, low, high, *shape, method, *verdict)
    )


def _prompt_ends(
    covariance: float, left_C: np.ndarray, size_C: np.ndarray, level: float
) -> tuple[float, float]:
    """Interval of a mean covariance for other clusters of prompts, from its values without each of
    them.

    Where runs differ on some templates only, the covariance is about the square of a mean over
    templates. So its root is what is about
    normal: (root + h)^2 = covariance + half + half^2 / (4 covariance), with h = half / (2 root).
    The last term is what makes the interval lean upwards; where the covariance is not clear of 0 it
    means nothing, and is at most `half`. Degrees of freedom of the clusters.
    """
    if len(left_C) < 3:
        return covariance, covariance
    half = t_quantile(level, leverage(size_C).df) * math.sqrt(jackknife_variance(left_C))
    lean = min(half, half**2 / (4 * covariance)) if covariance > 0 else 0.0
    return covariance - half, covariance + half + lean


def _mean_covariance(
    sums: Iterable[np.ndarray], total_R: np.ndarray, size_C: np.ndarray
) -> tuple[float | None, np.ndarray, float, float]:
    """Mean covariance over replicas between prompts of different clusters (None with one cluster);
    the same without each cluster (empty with fewer than three); and a, b with covariance = a * s^2
    - b, s^2 the variance of the accuracy.

    sums: x_RC, sums over the prompts of each cluster, some clusters at a time; total_R: their
    centred sum over all clusters.
    """
    n_clusters, n_prompts = len(size_C), int(size_C.sum())
    if n_clusters < 2:
        return None, np.zeros(0), 0.0, 0.0
    df = len(total_R) - 1
    within, shared = [], []
    for sum_RC in sums:
        centred_RC = sum_RC - sum_RC.mean(axis=0)
        within.append(np.sum(centred_RC**2, axis=0) / df)
        shared.append(total_R @ centred_RC / df)
    own_C, shared_C = np.concatenate(within), np.concatenate(shared)
    total, within = float(total_R @ total_R) / df, float(own_C.sum())
    pairs = n_prompts**2 - float(np.sum(size_C**2))
    without_C = np.zeros(0)
    if n_clusters > 2:
        left_C = total - 2 * shared_C + own_C - (within - own_C)
        pairs_C = (n_prompts - size_C) ** 2 - (np.sum(size_C**2) - size_C**2)
        without_C = left_C / pairs_C
    return (total - within) / pairs, without_C, n_prompts**2 / pairs, within / pairs
