"""A table of outcomes with planted instability, for tests of the analysis and the report: no model
is involved.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from toolkit.record.results import ConditionDesign, MitigationDesign, Price

FLIPS = {
    ("typical", "opening hours"): 0.02,
    ("typical", "prices"): 0.03,
    ("near", "typing errors"): 0.08,
    ("far", "other language"): 0.2,
    ("far", "two intents"): 0.3,
}
"""Chance that a replica gives another answer than the usual one, by shift and category."""


def make_prompts(per_category: int = 40) -> dict[str, list[SimpleNamespace]]:
    suites: dict[str, list[SimpleNamespace]] = {}
    for shift, category in FLIPS:
        rows = suites.setdefault(shift, [])
        for i in range(per_category):
            id = f"{category}-{i}"
            text = f"Question {i} about {category}?"
            rows.append(
                SimpleNamespace(
                    id=id,
                    prompt=text,
                    category=category,
                    shift=shift,
                    cluster=id,
                    reference=f"answer {i}",
                )
            )
    return suites


def groups(replicas: Sequence[int], k: int) -> list[list[int]]:
    return [list(replicas[i : i + k]) for i in range(0, len(replicas) - k + 1, k)]


class World:
    """Answers of R replicas to all prompts; mitigations are functions of the answers of a group."""

    def __init__(
        self,
        n_replicas: int = 64,
        *,
        per_category: int = 40,
        failed: Sequence[int] = (),
        seed: int = 0,
        flips: float = 1.0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.prompts = make_prompts(per_category)
        self.flat = [(suite, prompt) for suite, rows in self.prompts.items() for prompt in rows]
        usual = [prompt.reference for _, prompt in self.flat]
        rate_P = np.array([FLIPS[prompt.shift, prompt.category] for _, prompt in self.flat]) * flips
        # prompts of one category differ
        rate_P = np.clip(rate_P * rng.gamma(1.0, 1.0, len(rate_P)), 0, 0.6)
        flip_RP = rng.random((n_replicas, len(rate_P))) < rate_P
        other_RP = rng.integers(0, 3, flip_RP.shape)
        self.replicas = [r for r in range(n_replicas) if r not in failed]
        self.failed = len(failed)
        self.answers = {
            r: [f"other {other_RP[r, i]}" if flip_RP[r, i] else usual[i] for i in range(len(usual))]
            for r in self.replicas
        }
        self.base = [answer if rng.random() < 0.3 else "I do not know" for answer in usual]
        self.rows: list[dict] = []
        self.mitigations: list[MitigationDesign] = []
        self._add("", "base", 0, self.base)
        for r in self.replicas:
            self._add("lora", "replica", r, self.answers[r])

    def _add(self, condition: str, procedure: str, index: int, answers: Sequence[str]) -> None:
        for (suite, prompt), answer in zip(self.flat, answers, strict=True):
            correct = None if prompt.reference is None else answer == prompt.reference
            row = {
                "suite": suite,
                "prompt_id": prompt.id,
                "condition": condition,
                "procedure": procedure,
                "index": index,
            }
            self.rows.append(row | {"text": answer, "answer": answer, "correct": correct})

    def mitigate(
        self,
        label: str,
        k: int,
        combine: Callable[[list[list[str]]], list[str]],
        kind: str = "ensemble",
    ) -> "World":
        members = groups(self.replicas, k)
        for g, group in enumerate(members):
            self._add("lora", f"{label}-k{k}", g, combine([self.answers[r] for r in group]))
        price = Price(k, k if kind == "ensemble" else 1, 8)
        self.mitigations.append(MitigationDesign(f"{label}-k{k}", label, kind, k, members, price))
        return self

    @property
    def designs(self) -> list[ConditionDesign]:
        return [
            ConditionDesign("lora", self.replicas, self.failed, self.mitigations, Price(rank=8))
        ]

    @property
    def table(self) -> pa.Table:
        schema = pa.schema(
            [(name, pa.string()) for name in ("suite", "prompt_id", "condition", "procedure")]
            + [
                ("index", pa.int32()),
                ("text", pa.string()),
                ("answer", pa.string()),
                ("correct", pa.bool_()),
            ]
        )
        return pa.Table.from_pylist(self.rows, schema=schema)


def vote(members: list[list[str]]) -> list[str]:
    return [max(sorted(set(column)), key=column.count) for column in zip(*members, strict=True)]
