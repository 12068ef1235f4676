"""What all intervals share: the jackknife over runs and prompts, quantiles, bounds for events never
seen, required sizes.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from toolkit.statistics.arrays import cluster_blocks, rounding

# three runs that differ from each other equally often look as if runs brought no error at all
FEW_RUNS = 5


NEVER = 100_000  # a required number of runs beyond this is not worth printing as a remedy


def jackknife_variance(left_out_J: np.ndarray) -> float:
    """Variance of a statistic from its values with one unit left out: (J-1)/J * sum (x - mean x)^2
    (Tukey 1958).
    """
    left_out_J = np.asarray(left_out_J, dtype=np.float64)
    n = len(left_out_J)
    return float((n - 1) / n * np.sum((left_out_J - left_out_J.mean()) ** 2))


@dataclass(frozen=True)
class Leverage:
    """How the clusters of a suite weigh in the variance of a mean over its prompts, where they
    differ in size.

    share_C: of the prompts. weight_C: of the squared deviation of a cluster's sum. df: degrees of
    freedom of that variance.
    effective: Kish's number of clusters, (sum n_c)^2 / sum n_c^2. Equal where df and effective are:
    arrays have no single truth.
    """

    share_C: np.ndarray = field(compare=False)
    weight_C: np.ndarray = field(compare=False)
    df: float
    effective: float

    def carried_by(self, clusters: float) -> "Leverage":
        """No more degrees of freedom than so many clusters have (see `effective`): those that make
        up the figure at all.

        Satterthwaite's take every prompt to vary alike. Where two runs differ on few templates,
        only those bring variance, and contrasts of disagreement were covered by 89 to 93 % without
        this and are by 92 to 96 % with it.
        """
        return replace(self, df=max(1.0, min(self.df, clusters - 1.0)))


def leverage(size_C: np.ndarray) -> Leverage:
    """Weights and degrees of freedom of a cluster-robust variance, from the number of prompts of
    each of C > 1 clusters.

    A large cluster pulls the mean towards itself, so its deviation from it is too small. The
    weights are those of the jackknife over clusters, (C-1)/C / (1 - share)^2 (CR3 of Bell &
    McCaffrey 2002), which is C/(C-1) where all are equal. In the coverage study the cells of
    disagreement and accuracy with sizes of 1/rank cover 93 to 100 %.

    Degrees of freedom by Satterthwaite's approximation, (tr V)^2 / tr(V V), for independent prompts
    of equal variance (Pustejovsky & Tipton 2018, whose working model that is): with W =
    diag(weight) and S = diag(share) - share share' the covariance of the clusters' deviations, tr V
    = sum w (p - p^2) and tr(V V) = sum w^2 p^2 (1 - 2p) + (sum w p^2)^2. C - 1 where all are equal.
    """
    n, share_C = len(size_C), size_C / size_C.sum()
    weight_C = (n - 1) / n / (1 - share_C) ** 2
    trace = float(np.sum(weight_C * share_C * (1 - share_C)))
    square = float(
        np.sum((weight_C * share_C) ** 2 * (1 - 2 * share_C)) + np.sum(weight_C * share_C**2) ** 2
    )
    return Leverage(share_C, weight_C, trace**2 / square, 1 / float(np.sum(share_C**2)))


def effective(value_P: np.ndarray, cluster_P: np.ndarray) -> float:
    """How many clusters of equal size would know the mean of this positive figure as well as these
    do.
    """
    sum_C = np.bincount(cluster_P, weights=value_P)
    squares = float(np.sum(sum_C**2))
    return float(sum_C.sum() ** 2 / squares) if squares > 0 else math.inf


@dataclass(frozen=True)
class TwoWay:
    """Where the error of a mean over prompts of a statistic over runs comes from.

    runs: variance from the runs, the noise of their single answers included.
    prompts: variance that the choice of prompts adds to it.
    n_runs, n_clusters: independent runs and clusters of prompts. A part is nan where fewer than two
    stand behind it.
    sizes: what the clusters are worth; None where it is not told, and all are taken to be equal.
    """

    runs: float
    prompts: float
    n_runs: int
    n_clusters: int
    sizes: "Leverage | None" = None

    @property
    def effective(self) -> float:
        """So many clusters of equal size would know the mean as well as these do."""
        return self.sizes.effective if self.sizes else float(self.n_clusters)

    @property
    def prompt_df(self) -> float:
        """Degrees of freedom of the prompts' part."""
        return self.sizes.df if self.sizes else self.n_clusters - 1.0

    def and_pairs(self, variance: float) -> "TwoWay":
        """With the second-order variance of pairs of runs beside that of leaving out runs (see
        `PairShares`).
        """
        return replace(self, runs=self.runs + variance)

    def carried_by(self, value_P: np.ndarray, cluster_P: np.ndarray) -> "TwoWay":
        """With no more degrees of freedom than the clusters that make up this positive figure (see
        `Leverage.carried_by`).
        """
        return (
            replace(self, sizes=self.sizes.carried_by(effective(value_P, cluster_P)))
            if self.sizes
            else self
        )

    def runs_half_width(self, level: float) -> float:
        """From the runs alone."""
        return (
            t_quantile(level, self.n_runs - 1) * math.sqrt(self.runs)
            if self.n_runs > 1
            else math.nan
        )

    def half_width(self, level: float) -> float:
        """Half the interval: each part with the t quantile of its own degrees of freedom. nan where
        a part is.
        """
        if self.n_runs < 2 or self.n_clusters < 2:
            return math.nan
        t_runs, t_prompts = t_quantile(level, self.n_runs - 1), t_quantile(level, self.prompt_df)
        return math.sqrt(t_runs**2 * self.runs + t_prompts**2 * self.prompts)

    def runs_needed(self, effect: float, level: float, at_least: int) -> int | None:
        """Runs at which an effect of the observed size would leave its interval on one side, at the
        same spread per run.

        More runs shrink only their own part. None when no number up to NEVER would do: the effect
        is about 0, or the prompts alone are too few.
        """
        fixed = (
            t_quantile(level, self.prompt_df) ** 2 * self.prompts if self.n_clusters > 1 else 0.0
        )

        def resolves(n: int) -> bool:
            return t_quantile(level, n - 1) ** 2 * self.runs * self.n_runs / n + fixed < effect**2

        return smallest(resolves, at_least)


