"""Rules over whole answers: no model runs, only what the members answered is looked at."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from toolkit.statistics.texts.edit_distance import levenshtein

Similarity = Callable[[Sequence[str]], np.ndarray]
"""distinct texts -> [U, U] from 0 to 1: how good the row's text is where the column's was meant"""


def exact(texts_U: Sequence[str]) -> np.ndarray:
    """1 for the same text, else 0."""
    return np.eye(len(texts_U))


def edit(texts_U: Sequence[str]) -> np.ndarray:
    """1 - Levenshtein distance in characters / length of the longer text; of the first LONGEST
    characters, for it takes their square.
    """
    code_U = [np.array([ord(c) for c in text[:LONGEST]], dtype=np.int32) for text in texts_U]
    pairs = list(combinations(range(len(texts_U)), 2))
    alike_UU = np.eye(len(texts_U))
    for (a, b), distance in zip(
        pairs, levenshtein([(code_U[a], code_U[b]) for a, b in pairs]), strict=True
    ):
        alike_UU[a, b] = alike_UU[b, a] = 1 - distance / max(len(code_U[a]), len(code_U[b]))
    return alike_UU


def chrf(texts_U: Sequence[str]) -> np.ndarray:
    """chrF2 of sacrebleu (Popovic 2015): F-score of character n-grams. Raises ValueError where
    sacrebleu is not installed.
    """
    try:
        metric = importlib.import_module("sacrebleu.metrics").CHRF()
    except ImportError:
        raise ValueError(
            "similarity chrf needs sacrebleu; pip install 'ftk[chrf]', or take `similarity: edit`"
        ) from None
    score = [
        [metric.sentence_score(text, [meant]).score / 100 for meant in texts_U] for text in texts_U
    ]
    alike_UU = np.array(score)
    np.fill_diagonal(alike_UU, 1)  # the empty text is itself, too
    return alike_UU


LONGEST = 4_000
"""characters of an answer that `edit` compares"""
SIMILARITIES: dict[str, Similarity] = {"exact": exact, "edit": edit, "chrf": chrf}


def mbr(
    answers_K: Sequence[str],
    logprobs_K: Sequence[float],
    weights_K: Sequence[float] | None = None,
    *,
    similarity: Similarity = edit,
) -> int:
    """Member whose answer has the least Bayes risk: the highest weighted similarity to the answers
    of all (Kumar & Byrne 2004).

    Ties: the highest mean log-probability of those who gave the answer, then the text. Of those who
    gave the winning answer the most confident one speaks. The order of the members does not matter,
    for sums are rounded once. Weights that are all 0 count as equal.
    """
    givers: dict[str, list[int]] = {}
    for k, answer in enumerate(answers_K):
        givers.setdefault(answer, []).append(k)
    weights_K = weights_K if weights_K is not None and any(weights_K) else [1.0] * len(answers_K)
    texts_U = sorted(givers)
    support_U = np.array([math.fsum(weights_K[k] for k in givers[text]) for text in texts_U])
    gain = {
        text: math.fsum(alike_U * support_U)
        for text, alike_U in zip(texts_U, similarity(texts_U), strict=True)
    }
    sure = {text: math.fsum(logprobs_K[k] for k in ks) / len(ks) for text, ks in givers.items()}
    best = min(texts_U, key=lambda text: (-gain[text], -sure[text], text))
    return max(givers[best], key=lambda k: logprobs_K[k])


def vote(
    answers_K: Sequence[str], logprobs_K: Sequence[float], weights_K: Sequence[float] | None = None
) -> int:
    """Member whose answer wins the (weighted) majority vote over whole answers: `mbr` where only
    the same text is similar.
    """
    return mbr(answers_K, logprobs_K, weights_K, similarity=exact)
