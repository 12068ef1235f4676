"""How different are runs of a procedure, and what does a mitigation change? Pure functions from arrays to estimates.

Axis letters end names: R replica, G group of K replicas (one run of a mitigation), P prompt. numpy and scipy only: no
files, no torch, no random numbers.
"""

from toolkit.statistics.accuracy import MIN_REPLICAS_SPREAD, AccuracySpread, accuracy, accuracy_spread
from toolkit.statistics.arrays import MISSING, encode
from toolkit.statistics.compare import (
    EFFECT_KEPT,
    MIN_GROUPS,
    SAME_RATIO,
    SAME_SHARE,
    accuracy_change,
    accuracy_effect_size,
    disagreement_difference,
    disagreement_ratio,
    effect_size,
)
from toolkit.statistics.disagreement import MIN_CLUSTERS, MIN_REPLICAS, MIN_REPLICAS_ODD, disagreement, prompt_disagreement
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.failures import failure_rate
from toolkit.statistics.intervals import clopper_pearson, jackknife_variance, zero_event_bound
from toolkit.statistics.variance import MIN_RUNS, variance_ratio

__all__ = [
    "EFFECT_KEPT",
    "MIN_CLUSTERS",
    "MIN_GROUPS",
    "MIN_REPLICAS",
    "MIN_REPLICAS_ODD",
    "MIN_REPLICAS_SPREAD",
    "MIN_RUNS",
    "MISSING",
    "SAME_RATIO",
    "SAME_SHARE",
    "AccuracySpread",
    "Estimate",
    "accuracy",
    "accuracy_change",
    "accuracy_effect_size",
    "accuracy_spread",
    "clopper_pearson",
    "disagreement",
    "disagreement_difference",
    "disagreement_ratio",
    "effect_size",
    "encode",
    "failure_rate",
    "jackknife_variance",
    "prompt_disagreement",
    "variance_ratio",
    "zero_event_bound",
]
