"""On which prompts do two populations of runs differ? One exact test a prompt, runs as the unit; to be adjusted for their number."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import as_answers, as_marks, blocks, filled_rows, marks, same_prompts
from toolkit.statistics.disagreement import prompt_disagreement


@dataclass(frozen=True)
class PromptTests:
    """b_P, a_P: the figure of each arm, nan where there is none. p_P: two-sided p-value of "no difference", nan where none was tested."""

    b_P: np.ndarray
    a_P: np.ndarray
    p_P: np.ndarray


def disagreement_by_prompt(b_RP: np.ndarray, a_RP: np.ndarray, *, paired: bool = False) -> PromptTests:
    """On which prompts do two runs of b differ more, or less, often than two runs of a?

    Tested per prompt, for these prompts: the probability that two fresh runs differ is the same in both arms. Pairs of runs
    that have a run in common are not independent, so the disjoint pairs (0, 1), (2, 3), ... are counted: given the prompt each
    differs with just that probability. Hence Fisher's exact test of two shares; with paired=True (run j of both arms shares its seeds)
    McNemar's exact test over these pairs. Where disagreement is rare that costs little: nearly all of the variance of a mean over all
    pairs comes from single runs, and each run is in one pair. b_P and a_P are over all pairs, as in `prompt_disagreement`.

    b_RP, a_RP: codes of answers, encoded together, -1 = missing; a pair counts where both answered. Runs without any answer are passed
    over, with paired=True their partner too. Raises ValueError for other shapes.
    """
    b_RP, a_RP = as_answers(b_RP, "b_RP"), as_answers(a_RP, "a_RP")
    b_RP, a_RP = _alive(b_RP, a_RP, paired)
    n_prompts = b_RP.shape[1]
    if min(len(b_RP), len(a_RP)) < 2:
        return PromptTests(*np.full((3, n_prompts), np.nan))
    p_P = np.full(n_prompts, np.nan)
    for at in blocks(len(b_RP) + len(a_RP), n_prompts):
        p_P[at] = _p_values(_pairs_differ(b_RP[:, at]), _pairs_differ(a_RP[:, at]), paired)
    return PromptTests(prompt_disagreement(b_RP), prompt_disagreement(a_RP), p_P)


def accuracy_by_prompt(b_RP: np.ndarray, a_RP: np.ndarray, *, paired: bool = False) -> PromptTests:
    """On which prompts are runs of b more, or less, often right than runs of a?

    Tested per prompt, for these prompts: the probability that a fresh run is right is the same in both arms. Fisher's exact test over runs;
    with paired=True McNemar's over pairs of runs. b_RP, a_RP: 1 right, 0 wrong, nan (or -1 in integers) missing; otherwise as in
    `disagreement_by_prompt`.
    """
    b_RP, a_RP = as_marks(b_RP, "b_RP"), as_marks(a_RP, "a_RP")
    b_RP, a_RP = _alive(b_RP, a_RP, paired)
    found = np.full((3, b_RP.shape[1]), np.nan)
    for at in blocks(len(b_RP) + len(a_RP), b_RP.shape[1]):
        mark_b_RP, mark_a_RP = marks(b_RP[:, at]), marks(a_RP[:, at])
        for row, mark_RP in enumerate((mark_b_RP, mark_a_RP)):
            known_RP = np.isfinite(mark_RP)
            n_P = known_RP.sum(axis=0)
            found[row, at] = np.where(n_P > 0, np.where(known_RP, mark_RP, 0.0).sum(axis=0) / np.maximum(n_P, 1), np.nan)
        found[2, at] = _p_values(mark_b_RP, mark_a_RP, paired)
    return PromptTests(*found)


def _alive(b_RP: np.ndarray, a_RP: np.ndarray, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    same_prompts(b_RP, a_RP)
    if paired and len(b_RP) != len(a_RP):
        raise ValueError(f"paired arms need a run each for every pair, not {len(b_RP)} and {len(a_RP)}")
    row_b_R, row_a_R = filled_rows(b_RP), filled_rows(a_RP)
    if paired:
        row_b_R = row_a_R = np.intersect1d(row_b_R, row_a_R)
    return tuple(x if len(rows) == len(x) else x[rows] for x, rows in ((b_RP, row_b_R), (a_RP, row_a_R)))  # type: ignore[return-value]


def _pairs_differ(answer_RP: np.ndarray) -> np.ndarray:
    """1 where the runs of a disjoint pair differ, 0 where they agree, nan where one has no answer; [pair, prompt]."""
    one_JP, other_JP = answer_RP[: len(answer_RP) // 2 * 2 : 2], answer_RP[1::2]
    return np.where((one_JP >= 0) & (other_JP >= 0), (one_JP != other_JP).astype(np.float64), np.nan)


def _p_values(b_JP: np.ndarray, a_JP: np.ndarray, paired: bool) -> np.ndarray:
    """Exact p-values of "as often 1 in b as in a", from 1, 0 and nan; marks between 0 and 1 count as right from 0.5 on."""
    if paired:
        known_JP = np.isfinite(b_JP) & np.isfinite(a_JP)
        more_P = np.sum(known_JP & (b_JP >= 0.5) & (a_JP < 0.5), axis=0)
        less_P = np.sum(known_JP & (b_JP < 0.5) & (a_JP >= 0.5), axis=0)
        return np.where(known_JP.any(axis=0), _mcnemar(more_P, less_P), np.nan)
    counts = []
    for x_JP in (b_JP, a_JP):
        one_P = np.sum(x_JP >= 0.5, axis=0)
        counts += [one_P, np.sum(np.isfinite(x_JP), axis=0) - one_P]
    table_P4, prompt_P = np.unique(np.stack(counts, axis=1), axis=0, return_inverse=True)
    return np.array(list(_fisher(table_P4)))[prompt_P.reshape(-1)]


def _mcnemar(more_P: np.ndarray, less_P: np.ndarray) -> np.ndarray:
    from scipy.stats import binom

    return np.minimum(1.0, 2 * binom.cdf(np.minimum(more_P, less_P), more_P + less_P, 0.5))


def _fisher(tables: np.ndarray) -> Iterable[float]:
    """Each row: ones and zeros of b, ones and zeros of a."""
    from scipy.stats import fisher_exact

    for ones_b, zeros_b, ones_a, zeros_a in tables.tolist():
        known = ones_b + zeros_b and ones_a + zeros_a
        yield fisher_exact([[ones_b, zeros_b], [ones_a, zeros_a]]).pvalue if known else np.nan  # type: ignore[attr-defined]
