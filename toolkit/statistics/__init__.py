"""How different are runs of a procedure, and what does a mitigation change? Pure functions from
arrays to estimates.

Axis letters end names: R replica, G group of K replicas (one run of a mitigation), P prompt. numpy
and scipy only: no files, no torch, no random numbers.
"""

from toolkit.statistics.accuracy.accuracy_spread import AccuracySpread, accuracy_spread
from toolkit.statistics.accuracy.failures import failure_rate
from toolkit.statistics.accuracy.mean_accuracy import accuracy, model_accuracy
from toolkit.statistics.accuracy.tradeoff import Tradeoff, tradeoff
from toolkit.statistics.arrays import MISSING, encode
from toolkit.statistics.compare.arms import MIN_GROUPS, SAME_RATIO, SAME_SHARE
from toolkit.statistics.compare.by_prompt import (
    PromptTests,
    accuracy_by_prompt,
    disagreement_by_prompt,
)
from toolkit.statistics.compare.gains import (
    accuracy_gain,
    negated,
    population_effect_size,
    population_gain_kept,
    population_score_change,
    run_mean_change,
)
from toolkit.statistics.compare.mitigation import (
    EFFECT_KEPT,
    accuracy_change,
    accuracy_effect_size,
    collapsed,
    disagreement_difference,
    disagreement_ratio,
    effect_size,
)
from toolkit.statistics.compare.multiplicity import benjamini_hochberg, benjamini_yekutieli, holm
from toolkit.statistics.compare.populations import (
    population_accuracy_change,
    population_difference,
    population_ratio,
)
from toolkit.statistics.compare.variances import (
    MIN_RUNS,
    VarianceContrast,
    distribution_variance_change,
    relative_spread,
    sd_difference,
    variance_contrast,
    variance_ratio,
)
from toolkit.statistics.conclusive import MIN_CLUSTERS, MIN_REPLICAS, MIN_REPLICAS_SPREAD
from toolkit.statistics.disagreement.agreement import (
    ambiguity,
    discrepancy,
    fleiss_kappa,
    negative_flips,
    total_agreement,
)
from toolkit.statistics.disagreement.distributions import (
    flip_calibration,
    margin_to_noise,
    population_jsd,
    predicted_flip,
    total_variation,
)
from toolkit.statistics.disagreement.two_runs import disagreement, prompt_disagreement
from toolkit.statistics.disagreement.unseen import (
    disagreement_for_verdict,
    equal_runs,
    share_for_verdict,
)
from toolkit.statistics.disagreement.weights import (
    MIN_RUNS_WEIGHTS,
    files_differ,
    weight_spread,
    weight_spread_ratio,
)
from toolkit.statistics.estimate import Estimate, complement, without_interval
from toolkit.statistics.fresh import fresh_pairs, independent_runs, shared_sources
from toolkit.statistics.intervals import clopper_pearson, jackknife_variance, zero_event_bound
from toolkit.statistics.outliers import far_from_median, odd_answers, odd_marks, odd_runs
from toolkit.statistics.planning.many_runs import accuracy_floor, deviation, distinct_answers
from toolkit.statistics.planning.scaling import (
    ScalingFit,
    SmallestK,
    fit_disagreement,
    fit_floor,
    smallest_k,
)
from toolkit.statistics.planning.subsets import partition_variance, subset_variance
from toolkit.statistics.planning.tolerance import Tolerance
from toolkit.statistics.scores.intraclass import icc
from toolkit.statistics.scores.loss_decomposition import brier_decomposition, log_loss_decomposition
from toolkit.statistics.scores.mean_and_sd import ScoreSpread, score_mean, score_sd
from toolkit.statistics.scores.run_numbers import run_mean, run_sd
from toolkit.statistics.sources.answer_components import (
    AnswerComponents,
    behaviour_components,
    missing_pairs,
)
from toolkit.statistics.sources.repeatability import Precision, iso_5725, root
from toolkit.statistics.sources.score_components import Components, crossed, nested
from toolkit.statistics.texts.divergence import Divergence, first_divergence
from toolkit.statistics.texts.edit_distance import edit_distance

__all__ = [
    "MIN_REPLICAS_SPREAD",
    "AccuracySpread",
    "accuracy",
    "accuracy_spread",
    "model_accuracy",
    "ambiguity",
    "discrepancy",
    "fleiss_kappa",
    "negative_flips",
    "total_agreement",
    "AnswerComponents",
    "behaviour_components",
    "missing_pairs",
    "accuracy_gain",
    "negated",
    "odd_answers",
    "odd_marks",
    "odd_runs",
    "population_effect_size",
    "population_gain_kept",
    "population_score_change",
    "run_mean",
    "run_mean_change",
    "run_sd",
    "score_mean",
    "PromptTests",
    "accuracy_by_prompt",
    "disagreement_by_prompt",
    "MISSING",
    "encode",
    "collapsed",
    "EFFECT_KEPT",
    "MIN_GROUPS",
    "SAME_RATIO",
    "SAME_SHARE",
    "accuracy_change",
    "accuracy_effect_size",
    "disagreement_difference",
    "disagreement_ratio",
    "effect_size",
    "Components",
    "crossed",
    "nested",
    "population_accuracy_change",
    "population_difference",
    "population_ratio",
    "MIN_CLUSTERS",
    "MIN_REPLICAS",
    "far_from_median",
    "disagreement",
    "prompt_disagreement",
    "flip_calibration",
    "margin_to_noise",
    "population_jsd",
    "predicted_flip",
    "total_variation",
    "Estimate",
    "complement",
    "failure_rate",
    "fresh_pairs",
    "independent_runs",
    "shared_sources",
    "clopper_pearson",
    "jackknife_variance",
    "without_interval",
    "zero_event_bound",
    "benjamini_hochberg",
    "benjamini_yekutieli",
    "holm",
    "accuracy_floor",
    "deviation",
    "distinct_answers",
    "Precision",
    "iso_5725",
    "root",
    "ScalingFit",
    "SmallestK",
    "fit_disagreement",
    "fit_floor",
    "smallest_k",
    "brier_decomposition",
    "icc",
    "log_loss_decomposition",
    "ScoreSpread",
    "score_sd",
    "partition_variance",
    "subset_variance",
    "Divergence",
    "edit_distance",
    "first_divergence",
    "Tolerance",
    "Tradeoff",
    "tradeoff",
    "disagreement_for_verdict",
    "equal_runs",
    "share_for_verdict",
    "MIN_RUNS",
    "VarianceContrast",
    "distribution_variance_change",
    "relative_spread",
    "sd_difference",
    "variance_contrast",
    "variance_ratio",
    "MIN_RUNS_WEIGHTS",
    "files_differ",
    "weight_spread",
    "weight_spread_ratio",
]
