"""Which source makes runs differ? Variance components of one score per run, in crossed and nested
designs.

Every level of every factor is a draw from many (random effects): the estimand is the variance that
a fresh initial weight, data order or machine adds, not the differences between those at hand.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.statistics.arrays import as_level
from toolkit.statistics.conclusive import MIN_LEVELS
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.fresh import codes
from toolkit.statistics.outliers import far_from_median
from toolkit.statistics.sources.mean_squares import (
    METHOD,
    RESIDUAL,
    SMALL,
    MeanSquare,
    combine,
    mean_square,
    within_groups,
)
from toolkit.statistics.sources.reml import reml


@dataclass(frozen=True)
class Components:
    """Variance components of a score, in its unit squared; unclipped, so that they may come out
    negative.

    parts: by source ("init", "init x order", ..., "residual"), for a fresh level of each.
    total: their sum, the variance of a fresh run.
    table, weights: the mean squares, and how much of each counts in each part (empty where REML was
    used).
    """

    parts: dict[str, Estimate]
    total: Estimate
    table: dict[str, MeanSquare]
    weights: dict[str, dict[str, float]]

    def share(self, source: str) -> float | None:
        """The part's share of the total; without an interval, and not clipped."""
        part, total = self.parts[source].value, self.total.value
        return None if part is None or total is None or total <= 0 else part / total


def crossed(
    score_N: np.ndarray | Sequence[float],
    levels: Mapping[str, np.ndarray | Sequence],
    *,
    level: float = 0.95,
) -> Components:
    """How much of the variance of a score between runs comes from each crossed source, such as init
    and order?

    Estimand: in score = mean + sum over sets S of factors of an effect of the levels in S +
    residual, all independent with mean 0, the variance of each. Without two runs of one cell the
    residual holds the highest interaction and the numerics together; exact repeats (the same seeds
    again) separate them, and the residual is the numerics. Resampled: levels of each factor. Unit:
    score squared. nan = a run without a score (failed): it leaves its cell.

    Equal runs in every cell: closed-form analysis of variance, `crossed_grid`. Otherwise: REML,
    `toolkit.statistics.reml`. Inconclusive: parts whose factors have fewer than MIN_LEVELS levels;
    a level or, in a small design, a run that stands far off the others, as failed ones do.

    score_N: one number per run; levels: for each factor the level of every run, any dtype. Raises
    ValueError for other shapes.
    """
    level, score_N, names = as_level(level), as_scores(score_N), list(levels)
    if not names:
        raise ValueError("crossed needs at least one factor")
    good_N = np.isfinite(score_N)
    score_N = score_N[good_N]
    code_NF = np.stack([codes(levels[name], len(good_N), name)[good_N] for name in names], axis=1)
    code_NF = np.stack(
        [np.unique(column_N, return_inverse=True)[1] for column_N in code_NF.T], axis=1
    )
    shape = tuple(int(n) + 1 for n in code_NF.max(axis=0, initial=-1))
    if min(shape) < 2:
        too_small = [
            f"{name} has {n} level{'s' * (n != 1)} with a score"
            for name, n in zip(names, shape, strict=True)
            if n < 2
        ]
        return _no_components(names, level, len(score_N), "; ".join(too_small))
    cell_N = np.ravel_multi_index(tuple(code_NF.T), shape)
    runs_C = np.bincount(cell_N, minlength=math.prod(shape))
    if runs_C.min() == runs_C.max():
        return crossed_grid(
            score_N[np.argsort(cell_N, kind="stable")].reshape(*shape, -1), names, level=level
        )

    sets = _sets(len(names))[: None if runs_C.max() > 1 else -1]
    terms = {
        _part_name(s, names): np.unique(code_NF[:, s], axis=0, return_inverse=True)[1] for s in sets
    }
    shortages = {
        _part_name(s, names): _too_few_levels({names[axis]: shape[axis] for axis in s})
        for s in sets
    }
    shortages["total"] = _too_few_levels(dict(zip(names, shape, strict=True)))
    remarks = dict.fromkeys(terms, _rank(len(names), len(score_N))) | {
        RESIDUAL: _mixed(len(names), runs_C.max() > 1)
    }
    needed = math.prod(max(n, MIN_LEVELS) for n in shape)

    def with_shortage(name: str, e: Estimate) -> Estimate:
        short = shortages.get(name, "")
        note = _join(e.note, short, remarks.get(name, "") if e.value is not None else "")
        return replace(
            e, conclusive=e.conclusive and not short, needed=needed if short else None, note=note
        )

    estimates = {
        name: with_shortage(name, e) for name, e in reml(score_N, terms, level=level).items()
    }
    return Components(
        {name: e for name, e in estimates.items() if name != "total"}, estimates["total"], {}, {}
    )