@dataclass(frozen=True)
class ByLevels:
    """The error of a mean over prompts where runs share levels of sources: a `TwoWay` for each
    source, whose levels are its runs.

    The noise of single answers enters through every source, so the interval is conservative where
    it leads.
    """

    sides: tuple[TwoWay, ...]

    @property
    def n_clusters(self) -> int:
        """Independent clusters of prompts."""
        return self.sides[0].n_clusters

    @property
    def effective(self) -> float:
        """Clusters of one size that would tell as much."""
        return self.sides[0].effective

    @property
    def runs(self) -> float:
        """Variance from the runs, of all sources together."""
        return sum(side.runs for side in self.sides)

    def runs_half_width(self, level: float) -> float:
        """From the levels alone, each source with its own degrees of freedom."""
        if min(side.n_runs for side in self.sides) < 2:
            return math.nan
        return math.hypot(
            *(t_quantile(level, side.n_runs - 1) * math.sqrt(side.runs) for side in self.sides)
        )

    def half_width(self, level: float) -> float:
        """Half the interval. nan where a part is."""
        if self.n_clusters < 2:
            return math.nan
        prompts = min(side.prompts for side in self.sides)
        return math.hypot(
            self.runs_half_width(level),
            t_quantile(level, self.sides[0].prompt_df) * math.sqrt(prompts),
        )


Error = TwoWay | ByLevels


