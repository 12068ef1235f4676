"""R changes of the token embedding: a replica's rows of the batch get what its own factors add to
the looked-up vectors.

An adapter on the embedding changes what goes into the model and nothing else. Where the output head
shares the embedding's weight, the head stays as it is in the base: that is what peft computes, too,
as long as it does not merge the adapter into the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StackedEmbedding:
    """y = W[:, x] + scale * B_k A_k[:, x] of the input embedding of a model. A hook: the module
    stays, so tied weights stay tied.
    """

    def __init__(self, model: nn.Module):
        base = model.get_input_embeddings()  # type: ignore[operator]
        self.base: nn.Module = base
        self.name = next(name for name, module in model.named_modules() if module is base)
        self.in_features, self.out_features = (int(n) for n in base.weight.shape)
        self.scale = 1.0
        self.A_RrI: Tensor | None = None
        self.B_ROr: Tensor | None = None

    def _add(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        if self.A_RrI is None or self.B_ROr is None:
            return None
        R = len(self.A_RrI)
        ids_Rn = args[0].reshape(R, -1)
        h_Rnr = self.A_RrI[torch.arange(R, device=ids_Rn.device)[:, None], :, ids_Rn]
        # Gemma multiplies what it looks up, and peft what the adapter adds
        factor = getattr(module, "embed_scale", 1.0)
        change_RnO = self.scale * factor * torch.bmm(h_Rnr, self.B_ROr.transpose(1, 2))
        return y + change_RnO.view(y.shape).to(y.dtype)

    def attach(self) -> None:
        """Add the change to what the embedding gives out."""
        self._hook: Any = self.base.register_forward_hook(self._add)

    def remove(self) -> None:
        """Leave the embedding as it was."""
        self._hook.remove()
