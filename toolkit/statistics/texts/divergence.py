"""After how many tokens the texts of two runs part."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.statistics.arrays import Clusters, as_clusters, as_level
from toolkit.statistics.conclusive import MIN_REPLICAS, few_clusters, verdict
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import Leverage, TwoWay, leverage, share_interval
from toolkit.statistics.texts.tokens import Text, distinct_texts, outlying_runs, prompts_of_texts

MEDIAN = 0.5


@dataclass(frozen=True)
class Divergence:
    """After how many tokens two runs part. Arrays over depth: position t = 1, 2, ... of the text,
    its end being a token too.

    survival: S(t), the share of pairs of fresh runs that still agree after t tokens, with pointwise
    intervals low, high (nan where too little is left to say). at_risk: pairs equal so far and
    watched at t; events: those that part there.
    median: the t at which half have parted. at: S at the lengths that were asked for.
    """

    t: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray
    at_risk: np.ndarray
    events: np.ndarray
    median: Estimate
    at: dict[int, Estimate]

    @property
    def hazard(self) -> np.ndarray:
        """Share of the pairs equal so far that part at t."""
        return self.events / self.at_risk

    def to_dict(self) -> dict:
        """As plain values, None for nan, for JSON."""
        arrays = {
            name: [None if math.isnan(x) else x for x in getattr(self, name).tolist()]
            for name in ("survival", "low", "high")
        }
        counts = {name: getattr(self, name).tolist() for name in ("t", "at_risk", "events")}
        return {
            **counts,
            **arrays,
            "median": self.median.to_dict(),
            "at": {t: estimate.to_dict() for t, estimate in self.at.items()},
        }


def first_divergence(
    texts: Sequence[Sequence[Text | None]],
    *,
    at: Sequence[int] = (),
    max_length: int | None = None,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Divergence:
    """After how many tokens do the texts of two fresh runs part?

    Estimand: S(t) = P(two fresh runs agree on the first t tokens of a fresh prompt), for texts that
    go on that long. The exact match at length t, so it does not depend on how long the texts happen
    to be. Pairs are survival data: a pair of equal texts is watched to their end and no longer
    (right-censored), which does not bias S if long answers part no faster than short ones do at the
    same depth (Kaplan & Meier 1958). The end of a text is its last token: where one stops and the
    other goes on, they part; equal texts agree on it too. Texts of max_length tokens were cut off
    and have no end. All pairs count, but none is looked at: texts are sorted, and those that share
    a beginning stand together. The cost is linear in the tokens of the different texts, and in
    replicas times depth for the intervals. Resampled: replicas and clusters of prompts (two-way
    jackknife of ln S to first order, logit scale), never pairs, which share replicas. No interval
    where too few prompts or clusters are left; the same bounds near 1 and 0 as in `disagreement`,
    from the prompts that are left.

    texts: [R][P] of tokens, None = missing; tokens of one type that can be sorted. Conclusive:
    MIN_REPLICAS replicas, enough prompts left, and for the median both ends. Raises ValueError for
    ragged rows, fewer than two, or texts longer than max_length.
    """
    level = as_level(level)
    n_prompts = prompts_of_texts(texts)
    cluster_P = as_clusters(cluster_P, n_prompts)
    row_R = np.array(
        [r for r, row in enumerate(texts) if any(text is not None for text in row)], dtype=np.int64
    )
    n = len(row_R)
    trees = [_tree([texts[r][i] for r in row_R], max_length) for i in range(n_prompts)]
    depth = max((tree.depth for tree in trees), default=0)
    at_risk_T, events_T = np.zeros(depth, dtype=np.int64), np.zeros(depth, dtype=np.int64)
    prompts_T, clusters_CT = (
        np.zeros(depth, dtype=np.int64),
        np.zeros((int(cluster_P.max()) + 1, depth), dtype=bool),
    )
    risk_R, parted_R = np.zeros(n), np.zeros(n)
    for i, tree in enumerate(trees):
        if tree.depth == 0:
            continue
        others_UT, part_UT = tree.others()
        to = slice(0, tree.depth)
        at_risk_T[to] += tree.count_U @ others_UT // 2
        events_T[to] += tree.count_U @ part_UT // 2
        prompts_T[to] += others_UT.any(axis=0)
        clusters_CT[cluster_P[i], to] |= others_UT.any(axis=0)
        risk_R[tree.there_R] += others_UT.sum(axis=1)[tree.text_R]
        parted_R[tree.there_R] += part_UT.sum(axis=1)[tree.text_R]
    depth = int(np.count_nonzero(at_risk_T))  # what is at risk at t was at risk before
    if depth == 0:
        nothing = without_interval(
            None,
            level,
            n,
            0,
            MIN_REPLICAS if n < MIN_REPLICAS else None,
            "no prompt was answered by two replicas",
        )
        empty, none = np.zeros(0), np.zeros(0, dtype=np.int64)
        return Divergence(
            none, empty, empty, empty, none, none, nothing, {int(length): nothing for length in at}
        )

    at_risk_T, events_T = at_risk_T[:depth], events_T[:depth]
    t = np.arange(1, depth + 1)
    survival_T = np.cumprod(1 - events_T / at_risk_T)
    clusters_T = clusters_CT.sum(axis=0)
    runs_T, prompts_part_T, sizes = _error(trees, cluster_P, n, at_risk_T, events_T)
    low_T, high_T = np.full(depth, np.nan), np.full(depth, np.nan)
    few_T = [
        few_clusters(int(c), min(c, sizes.effective if sizes else c)) for c in clusters_T[:depth]
    ]
    for k in range(depth) if n > 2 else ():
        if few_T[k]:
            continue
        value = float(survival_T[k])
        left = (
            None
            if sizes is None
            else replace(
                sizes,
                df=min(sizes.df, clusters_T[k] - 1),
                effective=min(sizes.effective, clusters_T[k]),
            )
        )
        parts = TwoWay(
            value**2 * runs_T[k], value**2 * prompts_part_T[k], n, int(clusters_T[k]), left
        )
        low_T[k], high_T[k] = share_interval(value, parts, level)
    odd_R = row_R[outlying_runs(parted_R, risk_R)]
    method = "Kaplan-Meier over pairs, two-way jackknife-t over replicas and prompts, logit scale"

    def survival_at(length: int) -> Estimate:
        if length < 1 or length > depth:
            return without_interval(
                None, level, n, 0, None, f"no pair of equal texts was watched up to token {length}"
            )
        k = length - 1
        enough, needed, note = verdict(n, few_T[k], odd_R)
        ends = (None, None) if math.isnan(low_T[k]) else (float(low_T[k]), float(high_T[k]))
        return Estimate(
            float(survival_T[k]), *ends, level, n, int(prompts_T[k]), method, enough, needed, note
        )

    enough, needed, note = verdict(n, few_T[0], odd_R)
    value, low, high = (
        _first(t, survival_T <= MEDIAN),
        _first(t, low_T <= MEDIAN),
        _first(t, high_T <= MEDIAN),
    )
    if enough and (value is None or low is None or high is None):
        enough = False
        note = (
            f"more than half may still agree at token {depth}, the last at which texts could "
            "be compared"
        )
    median = Estimate(
        value, low, high, level, n, int(prompts_T[0]), method + ", inverted", enough, needed, note
    )
    return Divergence(
        t,
        survival_T,
        low_T,
        high_T,
        at_risk_T,
        events_T,
        median,
        {int(length): survival_at(length) for length in at},
    )


@dataclass(frozen=True)
class _Tree:
    """The different texts on one prompt, sorted, so that those with a common beginning stand
    together.

    count_U: replicas with each; full_U: tokens with the end; shared_U: tokens shared with the text
    before (0 for the first). there_R: rows that answered; text_R: which text they gave. depth: the
    last token at which any pair is at risk.
    """

    there_R: np.ndarray
    text_R: np.ndarray
    count_U: np.ndarray
    full_U: np.ndarray
    shared_U: np.ndarray
    depth: int

    def others(self) -> tuple[np.ndarray, np.ndarray]:
        """For a replica with text u, at token t: with how many others it still agreed before, and
        with how many it parts there.
        """
        depth_1T, index_U1 = np.arange(self.depth + 1), np.arange(len(self.count_U))[:, None]
        # starts a group of texts that share this many tokens
        new_UT = self.shared_U[:, None] < depth_1T
        new_UT[0] = True
        first_UT = np.maximum.accumulate(np.where(new_UT, index_U1, 0), axis=0)
        ends_UT = np.concatenate([new_UT[1:], np.ones_like(new_UT[:1])])
        last_UT = np.minimum.accumulate(np.where(ends_UT, index_U1, len(index_U1))[::-1], axis=0)[
            ::-1
        ]
        total = np.concatenate([[0], np.cumsum(self.count_U)])
        size_UT = total[last_UT + 1] - total[first_UT]
        there_UT = self.full_U[:, None] >= depth_1T[1:]
        return np.where(there_UT, size_UT[:, :-1] - 1, 0), np.where(
            there_UT, size_UT[:, :-1] - size_UT[:, 1:], 0
        )


def _tree(texts: Sequence[Text | None], max_length: int | None) -> _Tree:
    there_R, text_R, distinct = distinct_texts(texts)
    order_U = sorted(range(len(distinct)), key=lambda u: distinct[u])  # type: ignore[arg-type]
    rank_U = np.empty(len(distinct), dtype=np.int64)
    rank_U[order_U] = np.arange(len(distinct))
    sorted_texts = [distinct[u] for u in order_U]
    length_U = np.array([len(text) for text in sorted_texts], dtype=np.int64)
    if max_length is not None and length_U.max(initial=0) > max_length:
        raise ValueError(
            f"a text of {length_U.max()} tokens is longer than max_length, {max_length}"
        )
    full_U = length_U + 1 if max_length is None else np.minimum(length_U + 1, max_length)
    shared_U = np.array(
        [0]
        + [
            _shared(text_before, following)
            for text_before, following in itertools.pairwise(sorted_texts)
        ],
        dtype=np.int64,
    )[: len(distinct)]
    count_U = np.bincount(rank_U[text_R], minlength=len(distinct))
    deepest = max(int(full_U[count_U > 1].max(initial=0)), int(shared_U[1:].max(initial=-1)) + 1)
    return _Tree(there_R, rank_U[text_R], count_U, full_U, shared_U, deepest)


def _error(
    trees: list[_Tree], cluster_P: np.ndarray, n: int, at_risk_T: np.ndarray, events_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Leverage | None]:
    """The two parts of `two_way` for ln S(t), at every t: d ln S = - sum_{s <= t} (de_s - h_s da_s)
    / (a_s (1 - h_s)); and what the clusters are worth, by their prompts.
    """
    depth, hazard_T = len(at_risk_T), events_T / at_risk_T
    weight_T = np.where(
        hazard_T < 1, 1 / (at_risk_T * np.maximum(1 - hazard_T, 1 / at_risk_T)), 0.0
    )

    def effect(risk_T: np.ndarray, events_T: np.ndarray) -> np.ndarray:
        to = risk_T.shape[-1]
        step = np.zeros((*risk_T.shape[:-1], depth))
        step[..., :to] = (events_T - hazard_T[:to] * risk_T) * weight_T[:to]
        return -np.cumsum(step, axis=-1)

    sum_RT, noise_CT, own_CT, size_C = np.zeros((n, depth)), [], [], []
    for _, members in itertools.groupby(
        np.argsort(cluster_P, kind="stable"), key=lambda i: cluster_P[i]
    ):
        shift_RT, own_T, size = np.zeros((n, depth)), np.zeros(depth), 0
        for i in members:
            tree = trees[i]
            if tree.depth == 0:
                continue
            size += 1
            others_UT, part_UT = tree.others()
            shift_RT[tree.there_R] -= effect(others_UT, part_UT)[tree.text_R] * n / max(n - 2, 1)
            own_T += effect(tree.count_U @ others_UT / 2, tree.count_U @ part_UT / 2)
        if not size:
            continue
        shift_RT -= shift_RT.mean(axis=0)
        sum_RT += shift_RT
        noise_CT.append((n - 1) / n * np.sum(shift_RT**2, axis=0))
        own_CT.append(own_T)
        size_C.append(size)
    runs_T = (n - 1) / n * np.sum(sum_RT**2, axis=0)
    if len(size_C) < 2:
        return runs_T, np.full(depth, np.nan), None
    sizes = leverage(np.array(size_C))
    own_T = sizes.weight_C @ np.square(own_CT)
    both_T = sizes.weight_C @ (np.array(noise_CT) - sizes.share_C[:, None] ** 2 * runs_T)
    return runs_T, np.maximum(own_T - np.maximum(both_T, 0.0), 0.0), sizes


def _shared(first: Text, second: Text) -> int:
    """Length of the common beginning."""
    return next(
        (k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


def _first(t: np.ndarray, reached_T: np.ndarray) -> float | None:
    return float(t[np.argmax(reached_T)]) if reached_T.any() else None
