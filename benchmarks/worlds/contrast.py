"""Worlds of contrasts: two populations on the same prompts, spreads of two arms, subsets of K, and
laws in K.

Margins as in `worlds.core`: margin = prompt + run + noise of the cell, answer = its sign. Two
recipes differ in the size of run effect and noise. Groups of K average the margins of their
members, or vote; a share `flip` of the answers of a group may be turned around after that, which no
K removes: a floor of 2 * flip * (1 - flip).
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.special import expit

from toolkit.statistics.compare.by_prompt import accuracy_by_prompt, disagreement_by_prompt
from toolkit.statistics.compare.multiplicity import benjamini_hochberg
from toolkit.statistics.compare.populations import (
    population_accuracy_change,
    population_difference,
    population_ratio,
)
from toolkit.statistics.compare.variances import (
    distribution_variance_change,
    relative_spread,
    sd_difference,
    variance_ratio,
)
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.planning.scaling import ScalingFit, fit_disagreement, fit_floor
from toolkit.statistics.planning.subsets import partition_variance, subset_variance
from worlds import Sampled, World
from worlds.core import (
    clusters,
    combine,
    latents,
    marks,
    population,
    population_truths,
    positive_mean,
)

# -- two populations ------------------------------------------------------------------------------

POPULATIONS: dict[str, Callable[..., Estimate]] = {
    "ratio": population_ratio,
    "difference": population_difference,
    "change": population_accuracy_change,
}


def prompt_grid(mean: float, prompt_sd: float) -> tuple[np.ndarray, np.ndarray]:
    """Margins of normal prompts and their weights."""
    prompt_P = mean + prompt_sd * np.arange(-8, 8, 0.1 / max(prompt_sd, 1.0))
    weight_P = np.exp(-0.5 * ((prompt_P - mean) / prompt_sd) ** 2)
    return prompt_P, weight_P / weight_P.sum()


@cache
def recipe_truth(
    mean: float, prompt_sd: float, run_sd: float, noise: float, garbage: float
) -> tuple[float, float]:
    """Disagreement and accuracy of a recipe; a share `garbage` of its runs flips coins."""
    prompt_P, weight_P = prompt_grid(mean, prompt_sd)
    p_P = (1 - garbage) * positive_mean(prompt_P / noise, run_sd / noise, 1, 0.0) + garbage / 2
    return float(weight_P @ (2 * p_P * (1 - p_P))), float(weight_P @ p_P)


def population_world(
    statistic: str,
    replicas: int,
    prompts=200,
    run_sd=0.7,
    replicas_a=0,
    calmer=0.6,
    noise=0.5,
    together=-1.0,
    mean=2.0,
    prompt_sd=4.0,
    per_cluster=1,
    missing=0.0,
    garbage=0.0,
) -> World:
    """Recipe b has a run effect of `calmer` times that of a, and `noise` in place of 1; a has as
    many runs as b unless it is told.

    together: correlation of the run effects of a pair that shares its seeds; below 0 the arms are
    separate.
    """
    (d_b, right_b), (d_a, right_a) = (
        recipe_truth(mean, prompt_sd, s, n, garbage)
        for s, n in ((calmer * run_sd, noise), (run_sd, 1.0))
    )
    truth = {"ratio": d_b / d_a, "difference": d_b - d_a, "change": right_b - right_a}[statistic]
    cluster_P, paired = clusters(prompts, per_cluster), together >= 0
    replicas_a = replicas_a or replicas

    def arm(
        rng: np.random.Generator, prompt_P: np.ndarray, run_R: np.ndarray, noise: float
    ) -> np.ndarray:
        cell_RP = noise * rng.logistic(size=(len(run_R), prompts))
        answer_RP = (prompt_P + run_R[:, None] + cell_RP > 0).astype(np.int64)
        if garbage:
            bad_R = rng.random(len(run_R)) < garbage
            answer_RP[bad_R] = rng.integers(0, 2, (bad_R.sum(), prompts))
        if missing:
            answer_RP[rng.random(answer_RP.shape) < missing] = -1
        return marks(answer_RP) if statistic == "change" else answer_RP

    def world(rng: np.random.Generator) -> Sampled:
        prompt_P = np.repeat(rng.normal(mean, prompt_sd, prompts // per_cluster), per_cluster)
        run_b, run_a = rng.standard_normal(replicas), rng.standard_normal(replicas_a)
        if paired:
            run_b = together * run_a + math.sqrt(1 - together**2) * run_b
        b_RP, a_RP = (
            arm(rng, prompt_P, calmer * run_sd * run_b, noise),
            arm(rng, prompt_P, run_sd * run_a, 1.0),
        )
        return POPULATIONS[statistic](b_RP, a_RP, cluster_P=cluster_P, paired=paired), truth

    return world


# -- prompt by prompt ----------------------------------------------------------------------------

BY_PROMPT = {"accuracy": accuracy_by_prompt, "disagreement": disagreement_by_prompt}


def called_different(
    figure: str,
    rng: np.random.Generator,
    replicas: int,
    prompts: int,
    changed: int,
    run_sd=0.7,
    paired=False,
    level=0.95,
) -> np.ndarray:
    """Of which prompts the report says that two populations differ, where they do on the first
    `changed` ones.

    Runs shift all prompts together; of a pair both arms do so alike. On a changed prompt runs of b
    flip coins where 98 % of a are right.
    """
    logit_P = rng.normal(2.0, 2.0, prompts)
    run_R1 = run_sd * rng.standard_normal((2, replicas, 1))
    run_R1[1] = run_R1[0] if paired else run_R1[1]
    logit_ARP = logit_P + run_R1
    logit_ARP[0, :, :changed], logit_ARP[1, :, :changed] = 0.0, 4.0
    b_RP, a_RP = (rng.random((2, replicas, prompts)) < expit(logit_ARP)).astype(np.int64)
    return benjamini_hochberg(BY_PROMPT[figure](b_RP, a_RP, paired=paired).p_P) < 1 - level


def no_change_world(figure: str, replicas: int, prompts: int, run_sd=0.7, paired=False) -> World:
    """Two populations of one recipe. The estimate: at least so many prompts differ; the truth:
    none.

    So it holds where none is called different, which the method of Benjamini and Hochberg promises
    in 95 % of the samples.
    """

    def world(rng: np.random.Generator) -> Sampled:
        found = float(called_different(figure, rng, replicas, prompts, 0, run_sd, paired).sum())
        return Estimate(
            found, found, float(prompts), 0.95, replicas, prompts, "Benjamini-Hochberg"
        ), 0.0

    return world


# -- spreads of scores ---------------------------------------------------------------------------


def scores(rng: np.random.Generator, n: int, draw: str) -> np.ndarray:
    """Mean 0 and variance 1. `failures`: one run in twenty lies six standard deviations of the
    others below.
    """
    if draw == "t5":
        return rng.standard_t(5, n) / math.sqrt(5 / 3)
    if draw == "failures":
        return (rng.standard_normal(n) - 6 * (rng.random(n) < 0.05) + 0.3) / math.sqrt(
            1 + 36 * 0.05 * 0.95
        )
    return rng.standard_normal(n)


def spread_change_world(
    statistic: str, replicas: int, draw="normal", paired=False, variance=0.5
) -> World:
    """`ratio` of variances, or `difference` of standard deviations, of two arms of scores."""

    def world(rng: np.random.Generator) -> Sampled:
        a, b = scores(rng, replicas, draw), scores(rng, replicas, draw)
        if paired:
            b = 0.6 * a + 0.8 * b
        b = math.sqrt(variance) * b
        if statistic == "ratio":
            return variance_ratio(b, a, paired=paired), variance
        return sd_difference(b, a, paired=paired), math.sqrt(variance) - 1

    return world


def distribution_change_world(replicas: int, prompts=200, run_sd=0.7, run_sd_b=0.3) -> World:
    truth_b, truth_a = (
        population_truths(0.6, 0.2, sd, 0.0)["distribution_variance"] for sd in (run_sd_b, run_sd)
    )

    def world(rng: np.random.Generator) -> Sampled:
        a_RP, logit_P = population(rng, replicas, prompts, run_sd=run_sd)
        run_R1 = run_sd_b * rng.standard_normal((replicas, 1))
        b_RP = rng.random((replicas, prompts)) < 1 / (1 + np.exp(-(logit_P + run_R1)))
        return distribution_variance_change(b_RP.astype(np.float64), marks(a_RP)), truth_b - truth_a

    return world


def relative_spread_world(replicas: int, draw="normal", gain=5.0) -> World:
    """Scores of mean `gain` and variance 1 against a base that scores 0."""
    return lambda rng: (relative_spread(gain + scores(rng, replicas, draw), 0.0), 1 / gain)


# -- subsets of K --------------------------------------------------------------------------------


def subset_world(replicas: int, k=4, draw="normal") -> World:
    return lambda rng: (subset_variance(scores(rng, replicas, draw), k), 1 / k)


def partition_world(statistic: str, replicas: int, k=4, partitions: int | None = None) -> World:
    """A linear statistic of k replicas, `mean`, and two that are not: the `square` of a mean about
    1/2, the `best` of k uniform scores.
    """
    truth = {"mean": 1 / k, "square": 1 / k + 2 / k**2, "best": k / ((k + 1) ** 2 * (k + 2))}[
        statistic
    ]

    def world(rng: np.random.Generator) -> Sampled:
        score_R = (
            rng.random(replicas) if statistic == "best" else rng.standard_normal(replicas) + 0.5
        )
        of = {"mean": np.mean, "square": lambda x: np.mean(x) ** 2, "best": np.max}[statistic]
        return partition_variance(
            lambda row_K: float(of(score_R[row_K])), replicas, k, rng, partitions=partitions
        ), truth

    return world


# -- laws in K -----------------------------------------------------------------------------------


def sizes_up_to(largest: int) -> list[int]:
    return [2**i for i in range(largest.bit_length())]


def power_law(size_K: np.ndarray, weight_K: np.ndarray, value_K: np.ndarray) -> float:
    """The exponent of the weighted straight line through the logarithms."""
    return -float(np.polyfit(np.log(size_K), np.log(value_K), 1, w=np.sqrt(weight_K))[0])


def nearest_law(
    term_K: np.ndarray, group_K: np.ndarray, value_K: np.ndarray
) -> tuple[float, float]:
    """Floor and slope of value = floor + slope * term, by least squares with weights of (groups -
    1) / fitted^2.
    """
    fitted_K = value_K
    slope = floor = math.nan
    for _ in range(50):
        slope, floor = np.polyfit(term_K, value_K, 1, w=np.sqrt(group_K - 1) / fitted_K)
        fitted_K = np.maximum(floor + slope * term_K, value_K / 4)
    return float(floor), float(slope)


def at(fit: ScalingFit, k: int, level: float = 0.95) -> Estimate:
    """The curve at k as an estimate."""
    found = [point for point in fit.curve if point.k == k]
    ends = (found[0].value, found[0].low, found[0].high) if found else (None, None, None)
    shape = (level, fit.exponent.n_replicas, fit.exponent.n_prompts, "curve")
    return Estimate(*ends, *shape, fit.exponent.conclusive, None, "")


def floor_world(
    field: str, replicas: int, largest=16, floor=0.05, draw="normal", beyond=4
) -> World:
    """Score of a group = mean of its members + noise of variance `floor`. field: of the fit, or
    `curve`, at beyond * largest.
    """
    sizes = sizes_up_to(largest)
    size_K = np.array(sizes)
    exponent = power_law(size_K, replicas // largest * largest / size_K, floor + 1 / size_K)
    truth = {
        "floor": floor,
        "slope": 1.0,
        "exponent": exponent,
        "curve": floor + 1 / (beyond * largest),
    }[field]

    def world(rng: np.random.Generator) -> Sampled:
        score_R = scores(rng, replicas, draw)
        groups = {k: score_R[: replicas // k * k].reshape(-1, k).mean(axis=1) for k in sizes}
        fit = fit_floor(
            {
                k: score_G + math.sqrt(floor) * rng.standard_normal(len(score_G))
                for k, score_G in groups.items()
            }
        )
        return at(fit, beyond * largest) if field == "curve" else getattr(fit, field), truth

    return world


@cache
def group_disagreement(mean: float, prompt_sd: float, run_sd: float, k: int, flip: float) -> float:
    prompt_P, weight_P = prompt_grid(mean, prompt_sd)
    p_P = positive_mean(prompt_P, run_sd, k, 0.0)
    p_P = p_P + flip * (1 - 2 * p_P)
    return float(weight_P @ (2 * p_P * (1 - p_P)))


def scaling_world(
    field: str,
    replicas: int,
    prompts=200,
    run_sd=0.7,
    largest=8,
    mean=2.0,
    prompt_sd=4.0,
    flip=0.0,
    per_cluster=1,
    beyond=1,
) -> World:
    """field: of the fit, or `curve`, at beyond * largest. The floor is that of the law K^-1/2,
    which is not quite exact for small K.
    """
    sizes = sizes_up_to(largest)
    size_K, half = np.array(sizes), max(2, (len(sizes) + 1) // 2)
    d_K = np.array([group_disagreement(mean, prompt_sd, run_sd, k, flip) for k in sizes])
    floor, slope = nearest_law(size_K**-0.5, replicas // largest * largest / size_K, d_K)
    exponents = [
        power_law(size_K[some], 1 / size_K[some], d_K[some])
        for some in (slice(None), slice(half), slice(-half, None))
    ]
    truth = {
        "exponent": exponents[0],
        "flattening": exponents[1] - exponents[2],
        "curve": group_disagreement(mean, prompt_sd, run_sd, beyond * largest, flip),
        "floor": floor,
        "slope": slope,
    }[field]
    cluster_P = clusters(prompts, per_cluster)

    def world(rng: np.random.Generator) -> Sampled:
        latent_RP = latents(rng, replicas, prompts, mean, prompt_sd, run_sd, per_cluster)
        answers = {k: combine(latent_RP[: replicas // k * k], k, "mean") for k in sizes}
        if flip:
            answers = {
                k: np.where(rng.random(answer_GP.shape) < flip, 1 - answer_GP, answer_GP)
                for k, answer_GP in answers.items()
            }
        fit = fit_disagreement(answers, cluster_P=cluster_P)
        found = at(fit, beyond * largest) if field == "curve" else getattr(fit, field)
        assert isinstance(found, Estimate)
        return found, truth

    return world
