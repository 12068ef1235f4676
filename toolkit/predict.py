"""R adapters answer the same prompts in one batch: greedy text with a KV cache, and log-probabilities of given continuations.

Prompts of equal token length share a batch, so there is no padding at all: neither a mask nor a neighbour's length can touch an
answer. Rows are voice-major: all prompts of voice 0 first. A voice is one adapter, or a group of K adapters that speak as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.adapters import Adapter
from toolkit.stack import Stack

Combine = Callable[[Tensor], Tensor]
"""log-probabilities of the members [G, K, P, V] -> of the group [G, P, V]"""

TOKENS = 8192  # of all rows of a batch together, prompt and answer


@dataclass(frozen=True)
class Generation:
    """What one voice answered to one prompt, greedily."""

    ids: list[int]  # without the end-of-sequence token
    logprob: float  # of the tokens and of the end, nats
    finished: bool  # False: cut at max_new_tokens
    first_ids: list[int]
    first_logprobs: list[float]


def load_adapters(stack: Stack, adapters: Sequence[Adapter | None], width: int) -> None:
    """Put adapters of any rank and scale on the stack; None is the base itself. Empty slots up to `width` are the base too.

    The scale goes into B, and ranks are padded with zeros: neither changes dW.
    Raises ValueError when an adapter does not fit the base.
    """
    parameter = next(stack.model.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    rank = max((a.rank for a in adapters if a), default=1)
    factors = {}
    for adapter in adapters:
        unknown = sorted(set(adapter.modules) - set(stack.layers)) if adapter else []
        if adapter and unknown:
            raise ValueError(f"{adapter.path}: the base has no linear layer {unknown[0]!r}; is this an adapter of another base?")
    for name, layer in stack.layers.items():
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


def _batches(prompts: Sequence[Sequence[int]], rows_each: int, extra: int) -> Iterator[list[int]]:
    """Indices of prompts of one length, in chunks that keep a batch near TOKENS."""
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    for length, indices in sorted(by_length.items()):
        size = max(1, TOKENS // (rows_each * (length + extra)))
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


@torch.inference_mode()
def generate(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    *,
    voices: int,
    members: int = 1,
    combine: Combine | None = None,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    top_k: int,
) -> list[list[Generation]]:
    """Greedy answers, [voice][prompt]. The stack holds voices * members adapters, the members of a voice side by side.

    With `combine` the members of a voice share one token stream: each keeps its own KV cache, the group's distribution picks the
    token. Sequences that are finished leave the batch when they are finished for every voice.
    """
    device = next(stack.model.parameters()).device
    eos = torch.tensor(list(eos_ids), device=device)
    answers: list[list[Generation | None]] = [[None] * len(prompts) for _ in range(voices)]
    for indices in _batches(prompts, voices * members, max_new_tokens):
        inputs = torch.tensor([list(prompts[i]) for i in indices], device=device).repeat(voices * members, 1)
        column = torch.arange(len(indices), device=device)  # prompts still in the batch
        cache, tokens = None, []
        done_UP = torch.zeros(voices, len(indices), dtype=torch.bool, device=device)
        logprob_UP = torch.zeros(voices, len(indices), dtype=torch.float64, device=device)
        first: tuple[Tensor, Tensor] | None = None
        for _ in range(max_new_tokens):
            output = stack.step(inputs, cache)
            cache = output.past_key_values
            log_GKPV = F.log_softmax(output.logits[:, -1].float(), -1).view(voices, members, len(column), -1)
            log_UPV = combine(log_GKPV) if combine else log_GKPV[:, 0]
            if first is None:
                best = log_UPV.topk(min(top_k, log_UPV.shape[-1]), -1)
                first = best.indices, best.values
            score_UP, token_UP = log_UPV.max(-1)
            done = done_UP[:, column]
            token_UP = torch.where(done, eos[0], token_UP)
            logprob_UP[:, column] += torch.where(done, 0.0, score_UP.double())
            all_UP = torch.full_like(done_UP, int(eos[0]), dtype=torch.long)
            all_UP[:, column] = token_UP
            tokens.append(all_UP)
            done_UP[:, column] = done | torch.isin(token_UP, eos)
            open_P = (~done_UP[:, column]).any(0)
            if not bool(open_P.any()):
                break
            if int(open_P.sum()) <= len(column) // 2:  # the few that go on forever should not carry the many that are done
                rows = torch.arange(voices * members * len(column), device=device).view(-1, len(column))[:, open_P].reshape(-1)
                cache.batch_select_indices(rows)
                column, token_UP = column[open_P], token_UP[:, open_P]
            inputs = token_UP.repeat_interleave(members, 0).reshape(-1, 1)
        assert first is not None
        sequence_UPT = torch.stack(tokens, -1).tolist()
        done, logprob, first_ids, first_logprobs = (x.tolist() for x in (done_UP, logprob_UP, *first))
        end = set(eos_ids)
        for u in range(voices):
            for p, i in enumerate(indices):
                sequence = sequence_UPT[u][p]
                length = next((t for t, token in enumerate(sequence) if token in end), len(sequence))
                answers[u][i] = Generation(sequence[:length], logprob[u][p], done[u][p], first_ids[u][p], first_logprobs[u][p])
    return answers  # type: ignore[return-value]


@torch.inference_mode()
def score(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    voices: int,
    members: int = 1,
    combine: Combine | None = None,
) -> list[list[float]]:
    """Log-probability (nats) of each prompt's continuation, [voice][prompt], teacher-forced.

    A continuation has at least one token; prompts too.
    """
    device = next(stack.model.parameters()).device
    totals = [[0.0] * len(prompts) for _ in range(voices)]
    sequences = [[*prompt, *continuation] for prompt, continuation in zip(prompts, continuations, strict=True)]
    for indices in _batches(sequences, voices * members, 0):
        P = len(indices)
        ids_PT = torch.tensor([sequences[i] for i in indices], device=device)
        L = max(len(continuations[i]) for i in indices)
        position_PL = torch.zeros(P, L, dtype=torch.long, device=device)
        weight_PL = torch.zeros(P, L, device=device)
        for p, i in enumerate(indices):
            n = len(continuations[i])
            position_PL[p, :n] = torch.arange(len(sequences[i]) - n - 1, len(sequences[i]) - 1)
            weight_PL[p, :n] = 1
        target_PL = ids_PT.gather(1, (position_PL + 1).clamp(max=ids_PT.shape[1] - 1))
        logits = stack.logits(ids_PT.repeat(voices * members, 1), position_PL.repeat(voices * members, 1))
        log_GKNV = F.log_softmax(logits.float(), -1).view(voices, members, P * L, -1)
        log_UNV = combine(log_GKNV) if combine else log_GKNV[:, 0]
        picked_UN = log_UNV.gather(-1, target_PL.reshape(1, -1, 1).expand(voices, -1, 1))[..., 0]
        total_UP = (picked_UN.view(voices, P, L).double() * weight_PL).sum(-1).tolist()
        for u in range(voices):
            for p, i in enumerate(indices):
                totals[u][i] = total_UP[u][p]
    return totals
