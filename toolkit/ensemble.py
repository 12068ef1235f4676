"""Ensembles: K replicas that answer as one. Rules on log-probabilities work on cached scores and during generation alike.

Independent replicas: the variance of a linear statistic (a mean probability, a mean logit) falls as 1/K, the rate of flipped answers does
not. Which mean is used matters, so each has its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


def probabilities(log_GKNV: Tensor) -> Tensor:
    """Mixture: log of the mean probability. Its log loss is at most log K above the best member's."""
    return log_GKNV.logsumexp(1) - math.log(log_GKNV.shape[1])


def logits(log_GKNV: Tensor) -> Tensor:
    """Product of experts: the mean log-probability, normalised again (softmax of the mean logits)."""
    return log_GKNV.mean(1).log_softmax(-1)


def token_vote(log_GKNV: Tensor) -> Tensor:
    """Share of the members whose first choice a token is; the mean probability breaks ties.

    Half a vote is spread by the mixture, so that a tie is decided and no log is infinite: log((votes + p/2) / (K + 1/2)).
    """
    import torch

    K, V = log_GKNV.shape[1], log_GKNV.shape[-1]
    votes = torch.nn.functional.one_hot(log_GKNV.argmax(-1), V).sum(1)
    return ((votes + probabilities(log_GKNV).exp() / 2) / (K + 0.5)).log()


def vote(answers_K: Sequence[str], logprobs_K: Sequence[float]) -> int:
    """Member whose answer wins the majority vote over whole answers: most votes, then the highest mean log-probability, then the text.

    Of those who gave the winning answer the most confident one speaks. The order of the members does not matter.
    """
    votes: dict[str, list[float]] = {}
    for answer, logprob in zip(answers_K, logprobs_K, strict=True):
        votes.setdefault(answer, []).append(logprob)
    best = min(votes, key=lambda a: (-len(votes[a]), -sum(sorted(votes[a])) / len(votes[a]), a))
    return max((k for k, a in enumerate(answers_K) if a == best), key=lambda k: logprobs_K[k])


class Ensemble(NamedTuple):
    rule: Callable[[Tensor], Tensor] | None  # None: decided over whole answers, after every member has answered
    paper: str


ENSEMBLES = {
    "probabilities": Ensemble(probabilities, "https://arxiv.org/abs/1612.01474"),
    "logits": Ensemble(logits, "https://doi.org/10.1162/089976602760128018"),
    "token-vote": Ensemble(token_vote, "https://doi.org/10.1109/34.58871"),
    "vote": Ensemble(None, "https://arxiv.org/abs/2203.11171"),
}
