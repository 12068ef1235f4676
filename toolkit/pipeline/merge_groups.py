"""Every weight-space mitigation on every condition, one adapter for each disjoint group."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.merging import merge_folders, mergekit_yaml, same_input
from toolkit.model.adapters import CONFIG, WEIGHTS
from toolkit.model.full import FULL, MODEL
from toolkit.pipeline.engines import Progress
from toolkit.pipeline.job import Run, successful
from toolkit.recipe import Mitigation
from toolkit.record.folders import is_whole
from toolkit.record.plain import read_json
from toolkit.record.population import groups, replica_folder, write_text
from toolkit.report.card import CARD, describe

TOLD = 5
"""notes on merges that a run prints"""


@dataclass(frozen=True)
class MergeUnit:
    """One merge for a worker: its sources, its folder and its method."""

    sources: tuple[Path, ...]
    out: Path
    method: str
    rank: str | int
    parameters: dict[str, Any]  # of the method, all of them


def merge(job: Run) -> None:
    """Every weight-space mitigation on every condition, one adapter for each disjoint group."""
    units = []
    for name in job.recipe.conditions:
        replicas = successful(job.condition(name))
        for mitigation in job.recipe.mitigations_of(name):
            if len(replicas) < mitigation.k:
                job.console.note(
                    f"{name}: {len(replicas)} replicas are too few for {mitigation.label}"
                )
            if mitigation.merge:
                units += merge_units(job.condition(name), replicas, mitigation)
    with job.console.stage("merge"):
        run_merges(job, units)


def merge_units(folder: Path, replicas: Sequence[int], mitigation: Mitigation) -> list[MergeUnit]:
    """Merges of a mitigation that are not on disk yet, or whose inputs have changed since."""
    units = [
        MergeUnit(
            sources=tuple(replica_folder(folder, r) for r in group),
            out=merged_folder(folder, mitigation.label, g),
            method=mitigation.merge or "",
            rank=mitigation.rank,
            parameters=mitigation.parameters,
        )
        for g, group in enumerate(groups(replicas, mitigation.k))
    ]
    return [unit for unit in units if not is_merged(unit)]


def run_merges(job: Run, units: Sequence[MergeUnit]) -> None:
    """Let the engine write all merges, and tell what was noted, each note once."""
    progress = job.console.progress("merge", len(units))
    all_notes: dict[str, None] = {}
    for _, notes in job.engine.run(merge_unit, units, progress):
        all_notes |= dict.fromkeys(notes)
    for note in [*all_notes][:TOLD]:
        job.console.note(note)
    if len(all_notes) > TOLD:
        job.console.note(
            f"{len(all_notes) - TOLD} more such notes are in the merge.json of their merges"
        )


def merged_folder(folder: Path, label: str, group: int) -> Path:
    """Where a condition's merge of a group lies."""
    return folder / "merged" / label / f"g{group:03d}"


def merge_unit(unit: MergeUnit, progress: Progress) -> list[str]:
    """Merge, and return what a reader must know of the inputs."""
    report = merge_folders(
        list(unit.sources), unit.out, method=unit.method, rank=unit.rank, **unit.parameters
    )
    describe_merge(unit.out)
    return report.notes


def describe_merge(folder: Path) -> None:
    """A card and, where mergekit can say it, its YAML beside a merged adapter. The card comes last:
    it says that nothing is missing.
    """
    if text := mergekit_yaml.config_of(folder):
        write_text(folder / mergekit_yaml.NAME, text)
    describe(folder)


def is_merged(unit: MergeUnit) -> bool:
    """True when merge.json is there and names this method, these parameters, and these inputs as
    they are now; and a card.

    And when its files are those that were written.
    """
    try:
        record = read_json(unit.out / "merge.json")
        parameters = json.loads(json.dumps({**unit.parameters, "rank": unit.rank}))
        inputs = [Path(item["path"]) for item in record["inputs"]]
        homes = [
            source for path in inputs for source in {path, *path.parents}.intersection(unit.sources)
        ]
        return (
            (record["method"], record["parameters"]) == (unit.method, parameters)
            and set(homes) == set(unit.sources)
            and len(homes) == len(inputs)
            and any((unit.out / file).is_file() for file in (WEIGHTS, MODEL))
            and (unit.out / CARD).is_file()
            and is_as_written(unit.out)
            and all(
                same_input(path, item) for path, item in zip(inputs, record["inputs"], strict=True)
            )
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_as_written(folder: Path) -> bool:
    """Whether the files of a merge are those that its marker names; without a marker, whether its
    scale is that of every merge, 1.
    """
    whole = is_whole(folder)
    if whole is not None or (folder / FULL).is_file():
        return whole is not False
    config = read_json(folder / CONFIG)
    return config["r"] == config["lora_alpha"] and not any(
        config.get(key) for key in ("use_rslora", "rank_pattern", "alpha_pattern")
    )
