"""Greedy answers of every voice to every prompt, and what it thinks of given ones while it has the
prompt in mind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from toolkit.answer.predict.prefill import Prefilled, prefill
from toolkit.answer.predict.token_scores import (
    Scored,
    cheaper_from_caches,
    score_after,
    score_tokens,
)
from toolkit.answer.predict.voices import Combine, Voices
from toolkit.model.stack import Stack

LOOK = {"cpu": 1, "cuda": 8}
"""tokens after which it is looked who is done: a look waits for the device"""


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
    scores: list[Scored] = field(default_factory=list)  # of the continuations that were asked about


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
    continuations: Sequence[Sequence[Sequence[int]]] | None = None,
) -> list[list[Generation]]:
    """Greedy answers, [voice][prompt]. The stack holds voices * members adapters, the members of a
    voice side by side.

    With `combine` the members of a voice share one token stream: each keeps its own KV cache, the
    group's distribution picks the token. Sequences that are finished leave the batch when they are
    finished for every voice. continuations: of each prompt, none or more of at least one token
    each, to be scored as `score_tokens` does.
    """
    vocabulary = stack.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    group = Voices(stack, voices, members, combine, weight_UK)
    continuations_of = continuations or [[] for _ in prompts]
    answers: list[list[Generation | None]] = [[None] * len(prompts) for _ in range(voices)]
    scores: list[list[list[Scored | None]]] = [
        [[None] * len(texts) for texts in continuations_of] for _ in range(voices)
    ]
    left_over = []
    for batch in prefill(group, prompts, max_new_tokens, vocabulary):
        for n in range(max(len(continuations_of[i]) for i in batch.indices)):
            batch_continuations = [
                continuations_of[i][n] if n < len(continuations_of[i]) else ()
                for i in batch.indices
            ]
            if cheaper_from_caches(batch, batch_continuations):
                _place(
                    scores, [(i, n) for i in batch.indices], score_after(batch, batch_continuations)
                )
            else:
                left_over += [
                    (i, n)
                    for i, continuation in zip(batch.indices, batch_continuations, strict=True)
                    if continuation
                ]
        for u, row in enumerate(_go_on(batch, eos_ids, max_new_tokens, top_k)):
            for i, answer in zip(batch.indices, row, strict=True):
                answers[u][i] = answer
    if left_over:
        shape = {"voices": voices, "members": members, "combine": combine, "weight_UK": weight_UK}
        _place(
            scores,
            left_over,
            score_tokens(
                stack,
                [prompts[i] for i, _ in left_over],
                [continuations_of[i][n] for i, n in left_over],
                **shape,
            ),
        )
    return [
        [replace(answer, scores=scored) for answer, scored in zip(*rows, strict=True)]  # type: ignore[type-var]
        for rows in zip(answers, scores, strict=True)
    ]


def _place(
    scores: list[list[list[Scored | None]]],
    where: Sequence[tuple[int, int]],
    new_scores: Sequence[Sequence[Scored]],
) -> None:
    for of_voice, row in zip(scores, new_scores, strict=True):
        for (i, n), scored in zip(where, row, strict=True):
            if n < len(of_voice[i]):
                of_voice[i][n] = scored


def _go_on(
    read: Prefilled, eos_ids: Sequence[int], max_new_tokens: int, top_k: int
) -> list[list[Generation]]:
    """Token by token to the end of every answer, [voice][prompt]."""
    log_UPV = read.log_UPV
    voices, P, vocabulary = log_UPV.shape
    device = log_UPV.device
    eos = torch.tensor(list(eos_ids), device=device)
    best = log_UPV.topk(min(top_k, vocabulary), -1)
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
        if step + 1 == max_new_tokens:
            break
        if (step + 1) % LOOK.get(device.type, 1) == 0:
            open_P = (~done_UP[:, column]).any(0)
            still = int(open_P.sum())
            if not still:
                break
            if (
                still <= len(column) // 2 and read.keeps
            ):  # the few that go on forever should not carry the many that are done
                read.keep(open_P)
                column, token_UP = column[open_P], token_UP[:, open_P]
        log_UPV = read.go_on(token_UP[:, :, None])
    ids_UPT, end = torch.stack(tokens, -1).tolist(), set(eos_ids)
    done, logprob, margin, first_ids, first_logprobs = (
        x.tolist() for x in (done_UP, logprob_UP, margin_UP, best.indices, best.values)
    )

    def answer(u: int, p: int) -> Generation:
        ids = ids_UPT[u][p]
        n = next((t for t, token in enumerate(ids) if token in end), len(ids))
        last = ids[n] if n < len(ids) else None
        return Generation(
            ids[:n],
            logprob[u][p],
            margin[u][p],
            done[u][p],
            last,
            first_ids[u][p],
            first_logprobs[u][p],
        )

    return [[answer(u, p) for p in range(P)] for u in range(voices)]