def two_way(value_P: np.ndarray, left_JP: np.ndarray, cluster_P: np.ndarray) -> TwoWay:
    """Variance of mean(value_P), for runs and clusters of prompts both drawn anew.

    value_P: the statistic per prompt; left_JP: the same without run j (nan = nothing is left: the
    prompt keeps its value). Runs: V_R, the delete-one jackknife of the mean. Prompts: V_P = sum_c
    w_c (sum_{i in c} value_i - mean)^2 / M^2 with the weights of `leverage`, which is var/M when
    every prompt is its own cluster. Both hold the noise of single answers (run x prompt) in full,
    so their plain sum counts it twice: V_RP, the same jackknife cluster by cluster, is taken off
    once (as in two-way clustered errors, Cameron, Gelbach & Miller 2011), from V_P and never below
    0. Leaving out one of fewer than FEW_RUNS runs may change nothing by chance: there the sum is
    never below V_P, which the choice of prompts alone brings.
    """
    cluster_P = np.unique(cluster_P, return_inverse=True)[1]
    pieces = (
        (value_P[block_P], left_JP[:, block_P], cluster_P[block_P])
        for block_P in cluster_blocks(len(left_JP), cluster_P)
    )
    return two_way_of(pieces, len(left_JP))


def two_way_of(pieces: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], n_runs: int) -> TwoWay:
    """`two_way` of a table that comes piece by piece: value_P, left_JP, cluster_P of some prompts,
    sorted by cluster.

    A prompt whose value is nan takes no part.
    """
    values, clusters = [], []

    def shifts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for value_P, left_JP, cluster_P in pieces:
            used_P = np.isfinite(value_P)
            if not used_P.all():
                value_P, left_JP, cluster_P = value_P[used_P], left_JP[:, used_P], cluster_P[used_P]
            values.append(value_P)
            clusters.append(cluster_P)
            yield np.where(np.isfinite(left_JP), left_JP - value_P, 0.0), cluster_P

    sum_J, squares = np.zeros(n_runs), []
    for shift_JC in cluster_sums(shifts()):
        centred_JC = shift_JC - shift_JC.mean(axis=0)
        sum_J += centred_JC.sum(axis=1)
        squares.append(np.sum(centred_JC**2, axis=0))
    value_P, cluster_P = (
        np.concatenate(values),
        np.unique(np.concatenate(clusters), return_inverse=True)[1],
    )
    n_prompts = len(value_P)
    if n_prompts == 0:
        return TwoWay(math.nan, math.nan, n_runs, 0)
    n_clusters = int(cluster_P[-1]) + 1
    runs = (n_runs - 1) / n_runs * float(np.sum(sum_J**2)) / n_prompts**2
    if n_clusters < 2:
        return TwoWay(runs, math.nan, n_runs, n_clusters)
    noise_C = (n_runs - 1) / n_runs * np.concatenate(squares) / n_prompts**2
    prompts, sizes = between_clusters(value_P, cluster_P, noise_C, runs)
    if n_runs < FEW_RUNS:
        whole, _ = between_clusters(value_P, cluster_P, np.zeros(n_clusters), 0.0)
        prompts = max(prompts, whole - runs)
    return TwoWay(runs, prompts, n_runs, n_clusters, sizes)


def between_clusters(
    value_P: np.ndarray, cluster_P: np.ndarray, noise_C: np.ndarray, runs: float
) -> tuple[float, Leverage]:
    """Variance of mean(value_P) that the choice of clusters adds to that of the runs: V_P less V_RP
    of `two_way`, at least 0.

    cluster_P: 0..C-1, C > 1. noise_C: V_R of every cluster's sum over the number of all prompts.
    What a cluster has in common with the whole run, its share of `runs`, is no noise of its own and
    is taken off first.
    """
    size_C = np.bincount(cluster_P)
    sizes = leverage(size_C)
    noise = max(0.0, float(sizes.weight_C @ (noise_C - sizes.share_C**2 * runs)))
    deviation_C = np.bincount(cluster_P, weights=value_P - value_P.mean()) / len(value_P)
    return max(0.0, float(sizes.weight_C @ deviation_C**2) - noise), sizes


