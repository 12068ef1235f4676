"""From gradients to new weights, every replica by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.recipe import Condition
from toolkit.train.initial import Weights_R


class Optimiser:
    """AdamW on the weights of a stack that require a gradient, with the controls of a condition.

    - `layer_lr_decay`: see `layer_rate`; `lr_ratio_B`: B learns that much faster than A (LoRA+,
      arXiv:2402.12354).
    - `weight_decay` draws towards the base: of LoRA the factors towards 0, of full fine-tuning W
      towards the base's W (L2-SP, arXiv:1802.01483, decoupled as in arXiv:1711.05101).
    - `lookahead`: every k steps, and at the last, the weights go back to slow ones that have moved
      by a share alpha towards them; the moments of AdamW stay (arXiv:1907.08610).
    """

    def __init__(self, model: nn.Module, weights: Weights_R, condition: Condition):
        full = condition.method == "full"
        parts_of: dict[float, list[Tensor]] = {}  # rate, as a multiple of the learning rate
        # weights, what they are drawn towards, rate
        self.drawn: list[tuple[Tensor, Tensor, float]] = []
        for name, tensors in weights.items():
            for x, side in zip(tensors, "AB", strict=False):
                if not x.requires_grad:
                    continue
                rate = layer_rate(model, name, condition.layer_lr_decay)
                rate *= condition.lr_ratio_B if side == "B" and not full else 1.0
                parts_of.setdefault(rate, []).append(x)
                if full and condition.weight_decay:
                    self.drawn.append((x, model.get_parameter(name).detach().to(x.dtype), rate))
        self.parts = [x for parts in parts_of.values() for x in parts]
        self.rates = list(parts_of)
        self.adam = torch.optim.AdamW(
            [{"params": parts} for parts in parts_of.values()],
            lr=condition.lr,
            betas=(condition.betas[0], condition.betas[1]),
            eps=condition.eps,
            weight_decay=0.0 if full else condition.weight_decay,
            fused=True,
        )
        self.clip, self.decay, self.lookahead = (
            condition.clip,
            condition.weight_decay,
            condition.lookahead,
        )
        self.slow = [x.detach().clone() for x in self.parts] if self.lookahead else []

    def state(self) -> dict[str, Any]:
        """Weights, moments and slow weights, for `restore`."""
        return {
            "parts": [x.detach() for x in self.parts],
            "adam": self.adam.state_dict(),
            "slow": self.slow,
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved `state`."""
        for x, saved in zip(
            [*self.parts, *self.slow], [*state["parts"], *state["slow"]], strict=True
        ):
            x.copy_(saved)
        self.adam.load_state_dict(state["adam"])

    @torch.no_grad()
    def step(self, lr: float, done: int, last: bool) -> Tensor:
        """One step at the learning rate lr, the done-th from 1; the gradient norms of the replicas
        before clipping, [R].
        """
        norm_R = gradient_norms(self.parts)
        if self.clip:
            clip_gradients(self.parts, norm_R, self.clip)
        for x, origin, rate in self.drawn:
            x.sub_(x - origin, alpha=lr * rate * self.decay)
        for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
            group["lr"] = lr * rate
        self.adam.step()
        self.adam.zero_grad()
        if self.lookahead and (last or done % self.lookahead.k == 0):
            for x, slow in zip(self.parts, self.slow, strict=True):
                x.copy_(slow.lerp_(x, self.lookahead.alpha))
        return norm_R


def layer_rate(model: nn.Module, name: str, decay: float) -> float:
    """Learning rate of a module or parameter as a multiple of the highest: decay^(blocks above it)
    (ULMFiT, arXiv:1801.06146).

    The number in a name says the block. Embeddings lie below all blocks; what else is outside of
    them (final norm, head) above.
    """
    if decay == 1:
        return 1.0
    blocks = 1 + max(
        (number for module, _ in model.named_modules() if (number := _block(module)) is not None),
        default=-1,
    )
    number = _block(name)
    if number is None:
        number = (
            -1
            if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
            else blocks - 1
        )
    return decay ** (blocks - 1 - number)


def _block(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def gradient_norms(parameters: Sequence[Tensor]) -> Tensor:
    """Gradient norm of each replica, [R], over all its tensors. The norm of the stack would tie
    replicas together.
    """
    return (
        torch.stack([p.grad.square().flatten(1).sum(1) for p in parameters if p.grad is not None])
        .sum(0)
        .sqrt()
    )


def clip_gradients(parameters: Sequence[Tensor], norm_R: Tensor, largest: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` for every replica by itself."""
    factor_R = (largest / (norm_R + 1e-6)).clamp(max=1)
    for p in parameters:
        if p.grad is not None:
            p.grad.mul_(factor_R.view(-1, *[1] * (p.dim() - 1)))
