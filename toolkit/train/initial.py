"""Where training starts: the initial factors of LoRA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit import seeds as seed
from toolkit.stack import Stack

Factors_R = dict[str, tuple[Tensor, Tensor]]  # module -> A [R, r, I], B [R, O, r]


def initial_factors(stack: Stack, rank: int, init_seeds: Sequence[int], dtype: torch.dtype, device: torch.device) -> Factors_R:
    """PEFT's default: A uniform in +-1/sqrt(I) (Kaiming with a = sqrt(5)), B zero.

    Each (replica, module) has a generator of its own, on the CPU, so a draw depends on nothing else.
    """
    factors = {}
    for name, layer in stack.layers.items():
        bound = layer.in_features**-0.5
        A = torch.empty(len(init_seeds), rank, layer.in_features)
        for r, init_seed in enumerate(init_seeds):
            generator = torch.Generator().manual_seed(seed.derive(init_seed, name))
            A[r].uniform_(-bound, bound, generator=generator)
        B = torch.zeros(len(init_seeds), rank, layer.out_features, device=device, dtype=dtype).transpose(1, 2)  # [R, r, O] in memory
        factors[name] = (A.to(device, dtype).requires_grad_(), B.requires_grad_())
    return factors