def crossed_grid(score: np.ndarray, names: Sequence[str], *, level: float = 0.95) -> Components:
    """`crossed` for a full grid: score[level of factor 1, ..., level of factor F] or, one axis
    more, [..., repeat].

    With n_S = product of the levels outside S, times repeats: E[MS_S] = s2_residual + sum over T
    that hold S of n_T * s2_T. By Moebius inversion s2_S = sum over T that hold S of (-1)^(|T|-|S|)
    MS_T / n_S; for the set of all factors (MS_all - MS_repeats) / m. So with two factors and
    repeats (MS_I - MS_IO)/(b m), (MS_O - MS_IO)/(a m), (MS_IO - MS_E)/m and MS_E; without repeats
    MS_IO is the residual. Intervals: modified large-sample limits (Ting et al. 1990) with degrees
    of freedom cut for heavy tails, see `combine`.
    """
    level, factors = as_level(level), len(names)
    score = np.asarray(score, dtype=np.float64)
    if score.ndim == factors:
        score = score[..., None]
    if factors == 0 or score.ndim != factors + 1:
        raise ValueError(
            f"the grid needs an axis for each of {list(names)}, and at most one more for "
            f"repeats, not shape {score.shape}"
        )
    if not np.isfinite(score).all():
        raise ValueError(
            "the grid has cells without a score: give the runs to `crossed`, which leaves them out"
        )
    if min(score.shape) < 1 or min(score.shape[:-1]) < 2:
        return _no_components(list(names), level, score.size, "a factor has fewer than two levels")

    shape, repeats = score.shape[:-1], score.shape[-1]
    scale = float(np.abs(score).max())
    sets = _sets(factors)
    table, suspect = {}, ""
    for s in sets:
        effect = score.mean(axis=tuple(axis for axis in range(factors + 1) if axis not in s))
        for axis in range(len(s)):
            effect = effect - effect.mean(axis=axis, keepdims=True)
        table[_part_name(s, names)] = mean_square(
            effect, effect.shape, score.size / effect.size, scale
        )
        far = len(far_from_median(effect, scale)) > 0
        if len(s) == 1 and far:
            suspect = (
                suspect or f"a level of {names[s[0]]} stands far off the others: did its runs fail?"
            )
        if len(s) == factors and effect.size < SMALL and far:
            suspect = suspect or "a run stands far off the others: did it fail?"
    called = [_part_name(s, names) for s in sets]
    if repeats > 1:
        table[RESIDUAL] = mean_square(
            score - score.mean(axis=-1, keepdims=True), (repeats,), 1.0, scale
        )
    else:
        table[RESIDUAL] = table.pop(called.pop())
        sets.pop()
    # the sets that have a mean square of runs' means
    lines = sets + [tuple(range(factors))] * (repeats == 1)
    line = called + [RESIDUAL] * (repeats == 1)
    weights: dict[str, dict[str, float]] = {}
    for s, name in zip(sets, called, strict=True):
        runs = score.size / math.prod(shape[axis] for axis in s)
        weights[name] = {
            of: (-1) ** (len(t) - len(s)) / runs
            for t, of in zip(lines, line, strict=True)
            if set(s) <= set(t)
        }
    if repeats > 1:
        weights[called[-1]] |= {RESIDUAL: -1 / repeats}
    weights[RESIDUAL] = {RESIDUAL: 1.0}

    shortages = {
        name: _too_few_levels({names[axis]: shape[axis] for axis in s})
        for s, name in zip(sets, called, strict=True)
    }
    shortages["total"] = _too_few_levels(dict(zip(names, shape, strict=True)))
    needed = math.prod(max(n, MIN_LEVELS) for n in shape) * repeats
    remarks = dict.fromkeys(called, _rank(factors, score.size)) | {
        RESIDUAL: _mixed(factors, repeats > 1)
    }
    return _components(table, weights, level, score.size, shortages, needed, suspect, remarks)


def nested(
    score_N: np.ndarray | Sequence[float], group_N: np.ndarray | Sequence, *, level: float = 0.95
) -> Components:
    """How much of the variance of a score lies between groups of runs (machines, stacks), and how
    much within them?

    Estimand: in score = mean + group + residual, both random, the variance of each: parts "between"
    and "residual". Unequal groups: the unweighted analysis of Thomas & Hultquist (1978). With n_h
    the harmonic mean of the group sizes, n_h * (variance of the group means) has expectation
    s2_residual + n_h * s2_between whatever the sizes, and is about chi-squared. Equal groups: the
    usual analysis of variance. Intervals and verdict as in `crossed`. score_N: one number per run,
    nan = none; group_N: its group, any dtype. Raises ValueError for other shapes.
    """
    level, score_N = as_level(level), as_scores(score_N)
    group_N = codes(group_N, len(score_N), "group_N")[np.isfinite(score_N)]
    score_N = score_N[np.isfinite(score_N)]
    mean_G, within, size_G = within_groups(score_N, group_N)
    if len(mean_G) < 2 or within is None:
        return _no_components(
            ["between"],
            level,
            len(score_N),
            "needs two groups with a score, and two runs in one of them",
        )
    n_h = 1 / float(np.mean(1 / size_G))
    deviation_G = mean_G - mean_G.mean()
    scale = float(np.abs(score_N).max())
    between = mean_square(deviation_G, deviation_G.shape, n_h, scale)
    weights = {"between": {"between": 1 / n_h, RESIDUAL: -1 / n_h}, RESIDUAL: {RESIDUAL: 1.0}}
    shortages = dict.fromkeys(["between", "total"], _too_few_levels({"the grouping": len(mean_G)}))
    suspect = (
        "a group stands far off the others: did its runs fail?"
        if len(far_from_median(deviation_G, scale))
        else ""
    )
    needed = math.ceil(MIN_LEVELS * len(score_N) / len(mean_G))
    return _components(
        {"between": between, RESIDUAL: within},
        weights,
        level,
        len(score_N),
        shortages,
        needed,
        suspect,
        {},
    )


