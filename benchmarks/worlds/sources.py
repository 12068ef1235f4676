"""Worlds of the sources of variance: scores of crossed, nested and incomplete designs with planted
components.

`draw`: how the effects of every source are distributed (all with variance 1): normal, t5 (heavy
tails), exponential (skewed), or failures (5 % of the levels, or runs, lie six standard deviations
below the others).
"""

import math

import numpy as np

from toolkit.statistics.sources.answer_components import behaviour_components
from toolkit.statistics.sources.repeatability import iso_5725, root
from toolkit.statistics.sources.score_components import crossed, nested
from worlds import Sampled, World

THREE: tuple[str, ...] = ("init", "order", "dropout")


def effects(rng: np.random.Generator, draw: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws with mean 0 (up to a constant) and variance 1."""
    if draw == "t5":
        return rng.standard_t(5, shape) / math.sqrt(5 / 3)
    if draw == "exponential":
        return rng.exponential(size=shape) - 1
    x = rng.standard_normal(shape)
    return (
        (x - 6 * (rng.random(shape) < 0.05)) / math.sqrt(1 + 36 * 0.05 * 0.95)
        if draw == "failures"
        else x
    )


def grid_scores(
    rng,
    draw: str,
    shape: tuple[int, ...],
    repeats: int,
    variance: dict[tuple[int, ...], float],
    rest: float,
) -> np.ndarray:
    """score[levels..., repeat]: an effect for every set of factors in `variance`, and a
    residual.
    """
    score = math.sqrt(rest) * effects(rng, draw, (*shape, repeats))
    for axes, size in variance.items():
        sizes = tuple(n if axis in axes else 1 for axis, n in enumerate(shape))
        score = score + math.sqrt(size) * effects(rng, draw, (*sizes, 1))
    return score


def crossed_world(
    part: str,
    init: int,
    order: int,
    *,
    s2_init=0.4,
    s2_order=0.4,
    s2_both=0.0,
    s2_rest=0.2,
    repeats=1,
    missing=0.0,
    draw="normal",
) -> World:
    """Init x order. part: init, order, init x order, residual or total. missing: share of cells
    without a score, which makes it REML.
    """
    variance = {(0,): s2_init, (1,): s2_order, (0, 1): s2_both}
    rest = s2_rest if repeats > 1 else s2_rest + s2_both
    truth = {
        "init": s2_init,
        "order": s2_order,
        "init x order": s2_both,
        "residual": rest,
        "total": sum(variance.values()) + s2_rest,
    }[part]

    def world(rng: np.random.Generator) -> Sampled:
        score = grid_scores(rng, draw, (init, order), repeats, variance, s2_rest)
        score[rng.random(score.shape) < missing] = np.nan
        init_N, order_N, _ = (index.ravel() for index in np.indices(score.shape))
        found = crossed(score.ravel(), {"init": init_N, "order": order_N})
        return found.total if part == "total" else found.parts[part], truth

    return world


def three_way_world(
    part: str,
    init: int,
    order: int,
    dropout: int,
    *,
    main=0.2,
    pair=0.05,
    rest=0.25,
    missing=0.0,
    draw="normal",
) -> World:
    """Init x order x dropout, one run per cell: each main effect has variance `main`, each pair of
    them `pair`.

    part: a source, `total`, or `sd`, its root. missing: share of cells without a score, which makes
    it REML.
    """
    variance = {(axis,): main for axis in range(3)} | {(0, 1): pair, (0, 2): pair, (1, 2): pair}
    total = 3 * main + 3 * pair + rest
    truth = dict.fromkeys(THREE, main) | {
        "init x order": pair,
        "residual": rest,
        "total": total,
        "sd": math.sqrt(total),
    }

    def world(rng: np.random.Generator) -> Sampled:
        score = grid_scores(rng, draw, (init, order, dropout), 1, variance, rest)[..., 0]
        score[rng.random(score.shape) < missing] = np.nan
        found = crossed(
            score.ravel(),
            dict(zip(THREE, (index.ravel() for index in np.indices(score.shape)), strict=True)),
        )
        every = {**found.parts, "total": found.total, "sd": root(found.total)}
        return every[part], truth[part]

    return world


def nested_world(
    part: str, groups: int, size: int, *, between=0.3, unequal=False, draw="normal"
) -> World:
    """Runs in groups; the residual has variance 1 - between. unequal: sizes from 1 to twice
    `size`.
    """
    truth = {"between": between, "residual": 1 - between, "total": 1.0}[part]

    def world(rng: np.random.Generator) -> Sampled:
        sizes = rng.integers(1, 2 * size, groups) if unequal else np.full(groups, size)
        group_N = np.repeat(np.arange(groups), sizes)
        score_N = math.sqrt(between) * effects(rng, draw, (groups,))[group_N]
        found = nested(
            score_N + math.sqrt(1 - between) * effects(rng, draw, (len(group_N),)), group_N
        )
        return found.total if part == "total" else found.parts[part], truth

    return world


def precision_world(
    figure: str, machines: int, seeds: int, *, repeats=2, shared=False, draw="normal"
) -> World:
    """figure: a field of Precision. shared: the same seeds on every machine, with an interaction;
    else each machine has its own.
    """
    s2_machine, s2_seed, s2_both, s2_repeat = 0.3, 0.5, 0.1 * shared, 0.2
    inner = s2_repeat + s2_seed + s2_both
    truth = {
        "repeatability": s2_repeat,
        "intermediate_precision": inner,
        "reproducibility": inner + s2_machine,
    }[figure]
    variance = (
        {(0,): s2_machine, (1,): s2_seed, (0, 1): s2_both}
        if shared
        else {(0,): s2_machine, (0, 1): s2_seed}
    )

    def world(rng: np.random.Generator) -> Sampled:
        score = grid_scores(rng, draw, (machines, seeds), repeats, variance, s2_repeat)
        machine_N, seed_N, _ = (index.ravel() for index in np.indices(score.shape))
        found = getattr(
            iso_5725(score.ravel(), seed_N if shared else seed_N + seeds * machine_N, machine_N),
            figure,
        )
        return found, math.sqrt(truth)

    return world


def sharing(shared: float, s2_run: float, mean: float, s2_prompt: float) -> float:
    """Disagreement of two runs that have that much of the variance of their margins in common, over
    normal prompts.
    """
    from scipy.stats import multivariate_normal

    at, both_one = mean / math.sqrt(s2_prompt + s2_run), []
    for s2 in (s2_run, shared):
        rho = (s2_prompt + s2) / (s2_prompt + s2_run)
        both_one.append(
            float(
                multivariate_normal.cdf(
                    [at, at], mean=[0, 0], cov=[[1, rho], [rho, 1]], allow_singular=True
                )
            )
        )
    return 2 * (both_one[0] - both_one[1])


def answers_world(
    part: str,
    init: int,
    order: int,
    prompts: int,
    *,
    s2_init=0.5,
    s2_order=0.5,
    s2_both=0.3,
    s2_rest=0.7,
    common=0.2,
    repeats=1,
    mean=1.0,
    s2_prompt=4.0,
    missing=0.0,
    per_cluster=1,
) -> World:
    """Answer = sign of a normal margin: prompt + init + order + both + rest.

    common: share of the variance of init and order that is the same for all prompts. With p =
    P(answer 1) of a prompt, its part of the init is 2 Var(E[answer | init]) = 2 (P(both 1 | same
    init) - p^2).
    """
    s2_run = s2_init + s2_order + s2_both + s2_rest
    fresh, by_init, by_order, same = (
        sharing(shared, s2_run, mean, s2_prompt)
        for shared in (0.0, s2_init, s2_order, s2_init + s2_order + s2_both)
    )
    truth = {"init": fresh - by_init, "order": fresh - by_order, "fresh": fresh}
    residual = by_init + by_order - fresh
    truth |= (
        {"residual": same, "init x order": residual - same}
        if repeats > 1
        else {"residual": residual}
    )

    def world(rng: np.random.Generator) -> Sampled:
        def effect(size: float, of_all: float, *shape: int) -> np.ndarray:
            own = rng.standard_normal((*shape, prompts // per_cluster))
            return math.sqrt(size) * (
                math.sqrt(of_all) * rng.standard_normal((*shape, 1)) + math.sqrt(1 - of_all) * own
            )

        margin = (
            mean
            + effect(s2_prompt, 0.0)
            + effect(s2_init, common, init, 1, 1)
            + effect(s2_order, common, 1, order, 1)
        )
        margin = (
            margin
            + effect(s2_both, 0.0, init, order, 1)
            + effect(s2_rest, 0.0, init, order, repeats)
        )
        answer = np.repeat((margin > 0).astype(np.int64), per_cluster, axis=-1)
        answer[rng.random(answer.shape) < missing] = -1
        init_R, order_R, _ = (index.ravel() for index in np.indices(answer.shape[:-1]))
        cluster_P = np.arange(answer.shape[-1]) // per_cluster if per_cluster > 1 else None
        found = behaviour_components(
            answer.reshape(len(init_R), -1), {"init": init_R, "order": order_R}, cluster_P=cluster_P
        )
        return (found.disagreement if part == "fresh" else found.parts)[part], truth[part]

    return world


def three_way_answers_world(
    part: str,
    init: int,
    order: int,
    dropout: int,
    prompts: int,
    *,
    main=0.4,
    pair=0.15,
    rest=0.7,
    common=0.2,
    mean=1.0,
    s2_prompt=4.0,
    missing=0.0,
) -> World:
    """As `answers_world`, of three sources with one run per cell: each main effect has variance
    `main`, each pair of them `pair`.
    """
    s2_run = 3 * main + 3 * pair + rest
    fresh, one, two = (
        sharing(shared, s2_run, mean, s2_prompt) for shared in (0.0, main, 2 * main + pair)
    )
    truth = dict.fromkeys(THREE, fresh - one) | {
        "init x order": 2 * one - fresh - two,
        "residual": fresh - 3 * one + 3 * two,
        "fresh": fresh,
    }

    def world(rng: np.random.Generator) -> Sampled:
        def effect(size: float, of_all: float, *shape: int) -> np.ndarray:
            own = rng.standard_normal((*shape, prompts))
            return math.sqrt(size) * (
                math.sqrt(of_all) * rng.standard_normal((*shape, 1)) + math.sqrt(1 - of_all) * own
            )

        margin = mean + effect(s2_prompt, 0.0) + effect(rest, 0.0, init, order, dropout)
        for shape in ((init, 1, 1), (1, order, 1), (1, 1, dropout)):
            margin = margin + effect(main, common, *shape)
        for shape in ((init, order, 1), (init, 1, dropout), (1, order, dropout)):
            margin = margin + effect(pair, 0.0, *shape)
        answer = (margin > 0).astype(np.int64)
        answer[rng.random(answer.shape[:3]) < missing] = -1  # runs that failed
        levels = dict(
            zip(THREE, (index.ravel() for index in np.indices(answer.shape[:3])), strict=True)
        )
        found = behaviour_components(answer.reshape(-1, prompts), levels)
        return (found.disagreement if part == "fresh" else found.parts)[part], truth[part]

    return world
