"""On which prompts do two populations of runs differ? One exact test a prompt, runs as the unit; to
be adjusted for their number.
"""

from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import as_answers, as_marks, blocks, filled_rows, marks, same_prompts
from toolkit.statistics.disagreement.two_runs import prompt_disagreement
from toolkit.statistics.prompt_averages import prompt_means


@dataclass(frozen=True)
class PromptTests:
    """b_P, a_P: the figure of each arm, nan where there is none. p_P: two-sided p-value of "no
    difference", nan where none was tested.
    """

    b_P: np.ndarray
    a_P: np.ndarray
    p_P: np.ndarray


def disagreement_by_prompt(
    b_RP: np.ndarray, a_RP: np.ndarray, *, paired: bool = False
) -> PromptTests:
    """On which prompts do two runs of b differ more, or less, often than two runs of a?

    Tested per prompt, for these prompts: the probability that two fresh runs differ is the same in
    both arms. Pairs of runs that have a run in common are not independent, so the disjoint pairs
    (0, 1), (2, 3), ... are counted: given the prompt each differs with just that probability. Hence
    Fisher's exact test of two shares; with paired=True (run j of both arms shares its seeds)
    McNemar's exact test over these pairs. Where disagreement is rare that costs little: nearly all
    of the variance of a mean over all pairs comes from single runs, and each run is in one pair.
    b_P and a_P are over all pairs, as in `prompt_disagreement`.

    b_RP, a_RP: codes of answers, encoded together, -1 = missing; a pair counts where both answered.
    Runs without any answer are passed over, with paired=True their partner too. Raises ValueError
    for other shapes.
    """
    b_RP, a_RP = as_answers(b_RP, "b_RP"), as_answers(a_RP, "a_RP")
    b_RP, a_RP = _alive(b_RP, a_RP, paired)
    n_prompts = b_RP.shape[1]
    if min(len(b_RP), len(a_RP)) < 2:
        return PromptTests(*np.full((3, n_prompts), np.nan))
    places = blocks(len(b_RP) + len(a_RP), n_prompts)
    counts = [
        _counts(_pairs_differ(b_RP[:, block_P]), _pairs_differ(a_RP[:, block_P]), paired)
        for block_P in places
    ]
    p_P = _p_values(np.concatenate(counts, axis=1), paired)
    return PromptTests(prompt_disagreement(b_RP), prompt_disagreement(a_RP), p_P)


def accuracy_by_prompt(b_RP: np.ndarray, a_RP: np.ndarray, *, paired: bool = False) -> PromptTests:
    """On which prompts are runs of b more, or less, often right than runs of a?

    Tested per prompt, for these prompts: the probability that a fresh run is right is the same in
    both arms. Fisher's exact test over runs; with paired=True McNemar's over pairs of runs. b_RP,
    a_RP: 1 right, 0 wrong, nan (or -1 in integers) missing; otherwise as in
    `disagreement_by_prompt`.
    """
    b_RP, a_RP = as_marks(b_RP, "b_RP"), as_marks(a_RP, "a_RP")
    b_RP, a_RP = _alive(b_RP, a_RP, paired)
    b_P, a_P, counts = np.empty(b_RP.shape[1]), np.empty(b_RP.shape[1]), []
    for block_P in blocks(len(b_RP) + len(a_RP), b_RP.shape[1]):
        mark_b_RP, mark_a_RP = marks(b_RP[:, block_P]), marks(a_RP[:, block_P])
        b_P[block_P], a_P[block_P] = prompt_means(mark_b_RP, [])[0], prompt_means(mark_a_RP, [])[0]
        counts.append(_counts(mark_b_RP, mark_a_RP, paired))
    return PromptTests(b_P, a_P, _p_values(np.concatenate(counts, axis=1), paired))


def _alive(b_RP: np.ndarray, a_RP: np.ndarray, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    same_prompts(b_RP, a_RP)
    if paired and len(b_RP) != len(a_RP):
        raise ValueError(
            f"paired arms need a run each for every pair, not {len(b_RP)} and {len(a_RP)}"
        )
    row_b_R, row_a_R = filled_rows(b_RP), filled_rows(a_RP)
    if paired:
        row_b_R = row_a_R = np.intersect1d(row_b_R, row_a_R)
    return tuple(
        x if len(rows) == len(x) else x[rows] for x, rows in ((b_RP, row_b_R), (a_RP, row_a_R))
    )  # type: ignore[return-value]


def _pairs_differ(answer_RP: np.ndarray) -> np.ndarray:
    """1 where the runs of a disjoint pair differ, 0 where they agree, nan where one has no answer;
    [pair, prompt].
    """
    one_JP, other_JP = answer_RP[: len(answer_RP) // 2 * 2 : 2], answer_RP[1::2]
    return np.where(
        (one_JP >= 0) & (other_JP >= 0), (one_JP != other_JP).astype(np.float64), np.nan
    )


def _counts(b_JP: np.ndarray, a_JP: np.ndarray, paired: bool) -> np.ndarray:
    """What a test needs of 1, 0 and nan (marks between 0 and 1 count as 1 from 0.5 on): [count,
    prompt].

    How many are known in b and in a, and how many of them are 1; paired: known in both, 1 in b
    alone, 1 in a alone.
    """
    known_b, known_a = np.isfinite(b_JP), np.isfinite(a_JP)
    if paired:
        both = known_b & known_a
        columns = both, both & (b_JP >= 0.5) & (a_JP < 0.5), both & (b_JP < 0.5) & (a_JP >= 0.5)
    else:
        columns = known_b, known_a, b_JP >= 0.5, a_JP >= 0.5
    return np.stack([np.sum(column, axis=0) for column in columns])


def _p_values(counts: np.ndarray, paired: bool) -> np.ndarray:
    """Exact p-values of "as often 1 in b as in a"."""
    if paired:
        from scipy.stats import binom

        known_P, more_P, less_P = counts
        mcnemar_P = np.minimum(1.0, 2 * binom.cdf(np.minimum(more_P, less_P), more_P + less_P, 0.5))
        return np.where(known_P > 0, mcnemar_P, np.nan)
    known_b, known_a, ones_b, ones_a = counts
    margins, prompt_P = np.unique(
        np.stack([known_b, known_a, ones_b + ones_a], axis=1), axis=0, return_inverse=True
    )
    p_P = np.full(len(ones_b), np.nan)
    for m, (n_b, n_a, ones) in enumerate(margins.tolist()):
        if n_b and n_a:
            rows = prompt_P.reshape(-1) == m
            p_P[rows] = _fisher(n_b, n_a, ones)[ones_b[rows] - max(0, ones - n_a)]
    return p_P


def _fisher(n_b: int, n_a: int, ones: int) -> np.ndarray:
    """Fisher's exact test of every table with these margins, by how many of the `ones` are in b,
    from the fewest that can be.

    All tables that are no likelier than the one at hand, as in `scipy.stats.fisher_exact`, which
    takes a table at a time.
    """
    from scipy.stats import hypergeom

    likely_X = hypergeom.pmf(
        np.arange(max(0, ones - n_a), min(n_b, ones) + 1), n_b + n_a, ones, n_b
    )
    order = np.argsort(likely_X)
    sums = np.concatenate([[0.0], np.cumsum(likely_X[order])])
    return np.minimum(
        1.0, sums[np.searchsorted(likely_X[order], likely_X * (1 + 1e-7), side="right")]
    )
