"""How often two runs of one procedure answer the same prompt differently."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from toolkit.statistics.arrays import (
    as_answers,
    as_clusters,
    as_level,
    blocks,
    cells,
    cluster_blocks,
    filled_rows,
)
from toolkit.statistics.conclusive import (
    MIN_REPLICAS,
    MIN_REPLICAS_ALONE,
    few_clusters,
    few_levels,
    verdict,
)
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.fresh import Levels, fresh_pairs, independent_runs, shared_sources
from toolkit.statistics.intervals import (
    ByLevels,
    TwoWay,
    runs_interval,
    share_interval,
    two_way,
    two_way_of,
    zero_event_bound,
)
from toolkit.statistics.outliers import Differing
from toolkit.statistics.pairs import PairShares, count_pairs, leave_one_out


def prompt_disagreement(answer_RP: np.ndarray) -> np.ndarray:
    """d_P: for every prompt, the share of pairs of replicas that answer it differently.

    Estimand: the probability that two fresh runs differ on this prompt; unbiased (a U-statistic of
    order 2 in the replicas). answer_RP: int codes, -1 = missing. Only pairs of which both answered
    count; nan where fewer than two replicas answered. d_i = 1 - sum_v k_v (k_v - 1) / (n (n - 1))
    with k_v replicas that answered v, n in all (1 - P_i of Fleiss 1971).
    """
    answer_RP = as_answers(answer_RP, "answer_RP")
    return np.concatenate(
        [count_pairs(answer_RP[:, block_P]).d_P for block_P in blocks(*answer_RP.shape)]
    )


def disagreement(
    answer_RP: np.ndarray,
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
    fresh_prompts: bool = True,
    levels: Levels | None = None,
) -> Estimate:
    """How often do two fresh runs of the procedure give different answers to a fresh prompt?

    Estimand: D, the mean over prompts of `prompt_disagreement`, for replicas AND prompts (or
    clusters of prompts, such as the variants of one template) drawn anew. Unit: share of prompts, 0
    to 1. Resampled: replicas, by the delete-one jackknife of D, and clusters of prompts, by the
    variance of d between them less the noise that the replicas account for already (see `two_way`).
    Each variance enters with the t quantile of its own N-1 or C-1 degrees of freedom; the interval
    is symmetric on the logit scale.

    D = 0 and D = 1 leave no spread to estimate from. There the other end of the interval is the
    one-sided zero-event bound 1 - (1-level)^(1/C) with the C clusters of prompts as units: exact
    for the replicas at hand on fresh prompts. Replicas are no further units: if one prompt in a
    hundred splits the runs, a suite that lacks it shows no difference, however many replicas
    answer. Near 0 and 1 the interval is never tighter than that bound either. No bound over prompts
    speaks for a rare kind of run that is not among the N: the note says how rare.

    fresh_prompts=False asks about these very prompts: only replicas are drawn anew, and more of
    them narrow the interval without end. Where no two differ (or all do) its other end is the
    zero-event bound over disjoint pairs of replicas.

    levels: where runs share levels of sources (crossed, nested or repeated designs), the level of
    every run in each. Then only pairs that share none count (`fresh_pairs`), and levels of every
    source are resampled in place of replicas: conclusive from MIN_LEVELS levels of each.

    Inconclusive below MIN_REPLICAS replicas or MIN_CLUSTERS clusters. Replicas that stand far off
    the others (see `odd_replicas`) are named and withhold nothing: they make the interval wide, and
    without the samples that show such runs those would be left that lack them. A kind of run that
    no replica shows is in no interval: D is that of runs such as these.

    answer_RP: int codes [replicas, prompts], -1 = missing. A run without any answer counts neither
    as replica nor as
    disagreement: report it by `failure_rate`. Raises ValueError for other shapes, dtypes, or fewer
    than two rows.
    """
    level = as_level(level)
    answer_RP = as_answers(answer_RP, "answer_RP")
    cluster_P = as_clusters(cluster_P, answer_RP.shape[1])
    row_R = filled_rows(answer_RP)
    n_replicas = len(row_R)
    sources = shared_sources(
        {name: np.asarray(level_R)[row_R] for name, level_R in (levels or {}).items()}, n_replicas
    )
    d_P = np.full(answer_RP.shape[1], np.nan)
    differing, shares = Differing(n_replicas), PairShares(n_replicas)

    def left_out() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for block_P in cluster_blocks(n_replicas, cluster_P):
            answers = cells(answer_RP, row_R, block_P)
            pairs = count_pairs(answers)
            d_P[block_P] = pairs.d_P
            differing.add(pairs)
            shares.add(answers)
            yield d_P[block_P], leave_one_out(pairs), cluster_P[block_P]

    def levels_left_out() -> ByLevels:
        pieces = []
        for block_P in blocks(*answer_RP.shape):
            answers = cells(answer_RP, row_R, block_P)
            differing.add(count_pairs(answers))
            shares.add(answers)
            pieces.append(fresh_pairs(answers, sources))
        d_P[:] = np.concatenate([value_P for value_P, _ in pieces])
        used_P = np.isfinite(d_P)
        sides = [
            np.concatenate(side, axis=1)[:, used_P]
            for side in zip(*(left for _, left in pieces), strict=True)
        ]
        parts = (two_way(d_P[used_P], left_LP, cluster_P[used_P]) for left_LP in sides)
        return ByLevels(
            tuple(part.and_pairs(shares.variance(part.n_runs, sources)) for part in parts)
        )

    parts = (
        levels_left_out()
        if sources
        else two_way_of(left_out(), n_replicas).and_pairs(shares.variance(n_replicas))
    )
    used_P = np.isfinite(d_P)
    n_prompts = int(used_P.sum())
    if n_prompts == 0:
        note = (
            "no prompt was answered by two "
            f"replicas{' that share no ' + ' or '.join(sources) if sources else ''}"
        )
        needed = MIN_REPLICAS if n_replicas < MIN_REPLICAS else None
        return without_interval(None, level, n_replicas, 0, needed, note)

    value = float(d_P[used_P].mean())
    units = f"levels of {' and '.join(sources)}" if sources else "replicas"
    shortage = few_levels(sources) or (
        few_clusters(parts.n_clusters, parts.effective) if fresh_prompts else ""
    )
    at_least = MIN_REPLICAS if fresh_prompts else MIN_REPLICAS_ALONE
    enough, needed, note = verdict(n_replicas, shortage, row_R[differing.rows()], at_least)

    if n_replicas == 2 and isinstance(
        parts, TwoWay
    ):  # leaving one out leaves no pair, so nothing shows how much replicas matter
        parts = replace(parts, runs=math.nan)
    if not fresh_prompts:
        n_fresh = len(independent_runs(sources, n_replicas)) if sources else n_replicas
        low, high = runs_interval(value, parts, n_fresh, level)
        of_pairs = f"zero-event bound over {n_fresh // 2} disjoint pairs of replicas, one-sided"
        method = (
            of_pairs
            if value in (0.0, 1.0)
            else f"jackknife-t over {units}, of these prompts alone, logit scale"
        )
        return Estimate(
            value, low, high, level, n_replicas, n_prompts, method, enough, needed, note
        )
    low, high = share_interval(value, parts, level)
    method = f"two-way jackknife-t over {units} and prompts, logit scale"
    if value in (0.0, 1.0):
        method = f"zero-event bound over {parts.n_clusters} prompts or clusters, one-sided"
        note = note or (
            f"no two replicas {'differed' if value == 0.0 else 'agreed'}: one-sided bound "
            f"for these {n_replicas} replicas on "
            "fresh prompts; a kind of run rarer than "
            f"{zero_event_bound(n_replicas, level):.2g} may not be among them"
        )
    return Estimate(value, low, high, level, n_replicas, n_prompts, method, enough, needed, note)
