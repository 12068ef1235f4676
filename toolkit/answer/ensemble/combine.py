"""The table of ensembles, and the rules on log-probabilities: the same on cached scores and during
generation.

Independent replicas: the variance of a linear statistic (a mean probability, a mean logit) falls as
1/K, the rate of flipped answers does not. Which mean is used matters, so each has its name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from toolkit.answer.predict import Combine


def _mixed(log_GkNV: Tensor, weight_Gk: Tensor) -> Tensor:
    return (log_GkNV + weight_Gk.log()[:, :, None, None]).logsumexp(1)


def _summed(x_GkNV: Tensor, weight_Gk: Tensor) -> Tensor:
    return torch.einsum("gknv,gk->gnv", x_GkNV, weight_Gk)


def _ballots(log_GkNV: Tensor, weight_Gk: Tensor) -> Tensor:
    votes_GkNV = torch.nn.functional.one_hot(log_GkNV.argmax(-1), log_GkNV.shape[-1]).to(log_GkNV)
    return torch.stack([_summed(votes_GkNV, weight_Gk), _summed(log_GkNV.exp(), weight_Gk)])


def _counted(ballots_2GNV: Tensor, K: int) -> Tensor:
    share_GNV, p_GNV = ballots_2GNV
    return ((share_GNV * K + p_GNV / 2) / (K + 0.5)).log()


def _middle(log_GKNV: Tensor, K: int) -> Tensor:
    return log_GKNV.sort(1).values[:, (K - 1) // 2 : K // 2 + 1].mean(1).log_softmax(-1)


probabilities = Combine(_mixed, torch.logaddexp, lambda log_GNV, K: log_GNV)
"""Mixture: log of the mean probability. Its log loss is at most log K above the best member's."""

logits = Combine(_summed, torch.add, lambda log_GNV, K: log_GNV.log_softmax(-1))
"""Product of experts: the mean log-probability, normalised again (softmax of the mean logits)."""

token_vote = Combine(_ballots, torch.add, _counted)
"""Share of the members whose first choice a token is; the mean probability breaks ties.

Half a vote is spread by the mixture, so that a tie is decided and no log is infinite: log((votes +
p/2) / (K + 1/2)).
"""

median = Combine(
    lambda log_GkNV, weight_Gk: log_GkNV,
    lambda first, second: torch.cat([first, second], 1),
    _middle,
)
"""Median of the log-probabilities, normalised again: no member can drag it far. The only rule that
keeps all K distributions.
"""


class Rule(NamedTuple):
    """rule: what it makes of log-probabilities; None: decided over whole answers, after every
    member has answered.

    needs: what of the members it needs. What needs `tokens` can be scored afterwards from the
    log-probabilities of given tokens alone (`ensemble_scores`), what needs `distributions` only
    while the models run.
    """

    rule: Combine | None
    needs: str
    paper: str


ENSEMBLES = {
    "probabilities": Rule(probabilities, "tokens", "https://arxiv.org/abs/1612.01474"),
    "logits": Rule(logits, "distributions", "https://doi.org/10.1162/089976602760128018"),
    "token-vote": Rule(token_vote, "tokens", "https://doi.org/10.1109/34.58871"),
    "median": Rule(median, "distributions", "https://doi.org/10.1109/34.667881"),
    "gated": Rule(probabilities, "distributions", "https://arxiv.org/abs/2012.01988"),
    "vote": Rule(None, "answers", "https://arxiv.org/abs/2203.11171"),
    "mbr": Rule(None, "answers", "https://aclanthology.org/N04-1022"),
}
"""Name -> rule. `gated`: the first member answers alone where it is sure, the mean probability
where it is not (`evaluate_unit`).
"""
