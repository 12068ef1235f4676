"""Whether runs of a condition trade one category of prompts for another."""

from itertools import combinations

import numpy as np

from toolkit import statistics as st
from toolkit.measurement.analyse.contrasts import p_or_none
from toolkit.measurement.analyse.procedures import run_accuracies
from toolkit.measurement.analyse.table import Table
from toolkit.record.results import ConditionDesign, Trade

COMPARED = 60
"""categories held against each other, those with the most prompts: pairs grow with their square"""


def trade(table: Table, design: ConditionDesign, level: float) -> Trade | None:
    """Correlations over runs of the accuracies of the categories that have references, COMPARED at
    most; None of fewer than two.
    """
    arm = table.arm(design.name, "replica", list(design.replicas))
    marked = (
        {}
        if arm is None
        else {
            place: here
            for place, index_P in table.parts.items()
            if place[1] and (here := arm.on(index_P)).marked
        }
    )
    marked = (
        dict(sorted(marked.items(), key=lambda item: -item[1].correct_RP.shape[1])[:COMPARED])
        if len(marked) > COMPARED
        else marked
    )
    if len(marked) < 2:
        return None
    scores = [
        [np.nan if s is None else s for s in run_accuracies(here.correct_RP)]
        for here in marked.values()
    ]
    tradeoff = st.tradeoff(
        np.array(scores).T, [here.correct_RP.shape[1] for here in marked.values()], level=level
    )
    pairs = [tradeoff.correlation_CC[a][b] for a, b in combinations(range(len(marked)), 2)]
    return Trade(
        tuple(marked),
        tradeoff,
        tuple(p_or_none(st.holm([pair.p if pair else None for pair in pairs]))),
    )
