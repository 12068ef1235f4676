"""Accuracy of a procedure, and of one fixed model."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from toolkit.statistics.arrays import (
    as_clusters,
    as_correct,
    as_level,
    as_marks,
    cells,
    cluster_blocks,
    filled_rows,
    marks,
)
from toolkit.statistics.conclusive import few_clusters, few_levels, verdict
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.fresh import Levels, shared_sources
from toolkit.statistics.intervals import (
    ByLevels,
    TwoWay,
    between_clusters,
    clopper_pearson,
    share_interval,
    two_way_of,
)
from toolkit.statistics.outliers import Differing
from toolkit.statistics.pairs import count_pairs
from toolkit.statistics.prompt_averages import prompt_means


def accuracy(
    correct_RP: np.ndarray,
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
    levels: Levels | None = None,
) -> Estimate:
    """What share of fresh prompts does a fresh run answer correctly?

    Estimand: mean over prompts of the probability that a run is right; replicas and prompts
    (clusters) both drawn anew. Resampled: replicas (delete-one jackknife) and clusters of prompts,
    on the logit scale, as in `disagreement`; with the same bound where all or nearly all answers
    are right, or wrong.

    Inconclusive below MIN_REPLICAS replicas and with too few clusters. Replicas that stand far off
    are named.

    correct_RP: 1 right, 0 wrong, [replicas, prompts]; nan, or -1 in integers: missing or without a
    reference. levels: where runs share levels of sources, the level of every run in each; levels
    are then resampled in place of replicas, as in `disagreement`. Raises ValueError for other
    shapes or values, or fewer than two rows.
    """
    level = as_level(level)
    correct_RP = as_marks(correct_RP, "correct_RP")
    cluster_P = as_clusters(cluster_P, correct_RP.shape[1])
    row_R = filled_rows(correct_RP)
    n_replicas = len(row_R)
    sources = shared_sources(
        {name: np.asarray(level_R)[row_R] for name, level_R in (levels or {}).items()}, n_replicas
    )
    mean_P = np.full(correct_RP.shape[1], np.nan)
    differing = Differing(n_replicas)

    def left_out(
        rows: Sequence[np.ndarray] | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for block_P in cluster_blocks(n_replicas, cluster_P):
            mark_RP = marks(cells(correct_RP, row_R, block_P))
            if rows is None or rows is first:
                differing.add(
                    count_pairs(
                        np.where(np.isfinite(mark_RP), np.round(mark_RP), -1).astype(np.int8)
                    )
                )
            mean_P[block_P], left_RP = prompt_means(mark_RP, rows)
            yield mean_P[block_P], left_RP, cluster_P[block_P]

    rows_of = [
        [np.flatnonzero(code_R == code) for code in range(int(code_R.max()) + 1)]
        for code_R in sources.values()
    ]
    first = rows_of[0] if rows_of else None
    parts = (
        ByLevels(tuple(two_way_of(left_out(rows), len(rows)) for rows in rows_of))
        if rows_of
        else two_way_of(left_out(), n_replicas)
    )
    used_P = np.isfinite(mean_P)
    n_prompts = int(used_P.sum())
    if n_prompts == 0:
        note = "no prompt has a reference and an answer"
        return without_interval(None, level, n_replicas, 0, None, note)

    value = float(mean_P[used_P].mean())
    shortage = few_levels(sources) or few_clusters(parts.n_clusters, parts.effective)
    enough, needed, note = verdict(n_replicas, shortage, row_R[differing.rows()])
    low, high = share_interval(value, parts, level) if n_replicas > 1 else (None, None)
    units = f"levels of {' and '.join(sources)}" if sources else "replicas"
    method = f"two-way jackknife-t over {units} and prompts, logit scale"
    if value in (0.0, 1.0):
        method = f"zero-event bound over {parts.n_clusters} prompts or clusters, one-sided"
    return Estimate(value, low, high, level, n_replicas, n_prompts, method, enough, needed, note)


def model_accuracy(
    correct_P: np.ndarray,
    *,
    cluster_P: np.ndarray | Sequence[int] | None = None,
    level: float = 0.95,
) -> Estimate:
    """What share of fresh prompts does this one fixed model answer correctly?

    Resampled: prompts, by the exact interval of Clopper & Pearson (1934); where prompts share
    clusters, clusters, by their variance (as in `disagreement`, without a part for runs) on the
    logit scale. correct_P: 1 right, 0 wrong, nan (or -1 in integers) missing. Conclusive:
    MIN_CLUSTERS clusters where there are any. Raises ValueError for other shapes or values.
    """
    level = as_level(level)
    mark_P = as_correct(np.asarray(correct_P)[None], "correct_P", at_least=1)[0]
    known_P = np.isfinite(mark_P)
    cluster_P = as_clusters(as_clusters(cluster_P, len(mark_P))[known_P], int(known_P.sum()))
    mark_P, n_prompts = mark_P[known_P], int(known_P.sum())
    if n_prompts == 0:
        return without_interval(None, level, 1, 0, None, "no prompt has a reference and an answer")
    value, n_clusters = float(mark_P.mean()), int(cluster_P.max()) + 1
    shape = level, 1, n_prompts
    if n_clusters == n_prompts:
        return Estimate(
            value,
            *clopper_pearson(round(mark_P.sum()), n_prompts, level),
            *shape,
            "Clopper-Pearson over prompts, one fixed model",
        )
    prompts, sizes = (
        between_clusters(mark_P, cluster_P, np.zeros(n_clusters), 0.0)
        if n_clusters > 1
        else (math.nan, None)
    )
    parts = TwoWay(0.0, prompts, 2, n_clusters, sizes)
    low, high = share_interval(value, parts, level)
    note = few_clusters(n_clusters, parts.effective)
    return Estimate(
        value,
        low,
        high,
        *shape,
        "t over clusters of prompts, logit scale, one fixed model",
        not note,
        None,
        note,
    )
