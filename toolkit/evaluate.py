"""Subjects answer prompts: the base, replicas, merged adapters and ensembles, stacked. One Parquet shard per unit of work."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.adapters import Adapter, read_adapter
from toolkit.base import Base
from toolkit.data import Prompt, encode_prompt, encode_reference, parse_answer, parse_reference
from toolkit.outcomes import read_outcomes, write_outcomes
from toolkit.predict import Combine, Generation, generate, load_adapters, score
from toolkit.stack import stacked


@dataclass(frozen=True)
class Subject:
    """Anything that answers prompts. No adapter: the base. Several: an ensemble of them."""

    condition: str
    procedure: str
    index: int
    adapters: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationUnit:
    """Subjects that answer one suite together, and the file that their outcomes go to.

    `width` voices are always on the stack, so the last unit has the shapes of the others.
    """

    subjects: tuple[Subject, ...]
    suite: str
    width: int
    members: int
    rule: str | None
    shard: Path


def shard_name(subjects: Sequence[Subject], settings: str) -> str:
    """A shard is named by what it holds; a hash of adapters and settings keeps a stale one from being taken for it."""
    first, last = subjects[0], subjects[-1]
    text = settings + "".join(f"{s.procedure}/{s.index}/{','.join(s.sha256)};" for s in subjects)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    who = "-".join(part for part in (first.condition, first.procedure) if part)
    return f"{who}-{first.index:05d}-{last.index:05d}-{digest}.parquet"


def evaluate_unit(
    unit: EvaluationUnit,
    base: Base,
    prompts: Sequence[Prompt],
    *,
    combine: Combine | None,
    answer: str,
    max_new_tokens: int,
    top_k: int,
    progress: Callable[[float], None],
) -> int:
    """Generate and score, write the shard, return the number of outcomes.

    Raises AdapterError or ValueError in one line when an adapter cannot be read or belongs to another base.
    """
    cache: dict[str, Adapter] = {}
    adapters: list[Adapter | None] = []
    for subject in unit.subjects:
        if not subject.adapters:
            adapters += [None] * unit.members
        adapters += [cache.setdefault(path, read_adapter(path)) for path in subject.adapters]
    ids = [encode_prompt(p.prompt, base.tokenizer) for p in prompts]
    scored = [i for i, p in enumerate(prompts) if p.reference is not None]
    voices = unit.width
    with stacked(base.model) as stack:
        load_adapters(stack, adapters, voices * unit.members)
        answers = generate(
            stack,
            ids,
            voices=voices,
            members=unit.members,
            combine=combine,
            eos_ids=base.eos_ids,
            max_new_tokens=max_new_tokens,
            top_k=top_k,
        )
        progress(0.7)
        references = [encode_reference(prompts[i].prompt, prompts[i].reference or "", base.tokenizer) for i in scored]
        scores = score(stack, [ids[i] for i in scored], references, voices=voices, members=unit.members, combine=combine)
    rows = []
    for u, subject in enumerate(unit.subjects):
        reference_logprob = dict(zip(scored, scores[u], strict=True))
        for i, (prompt, generation) in enumerate(zip(prompts, answers[u], strict=True)):
            rows.append(_outcome(subject, unit.suite, prompt, generation, base, answer, reference_logprob.get(i)))
    write_outcomes(unit.shard, rows)
    return len(rows)


def _outcome(
    subject: Subject, suite: str, prompt: Prompt, generation: Generation, base: Base, rule: str, reference_logprob: float | None
) -> dict[str, Any]:
    text = str(base.tokenizer.decode(generation.ids, skip_special_tokens=True))
    parsed = parse_answer(text, rule)
    return {
        "suite": suite,
        "prompt_id": prompt.id,
        "condition": subject.condition,
        "procedure": subject.procedure,
        "index": subject.index,
        "text": text,
        "answer": parsed,
        "correct": None if prompt.reference is None else parsed == parse_reference(prompt.reference, rule),
        "logprob": generation.logprob if math.isfinite(generation.logprob) else None,
        "n_tokens": len(generation.ids),
        "reference_logprob": reference_logprob,
        "first_ids": generation.first_ids,
        "first_logprobs": generation.first_logprobs,
    }


def vote_outcomes(
    shards: Iterable[Path],
    *,
    condition: str,
    procedure: str,
    members: Sequence[Sequence[int]],
    choose: Callable[[Sequence[str], Sequence[float]], int],
    out: Path,
) -> int:
    """Outcomes of majority votes over whole answers, from the outcomes of the replicas alone: no model runs."""
    table = read_outcomes(shards).to_pylist()
    by_prompt: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in table:
        by_prompt.setdefault((row["suite"], row["prompt_id"]), {})[row["index"]] = row
    rows = []
    for g, group in enumerate(members):
        for by_replica in by_prompt.values():
            spoken = [by_replica[r] for r in group]
            winner = spoken[choose([row["answer"] for row in spoken], [_confidence(row) for row in spoken])]
            nothing = {"logprob": None, "reference_logprob": None, "first_ids": None, "first_logprobs": None}
            rows.append(winner | nothing | {"condition": condition, "procedure": procedure, "index": g})
    write_outcomes(out, rows)
    return len(rows)


def _confidence(row: dict[str, Any]) -> float:
    return -math.inf if row["logprob"] is None else row["logprob"]
