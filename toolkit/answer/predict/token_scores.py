"""What voices think of given continuations, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from toolkit.answer.predict.batches import alike, fit
from toolkit.answer.predict.prefill import Prefilled
from toolkit.answer.predict.voices import Combine, Voices
from toolkit.model.stack import Stack


@dataclass(frozen=True)
class Scored:
    """What one voice thinks of one given continuation, teacher-forced."""

    logprobs: list[float]  # of each token, nats
    best: list[bool]  # it is the voice's first choice

    @property
    def logprob(self) -> float:
        """Of the whole continuation, nats."""
        return math.fsum(self.logprobs)


def cheaper_from_caches(read: Prefilled, continuations: Sequence[Sequence[int]]) -> bool:
    """There is room to go on from the caches, and it takes no more tokens, padding included, than
    to read every prompt again.
    """
    longest = max(len(ids) for ids in continuations)
    again = sum(
        n + len(ids) for n, ids in zip(read.length_P.tolist(), continuations, strict=True) if ids
    )
    return read.rewinds and longest <= read.room and len(continuations) * longest <= again


def score_after(read: Prefilled, continuations: Sequence[Sequence[int]]) -> list[list[Scored]]:
    """What every voice thinks of one continuation of each prompt that it has read, [voice][prompt];
    the caches end as they were.

    Continuations are padded behind, which nothing before it can see; an empty one has no tokens to
    score.
    """
    U, P, vocabulary = read.log_UPV.shape
    device = read.log_UPV.device
    ids_PL = pad_sequence(
        [torch.tensor(ids, dtype=torch.long) for ids in continuations], batch_first=True
    ).to(device)
    ids_UPL = ids_PL.expand(U, -1, -1)
    rows = U * P * max(piece.stop - piece.start for piece in read.pieces)
    size, L, past = fit(rows, rows * vocabulary), ids_PL.shape[1], 0
    log_UPTV, logprobs, best = read.log_UPV[:, :, None], [], []
    while True:
        target_UPT = ids_UPL[:, :, past : past + log_UPTV.shape[2]]
        logprobs.append(log_UPTV.gather(-1, target_UPT[..., None])[..., 0])
        best.append(log_UPTV.argmax(-1) == target_UPT)
        past += target_UPT.shape[2]
        if past == L:
            break
        log_UPTV = read.go_on(
            ids_UPL[:, :, past - 1 : min(past - 1 + size, L - 1)], every=True
        ).view(U, P, -1, vocabulary)
    read.rewind()
    logprob_UPL, best_UPL = torch.cat(logprobs, 2).tolist(), torch.cat(best, 2).tolist()
    return [
        [
            Scored(logprob_UPL[u][p][: len(ids)], best_UPL[u][p][: len(ids)])
            for p, ids in enumerate(continuations)
        ]
        for u in range(U)
    ]


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
    group = Voices(stack, voices, members, combine, weight_UK)
    vocabulary = stack.model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
    scores: list[list[Scored | None]] = [[None] * len(prompts) for _ in range(voices)]
    sequences = [
        [*prompt, *continuation]
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
    lengths = [len(sequence) for sequence in sequences]
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    head = [len(continuation) * vocabulary for continuation in continuations]
    for indices in alike(lengths, order, voices * members, spread=0.25, head=head):
        P = len(indices)
        ids_PT = pad_sequence([torch.tensor(sequences[i]) for i in indices], batch_first=True).to(
            device
        )
        L = max(len(continuations[i]) for i in indices)
        position_PL = torch.zeros(P, L, dtype=torch.long, device=device)
        for p, i in enumerate(indices):
            n = len(continuations[i])
            position_PL[p, :n] = torch.arange(len(sequences[i]) - n - 1, len(sequences[i]) - 1)
        target_PL = ids_PT.gather(1, (position_PL + 1).clamp(max=ids_PT.shape[1] - 1))
        pieces = group.pieces(ids_PT.numel(), P * L * vocabulary)

        def chosen(i: int, pieces=pieces, ids_PT=ids_PT, position_PL=position_PL) -> Tensor:
            ids, position = (
                group.rows(pieces[i], x.expand(voices, -1, -1)) for x in (ids_PT, position_PL)
            )
            return stack.logits(ids, position)

        log_UNV = group.log_probs(pieces, chosen)
        target_UN = target_PL.reshape(1, -1).expand(voices, -1)
        log_UPL = log_UNV.gather(-1, target_UN[..., None]).view(voices, P, L).tolist()
        best_UPL = (log_UNV.argmax(-1) == target_UN).view(voices, P, L).tolist()
        for u in range(voices):
            for p, i in enumerate(indices):
                n = len(continuations[i])
                scores[u][i] = Scored(log_UPL[u][p][:n], best_UPL[u][p][:n])
    return scores  # type: ignore[return-value]


def score(
    stack: Stack,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    **shape: Any,
) -> list[list[float]]:
    """Log-probability (nats) of each prompt's continuation, [voice][prompt]; see `score_tokens`."""
    return [
        [scored.logprob for scored in row]
        for row in score_tokens(stack, prompts, continuations, **shape)
    ]
