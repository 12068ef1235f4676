"""R adapters answer the same prompts in one batch: greedy text with a KV cache, and log-probabilities of given continuations.

Prompts are read without padding, those of one length together. Then prompts of any length go on in one batch: the KV caches of the shorter
ones are filled up in front by slots that a mask hides, and which therefore weigh exactly nothing. Continuations are scored with padding
behind them, which nothing before it can see. Rows are voice-major: all prompts of voice 0 first. A voice is one adapter, or a group of K
adapters that speak as one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicLayer

from toolkit.adapters import Adapter
from toolkit.stack import Stack

TOKENS = 8192  # of all rows that pass together
CACHED = 32768  # tokens whose keys and values a batch holds, prompt and answer
LOGITS = 1 << 28  # numbers at the output head of one forward pass: 1 GiB


class Combine(NamedTuple):
    """How the members of a group speak with one voice: a sum over members, so that a few of them can pass at a time.

    part: log-probabilities [G, k, N, V] of some members and their weights [G, k] (of all K together 1) -> what these bring.
    join: what two parts bring -> what both bring. close: what all bring, and K -> log-probabilities of the group [G, N, V].
    """

    part: Callable[[Tensor, Tensor], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    close: Callable[[Tensor, int], Tensor]

    def __call__(self, log_GKNV: Tensor, weight_GK: Tensor | None = None) -> Tensor:
        """All members at once; equal weights unless given."""
        K = log_GKNV.shape[1]
        weight_GK = equal_weights(log_GKNV.shape[0], K, log_GKNV) if weight_GK is None else weight_GK / weight_GK.sum(1, keepdim=True)
        return self.close(self.part(log_GKNV, weight_GK.to(log_GKNV)), K)


def equal_weights(G: int, K: int, like: Tensor) -> Tensor:
    return torch.full((G, K), 1 / K, dtype=like.dtype, device=like.device)


class Voices:
    """The adapters of a stack as U voices of K members each, and what a voice thinks of the next token.

    The members of one voice can pass in pieces of a few at a time, in their order: then one forward pass holds few rows, and of the
    distributions [K, V] only what `combine` makes of them is kept. Several voices pass together.
    """

    def __init__(self, stack: Stack, voices: int, members: int, combine: Combine | None, weight_UK: Tensor | None = None):
        self.stack, self.voices, self.members, self.combine = stack, voices, members, combine
        self.weight_UK = None if weight_UK is None else weight_UK / weight_UK.sum(1, keepdim=True)
        self.weights = stack.loaded

    def pieces(self, tokens: int, numbers: int) -> list[slice]:
        """Slices of the members; of one member a forward pass holds so many tokens and numbers at the output head."""
        fit = min(TOKENS // max(1, tokens), LOGITS // max(1, numbers))
        size = self.members if self.voices > 1 else min(self.members, max(1, fit))
        return [slice(start, min(start + size, self.members)) for start in range(0, self.members, size)]

    def rows(self, piece: slice, x_UP: Tensor) -> Tensor:
        """What is the same for the members of a voice [U, P, ...] as rows of the stack, prompts last: [U * k * P, ...]."""
        return x_UP.repeat_interleave(piece.stop - piece.start, 0).flatten(0, 1)

    def log_probs(self, pieces: Sequence[slice], logits: Callable[[int], Tensor]) -> Tensor:
        """Log-probabilities [U, N, V] of the voices; logits(i) are those of piece i, of rows that `rows` has made."""
        brought = None
        for i, piece in enumerate(pieces):
            if len(pieces) > 1:
                self.stack.load({name: tuple(x[piece] for x in several) for name, several in self.weights.items()})
            raw = logits(i)
            raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
            log_UkNV = F.log_softmax(raw, -1).view(self.voices, piece.stop - piece.start, -1, raw.shape[-1])
            if self.combine is None:
                return log_UkNV[:, 0]
            weight_UK = equal_weights(self.voices, self.members, raw) if self.weight_UK is None else self.weight_UK.to(raw)
            part = self.combine.part(log_UkNV, weight_UK[:, piece])
            brought = part if brought is None else self.combine.join(brought, part)
        if len(pieces) > 1:
            self.stack.load(self.weights)
        assert self.combine is not None and brought is not None
        return self.combine.close(brought, self.members)


@dataclass(frozen=True)
class Generation:
    """What one voice answered to one prompt, greedily."""

    ids: list[int]  # without the end-of-sequence token
    logprob: float  # of the tokens and of the end, nats
    margin: float  # nats by which the best token led the second best where that was least
    finished: bool  # False: cut at max_new_tokens
    end: int | None  # the token that ended it
    first_ids: list[int]
    first_logprobs: list[float]


def load_adapters(stack: Stack, adapters: Sequence[Adapter | None], width: int) -> None:
    """Put adapters of any rank and scale on the stack; None is the base itself. Empty slots up to `width` are the base too.

    The scale goes into B, and ranks are padded with zeros: neither changes dW.
    Raises ValueError when an adapter does not fit the base, AdapterError where it cannot be read.
    """
    parameter = next(stack.model.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    rank = max((a.rank for a in adapters if a), default=1)
    factors = {}
    for adapter in adapters:
        unknown = sorted(set(adapter.modules) - set(stack.adaptable)) if adapter else []
        if adapter and unknown:
            raise ValueError(f"{adapter.path}: the base has no linear layer {unknown[0]!r}; is this an adapter of another base?")
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
                shape = f"[{B.shape[0]}, {A.shape[1]}], the base [{layer.out_features}, {layer.in_features}]"
                raise ValueError(f"{adapter.path}: {name} is {shape}; is this an adapter of another base?")
            A_RrI[k, : A.shape[0]] = A
            B_ROr[k, :, : B.shape[1]] = B * scale
        factors[name] = (A_RrI.to(parameter.device), B_ROr.to(parameter.device))
    stack.load(factors)


def together(lengths: Sequence[int], rows_each: int, extra: int, vocabulary: int) -> Iterator[list[int]]:
    """Indices of prompts that go on in one batch, shortest first: what their KV caches and one row of logits each may take."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        rows = rows_each * (len(batch) + 1)
        if batch and (rows * (lengths[i] + extra) > CACHED or rows * vocabulary > LOGITS // 4):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _alike(
    lengths: Sequence[int], order: Iterable[int], rows_each: int, spread: float, head: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Indices in batches of about TOKENS, the longest of which is at most 1 + `spread` times as long as the first.

    head: numbers at the output head of each row, of which a batch has at most about LOGITS. Shortest first.
    """
    batch: list[int] = []
    for i in order:
        rows = rows_each * (len(batch) + 1)
        numbers = rows * max(head[k] for k in (*batch, i)) if head else 0
        if batch and (rows * lengths[i] > TOKENS or numbers > LOGITS or lengths[i] > (1 + spread) * lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@dataclass
class _Read:
    """Prompts that all voices have read: what they think of the next token [U, P, V], and the KV caches of each piece of members."""

    indices: list[int]
    lengths: list[int]
    log_UPV: Tensor
    caches: list[Any]


class _Roomy(DynamicLayer):
    """Keys and values [rows, H, T, D] of one layer with room for the tokens to come: to add one does not copy those that are there."""

    def __init__(self, keys: Tensor, values: Tensor, room: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.held = [F.pad(x, (0, 0, 0, room)) for x in (keys, values)]
        self._show(keys.shape[2])

    def _show(self, used: int) -> tuple[Tensor, Tensor]:
        self.used = used
        self.keys, self.values = (x[:, :, :used] for x in self.held)
        return self.keys, self.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        used = self.used + key_states.shape[2]
        for held, new in zip(self.held, (key_states, value_states), strict=True):
            held[:, :, self.used : used] = new
        return self._show(used)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.held = [x[indices] for x in self.held]
        self._show(self.used)


def _join(parts: Sequence[_Read], room: int) -> list[_Read]:
    """Parts that were read apart as one, with room for more tokens, where caches are plain keys and values; others stay apart."""
    caches = [cache for part in parts for cache in part.caches]
    if not all(type(layer) is DynamicLayer for cache in caches for layer in getattr(cache, "layers", [None])):
        return list(parts)
    longest = max(part.lengths[0] for part in parts)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        """[rows, H, T, D] of each part as one, with empty slots in front; the prompts of one member of a voice stay side by side."""
        filled = [F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in tensors]
        return torch.cat([x.unflatten(0, (-1, len(part.indices))) for x, part in zip(filled, parts, strict=True)], 1).flatten(0, 1)

    for first, *others in zip(*(part.caches for part in parts), strict=True):
        every = [[layer] + [other.layers[n] for other in others] for n, layer in enumerate(first.layers)]
        first.layers = [_Roomy(joined([x.keys for x in same]), joined([x.values for x in same]), room) for same in every]
    indices, lengths = [i for part in parts for i in part.indices], [n for part in parts for n in part.lengths]
    return [_Read(indices, lengths, torch.cat([part.log_UPV for part in parts], 1), parts[0].caches)]


@torch.inference_mode()
def generate(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    *,
    voices: int,
    members: int = 1,
    combine: Combine | None = None,
    weight_UK: Tensor | None = None,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    top_k: int,
) -> list[list[Generation]]:
    """Greedy answers, [voice][prompt]. The stack holds voices * members adapters, the members of a voice side by side.

    With `combine` the members of a voice share one token stream: each keeps its own KV cache, the group's distribution picks the
    token. Sequences that are finished leave the batch when they are finished for every voice.
    """
    device = next(stack.model.parameters()).device
    vocabulary = stack.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    speak = Voices(stack, voices, members, combine, weight_UK)
    lengths = [len(prompt) for prompt in prompts]
    # positions are counted from the first token of a prompt, so a model must let itself be told them
    any_length = "position_ids" in inspect.signature(stack.model.forward).parameters
    answers: list[list[Generation | None]] = [[None] * len(prompts) for _ in range(voices)]
    for batch in together(lengths, voices * members, max_new_tokens, vocabulary):
        groups = list(_alike(lengths, batch, voices * members, spread=0))
        pieces = speak.pieces(max(len(group) * lengths[group[0]] for group in groups), 0)
        parts = []
        for group in groups:
            input_UPT = torch.tensor([list(prompts[i]) for i in group], device=device).expand(voices, -1, -1)
            caches: list[Any] = [None] * len(pieces)

            def last(i: int, input_UPT=input_UPT, caches=caches, pieces=pieces) -> Tensor:
                output = stack.step(speak.rows(pieces[i], input_UPT))
                caches[i] = output.past_key_values
                return output.logits[:, -1]

            parts.append(_Read(group, [lengths[i] for i in group], speak.log_probs(pieces, last), caches))
        for read in _join(parts, max_new_tokens) if any_length else parts:
            for u, row in enumerate(_go_on(speak, read, pieces, eos_ids, max_new_tokens, top_k)):
                for i, answer in zip(read.indices, row, strict=True):
                    answers[u][i] = answer
    return answers  # type: ignore[return-value]


def _go_on(
    speak: Voices, read: _Read, pieces: Sequence[slice], eos_ids: Sequence[int], max_new_tokens: int, top_k: int
) -> list[list[Generation]]:
    """Token by token to the end of every answer, [voice][prompt]."""
    log_UPV, P, voices = read.log_UPV, len(read.indices), speak.voices
    device = log_UPV.device
    eos = torch.tensor(list(eos_ids), device=device)
    best = log_UPV.topk(min(top_k, log_UPV.shape[-1]), -1)
    length_P, longest = torch.tensor(read.lengths, device=device), max(read.lengths)
    slot_S = torch.arange(longest + max_new_tokens, device=device)
    seen_PS = (slot_S >= longest - length_P[:, None]).long() if min(read.lengths) < longest else None
    column = torch.arange(P, device=device)  # prompts still in the batch
    tokens = []
    done_UP = torch.zeros(voices, P, dtype=torch.bool, device=device)
    logprob_UP = torch.zeros(voices, P, dtype=torch.float64, device=device)
    margin_UP = torch.full((voices, P), torch.inf, device=device)
    for step in range(max_new_tokens):
        score_UP, token_UP = log_UPV.max(-1)
        two_UP2 = log_UPV.topk(2, -1).values
        done = done_UP[:, column]
        token_UP = torch.where(done, eos[0], token_UP)
        logprob_UP[:, column] += torch.where(done, 0.0, score_UP.double())
        lead_UP = torch.where(done, torch.inf, (two_UP2[..., 0] - two_UP2[..., 1]).float())
        margin_UP[:, column] = torch.minimum(margin_UP[:, column], lead_UP)
        all_UP = torch.full_like(done_UP, int(eos[0]), dtype=torch.long)
        all_UP[:, column] = token_UP
        tokens.append(all_UP)
        done_UP[:, column] = done | torch.isin(token_UP, eos)
        open_P = (~done_UP[:, column]).any(0)
        if step + 1 == max_new_tokens or not bool(open_P.any()):
            break
        if int(open_P.sum()) <= len(column) // 2:  # the few that go on forever should not carry the many that are done
            for piece, cache in zip(pieces, read.caches, strict=True):
                row = torch.arange(voices * (piece.stop - piece.start) * len(column), device=device)
                cache.batch_select_indices(row.view(-1, len(column))[:, open_P].reshape(-1))
            column, token_UP = column[open_P], token_UP[:, open_P]

        def last(i: int, step=step, column=column, token_UP=token_UP) -> Tensor:
            ids, where = speak.rows(pieces[i], token_UP[:, :, None]), {}
            if seen_PS is not None:
                rows = (x.expand(voices, -1, -1) for x in (seen_PS[column, : longest + step + 1], (length_P[column] + step)[:, None]))
                where = dict(zip(("attention_mask", "position_ids"), (speak.rows(pieces[i], x) for x in rows), strict=True))
            return speak.stack.step(ids, read.caches[i], **where).logits[:, -1]

        log_UPV = speak.log_probs(pieces, last)
    ids_UPT, end = torch.stack(tokens, -1).tolist(), set(eos_ids)
    done, logprob, margin, first_ids, first_logprobs = (x.tolist() for x in (done_UP, logprob_UP, margin_UP, best.indices, best.values))

    def answer(u: int, p: int) -> Generation:
        ids = ids_UPT[u][p]
        n = next((t for t, token in enumerate(ids) if token in end), len(ids))
        last = ids[n] if n < len(ids) else None
        return Generation(ids[:n], logprob[u][p], margin[u][p], done[u][p], last, first_ids[u][p], first_logprobs[u][p])

    return [[answer(u, p) for p in range(P)] for u in range(voices)]


@dataclass(frozen=True)
class Scored:
    """What one voice thinks of one given continuation, teacher-forced."""

    logprobs: list[float]  # of each token, nats
    best: list[bool]  # it is the voice's first choice

    @property
    def logprob(self) -> float:
        """Of the whole continuation, nats."""
        return math.fsum(self.logprobs)


@torch.inference_mode()
def score_tokens(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    voices: int,
    members: int = 1,
    combine: Combine | None = None,
    weight_UK: Tensor | None = None,
) -> list[list[Scored]]:
    """What every voice thinks of each prompt's continuation, [voice][prompt], token by token.

    A continuation has at least one token; prompts too.
    """
    device = next(stack.model.parameters()).device
    speak = Voices(stack, voices, members, combine, weight_UK)
    vocabulary = stack.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    found: list[list[Scored | None]] = [[None] * len(prompts) for _ in range(voices)]
    sequences = [[*prompt, *continuation] for prompt, continuation in zip(prompts, continuations, strict=True)]
    lengths = [len(sequence) for sequence in sequences]
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    head = [len(continuation) * vocabulary for continuation in continuations]
    for indices in _alike(lengths, order, voices * members, spread=0.25, head=head):
        P = len(indices)
        ids_PT = pad_sequence([torch.tensor(sequences[i]) for i in indices], batch_first=True).to(device)
        L = max(len(continuations[i]) for i in indices)
        position_PL = torch.zeros(P, L, dtype=torch.long, device=device)
        for p, i in enumerate(indices):
            n = len(continuations[i])
            position_PL[p, :n] = torch.arange(len(sequences[i]) - n - 1, len(sequences[i]) - 1)
        target_PL = ids_PT.gather(1, (position_PL + 1).clamp(max=ids_PT.shape[1] - 1))
        pieces = speak.pieces(ids_PT.numel(), P * L * vocabulary)

        def chosen(i: int, pieces=pieces, ids_PT=ids_PT, position_PL=position_PL) -> Tensor:
            ids, position = (speak.rows(pieces[i], x.expand(voices, -1, -1)) for x in (ids_PT, position_PL))
            return stack.logits(ids, position)

        log_UNV = speak.log_probs(pieces, chosen)
        target_UN = target_PL.reshape(1, -1).expand(voices, -1)
        log_UPL = log_UNV.gather(-1, target_UN[..., None]).view(voices, P, L).tolist()
        best_UPL = (log_UNV.argmax(-1) == target_UN).view(voices, P, L).tolist()
        for u in range(voices):
            for p, i in enumerate(indices):
                n = len(continuations[i])
                found[u][i] = Scored(log_UPL[u][p][:n], best_UPL[u][p][:n])
    return found  # type: ignore[return-value]


def score(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    voices: int,
    members: int = 1,
    combine: Combine | None = None,
) -> list[list[float]]:
    """Log-probability (nats) of each prompt's continuation, [voice][prompt]; see `score_tokens`."""
    found = score_tokens(stack, prompts, continuations, voices=voices, members=members, combine=combine)
    return [[scored.logprob for scored in row] for row in found]