def difference(components: Components, first: str, second: str) -> Estimate:
    """Does one source add more variance than another? Part `first` minus part `second`, with the
    interval of `combine`.

    Conclusive: both parts are, and the interval lies on one side of 0. ValueError where there is no
    table (REML).
    """
    if not components.table:
        raise ValueError(
            "these components come from no table of mean squares, so that their "
            "difference has no interval here"
        )
    minuend, subtrahend = components.parts[first], components.parts[second]
    a, b = components.weights[first], components.weights[second]
    value, low, high = combine(
        components.table,
        {name: a.get(name, 0.0) - b.get(name, 0.0) for name in components.table},
        minuend.level,
    )
    clear = low is not None and high is not None and not low <= 0.0 <= high
    note = "" if clear else "the interval holds 0: these runs do not rank the two"
    conclusive = clear and minuend.conclusive and subtrahend.conclusive
    return replace(
        minuend,
        value=value,
        low=low,
        high=high,
        conclusive=conclusive,
        note=_join(_join(minuend.note, subtrahend.note), note),
    )


def as_scores(score_N: np.ndarray | Sequence[float]) -> np.ndarray:
    """One score a run [N] as float64, nan for a missing one. Raises ValueError."""
    score_N = np.asarray(score_N, dtype=np.float64)
    if score_N.ndim != 1:
        raise ValueError(f"scores must be one number per run, not shape {score_N.shape}")
    return np.where(np.isfinite(score_N), score_N, np.nan)


def _sets(factors: int) -> list[tuple[int, ...]]:
    """All sets of factors but the empty one, small ones first."""
    return [
        s for size in range(1, factors + 1) for s in itertools.combinations(range(factors), size)
    ]


def _part_name(s: Sequence[int], names: Sequence[str]) -> str:
    return " x ".join(names[axis] for axis in s)


def _too_few_levels(levels: Mapping[str, int]) -> str:
    """What is said of factors with too few levels; "" where all have enough."""
    return "; ".join(
        f"{name} has {n} levels (at least {MIN_LEVELS})"
        for name, n in levels.items()
        if n < MIN_LEVELS
    )


def _rank(factors: int, runs: int) -> str:
    return (
        f"fewer than {SMALL} runs cannot rank the sources" if factors > 1 and runs < SMALL else ""
    )


def _mixed(factors: int, repeated: bool) -> str:
    return (
        "holds the highest interaction and the numerics: exact repeats would split them"
        if factors > 1 and not repeated
        else ""
    )


def _join(*notes: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, "; ".join(notes).split("; "))))


def _components(
    table: dict[str, MeanSquare],
    weights: dict[str, dict[str, float]],
    level: float,
    runs: int,
    shortages: Mapping[str, str],
    needed: int,
    suspect: str,
    remarks: Mapping[str, str],
) -> Components:
    """The parts that weigh the mean squares of a table, and their sum.

    shortages: by part, why its levels do not suffice. suspect: why no part can be trusted.
    remarks: by part, what does not count against it.
    """

    def part(name: str, weight: dict[str, float]) -> Estimate:
        value, low, high = combine(table, weight, level)
        none = (
            ""
            if low is not None
            else "runs that should differ are equal to the last bit: no spread to put an "
            "interval around"
        )
        short = shortages.get(name, "")
        note = _join(none, suspect, short, remarks.get(name, ""))
        conclusive = not (none or suspect or short)
        return Estimate(
            value, low, high, level, runs, 0, METHOD, conclusive, needed if short else None, note
        )

    parts = {name: part(name, weight) for name, weight in weights.items()}
    total = {line: sum(weight.get(line, 0.0) for weight in weights.values()) for line in table}
    return Components(parts, part("total", total), table, weights)


def _no_components(names: Sequence[str], level: float, runs: int, note: str) -> Components:
    unknown = without_interval(None, level, runs, 0, None, note)
    return Components(
        dict.fromkeys([*(_part_name(s, names) for s in _sets(len(names))), RESIDUAL], unknown),
        unknown,
        {},
        {},
    )