def cluster_sums(pieces: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[np.ndarray]:
    """x_JC, some clusters at a time: sums over the prompts of each, from pieces x_JP, cluster_P
    sorted by cluster.

    A cluster may run on from one piece into the next, so its last one waits.
    """
    waiting_J, name = None, -1
    for x_JP, cluster_P in pieces:
        if not len(cluster_P):
            continue
        start_C = np.flatnonzero(np.diff(cluster_P, prepend=-1))
        x_JC = np.add.reduceat(x_JP, start_C, axis=1) if len(start_C) < len(cluster_P) else x_JP
        if waiting_J is not None and name == cluster_P[0]:
            x_JC[:, 0] += waiting_J
        elif waiting_J is not None:
            yield waiting_J[:, None]
        waiting_J, name = x_JC[:, -1], cluster_P[-1]
        yield x_JC[:, :-1]
    if waiting_J is not None:
        yield waiting_J[:, None]


def t_quantile(level: float, df: float) -> float:
    """Two-sided: a t variable with df degrees of freedom lies within +- this with probability
    `level`.
    """
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2))


def zero_event_bound(units: float, level: float = 0.95) -> float:
    """One-sided upper limit of a rate after no event in independent units: 1 - (1-level)^(1/units),
    about 3/units.
    """
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
    """share +- half on the logit scale (to first order): stays inside (0, 1) and leans to the
    middle, as the errors do.
    """
    step = math.exp(min(half / (share * (1 - share)), 300.0))
    odds = share / (1 - share)
    return odds / step / (1 + odds / step), odds * step / (1 + odds * step)


def share_interval(share: float, parts: Error, level: float) -> tuple[float | None, float | None]:
    """Interval of a share of prompts: on the logit scale, and never tighter at the ends of the
    scale than what C clusters can know.

    A kind of prompt that is rarer than the zero-event bound may be missing from the suite
    altogether, whatever the others
    say: so `high` is never below that bound, nor `low` above one less it. A share of exactly 0 or 1
    has nothing but that.
    """
    bound = zero_event_bound(parts.effective, level)
    if share in (0.0, 1.0):
        return (0.0, bound) if share == 0.0 else (1.0 - bound, 1.0)
    half = parts.half_width(level)
    if not math.isfinite(half):
        return None, None
    low, high = logit_interval(share, half)
    return min(low, 1.0 - bound), max(high, bound)


