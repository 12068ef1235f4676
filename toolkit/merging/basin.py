"""Do the members of a population lie in one basin, and does their merge lie there, too? Check
before trusting the merge.

A merge of weights is only as good as the loss surface between it and the members. Two checks:

geometry    distances, cosines and clusters of the weight changes, from their inner products; no
model and no dense matrix barriers    the loss of known answers on the way from each member to the
merge of its group, a * D_k + (1 - a) * M

The merge is the exact mean, or whatever was asked for. For a loss that is convex no point of the
way lies above the line between its ends, and a mean not above the mean of its members (Jensen).
What lies above is a barrier. It is marked where it is larger than the SD of the loss between the
members: merging then costs more than the luck of a seed. It is a warning above three SD: then the
merge is like none of its members. The test is the locality condition of averaging (DiWA,
arXiv:2205.09739); fine-tunes of one base can fail it (Juneja et al., arXiv:2205.12411).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from toolkit import seeds
from toolkit.answer.predict import load_adapters, score
from toolkit.data import Prompt, encode_prompt, encode_reference
from toolkit.errors import FtkError
from toolkit.model import delta
from toolkit.model.adapters import Adapter, Module
from toolkit.model.base import Base
from toolkit.model.grams import gram, module_names
from toolkit.model.stack import stacked
from toolkit.record.population import groups
from toolkit.record.words import number
from toolkit.text import escape, tables

MIN_MEMBERS = 8
"""below, two clusters cannot be told from chance"""
LEVEL, MOST_CLUSTERS = 0.01, 6
GRID = (0.25, 0.5, 0.75)
"""shares of the member on the way to the merge, between the ends"""
PATHS = 8
"""members whose way to the merge is walked, the first of the population"""
ROUNDING = 1e-3
"""nats; barriers below are the arithmetic's"""
MARK, WARN = 1.0, 3.0
"""barriers that are told and that are a warning, in SD of the members' loss; three as in a control
chart
"""
UNLIKELY = 1.0
"""nats a token of typical prompts, above which references are not what the members write"""
WIDTH = 8


class BasinError(FtkError, ValueError):
    """These adapters and prompts cannot answer the question; one line with the fix."""


@dataclass(frozen=True)
class Geometry:
    """Distances and angles of the changes D_k. Lengths are Frobenius norms over all modules."""

    norm_K: list[float]
    to_mean_K: list[float]
    """||D_k - M||, M the mean of all"""
    to_merge_K: list[float]
    """||D_k - M||, M the merge of the group of member k; members without a group are left out"""
    cosine_KK: list[list[float]]
    kept: float
    """||M||^2 / mean ||D_k||^2: 1 for copies, 1/K for changes that have nothing in common"""
    cluster_K: list[int] | None
    """1, 2, ... for each member; None with too few members to tell"""
    silhouette: float | None
    """of the cut into clusters; 0 with one cluster"""


@dataclass(frozen=True)
class Barrier:
    """What lies between the members on the prompts of one shift. Losses: -log p(reference |
    prompt), nats, mean over prompts.
    """

    shift: str
    n_prompts: int
    base: float
    members: float
    sd: float
    """between members"""
    merged: float
    """of the merges of groups"""
    excess: float
    """the largest rise of a group's merge above the mean of its members"""
    barrier: float
    """the largest rise on the way from a member to the merge, above the line between the two"""
    at: float
    """share of the member where that is"""
    size: float
    """the larger of excess and barrier in SD of the members' loss; 0 where there is none"""
    per_token: float
    """loss of the members, nats a token"""


