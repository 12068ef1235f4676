"""Worlds of the statistics of one suite: disagreement, accuracy and its spread, a mitigation
against single replicas, variances, failures.

Two kinds of population. `population`: p ~ Beta for each prompt (or cluster of prompts), and a
normal effect of the run on the logit of every answer. `latents`: margin = prompt + run + noise of
the cell, answer = its sign, so that groups can average margins or vote.

Flaws come one by one: failed runs that are marked (`failed`: no answers), failed runs that nobody
marked (`garbage`: coin flips), cells without an answer (`missing`), clusters of equal prompts
(`per_cluster`). A run that fails unmarked is a run, in the truth too. Truths are integrals,
computed to many digits.
"""

import math
from functools import cache

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from toolkit.statistics import (
    accuracy,
    accuracy_change,
    accuracy_effect_size,
    accuracy_spread,
    disagreement,
    disagreement_difference,
    disagreement_ratio,
    effect_size,
    failure_rate,
    model_accuracy,
    variance_ratio,
)
from worlds import Sampled, World

# Expectation over a standard normal run effect.
NODE_S, WEIGHT_S = np.polynomial.hermite_e.hermegauss(31)
WEIGHT_S = WEIGHT_S / WEIGHT_S.sum()

# -- one population -------------------------------------------------------------------------------


def logits(rng: np.random.Generator, a: float, b: float, n: int) -> np.ndarray:
    # ln of a ratio of gammas, in a form that survives tiny shapes: gamma(a) = gamma(a + 1) *
    # u^(1/a)
    def log_gamma_draw(shape: float) -> np.ndarray:
        return np.log(rng.gamma(shape + 1, size=n)) + np.log(rng.random(n)) / shape

    return np.clip(log_gamma_draw(a) - log_gamma_draw(b), -500, 500)


