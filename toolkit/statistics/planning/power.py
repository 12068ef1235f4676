"""How many replicas are needed, and what can be seen with those there are. From a pilot's answers,
or from a guess.

Every size is for the interval or test that the other modules make: `disagreement`,
`disagreement_ratio`, `variance_ratio`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.statistics.arrays import (
    as_answers,
    as_clusters,
    as_level,
    as_members,
    cells,
    cluster_blocks,
    filled_rows,
    same_prompts,
)
from toolkit.statistics.compare.arms import MIN_GROUPS
from toolkit.statistics.conclusive import MIN_REPLICAS
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import (
    NEVER,
    TwoWay,
    share_interval,
    smallest,
    t_quantile,
    two_way,
    two_way_of,
    zero_event_bound,
)
from toolkit.statistics.pairs import PairShares, count_pairs, leave_group_out, leave_one_out

NORMAL_KURTOSIS = 3.0


@dataclass(frozen=True)
class Spread:
    """What is known of a procedure's disagreement D: its value, and where the error of an estimate
    of it comes from.

    parts: the variance of D, for the runs and prompts (or clusters of prompts) that it names.
    squares: mean of d_i^2 over prompts, with d_i the disagreement on prompt i.
    guessed: it rests on a guess, in whole or in part.
    """

    value: float
    parts: TwoWay
    squares: float
    guessed: bool = False

    def error_of(self, runs: int, clusters: int | None = None) -> TwoWay:
        """The variance for other numbers: the runs' part falls as 1/runs, the prompts' part as
        1/clusters.

        Some of the runs' part (the luck of single answers) falls with the prompts too, so sizes for
        more prompts err upwards.
        """
        return _scaled(self.parts, runs, clusters or self.parts.n_clusters)


@dataclass(frozen=True)
class Size:
    """An answer to "how many?": replicas, and the prompts (or clusters) that they need to answer.

    replicas: None where no number is enough (up to 100,000), whatever the prompts.
    prompts: more than there are where only more prompts help; `note` says so.
    """

    replicas: int | None
    prompts: int
    note: str = ""


# -- what is known -------------------------------------------------------------------------------


def pilot_spread(
    answer_RP: np.ndarray, *, cluster_P: np.ndarray | Sequence[int] | None = None
) -> Spread | None:
    """What a pilot's replicas show; None where fewer than three of them, or fewer than two
    clusters, answered.

    answer_RP, cluster_P and errors as in `disagreement`. A pilot is itself a sample: from 10
    replicas the runs' part is known to a factor of about 1.5 to either side, from 30 to 1.25.
    """
    answer_RP = as_answers(answer_RP, "answer_RP", at_least=0)
    cluster_P = as_clusters(cluster_P, answer_RP.shape[1])
    row_R = filled_rows(answer_RP)
    if len(row_R) < 3:
        return None
    d_P, shares = np.full(answer_RP.shape[1], np.nan), PairShares(len(row_R))

    def left_out() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for block_P in cluster_blocks(len(row_R), cluster_P):
            answers = cells(answer_RP, row_R, block_P)
            pairs = count_pairs(answers)
            shares.add(answers)
            d_P[block_P] = pairs.d_P
            yield d_P[block_P], leave_one_out(pairs), cluster_P[block_P]

    parts = two_way_of(left_out(), len(row_R)).and_pairs(shares.variance(len(row_R)))
    d_P = d_P[np.isfinite(d_P)]
    return (
        Spread(float(d_P.mean()), parts, float(np.mean(d_P**2))) if parts.n_clusters > 1 else None
    )


def interval_spread(disagreement: Estimate) -> Spread | None:
    """What the interval of a finished estimate gives away, where the answers are gone; None where
    it has none.

    Its width is known, not how much of it is due to the prompts: that is guessed as in
    `guessed_spread`, up to nine tenths of it.
    """
    value, low, high, n, prompts = (
        getattr(disagreement, name) for name in ("value", "low", "high", "n_replicas", "n_prompts")
    )
    if value is None or low is None or high is None or n < 3 or prompts < 2:
        return None
    guess = guessed_spread(min(max(value, 1e-6), 1 - 1e-6), prompts).parts.prompts
    if value in (0.0, 1.0):
        return Spread(value, TwoWay(0.0, 0.0, n, prompts), value, guessed=True)

    def logit(p: float) -> float:
        return math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)

    # one end may be a zero-event bound
    half = value * (1 - value) * min(logit(high) - logit(value), logit(value) - logit(low))
    t_runs, t_prompts = (
        t_quantile(disagreement.level, n - 1),
        t_quantile(disagreement.level, prompts - 1),
    )
    of_prompts = min(guess, 0.9 * (half / t_prompts) ** 2)
    of_runs = (half**2 - t_prompts**2 * of_prompts) / t_runs**2
    return Spread(
        value,
        TwoWay(of_runs, of_prompts, n, prompts),
        value**2 + of_prompts * prompts,
        guessed=True,
    )


def guessed_spread(
    disagreement: float,
    prompts: int,
    *,
    run_spread: float = 0.2,
    prompt_spread: float | None = None,
) -> Spread:
    """What to reckon with before anything was trained.

    disagreement: D, between 0 and 1. prompts: independent prompts, or clusters of them.
    run_spread: standard deviation between runs of how often one differs from the others, as a share
    of D. In simulated populations with a run effect of 0.7 on the logit of every answer it was 0.04
    to 0.06 where most prompts are all but decided, 0.25 where all are alike.
    prompt_spread: standard deviation of d_i between prompts; default sqrt(D (1 - D)) / 2, what
    those populations show to within a tenth where most prompts are all but decided, and twice that
    where all are alike.

    D is a mean over pairs of runs, so Var(D) = 4 (run_spread D)^2 / N + D (1 - D) / (N P) +
    prompt_spread^2 / P; the middle term is the luck of single answers. Raises ValueError for a
    guess that cannot be.
    """
    if not 0.0 < disagreement < 1.0 or prompts < 2 or run_spread < 0 or (prompt_spread or 0.0) < 0:
        raise ValueError(
            "a guess needs a disagreement between 0 and 1, two prompts or more, and "
            "spreads that are not negative"
        )
    luck = disagreement * (1 - disagreement)
    prompt_variance = luck / 4 if prompt_spread is None else prompt_spread**2
    parts = TwoWay(
        4 * (run_spread * disagreement) ** 2 + luck / prompts, prompt_variance / prompts, 1, prompts
    )
    return Spread(disagreement, parts, disagreement**2 + prompt_variance, guessed=True)


# -- the interval of disagreement ----------------------------------------------------------------


def interval_half_width(
    spread: Spread, replicas: int, prompts: int | None = None, *, level: float = 0.95
) -> float | None:
    """Half the width that `disagreement` will give its interval: what "+-" may be printed beside D.

    prompts: independent prompts or clusters, those of the spread by default. None where there is no
    interval. Unit: share of prompts.
    """
    low, high = share_interval(spread.value, spread.error_of(replicas, prompts), as_level(level))
    return None if low is None or high is None else (high - low) / 2


def replicas_for_half_width(
    spread: Spread, half_width: float, prompts: int | None = None, *, level: float = 0.95
) -> Size:
    """Replicas from which the interval of disagreement is +- half_width or narrower.

    Where no number of them is enough on these prompts: the fewest prompts of which the part of the
    error takes up half of what is allowed, with the replicas needed there. Raises ValueError unless
    half_width lies between 0 and 0.5.
    """
    if not 0.0 < half_width < 0.5:
        raise ValueError(f"a half-width lies between 0 and 0.5, not {half_width}")

    same = spread.value in (0.0, 1.0)  # then the bound over prompts is all there is

    def narrow(replicas: int, prompts: int, share: float) -> bool:
        half = interval_half_width(spread, replicas, prompts, level=level)
        return half is not None and half <= half_width * (1.0 if same else share)

    size = _fewest(narrow, prompts or spread.parts.n_clusters, MIN_REPLICAS)
    if same:
        return replace(
            size,
            note="no two runs of the pilot differed, or all did: it says nothing of how many "
            "replicas it takes",
        )
    return size


def replicas_for_range(spread: Spread, low: float, high: float, *, level: float = 0.95) -> Size:
    """Replicas from which the interval of disagreement lies within [low, high], or wholly outside,
    whichever the pilot's value says.

    On these prompts, or on more where no number of replicas is enough; none of either where the
    value lies on an edge.
    """

    def decided(replicas: int, prompts: int, share: float) -> bool:
        parts = spread.error_of(replicas, prompts)
        wide = replace(parts, runs=parts.runs / share**2, prompts=parts.prompts / share**2)
        ends = share_interval(spread.value, wide, level)
        if ends[0] is None or ends[1] is None:
            return False
        return (
            (low <= ends[0] and ends[1] <= high)
            if low <= spread.value <= high
            else (ends[1] < low or ends[0] > high)
        )

    return _fewest(decided, spread.parts.n_clusters, MIN_REPLICAS)


# -- comparisons ---------------------------------------------------------------------------------


def runs_for_ratio(
    ratio: float, *, power: float = 0.8, kurtosis: float = NORMAL_KURTOSIS, level: float = 0.95
) -> int:
    """Runs per arm with which `variance_ratio` finds a true ratio of variances of a score with
    probability `power`.

    N = 1 + 2 (kurtosis - 1) z^2 / ln(ratio)^2, z = z_(1+level)/2 + z_power: the variance of ln s^2
    is about (kurtosis - 1) / N. For fewer than 30 runs that is a few short (0.74 instead of 0.8 at
    23), but `variance_ratio` is not conclusive with so few anyhow.
    kurtosis: of the score between runs, 3 for a normal one, 9 where 5 % of the runs fail by 6
    standard deviations (see `kurtosis_of`). Raises ValueError for a ratio that is 1 or not
    positive, or another impossible figure.
    """
    _as_ratio(ratio)
    return math.ceil(
        1 + 2 * (_as_kurtosis(kurtosis) - 1) * (_z(power, level) / math.log(ratio)) ** 2
    )


def kurtosis_of(score_R: np.ndarray) -> float:
    """Kurtosis of a pilot's scores, for `runs_for_ratio`; at least 3, since small samples show too
    little of it. nan = no score.
    """
    score_R = np.asarray(score_R, dtype=np.float64)
    score_R = score_R[np.isfinite(score_R)]
    deviation_R = score_R - score_R.mean() if len(score_R) else score_R
    variance = float(np.mean(deviation_R**2)) if len(score_R) else 0.0
    return (
        max(NORMAL_KURTOSIS, float(np.mean(deviation_R**4)) / variance**2)
        if variance > 0
        else NORMAL_KURTOSIS
    )


def ratio_spread(
    mitigated_GP: np.ndarray,
    baseline_RP: np.ndarray,
    members: Sequence[np.ndarray | Sequence[int]],
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
) -> TwoWay | None:
    """Where the error of ln(D_b / D_a) comes from, as a pilot shows it that has the mitigation
    already: parts by groups and by prompts.

    Arguments as in `disagreement_ratio`, every group and member having answered something. None
    with fewer than three groups, or where an arm never disagrees.
    """
    mitigated_GP, baseline_RP = (
        as_answers(mitigated_GP, "mitigated_GP"),
        as_answers(baseline_RP, "baseline_RP"),
    )
    same_prompts(mitigated_GP, baseline_RP)
    cluster_P = as_clusters(cluster_P, mitigated_GP.shape[1])
    groups = as_members(members, len(mitigated_GP), len(baseline_RP))
    row_R, ends = np.concatenate(groups), np.cumsum([0, *map(len, groups)])
    baseline_RP = baseline_RP[row_R]
    groups = [np.arange(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    pairs_b, pairs_a = count_pairs(mitigated_GP), count_pairs(baseline_RP)
    used_P = np.isfinite(pairs_b.d_P) & np.isfinite(pairs_a.d_P)
    if len(groups) < 3 or not used_P.any():
        return None
    b_P, a_P = pairs_b.d_P[used_P], pairs_a.d_P[used_P]
    left_b_GP, left_a_GP = (
        leave_one_out(pairs_b)[:, used_P],
        leave_group_out(baseline_RP, pairs_a, groups)[:, used_P],
    )
    b, a = b_P.mean(), a_P.mean()
    if b == 0 or a == 0:
        return None
    return two_way(b_P / b - a_P / a, left_b_GP / b - left_a_GP / a, cluster_P[used_P])


def expected_ratio_spread(spread: Spread, ratio: float, k: int, groups: int) -> TwoWay:
    """The same from single replicas alone, before the mitigation exists; two assumptions stand in
    for it.

    Runs of the mitigation differ from one another, relative to their D, as much as single replicas
    do, and nothing cancels because groups are made of the replicas they are held against. And the
    mitigation does not act alike on all prompts: the factor on a prompt has mean `ratio` and
    variance ratio (1 - ratio) / 2, half way between the same factor for all and all or nothing. In
    simulated merges and votes of 2 to 5 a size planned so for a power of 0.8 had one of 0.6 to 1:
    plan again when a pilot has the mitigation.
    """
    _as_ratio(ratio)
    runs = spread.parts.runs * spread.parts.n_runs / spread.value**2 * (1 + 1 / k) / groups
    uneven = max(0.0, (1 - ratio) / (2 * ratio)) * spread.squares / spread.value**2
    return TwoWay(runs, uneven / spread.parts.n_clusters, groups, spread.parts.n_clusters)


def runs_for_disagreement_ratio(
    spread: Spread | TwoWay,
    ratio: float,
    k: int,
    *,
    power: float = 0.8,
    level: float = 0.95,
    prompts: int | None = None,
) -> Size:
    """Replicas with which `disagreement_ratio` finds that a mitigation changes D by `ratio`, with
    probability `power`.

    A mitigation takes groups of k replicas, and a group is one observation: replicas = k * groups,
    at least k * MIN_GROUPS.
    spread: a `ratio_spread` of a pilot with this mitigation, or the `Spread` of single replicas,
    from which `expected_ratio_spread` is made. Found: the interval leaves 1 outside, so |ln ratio|
    must be its half-width and z_power standard errors more.
    """
    effect = abs(math.log(_as_ratio(ratio)))
    if isinstance(spread, Spread) and not 0.0 < spread.value < 1.0:
        return Size(
            None,
            spread.parts.n_clusters,
            "the pilot's runs never or always differ: there is no ratio to plan for",
        )
    parts = spread if isinstance(spread, TwoWay) else expected_ratio_spread(spread, ratio, k, 1)

    def resolved(groups: int, prompts: int, share: float) -> bool:
        return _reach(_scaled(parts, groups, prompts), power, level) <= effect * share

    size = _fewest(resolved, prompts or parts.n_clusters, MIN_GROUPS)
    return replace(size, replicas=size.replicas * k) if size.replicas else size


def detectable_disagreement_ratio(
    spread: Spread | TwoWay, replicas: int, k: int, *, power: float = 0.8, level: float = 0.95
) -> float | None:
    """The ratio of disagreement nearest to 1 from below that so many replicas find with probability
    `power`.

    The inverse of `runs_for_disagreement_ratio`. None with fewer than MIN_GROUPS groups of k, or
    where no ratio down to 0.01 is found.
    """
    groups = replicas // k
    if groups < MIN_GROUPS or (isinstance(spread, Spread) and not 0.0 < spread.value < 1.0):
        return None

    def resolved(ratio: float) -> bool:
        parts = (
            spread
            if isinstance(spread, TwoWay)
            else expected_ratio_spread(spread, ratio, k, groups)
        )
        return _reach(_scaled(parts, groups, parts.n_clusters), power, level) <= -math.log(ratio)

    return next(
        (float(ratio) for ratio in np.arange(99, 0, -1) / 100 if resolved(float(ratio))), None
    )


# -- spread and tails ----------------------------------------------------------------------------


def sd_factors(runs: int, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of a standard deviation as factors of its estimate, for normal scores:
    sqrt((N-1) / chi2), low and high.

    Raises ValueError with fewer than two runs.
    """
    from scipy.special import chdtri  # inverse of the upper tail

    if runs < 2:
        raise ValueError("a standard deviation needs two runs")
    tail = (1 - as_level(level)) / 2
    low, high = (math.sqrt((runs - 1) / float(chdtri(runs - 1, p))) for p in (tail, 1 - tail))
    return low, high


