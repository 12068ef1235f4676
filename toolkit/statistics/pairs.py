"""Agreeing pairs of replicas, counted from how many replicas gave each answer: linear in the cells,
and how far single pairs lie apart.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import blocks

# 2^64 / golden ratio, odd: its multiples spread evenly (Knuth, TAOCP 3, 6.4)
HASH = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of replicas that answered prompt i.

    others_RP: how many other replicas gave the same answer as r (0 where r is missing); present_RP:
    where r answered. agreeing_P, all_P: ordered pairs that agree, and all of them.
    """

    others_RP: np.ndarray
    present_RP: np.ndarray
    agreeing_P: np.ndarray
    all_P: np.ndarray

    @property
    def d_P(self) -> np.ndarray:
        """Share of pairs that disagree; nan where fewer than two replicas answered."""
        return _share(self.agreeing_P, self.all_P)


def count_pairs(answer_RP: np.ndarray) -> Pairs:
    """How many other runs gave the same answer, for answer codes [R, P] (negative: none)."""
    present_RP = answer_RP >= 0
    others_RP = np.empty(answer_RP.shape, dtype=np.int32)
    for block_P in blocks(*answer_RP.shape):
        others_RP[:, block_P] = np.where(
            present_RP[:, block_P], _same_answer(answer_RP[:, block_P]) - 1, 0
        )
    n_P = present_RP.sum(axis=0)
    return Pairs(others_RP, present_RP, others_RP.sum(axis=0), n_P * (n_P - 1))


def leave_one_out(pairs: Pairs) -> np.ndarray:
    """d_RP: disagreement on every prompt without replica r. Who answers v takes 2 (k_v - 1)
    agreeing ordered pairs along.
    """
    left_RP = pairs.present_RP.sum(axis=0) - pairs.present_RP
    return _share(pairs.agreeing_P - 2 * pairs.others_RP, left_RP * (left_RP - 1))


PAIRS_OF = 100
"""Runs of which every pair is looked at; of more the first so many tell how much pairs vary."""


FEW_ANSWERS = 32
"""Different answers up to which equal ones are counted by products of matrices."""


class PairShares:
    """How far the pairs of runs differ from each other, from a table that comes in blocks of
    prompts.

    Leaving out runs shows to first order what they add to the error of a mean over pairs. Where
    half of the runs are of another kind, that is nothing at all: with three runs of six on either
    side every run that is left out leaves the same share. The error is then of second order, 2
    Var(pair) / n (n-1), the part of a U-statistic's variance that never vanishes (Hoeffding 1948).
    Where runs are alike it is little, the more so the more runs there are. It is added to the error
    of a disagreement; in a contrast the larger of the two counts, since both together cover too
    much where groups are few.
    """

    def __init__(self, n_runs: int) -> None:
        n = min(n_runs, PAIRS_OF)
        self.differing_RR, self.both_RR = np.zeros((n, n)), np.zeros((n, n))

    def add(self, answer_RP: np.ndarray) -> None:
        """Take in a block [R, P] of answer codes."""
        answer_RP = answer_RP[: len(self.both_RR)]
        present_RP = answer_RP >= 0
        counted_RP = present_RP.astype(np.float32)
        both_RR = counted_RP @ counted_RP.T
        self.both_RR += both_RR
        self.differing_RR += both_RR
        if answer_RP.max(initial=-1) < FEW_ANSWERS:
            for code in range(int(answer_RP.max(initial=-1)) + 1):
                gave_RP = (answer_RP == code).astype(np.float32)
                self.differing_RR -= gave_RP @ gave_RP.T
            return
        for row, answer_P in enumerate(answer_RP):
            self.differing_RR[row] -= np.sum((answer_RP == answer_P) & present_RP, axis=1)

    def shares(self) -> np.ndarray:
        """Share of prompts on which runs r and s differ, of those that both answered [r, s]; nan
        where there are none.
        """
        with np.errstate(invalid="ignore"):
            return np.where(self.both_RR > 0, self.differing_RR / self.both_RR, np.nan)

    def variance(self, units: int, sources: Mapping[str, np.ndarray] | None = None) -> float:
        """Second-order variance of the mean over pairs of `units` independent runs; 0 without a
        pair.

        sources: where runs share levels, the codes of `shared_sources`; only pairs that share none
        count.
        """
        share_RR = self.shares()
        fresh_RR = np.triu(np.isfinite(share_RR), 1)
        for code_R in (sources or {}).values():
            code_R = code_R[: len(fresh_RR)]
            fresh_RR &= code_R[:, None] != code_R
        return second_order(share_RR[fresh_RR], units)


