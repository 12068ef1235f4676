"""How much the probabilities behind the answers differ between runs, and how many flips the margins
foretell.
"""

from collections.abc import Iterator

import numpy as np

from toolkit.statistics.arrays import ROUNDING, Clusters, as_clusters, as_level
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.outliers import far_from_centre, run_distance
from toolkit.statistics.prompt_averages import (
    MIN_EFFECTIVE_LOSS,
    MIN_REPLICAS_VARIANCE,
    mean_estimate,
    share_estimate,
    unbiased,
)

# where runs move all prompts together, the interval was seen to cover from here
MIN_REPLICAS_TV = 20
WHOLE = 1e-3  # probabilities that sum to less than 1 by more than this lack a tail


def total_variation(
    prob_RPV: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """How far apart are the distributions that two fresh runs put on the answer (or the next
    token)?

    Estimand: E TV(p_r, p_q) = E 1/2 sum_v |p_r(v) - p_q(v)| for two fresh runs on a fresh prompt,
    from 0 to 1: the share of samples that must change to turn one run into the other. A greedy
    answer cannot flip where TV is less than half of top-1 minus top-2. All pairs count, at the cost
    of a sort: O(N log N) for every prompt and value, never a loop over pairs. Resampled: replicas
    and clusters of prompts, as in `disagreement`, with its bounds near 0. Conclusive: as it is, and
    from MIN_REPLICAS_TV replicas on.

    prob_RPV: probabilities [replicas, prompts, values]; a cell of nan = missing. Where only the top
    k are stored, a value that a run did not store is nan: it is lumped for all runs of the prompt,
    together with what is missing to 1, and the result is a lower bound (lumping can only bring
    distributions together), as the note says. Raises ValueError for other shapes, negative
    probabilities, sums above 1, or fewer than two rows.
    """
    level = as_level(level)
    prob_RPV, present_RP, row_R, lumped = _probabilities(prob_RPV)
    cluster_P = as_clusters(cluster_P, present_RP.shape[1])
    value_P, left_RP, distance_RP = (
        np.full(present_RP.shape[1], np.nan),
        np.full(present_RP.shape, np.nan),
        np.zeros(present_RP.shape),
    )
    for i, there_R, prob_NV in _by_prompt(prob_RPV, present_RP):
        n = len(prob_NV)
        apart_N = 0.5 * _distance_to_others(prob_NV).sum(axis=1)
        apart_N[apart_N < ROUNDING * n] = 0.0
        value_P[i] = apart_N.sum() / (n * (n - 1))
        left_RP[:, i] = value_P[i]
        left_RP[there_R, i] = (
            (apart_N.sum() - 2 * apart_N) / ((n - 1) * (n - 2)) if n > 2 else np.nan
        )
        distance_RP[there_R, i] = apart_N / (n - 1)
    note = "a lower bound: values outside the stored ones are lumped" if lumped else ""
    odd_R = row_R[far_from_centre(distance_RP.sum(axis=1) / present_RP.sum(axis=1), 12.0)]
    return share_estimate(
        value_P, left_RP, cluster_P, level, odd_R, at_least=MIN_REPLICAS_TV, note=note
    )


def population_jsd(
    prob_RPV: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """How much does it tell about the answer to know which run gave it? In nats.

    Estimand: the Jensen-Shannon divergence of the whole population of runs, H(E_r p_r) - E_r H(p_r)
    (Lin 1991), on fresh
    prompts: the mutual information of run and answer, called epistemic uncertainty where runs are
    an ensemble. That of the N runs at hand is too small by about 1/N of itself, since a mean of N
    runs is less spread out than that of all; the jackknife takes that off. `value` is the corrected
    figure, to compare between any N; the note has the plain one. Resampled: replicas and clusters
    of prompts, on the log scale.

    prob_RPV, lumping and errors: as in `total_variation`. Conclusive: MIN_REPLICAS_VARIANCE
    replicas, and clusters worth MIN_EFFECTIVE equal ones.
    """
    level = as_level(level)
    prob_RPV, present_RP, row_R, lumped = _probabilities(prob_RPV)
    cluster_P = as_clusters(cluster_P, present_RP.shape[1])
    plain_P, left_RP, distance_RP = (
        np.full(present_RP.shape[1], np.nan),
        np.full(present_RP.shape, np.nan),
        np.zeros(present_RP.shape),
    )
    for i, there_R, prob_NV in _by_prompt(prob_RPV, present_RP):
        n, sum_V, own_N = len(prob_NV), prob_NV.sum(axis=0), _entropy(prob_NV)
        plain_P[i] = _entropy(sum_V / n) - own_N.mean()
        left_RP[there_R, i] = _entropy(np.maximum(sum_V - prob_NV, 0.0) / (n - 1)) - (
            own_N.sum() - own_N
        ) / (n - 1)
        with np.errstate(divide="ignore"):
            log_V = np.where(sum_V > 0, np.log(sum_V / n), 0.0)
        distance_RP[there_R, i] = -own_N - prob_NV @ log_V  # KL(p_r || mean)
    value_P, left_RP = unbiased(plain_P, left_RP, present_RP)
    odd_R = row_R[far_from_centre(run_distance(distance_RP, present_RP))]
    plain = float(np.nanmean(plain_P)) if np.isfinite(plain_P).any() else 0.0
    note = f"{plain if plain > ROUNDING else 0.0:.4g} among these runs alone"
    note += "; a lower bound: values outside the stored ones are lumped" if lumped else ""
    return mean_estimate(
        value_P,
        left_RP,
        cluster_P,
        level,
        odd_R,
        positive=True,
        at_least=MIN_REPLICAS_VARIANCE,
        note=note,
    )


def margin_to_noise(margin_RP: np.ndarray) -> np.ndarray:
    """z_P: how many standard deviations between runs the mean margin lies from 0, where the answer
    flips.

    margin_RP: signed, [replicas, prompts]: the score of one given answer less that of its best
    rival (of the same answer in all runs, such as the right one; not top-1 less top-2 of each run,
    which is never negative). nan = missing. z = mean / sd over replicas; infinite where all runs
    agree on a margin other than 0, nan with fewer than two runs or where all margins are 0. Raises
    ValueError for other shapes.
    """
    return _moments(_margins(margin_RP))[0]


def predicted_flip(z_P: np.ndarray, n_replicas: int | np.ndarray | None = None) -> np.ndarray:
    """P(a fresh run answers other than the majority) on each prompt, for normal margins, from
    `margin_to_noise`.

    With n_replicas, those behind z: T_{N-1}(-|z| / sqrt(1 + 1/N)), the predictive distribution of
    one more normal observation. In simulations it was right to about a fifth of itself from 5
    replicas on, for rare flips and for likely ones. Without, the limit Phi(-|z|), as if mean and sd
    were known: at N = 5 it foretold 0.1 % where 1.3 % flipped.
    """
    from scipy.special import ndtr, stdtr

    z_P = np.abs(np.asarray(z_P, dtype=np.float64))
    if n_replicas is None:
        return ndtr(-z_P)
    n = np.asarray(n_replicas, dtype=np.float64)
    if np.any(n < 2):
        raise ValueError("n_replicas must be at least 2: one run has no standard deviation")
    return stdtr(n - 1, -z_P / np.sqrt(1 + 1 / n))


def flip_calibration(
    margin_RP: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """Do the margins foretell how often runs flip?

    Estimand: P(flip) as predicted from N-1 runs, less P(one more run flips against their majority),
    on fresh prompts, as a share of prompts. About 0: `predicted_flip` can be trusted as a warning
    for every prompt. Below 0: more flips than normal margins would give, as with runs that fail.
    Every replica is predicted from all others, so nothing is its own witness. Resampled: replicas
    and clusters of prompts. The note has both shares.

    margin_RP: signed, as in `margin_to_noise`; prompts with fewer than three margins do not count.
    Conclusive: MIN_REPLICAS replicas, and clusters with flips, foretold or seen, worth
    MIN_EFFECTIVE_LOSS equal ones: it says that the interval holds, not that it is about 0. Raises
    ValueError for other shapes.
    """
    level = as_level(level)
    margin_RP = _margins(margin_RP)
    cluster_P = as_clusters(cluster_P, margin_RP.shape[1])
    used_P = np.isfinite(margin_RP).sum(axis=0) >= 3
    margin_RP = margin_RP[np.isfinite(margin_RP[:, used_P]).any(axis=1)][:, used_P]
    if margin_RP.size == 0:
        return without_interval(
            None, level, len(margin_RP), 0, None, "no prompt has the margins of three replicas"
        )
    present_RP = np.isfinite(margin_RP)
    n_P = present_RP.sum(axis=0)
    z_RP, mean_RP = _left_out(margin_RP)
    predicted_RP = np.where(
        present_RP, predicted_flip(np.nan_to_num(z_RP, posinf=np.inf, neginf=-np.inf), n_P - 1), 0.0
    )
    flips_RP = np.where(present_RP, 0.5 - 0.5 * np.sign(margin_RP) * np.sign(mean_RP), 0.0)
    predicted_P, flips_P = predicted_RP.sum(axis=0) / n_P, flips_RP.sum(axis=0) / n_P
    # A run moves all predictions but its own, as it moves the one of all N; and it takes its flip
    # along.
    left_RP = np.where(
        present_RP, predicted_RP - (n_P * flips_P - flips_RP) / (n_P - 1), predicted_P - flips_P
    )
    note = f"predicted {predicted_P.mean():.4f}, flipped {flips_P.mean():.4f}"
    nobody = np.array([], dtype=np.int64)
    carried = {"carried_by_P": predicted_P + flips_P, "worth": MIN_EFFECTIVE_LOSS}
    return mean_estimate(
        predicted_P - flips_P, left_RP, cluster_P[used_P], level, nobody, note=note, **carried
    )


def _moments(margin_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z and mean per prompt."""
    present_RP = np.isfinite(margin_RP)
    n_P = present_RP.sum(axis=0)
    mean_P = np.where(present_RP, margin_RP, 0.0).sum(axis=0) / np.maximum(n_P, 1)
    square_P = (np.where(present_RP, margin_RP - mean_P, 0.0) ** 2).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(
            n_P > 1, mean_P / np.sqrt(square_P / np.maximum(n_P - 1, 1)), np.nan
        ), mean_P


def _left_out(margin_RP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z and mean of the other runs, for every cell that has a margin."""
    present_RP = np.isfinite(margin_RP)
    n_P = present_RP.sum(axis=0)
    centre_P = np.where(present_RP, margin_RP, 0.0).sum(axis=0) / n_P
    off_RP = np.where(present_RP, margin_RP - centre_P, 0.0)
    mean_RP = centre_P - off_RP / (n_P - 1)
    square_RP = np.maximum((off_RP**2).sum(axis=0) - off_RP**2 * n_P / (n_P - 1), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return mean_RP / np.sqrt(square_RP / (n_P - 2)), mean_RP


def _distance_to_others(x_NV: np.ndarray) -> np.ndarray:
    """sum_q |x_r - x_q| of every row r, value by value: from its rank and the sums on both sides of
    it.
    """
    n = len(x_NV)
    order_NV = np.argsort(x_NV, axis=0)
    sorted_NV = np.take_along_axis(x_NV, order_NV, axis=0)
    rank_N1 = np.arange(n)[:, None]
    apart_NV = (
        sorted_NV * (2 * rank_N1 - n + 2) + sorted_NV.sum(axis=0) - 2 * np.cumsum(sorted_NV, axis=0)
    )
    out_NV = np.empty_like(apart_NV)
    np.put_along_axis(out_NV, order_NV, np.maximum(apart_NV, 0.0), axis=0)
    return out_NV


def _entropy(prob: np.ndarray) -> np.ndarray:
    """In nats, along the last axis; 0 ln 0 = 0."""
    from scipy.special import entr

    return entr(prob).sum(axis=-1)


def _probabilities(prob_RPV: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """The runs that have any distribution, with the tail as one more value; where they are present;
    rows; is there a tail?
    """
    prob_RPV = np.asarray(prob_RPV, dtype=np.float64)
    if prob_RPV.ndim != 3 or 0 in prob_RPV.shape or len(prob_RPV) < 2:
        raise ValueError(
            "prob_RPV must be distributions [replicas, prompts, values] with two rows at "
            f"least, not shape {prob_RPV.shape}"
        )
    stored_RPV = ~np.isnan(prob_RPV)
    present_RP = np.any(stored_RPV, axis=2)
    row_R = np.flatnonzero(np.any(present_RP, axis=1))
    everywhere_PV = np.all(stored_RPV | ~present_RP[:, :, None], axis=0)
    prob_RPV = np.where(everywhere_PV & present_RP[:, :, None], prob_RPV, 0.0)[row_R]
    present_RP = present_RP[row_R]
    tail_RP = 1.0 - prob_RPV.sum(axis=2)
    if np.any(prob_RPV < 0) or np.any(tail_RP < -WHOLE):
        raise ValueError(
            "prob_RPV must hold probabilities: not negative, and with a sum of at most 1 "
            "in every cell"
        )
    lumped = bool(np.any(tail_RP[present_RP] > WHOLE))
    tail_RP = np.where(present_RP, np.maximum(tail_RP, 0.0), 0.0)
    return (
        (np.concatenate([prob_RPV, tail_RP[:, :, None]], axis=2) if lumped else prob_RPV),
        present_RP,
        row_R,
        lumped,
    )


def _by_prompt(
    prob_RPV: np.ndarray, present_RP: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Prompts that two runs answered: number, rows, and their distributions."""
    for i in np.flatnonzero(present_RP.sum(axis=0) >= 2):
        there_R = np.flatnonzero(present_RP[:, i])
        yield int(i), there_R, prob_RPV[there_R, i]


def _margins(margin_RP: np.ndarray) -> np.ndarray:
    margin_RP = np.asarray(margin_RP, dtype=np.float64)
    if margin_RP.ndim != 2 or margin_RP.size == 0:
        raise ValueError(
            f"margin_RP must be a table of numbers [replicas, prompts], not shape {margin_RP.shape}"
        )
    return np.where(np.isinf(margin_RP), np.nan, margin_RP)
