"""Ensembles: K replicas that answer as one, by their log-probabilities at every token or by their whole answers."""

from toolkit.ensemble.answers import SIMILARITIES, mbr, vote
from toolkit.ensemble.model import Ensemble
from toolkit.ensemble.offline import ensemble_scores
from toolkit.ensemble.rules import ENSEMBLES, logits, median, probabilities, token_vote

__all__ = ["ENSEMBLES", "SIMILARITIES", "Ensemble", "ensemble_scores", "logits", "mbr", "median", "probabilities", "token_vote", "vote"]
