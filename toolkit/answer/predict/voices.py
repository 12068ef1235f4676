"""Adapters on a stack, alone or in groups, and what each of them thinks of the next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.answer.predict.batches import fit
from toolkit.model.adapters import Adapter, AdapterError
from toolkit.model.stack import Stack


class Combine(NamedTuple):
    """How the members of a group become one distribution: a sum over members, so that a few can
    pass at a time.

    part: log-probabilities [G, k, N, V] of some members and their weights [G, k] (of all K together
    1) -> what these bring.
    join: what two parts bring -> what both bring. close: what all bring, and K -> log-probabilities
    of the group [G, N, V].
    """

    part: Callable[[Tensor, Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    close: Callable[[Tensor, int], Tensor]

    def __call__(self, log_GKNV: Tensor, weight_GK: Tensor | None = None) -> Tensor:
        """All members at once; equal weights unless given."""
        K = log_GKNV.shape[1]
        weight_GK = (
            equal_weights(log_GKNV.shape[0], K, log_GKNV)
            if weight_GK is None
            else weight_GK / weight_GK.sum(1, keepdim=True)
        )
        return self.close(self.part(log_GKNV, weight_GK.to(log_GKNV)), K)


def equal_weights(G: int, K: int, like: Tensor) -> Tensor:
    """Weights [G, K] of 1 / K each, of the dtype and on the device of `like`."""
    return torch.full((G, K), 1 / K, dtype=like.dtype, device=like.device)


class Voices:
    """The adapters of a stack as U voices of K members each, and what a voice thinks of the next
    token.

    The members of one voice can pass in pieces of a few at a time, in their order: then one forward
    pass holds few rows, and of the distributions [K, V] only what `combine` makes of them is kept.
    Several voices pass together.
    """

    def __init__(
        self,
        stack: Stack,
        count: int,
        members: int,
        combine: Combine | None,
        weight_UK: Tensor | None = None,
    ):
        self.stack, self.count, self.members, self.combine = stack, count, members, combine
        self.weight_UK = None if weight_UK is None else weight_UK / weight_UK.sum(1, keepdim=True)
        self.weights = stack.loaded

    def pieces(self, tokens: int, numbers: int) -> list[slice]:
        """Slices of the members; of one member a forward pass holds so many tokens and numbers at
        the output head.
        """
        size = self.members if self.count > 1 else min(self.members, fit(tokens, numbers))
        return [
            slice(start, min(start + size, self.members)) for start in range(0, self.members, size)
        ]

    def rows(self, piece: slice, x_UP: Tensor) -> Tensor:
        """What is the same for the members of a voice [U, P, ...] as rows of the stack, prompts
        last: [U * k * P, ...].
        """
        return x_UP.repeat_interleave(piece.stop - piece.start, 0).flatten(0, 1)

    def log_probs(self, pieces: Sequence[slice], logits: Callable[[int], Tensor]) -> Tensor:
        """Log-probabilities [U, N, V] of the voices; logits(i) are those of piece i, of rows that
        `rows` has made.
        """
        brought = None
        for i, piece in enumerate(pieces):
            if len(pieces) > 1:
                self.stack.load(
                    {
                        name: tuple(x[piece] for x in factors)
                        for name, factors in self.weights.items()
                    }
                )
            raw = logits(i)
            raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
            log_UkNV = F.log_softmax(raw, -1).view(
                self.count, piece.stop - piece.start, -1, raw.shape[-1]
            )
            if self.combine is None:
                return log_UkNV[:, 0]
            weight_UK = (
                equal_weights(self.count, self.members, raw)
                if self.weight_UK is None
                else self.weight_UK.to(raw)
            )
            part = self.combine.part(log_UkNV, weight_UK[:, piece])
            brought = part if brought is None else self.combine.join(brought, part)
        if len(pieces) > 1:
            self.stack.load(self.weights)
        assert self.combine is not None and brought is not None
        return self.combine.close(brought, self.members)


def load_adapters(stack: Stack, adapters: Sequence[Adapter | None], width: int) -> None:
    """Put adapters of any rank and scale on the stack; None is the base itself. Empty slots up to
    `width` are the base too.

    The scale goes into B, and ranks are padded with zeros: neither changes dW.
    Raises AdapterError when one does not fit the base, or cannot be read.
    """
    parameter = next(stack.model.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    adapters = [a and a.fitted(stack.adaptable) for a in adapters]
    rank = max((a.rank for a in adapters if a), default=1)
    factors = {}
    for adapter in adapters:
        unknown = sorted(set(adapter.modules) - set(stack.adaptable)) if adapter else []
        if adapter and unknown:
            raise AdapterError(
                f"{adapter.path}: the base has no linear layer {unknown[0]!r}; is this an "
                "adapter of another base?"
            )
        if adapter:
            adapter.check_copies(lambda name: stack.adaptable[name].base.weight)  # type: ignore[return-value]
    for name, layer in stack.adaptable.items():
        if not any(a and name in a.modules for a in adapters):
            continue
        A_RrI = torch.zeros(width, rank, layer.in_features, dtype=dtype)
        B_ROr = torch.zeros(width, layer.out_features, rank, dtype=dtype)
        for k, adapter in enumerate(adapters):
            if adapter is None or name not in adapter.modules:
                continue
            A, B, scale = adapter.factors(name)
            if A.shape[1] != layer.in_features or B.shape[0] != layer.out_features:
                shape = (
                    f"[{B.shape[0]}, {A.shape[1]}], the base [{layer.out_features}, "
                    f"{layer.in_features}]"
                )
                raise AdapterError(
                    f"{adapter.path}: {name} is {shape}; is this an adapter of another base?"
                )
            A_RrI[k, : A.shape[0]] = A
            B_ROr[k, :, : B.shape[1]] = B * scale
        factors[name] = (A_RrI.to(parameter.device), B_ROr.to(parameter.device))
    stack.load(factors)
