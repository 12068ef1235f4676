"""Populations of known truth for the behaviour metrics: agreement, scores, distributions, texts.

A world draws one sample (replicas and prompts both anew) and returns the estimate with the true
value. Replicas have an effect `run_sd` of their own that shifts all prompts; `per_cluster` prompts
share one difficulty; `failed` is the share of runs without any answer; `garbage` the share that
answers at random and is not marked.
"""

import math
from functools import cache

import numpy as np
from scipy.special import expit, ndtr

from toolkit.statistics.disagreement.agreement import (
    ambiguity,
    fleiss_kappa,
    negative_flips,
    total_agreement,
)
from toolkit.statistics.disagreement.distributions import (
    flip_calibration,
    population_jsd,
    predicted_flip,
    total_variation,
)
from toolkit.statistics.scores.intraclass import icc
from toolkit.statistics.scores.loss_decomposition import brier_decomposition, log_loss_decomposition
from toolkit.statistics.scores.mean_and_sd import score_sd
from toolkit.statistics.texts.divergence import first_divergence
from toolkit.statistics.texts.edit_distance import edit_distance
from worlds import Sampled, World
from worlds.core import NODE_S, WEIGHT_S, beta_grid, clusters, logits

# behind the one truth that is simulated: its error is far below any interval's width
TRUTH_PROMPTS = 400_000
PRIOR_V = np.array([0.5, 0.25, 0.15, 0.1])  # how common each answer is as the right one


