"""Two populations of runs on the same prompts: another recipe, or one run trained K times longer
against the mean of K.

Nothing ties a run of one arm to a run of the other, unless run j of both shares its seeds
(paired=True). The prompts are shared either way and compared prompt by prompt. Groups against the
replicas they were made of are in `compare`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from toolkit.statistics.arrays import (
    Clusters,
    as_answers,
    as_clusters,
    as_level,
    as_marks,
    blocks,
    cells,
    filled_rows,
    marks,
    same_prompts,
)
from toolkit.statistics.compare.arms import (
    MIN_CARRIED,
    MIN_CARRIED_MEANS,
    Arms,
    Block,
    Ends,
    Sums,
    difference,
    places,
    ratio,
    summed,
)
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import (
    Leverage,
    jackknife_variance,
    logit_interval,
    smallest,
    t_quantile,
    zero_event_bound,
)
from toolkit.statistics.outliers import Differing, odd_note
from toolkit.statistics.pairs import PairShares, count_pairs, leave_one_out
from toolkit.statistics.prompt_averages import prompt_means

# with fewer in an arm, separate degrees of freedom for two arms are on the safe side
CONSERVATIVE_RUNS = 10


def population_ratio(
    b_RP: np.ndarray,
    a_RP: np.ndarray,
    *,
    cluster_P: Clusters = None,
    paired: bool = False,
    level: float = 0.95,
) -> Estimate:
    """By what factor do two runs of b differ more often than two runs of a? Below 1 = b is more
    stable.

    Estimand: D of fresh runs of b / D of fresh runs of a, on fresh prompts. Resampled: the runs of
    either arm (delete-one jackknife of ln D, an arm at a time; with paired=True run j of both at
    once), and clusters of prompts by d_bi/D_b - d_ai/D_a, less the noise that the runs account for
    already. Each of the three enters with the t quantile of its own N-1 or C-1 degrees of freedom,
    on the log scale. (One quantile for both arms with Welch's degrees of freedom covers less where
    the arms differ in size and runs shift all prompts.)

    Zeros, `conclusive`, `needed` (runs in each arm, pairs if paired) and practically no change as
    in `disagreement_ratio`. Runs that stand far off are named (see `odd_replicas`): the other arm
    may lack such runs by chance. With fewer than CONSERVATIVE_RUNS the interval covers some 98 %,
    and says so.

    b_RP, a_RP: codes of answers (encoded together), -1 = missing; the arms may differ in runs
    unless paired. Runs without any answer count as none; with paired=True their partner goes too.
    Raises ValueError for shapes that do not fit.
    """
    level = as_level(level)
    return ratio(_disagreements(b_RP, a_RP, cluster_P, paired), len(b_RP), level)


def population_difference(
    b_RP: np.ndarray,
    a_RP: np.ndarray,
    *,
    cluster_P: Clusters = None,
    paired: bool = False,
    level: float = 0.95,
) -> Estimate:
    """By how many points do two runs of b differ more often than two runs of a? Below 0 = b is more
    stable.

    Estimand: D of fresh runs of b - D of fresh runs of a, on fresh prompts. Unit: share of prompts.
    Arguments, errors and the three sources of error as in `population_ratio`. The runs of each arm
    enter by an interval on the logit scale, put together with the prompts by the square-and-add
    rule (Zou & Donner 2008), which keeps the skew near 0 and 1.
    """
    level = as_level(level)
    return difference(_disagreements(b_RP, a_RP, cluster_P, paired), len(b_RP), level)


def population_accuracy_change(
    b_RP: np.ndarray,
    a_RP: np.ndarray,
    *,
    cluster_P: Clusters = None,
    paired: bool = False,
    level: float = 0.95,
) -> Estimate:
    """By how many points is a run of b more accurate than a run of a?

    Estimand: accuracy of a fresh run of b - accuracy of a fresh run of a, on fresh prompts. Unit:
    share of prompts. Resampling as in `population_difference`. b_RP, a_RP: 1 right, 0 wrong, nan
    missing.
    """
    level = as_level(level)
    b_RP, a_RP = as_marks(b_RP, "b_RP"), as_marks(a_RP, "a_RP")
    row_b_R, row_a_R, used, clusters_P = used_rows(b_RP, a_RP, cluster_P, paired, at_least=1)
    if min(len(row_b_R), len(row_a_R)) < 2:
        return difference(None, len(b_RP), level)

    def table_blocks() -> Iterator[Block]:
        for block_P in places(used, clusters_P, len(row_b_R) + len(row_a_R)):
            b_P, left_b_RP = prompt_means(marks(cells(b_RP, row_b_R, block_P)))
            a_P, left_a_RP = prompt_means(marks(cells(a_RP, row_a_R, block_P)))
            yield Block(b_P, a_P, left_b_RP, left_a_RP, clusters_P[block_P])

    return difference(
        arms_apart(
            summed(table_blocks(), len(row_b_R), len(row_a_R), paired),
            "",
            paired,
            MIN_CARRIED_MEANS,
        ),
        len(b_RP),
        level,
    )


@dataclass(frozen=True)
class Separate(Arms):
    """Arms whose runs have nothing to do with each other: each run is left out of its own arm.

    pairs_b, pairs_a: second-order variance of the mean over pairs of runs of an arm (see
    `PairShares`).
    """

    @property
    def units(self) -> int:
        """Runs of the smaller arm."""
        return min(len(self.sums.left_b_J), len(self.sums.left_a_J))

    pairs_b: float = 0.0
    pairs_a: float = 0.0

    def parts(self, weight_b: float, weight_a: float) -> "TwoArms":
        """Where the error of weight_b * b + weight_a * a comes from."""
        variances = (
            max(jackknife_variance(weight_b * self.sums.shift_b_J), weight_b**2 * self.pairs_b),
            max(jackknife_variance(weight_a * self.sums.shift_a_J), weight_a**2 * self.pairs_a),
        )
        runs_b, runs_a = (
            runs
            if has_left or not weight
            else math.nan  # two runs leave no pair when one is left out
            for runs, has_left, weight in zip(
                variances, self.sums.has_left, (weight_b, weight_a), strict=True
            )
        )
        prompts = self.sums.prompts(weight_b, weight_a, sum(variances))
        return TwoArms(
            runs_b, runs_a, prompts, len(self.sums.left_b_J), len(self.sums.left_a_J), self.sizes
        )

    def log_parts(self) -> "TwoArms":
        """Where the error of log(b / a) comes from."""
        parts = self.parts(1 / self.b, -1 / self.a)
        with np.errstate(divide="ignore", invalid="ignore"):
            left_b_J, left_a_J = np.log(self.sums.left_b_J), np.log(self.sums.left_a_J)
        if np.isfinite(left_b_J).all() and len(left_b_J) > 2:
            parts = replace(
                parts, runs_b=max(jackknife_variance(left_b_J), self.pairs_b / self.b**2)
            )
        if np.isfinite(left_a_J).all() and len(left_a_J) > 2:
            parts = replace(
                parts, runs_a=max(jackknife_variance(left_a_J), self.pairs_a / self.a**2)
            )
        return parts

    def difference_ends(self) -> Callable[[float], Ends]:
        """From a level to the ends of b - a; both arms are shares."""
        parts, value = self.parts(1.0, -1.0), self.b - self.a

        def limits(share: float, half: float, level: float) -> Ends:
            """Of one arm: what fresh prompts may hold of an event never seen, where its runs show
            nothing else.
            """
            if 0.0 < share < 1.0:
                return logit_interval(share, half)
            bound = (
                0.0
                if {self.b, self.a} <= {0.0, 1.0}
                else zero_event_bound(self.effective, (1 + level) / 2)
            )
            return share - max(half, bound), share + max(half, bound)

        def ends_at(level: float) -> Ends:
            half_b, half_a, prompts = parts.halves(level)
            (low_b, high_b), (low_a, high_a) = (
                limits(self.b, half_b, level),
                limits(self.a, half_a, level),
            )
            return (
                value - math.hypot(self.b - low_b, high_a - self.a, prompts),
                value + math.hypot(high_b - self.b, self.a - low_a, prompts),
            )

        return ends_at


@dataclass(frozen=True)
class TwoArms:
    """Where the error of a contrast of separate arms comes from: the runs of either arm, and the
    prompts that both answer.
    """

    runs_b: float
    runs_a: float
    prompts: float
    n_b: int
    n_a: int
    sizes: Leverage | None

    def halves(self, level: float) -> tuple[float, float, float]:
        """Half widths from the runs of b, those of a, and the prompts, each with its own degrees of
        freedom. nan where a part is.
        """
        if self.sizes is None or min(self.n_b, self.n_a) < 2:
            return math.nan, math.nan, math.nan
        parts = (
            (self.runs_b, self.n_b - 1),
            (self.runs_a, self.n_a - 1),
            (self.prompts, self.sizes.df),
        )
        half_b, half_a, half_prompts = (
            t_quantile(level, df) * math.sqrt(variance) for variance, df in parts
        )
        return half_b, half_a, half_prompts

    def half_width(self, level: float) -> float:
        """Half the width of the interval."""
        return math.hypot(*self.halves(level))

    def runs_needed(self, effect: float, level: float, at_least: int) -> int | None:
        """Runs in each arm at which an effect of the observed size would leave its interval on one
        side; see `TwoWay`.
        """

        def resolves(n: int) -> bool:
            grown = replace(
                self,
                runs_b=self.runs_b * self.n_b / n,
                runs_a=self.runs_a * self.n_a / n,
                n_b=n,
                n_a=n,
            )
            return grown.half_width(level) < abs(effect)

        return smallest(resolves, at_least)


def _disagreements(
    b_RP: np.ndarray, a_RP: np.ndarray, cluster_P: Clusters, paired: bool
) -> Arms | None:
    b_RP, a_RP = as_answers(b_RP, "b_RP"), as_answers(a_RP, "a_RP")
    row_b_R, row_a_R, used, clusters_P = used_rows(b_RP, a_RP, cluster_P, paired, at_least=2)
    if min(len(row_b_R), len(row_a_R)) < 2:
        return None
    differing_b, differing_a = Differing(len(row_b_R)), Differing(len(row_a_R))
    shares_b, shares_a = PairShares(len(row_b_R)), PairShares(len(row_a_R))

    def table_blocks() -> Iterator[Block]:
        for block_P in places(used, clusters_P, len(row_b_R) + len(row_a_R)):
            answers_b, answers_a = cells(b_RP, row_b_R, block_P), cells(a_RP, row_a_R, block_P)
            shares_b.add(answers_b)
            shares_a.add(answers_a)
            pairs_b, pairs_a = count_pairs(answers_b), count_pairs(answers_a)
            differing_b.add(pairs_b)
            differing_a.add(pairs_a)
            yield Block(
                pairs_b.d_P,
                pairs_a.d_P,
                leave_one_out(pairs_b),
                leave_one_out(pairs_a),
                clusters_P[block_P],
            )

    sums = summed(table_blocks(), len(row_b_R), len(row_a_R), paired)
    remarks = {
        "b": odd_note(row_b_R[differing_b.rows()]),
        "a": odd_note(row_a_R[differing_a.rows()]),
    }
    arms = arms_apart(
        sums, "; ".join(f"{arm}: {note}" for arm, note in remarks.items() if note), paired
    )
    if arms is None:
        return None
    if not isinstance(arms, Separate):
        upper = np.triu_indices(len(shares_b.both_RR), 1)
        return replace(arms, of_pairs=(shares_b.shares()[upper], shares_a.shares()[upper]))
    return replace(
        arms, pairs_b=shares_b.variance(len(row_b_R)), pairs_a=shares_a.variance(len(row_a_R))
    )


def used_rows(
    b_RP: np.ndarray, a_RP: np.ndarray, cluster_P: Clusters, paired: bool, at_least: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of b and a that answered anything (their partner too if paired); places of prompts that
    at_least of both answered; clusters.
    """
    same_prompts(b_RP, a_RP)
    if paired and len(b_RP) != len(a_RP):
        raise ValueError(
            f"paired arms need a run each for every pair, not {len(b_RP)} and {len(a_RP)}"
        )
    clusters_P = as_clusters(cluster_P, b_RP.shape[1])
    row_b_R, row_a_R = filled_rows(b_RP), filled_rows(a_RP)
    if paired:
        row_b_R = row_a_R = np.intersect1d(row_b_R, row_a_R)
    used_P = np.zeros(b_RP.shape[1], dtype=bool)
    for block_P in blocks(len(b_RP) + len(a_RP), b_RP.shape[1]):
        n_b_P, n_a_P = (
            np.sum(cells(table, rows, block_P) >= 0, axis=0)
            for table, rows in ((b_RP, row_b_R), (a_RP, row_a_R))
        )
        used_P[block_P] = (n_b_P >= at_least) & (n_a_P >= at_least)
    return row_b_R, row_a_R, np.flatnonzero(used_P), clusters_P


def arms_apart(
    sums: Sums | None, remark: str, paired: bool, least_carried: float = MIN_CARRIED
) -> Arms | None:
    """Arms from their sums: pairs of runs, or runs that have nothing to do with each other."""
    if sums is None:
        return None
    if paired:
        return Arms(sums, remark, "pairs", "paired delete-a-pair", least_carried=least_carried)
    resampled = "two-sample delete-one"
    if min(len(sums.left_b_J), len(sums.left_a_J)) < CONSERVATIVE_RUNS:
        resampled = f"conservative {resampled}"
    return Separate(sums, remark, "runs in each arm", resampled, least_carried=least_carried)
