"""Worlds that are not kind: clusters of any sizes, runs of two kinds, runs that differ on some
templates only, failed runs, heavy tails, more than two answers, and designs in which runs share
levels of their sources.

A template (cluster of prompts) has a logit of being answered right, and how its wrong answers are
spread over the other codes. A run shifts all logits by a normal effect. A share `kinds` of the runs
follows another strategy: on a share `templates` of the templates its logit is `drop` lower. A share
`garbage` answers at random and nobody marks it; a share `failed` is marked, without answers. Truths
are integrals.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import binom
from scipy.stats import t as student

from toolkit.measurement.analyse import zone
from toolkit.statistics import (
    Estimate,
    accuracy,
    accuracy_change,
    accuracy_gain,
    accuracy_spread,
    crossed,
    disagreement,
    disagreement_difference,
    disagreement_ratio,
    effect_size,
    fleiss_kappa,
    population_accuracy_change,
    population_difference,
    population_ratio,
    root,
    run_mean,
    run_mean_change,
    run_sd,
)
from worlds import Sampled, World
from worlds.core import NODE_S, WEIGHT_S, beta_grid, logits, marks

HEAVY = 2.0, 2.5, 2.0
"""Difficulty with heavy tails: location, scale and degrees of freedom of a t distribution of the
logits.
"""


class Kind(NamedTuple):
    """What makes a population unkind; the defaults are a kind one."""

    difficulty: str = "beta"
    answers: int = 2
    run_sd: float = 0.7
    kinds: float = 0.0
    templates: float = 1.0
    drop: float = 2.0
    garbage: float = 0.0


def sizes_of(prompts: int, clusters: int, sizes: str) -> np.ndarray:
    """Prompts of every template: `equal`; `rank`, as 1/rank; `dominant`, one holds 30 % and the
    others are equal. At least one each.
    """
    share_C = np.ones(clusters)
    if sizes == "rank":
        share_C = 1 / np.arange(1, clusters + 1)
    elif sizes == "dominant":
        share_C[0] = 0.3 / 0.7 * (clusters - 1)
    return np.maximum(1, np.round(prompts * share_C / share_C.sum()).astype(np.int64))


@cache
def difficulty_grid(difficulty: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the templates and their weights."""
    if difficulty == "beta":
        return beta_grid(0.6, 0.2)
    place, scale, df = HEAVY
    logit_P = place + scale * student.ppf((np.arange(20_000) + 0.5) / 20_000, df)
    return logit_P, np.full(20_000, 1 / 20_000)


def draw_logits(rng: np.random.Generator, difficulty: str, n: int) -> np.ndarray:
    if difficulty == "beta":
        return logits(rng, 0.6, 0.2, n)
    place, scale, df = HEAVY
    return place + scale * rng.standard_t(df, n)


def right_in_kind(
    logit_C: np.ndarray, affected_C: np.ndarray, kind: Kind
) -> tuple[np.ndarray, np.ndarray]:
    """P(right) on each template of a run at each node of its effect, of either kind [kind, S, C];
    weights [kind, S]. Without garbage.
    """
    ordinary_SC = expit(logit_C + kind.run_sd * NODE_S[:, None])
    other_SC = expit(logit_C - kind.drop * affected_C + kind.run_sd * NODE_S[:, None])
    return np.stack([ordinary_SC, other_SC]), np.stack(
        [(1 - kind.kinds) * WEIGHT_S, kind.kinds * WEIGHT_S]
    )


def differ(right_C: np.ndarray, kind: Kind, square: float | np.ndarray) -> np.ndarray:
    """P(two runs differ) from P(right) of a run that is no garbage. square: of the shares of the
    wrong answers, summed.
    """
    chance, wrong_C = kind.garbage / kind.answers, (1 - kind.garbage) * (1 - right_C)
    same_C = ((1 - kind.garbage) * right_C + chance) ** 2
    same_C = same_C + wrong_C**2 * square + 2 * wrong_C * chance + (kind.answers - 1) * chance**2
    return 1 - same_C


