"""Ensembles: K replicas that answer as one, by their log-probabilities at every token or by their
whole answers.
"""

from toolkit.answer.ensemble.combine import ENSEMBLES, logits, median, probabilities, token_vote
from toolkit.answer.ensemble.model import Ensemble
from toolkit.answer.ensemble.offline import ensemble_scores
from toolkit.answer.ensemble.votes import SIMILARITIES, mbr, vote

__all__ = [
    "ENSEMBLES",
    "SIMILARITIES",
    "Ensemble",
    "ensemble_scores",
    "logits",
    "mbr",
    "median",
    "probabilities",
    "token_vote",
    "vote",
]