def tail_bound(events: int, runs: int, *, level: float = 0.95) -> float:
    """Upper limit of how often runs do something of which `events` were seen in `runs`: one-sided,
    exact (Clopper & Pearson 1934).

    With none seen it is 1 - (1 - level)^(1/runs), about 3 / runs at 95 %: the rule of three. Raises
    ValueError unless 0 <= events <= runs.
    """
    from scipy.special import betaincinv

    if runs < 1 or not 0 <= events <= runs:
        raise ValueError(
            f"events must be between 0 and the number of runs (at least 1), not {events} of {runs}"
        )
    if events == 0:
        return zero_event_bound(runs, as_level(level))
    return 1.0 if events == runs else float(betaincinv(events + 1, runs - events, as_level(level)))


def _fewest(fits: Callable[[int, int, float], bool], prompts: int, at_least: int) -> Size:
    """The fewest runs for which fits(runs, prompts, 1) holds; with more prompts, if none does.

    fits(runs, prompts, share): the error is within this share of what is allowed.
    """
    runs = smallest(lambda n: fits(n, prompts, 1.0), at_least)
    if runs is not None:
        return Size(runs, prompts)
    enough_prompts = smallest(lambda p: fits(NEVER, p, math.sqrt(0.5)), prompts + 1)
    if enough_prompts is None:
        return Size(None, prompts, "no number of replicas and prompts up to 100,000 is enough")
    runs = smallest(lambda n: fits(n, enough_prompts, 1.0), at_least)
    return Size(
        runs,
        enough_prompts,
        f"no number of replicas is enough on {prompts:,} prompts: it takes more prompts",
    )


