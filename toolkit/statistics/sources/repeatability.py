"""Repeatability, intermediate precision and reproducibility (ISO 5725) of a score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.statistics.arrays import as_level
from toolkit.statistics.conclusive import MIN_LEVELS
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.fresh import codes
from toolkit.statistics.outliers import far_from_median
from toolkit.statistics.sources.mean_squares import (
    METHOD,
    RESIDUAL,
    MeanSquare,
    combine,
    mean_square,
    within_groups,
)
from toolkit.statistics.sources.score_components import as_scores, crossed

FIGURES = ("repeatability", "intermediate precision", "reproducibility")


@dataclass(frozen=True)
class Precision:
    """Standard deviations of one score, in the words of ISO 5725-1; None where the design does not
    show it, with the reason in `notes`.

    repeatability: the same seeds again, on the same machine. intermediate_precision: fresh seeds,
    same machine.
    reproducibility: fresh seeds on another machine (GPU, batch shape, library version).
    """

    repeatability: Estimate | None
    intermediate_precision: Estimate | None
    reproducibility: Estimate | None
    notes: tuple[str, ...]


def iso_5725(
    score_N: np.ndarray | Sequence[float],
    seed_N: np.ndarray | Sequence,
    machine_N: np.ndarray | Sequence | None = None,
    *,
    level: float = 0.95,
) -> Precision:
    """How much does a score vary when I run it again; with other seeds; on another machine?

    Estimands: with score = mean + machine + seed (+ machine x seed) + repeat, all random: the root
    of s2_repeat; of that + s2_seed (+ s2_machine x seed); of that + s2_machine. seed_N names all
    the seeds of a run together (a run of the same seed on the same machine is a repeat); machine_N
    its machine, all the same where it is not given. Any dtype. nan = a run without a score.

    Seeds are independent draws: of runs that share some of their seeds, as in a crossed design, the
    intermediate precision is the root of the total of `crossed` (`root`), and only repeatability is
    found here. Seeds of their own on every machine: unweighted means at every stage, unbiased for
    any sizes. Seeds shared by machines: needs every seed on every machine, equally often.
    Resampled: seeds and machines. Interval: roots of `combine`'s limits. Inconclusive: fewer than
    MIN_LEVELS repeats, seeds or machines; runs far off the others. Raises ValueError for other
    shapes.
    """
    level, score_N = as_level(level), as_scores(score_N)
    good_N = np.isfinite(score_N)
    seed_N = codes(seed_N, len(score_N), "seed_N")[good_N]
    machine_N = codes(
        np.zeros(len(score_N)) if machine_N is None else machine_N, len(good_N), "machine_N"
    )[good_N]
    score_N = score_N[good_N]
    if len(score_N) == 0:
        return Precision(None, None, None, ("no run has a score",))
    cell_CF, cell_N = np.unique(np.stack([machine_N, seed_N], axis=1), axis=0, return_inverse=True)
    shared = len(np.unique(cell_CF[:, 1])) < len(cell_CF)
    stages = (
        _crossed(score_N, seed_N, machine_N, cell_N)
        if shared
        else _nested(score_N, cell_N, cell_CF[:, 0])
    )
    figures: dict[str, Estimate] = {}
    for name, (units, weight) in stages.weights.items():
        value, low, high = combine(stages.table, weight, level)
        none = (
            ""
            if high is not None
            else "the runs are equal to the last bit: no spread to put an interval around"
        )
        shortage = (
            f"degrees of freedom: {units:.0f} (at least {MIN_LEVELS - 1})"
            if units < MIN_LEVELS - 1
            else ""
        )
        note = "; ".join(filter(None, (none, shortage, stages.suspect)))
        figures[name] = root(
            Estimate(value, low, high, level, len(score_N), 0, METHOD, not note, None, note)
        )
    return Precision(
        figures.get(FIGURES[0]), figures.get(FIGURES[1]), figures.get(FIGURES[2]), stages.notes
    )


def root(variance: Estimate) -> Estimate:
    """A standard deviation from the estimate of its square; below 0 counts as 0."""
    value, low, high = (
        None if x is None else math.sqrt(max(x, 0.0))
        for x in (variance.value, variance.low, variance.high)
    )
    return replace(variance, value=value, low=low, high=high, method=variance.method + ", roots")


@dataclass(frozen=True)
class _Stages:
    """weights: for each figure the degrees of freedom of its outermost stage, and what each mean
    square counts.
    """

    table: dict[str, MeanSquare]
    weights: dict[str, tuple[float, dict[str, float]]]
    notes: tuple[str, ...]
    suspect: str


def _nested(score_N: np.ndarray, cell_N: np.ndarray, machine_C: np.ndarray) -> _Stages:
    """Repeats within seeds within machines. With n_c runs of cell c and S_m seeds of machine m:

    E[variance of cell means within machines] = s2_seed + s2_repeat * sum (1 - 1/S_m) / n_c / sum
    (S_m - 1), and E[variance of the machines' means of cell means] = s2_machine + mean(1/S_m)
    s2_seed + mean(sum_c 1/n_c / S_m^2) s2_repeat.
    """
    mean_C, repeat, runs_C = within_groups(score_N, cell_N)
    mean_M, seed, seeds_M = within_groups(mean_C, machine_C)
    table = {name: line for name, line in (("repeat", repeat), ("seed", seed)) if line is not None}
    own_C = 1 - 1 / seeds_M[machine_C]
    repeats_in_seed = float(np.sum(own_C / runs_C) / np.sum(own_C)) if seed is not None else 0.0
    seeds_in_machine = float(np.mean(1 / seeds_M))
    repeats_in_machine = float(np.mean(np.bincount(machine_C, weights=1 / runs_C) / seeds_M**2))

    weights, notes = {}, []
    if repeat is not None:
        weights[FIGURES[0]] = repeat.df, {"repeat": 1.0}
    else:
        notes.append("repeatability: no seed was run twice on one machine")
    if seed is not None:
        weights[FIGURES[1]] = seed.df, {"seed": 1.0, "repeat": 1 - repeats_in_seed}
    else:
        notes.append("intermediate precision: no machine ran two seeds")
    if len(mean_M) > 1:
        deviation_M = mean_M - mean_M.mean()
        table["machine"] = mean_square(
            deviation_M, deviation_M.shape, 1.0, float(np.abs(score_N).max())
        )
        repeat_weight = 1 - repeats_in_machine - (1 - seeds_in_machine) * repeats_in_seed
        weights[FIGURES[2]] = (
            table["machine"].df,
            {"machine": 1.0, "seed": 1 - seeds_in_machine, "repeat": repeat_weight},
        )
    else:
        notes.append("reproducibility: all runs are of one machine")
    return _Stages(
        table,
        _estimable(weights, table),
        tuple(notes),
        _suspect_note(mean_C - mean_M[machine_C], score_N),
    )


def _crossed(
    score_N: np.ndarray, seed_N: np.ndarray, machine_N: np.ndarray, cell_N: np.ndarray
) -> _Stages:
    """Every seed on every machine. Within one machine: seed + machine x seed + repeat; in all: the
    total.
    """
    mean_C, repeat, _ = within_groups(score_N, cell_N)
    machine_C = machine_N[np.unique(cell_N, return_index=True)[1]]
    suspect = _suspect_note(mean_C - within_groups(mean_C, machine_C)[0][machine_C], score_N)
    weights = {} if repeat is None else {"repeatability": (repeat.df, {RESIDUAL: 1.0})}
    notes = [] if repeat is not None else ["repeatability: no seed was run twice on one machine"]
    components = crossed(score_N, {"machine": machine_N, "seed": seed_N})
    if not components.table:
        notes += [
            f"{name}: some seeds are shared by machines, but not all by all, equally often"
            for name in FIGURES[1:]
        ]
        return _Stages(
            {RESIDUAL: repeat} if repeat is not None else {}, weights, tuple(notes), suspect
        )
    parts = [name for name in components.weights if name != "machine"]
    inner = {
        line: sum(components.weights[name].get(line, 0.0) for name in parts)
        for line in components.table
    }
    weights[FIGURES[1]] = components.table["seed"].df, inner
    outer = {line: inner[line] + components.weights["machine"].get(line, 0.0) for line in inner}
    weights[FIGURES[2]] = components.table["machine"].df, outer
    return _Stages(components.table, weights, tuple(notes), suspect)


def _estimable(
    weights: dict[str, tuple[float, dict[str, float]]], table: dict[str, MeanSquare]
) -> dict[str, tuple[float, dict[str, float]]]:
    """Without the lines that the design does not have: their weights are 0, to rounding."""
    return {
        name: (df, {line: w for line, w in weight.items() if line in table})
        for name, (df, weight) in weights.items()
    }


def _suspect_note(deviation_C: np.ndarray, score_N: np.ndarray) -> str:
    return (
        "a run stands far off the others: did it fail?"
        if len(far_from_median(deviation_C, float(np.abs(score_N).max())))
        else ""
    )
