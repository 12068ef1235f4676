"""Prefill: prompts that all voices have read, and the KV caches to continue from.

Prompts are read without padding, those of one length together. Then prompts of any length go on in
one batch: the KV caches of the shorter ones are filled up in front by slots that a mask hides, and
which therefore weigh exactly nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from toolkit.answer.predict.batches import alike, together
from toolkit.answer.predict.voices import Voices
from toolkit.model.stack import own_code


class Roomy(DynamicLayer):
    """Keys and values [rows, H, T, D] of one layer with room for the tokens to come: to add one
    does not copy those that are there.
    """

    def __init__(self, keys: Tensor, values: Tensor, room: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.held = [F.pad(x, (0, 0, 0, room)) for x in (keys, values)]
        self.show(keys.shape[2])

    def show(self, used: int) -> tuple[Tensor, Tensor]:
        """Only the first `used` tokens are there."""
        self.used = used
        self.keys, self.values = (x[:, :, :used] for x in self.held)
        return self.keys, self.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [rows, H, t, D] of t new tokens behind the others; return all."""
        used = self.used + key_states.shape[2]
        for held, new in zip(self.held, (key_states, value_states), strict=True):
            held[:, :, self.used : used] = new
        return self.show(used)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.held = [x[indices] for x in self.held]
        self.show(self.used)


@dataclass
class Prefilled:
    """Prompts [P] that all voices have read: what they think of the next token [U, P, V], and the
    KV caches of each piece of members.
    """

    voices: Voices
    pieces: Sequence[slice]
    indices: list[int]
    length_P: Tensor
    log_UPV: Tensor
    caches: list[Any]
    longest: int
    room: int
    """tokens that may come after the prompts"""
    ragged: bool = False
    """some prompts are shorter, and have empty slots in front"""
    passed: int = 0
    """tokens of each prompt's continuation that passed"""

    @property
    def rewinds(self) -> bool:
        """Caches can forget what came after the prompts."""
        return all(
            isinstance(layer, Roomy)
            for cache in self.caches
            for layer in getattr(cache, "layers", [None])
        )

    def rewind(self) -> None:
        """Back to the end of the prompts. Not after `keep`."""
        for cache in self.caches:
            for layer in cache.layers:
                layer.show(self.longest)
        self.passed = 0

    @property
    def keeps(self) -> bool:
        """Caches can go on with some of the rows alone. Those of linear attention and of state
        spaces cannot: all rows stay to the end.
        """
        return all(
            hasattr(layer, "batch_select_indices")
            for cache in self.caches
            for layer in getattr(cache, "layers", [])
        )

    def keep(self, open_P: Tensor) -> None:
        """Go on with some of the prompts alone. Only where `keeps`."""
        for piece, cache in zip(self.pieces, self.caches, strict=True):
            row = torch.arange(
                self.voices.count * (piece.stop - piece.start) * len(open_P), device=open_P.device
            )
            with own_code(self.voices.stack.model, "its cache"):
                cache.batch_select_indices(row.view(-1, len(open_P))[:, open_P].reshape(-1))
        self.length_P = self.length_P[open_P]

    def go_on(self, ids_UPT: Tensor, every: bool = False) -> Tensor:
        """Log-probabilities [U, P, V] after the next tokens of every prompt; `every`: after each of
        them, [U, P * T, V].
        """
        U, P, T = ids_UPT.shape
        where = {}
        if self.ragged:  # positions are counted from the first token of a prompt
            slot_S = torch.arange(self.longest + self.passed + T, device=ids_UPT.device)
            seen_PS = (slot_S >= self.longest - self.length_P[:, None]).long()
            position_PT = (
                self.length_P[:, None] + self.passed + torch.arange(T, device=ids_UPT.device)
            )
            where = {
                "attention_mask": seen_PS.expand(U, -1, -1),
                "position_ids": position_PT.expand(U, -1, -1),
            }

        def logits(i: int) -> Tensor:
            rows = {name: self.voices.rows(self.pieces[i], x) for name, x in where.items()}
            output = self.voices.stack.step(
                self.voices.rows(self.pieces[i], ids_UPT), self.caches[i], every=every, **rows
            )
            return output.logits if every else output.logits[:, -1]

        log_UNV = self.voices.log_probs(self.pieces, logits)
        self.passed += T
        return log_UNV


def prefill(
    voices: Voices, prompts: Sequence[Sequence[int]], room: int, vocabulary: int
) -> Iterator[Prefilled]:
    """All prompts, a batch at a time; the caches have room for so many tokens more."""
    device = next(voices.stack.model.parameters()).device
    lengths = [len(prompt) for prompt in prompts]
    rows_each = voices.count * voices.members
    # a model that counts positions by itself must not be given empty slots
    any_length = "position_ids" in inspect.signature(voices.stack.model.forward).parameters
    for batch in together(lengths, rows_each, room, vocabulary):
        groups = list(alike(lengths, batch, rows_each, spread=0))
        pieces = voices.pieces(max(len(group) * lengths[group[0]] for group in groups), 0)
        parts = []
        for group in groups:
            input_UPT = torch.tensor([list(prompts[i]) for i in group], device=device).expand(
                voices.count, -1, -1
            )
            length_P = torch.full((len(group),), lengths[group[0]], device=device)
            caches: list[Any] = [None] * len(pieces)

            def last(i: int, input_UPT=input_UPT, caches=caches, pieces=pieces) -> Tensor:
                output = voices.stack.step(voices.rows(pieces[i], input_UPT))
                caches[i] = getattr(output, "past_key_values", None)
                if caches[i] is None:
                    raise ValueError("it has no key-value cache, through which ftk answers")
                return output.logits[:, -1]

            log_UPV = voices.log_probs(pieces, last)
            parts.append(
                Prefilled(voices, pieces, group, length_P, log_UPV, caches, lengths[group[0]], room)
            )
        for mergeable in [parts] if any_length else [[part] for part in parts]:
            yield from _join(mergeable)


def _join(parts: Sequence[Prefilled]) -> list[Prefilled]:
    """Parts that were read apart as one, with room for more tokens, where caches are plain keys and
    values; others stay apart.
    """
    caches = [cache for part in parts for cache in part.caches]
    if not all(
        type(layer) is DynamicLayer
        for cache in caches
        for layer in getattr(cache, "layers", [None])
    ):
        return list(parts)
    longest = max(part.longest for part in parts)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        """[rows, H, T, D] of each part as one, with empty slots in front; the prompts of one member
        of a voice stay side by side.
        """
        filled = [F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in tensors]
        return torch.cat(
            [
                x.unflatten(0, (-1, len(part.indices)))
                for x, part in zip(filled, parts, strict=True)
            ],
            1,
        ).flatten(0, 1)

    for first, *others in zip(*(part.caches for part in parts), strict=True):
        every = [
            [layer] + [other.layers[n] for other in others] for n, layer in enumerate(first.layers)
        ]
        first.layers = [
            Roomy(joined([x.keys for x in same]), joined([x.values for x in same]), parts[0].room)
            for same in every
        ]
    first = parts[0]
    indices = [i for part in parts for i in part.indices]
    length_P, log_UPV = (
        torch.cat([part.length_P for part in parts]),
        torch.cat([part.log_UPV for part in parts], 1),
    )
    ragged = any(part.longest < longest for part in parts)
    return [
        Prefilled(
            first.voices,
            first.pieces,
            indices,
            length_P,
            log_UPV,
            first.caches,
            longest,
            first.room,
            ragged,
        )
    ]
