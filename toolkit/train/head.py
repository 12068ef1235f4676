"""The loss for a large vocabulary, a few tokens at a time: the logits of a whole step would be the
largest tensor by far.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.model.stack import Stack


def plain_head(model: nn.Module) -> bool:
    """Whether the logits of a base are those of its output head, neither scaled nor capped
    afterwards as in Gemma 2 or Cohere.
    """
    ids = torch.arange(2, device=next(model.parameters()).device)[None]
    stack = Stack(model, ())
    try:
        with torch.no_grad():
            hidden, logits = stack.hidden(ids, ids), stack.logits(ids, ids)
            return torch.equal(F.linear(hidden, *_weights(model)), logits)
    finally:
        stack.remove()


def token_losses_in_pieces(
    stack: Stack,
    ids: Tensor,
    position: Tensor,
    target: Tensor,
    *,
    replicas: int,
    piece: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`token_losses` without soft targets, [N, L], of a base with a plain head; the logits of at
    most `piece` tokens are formed at a time.

    N is replicas * rows of each. Raises ValueError for a piece of no tokens.
    """
    hidden = stack.hidden(ids, position)
    sizes = pieces(replicas, target.numel() // replicas, piece)
    losses: Any = _Losses.apply(
        hidden.flatten(0, 1), *_weights(stack.model), target.flatten(), label_smoothing, sizes
    )
    return losses.view(target.shape)


def pieces(replicas: int, tokens: int, most: int) -> list[int]:
    """Sizes of pieces of all replicas' tokens, `tokens` each. Every replica is cut alike: the shape
    of a product is part of its bits.
    """
    if most < 1:
        raise ValueError(f"a piece has at least one token, not {most}")
    if tokens > most:
        each = math.ceil(tokens / math.ceil(tokens / most))
        return [*[each] * ((tokens - 1) // each), (tokens - 1) % each + 1] * replicas
    together = max(k for k in range(1, replicas + 1) if replicas % k == 0 and k * tokens <= most)
    return [together * tokens] * (replicas // together)


def _weights(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    return head.weight, head.bias


class _Losses(torch.autograd.Function):
    """Cross-entropy [M] in nats of hidden states [M, H] under a frozen head [V, H].

    The gradient of each token's loss is formed with the loss, while its logits are there: nothing
    is computed twice, and what is kept is of the size of the hidden states.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_M: Tensor,
        smooth: float,
        sizes: list[int],
    ) -> Tensor:
        losses, gradients = [], []
        V = len(weight_VH)
        for hidden, target in zip(hidden_MH.split(sizes), target_M.split(sizes), strict=True):
            logits = F.linear(hidden, weight_VH, bias_V)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses.append(F.cross_entropy(logits, target, reduction="none", label_smoothing=smooth))
            if ctx.needs_input_grad[0]:
                share = torch.softmax(logits, -1)
                del logits
                share.scatter_add_(1, target[:, None], share.new_full((len(target), 1), smooth - 1))
                gradients.append(
                    (share.sub_(smooth / V) if smooth else share).to(hidden.dtype) @ weight_VH
                )
        ctx.save_for_backward(*([torch.cat(gradients)] if gradients else []))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, upstream_M: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # type: ignore[override]
        (gradient_MH,) = ctx.saved_tensors
        return gradient_MH * upstream_M[:, None].to(gradient_MH.dtype), None, None, None, None, None
