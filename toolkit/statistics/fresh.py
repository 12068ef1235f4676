"""Which pairs of runs are two fresh runs: those that share no level of any source.

In a crossed design two runs may share an initial weight, in a nested one a teacher, in a repeated
one all seeds. Such a pair differs by less than two runs of the procedure do, and is no independent
sight of it. All that speaks of two runs asks here.

    shared_sources    of which sources some runs share a level, so that not every pair is fresh
    fresh_pairs       how often fresh pairs disagree, and the same without each level of each source
    independent_runs  a set of runs any two of which are fresh, for what needs a run as its unit
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from toolkit.statistics.pairs import count_pairs

Shared = tuple[str, ...]
"""The sources that two runs have in common."""


ByKind = dict[Shared, np.ndarray]


Levels = Mapping[str, np.ndarray | Sequence]
"""For each source the level of every run, any dtype."""


def shared_sources(levels: Levels, n_runs: int) -> dict[str, np.ndarray]:
    """Sources that vary and of which some runs share a level, as codes 0, 1, ... of every run;
    empty where all pairs are fresh.

    A source with one level for all runs is held: the procedure does not draw it. One with a level
    for every run is never shared. Raises ValueError for a source that does not name one level for
    each of n_runs runs.
    """
    coded = {name: codes(level_R, n_runs, name) for name, level_R in levels.items()}
    return {
        name: code_R
        for name, code_R in coded.items()
        if 0 < int(code_R.max(initial=0)) < n_runs - 1
    }


def independent_runs(levels: Levels, n_runs: int) -> np.ndarray:
    """Rows of a set of runs any two of which are fresh: no level of a source is there twice. All
    rows where nothing is shared.

    The first run with a level that is still free, in order; of two sources a matching of the most
    runs (Hopcroft & Karp 1973). Of three and more the set may not be the largest, but none could be
    added.
    """
    shared = list(shared_sources(levels, n_runs).values())
    if len(shared) == 2:
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching

        a_R, b_R = shared
        match_A = maximum_bipartite_matching(
            csr_array((np.ones(n_runs), (a_R, b_R))), perm_type="column"
        )
        first = {
            pair: row
            for row, pair in reversed(list(enumerate(zip(a_R.tolist(), b_R.tolist(), strict=True))))
        }
        return np.array(
            sorted(first[a, b] for a, b in enumerate(match_A.tolist()) if b >= 0), dtype=np.int64
        )
    taken: list[set[int]] = [set() for _ in shared]
    rows = []
    for row in range(n_runs):
        if not any(
            int(code_R[row]) in levels_taken
            for code_R, levels_taken in zip(shared, taken, strict=True)
        ):
            rows.append(row)
            for code_R, levels_taken in zip(shared, taken, strict=True):
                levels_taken.add(int(code_R[row]))
    return np.array(rows, dtype=np.int64)


def fresh_pairs(
    answer_RP: np.ndarray, sources: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Share of the fresh pairs of runs that answer each prompt differently: d_P, and for every
    source d_LP without each of its levels.

    sources: as `shared_sources` gives them, not empty. nan where no fresh pair answered. Linear in
    the cells.
    """
    value, *left = disagreement_by_kind(answer_RP, sources, sharing(sources))
    return value[()], [side[()] for side in left]


def codes(label_R: np.ndarray | Sequence, n_runs: int, name: str) -> np.ndarray:
    """Labels of any dtype as 0, 1, ..."""
    label_R = np.asarray(label_R)
    if label_R.shape != (n_runs,):
        raise ValueError(
            f"{name} must name one level for each of the {n_runs} runs, not shape {label_R.shape}"
        )
    return np.unique(label_R, return_inverse=True)[1]


def subsets(names: Shared) -> list[Shared]:
    """Small ones first."""
    return [s for size in range(len(names) + 1) for s in itertools.combinations(names, size)]


def sharing(level_FR: Mapping[str, np.ndarray]) -> dict[Shared, np.ndarray]:
    """For each set of sources: runs with the same number share at least these."""
    groups = {}
    for shared in subsets(tuple(level_FR)):
        columns = [level_FR[name] for name in shared] or [
            np.zeros_like(next(iter(level_FR.values())))
        ]
        groups[shared] = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)[
            1
        ].reshape(-1)
    return groups


def disagreement_by_kind(
    answer_RP: np.ndarray, level_FR: Mapping[str, np.ndarray], group_SR: Mapping[Shared, np.ndarray]
) -> list[ByKind]:
    """Share of the pairs of each kind that disagree: of all runs [P]; then for each source without
    the runs of each level [level, P].
    """
    agreeing = _pairs(answer_RP, level_FR, group_SR)
    # where all answers are the same, all pairs agree
    pairs = _pairs(np.minimum(answer_RP, 0), level_FR, group_SR)
    return [
        {
            shared: 1 - np.where(n[shared] > 0, k[shared] / np.maximum(n[shared], 1), np.nan)
            for shared in n
        }
        for k, n in zip(agreeing, pairs, strict=True)
    ]


def joined(pieces: Sequence[ByKind]) -> ByKind:
    """Blocks of prompts put together."""
    return {
        shared: np.concatenate([piece[shared] for piece in pieces], axis=-1) for shared in pieces[0]
    }


def exactly(count: ByKind) -> ByKind:
    """From pairs that share at least these sources to pairs that share just these (Moebius
    inversion).
    """
    return {
        shared: sum(
            (
                (-1) ** (len(superset) - len(shared)) * count[superset]
                for superset in count
                if set(shared) <= set(superset)
            ),
            np.zeros_like(count[shared]),
        )
        for shared in count
    }


def _pairs(
    answer_RP: np.ndarray, level_FR: Mapping[str, np.ndarray], group_SR: Mapping[Shared, np.ndarray]
) -> list[ByKind]:
    """Ordered pairs that agree, by what they share. Linear in the cells: a level's pairs are its
    runs' partners, summed.
    """
    # Partners that share at least these factors: equal answers in one group are equal codes of the
    # two together.
    width = int(answer_RP.max(initial=0)) + 1
    partners = {
        shared: count_pairs(
            np.where(answer_RP >= 0, answer_RP.astype(np.int64) + width * group_R[:, None], -1)
        ).others_RP
        for shared, group_R in group_SR.items()
    }
    total = {shared: others_RP.sum(axis=0) for shared, others_RP in partners.items()}
    counts = [exactly(total)]
    for name, level_R in level_FR.items():
        # A level takes its runs' pairs along, twice (both directions) except for those within the
        # level, which share it too.
        lost = {shared: _sums(others_RP, level_R) for shared, others_RP in partners.items()}
        within = {
            shared: lost[tuple(n for n in level_FR if n in shared or n == name)] for shared in lost
        }
        counts.append(
            exactly({shared: total[shared] - 2 * lost[shared] + within[shared] for shared in lost})
        )
    return counts


def _sums(x_RP: np.ndarray, level_R: np.ndarray) -> np.ndarray:
    """Sum over the runs of each level."""
    if len(level_R) == 0:
        return x_RP
    order = np.argsort(level_R, kind="stable")
    return np.add.reduceat(
        x_RP[order], np.searchsorted(level_R[order], np.arange(level_R.max() + 1)), axis=0
    )
