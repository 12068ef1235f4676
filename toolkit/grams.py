"""Inner products of the weight changes of a population, module by module, without a dense matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit import delta
from toolkit.adapters import Adapter

CHUNK = 64
"""members whose factors are held at once"""


def module_names(adapters: Sequence[Adapter]) -> list[str]:
    """Every module that some adapter changes, sorted."""
    return sorted({name for adapter in adapters for name in adapter.modules})


def module_gram(adapters: Sequence[Adapter], name: str) -> np.ndarray:
    """<D_i, D_j> of one module, [K, K]. An adapter that leaves it alone is a change of zero."""
    K = len(adapters)
    gram_KK = np.zeros((K, K))
    having = [i for i, adapter in enumerate(adapters) if name in adapter.modules]
    chunks = [having[i : i + CHUNK] for i in range(0, len(having), CHUNK)]
    for c, first in enumerate(chunks):
        ours = [adapters[i].factors(name) for i in first]
        gram_KK[np.ix_(first, first)] = delta.gram(ours).numpy()
        for second in chunks[c + 1 :]:
            both = delta.gram(ours + [adapters[i].factors(name) for i in second]).numpy()[: len(first), len(first) :]
            gram_KK[np.ix_(first, second)] = both
            gram_KK[np.ix_(second, first)] = both.T
    return gram_KK


def gram(adapters: Sequence[Adapter]) -> np.ndarray:
    """<D_i, D_j> over all modules, [K, K]."""
    return sum((module_gram(adapters, name) for name in module_names(adapters)), np.zeros((len(adapters), len(adapters))))
