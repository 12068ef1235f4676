"""What all intervals share: the jackknife over runs and prompts, quantiles, bounds for events never seen, required sizes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NEVER = 100_000  # a required number of runs beyond this is not worth printing as a remedy


def jackknife_variance(left_out_J: np.ndarray) -> float:
    """Variance of a statistic from its values with one unit left out: (J-1)/J * sum (x - mean x)^2 (Tukey 1958)."""
    left_out_J = np.asarray(left_out_J, dtype=np.float64)
    n = len(left_out_J)
    return float((n - 1) / n * np.sum((left_out_J - left_out_J.mean()) ** 2))


@dataclass(frozen=True)
class TwoWay:
    """Where the error of a mean over prompts of a statistic over runs comes from.

    runs: variance from the runs, the noise of their single answers included.
    prompts: variance that the choice of prompts adds to it.
    n_runs, n_clusters: independent runs and clusters of prompts. A part is nan where fewer than two stand behind it.
    """

    runs: float
    prompts: float
    n_runs: int
    n_clusters: int

    def half_width(self, level: float) -> float:
        """Half the interval: each part with the t quantile of its own degrees of freedom. nan where a part is."""
        if self.n_runs < 2 or self.n_clusters < 2:
            return math.nan
        t_runs, t_prompts = t_quantile(level, self.n_runs - 1), t_quantile(level, self.n_clusters - 1)
        return math.sqrt(t_runs**2 * self.runs + t_prompts**2 * self.prompts)

    def runs_needed(self, effect: float, level: float, at_least: int) -> int | None:
        """Runs at which an effect of the observed size would leave its interval on one side, at the same spread per run.

        More runs shrink only their own part. None when no number up to NEVER would do: the effect is about 0, or the
        prompts alone are too few.
        """
        fixed = t_quantile(level, self.n_clusters - 1) ** 2 * self.prompts if self.n_clusters > 1 else 0.0

        def resolves(n: int) -> bool:
            return t_quantile(level, n - 1) ** 2 * self.runs * self.n_runs / n + fixed < effect**2

        return smallest(resolves, at_least)


def two_way(value_P: np.ndarray, left_JP: np.ndarray, cluster_P: np.ndarray) -> TwoWay:
    """Variance of mean(value_P), for runs and clusters of prompts both drawn anew.

    value_P: the statistic per prompt; left_JP: the same without run j (nan = nothing is left: the prompt keeps its value).
    Runs: V_R, the delete-one jackknife of the mean. Prompts: V_P = C/(C-1) * sum_c (sum_{i in c} value_i - mean)^2 / M^2,
    which is var/M when every prompt is its own cluster. Both hold the noise of single answers (run x prompt) in full, so
    their plain sum counts it twice: V_RP, the same jackknife cluster by cluster, is taken off once (as in two-way clustered
    errors, Cameron, Gelbach & Miller 2011), from V_P and never below 0.
    """
    n_runs, n_prompts = left_JP.shape
    cluster_P = np.unique(cluster_P, return_inverse=True)[1]
    n_clusters = int(cluster_P.max()) + 1
    shift_JP = np.where(np.isfinite(left_JP), left_JP - value_P, 0.0) / n_prompts
    shift_JC = sum_by_cluster(shift_JP, cluster_P, n_clusters)
    centred_JC = shift_JC - shift_JC.mean(axis=0)
    runs = (n_runs - 1) / n_runs * float(np.sum(centred_JC.sum(axis=1) ** 2))
    if n_clusters < 2:
        return TwoWay(runs, math.nan, n_runs, n_clusters)
    both = (n_runs - 1) / n_runs * float(np.sum(centred_JC**2))
    both = n_clusters / (n_clusters - 1) * (both - runs / n_clusters)  # deviations from a run's own mean over clusters
    deviation_C = np.bincount(cluster_P, weights=value_P - value_P.mean()) / n_prompts
    prompts = n_clusters / (n_clusters - 1) * float(np.sum(deviation_C**2))
    return TwoWay(runs, max(0.0, prompts - both), n_runs, n_clusters)


def sum_by_cluster(x_JP: np.ndarray, cluster_P: np.ndarray, n_clusters: int) -> np.ndarray:
    """x_JC: sums over the prompts of each cluster 0..C-1."""
    if n_clusters == len(cluster_P):
        x_JC = np.empty_like(x_JP)
        x_JC[:, cluster_P] = x_JP
        return x_JC
    x_CJ = np.zeros((n_clusters, len(x_JP)))
    np.add.at(x_CJ, cluster_P, x_JP.T)
    return x_CJ.T


def t_quantile(level: float, df: float) -> float:
    """Two-sided: a t variable with df degrees of freedom lies within +- this with probability `level`."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2))


def zero_event_bound(units: int, level: float = 0.95) -> float:
    """One-sided upper limit of a rate after no event in independent units: 1 - (1-level)^(1/units), about 3/units."""
    if units < 1:
        raise ValueError("a bound needs at least one unit")
    return 1.0 - (1.0 - level) ** (1.0 / units)


def clopper_pearson(events: int, units: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a rate (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if events == 0 else float(betaincinv(events, units - events + 1, tail))
    high = 1.0 if events == units else float(betaincinv(events + 1, units - events, 1 - tail))
    return low, high


def logit_interval(share: float, half: float) -> tuple[float, float]:
    """share +- half on the logit scale (to first order): stays inside (0, 1) and leans to the middle, as the errors do."""
    step = math.exp(min(half / (share * (1 - share)), 300.0))
    odds = share / (1 - share)
    return odds / step / (1 + odds / step), odds * step / (1 + odds * step)


def share_interval(share: float, parts: TwoWay, level: float) -> tuple[float | None, float | None]:
    """Interval of a share of prompts: on the logit scale, and never tighter at the ends of the scale than what C clusters can know.

    A kind of prompt that is rarer than the zero-event bound may be missing from the suite altogether, whatever the others
    say: so `high` is never below that bound, nor `low` above one less it. A share of exactly 0 or 1 has nothing but that.
    """
    bound = zero_event_bound(parts.n_clusters, level)
    if share in (0.0, 1.0):
        return (0.0, bound) if share == 0.0 else (1.0 - bound, 1.0)
    half = parts.half_width(level)
    if not math.isfinite(half):
        return None, None
    low, high = logit_interval(share, half)
    return min(low, 1.0 - bound), max(high, bound)


def leave_one_out_variance(x_N: np.ndarray) -> np.ndarray:
    """Sample variance of x without each value in turn: ((n-1) s^2 - n/(n-1) (x_i - mean)^2) / (n-2), never below 0."""
    n = len(x_N)
    square_N = (x_N - x_N.mean()) ** 2
    return np.maximum(square_N.sum() - n / (n - 1) * square_N, 0.0) / (n - 2)


def log_jackknife(log_value: float, left_out_J: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of the pseudo-values n L - (n-1) L(-j) of a log statistic L."""
    n = len(left_out_J)
    pseudo_J = n * log_value - (n - 1) * left_out_J
    return float(pseudo_J.mean()), float(pseudo_J.std(ddof=1) / math.sqrt(n))


def smallest(holds: Callable[[int], bool], at_least: int) -> int | None:
    """The smallest n from at_least to NEVER for which a monotone condition holds, or None."""
    if not holds(NEVER):
        return None
    low, high = at_least, NEVER
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
