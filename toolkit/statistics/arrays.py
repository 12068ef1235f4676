"""The shapes that statistics accept: codes of answers, marks of correctness, clusters of prompts,
members of groups.

Lack of data is no error (missing cells are -1 or nan, and an estimate may come back without a
value); a shape that cannot be meant is one: every check here raises ValueError with one sentence.

A table may hold 10,000 x 10,000 cells. So it stays in the dtype it came in, and is worked on in
blocks of prompts.
"""

from collections.abc import Iterator, Sequence

import numpy as np

Clusters = np.ndarray | Sequence[int] | None  # of every prompt; None: each is its own


MISSING = -1


# cells worked on at a time: temporaries of 2 MB, small enough for a cache, large enough for numpy
BLOCK = 1 << 18


# a difference below this share of the largest number is what floating point makes of equal ones
ROUNDING = 1e-12


def rounding(*several: np.ndarray) -> float:
    """The largest difference that means nothing between these numbers, in their unit."""
    return ROUNDING * max((float(np.abs(x).max()) for x in several if x.size), default=0.0)


def encode(answers: Sequence[Sequence[str | None]]) -> np.ndarray:
    """Answers as text, [R][P] with None where there is no answer, to answer_RP: int64 codes, equal
    code iff equal string.

    Codes are global (in order of first appearance), so arrays that are to be compared with each
    other must be encoded in one call.
    """
    if len({len(row) for row in answers}) > 1:
        raise ValueError(
            "every replica needs one entry per prompt (None where it has no answer); the "
            "rows differ in length"
        )
    code_of: dict[str, int] = {}
    codes = [
        [MISSING if text is None else code_of.setdefault(text, len(code_of)) for text in row]
        for row in answers
    ]
    return np.array(codes, dtype=np.int64).reshape(
        len(answers), len(answers[0]) if len(answers) else 0
    )


def as_answers(answer_RP: np.ndarray, name: str, *, at_least: int = 2) -> np.ndarray:
    """Answer codes [R, P] as an integer array of at least so many rows. Raises ValueError."""
    answer_RP = np.asarray(answer_RP)
    if answer_RP.ndim != 2 or answer_RP.shape[1] == 0:
        raise ValueError(
            f"{name} must be a table of answer codes [replicas, prompts], not shape "
            f"{answer_RP.shape}"
        )
    if not np.issubdtype(answer_RP.dtype, np.integer):
        raise ValueError(
            f"{name} must hold integer answer codes (see encode), not {answer_RP.dtype}"
        )
    if answer_RP.min(initial=0) < MISSING:
        raise ValueError(
            f"{name} holds a negative code other than {MISSING}, which marks a missing answer"
        )
    return _enough_rows(answer_RP, name, at_least)


def as_correct(correct_RP: np.ndarray, name: str, *, at_least: int = 2) -> np.ndarray:
    """Marks as float64 with nan where there is none."""
    return marks(as_marks(correct_RP, name, at_least=at_least))


def as_marks(correct_RP: np.ndarray, name: str, *, at_least: int = 2) -> np.ndarray:
    """Marks in a dtype of their own: bool; integers, -1 = missing; floats, nan = missing."""
    correct_RP = np.asarray(correct_RP)
    if correct_RP.ndim != 2 or correct_RP.shape[1] == 0:
        raise ValueError(
            f"{name} must be a table of 0/1 marks [replicas, prompts], not shape {correct_RP.shape}"
        )
    if correct_RP.dtype.kind not in "biuf":
        correct_RP = correct_RP.astype(np.float64)
    least = MISSING if correct_RP.dtype.kind == "i" else 0
    if len(correct_RP) and (
        np.fmin.reduce(correct_RP, axis=None) < least or np.fmax.reduce(correct_RP, axis=None) > 1
    ):
        raise ValueError(
            f"{name} must lie between 0 (wrong) and 1 (right), with nan (in integers -1) "
            "where there is no mark"
        )
    return _enough_rows(correct_RP, name, at_least)


def marks(correct_RP: np.ndarray) -> np.ndarray:
    """Marks of any dtype as float64, nan = missing."""
    mark_RP = correct_RP.astype(np.float64, copy=False)
    if correct_RP.dtype.kind == "i":
        mark_RP[correct_RP < 0] = np.nan
    return mark_RP


def filled_rows(table_RP: np.ndarray) -> np.ndarray:
    """Rows with a cell that is not missing (-1 in integers, nan in floats)."""
    return np.flatnonzero(np.fmax.reduce(table_RP, axis=1) >= 0)


def _enough_rows(array_RP: np.ndarray, name: str, at_least: int) -> np.ndarray:
    if len(array_RP) < at_least:
        raise ValueError(
            f"{name} needs at least {at_least} rows, not {len(array_RP)}: one run cannot "
            "show how much runs differ"
        )
    return array_RP


