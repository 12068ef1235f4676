"""R adapters answer the same prompts in one batch: greedy text with a KV cache, and
log-probabilities of given continuations.

Rows are voice-major: all prompts of voice 0 first. A voice is one adapter, or a group of K adapters
that speak as one.
"""

from toolkit.answer.predict.batches import CACHED, TOKENS, together
from toolkit.answer.predict.greedy import Generation, generate
from toolkit.answer.predict.token_scores import Scored, score, score_tokens
from toolkit.answer.predict.voices import Combine, Voices, load_adapters

__all__ = [
    "CACHED",
    "TOKENS",
    "Combine",
    "Generation",
    "Scored",
    "Voices",
    "generate",
    "load_adapters",
    "score",
    "score_tokens",
    "together",
]