def population(
    rng,
    replicas,
    prompts,
    a=0.6,
    b=0.2,
    run_sd=0.7,
    per_cluster=1,
    missing=0.0,
    failed=0.0,
    garbage=0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """answer_RP of 0 and 1, -1 = missing, and the logit of a 1 per prompt."""
    logit_P = np.repeat(logits(rng, a, b, prompts // per_cluster), per_cluster)
    run_R1 = run_sd * rng.standard_normal((replicas, 1))
    answer_RP = (rng.random((replicas, prompts)) < expit(logit_P + run_R1)).astype(np.int64)
    if garbage:
        bad_R = rng.random(replicas) < garbage
        answer_RP[bad_R] = rng.integers(0, 2, (bad_R.sum(), prompts))
    if missing:
        answer_RP[rng.random(answer_RP.shape) < missing] = -1
    if failed:
        answer_RP[_some(rng, replicas, failed)] = -1
    return answer_RP, logit_P


def _some(rng: np.random.Generator, n: int, rate: float) -> np.ndarray:
    """Which of n runs failed; at least two are left to compare."""
    failed_R = rng.random(n) < rate
    failed_R[:2] = False
    return failed_R


def clusters(prompts: int, per_cluster: int) -> np.ndarray | None:
    return np.arange(prompts) // per_cluster if per_cluster > 1 else None


def marks(answer_RP: np.ndarray) -> np.ndarray:
    """1 right, 0 wrong, nan missing: the answer 1 is the right one."""
    return np.where(answer_RP < 0, np.nan, answer_RP)


@cache
def beta_grid(a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of p ~ Beta(a, b) and their weights. Of a smooth density with exponential tails the
    trapezoid rule is exact to rounding.
    """
    logit_P = np.arange(-40 / a - 40, 40 / b + 40, 0.25)
    weight_P = np.exp(
        a * (logit_P - math.log(a / b)) - (a + b) * (np.logaddexp(0, logit_P) - math.log1p(a / b))
    )
    return logit_P, weight_P / weight_P.sum()


def right_SP(logit_P: np.ndarray, run_sd: float) -> np.ndarray:
    """P(answer 1) of a run at each node of the run effect."""
    return expit(logit_P + run_sd * NODE_S[:, None])


@cache
def population_truths(a: float, b: float, run_sd: float, garbage: float) -> dict[str, float]:
    logit_P, weight_P = beta_grid(a, b)
    p_SP = right_SP(logit_P, run_sd)
    p_P = (1 - garbage) * (WEIGHT_S @ p_SP) + garbage / 2
    accuracy_S = p_SP @ weight_P
    mean = float(weight_P @ p_P)
    square = (1 - garbage) * float(WEIGHT_S @ accuracy_S**2) + garbage / 4
    return {
        "disagreement": float(weight_P @ (2 * p_P * (1 - p_P))),
        "accuracy": mean,
        "distribution_variance": max(0.0, square - mean**2),
    }


def disagreement_world(
    replicas, prompts, a=0.6, b=0.2, run_sd=0.7, per_cluster=1, garbage=0.0, **flaws
) -> World:
    truth = population_truths(a, b, run_sd, garbage)["disagreement"]
    cluster_P = clusters(prompts, per_cluster)

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, _ = population(
            rng, replicas, prompts, a, b, run_sd, per_cluster, garbage=garbage, **flaws
        )
        return disagreement(answer_RP, cluster_P=cluster_P), truth

    return world


def these_prompts_world(
    replicas, prompts, a=0.6, b=0.2, run_sd=0.7, per_cluster=1, garbage=0.0, **flaws
) -> World:
    """Disagreement on the very prompts that are asked: each sample has prompts of its own, and
    their own truth.
    """

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, logit_P = population(
            rng, replicas, prompts, a, b, run_sd, per_cluster, garbage=garbage, **flaws
        )
        p_P = (1 - garbage) * (WEIGHT_S @ right_SP(logit_P, run_sd)) + garbage / 2
        found = disagreement(
            answer_RP, cluster_P=clusters(prompts, per_cluster), fresh_prompts=False
        )
        return found, float(np.mean(2 * p_P * (1 - p_P)))

    return world


def accuracy_world(
    replicas, prompts, a=0.6, b=0.2, run_sd=0.7, per_cluster=1, garbage=0.0, **flaws
) -> World:
    truth = population_truths(a, b, run_sd, garbage)["accuracy"]
    cluster_P = clusters(prompts, per_cluster)

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, _ = population(
            rng, replicas, prompts, a, b, run_sd, per_cluster, garbage=garbage, **flaws
        )
        return accuracy(marks(answer_RP), cluster_P=cluster_P), truth

    return world


def spread_world(
    field, replicas, prompts, a=0.6, b=0.2, run_sd=0.7, per_cluster=1, garbage=0.0, **flaws
) -> World:
    """Spread of the accuracy. `distribution_variance` speaks of fresh prompts; `sd` and `excess` of
    the prompts that were drawn.
    """
    variance = population_truths(a, b, run_sd, garbage)["distribution_variance"]
    cluster_P = clusters(prompts, per_cluster)

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, logit_P = population(
            rng, replicas, prompts, a, b, run_sd, per_cluster, garbage=garbage, **flaws
        )
        truth = (
            variance
            if field == "distribution_variance"
            else spread_on_suite(logit_P, run_sd, garbage)[field]
        )
        return getattr(accuracy_spread(marks(answer_RP), cluster_P=cluster_P), field), truth

    return world


def spread_on_suite(logit_P: np.ndarray, run_sd: float, garbage: float) -> dict[str, float]:
    """Var of a run's accuracy on these prompts = mean noise of its answers + variance of its
    expected accuracy.
    """
    logit_P, times_P = np.unique(logit_P, return_counts=True)
    n = times_P.sum()
    p_SP = right_SP(logit_P, run_sd)
    accuracy_S = p_SP @ times_P / n
    noise = (1 - garbage) * float(
        WEIGHT_S @ ((p_SP * (1 - p_SP)) @ times_P)
    ) / n**2 + garbage / 4 / n
    mean = (1 - garbage) * float(WEIGHT_S @ accuracy_S) + garbage / 2
    variance = noise + (1 - garbage) * float(WEIGHT_S @ accuracy_S**2) + garbage / 4 - mean**2
    p_P = (1 - garbage) * (WEIGHT_S @ p_SP) + garbage / 2
    independent = float((p_P * (1 - p_P)) @ times_P) / n**2
    return {"sd": math.sqrt(variance), "excess": math.sqrt(variance / independent)}


def base_world(prompts, a=0.6, b=0.2, per_cluster=1) -> World:
    """The accuracy of the base, one fixed model, as the report prints it."""

    def world(rng: np.random.Generator) -> Sampled:
        logit_P = np.repeat(logits(rng, a, b, prompts // per_cluster), per_cluster)
        right_P = (rng.random(prompts) < expit(logit_P)).astype(np.float64)
        return model_accuracy(right_P, cluster_P=np.arange(prompts) // per_cluster), a / (a + b)

    return world


# -- replicas and the groups made of them --------------------------------------------------------


def latents(
    rng, replicas, prompts, mean, prompt_sd, run_sd, per_cluster=1, garbage=0.0
) -> np.ndarray:
    prompt_P = np.repeat(rng.normal(mean, prompt_sd, prompts // per_cluster), per_cluster)
    known_R1 = 1.0
    if garbage:
        known_R1 = (rng.random((replicas, 1)) >= garbage).astype(np.float64)
    return known_R1 * (prompt_P + run_sd * rng.standard_normal((replicas, 1))) + rng.logistic(
        size=(replicas, prompts)
    )


def combine(latent_RP: np.ndarray, k: int, how: str) -> np.ndarray:
    """Groups of k: the sign of the mean margin (weights averaged, logits averaged) or the majority
    of the answers (a tie is a 0).
    """
    latent_GKP = latent_RP.reshape(len(latent_RP) // k, k, -1)
    return (
        latent_GKP.mean(axis=1) > 0 if how == "mean" else (latent_GKP > 0).mean(axis=1) > 0.5
    ).astype(np.int64)


@cache
def group_truth(
    mean: float, prompt_sd: float, run_sd: float, k: int, how: str, garbage: float = 0.0
) -> dict[str, float]:
    """Given the prompt, runs are independent: so P(1) of a replica and of a group, prompt by
    prompt, say everything.
    """
    prompt_P = mean + prompt_sd * np.arange(-8, 8, 0.1 / max(prompt_sd, 1.0))
    weight_P = np.exp(-0.5 * ((prompt_P - mean) / prompt_sd) ** 2)
    weight_P /= weight_P.sum()
    one_P = positive_mean(prompt_P, run_sd, 1, garbage)
    group_P = (
        positive_mean(prompt_P, run_sd, k, garbage) if how == "mean" else binom.sf(k // 2, k, one_P)
    )
    d_a, d_b = (float(weight_P @ (2 * p_P * (1 - p_P))) for p_P in (one_P, group_P))
    right_a, right_b = float(weight_P @ one_P), float(weight_P @ group_P)
    return {
        "ratio": d_b / d_a,
        "difference": d_b - d_a,
        "change": right_b - right_a,
        "kept": right_b / right_a,
    }


def positive_mean(prompt_P: np.ndarray, run_sd: float, k: int, garbage: float) -> np.ndarray:
    """P(mean margin of k runs > 0) for each prompt, from its characteristic function (Gil-Pelaez
    1951).
    """
    step = 0.04
    t_T = step * (np.arange(int(12 * math.sqrt(k) / step)) + 0.5)
    s_T = t_T / k
    noise_T = np.pi * s_T / np.sinh(np.pi * s_T)  # of a logistic variable
    known_PT = np.exp(1j * prompt_P[:, None] * s_T - 0.5 * (run_sd * s_T) ** 2)
    mean_PT = (noise_T * ((1 - garbage) * known_PT + garbage)) ** k
    return np.clip(0.5 + step / np.pi * (mean_PT.imag / t_T).sum(axis=1), 0.0, 1.0)


CONTRASTS = {
    "ratio": disagreement_ratio,
    "difference": disagreement_difference,
    "change": accuracy_change,
    "kept": effect_size,
    "accuracy kept": accuracy_effect_size,
}


def group_world(
    statistic: str,
    groups,
    prompts=200,
    k=4,
    how="mean",
    mean=2.0,
    prompt_sd=4.0,
    run_sd=0.7,
    per_cluster=1,
    missing=0.0,
    failed=0.0,
    garbage=0.0,
) -> World:
    """The base answers 0 everywhere, which is always wrong: so the share of answers changed, and
    the accuracy, are P(1).

    `failed` groups have no answers; the replicas behind them do.
    """
    truths = group_truth(mean, prompt_sd, run_sd, k, how, garbage)
    truth = truths["kept" if statistic == "accuracy kept" else statistic]
    cluster_P = clusters(prompts, per_cluster)
    members = list(np.arange(groups * k).reshape(groups, k))

    def world(rng: np.random.Generator) -> Sampled:
        latent_RP = latents(rng, groups * k, prompts, mean, prompt_sd, run_sd, per_cluster, garbage)
        baseline_RP, mitigated_GP = (latent_RP > 0).astype(np.int64), combine(latent_RP, k, how)
        if missing:
            baseline_RP[rng.random(baseline_RP.shape) < missing] = -1
            mitigated_GP[rng.random(mitigated_GP.shape) < missing] = -1
        if failed:
            mitigated_GP[_some(rng, groups, failed)] = -1
        arguments: tuple = (mitigated_GP, baseline_RP)
        if statistic in ("change", "accuracy kept"):
            arguments = marks(mitigated_GP), marks(baseline_RP)
        if statistic in ("kept", "accuracy kept"):
            arguments += (np.zeros(prompts, dtype=np.int64),)
        return CONTRASTS[statistic](*arguments, members, cluster_P=cluster_P), truth

    return world


def contrast_world(statistic: str, replicas, prompts, k=4, **options) -> World:
    """As many disjoint groups of k as the replicas make; what is left over takes no part."""
    return group_world(statistic, replicas // k, prompts, k, **options)


def returning_world(
    statistic: str, groups, prompts, returning=0.01, often=1.0, per_cluster=1, k=4
) -> World:
    """Arms that are nearly equal: all replicas answer 1, and the base 0; on a share `returning` of
    the clusters of prompts a group answers as the base does, `often` of the time.
    """
    cluster_P = clusters(prompts, per_cluster)
    members = list(np.arange(groups * k).reshape(groups, k))
    lost = returning * often
    truth = {"change": -lost, "kept": 1 - lost, "accuracy kept": 1 - lost}[statistic]

    def world(rng: np.random.Generator) -> Sampled:
        back_P = np.repeat(rng.random(prompts // per_cluster) < returning, per_cluster)
        mitigated_GP = 1 - (back_P & (rng.random((groups, prompts)) < often)).astype(np.int64)
        arguments: tuple = (mitigated_GP, np.ones((groups * k, prompts), dtype=np.int64))
        if statistic in ("change", "accuracy kept"):
            arguments = tuple(map(marks, arguments))
        if statistic in ("kept", "accuracy kept"):
            arguments += (np.zeros(prompts, dtype=np.int64),)
        return CONTRASTS[statistic](*arguments, members, cluster_P=cluster_P), truth

    return world


# -- single numbers ------------------------------------------------------------------------------


def variance_world(replicas: int, draw: str, paired=False, failed=0.0) -> World:
    """Scores of two arms, the mitigation's with half the variance. `failures`: 5 % of the runs lie
    6 standard deviations below.
    """

    def sample(rng: np.random.Generator) -> np.ndarray:
        if draw == "t5":
            return rng.standard_t(5, replicas)
        score_R = rng.standard_normal(replicas)
        return score_R - 6 * (rng.random(replicas) < 0.05) if draw == "failures" else score_R

    def world(rng: np.random.Generator) -> Sampled:
        score_a, score_b = sample(rng), sample(rng)
        if paired:
            score_b = 0.6 * score_a + 0.8 * score_b
        if failed:
            score_b[_some(rng, replicas, failed)] = np.nan
        return variance_ratio(math.sqrt(0.5) * score_b, score_a, paired=paired), 0.5

    return world


def failure_world(replicas: int, rate: float) -> World:
    return lambda rng: (failure_rate(int(rng.binomial(replicas, rate)), replicas), rate)
