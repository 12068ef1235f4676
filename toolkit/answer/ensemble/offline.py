"""Ensembles of any members from what each replica thinks of fixed continuations: one evaluation of
N replicas serves every K and group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from toolkit.answer.ensemble.combine import ENSEMBLES


def ensemble_scores(
    log_RNT: np.ndarray,
    members_GK: Sequence[Sequence[int]],
    rule: str = "probabilities",
    *,
    best_RNT: np.ndarray | None = None,
    weight_R: Sequence[float] | None = None,
) -> np.ndarray:
    """Log-probability [G, N] of N continuations by every group, equal to rounding to what the
    ensemble says when it runs.

    log_RNT: log-probability of each token by each replica, nan behind the end
    (`read_token_scores`); N may be several axes, such as [R, P, C, T] for C choices each, of which
    `.argmax(-1)` is the group's. members_GK: rows of log_RNT. best_RNT: whether the token is the
    replica's first choice, for token-vote. weight_R: of each replica, for a weighted mean.

    A mean probability needs the probability of the token that is there and of no other; so does a
    vote, but for who voted. A mean of logits is normalised over all other tokens and a median too:
    they raise ValueError, the models have to run. Of sequence log-probabilities ([R, N, 1]) this is
    another thing, a mixture of sequences: a member drawn once for each answer, not at each token.
    """
    if rule not in ENSEMBLES or ENSEMBLES[rule].needs != "tokens":
        can = ", ".join(
            name for name, ensemble_rule in ENSEMBLES.items() if ensemble_rule.needs == "tokens"
        )
        raise ValueError(
            f"{rule!r} cannot be had from log-probabilities of given tokens; {can} can, "
            "others need the models to run"
        )
    if rule == "token-vote" and best_RNT is None:
        raise ValueError(
            "token-vote needs best_RNT: whether each token is the replica's first choice"
        )
    votes_R = np.ones(len(log_RNT)) if weight_R is None else np.asarray(weight_R, dtype=np.float64)
    flags_RNT = np.zeros(log_RNT.shape, dtype=bool) if best_RNT is None else np.asarray(best_RNT)
    scores = []
    for members in members_GK:
        indices, K = list(members), len(members)
        weight_K = (votes_R[indices] / votes_R[indices].sum()).reshape(
            -1, *[1] * (log_RNT.ndim - 1)
        )
        with np.errstate(divide="ignore"):
            log_NT = np.asarray(logsumexp(log_RNT[indices].astype(np.float64), axis=0, b=weight_K))
        if rule == "token-vote":
            log_NT = np.log(
                ((weight_K * flags_RNT[indices]).sum(0) * K + np.exp(log_NT) / 2) / (K + 0.5)
            )
        there_NT = ~np.isnan(log_RNT[indices[0]])
        scores.append(np.where(there_NT.any(-1), np.where(there_NT, log_NT, 0).sum(-1), math.nan))
    return np.array(scores)
