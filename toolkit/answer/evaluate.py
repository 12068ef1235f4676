"""Subjects answer prompts: the base, replicas, merged adapters and ensembles, stacked. One Parquet
shard per unit of work.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.answer.predict import Combine, Generation, generate, load_adapters
from toolkit.data import Prompt, encode_prompt, encode_reference, parse_answer, parse_reference
from toolkit.model.adapters import Adapter
from toolkit.model.base import Base
from toolkit.model.full import FullModel, FullStack, read_weights, stacked_whole
from toolkit.model.stack import Stack, stacked
from toolkit.record.outcomes import read_outcomes, token_shard, write_outcomes, write_token_scores

Weights = Adapter | FullModel


@dataclass(frozen=True)
class Subject:
    """Anything that answers prompts: the base (no adapter), an adapter, or an ensemble."""

    condition: str
    procedure: str
    index: int
    adapters: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()  # of the members; none: equal


@dataclass(frozen=True)
class EvaluationUnit:
    """Subjects that answer one suite together, and the file that their outcomes go to.

    `width` voices are always on the stack, so the last unit has the shapes of the others.
    threshold: of a gate, in nats; see `gated`.
    """

    subjects: tuple[Subject, ...]
    suite: str
    width: int
    members: int
    rule: str | None
    shard: Path
    threshold: float | None = None


def shard_name(subjects: Sequence[Subject], settings: str) -> str:
    """A shard is named by what it holds; a hash of adapters and settings keeps a stale one from
    being taken for it.
    """
    first, last = subjects[0], subjects[-1]
    text = settings + "".join(
        f"{s.procedure}/{s.index}/{','.join(s.sha256)}{s.weights or ''};" for s in subjects
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    who = "-".join(part for part in (first.condition, first.procedure) if part)
    return f"{who}-{first.index:05d}-{last.index:05d}-{digest}.parquet"


@dataclass(frozen=True)
class _Answered:
    """The answer of a voice to one prompt, and the number of token streams that ran for it."""

    generation: Generation
    streams: int


def evaluate_unit(
    unit: EvaluationUnit,
    base: Base,
    prompts: Sequence[Prompt],
    *,
    combine: Combine | None,
    answer: str,
    max_new_tokens: int,
    top_k: int,
    choices: Sequence[str] = (),
    token_scores: bool = False,
    stop: str | None = None,
    progress: Callable[[float], None],
) -> int:
    """Generate and score, write the shard, return the number of outcomes.

    stop: cut an answer before this text.
    token_scores: write what each subject thinks of every token of the reference and of the choices,
    too. Raises AdapterError or ValueError in one line when an adapter cannot be read or belongs to
    another base.
    """
    cache: dict[str, Weights] = {}
    groups: list[list[Weights | None]] = [
        [cache.setdefault(path, read_weights(path)) for path in subject.adapters]
        or [None] * unit.members
        for subject in unit.subjects
    ]
    ids = [encode_prompt(p, base.tokenizer) for p in prompts]
    references_of = [
        [
            *([(None, p.reference)] if p.reference is not None else []),
            *((choice, choice) for choice in choices if token_scores),
        ]
        for p in prompts
    ]
    continuations = [
        [encode_reference(p, text, base.tokenizer) for _, text in texts]
        for p, texts in zip(prompts, references_of, strict=True)
    ]
    weight_UK = torch.ones(unit.width, unit.members)
    for u, subject in enumerate(unit.subjects):
        if subject.weights:
            weight_UK[u] = torch.tensor(subject.weights)

    def generate_group(
        stack: Stack,
        groups: Sequence[Sequence[Weights | None]],
        indices: Sequence[int],
        voices: int,
        weight_UK: torch.Tensor | None = None,
    ) -> list[list[_Answered]]:
        """Answers of groups of one size to the prompts `indices`, [voice][prompt]; members of a
        group are combined by `combine`.
        """
        members = len(groups[0])
        load_members(stack, [member for group in groups for member in group], voices * members)
        answers = generate(
            stack,
            [ids[i] for i in indices],
            voices=voices,
            members=members,
            combine=combine if members > 1 else None,
            weight_UK=weight_UK,
            eos_ids=[*base.eos_ids, *stop_ids],
            max_new_tokens=max_new_tokens,
            top_k=top_k,
            continuations=[continuations[i] for i in indices],
        )
        return [[_Answered(generation, members) for generation in row] for row in answers]

    stop_ids = tokens_containing(base.tokenizer, stop) if stop else frozenset()
    everything = range(len(prompts))
    whole = any(isinstance(member, FullModel) for group in groups for member in group)
    with stacked_whole(base.model) if whole else stacked(base.model) as stack:
        if unit.threshold is None:
            answered = generate_group(stack, groups, everything, unit.width, weight_UK)
        else:
            answered = generate_group(
                stack, [group[:1] for group in groups], everything, unit.width
            )
            for u, group in enumerate(groups):
                unsure = [
                    i for i in everything if answered[u][i].generation.margin < unit.threshold
                ]
                together = (
                    generate_group(stack, [group], unsure, 1, weight_UK[u : u + 1])[0]
                    if unsure
                    else []
                )
                for i, a in zip(unsure, together, strict=True):
                    answered[u][i] = replace(a, streams=1 + unit.members)
    progress(0.9)
    rows, details = [], []
    for subject, row in zip(unit.subjects, answered, strict=False):
        for prompt, texts, a in zip(prompts, references_of, row, strict=True):
            rows.append(_outcome(subject, unit.suite, prompt, a, base, answer, stop))
            key = {
                name: rows[-1][name]
                for name in ("suite", "prompt_id", "condition", "procedure", "index")
            }
            for (choice, _), scored in zip(texts, a.generation.scores, strict=True):
                details.append(
                    {**key, "choice": choice, "logprobs": scored.logprobs, "best": scored.best}
                )
    if token_scores:
        write_token_scores(token_shard(unit.shard), details)
    return write_outcomes(unit.shard, rows)  # last: it says that the unit is done


def load_members(stack: Stack, members: Sequence[Weights | None], width: int) -> None:
    """Load adapters or whole models onto the matching stack; None is the base."""
    if isinstance(stack, FullStack):
        stack.load_models([model for model in members if not isinstance(model, Adapter)], width)
    else:
        load_adapters(
            stack, [adapter for adapter in members if not isinstance(adapter, FullModel)], width
        )


@lru_cache(maxsize=8)
def tokens_containing(tokenizer: Any, text: str) -> frozenset[int]:
    """Ids of the tokens that contain the text, such as every token with a new line."""
    pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return frozenset(i for i, piece in enumerate(pieces) if text in piece)


def _outcome(
    subject: Subject,
    suite: str,
    prompt: Prompt,
    answered: _Answered,
    base: Base,
    rule: str,
    stop: str | None,
) -> dict[str, Any]:
    generation = answered.generation
    # the token may begin before the stop
    ended = (
        [generation.end]
        if stop and generation.end in tokens_containing(base.tokenizer, stop)
        else []
    )
    text = str(base.tokenizer.decode([*generation.ids, *ended], skip_special_tokens=True))
    text = text.partition(stop)[0] if stop else text
    parsed = parse_answer(text, rule)
    return {
        "suite": suite,
        "prompt_id": prompt.id,
        "condition": subject.condition,
        "procedure": subject.procedure,
        "index": subject.index,
        "text": text,
        "answer": parsed,
        "correct": None
        if prompt.reference is None
        else parsed == parse_reference(prompt.reference, rule),
        "logprob": generation.logprob if math.isfinite(generation.logprob) else None,
        "n_tokens": len(generation.ids),
        "margin": generation.margin if math.isfinite(generation.margin) else None,
        "streams": answered.streams,
        "reference_logprob": None if prompt.reference is None else generation.scores[0].logprob,
        "first_ids": generation.first_ids,
        "first_logprobs": generation.first_logprobs,
    }


VOTE_COLUMNS = ("suite", "prompt_id", "index", "text", "answer", "correct", "logprob", "n_tokens")
"""what a rule over whole answers needs of them, and what the answer of the group has of its
member's
"""


def vote_outcomes(
    shards: Iterable[Path],
    *,
    condition: str,
    procedure: str,
    members: Sequence[Sequence[int]],
    choose: Callable[[Sequence[str], Sequence[float], Sequence[float] | None], int],
    weight: Callable[[dict[str, Any]], float] | None = None,
    out: Path,
) -> int:
    """Outcomes of rules over whole answers, from the outcomes of the replicas alone: no model runs.

    choose: answers, log-probabilities and weights of a group -> the member that speaks for it.
    weight: of a member, by its outcome.
    """
    table = read_outcomes(shards, VOTE_COLUMNS)
    index_N = table["index"].to_numpy()
    order_N = np.argsort(index_N, kind="stable")  # rows of one replica together, as they came

    def rows() -> Iterator[dict[str, Any]]:
        for g, group in enumerate(
            members
        ):  # of thousands of replicas only one group at a time is not in columns
            start, end = (
                np.searchsorted(index_N, group, side, sorter=order_N) for side in ("left", "right")
            )
            member_rows = table.take(
                np.concatenate([order_N[s:e] for s, e in zip(start, end, strict=True)])
            ).to_pylist()
            by_prompt: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
            for row in member_rows:
                by_prompt.setdefault((row["suite"], row["prompt_id"]), {})[row["index"]] = row
            for by_replica in by_prompt.values():
                answers = [by_replica[r] for r in group]
                weights = [weight(row) for row in answers] if weight else None
                winner = answers[
                    choose(
                        [row["answer"] for row in answers],
                        [_confidence(row) for row in answers],
                        weights,
                    )
                ]
                nothing = {"logprob": None, "streams": len(group)}
                yield (
                    winner | nothing | {"condition": condition, "procedure": procedure, "index": g}
                )

    return write_outcomes(out, rows())


def token_probability(row: dict[str, Any]) -> float:
    """Geometric mean probability of the tokens of an answer, its end included: how sure a member is
    (arXiv:2203.11171).
    """
    return math.exp(_confidence(row) / (row["n_tokens"] + 1))


def _confidence(row: dict[str, Any]) -> float:
    return -math.inf if row["logprob"] is None else row["logprob"]
