"""What to expect of many more runs than there are: answers off the majority, distinct answers,
accuracy that nearly all runs reach.
"""

from collections.abc import Sequence

import numpy as np

from toolkit.statistics.accuracy.mean_accuracy import accuracy
from toolkit.statistics.arrays import as_answers, as_clusters, as_level
from toolkit.statistics.conclusive import MIN_REPLICAS, enough_clusters
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import two_way
from toolkit.statistics.planning.tolerance import Tolerance, distribution_free, wilks

CONTENTS = (0.999, 0.99, 0.95)
"""Shares of all runs for which `accuracy_floor` tries to speak."""
BLOCKS = 20
"""Blocks of replicas that the jackknife of `distinct_answers` leaves out."""


def deviation(
    answer_RP: np.ndarray,
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
) -> Estimate:
    """How often does a fresh run answer a fresh prompt otherwise than the majority of N - 1 other
    runs?

    A run is held against the others, never against a majority that it is itself part of: that would
    flatter it. Of answers that are equally frequent the one with the smaller code is the majority.
    Resampled: replicas and clusters of prompts, as in `accuracy`. answer_RP: int codes [replicas,
    prompts], -1 = missing. Raises ValueError for other shapes, dtypes, or fewer than two rows.
    """
    answer_RP = as_answers(answer_RP, "answer_RP")
    off_RP = np.full(answer_RP.shape, np.nan)
    for i, answer_R in enumerate(answer_RP.T):
        here_R = answer_R >= 0
        codes, place_N, count_V = np.unique(
            answer_R[here_R], return_inverse=True, return_counts=True
        )
        if here_R.sum() < 2:
            continue
        # among the others, for a run that gave answer V
        majority_V = np.empty(len(codes), dtype=np.int64)
        for v in range(len(codes)):
            others_V = count_V.copy()
            others_V[v] -= 1
            majority_V[v] = others_V.argmax()
        off_RP[here_R, i] = place_N != majority_V[place_N]
    return accuracy(off_RP, cluster_P=cluster_P, level=level)


def distinct_answers(
    answer_RP: np.ndarray,
    runs: int,
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
) -> Estimate:
    """How many different answers do `runs` runs give to a prompt, on average over prompts?

    Up to the N replicas at hand by rarefaction, beyond by the extrapolation of Chao et al. 2014
    (Ecological Monographs 84) from the answers that one and two replicas gave. Answers that no
    replica hints at are in neither: far beyond 2 N it is a lower bound, and inconclusive.
    Resampled: BLOCKS blocks of replicas, and clusters of prompts. answer_RP: int codes [replicas,
    prompts], -1 = missing. Raises ValueError for other shapes, dtypes, fewer than two rows, or less
    than one run.
    """
    level = as_level(level)
    answer_RP = as_answers(answer_RP, "answer_RP")
    if runs < 1:
        raise ValueError(f"a number of runs starts at 1, not {runs}")
    n_replicas, n_prompts = answer_RP.shape
    cluster_P = as_clusters(cluster_P, n_prompts)
    value_P = _distinct(answer_RP, runs)
    blocks = min(n_replicas, BLOCKS)
    block_R = np.arange(n_replicas) % blocks
    left_JP = np.stack([_distinct(answer_RP[block_R != j], runs) for j in range(blocks)])
    used_P = np.isfinite(value_P)
    if not used_P.any():
        return without_interval(None, level, n_replicas, 0, MIN_REPLICAS, "no prompt was answered")
    parts = two_way(value_P[used_P], left_JP[:, used_P], cluster_P[used_P])
    value, half = float(value_P[used_P].mean()), parts.half_width(level)
    within = runs <= 2 * n_replicas
    enough = (
        within and n_replicas >= MIN_REPLICAS and enough_clusters(parts.n_clusters, parts.effective)
    )
    note = (
        "" if within else f"extrapolated from {n_replicas:,} runs to {runs:,}: rather a lower bound"
    )
    low, high = (max(1.0, value - half), value + half) if np.isfinite(half) else (None, None)
    method = "rarefaction and extrapolation (Chao et al. 2014), two-way block jackknife-t"
    return Estimate(
        value,
        low,
        high,
        level,
        n_replicas,
        int(used_P.sum()),
        method,
        enough,
        None if within else (runs + 1) // 2,
        note,
    )


def _distinct(answer_RP: np.ndarray, runs: int) -> np.ndarray:
    """Expected number of different answers of `runs` runs, for every prompt; nan where nobody
    answered.
    """
    found_P = np.full(answer_RP.shape[1], np.nan)
    for i, answer_R in enumerate(answer_RP.T):
        count_V = np.unique(answer_R[answer_R >= 0], return_counts=True)[1]
        if len(count_V):
            n = int(count_V.sum())
            found_P[i] = (
                _rarefied(count_V, n, runs) if runs <= n else _extrapolated(count_V, n, runs)
            )
    return found_P


def _rarefied(count_V: np.ndarray, n: int, runs: int) -> float:
    """Sum over answers of the chance that `runs` of the n replicas, drawn without replacement, hold
    one that gave it.
    """
    from scipy.special import gammaln

    rest_V = n - count_V
    possible_V = rest_V >= runs
    log_V = np.full(len(count_V), -np.inf)
    log_V[possible_V] = (
        gammaln(rest_V[possible_V] + 1)
        - gammaln(rest_V[possible_V] - runs + 1)
        - gammaln(n + 1)
        + gammaln(n - runs + 1)
    )
    return float(np.sum(1.0 - np.exp(log_V)))


def _extrapolated(count_V: np.ndarray, n: int, runs: int) -> float:
    once, twice = int(np.sum(count_V == 1)), int(np.sum(count_V == 2))
    unseen = (n - 1) / n * (once**2 / (2 * twice) if twice else once * (once - 1) / 2)  # Chao1
    if unseen == 0:
        return float(len(count_V))
    return float(len(count_V) + unseen * (1 - (1 - once / (n * unseen + once)) ** (runs - n)))


def accuracy_floor(score_R: np.ndarray, confidence: float = 0.95) -> Tolerance:
    """An accuracy that nearly all runs reach, for any distribution of them: 99.9 %, 99 % or 95 % of
    runs, as many as N can vouch for.

    score_R: accuracy of each run on the same prompts, nan is left out. Below 59 runs there is none
    (at 95 % confidence).
    """
    score_R = np.asarray(score_R, dtype=np.float64)
    n = int(np.isfinite(score_R).sum())
    content = next(
        (content for content in CONTENTS if wilks(content, confidence) <= n), CONTENTS[-1]
    )
    return distribution_free(score_R, content, confidence, side="low")
