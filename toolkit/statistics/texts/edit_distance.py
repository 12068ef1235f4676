"""How far apart the texts of two runs are. (Equal or not: `disagreement`.)"""

from collections.abc import Hashable, Sequence

import numpy as np

from toolkit.statistics.arrays import Clusters, as_clusters, as_level
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.prompt_averages import share_estimate
from toolkit.statistics.texts.tokens import Text, distinct_texts, outlying_runs, prompts_of_texts

# of the tables that are filled at a time: small enough for a cache, large enough for numpy
CELLS = 1 << 18


def edit_distance(
    texts: Sequence[Sequence[Text | None]],
    *,
    pairs: int = 2000,
    rng: np.random.Generator | None = None,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """How much of the longer text must be edited to turn the answer of one fresh run into that of
    another?

    Estimand: E Levenshtein(a, b) / max(|a|, |b|) for two fresh runs on a fresh prompt, from 0 to 1:
    insertions, deletions and substitutions of tokens (of characters, for strings); 0 for equal
    texts. Equal texts are compared once, whatever their number. A prompt with more than `pairs`
    pairs of different texts is sampled, by rng (needed only then): the replicas stand in a random
    ring and each is compared with its next neighbours, so that all take part in equally many pairs
    (a balanced incomplete U-statistic, Blom 1976). Resampled: replicas and clusters of prompts, as
    in `disagreement`, with its bounds near 0.

    texts: [R][P], None = missing. Conclusive: MIN_REPLICAS replicas. Cost: product of the lengths
    after the common beginning, per pair. Raises ValueError for ragged rows, fewer than two, pairs
    below 3, or if rng is needed and missing.
    """
    level = as_level(level)
    n_prompts = prompts_of_texts(texts)
    if pairs < 3:
        raise ValueError(f"pairs must be at least 3, not {pairs}")
    cluster_P = as_clusters(cluster_P, n_prompts)
    row_R = np.array(
        [r for r, row in enumerate(texts) if any(text is not None for text in row)], dtype=np.int64
    )
    value_P, left_RP = np.full(n_prompts, np.nan), np.full((len(row_R), n_prompts), np.nan)
    mean_RP, sampled = np.full((len(row_R), n_prompts), np.nan), 0
    for i in range(n_prompts):
        there_R, text_R, distinct = distinct_texts([texts[r][i] for r in row_R])
        n = len(there_R)
        if n < 2:
            continue
        if len(distinct) * (len(distinct) - 1) // 2 <= pairs:
            one_N, two_N = np.triu_indices(len(distinct), 1)
            apart_UU = np.zeros((len(distinct), len(distinct)))
            apart_UU[one_N, two_N] = apart_UU[two_N, one_N] = _normalised(distinct, one_N, two_N)
            sum_R, partners = (
                (apart_UU @ np.bincount(text_R, minlength=len(distinct)))[text_R],
                n - 1,
            )
        else:
            if rng is None:
                raise ValueError(
                    f"prompt {i} has more than {pairs} pairs of different texts: give a "
                    "generator to sample them"
                )
            sampled += 1
            ring_R = rng.permutation(n)[: min(n, pairs)]  # the others are missing here
            reach, n = min(pairs // len(ring_R), (len(ring_R) - 1) // 2), len(ring_R)
            there_R, text_R, partners = there_R[ring_R], text_R[ring_R], 2 * reach
            one_N = np.tile(np.arange(n), reach)
            two_N = (one_N + np.repeat(np.arange(1, reach + 1), n)) % n
            apart_N = _normalised(distinct, text_R[one_N], text_R[two_N])
            sum_R = np.bincount(one_N, weights=apart_N, minlength=n) + np.bincount(
                two_N, weights=apart_N, minlength=n
            )
        value_P[i] = sum_R.sum() / (n * partners)
        left_RP[:, i] = value_P[i]
        left_RP[there_R, i] = (sum_R.sum() - 2 * sum_R) / ((n - 2) * partners) if n > 2 else np.nan
        mean_RP[there_R, i] = sum_R / partners
    note = f"pairs were sampled on {sampled} prompts" if sampled else ""
    odd_R = row_R[outlying_runs(np.nansum(mean_RP, axis=1), np.isfinite(mean_RP).sum(axis=1))]
    return share_estimate(value_P, left_RP, cluster_P, level, odd_R, note=note)


def _normalised(distinct: Sequence[Text], one_N: np.ndarray, two_N: np.ndarray) -> np.ndarray:
    """Levenshtein distance over the length of the longer text, for pairs of texts given by number
    (0 for a text with itself).
    """
    code: dict[Hashable, int] = {}
    tokens = [
        np.array([code.setdefault(token, len(code)) for token in text], dtype=np.int32)
        for text in distinct
    ]
    length_U = np.array([len(text) for text in tokens])
    apart_N, differ_N = np.zeros(len(one_N)), np.flatnonzero(one_N != two_N)
    apart_N[differ_N] = levenshtein([(tokens[one_N[k]], tokens[two_N[k]]) for k in differ_N])
    return apart_N / np.maximum(np.maximum(length_U[one_N], length_U[two_N]), 1)


def levenshtein(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Fewest insertions, deletions and substitutions that turn one array of token codes (>= 0) into
    the other, for every pair.

    Wagner & Fischer 1974, row by row, for many pairs of similar length at once. A row is d_j = min
    over j' <= j of (what row above and diagonal allow at j') + (j - j'), so the chain of insertions
    is a running minimum of d_j - j.
    """
    tails = [_after_common_beginning(*sorted(pair, key=len)) for pair in pairs]
    distance_N = np.zeros(len(pairs), dtype=np.int64)
    order = sorted(range(len(tails)), key=lambda k: len(tails[k][1]), reverse=True)
    while order:
        some = order[: max(1, CELLS // (len(tails[order[0]][1]) + 1))]
        order = order[len(some) :]
        short_TN, short_N = _padded([tails[k][0] for k in some], -1)
        long_TN, long_N = _padded([tails[k][1] for k in some], -2)
        index_T1, all_N = np.arange(len(long_TN) + 1, dtype=np.int32)[:, None], np.arange(len(some))
        row_TN = np.repeat(index_T1, len(some), axis=1)
        found_N = long_N.copy()
        for i, token_N in enumerate(short_TN, start=1):
            next_TN = row_TN + 1
            np.minimum(next_TN[1:], row_TN[:-1] + (long_TN != token_N), out=next_TN[1:])
            next_TN -= index_T1
            np.minimum.accumulate(next_TN, axis=0, out=next_TN)
            next_TN += index_T1
            row_TN = next_TN
            found_N = np.where(short_N == i, row_TN[long_N, all_N], found_N)
        distance_N[some] = found_N
    return distance_N


def _after_common_beginning(one_T: np.ndarray, two_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    both = min(len(one_T), len(two_T))
    differ_T = one_T[:both] != two_T[:both]
    start = int(np.argmax(differ_T)) if differ_T.any() else both
    return one_T[start:], two_T[start:]


def _padded(tokens: Sequence[np.ndarray], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts as columns of one array, and their lengths."""
    length_N = np.array([len(text_T) for text_T in tokens])
    out_TN = np.full((int(length_N.max()), len(tokens)), filler, dtype=np.int32)
    for n, text_T in enumerate(tokens):
        out_TN[: len(text_T), n] = text_T
    return out_TN, length_N