def as_clusters(cluster_P: np.ndarray | Sequence[int] | None, n_prompts: int) -> np.ndarray:
    """Cluster of every prompt as 0..C-1; without clusters every prompt is its own."""
    if cluster_P is None:
        return np.arange(n_prompts)
    cluster_P = np.asarray(cluster_P)
    if cluster_P.shape != (n_prompts,):
        raise ValueError(
            f"cluster_P must name one cluster for each of the {n_prompts} prompts, not "
            f"shape {cluster_P.shape}"
        )
    return np.unique(cluster_P, return_inverse=True)[1]


def blocks(n_rows: int, n_prompts: int) -> Iterator[slice]:
    """The prompts in runs of about BLOCK cells of a table with n_rows rows."""
    width = max(1, BLOCK // max(1, n_rows))
    return (slice(start, start + width) for start in range(0, n_prompts, width))


def cluster_blocks(n_rows: int, cluster_P: np.ndarray) -> Iterator[slice | np.ndarray]:
    """The same, sorted by cluster: where the prompts of a block stand."""
    if np.all(cluster_P[1:] >= cluster_P[:-1]):
        return blocks(n_rows, len(cluster_P))
    order_P = np.argsort(cluster_P, kind="stable")
    return (order_P[block] for block in blocks(n_rows, len(cluster_P)))


def cells(table_RP: np.ndarray, row_R: np.ndarray, index_P: slice | np.ndarray) -> np.ndarray:
    """A block of the rows that count."""
    block_RP = table_RP[:, index_P]
    return block_RP if len(row_R) == len(block_RP) else block_RP[row_R]


def as_level(level: float) -> float:
    """A confidence level as a float. Raises ValueError unless it lies between 0 and 1."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    return float(level)


def as_members(
    members: Sequence[np.ndarray | Sequence[int]], n_groups: int, n_replicas: int
) -> list[np.ndarray]:
    """Row numbers of the baseline replicas behind every group. Groups share no replica: else they
    are no independent runs.
    """
    rows = [np.atleast_1d(np.asarray(group)) for group in members]
    if len(rows) != n_groups:
        raise ValueError(
            f"members names {len(rows)} groups, but there are {n_groups} mitigated rows"
        )
    if any(
        group.ndim != 1 or group.size == 0 or not np.issubdtype(group.dtype, np.integer)
        for group in rows
    ):
        raise ValueError(
            "members must be one non-empty list of baseline row numbers for each group"
        )
    flat = np.concatenate(rows)
    if flat.min() < 0 or flat.max() >= n_replicas:
        raise ValueError(f"members names a baseline row outside 0..{n_replicas - 1}")
    if len(np.unique(flat)) != len(flat):
        raise ValueError(
            "members names a replica twice: groups must be disjoint to be independent "
            "runs of the mitigation"
        )
    return rows


def same_prompts(*arrays: np.ndarray) -> None:
    """Raises ValueError unless all arrays [..., P] have the same number of prompts."""
    widths = [array.shape[-1] for array in arrays]
    if len(set(widths)) > 1:
        raise ValueError(f"the arms must answer the same prompts, not {widths} of them")


def common_scores(
    score_RP: np.ndarray, cluster_P: Clusters
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the runs that have any, on the prompts that two of them have; which rows they are;
    clusters of these prompts.
    """
    score_RP = np.asarray(score_RP, dtype=np.float64)
    if score_RP.ndim != 2 or score_RP.shape[1] == 0 or len(score_RP) < 2:
        raise ValueError(
            "score_RP must be a table of numbers [replicas, prompts] with two rows at "
            f"least, not shape {score_RP.shape}"
        )
    if np.any(np.isinf(score_RP)):
        raise ValueError("score_RP holds an infinite score; nan marks a missing one")
    cluster_P = as_clusters(cluster_P, score_RP.shape[1])
    used_P = np.isfinite(score_RP).sum(axis=0) >= 2
    row_R = np.flatnonzero(np.isfinite(score_RP[:, used_P]).any(axis=1))
    return score_RP[row_R][:, used_P], row_R, cluster_P[used_P]


def as_score_table(score_RP: np.ndarray) -> np.ndarray:
    """Scores [R, P] as float64, nan for a missing one. Raises ValueError."""
    score_RP = np.asarray(score_RP, dtype=np.float64)
    if score_RP.ndim != 2 or score_RP.shape[1] == 0 or len(score_RP) < 2:
        raise ValueError(
            "scores must be a table of numbers [replicas, prompts] with two rows at "
            f"least, not shape {score_RP.shape}"
        )
    if np.any(np.isinf(score_RP)):
        raise ValueError("a table of scores holds an infinite score; nan marks a missing one")
    return score_RP


def as_run_numbers(score_R: np.ndarray) -> np.ndarray:
    """The finite ones of one number a run [R], as float64. Raises ValueError."""
    score_R = np.asarray(score_R, dtype=np.float64)
    if score_R.ndim != 1 or np.any(np.isinf(score_R)):
        raise ValueError(
            f"scores must be one finite number a run (nan: none), not of shape {score_R.shape}"
        )
    return score_R[np.isfinite(score_R)]