def _scaled(parts: TwoWay, runs: int, clusters: int) -> TwoWay:
    """More runs, and more clusters of the same sizes."""
    growth = clusters / parts.n_clusters
    sizes = parts.sizes and replace(
        parts.sizes, df=parts.sizes.df * growth, effective=parts.sizes.effective * growth
    )
    return TwoWay(parts.runs * parts.n_runs / runs, parts.prompts / growth, runs, clusters, sizes)


def _reach(parts: TwoWay, power: float, level: float) -> float:
    """The effect that is found with probability `power`."""
    from scipy.special import ndtri

    half = parts.half_width(level)
    return (
        half + float(ndtri(power)) * math.sqrt(parts.runs + parts.prompts)
        if math.isfinite(half)
        else math.inf
    )


def _z(power: float, level: float) -> float:
    from scipy.special import ndtri

    if not 0.0 < power < 1.0:
        raise ValueError(f"power lies between 0 and 1, not {power}")
    return float(ndtri(0.5 + as_level(level) / 2) + ndtri(power))


def _as_ratio(ratio: float) -> float:
    if not (ratio > 0 and math.isfinite(ratio)) or ratio == 1:
        raise ValueError(f"a ratio to be found is positive and not 1, not {ratio}")
    return ratio


def _as_kurtosis(kurtosis: float) -> float:
    if not kurtosis > 1:
        raise ValueError(f"a kurtosis lies above 1, not {kurtosis}")
    return kurtosis