@dataclass(frozen=True)
class Basin:
    """Whether members lie in one basin of the loss, so that their average is safe."""

    members: list[str]
    method: str
    k: int
    geometry: Geometry
    barriers: list[Barrier]
    verdict: str
    """warn, ok, or inconclusive"""
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def diagnose_basin(
    adapters: Sequence[Adapter],
    base: Base,
    prompts: Sequence[Prompt],
    *,
    k: int | None = None,
    method: str = "mean",
    merged_G: Sequence[Adapter] | None = None,
) -> Basin:
    """Geometry of the population, and barriers on the prompts that have a reference, between
    disjoint groups of k (default: all).

    merged_G: what `method` made of each group, in the order of `groups`; None: their means.
    Raises BasinError, AdapterError or ValueError in one line.
    """
    if len(adapters) < 2:
        raise BasinError(f"{len(adapters)} adapter: a basin takes two or more")
    with_reference = [prompt for prompt in prompts if prompt.reference is not None]
    if not with_reference:
        raise BasinError(
            "no prompt has a reference, so there is no loss; give the suite's rows a `reference`"
        )
    members = groups(range(len(adapters)), k or len(adapters))
    if not members:
        raise BasinError(f"{len(adapters)} adapters are fewer than a group of {k}")
    merged_G = merged_G or [
        blend([adapters[i] for i in group], [1 / len(group)] * len(group)) for group in members
    ]
    shape = geometry(adapters, members, merged_G)
    measured = barriers(adapters, base, with_reference, members, merged_G)
    reasons = [_reason(barrier) for barrier in measured if barrier.size > MARK]
    warned = any(barrier.size > WARN for barrier in measured)
    sizes = (
        sorted(np.bincount(shape.cluster_K)[1:].tolist(), reverse=True) if shape.cluster_K else []
    )
    if len(sizes) > 1:
        reasons.append(
            f"the changes lie in {len(sizes)} clusters of {', '.join(map(str, sizes))}: "
            "merge within a cluster"
        )
    unlikely = [
        barrier
        for barrier in measured
        if barrier.shift == "typical" and barrier.per_token > UNLIKELY
    ]
    if unlikely:
        height = f"{unlikely[0].per_token:.1f} nats a token on typical prompts"
        reasons.append(
            f"the references are not what the members write ({height}): give them as in "
            "training, with spaces and line ends"
        )
    elif len(adapters) == 2:
        reasons.append("two members say little of how far losses of single runs lie apart")
    verdict = (
        "warn"
        if warned or len(sizes) > 1
        else "inconclusive"
        if unlikely or len(adapters) == 2
        else "ok"
    )
    return Basin(
        [str(adapter.path) for adapter in adapters],
        method,
        len(members[0]),
        shape,
        measured,
        verdict,
        reasons,
    )


def _reason(barrier: Barrier) -> str:
    what, rise = (
        ("the merge itself", barrier.excess)
        if barrier.excess >= barrier.barrier
        else (f"the way to the merge (at {barrier.at:g})", barrier.barrier)
    )
    return (
        f"{barrier.shift}: {what} lies {rise:.3g} nats above what the members promise, "
        f"{barrier.size:.1f} SD of single members"
    )


# -- geometry ------------------------------------------------------------------------------------


def geometry(
    adapters: Sequence[Adapter], members: Sequence[Sequence[int]], merged_G: Sequence[Adapter]
) -> Geometry:
    """Norms, distances, cosines and clusters of the changes; reads one module of a few members at a
    time.
    """
    K = len(adapters)
    whole = gram([*adapters, *merged_G])
    gram_KK = whole[:K, :K]
    to_merge_K = [
        max(0.0, whole[i, i] - 2 * whole[i, K + g] + whole[K + g, K + g]) ** 0.5
        for g, group in enumerate(members)
        for i in group
    ]
    square_K = np.diag(gram_KK)
    to_mean_K = np.sqrt(np.clip(square_K - 2 * gram_KK.mean(1) + gram_KK.mean(), 0, None))
    norm_K = np.sqrt(square_K)
    scale_KK = np.outer(norm_K, norm_K)
    cosine_KK = np.divide(gram_KK, scale_KK, out=np.zeros_like(gram_KK), where=scale_KK > 0)
    kept = float(gram_KK.mean() / square_K.mean()) if square_K.any() else 1.0
    cluster_K, silhouette = clusters(gram_KK)
    return Geometry(
        norm_K.tolist(),
        to_mean_K.tolist(),
        to_merge_K,
        cosine_KK.tolist(),
        kept,
        cluster_K,
        silhouette,
    )