@cache
def truths(kind: Kind) -> dict[str, float]:
    """Of fresh runs and fresh prompts. A sum of squares of uniform (Dirichlet) shares of m wrong
    answers is 2 / (m + 1) in the mean.
    """
    logit_C, weight_C = difficulty_grid(kind.difficulty)
    both = [
        right_in_kind(logit_C, np.full(len(logit_C), affected), kind) for affected in (0.0, 1.0)
    ]
    share = (1 - kind.templates, kind.templates)
    square = 2 / kind.answers
    right_A = [np.einsum("ks,ksc->c", weight_KS, right_KSC) for right_KSC, weight_KS in both]
    disagreement_ = sum(
        s * float(weight_C @ differ(right_C, kind, square))
        for s, right_C in zip(share, right_A, strict=True)
    )
    accuracy_KS = sum(
        s * (right_KSC @ weight_C) for s, (right_KSC, _) in zip(share, both, strict=True)
    )
    weight_KS, g, chance = both[0][1], kind.garbage, 1 / kind.answers
    mean = (1 - g) * float(np.sum(weight_KS * accuracy_KS)) + g * chance
    squares = (1 - g) * float(np.sum(weight_KS * accuracy_KS**2)) + g * chance**2
    return {
        "disagreement": disagreement_,
        "accuracy": mean,
        "distribution_variance": max(0.0, squares - mean**2),
    }


class Population(NamedTuple):
    """answer_RP: 0 is right, -1 missing. right_KSC, weight_KS: see `right_in_kind`; template_P: of
    every prompt.
    """

    answer_RP: np.ndarray
    template_P: np.ndarray
    right_KSC: np.ndarray
    weight_KS: np.ndarray


class Templates(NamedTuple):
    """What is drawn once for both arms of a contrast."""

    logit_C: np.ndarray
    affected_C: np.ndarray
    wrong_CV: np.ndarray
    template_P: np.ndarray


def draw_templates(rng: np.random.Generator, size_C: np.ndarray, kind: Kind) -> Templates:
    n = len(size_C)
    return Templates(
        draw_logits(rng, kind.difficulty, n),
        (rng.random(n) < kind.templates).astype(np.float64),
        rng.dirichlet(np.ones(kind.answers - 1), n) if kind.answers > 2 else np.ones((n, 1)),
        np.repeat(np.arange(n), size_C),
    )


def draw(
    rng: np.random.Generator, replicas: int, templates: Templates, kind: Kind, failed: float = 0.0
) -> Population:
    logit_C, affected_C, wrong_CV, template_P = templates
    other_R = rng.random(replicas) < kind.kinds
    logit_RC = (
        logit_C
        - kind.drop * affected_C * other_R[:, None]
        + kind.run_sd * rng.standard_normal((replicas, 1))
    )
    shape = replicas, len(template_P)
    right_RP = rng.random(shape) < expit(logit_RC[:, template_P])
    limit_PV = np.cumsum(wrong_CV, axis=1)[template_P]
    wrong_RP = 1 + np.sum(rng.random(shape)[..., None] > limit_PV[:, :-1], axis=-1)
    answer_RP = np.where(right_RP, 0, wrong_RP).astype(np.int64)
    garbage_R = rng.random(replicas) < kind.garbage
    answer_RP[garbage_R] = rng.integers(0, kind.answers, (int(garbage_R.sum()), shape[1]))
    failed_R = rng.random(replicas) < failed
    failed_R[:2] = False
    answer_RP[failed_R] = -1
    return Population(answer_RP, template_P, *right_in_kind(logit_C, affected_C, kind))


def right(answer_RP: np.ndarray) -> np.ndarray:
    """1 right, 0 wrong, nan missing."""
    return np.where(answer_RP < 0, np.nan, answer_RP == 0)


def sd_on_suite(population: Population, kind: Kind) -> float:
    """SD between fresh runs of the accuracy on these prompts: of what is expected of a run, and the
    luck of its answers.
    """
    size_C = np.bincount(population.template_P)
    n, g, chance = size_C.sum(), kind.garbage, 1 / kind.answers
    accuracy_KS = population.right_KSC @ size_C / n
    luck_KS = (population.right_KSC * (1 - population.right_KSC)) @ size_C / n**2
    mean = (1 - g) * float(np.sum(population.weight_KS * accuracy_KS)) + g * chance
    squares = (1 - g) * float(np.sum(population.weight_KS * (accuracy_KS**2 + luck_KS))) + g * (
        chance**2 + chance * (1 - chance) / n
    )
    return math.sqrt(squares - mean**2)


