"""Where training starts: initial LoRA factors, or R copies of all weights, and which of them are
trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit import seeds as seed
from toolkit.model.full import FullStack
from toolkit.model.stack import Stack
from toolkit.recipe import Condition

Weights_R = dict[str, tuple[Tensor, ...]]
"""LoRA: module -> A [R, r, I], B [R, O, r]. Full fine-tuning: parameter -> W [R, ...]."""


def initial_weights(
    stack: Stack,
    condition: Condition,
    seeds_R: Sequence[dict[str, int]],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Weights_R, float]:
    """Initial weights of each replica, and the scale of its adapter. Trained tensors require a
    gradient.

    seeds_R: of every replica its seed `init`, and `perturb` where the condition asks for it. A copy
    of the base has no random start.
    """
    if condition.method == "full":
        assert isinstance(stack, FullStack)
        weights, scale = stack.copies(len(seeds_R), dtype), 1.0
    else:
        weights = initial_factors(
            stack, condition.rank, [s["init"] for s in seeds_R], dtype, device, init=condition.init
        )
        scale = condition.scale
        for A, _ in weights.values():
            A.requires_grad_("A" not in condition.freeze)
    if condition.perturb:
        flip_last_bits(weights, [s["perturb"] for s in seeds_R])
    return weights, scale


def initial_factors(
    stack: Stack,
    rank: int,
    init_seeds: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    init: str = "kaiming",
) -> Weights_R:
    """LoRA factors whose product is zero, drawn by one of `INITS`.

    Each (replica, module) has a generator of its own, on the CPU, so a draw depends on nothing
    else.
    """
    factors = {}
    for name, layer in stack.layers.items():
        A = torch.empty(len(init_seeds), rank, layer.in_features)
        # [R, r, O] in memory
        B = torch.zeros(len(init_seeds), rank, layer.out_features).transpose(1, 2)
        for r, init_seed in enumerate(init_seeds):
            INITS[init](A[r], B[r], torch.Generator().manual_seed(seed.derive(init_seed, name)))
        factors[name] = (A.to(device, dtype).requires_grad_(), B.to(device, dtype).requires_grad_())
    return factors


def _kaiming(A: Tensor, B: Tensor, generator: torch.Generator) -> None:
    """PEFT's default: A uniform in +-1/sqrt(I) (Kaiming with a = sqrt(5)), B zero."""
    bound = A.shape[1] ** -0.5
    A.uniform_(-bound, bound, generator=generator)


def _gaussian(A: Tensor, B: Tensor, generator: torch.Generator) -> None:
    """PEFT's `gaussian`, from diffusers: A normal with standard deviation 1/r, B zero."""
    A.normal_(std=1 / A.shape[0], generator=generator)


def _orthogonal(A: Tensor, B: Tensor, generator: torch.Generator) -> None:
    """PEFT's `orthogonal`: A in the span of one half of a random orthogonal basis of the rank, B in
    that of the other.

    So B A = 0 with neither factor zero (datta0.github.io/posts/rethink-lora-init). Needs an even
    rank.
    """
    rank, width = A.shape
    Q = torch.linalg.qr(torch.randn(rank, rank, generator=generator))[0]
    A.copy_((torch.randn(width, rank // 2, generator=generator) @ Q[0::2]).T / 10)
    B.copy_(torch.randn(rank // 2, B.shape[0], generator=generator).T @ Q[1::2] / 10)


INITS: dict[str, Callable[[Tensor, Tensor, torch.Generator], None]] = {
    "kaiming": _kaiming,
    "gaussian": _gaussian,
    "orthogonal": _orthogonal,
}
"""name -> what fills A [r, I] and B [O, r], which is zero. Those of PEFT that move a part of the
base into the adapter (PiSSA, OLoRA) are left out: their product is not the change.
"""


@torch.no_grad()
def flip_last_bits(weights: Weights_R, seeds_R: Sequence[int]) -> None:
    """Change one initial weight of every replica, in place, by the smallest step that its dtype
    has: its last bit.

    Which one, its own seed says; a weight of zero is passed over, as the next number to it is no
    change of a last digit. How far so small a change goes: Summers & Dinneen 2021,
    arXiv:2103.04514.
    """
    tensors = [x for factors in weights.values() for x in factors if bool(x.any())]
    ends = np.cumsum([x[0].numel() for x in tensors])
    whole = {4: torch.int32, 8: torch.int64}[tensors[0].element_size()]
    for r, own_seed in enumerate(seeds_R):
        draw = np.random.default_rng(own_seed)
        while True:
            position = int(draw.integers(ends[-1]))
            chosen = int(np.searchsorted(ends, position, side="right"))
            x = tensors[chosen]
            place = (r, *np.unravel_index(position - (ends[chosen] - x[0].numel()), x.shape[1:]))
            if x[place] != 0:
                x[place] = (x[place].clone().view(whole) ^ 1).view(x.dtype)
                break
