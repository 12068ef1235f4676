"""The loss of a run split into the loss of the centre of all runs, and what the differences between
runs cost.
"""

from dataclasses import asdict, dataclass

import numpy as np

from toolkit.statistics.arrays import Clusters, as_clusters, as_level
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.outliers import far_from_centre, run_distance
from toolkit.statistics.prompt_averages import (
    MIN_EFFECTIVE_LOSS,
    MIN_REPLICAS_VARIANCE,
    mean_estimate,
    unbiased,
    variances,
)


@dataclass(frozen=True)
class Decomposition:
    """loss = bias + variance: the mean loss of one run, the loss of the centre of all runs, and
    what the differences between runs cost.
    """

    loss: Estimate
    bias: Estimate
    variance: Estimate

    def to_dict(self) -> dict:
        """As plain values, for JSON."""
        return asdict(self)


def log_loss_decomposition(
    logprob_RPV: np.ndarray, truth_P: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Decomposition:
    """How much of the log loss of a run is that runs differ? In nats.

    E_r[-ln f_r(y)] = -ln fbar(y) + E_r KL(fbar || f_r) with fbar the normalised geometric mean of
    the runs, so that the second part is -ln sum_v exp(E_r ln f_r(v)) (Heskes 1998). Estimand: the
    three means, with E over all runs there could be, for fresh prompts. From N runs alone the
    variance comes out about 1/N too small, and the bias too large by as
    much: the jackknife takes that off (N V - (N-1) mean_r V(-r), Quenouille 1956).
    Resampled: replicas and clusters of prompts (two-way jackknife, log scale).

    logprob_RPV: ln of probabilities that sum to 1 over V, a cell of nan = missing. truth_P: the
    right value, -1 = not
    known: such prompts do not count. Conclusive: MIN_REPLICAS replicas (for the variance
    MIN_REPLICAS_VARIANCE) and clusters worth MIN_EFFECTIVE_LOSS equal ones (MIN_EFFECTIVE). Raises
    ValueError for other shapes, for sums other than 1, and for a probability of 0: its loss has no
    end.
    """
    level = as_level(level)
    logprob_RPV, present_RP, truth_P, cluster_P, row_R = _distributions(
        logprob_RPV, "logprob_RPV", truth_P, cluster_P
    )
    if np.any(np.isinf(logprob_RPV)):
        raise ValueError("logprob_RPV holds a probability of 0, of which the log loss has no end")
    _sums_to_one(np.exp(logprob_RPV).sum(axis=2), present_RP, "logprob_RPV")
    log_RPV = np.where(present_RP[:, :, None], logprob_RPV, 0.0)
    n_P, sum_PV = present_RP.sum(axis=0), log_RPV.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance_P = -_log_sum_exp(sum_PV / n_P[:, None])
        left_RP = np.empty(present_RP.shape)
        for r, log_PV in enumerate(log_RPV):
            left_RP[r] = -_log_sum_exp((sum_PV - log_PV) / (n_P - present_RP[r])[:, None])
        centre_PV = sum_PV / n_P[:, None] + variance_P[:, None]
        distance_RP = np.sum(np.exp(centre_PV) * centre_PV, axis=1) - np.einsum(
            "pv,rpv->rp", np.exp(centre_PV), log_RPV
        )
    loss_RP = -np.take_along_axis(log_RPV, truth_P[None, :, None], axis=2)[:, :, 0]
    return _decomposition(
        loss_RP,
        *unbiased(variance_P, left_RP, present_RP),
        distance_RP,
        present_RP,
        cluster_P,
        row_R,
        level,
    )


def brier_decomposition(
    prob_RPV: np.ndarray, truth_P: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Decomposition:
    """How much of the Brier score of a run is that runs differ? From 0 to 2.

    E_r ||f_r - y||^2 = ||fbar - y||^2 + E_r ||f_r - fbar||^2 with fbar the mean of the runs (Krogh
    & Vedelsby 1995). The second part is what an ensemble of many would save. Estimand: the three
    means, with E over all runs there could be, for fresh prompts; the variance with N - 1 below, so
    that both parts are unbiased. bias may come out below 0 by chance. Everything else as in
    `log_loss_decomposition`; a probability of 0 is fine.
    """
    level = as_level(level)
    prob_RPV, present_RP, truth_P, cluster_P, row_R = _distributions(
        prob_RPV, "prob_RPV", truth_P, cluster_P
    )
    _sums_to_one(prob_RPV.sum(axis=2), present_RP, "prob_RPV")
    prob_RPV = np.where(present_RP[:, :, None], prob_RPV, 0.0)
    n_P = present_RP.sum(axis=0)
    mean_PV = prob_RPV.sum(axis=0) / np.maximum(n_P, 1)[:, None]
    distance_RP = np.where(present_RP, np.sum((prob_RPV - mean_PV) ** 2, axis=2), 0.0)
    loss_RP = (
        1.0
        - 2 * np.take_along_axis(prob_RPV, truth_P[None, :, None], axis=2)[:, :, 0]
        + np.sum(prob_RPV**2, axis=2)
    )
    return _decomposition(
        loss_RP,
        *variances(distance_RP, present_RP),
        distance_RP,
        present_RP,
        cluster_P,
        row_R,
        level,
    )


def _decomposition(
    loss_RP: np.ndarray,
    variance_P: np.ndarray,
    left_RP: np.ndarray,
    distance_RP: np.ndarray,
    present_RP: np.ndarray,
    cluster_P: np.ndarray,
    row_R: np.ndarray,
    level: float,
) -> Decomposition:
    loss_RP = np.where(present_RP, loss_RP, 0.0)
    n_P = present_RP.sum(axis=0)
    used_P = n_P >= 2
    if not used_P.any():
        nothing = without_interval(
            None,
            level,
            len(loss_RP),
            0,
            None,
            "no prompt with a known answer has the distributions of two replicas",
        )
        return Decomposition(nothing, nothing, nothing)
    loss_P = np.where(used_P, loss_RP.sum(axis=0) / np.maximum(n_P, 1), np.nan)
    left_loss_RP = np.where(
        present_RP, (loss_RP.sum(axis=0) - loss_RP) / np.maximum(n_P - 1, 1), loss_P
    )
    odd_R = row_R[far_from_centre(run_distance(distance_RP, present_RP))]
    loss = mean_estimate(
        loss_P, left_loss_RP, cluster_P, level, odd_R, positive=True, worth=MIN_EFFECTIVE_LOSS
    )
    bias = mean_estimate(
        loss_P - variance_P,
        left_loss_RP - left_RP,
        cluster_P,
        level,
        odd_R,
        positive=True,
        worth=MIN_EFFECTIVE_LOSS,
    )
    variance = mean_estimate(
        variance_P, left_RP, cluster_P, level, odd_R, positive=True, at_least=MIN_REPLICAS_VARIANCE
    )
    return Decomposition(loss, bias, variance)


def _log_sum_exp(x_PV: np.ndarray) -> np.ndarray:
    top_P = x_PV.max(axis=1)
    return top_P + np.log(np.exp(x_PV - top_P[:, None]).sum(axis=1))


def _distributions(
    x_RPV: np.ndarray, name: str, truth_P: np.ndarray, cluster_P: Clusters
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The prompts with a known truth and the runs with any distribution: these, where they are
    present, truth, clusters, rows.
    """
    x_RPV, truth_P = np.asarray(x_RPV, dtype=np.float64), np.asarray(truth_P)
    if x_RPV.ndim != 3 or 0 in x_RPV.shape or len(x_RPV) < 2:
        raise ValueError(
            f"{name} must be distributions [replicas, prompts, values] with two rows at "
            f"least, not shape {x_RPV.shape}"
        )
    n_prompts, n_values = x_RPV.shape[1:]
    if truth_P.shape != (n_prompts,) or not np.issubdtype(truth_P.dtype, np.integer):
        raise ValueError(
            f"truth_P must be one value number for each of the {n_prompts} prompts, -1 "
            "where it is not known"
        )
    if truth_P.max() >= n_values or truth_P.min() < -1:
        raise ValueError(f"truth_P names a value outside 0..{n_values - 1}")
    cluster_P = as_clusters(cluster_P, n_prompts)
    known_P = truth_P >= 0
    present_RP = np.all(~np.isnan(x_RPV), axis=2)
    row_R = np.flatnonzero(present_RP[:, known_P].any(axis=1))
    return (
        x_RPV[row_R][:, known_P],
        present_RP[row_R][:, known_P],
        truth_P[known_P],
        cluster_P[known_P],
        row_R,
    )


def _sums_to_one(sum_RP: np.ndarray, present_RP: np.ndarray, name: str) -> None:
    if np.any(np.abs(sum_RP[present_RP] - 1) > 1e-3):
        raise ValueError(
            f"{name} must be whole distributions: the probabilities of a cell sum to 1"
        )
