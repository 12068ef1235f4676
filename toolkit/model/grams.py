"""Inner products of the weight changes of a population, module by module, without a dense
matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from toolkit.model import delta
from toolkit.model.adapters import Adapter
from toolkit.model.full import FullModel

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
            both = delta.gram(ours + [adapters[i].factors(name) for i in second]).numpy()[
                : len(first), len(first) :
            ]
            gram_KK[np.ix_(first, second)] = both
            gram_KK[np.ix_(second, first)] = both.T
    return gram_KK


def gram(adapters: Sequence[Adapter]) -> np.ndarray:
    """<D_i, D_j> over all modules, [K, K]."""
    return sum(
        (module_gram(adapters, name) for name in module_names(adapters)),
        np.zeros((len(adapters), len(adapters))),
    )


def whole_gram(models: Sequence[FullModel], weights: Mapping[str, torch.Tensor]) -> np.ndarray:
    """<W_i - W, W_j - W> of whole models over all weights W of their base, [K, K]; one weight of
    all models is held at once.

    Raises AdapterError where a model is not of this base.
    """
    for model in models:
        model.check({name: tuple(W.shape) for name, W in weights.items()})
    total = torch.zeros(len(models), len(models), dtype=torch.float64)
    for name, W in weights.items():
        change_KN = torch.stack(
            [model.tensor(name).double() - W.double() for model in models]
        ).flatten(1)
        total += change_KN @ change_KN.T
    return total.numpy()
