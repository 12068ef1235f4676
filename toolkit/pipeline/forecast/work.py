"""What a run consists of: conditions, families of subjects, units of work; and what their files
weigh, which follows from shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.answer.ensemble import ENSEMBLES
from toolkit.data import Prompt
from toolkit.merging import find_method
from toolkit.pipeline import answer_prompts
from toolkit.recipe import Condition, Mitigation
from toolkit.recipe.schedule import TrainingPlan

BLOCK = 4096
"""bytes in which common file systems give out space"""

Shapes = Mapping[str, tuple[int, int]]  # layer -> I, O


@dataclass(frozen=True)
class Family:
    """Subjects of one procedure: `count` of them with `members` adapters each, of which none has a
    rank above `rank`.
    """

    count: int
    members: int
    rank: int

    @property
    def units(self) -> int:
        """Parts that workers take one by one."""
        return math.ceil(self.count / self.voices)

    @property
    def voices(self) -> int:
        """Subjects that answer together."""
        return max(1, answer_prompts.EVALUATION_WIDTH // self.members)

    @property
    def adapters(self) -> int:
        """On the stack of one unit."""
        return self.voices * self.members


@dataclass(frozen=True)
class Part:
    """One condition of a run. plan: None where its adapters are given."""

    name: str
    replicas: int
    rank: int
    shapes: Shapes
    plan: TrainingPlan | None
    condition: Condition | None
    mitigations: Sequence[Mitigation]
    whole_bytes: int = 0
    """of a condition that trains all weights: the size of one model; it has no rank then"""

    @property
    def stacks(self) -> int:
        """Stacks that are trained; 0 where the adapters are given."""
        return math.ceil(self.replicas / self.plan.stack) if self.plan else 0

    @property
    def folders(self) -> int:
        """Adapters that a replica consists of: itself, its averages, its snapshots."""
        condition = self.condition
        return 1 + (
            len(condition.averages)
            + (condition.snapshots.count if condition.snapshots and condition.snapshots.save else 0)
            if condition
            else 0
        )

    def merged_rank(self, mitigation: Mitigation) -> int:
        """The largest rank that a merge can have: all its layers are padded to that of the
        widest.
        """
        if self.whole_bytes:
            return 0
        widest = max(min(sizes) for sizes in self.shapes.values())
        entries = find_method(mitigation.method, mitigation.parameters)[0].entries
        exact = widest if entries else min(mitigation.k * self.rank, widest)
        asked = {"same": self.rank, "full": exact}.get(str(mitigation.rank), mitigation.rank)
        # a share of the energy: at most the exact rank
        return asked if isinstance(asked, int) else exact

    def weights(self, rank: int) -> int:
        """Size of the file of one replica, or of a merge of that rank."""
        return self.whole_bytes or adapter_bytes(self.shapes, rank)

    def families(self) -> list[Family]:
        """Its subjects that answer prompts: replicas, merges and ensembles."""
        families = [Family(self.replicas, 1, self.rank)]
        for mitigation in self.mitigations:
            groups = self.replicas // mitigation.k
            if mitigation.merge:
                families.append(Family(groups, 1, self.merged_rank(mitigation)))
            elif mitigation.ensemble and ENSEMBLES[mitigation.ensemble].rule:
                families.append(Family(groups, mitigation.k, self.rank))
        return [family for family in families if family.count]


def blocks(size: int) -> int:
    """What a file of so many bytes takes on the disk."""
    return -(-size // BLOCK) * BLOCK


def adapter_bytes(shapes: Shapes, rank: int) -> int:
    """Size of the weights file of an adapter in float32, to the byte: a header in JSON, padded to
    8, then numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (I, O) in sorted(shapes.items()):
        for x, shape in (("A", [rank, I]), ("B", [O, rank])):
            end = start + 4 * shape[0] * shape[1]
            header[f"base_model.model.{name}.lora_{x}.weight"] = {
                "dtype": "F32",
                "shape": shape,
                "data_offsets": [start, end],
            }
            start = end
    return 8 + -(-len(json.dumps(header, separators=(",", ":"))) // 8) * 8 + start


def disk(part: Part, prompts: Mapping[str, Sequence[Prompt]], top_k: int) -> dict[str, int]:
    """Bytes that each stage leaves, in whole blocks. Weights are exact; the small files beside them
    are counted by what they hold.
    """
    weights = blocks(part.weights(part.rank)) + BLOCK  # with its configuration
    bytes_of = {
        "train": part.replicas * (part.folders * weights + blocks(700 + 130 * part.folders))
        if part.plan
        else 0
    }
    if part.plan:
        S, R = part.plan.steps, part.plan.stack
        rows = R * part.plan.rows * S / part.plan.steps_per_epoch
        # losses do not compress
        bytes_of["train"] += part.stacks * (
            blocks(round(2500 + 9 * R * S)) + blocks(round(2500 + 5.5 * rows))
        )
    bytes_of["merge"] = 0
    for mitigation in part.mitigations:
        if mitigation.merge:
            texts = (
                blocks(1500 + 320 * mitigation.k + 120 * len(part.shapes))
                + blocks(900 + 110 * mitigation.k)
                + blocks(400 + 180 * mitigation.k)
            )
            size = blocks(part.weights(part.merged_rank(mitigation))) + BLOCK
            bytes_of["merge"] += part.replicas // mitigation.k * (size + texts)
    bytes_of["evaluate"] = sum(
        family.units
        * blocks(shard_bytes(len(suite_prompts), min(family.voices, family.count), top_k))
        for suite_prompts in prompts.values()
        for family in part.families()
    )
    return bytes_of


def shard_bytes(prompts: int, voices: int, top_k: int) -> int:
    """Size of a file of outcomes: its columns, the ids of the prompts; of every row numbers, which
    do not compress, and a short text.
    """
    return 4550 + prompts * (12 + voices * (22 + 6 * top_k))