def runs_interval(
    share: float, parts: Error, n_runs: int, level: float
) -> tuple[float | None, float | None]:
    """Interval of a share over fixed prompts, for runs drawn anew: on the logit scale; of 0 and 1
    the bound over disjoint pairs of runs.
    """
    if share in (0.0, 1.0):
        bound = zero_event_bound(max(1, n_runs // 2), level)
        return (0.0, bound) if share == 0.0 else (1.0 - bound, 1.0)
    half = parts.runs_half_width(level)
    return logit_interval(share, half) if math.isfinite(half) else (None, None)


def leave_one_out_variance(x_N: np.ndarray) -> np.ndarray:
    """Sample variance of x without each value in turn: ((n-1) s^2 - n/(n-1) (x_i - mean)^2) /
    (n-2), never below 0.
    """
    n = len(x_N)
    square_N = (x_N - x_N.mean()) ** 2
    return np.maximum(square_N.sum() - n / (n - 1) * square_N, 0.0) / (n - 2)


HEAVY_TAILS = 1.3
"""Upper limit of the log of a variance, in half-widths above the middle. Where a few runs lie far
off, the usual limit misses nearly always on one side: below the variance.
"""


def log_jackknife(log_value: float, left_out_J: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of the pseudo-values n L - (n-1) L(-j) of a log statistic L."""
    n = len(left_out_J)
    pseudo_J = n * log_value - (n - 1) * left_out_J
    return float(pseudo_J.mean()), float(pseudo_J.std(ddof=1) / math.sqrt(n))


def log_variance_interval(
    log_value: float,
    left_log_J: np.ndarray,
    score_J: np.ndarray | None,
    level: float,
    *,
    scale: float = 1.0,
) -> tuple[float, float]:
    """Interval of the log of a variance, or of a ratio that has one on top; the estimate is inside.

    left_log_J: the log without each run; its pseudo-values give middle and standard error. score_J:
    the scores behind the variance, whose kurtosis gives a second standard error, sqrt((excess +
    2n/(n-1)) / n) with an excess of at least 0; the larger counts. scale: 0.5 of a standard
    deviation.

    The jackknife alone covers 82 to 90 % of exponential scores with 10 to 64 runs, and 88 to 96 %
    where a fifth of the runs is of another kind, which has a small kurtosis. In the coverage study
    (`run_table.sd`) both and `HEAVY_TAILS` cover 92 to 96 % and 96 to 100 % from 15 runs on, and 96
    to 100 % of normal scores: conservative where tails are light.
    """
    n = len(left_log_J)
    centre, se = log_jackknife(log_value, left_log_J)
    if score_J is not None:
        excess = sample_kurtosis(score_J) - 3.0
        se = max(se, scale * math.sqrt((max(excess, 0.0) + 2 * n / (n - 1)) / n))
    half = t_quantile(level, n - 1) * se
    low, high = min(centre, log_value) - half, max(centre, log_value) + HEAVY_TAILS * half
    return max(low, -700.0), min(high, 700.0)


def sample_kurtosis(x_N: np.ndarray) -> float:
    """3 of normal numbers; bias-corrected (G2 + 3 of Joanes & Gill 1998), which needs four. 3 where
    there is no spread.
    """
    from scipy.stats import kurtosis

    return 3.0 + float(kurtosis(x_N, bias=False)) if len(x_N) > 3 and np.ptp(x_N) > 0 else 3.0


def sample_skewness(x_N: np.ndarray) -> float:
    """0 of symmetric numbers; bias-corrected (G1 of Joanes & Gill 1998), which needs three. 0 where
    there is no spread.
    """
    from scipy.stats import skew

    return float(skew(x_N, bias=False)) if len(x_N) > 2 and np.ptp(x_N) > 0 else 0.0


def skewness_and_excess(x_N: np.ndarray) -> tuple[float, float]:
    """Skewness and excess kurtosis, both 0 for a normal; 0 below four values, or where the values
    differ by rounding alone.
    """
    if len(x_N) < 4 or float(np.std(x_N)) <= rounding(x_N):
        return 0.0, 0.0
    return sample_skewness(x_N), sample_kurtosis(x_N) - 3.0


def pseudo_contrast(
    full_b: float, left_b_J: np.ndarray, full_a: float, left_a_J: np.ndarray, *, paired: bool
) -> tuple[float, float, float]:
    """b - a of a statistic on the scale of its pseudo-values: middle, standard error, degrees of
    freedom.

    left_b_J, left_a_J: the statistic without each run of its arm. Independent arms: Welch's degrees
    of freedom; paired=True: run j of both arms is left out together, n - 1.
    """
    if paired:
        return *log_jackknife(full_b - full_a, left_b_J - left_a_J), len(left_b_J) - 1.0
    (centre_b, se_b), (centre_a, se_a) = (
        log_jackknife(full_b, left_b_J),
        log_jackknife(full_a, left_a_J),
    )
    se = math.hypot(se_b, se_a)
    df = se**4 / (se_b**4 / (len(left_b_J) - 1) + se_a**4 / (len(left_a_J) - 1)) if se > 0 else 1.0
    return centre_b - centre_a, se, df


def two_sided_p(centre: float, se: float, df: float) -> float:
    """Of a t variable: the level at which centre +- t * se would just touch 0."""
    from scipy.special import stdtr

    return 2 * float(stdtr(df, -abs(centre) / se))


def smallest(holds: Callable[[int], bool], at_least: int) -> int | None:
    """The smallest n from at_least to NEVER for which a monotone condition holds, or None."""
    if not holds(NEVER):
        return None
    low, high = at_least, NEVER
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