def clusters(gram_KK: np.ndarray) -> tuple[list[int] | None, float | None]:
    """Cluster of each member, and the silhouette of the best cut; (None, None) below MIN_MEMBERS.

    c clusters show in c - 1 principal components: there the average-linkage tree is cut into c. A
    cut counts when fewer than one in a hundred Gaussian clouds with the same principal variances
    have a silhouette as large (after SigClust, Liu et al. 2008; Bonferroni over c): a long thin
    cloud is no two clusters. Of the cuts that count, the one with the largest silhouette.
    """
    K = len(gram_KK)
    if K < MIN_MEMBERS:
        return None, None
    centred_KK = gram_KK - gram_KK.mean(0) - gram_KK.mean(1)[:, None] + gram_KK.mean()
    value_K, vector_KK = np.linalg.eigh(centred_KK)
    spread_K = np.sqrt(np.clip(value_K[::-1], 0, None))
    if spread_K[0] <= 1e-6 * np.sqrt(np.trace(gram_KK)):  # copies of one another
        return [1] * K, 0.0
    point_KD = vector_KK[:, ::-1] * spread_K
    counts = range(2, max(2, min(MOST_CLUSTERS, K // 3)) + 1)
    draws = math.ceil(2 * len(counts) / LEVEL)  # a cut counts when at most one of them is as good
    best = 0.0, [1] * K
    for c in counts:
        silhouette, cluster_K = cut(point_KD[:, : c - 1], c)
        draw = np.random.default_rng(seeds.derive(0, "basin", c))
        clouds = (draw.standard_normal((K, c - 1)) * spread_K[: c - 1] for _ in range(draws))
        # the second one settles it
        as_good = islice((1 for cloud in clouds if cut(cloud, c)[0] >= silhouette), 2)
        if silhouette > best[0] and sum(as_good) < 2:
            best = silhouette, cluster_K
    return best[1], best[0]


def cut(point_KD: np.ndarray, count: int) -> tuple[float, list[int]]:
    """Mean silhouette of the average-linkage tree cut into `count` clusters, and the clusters."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist, squareform

    distance = pdist(point_KD)
    cluster_K = fcluster(linkage(distance, "average"), count, "maxclust")
    return mean_silhouette(squareform(distance), cluster_K), cluster_K.tolist()


def mean_silhouette(distance_KK: np.ndarray, cluster_K: np.ndarray) -> float:
    """(b - a) / max(a, b): a is a member's mean distance to its own cluster, b to the nearest
    other; 0 for one alone. Rousseeuw 1987.
    """
    member_KC = cluster_K[:, None] == np.unique(cluster_K)
    size_C = member_KC.sum(0)
    if len(size_C) < 2:
        return 0.0
    total_KC = distance_KK @ member_KC
    own_K = (total_KC * member_KC).sum(1) / np.maximum(member_KC @ size_C - 1, 1)
    other_K = np.where(member_KC, np.inf, total_KC / size_C).min(1)
    width_K = np.maximum(own_K, other_K)
    silhouette_K = np.divide(
        other_K - own_K, width_K, out=np.zeros(len(width_K)), where=width_K > 0
    )
    return float(np.where(member_KC @ size_C == 1, 0.0, silhouette_K).mean())


# -- barriers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blend(Adapter):
    """A weighted sum of changes, held in memory: what a merge would write, exactly."""

    held: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def factors(self, name: str) -> tuple[Tensor, Tensor, float]:
        """A, B and scale of the change of a module."""
        return *self.held[name], 1.0


def blend(adapters: Sequence[Adapter], weights: Sequence[float]) -> Blend:
    """sum_k w_k D_k, its factors concatenated. A module that an adapter leaves alone counts as a
    change of zero.
    """
    held = {}
    for name in module_names(adapters):
        parts = [
            (adapter.factors(name), w)
            for adapter, w in zip(adapters, weights, strict=True)
            if name in adapter.modules
        ]
        A, B = delta.concat([factors for factors, _ in parts], [w for _, w in parts])
        held[name] = A.float(), B.float()
    modules = {
        name: Module(B.shape[0], A.shape[1], A.shape[0], 1.0) for name, (A, B) in held.items()
    }
    return Blend(Path(f"blend of {len(adapters)} adapters"), {}, modules, {}, (0, 0), held=held)


def barriers(
    adapters: Sequence[Adapter],
    base: Base,
    prompts: Sequence[Prompt],
    members: Sequence[Sequence[int]],
    merged_G: Sequence[Adapter],
) -> list[Barrier]:
    """One record for each shift among the prompts."""
    walked = [(i, g) for g, group in enumerate(members) for i in group][:PATHS]
    steps = [blend([adapters[i], merged_G[g]], [a, 1 - a]) for i, g in walked for a in GRID]
    K, G = len(adapters), len(members)
    loss_NP, token_P = losses([None, *adapters, *merged_G, *steps], base, prompts)
    shift_P = np.array([prompt.shift for prompt in prompts])
    measured = []
    for shift in dict.fromkeys(shift_P.tolist()):
        loss_N = loss_NP[:, shift_P == shift].mean(1)
        of_K, of_G, of_WA = (
            loss_N[1 : K + 1],
            loss_N[K + 1 : K + 1 + G],
            loss_N[K + 1 + G :].reshape(len(walked), len(GRID)),
        )
        excess = max(of_G[g] - of_K[group].mean() for g, group in enumerate(members))
        ends_WA = np.array([[a * of_K[i] + (1 - a) * of_G[g] for a in GRID] for i, g in walked])
        rise_WA = of_WA - ends_WA
        w, a = np.unravel_index(rise_WA.argmax(), rise_WA.shape)
        sd, rise = float(of_K.std(ddof=1)), float(max(rise_WA[w, a], 0.0))
        size = max(float(excess), rise)
        measured.append(
            Barrier(
                shift=shift,
                n_prompts=int((shift_P == shift).sum()),
                base=float(loss_N[0]),
                members=float(of_K.mean()),
                sd=sd,
                merged=float(of_G.mean()),
                excess=float(excess),
                barrier=rise,
                at=GRID[a] if rise > 0 else 0.0,
                size=size / max(sd, ROUNDING) if size > ROUNDING else 0.0,
                per_token=float(of_K.mean() / token_P[shift_P == shift].mean()),
            )
        )
    return measured


def losses(
    adapters: Sequence[Adapter | None], base: Base, prompts: Sequence[Prompt]
) -> tuple[np.ndarray, np.ndarray]:
    """-log p(reference | prompt) in nats, [adapter, prompt], None being the base; and the tokens of
    every reference, [prompt].
    """
    ids = [encode_prompt(prompt, base.tokenizer) for prompt in prompts]
    references = [
        encode_reference(prompt, prompt.reference or "", base.tokenizer) for prompt in prompts
    ]
    rows: list[list[float]] = []
    with stacked(base.model) as stack:
        for start in range(0, len(adapters), WIDTH):
            part = adapters[start : start + WIDTH]
            load_adapters(stack, part, len(part))
            rows += score(stack, ids, references, voices=len(part))
    return -np.array(rows), np.array([len(reference) for reference in references])


# -- words ---------------------------------------------------------------------------------------


def basin_text(basin: Basin) -> str:
    """For the terminal."""
    shape = basin.geometry
    K = len(basin.members)
    cosine_KK = np.array(shape.cosine_KK)
    pairs = cosine_KK[np.triu_indices(K, 1)]
    norm = max(float(np.mean(shape.norm_K)), 1e-30)
    lines = [
        f"{K} members, {basin.method} of {basin.k}",
        f"cosine of two changes {_mean_and_range(pairs)}; the mean keeps {number(shape.kept, '%')} "
        f"% of a change's squared norm (nothing in common: {number(1 / K, '%')} %)",
    ]
    for middle, away_K in (
        ("mean of all", shape.to_mean_K),
        (f"{basin.method} of the own group", shape.to_merge_K),
    ):
        mean, ends = _mean_and_range(np.array(away_K) / norm).split(" ", 1)
        lines.append(f"distance to the {middle} {mean} of a member's norm {ends}")
    if shape.cluster_K is None:
        lines.append(f"clusters: INCONCLUSIVE with {K} members; {MIN_MEMBERS} are needed")
    else:
        sizes = np.bincount(shape.cluster_K)[1:].tolist()
        of_sizes = f" of {', '.join(map(str, sizes))}" if len(sizes) > 1 else ""
        lines.append(f"clusters: {len(sizes)}{of_sizes}")
    verdict = {
        "warn": "WARN",
        "ok": "OK: members and merges lie in one basin, as far as these prompts tell",
        "inconclusive": "INCONCLUSIVE",
    }[basin.verdict]
    return escape.lines(
        [
            *lines,
            "",
            *_barrier_lines(basin.barriers),
            "",
            "excess: largest rise of a merge above its members' mean; barrier: largest rise "
            "on the way from a member to it;",
            f"'!' where one of them is larger than the SD between members, '!!' than {WARN:g} SD",
            "",
            verdict,
            *(f"- {reason}" for reason in basin.reasons),
        ]
    )


def _mean_and_range(values: np.ndarray) -> str:
    """`0.412 (0.388 to 0.450)`."""
    mean, low, high = (
        number(float(x), "nats") for x in (values.mean(), values.min(), values.max())
    )
    return f"{mean} ({low} to {high})"


def _barrier_lines(measured: Sequence[Barrier]) -> list[str]:
    table = [["loss, nats", "prompts", "base", "members", "SD", "merge", "excess", "barrier", ""]]
    for b in measured:
        heights = (number(x, "nats") for x in (b.base, b.members, b.sd, b.merged))
        rises = number(b.excess, "nats", signed=True), number(b.barrier, "nats")
        mark = "!" * ((b.size > MARK) + (b.size > WARN))
        table.append([b.shift, str(b.n_prompts), *heights, *rises, mark])
    return tables.plain(table, right=range(1, 8))