def unkind_world(
    figure: str,
    replicas: int,
    prompts: int,
    clusters: int = 0,
    sizes: str = "equal",
    failed: float = 0.0,
    **options,
) -> World:
    """figure: disagreement, accuracy, sd, distribution_variance, or zone: whether a colour of the
    matrix that is given is right.

    clusters: number of templates; by default one prompt each.
    """
    kind = Kind(**options)
    size_C = sizes_of(prompts, clusters or prompts, sizes)
    truth = truths(kind)

    def world(rng: np.random.Generator) -> Sampled:
        population = draw(rng, replicas, draw_templates(rng, size_C, kind), kind, failed)
        cluster_P = population.template_P
        if figure in ("disagreement", "zone"):
            estimate = disagreement(population.answer_RP, cluster_P=cluster_P)
            return (
                (estimate, truth[figure])
                if figure == "disagreement"
                else colour(estimate, truth["disagreement"])
            )
        if figure == "accuracy":
            return accuracy(right(population.answer_RP), cluster_P=cluster_P), truth[figure]
        spread = accuracy_spread(right(population.answer_RP), cluster_P=cluster_P)
        return (
            (spread.sd, sd_on_suite(population, kind))
            if figure == "sd"
            else (spread.distribution_variance, truth[figure])
        )

    return world


LIMITS = (0.05, 0.20)  # acceptable, critical: the defaults of a recipe


def colour(estimate: Estimate, truth: float) -> Sampled:
    """A cell of the matrix as an estimate: 1 where its colour is right, which the interval holds;
    conclusive where it has a colour.

    `acceptable` says that the truth is at most the first limit, `critical` that it is above the
    second; `watch` is wrong where the truth is on the other side of a limit that the interval
    excludes.
    """
    said = zone(estimate, LIMITS)
    low, high = estimate.low or 0.0, 1.0 if estimate.high is None else estimate.high
    sides = [
        truth > limit if low > limit else truth <= limit if high <= limit else True
        for limit in LIMITS
    ]
    is_right = said == "not enough data" or all(sides)
    ends = (1.0, 1.0) if is_right else (0.0, 0.0)
    return Estimate(
        1.0,
        *ends,
        0.95,
        estimate.n_replicas,
        estimate.n_prompts,
        "colour",
        said != "not enough data",
    ), 1.0


# -- contrasts -----------------------------------------------------------------------------------


def unkind_contrast_world(
    figure: str,
    replicas: int,
    prompts: int,
    clusters: int = 0,
    sizes: str = "equal",
    calmer: float = 0.5,
    **options,
) -> World:
    """Two conditions on the same prompts: the baseline is unkind, runs of the other are of one kind
    and vary `calmer` times as much.
    """
    kind_a = Kind(**options)
    kind_b = kind_a._replace(kinds=0.0, garbage=0.0, run_sd=calmer * kind_a.run_sd)
    size_C = sizes_of(prompts, clusters or prompts, sizes)
    a, b = truths(kind_a), truths(kind_b)
    d_a, d_b = a["disagreement"], b["disagreement"]
    truth = {"ratio": d_b / d_a, "difference": d_b - d_a, "change": b["accuracy"] - a["accuracy"]}[
        figure
    ]
    estimator = {
        "ratio": population_ratio,
        "difference": population_difference,
        "change": population_accuracy_change,
    }[figure]

    def world(rng: np.random.Generator) -> Sampled:
        templates = draw_templates(rng, size_C, kind_a)
        arms = [draw(rng, replicas, templates, kind).answer_RP for kind in (kind_b, kind_a)]
        if figure == "change":
            arms = [right(arm) for arm in arms]
        return estimator(*arms, cluster_P=templates.template_P), truth

    return world