@cache
def right(a: float, b: float, run_sd: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For a fine grid of prompts: P(a typical run is right), P(a fresh run is right), and the
    weights of the prompts.
    """
    logit_P, weight_P = beta_grid(a, b)
    return (
        expit(logit_P),
        sum(
            (
                weight * expit(logit_P + run_sd * node)
                for node, weight in zip(NODE_S, WEIGHT_S, strict=True)
            ),
            np.zeros(()),
        ),
        weight_P,
    )


def some(rng: np.random.Generator, replicas: int, share: float, spared: int = 2) -> np.ndarray:
    """Rows that fail; a few never do, so that there is something to compare."""
    return np.concatenate([np.zeros(spared, bool), rng.random(replicas - spared) < share])


def answers(
    rng, replicas, prompts, run_sd, per_cluster, failed, missing, garbage, a, b
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """answer_RP, right_P (the right answer) and logit_P. A wrong answer is any of the others."""
    n_answers = len(PRIOR_V)
    logit_P = np.repeat(logits(rng, a, b, prompts // per_cluster), per_cluster)
    right_P = rng.choice(n_answers, prompts, p=PRIOR_V)
    wrong_RP = (right_P + rng.integers(1, n_answers, (replicas, prompts))) % n_answers
    answer_RP = np.where(
        rng.random((replicas, prompts))
        < expit(logit_P + run_sd * rng.standard_normal((replicas, 1))),
        right_P,
        wrong_RP,
    )
    garbage_R = some(rng, replicas, garbage, 0)
    answer_RP[garbage_R] = rng.integers(0, n_answers, (int(garbage_R.sum()), prompts))
    answer_RP[rng.random(answer_RP.shape) < missing] = -1
    answer_RP[some(rng, replicas, failed)] = -1
    return answer_RP, right_P, logit_P


def kappa_world(
    replicas, prompts, run_sd, per_cluster=1, failed=0.0, missing=0.0, garbage=0.0, a=0.6, b=0.2
) -> World:
    _, p_P, weight_P = right(a, b, run_sd)
    p_P = (1 - garbage) * p_P + garbage / len(PRIOR_V)
    others = len(PRIOR_V) - 1
    same = float(weight_P @ (p_P**2 + (1 - p_P) ** 2 / others))
    mean = float(weight_P @ p_P)
    share_V = PRIOR_V * mean + (1 - PRIOR_V) * (1 - mean) / others
    truth = 1 - (1 - same) / (1 - float(share_V @ share_V))

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, _, _ = answers(
            rng, replicas, prompts, run_sd, per_cluster, failed, missing, garbage, a, b
        )
        return fleiss_kappa(answer_RP, cluster_P=clusters(prompts, per_cluster)), truth

    return world


def total_agreement_world(
    replicas,
    prompts,
    run_sd,
    per_cluster=1,
    failed=0.0,
    missing=0.0,
    garbage=0.0,
    of=3,
    a=0.6,
    b=0.2,
) -> World:
    _, p_P, weight_P = right(a, b, run_sd)
    p_P = (1 - garbage) * p_P + garbage / len(PRIOR_V)
    others = len(PRIOR_V) - 1
    truth = float(weight_P @ (p_P**of + others * ((1 - p_P) / others) ** of))

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, _, _ = answers(
            rng, replicas, prompts, run_sd, per_cluster, failed, missing, garbage, a, b
        )
        return total_agreement(answer_RP, of=of, cluster_P=clusters(prompts, per_cluster)), truth

    return world


def ambiguity_world(
    replicas, prompts, run_sd, per_cluster=1, failed=0.0, missing=0.0, of=3, a=0.6, b=0.2
) -> World:
    """Against a reference model of typical quality."""
    q_P, p_P, weight_P = right(a, b, run_sd)
    others = len(PRIOR_V) - 1
    truth = 1 - float(weight_P @ (q_P * p_P**of + (1 - q_P) * ((1 - p_P) / others) ** of))

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, right_P, logit_P = answers(
            rng, replicas, prompts, run_sd, per_cluster, failed, missing, 0.0, a, b
        )
        wrong_P = (right_P + rng.integers(1, others + 1, prompts)) % (others + 1)
        reference_P = np.where(rng.random(prompts) < expit(logit_P), right_P, wrong_P)
        return ambiguity(
            answer_RP, reference_P, of=of, cluster_P=clusters(prompts, per_cluster)
        ), truth

    return world


def negative_flips_world(
    replicas, prompts, run_sd, per_cluster=1, failed=0.0, missing=0.0, multi=False, a=0.6, b=0.2
) -> World:
    q_P, p_P, weight_P = right(a, b, run_sd)
    others = len(PRIOR_V) - 1
    truth = float(weight_P @ (q_P * (1 - p_P) + multi * (1 - q_P) * (1 - p_P) * (1 - 1 / others)))

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, right_P, logit_P = answers(
            rng, replicas, prompts, run_sd, per_cluster, failed, missing, 0.0, a, b
        )
        wrong_P = (right_P + rng.integers(1, others + 1, prompts)) % (others + 1)
        old_P = np.where(rng.random(prompts) < expit(logit_P), right_P, wrong_P)
        correct_RP = np.where(answer_RP < 0, np.nan, answer_RP == right_P)
        both = {"answer_RP": answer_RP, "reference_answer_P": old_P} if multi else {}
        return negative_flips(
            correct_RP,
            (old_P == right_P).astype(float),
            cluster_P=clusters(prompts, per_cluster),
            **both,
        ), truth

    return world


# -- numeric scores: prompt + run + noise of the cell --------------------------------------------


def scores(
    rng, replicas, prompts, run_sd, per_cluster, failed, missing, garbage, noise_sd, uneven, draw
) -> tuple[np.ndarray, np.ndarray]:
    """score_RP and the noise's sd per prompt. uneven: sd of its logarithm over prompts. garbage
    runs lie 6 lower.
    """
    n = prompts // per_cluster
    prompt_P = np.repeat(
        rng.standard_normal(n) if draw == "normal" else rng.exponential(size=n), per_cluster
    )
    # E noise^2 = noise_sd^2
    noise_P = np.repeat(noise_sd * np.exp(uneven * rng.standard_normal(n) - uneven**2), per_cluster)
    run_R1 = (
        run_sd * rng.standard_normal((replicas, 1)) - 6 * some(rng, replicas, garbage, 0)[:, None]
    )
    score_RP = prompt_P + run_R1 + noise_P * rng.standard_normal((replicas, prompts))
    if missing:
        score_RP[rng.random(score_RP.shape) < missing] = np.nan
    if failed:
        score_RP[some(rng, replicas, failed, 3)] = np.nan
    return score_RP, noise_P


def score_sd_world(
    replicas,
    prompts,
    run_sd,
    per_cluster=1,
    failed=0.0,
    missing=0.0,
    garbage=0.0,
    field="sd",
    noise_sd=0.7,
    uneven=0.0,
    draw="normal",
) -> World:
    """field: `sd`, which speaks of the prompts that were drawn, or `within_prompt_sd`, which speaks
    of fresh ones.
    """
    run = run_sd**2 + 36 * garbage * (1 - garbage)

    def world(rng: np.random.Generator) -> Sampled:
        score_RP, noise_P = scores(
            rng,
            replicas,
            prompts,
            run_sd,
            per_cluster,
            failed,
            missing,
            garbage,
            noise_sd,
            uneven,
            draw,
        )
        own = noise_sd**2 if field == "within_prompt_sd" else float(np.mean(noise_P**2)) / prompts
        return getattr(
            score_sd(score_RP, cluster_P=clusters(prompts, per_cluster)), field
        ), math.sqrt(run + own)

    return world


def icc_world(
    replicas,
    prompts,
    run_sd,
    per_cluster=1,
    failed=0.0,
    missing=0.0,
    form="A,1",
    interval="jackknife",
    noise_sd=0.7,
    uneven=0.0,
    draw="normal",
) -> World:
    """Missing cells cost whole prompts. The variance between prompts is 1."""
    rest = noise_sd**2 + (0.0 if form[0] == "C" else run_sd**2)

    def world(rng: np.random.Generator) -> Sampled:
        score_RP, _ = scores(
            rng,
            replicas,
            prompts,
            run_sd,
            per_cluster,
            failed,
            missing,
            0.0,
            noise_sd,
            uneven,
            draw,
        )
        estimate = icc(score_RP, form, interval=interval, cluster_P=clusters(prompts, per_cluster))
        return estimate, 1 / (1 + (rest / estimate.n_replicas if form[2] == "k" else rest))

    return world


# -- distributions over two values: the log-odds of the first are prompt + run + noise of the cell


@cache
def soft_truths(mean: float, prompt_sd: float, noise_sd: float, garbage: float) -> dict[str, float]:
    """From two independent runs on every prompt of a fine grid; a garbage run says even odds."""
    prompt_P = mean + prompt_sd * np.arange(-8, 8, 0.05 / max(prompt_sd, 1.0))
    weight_P = np.exp(-0.5 * ((prompt_P - mean) / prompt_sd) ** 2)
    weight_P /= weight_P.sum()
    logit_PS = np.concatenate(
        [prompt_P[:, None] + noise_sd * NODE_S, np.zeros((len(prompt_P), 1))], axis=1
    )
    weight_S = np.append((1 - garbage) * WEIGHT_S, garbage)
    odds_PS = expit(logit_PS)
    mean_P, centre_P = odds_PS @ weight_S, logit_PS @ weight_S
    truth_P = expit(prompt_P)
    # Of two runs that are no garbage, E |g(X) - g(Y)| = 2 * integral of g' F (1 - F): F the normal
    # distribution, g the probability.
    z_Z = np.arange(-8, 8, 0.02)
    logit_PZ = prompt_P[:, None] + noise_sd * z_Z
    tv_P = (
        (1 - garbage) ** 2
        * 2
        * 0.02
        * noise_sd
        * ((expit(logit_PZ) * expit(-logit_PZ)) @ (ndtr(z_Z) * ndtr(-z_Z)))
    )
    tv_P += 2 * garbage * (1 - garbage) * (np.abs(odds_PS[:, :-1] - 0.5) @ WEIGHT_S)
    own = float(weight_P @ (np.logaddexp(0, logit_PS) @ weight_S - np.logaddexp(0, centre_P)))
    log_loss = float(weight_P @ (np.logaddexp(0, logit_PS) @ weight_S - truth_P * centre_P))
    brier = float(weight_P @ (2 * (odds_PS**2 @ weight_S - 2 * truth_P * mean_P + truth_P)))
    spread = float(weight_P @ (2 * ((odds_PS**2) @ weight_S - mean_P**2)))
    return {
        "total_variation": float(weight_P @ tv_P),
        "population_jsd": float(weight_P @ (entropy(mean_P) - entropy(odds_PS) @ weight_S)),
        "log_loss.loss": log_loss,
        "log_loss.bias": log_loss - own,
        "log_loss.variance": own,
        "brier.loss": brier,
        "brier.bias": brier - spread,
        "brier.variance": spread,
    }


def entropy(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-300, 1.0)
    q = np.clip(1 - p, 1e-300, 1.0)
    return -p * np.log(p) - q * np.log(q)


def log_odds(
    rng, replicas, prompts, run_sd, per_cluster, failed, missing, garbage, mean, prompt_sd, noise_sd
) -> tuple[np.ndarray, np.ndarray]:
    """logit_RP, nan = missing, and the prompts' own."""
    prompt_P = np.repeat(rng.normal(mean, prompt_sd, prompts // per_cluster), per_cluster)
    logit_RP = (
        prompt_P
        + run_sd * rng.standard_normal((replicas, 1))
        + noise_sd * rng.standard_normal((replicas, prompts))
    )
    logit_RP[some(rng, replicas, garbage, 0)] = 0.0
    if missing:
        logit_RP[rng.random(logit_RP.shape) < missing] = np.nan
    if failed:
        logit_RP[some(rng, replicas, failed)] = np.nan
    return logit_RP, prompt_P


def decomposition_world(
    replicas,
    prompts,
    run_sd,
    per_cluster=1,
    failed=0.0,
    missing=0.0,
    garbage=0.0,
    field="log_loss.variance",
    mean=2.0,
    prompt_sd=3.0,
    noise_sd=0.5,
) -> World:
    """field: `log_loss` or `brier`, and the part."""
    truth = soft_truths(mean, prompt_sd, math.hypot(run_sd, noise_sd), garbage)[field]
    loss, part = field.split(".")

    def world(rng: np.random.Generator) -> Sampled:
        logit_RP, prompt_P = log_odds(
            rng,
            replicas,
            prompts,
            run_sd,
            per_cluster,
            failed,
            missing,
            garbage,
            mean,
            prompt_sd,
            noise_sd,
        )
        truth_P = (rng.random(prompts) >= expit(prompt_P)).astype(np.int64)
        cluster_P = clusters(prompts, per_cluster)
        if loss == "brier":
            found = brier_decomposition(
                np.stack([expit(logit_RP), expit(-logit_RP)], axis=2), truth_P, cluster_P=cluster_P
            )
        else:
            with np.errstate(invalid="ignore"):  # nan = missing
                log_RPV = -np.stack([np.logaddexp(0, -logit_RP), np.logaddexp(0, logit_RP)], axis=2)
            found = log_loss_decomposition(log_RPV, truth_P, cluster_P=cluster_P)
        return getattr(found, part), truth

    return world


def distribution_world(
    replicas,
    prompts,
    run_sd,
    per_cluster=1,
    failed=0.0,
    missing=0.0,
    garbage=0.0,
    figure="total_variation",
    mean=2.0,
    prompt_sd=3.0,
    noise_sd=0.5,
) -> World:
    """figure: `total_variation` or `population_jsd`."""
    truth = soft_truths(mean, prompt_sd, math.hypot(run_sd, noise_sd), garbage)[figure]
    statistic = {"total_variation": total_variation, "population_jsd": population_jsd}[figure]

    def world(rng: np.random.Generator) -> Sampled:
        logit_RP, _ = log_odds(
            rng,
            replicas,
            prompts,
            run_sd,
            per_cluster,
            failed,
            missing,
            garbage,
            mean,
            prompt_sd,
            noise_sd,
        )
        prob_RPV = np.stack([expit(logit_RP), expit(-logit_RP)], axis=2)
        return statistic(prob_RPV, cluster_P=clusters(prompts, per_cluster)), truth

    return world


@cache
def flip_truth(replicas: int, mean: float, prompt_sd: float, noise_sd: float) -> float:
    """What the predictions from N-1 runs say in the mean, less what happens."""
    rng, total = np.random.default_rng(7), 0.0
    others, blocks = replicas - 1, 20
    for _ in range(blocks):  # mean and variance of the others, drawn from their own distributions
        prompt_P = rng.normal(mean, prompt_sd, TRUTH_PROMPTS // blocks)
        mean_P = prompt_P + noise_sd / math.sqrt(others) * rng.standard_normal(len(prompt_P))
        sd_P = noise_sd * np.sqrt(rng.chisquare(others - 1, len(prompt_P)) / (others - 1))
        flips_P = ndtr(-np.sign(mean_P) * prompt_P / noise_sd)
        total += float(np.mean(predicted_flip(mean_P / sd_P, others) - flips_P)) / blocks
    return total


def flip_world(
    replicas, prompts, run_sd, per_cluster=1, missing=0.0, mean=2.0, prompt_sd=3.0, noise_sd=0.5
) -> World:
    truth = flip_truth(replicas, mean, prompt_sd, math.hypot(run_sd, noise_sd))

    def world(rng: np.random.Generator) -> Sampled:
        margin_RP, _ = log_odds(
            rng,
            replicas,
            prompts,
            run_sd,
            per_cluster,
            0.0,
            missing,
            0.0,
            mean,
            prompt_sd,
            noise_sd,
        )
        return flip_calibration(margin_RP, cluster_P=clusters(prompts, per_cluster)), truth

    return world


# -- texts: a run follows the common text until it leaves it for words of its own, with its own ch


@cache
def together(
    mean: float, prompt_sd: float, run_sd: float, garbage: float, longest: int
) -> np.ndarray:
    """S(0), S(1), ...: two runs are both still on the common text after t tokens. A garbage run
    leaves it at once.
    """
    prompt_P = mean + prompt_sd * np.arange(-8, 8, 0.05)
    weight_P = np.exp(-0.5 * ((prompt_P - mean) / prompt_sd) ** 2)
    stay_PS = expit(-(prompt_P[:, None] + run_sd * NODE_S))
    one_TP = np.array(
        [(1 - garbage * (t > 0)) * (stay_PS**t @ WEIGHT_S) for t in range(longest + 1)]
    )
    return one_TP**2 @ weight_P / weight_P.sum()


def parting_texts(
    rng,
    replicas,
    prompts,
    run_sd,
    per_cluster=1,
    failed=0.0,
    missing=0.0,
    garbage=0.0,
    lengths=(10, 31),
    mean=-4.0,
    prompt_sd=1.5,
) -> list[list[tuple | None]]:
    """Texts of numbers, [R][P]: the common text is 0, 1, 2, ...; what run r says of its own is 1000
    + r, to the prompt's length.
    """
    n = prompts // per_cluster
    prompt_P, length_P = (
        np.repeat(rng.normal(mean, prompt_sd, n), per_cluster),
        np.repeat(rng.integers(*lengths, n), per_cluster),
    )
    chance_RP = expit(prompt_P + run_sd * rng.standard_normal((replicas, 1)))
    chance_RP[some(rng, replicas, garbage, 0)] = 1.0
    leaves_RP = np.minimum(rng.geometric(chance_RP), length_P + 1)
    gone_RP = rng.random((replicas, prompts)) < missing
    gone_RP[some(rng, replicas, failed)] = True
    common = tuple(range(int(length_P.max())))
    return [
        [
            None if gone else common[: leave - 1] + (1000 + r,) * (length - leave + 1)
            for gone, leave, length in zip(gone_R, leave_R, length_P, strict=True)
        ]
        for r, (gone_R, leave_R) in enumerate(
            zip(gone_RP.tolist(), leaves_RP.tolist(), strict=True)
        )
    ]


def text_world(
    replicas,
    prompts,
    run_sd,
    per_cluster=1,
    failed=0.0,
    missing=0.0,
    garbage=0.0,
    figure="survival",
    at=10,
    pairs=2000,
    lengths=(10, 31),
    mean=-4.0,
    prompt_sd=1.5,
) -> World:
    """figure: `survival` at token `at`, the `median`, or `edit_distance`. Lengths are uniform in
    [first, last).
    """
    together_T = together(mean, prompt_sd, run_sd, garbage, lengths[1])
    # P(a text has t tokens)
    goes_on_T = np.clip((lengths[1] - np.arange(lengths[1] + 1)) / (lengths[1] - lengths[0]), 0, 1)
    # At the token after the last one equal texts end together, which is one more chance to part
    # that they do not take.
    survival_T = np.cumprod(
        1 - goes_on_T[1:] / goes_on_T[:-1] * (1 - together_T[1:] / together_T[:-1])
    )
    if figure == "survival":
        truth = float(survival_T[at - 1])
    elif figure == "median":
        truth = float(np.argmax(survival_T <= 0.5)) + 1
    else:  # nothing after the parting matches, so the distance is what is left of the text
        truth = float(
            np.mean([1 - together_T[1 : length + 1].mean() for length in range(*lengths)])
        )

    def world(rng: np.random.Generator) -> Sampled:
        texts = parting_texts(
            rng,
            replicas,
            prompts,
            run_sd,
            per_cluster,
            failed,
            missing,
            garbage,
            lengths,
            mean,
            prompt_sd,
        )
        cluster_P = clusters(prompts, per_cluster)
        if figure == "edit_distance":
            return edit_distance(texts, pairs=pairs, rng=rng, cluster_P=cluster_P), truth
        found = first_divergence(texts, at=(at,), cluster_P=cluster_P)
        return (found.median if figure == "median" else found.at[at]), truth

    return world
