"""Which source makes runs differ: the parts of a crossed design, or of students nested in their
teachers.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from toolkit import statistics as st
from toolkit.measurement.analyse.procedures import run_accuracies
from toolkit.measurement.analyse.table import Table
from toolkit.record.results import MACHINE, ConditionDesign, Sources


class Crossing(NamedTuple):
    """What can be taken apart of a design: factors of which some runs share a level and others do
    not; why there are none, or fewer.
    """

    factors: dict[str, np.ndarray]
    note: str = ""


def crossing(factors: Mapping[str, Sequence[int] | np.ndarray]) -> Crossing:
    """factors: the level of every run in each source. One that is different in every run cannot be
    told from the residual.
    """
    if not factors:
        return Crossing({})
    runs = {name: len(level_R) for name, level_R in factors.items()}
    levels = {name: len(np.unique(level_R)) for name, level_R in factors.items()}
    vary = {name: np.asarray(level_R) for name, level_R in factors.items() if levels[name] > 1}
    shared = {name: level_R for name, level_R in vary.items() if levels[name] < runs[name]}
    named = " and ".join(vary) or " and ".join(factors)
    cure = "sources are told apart where some replicas share one of them and differ in the others"
    if not vary:
        return Crossing(
            {}, f"all replicas have the same {named}: nothing is told about what it adds"
        )
    if not shared:
        return Crossing(
            {},
            f"every replica has {named} of its own: what each source adds is not estimated; {cure}",
        )
    if lacking := st.missing_pairs(shared):
        return Crossing(
            {},
            f"no two replicas are just {' or '.join(lacking)}: what {named} add is not "
            f"estimated; {cure}",
        )
    alone = [name for name in vary if name not in shared]
    return Crossing(
        shared,
        f"every replica has {' and '.join(alone)} of its own: a part of the residual"
        if alone
        else "",
    )


def sources(table: Table, design: ConditionDesign, level: float) -> tuple[Sources, ...]:
    """Disagreement and accuracy taken apart on every shift, of a crossed condition, or of one with
    several students of each teacher group; nothing for any other design.
    """
    everything = {name: np.asarray(level_R) for name, level_R in design.factors.items()}
    levels = crossing(everything).factors
    arm = (
        table.arm(design.name, "replica", list(design.everyone or design.replicas))
        if levels
        else None
    )
    if arm is None or len(arm.answer_RP) < 4:
        return ()
    seeds = [level_R for name, level_R in everything.items() if name != MACHINE]
    # a combination of seeds
    together = np.unique(np.stack(seeds, axis=1), axis=0, return_inverse=True)[1]
    runs = Runs(levels, together, everything.get(MACHINE))
    rows = []
    for shift, index_P in table.shifts.items():
        here = arm.on(index_P)
        options = {"cluster_P": table.cluster_P[index_P], "level": level}
        answers = st.behaviour_components(here.answer_RP, levels, **options)
        # the figure of the main table
        fresh = st.disagreement(here.answer_RP, levels=levels, **options)
        rows.append(Sources(shift, "disagreement", answers.parts, fresh))
        if here.marked:
            score_R = np.array(
                [np.nan if s is None else s for s in run_accuracies(here.correct_RP)]
            )
            rows.append(_of_score(shift, "accuracy", score_R, runs, level))
        if here.score_RP is not None and np.isfinite(here.score_RP).any():
            rows.append(_of_score(shift, table.scored, _means(here.score_RP), runs, level))
    return tuple(rows)


def shared_note(design: ConditionDesign) -> str:
    """What readers must know of a design whose runs share levels of sources; empty where they share
    none.
    """
    whole = len(design.everyone or design.replicas)
    shared = st.shared_sources(design.sources, whole)
    if not shared or design.teacher:  # of students their teachers' notes tell
        return ""
    return (
        f"{design.name}: of {whole} runs some share {' or '.join(shared)}. Disagreement, "
        "accuracy and its SD are those of two runs "
        f"that share none, from all {whole}; figures whose unit is a run take "
        f"{len(design.replicas)} of them that share none"
    )


class Runs(NamedTuple):
    """What every run shares with others: a level of each factor, all its seeds together, its
    machine where there are several.
    """

    levels: Mapping[str, np.ndarray]
    seed_R: np.ndarray
    machine_R: np.ndarray | None


def _of_score(shift: str, figure: str, score_R: np.ndarray, runs: Runs, level: float) -> Sources:
    parts = st.crossed(score_R, runs.levels, level=level)
    precision = st.iso_5725(score_R, runs.seed_R, runs.machine_R, level=level)
    words = {"repeatability": precision.repeatability}
    if (
        runs.machine_R is None
    ):  # seeds share levels with each other, so only the parts together are a fresh run's
        words["intermediate precision"] = st.root(parts.total)
    else:
        words |= {
            "intermediate precision": precision.intermediate_precision,
            "reproducibility": precision.reproducibility,
        }
    precisions = {
        word: estimate
        for word, estimate in words.items()
        if estimate is not None and estimate.value is not None
    }
    return Sources(shift, figure, dict(parts.parts), parts.total, precisions, precision.notes)


def _means(score_RP: np.ndarray) -> np.ndarray:
    """Mean score of every run; a missing score counts as the prompt's mean, so that no run is
    judged by the prompts that it has.
    """
    known_RP = np.isfinite(score_RP)
    n_P = known_RP.sum(axis=0)
    mean_P = np.where(known_RP, score_RP, 0.0).sum(axis=0) / np.maximum(n_P, 1)
    deviation_RP = np.where(known_RP, score_RP - mean_P, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return mean_P[n_P > 0].mean() + deviation_RP.sum(axis=1) / known_RP.sum(axis=1)