def pair_variance(answer_RP: np.ndarray) -> float:
    """`PairShares.variance` of a table that is there as a whole, whose runs are independent."""
    shares = PairShares(len(answer_RP))
    shares.add(answer_RP)
    return shares.variance(len(answer_RP))


def second_order(pair_N: np.ndarray, units: int) -> float:
    """2 Var(pair) / n (n-1) of n units, from values of their pairs; 0 without a pair. See
    `PairShares`.
    """
    return 2 * float(pair_N.var()) / (units * (units - 1)) if len(pair_N) and units > 1 else 0.0


def between_groups(share_RR: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
    """Mean share of the pairs of runs of which one is of group g, the other of h, for all g < h."""
    return np.array([share_RR[np.ix_(g, h)].mean() for g, h in itertools.combinations(groups, 2)])


def leave_group_out(
    answer_RP: np.ndarray, pairs: Pairs, groups: Sequence[np.ndarray]
) -> np.ndarray:
    """d_GP: disagreement on every prompt without the replicas of group g.

    The pairs that go are each member's pairs with everybody, less the pairs inside the group, which
    that counts twice.
    """
    n_P = pairs.present_RP.sum(axis=0)
    d_GP = np.empty((len(groups), len(n_P)))
    for g, group in enumerate(groups):
        agreeing_P = (
            pairs.agreeing_P
            - 2 * pairs.others_RP[group].sum(axis=0)
            + count_pairs(answer_RP[group]).agreeing_P
        )
        left_P = n_P - pairs.present_RP[group].sum(axis=0)
        d_GP[g] = _share(agreeing_P, left_P * (left_P - 1))
    return d_GP


def _same_answer(answer_RP: np.ndarray) -> np.ndarray:
    """How many replicas gave the answer of (r, i) to prompt i, itself included."""
    n_prompts = answer_RP.shape[1]
    # missing cells count among themselves in slot 0; the caller ignores them
    n_codes = int(answer_RP.max(initial=-1)) + 2
    key_RP = (answer_RP.astype(np.int64) + 1) + n_codes * np.arange(n_prompts)
    if n_codes * n_prompts <= 8 * answer_RP.size + 1024:
        return np.bincount(key_RP.ravel(), minlength=n_codes * n_prompts)[key_RP]
    return _occurrences(key_RP.ravel()).reshape(key_RP.shape)


def _occurrences(key_N: np.ndarray) -> np.ndarray:
    """How often the key of every cell occurs, for keys too sparse to count in a table of them.

    Keys are counted in a table of hashed slots. Of the keys that share a slot one has it, and all
    its cells are done; the cells of the others take another round with another hash.
    """
    count_N, left_N = np.empty(len(key_N), dtype=np.int64), np.arange(len(key_N))
    bits = int(2 * len(key_N)).bit_length()
    holder_S = np.empty(1 << bits, dtype=np.int64)
    salt = HASH
    while len(left_N):
        slot_N = (
            (key_N[left_N].astype(np.uint64) * np.uint64(salt)) >> np.uint64(64 - bits)
        ).astype(np.int64)
        holder_S[slot_N] = key_N[left_N]
        holds_N = holder_S[slot_N] == key_N[left_N]
        done_N = slot_N[holds_N]
        count_N[left_N[holds_N]] = np.bincount(done_N)[done_N]
        left_N = left_N[~holds_N]
        salt = salt * HASH % 2**64
    return count_N


def _share(agreeing: np.ndarray, total: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, 1.0 - agreeing / total, np.nan)
