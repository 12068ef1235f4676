"""From gradients to new weights, every replica by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_norms(parameters: Sequence[Tensor]) -> Tensor:
    """Gradient norm of each replica, [R], over all its tensors. The norm of the stack would tie replicas together."""
    return torch.stack([p.grad.square().flatten(1).sum(1) for p in parameters if p.grad is not None]).sum(0).sqrt()


def clip_gradients(parameters: Sequence[Tensor], norm_R: Tensor, largest: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` for every replica by itself."""
    factor_R = (largest / (norm_R + 1e-6)).clamp(max=1)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor_R[:, None, None])