@cache
def vote_truths(kind: Kind, k: int) -> dict[str, float]:
    """The majority of k runs, of two answers; a tie is wrong, as the base is everywhere. Runs are
    independent given the prompt.
    """
    logit_C, weight_C = difficulty_grid(kind.difficulty)
    sums = np.zeros(4)
    for affected, share in ((0.0, 1 - kind.templates), (1.0, kind.templates)):
        right_KSC, weight_KS = right_in_kind(logit_C, np.full(len(logit_C), affected), kind)
        one_C = (1 - kind.garbage) * np.einsum("ks,ksc->c", weight_KS, right_KSC) + kind.garbage / 2
        one_C = np.clip(one_C, 0.0, 1.0)  # weights add up to 1 but for rounding
        group_C = binom.sf(k // 2, k, one_C)
        sums += share * np.array(
            [
                weight_C @ x_C
                for x_C in (2 * one_C * (1 - one_C), 2 * group_C * (1 - group_C), one_C, group_C)
            ]
        )
    d_a, d_b, right_a, right_b = sums.tolist()
    return {
        "ratio": d_b / d_a,
        "difference": d_b - d_a,
        "change": right_b - right_a,
        "kept": right_b / right_a,
    }


def unkind_vote_world(
    figure: str,
    replicas: int,
    prompts: int,
    clusters: int = 0,
    sizes: str = "equal",
    k: int = 4,
    **options,
) -> World:
    """Votes of disjoint groups of k against the replicas that they are made of."""
    kind = Kind(**options)
    size_C, groups = sizes_of(prompts, clusters or prompts, sizes), replicas // k
    members = list(np.arange(groups * k).reshape(groups, k))
    truth = vote_truths(kind, k)[figure]

    def world(rng: np.random.Generator) -> Sampled:
        population = draw(rng, groups * k, draw_templates(rng, size_C, kind), kind)
        single_RP, cluster_P = population.answer_RP, population.template_P
        vote_GP = ((single_RP == 0).reshape(groups, k, -1).sum(axis=1) <= k // 2).astype(np.int64)
        if figure == "change":
            return accuracy_change(
                right(vote_GP), right(single_RP), members, cluster_P=cluster_P
            ), truth
        if figure == "kept":
            return effect_size(
                vote_GP,
                single_RP,
                np.ones(len(cluster_P), dtype=np.int64),
                members,
                cluster_P=cluster_P,
            ), truth
        estimator = {"ratio": disagreement_ratio, "difference": disagreement_difference}[figure]
        return estimator(vote_GP, single_RP, members, cluster_P=cluster_P), truth

    return world


# -- runs that share levels ----------------------------------------------------------------------


def levels_of(design: str) -> dict[str, np.ndarray]:
    """`8x8`: init x order, each combination once. `10/4`: ten teachers of four students. `6x6r2`:
    each combination twice.
    """
    if "/" in design:
        groups, size = map(int, design.split("/"))
        return {"teachers": np.repeat(np.arange(groups), size)}
    shape, _, repeats = design.partition("r")
    inits, orders = map(int, shape.split("x"))
    init, order = np.repeat(np.arange(inits), orders), np.tile(np.arange(orders), inits)
    return {"init": np.tile(init, int(repeats or 1)), "order": np.tile(order, int(repeats or 1))}


def design_world(
    figure: str, design: str, prompts: int, main: float = 0.5, own: float = 0.5, rest: float = 0.2
) -> World:
    """Levels of every source shift all logits by `main` and each prompt's by `own`; `rest` is the
    run's own shift. SDs on the logit.

    The truth is that of a run with fresh levels of all its sources.
    """
    levels = levels_of(design)
    n_runs = len(next(iter(levels.values())))
    common, each = math.sqrt(len(levels) * main**2 + rest**2), math.sqrt(len(levels)) * own
    grid_P, weight_P = difficulty_grid("beta")

    def expected(logit_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(right) at each node of the common effect, over the prompt's own effects; and its
        square. [S, P]
        """
        right_STP = expit(logit_P + common * NODE_S[:, None, None] + each * NODE_S[:, None])
        return np.einsum("t,stp->sp", WEIGHT_S, right_STP), np.einsum(
            "t,stp->sp", WEIGHT_S, right_STP**2
        )

    mean_SP, _ = expected(grid_P)
    p_P = WEIGHT_S @ mean_SP
    truth = {
        "disagreement": float(weight_P @ (2 * p_P * (1 - p_P))),
        "accuracy": float(weight_P @ p_P),
    }

    def world(rng: np.random.Generator) -> Sampled:
        logit_P = draw_logits(rng, "beta", prompts)
        logit_RP = logit_P + rest * rng.standard_normal((n_runs, 1))
        for level_R in levels.values():
            n = int(level_R.max()) + 1
            logit_RP = (
                logit_RP
                + (main * rng.standard_normal((n, 1)) + own * rng.standard_normal((n, prompts)))[
                    level_R
                ]
            )
        answer_RP = (rng.random(logit_RP.shape) < expit(logit_RP)).astype(np.int64)
        if figure == "disagreement":
            return disagreement(answer_RP, levels=levels), truth[figure]
        if figure == "accuracy":
            return accuracy(marks(answer_RP), levels=levels), truth[figure]
        mean_SP, _ = expected(logit_P)
        accuracy_S = mean_SP.mean(axis=1)
        # given the run's shift, prompts are independent
        luck = float(WEIGHT_S @ np.mean(mean_SP * (1 - mean_SP), axis=1)) / prompts
        sd = math.sqrt(luck + float(WEIGHT_S @ accuracy_S**2) - float(WEIGHT_S @ accuracy_S) ** 2)
        return root(crossed(answer_RP.mean(axis=1), levels).total), sd

    return world


def unkind_kappa_world(
    replicas: int, prompts: int, clusters: int = 0, sizes: str = "equal", **options
) -> World:
    """Fleiss' kappa of right and wrong answers in two codes: 1 - D / (2 p (1 - p))."""
    kind = Kind(**options)
    size_C, truth = sizes_of(prompts, clusters or prompts, sizes), truths(kind)
    kappa = 1 - truth["disagreement"] / (2 * truth["accuracy"] * (1 - truth["accuracy"]))

    def world(rng: np.random.Generator) -> Sampled:
        population = draw(rng, replicas, draw_templates(rng, size_C, kind), kind)
        return fleiss_kappa(population.answer_RP, cluster_P=population.template_P), kappa

    return world


# -- over one base -------------------------------------------------------------------------------


def gain_world(
    replicas: int, prompts: int, base: float, mean: float, prompt_sd: float, run_sd: float = 0.5
) -> World:
    """Accuracy gained over one model that is right on a share `base` of the prompts, whichever they
    are.
    """
    node_P, weight_P = np.polynomial.hermite_e.hermegauss(80)
    right = float(weight_P @ expit(mean + math.hypot(prompt_sd, run_sd) * node_P)) / math.sqrt(
        2 * math.pi
    )

    def world(rng: np.random.Generator) -> Sampled:
        logit_P = mean + prompt_sd * rng.standard_normal(prompts)
        right_RP = rng.random((replicas, prompts)) < expit(
            logit_P + run_sd * rng.standard_normal((replicas, 1))
        )
        return accuracy_gain(
            right_RP.astype(np.float64), (rng.random(prompts) < base).astype(np.float64)
        ), right - base

    return world


# -- one number a run ----------------------------------------------------------------------------

KINDS_BELOW, GARBAGE_BELOW = 5.0, 6.0  # standard deviations


def draw_numbers(
    rng: np.random.Generator, runs: int, draw: str, kinds: float, garbage: float
) -> np.ndarray:
    if draw == "exponential":
        return rng.exponential(size=runs)
    score_R = rng.standard_t(5, runs) if draw == "t5" else rng.standard_normal(runs)
    return (
        score_R
        - KINDS_BELOW * (rng.random(runs) < kinds)
        - GARBAGE_BELOW * (rng.random(runs) < garbage)
    )


def run_table_world(
    figure: str, replicas: int, draw: str = "normal", kinds: float = 0.0, garbage: float = 0.0
) -> World:
    """One number a run. figure: mean, sd; change: of the mean, against runs that are normal."""
    mean, variance = {"normal": (0.0, 1.0), "t5": (0.0, 5 / 3), "exponential": (1.0, 1.0)}[draw]
    for share, below in ((kinds, KINDS_BELOW), (garbage, GARBAGE_BELOW)):
        mean, variance = mean - below * share, variance + below**2 * share * (1 - share)

    def world(rng: np.random.Generator) -> Sampled:
        score_R = draw_numbers(rng, replicas, draw, kinds, garbage)
        if figure == "change":
            return run_mean_change(rng.standard_normal(replicas), score_R), -mean
        return (
            (run_mean(score_R), mean)
            if figure == "mean"
            else (run_sd(score_R), math.sqrt(variance))
        )

    return world
