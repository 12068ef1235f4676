"""Worlds of planning and stopping: intervals looked at after every pair of replicas, and sizes
planned from a pilot that are then used.

`anytime_world` is a world as all others: an estimate and its truth, here D on the prompts of the
sample. The planned sizes are no
intervals: their functions return what was got of what was planned for.
"""

import math

import numpy as np
from scipy.special import expit

from toolkit.statistics import Estimate, disagreement, disagreement_ratio, variance_ratio
from toolkit.statistics.planning import power as pw
from toolkit.statistics.planning.sequential import ANYTIME, confidence_sequence, pair_disagreement
from worlds import Sampled, World
from worlds.core import NODE_S, WEIGHT_S, combine, latents, population

LOOKS = ("always", "narrow", "anywhere")


def anytime_world(
    replicas, prompts, run_sd=0.7, look="always", half_width=0.03, a=0.6, b=0.2, failed=0.0
) -> World:
    """The confidence sequence over disjoint pairs, reported when somebody looks.

    look: `always` = the first moment at which it is wrong, if there is one; `narrow` = as soon as
    it is half_width narrow; `anywhere` = at a random moment.
    """

    def world(rng: np.random.Generator) -> Sampled:
        answer_RP, logit_P = population(rng, replicas, prompts, a, b, run_sd, failed=failed)
        p_P = WEIGHT_S @ expit(logit_P + run_sd * NODE_S[:, None])
        truth = float(np.mean(2 * p_P * (1 - p_P)))
        x_J = pair_disagreement(answer_RP)
        low_J, high_J = confidence_sequence(x_J)
        j = _moment(rng, low_J, high_J, truth, look, half_width)
        ends = float(low_J[j]), float(high_J[j])
        return Estimate(
            float(x_J[: j + 1].mean()), *ends, 0.95, 2 * (j + 1), prompts, ANYTIME
        ), truth

    return world


def mean_world(mean, sd, values, look="always", half_width=0.03) -> World:
    """The same for Beta-distributed values of a given mean and standard deviation; sd = None: 0 or
    1, the widest there is.
    """

    def world(rng: np.random.Generator) -> Sampled:
        if sd is None:
            x_T = (rng.random(values) < mean).astype(np.float64)
        else:
            size = mean * (1 - mean) / sd**2 - 1
            x_T = rng.beta(mean * size, (1 - mean) * size, values)
        low_T, high_T = confidence_sequence(x_T)
        t = _moment(rng, low_T, high_T, mean, look, half_width)
        return Estimate(
            float(x_T[: t + 1].mean()),
            float(low_T[t]),
            float(high_T[t]),
            0.95,
            2 * (t + 1),
            0,
            ANYTIME,
        ), mean

    return world


def _moment(
    rng: np.random.Generator,
    low_T: np.ndarray,
    high_T: np.ndarray,
    truth: float,
    look: str,
    half_width: float,
) -> int:
    if look == "anywhere":
        return int(rng.integers(len(low_T)))
    reached_T = (
        (high_T - low_T) / 2 <= half_width
        if look == "narrow"
        else (low_T > truth) | (truth > high_T)
    )
    return int(np.argmax(reached_T)) if reached_T.any() else len(low_T) - 1


def got_half_width(
    rng: np.random.Generator, pilot: int, prompts: int, half_width: float, a=0.6, b=0.2, run_sd=0.7
) -> float | None:
    """Half-width that the planned replicas give, as a share of what was planned; None where the
    pilot asks for more prompts.
    """
    spread = pw.pilot_spread(population(rng, pilot, prompts, a, b, run_sd)[0])
    size = pw.replicas_for_half_width(spread, half_width) if spread else None
    if size is None or size.replicas is None or size.prompts != prompts:
        return None
    found = disagreement(population(rng, size.replicas, prompts, a, b, run_sd)[0])
    return (
        (found.high - found.low) / 2 / half_width
        if found.low is not None and found.high is not None
        else None
    )


def got_power(
    rng: np.random.Generator,
    ratio: float,
    pilot: int,
    prompts: int,
    k: int,
    how="mean",
    mean=2.0,
    prompt_sd=4.0,
    run_sd=0.7,
    trials=25,
) -> float | None:
    """Share of populations of the planned size in which the mitigation, whose true ratio is given,
    is found to be more stable.
    """

    def draw(groups: int) -> tuple[np.ndarray, np.ndarray, list]:
        latent_RP = latents(rng, groups * k, prompts, mean, prompt_sd, run_sd)
        return (
            combine(latent_RP, k, how),
            (latent_RP > 0).astype(np.int64),
            list(np.arange(groups * k).reshape(groups, k)),
        )

    parts = pw.ratio_spread(*draw(pilot))
    size = pw.runs_for_disagreement_ratio(parts, ratio, k) if parts else None
    if size is None or size.replicas is None or size.prompts != prompts:
        return None
    ends = [disagreement_ratio(*draw(size.replicas // k)).high for _ in range(trials)]
    return float(np.mean([high is not None and high < 1 for high in ends]))


def got_power_of_variances(
    rng: np.random.Generator, ratio: float, draw="normal", trials=200
) -> float:
    """The same for a ratio of variances of a score."""
    kurtosis = {"normal": 3.0, "laplace": 6.0}[draw]
    runs = pw.runs_for_ratio(ratio, kurtosis=kurtosis)
    sample = {"normal": rng.standard_normal, "laplace": lambda n: rng.laplace(size=n)}[draw]
    ends = [
        variance_ratio(math.sqrt(ratio) * sample(runs), sample(runs)).high for _ in range(trials)
    ]
    return float(np.mean([high is not None and high < 1 for high in ends]))
