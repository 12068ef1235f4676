"""The forecast of a run: times and sizes of a probe, added up over all units of work, stage by
stage.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import environment, seeds
from toolkit.data import Prompt
from toolkit.measurement.analyse import Arm, Table, analyse_table
from toolkit.pipeline import answer_prompts
from toolkit.pipeline.engines import LocalEngine
from toolkit.pipeline.forecast.probe import Probe, Probed, peak_bytes, probe
from toolkit.pipeline.forecast.work import Family, Part, blocks, disk, shard_bytes
from toolkit.recipe import Recipe
from toolkit.record.files import write_text
from toolkit.record.plain import read_json
from toolkit.record.population import groups
from toolkit.record.results import ConditionDesign, MitigationDesign, Price, to_plain
from toolkit.report.html import render

NAME = "forecast.json"
CELLS = 2_000_000
"""answers of which a probe makes statistics"""


@dataclass(frozen=True)
class Stage:
    """seconds: wall time with all workers at work. worker_bytes: peak of a worker up to and in this
    stage. disk_bytes: what it leaves.
    """

    seconds: float | None = None
    worker_bytes: int | None = None
    disk_bytes: int = 0


@dataclass(frozen=True)
class Forecast:
    """Seconds and peaks are None where nothing was probed. driver_bytes: peak of the process that
    the user started.
    """

    stages: dict[str, Stage]
    workers: int
    driver_bytes: int | None = None
    # seconds of a step of one stack, by condition
    step: dict[str, float] = field(default_factory=dict)
    # seconds in which the teachers of one stack speak, by condition
    teaching: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Wall time of all stages that were probed; None without any."""
        seconds = [stage.seconds for stage in self.stages.values() if stage.seconds is not None]
        return sum(seconds) if seconds else None

    @property
    def worker_bytes(self) -> int | None:
        """The largest peak of a worker; None where nothing was probed."""
        return max(
            (
                stage.worker_bytes
                for stage in self.stages.values()
                if stage.worker_bytes is not None
            ),
            default=None,
        )

    @property
    def memory_bytes(self) -> int | None:
        """Of all processes together; pages of libraries that they share count for each."""
        return (
            None
            if self.worker_bytes is None or self.driver_bytes is None
            else self.workers * self.worker_bytes + self.driver_bytes
        )

    @property
    def disk_bytes(self) -> int:
        """What all stages write."""
        return sum(stage.disk_bytes for stage in self.stages.values())

    def to_dict(self) -> dict[str, Any]:
        """As plain values, totals included, for JSON."""
        totals = {
            name: getattr(self, name)
            for name in ("seconds", "worker_bytes", "memory_bytes", "disk_bytes")
        }
        return {**asdict(self), **totals}


def forecast(
    recipe: Recipe,
    parts: Sequence[Part],
    prompts: Mapping[str, Sequence[Prompt]],
    device: str,
    *,
    workers: int | None = None,
    probed: bool = True,
    passes: Mapping[str, float] | None = None,
    extra_bytes: Mapping[str, int] | None = None,
) -> Forecast:
    """Sizes from shapes, and with `probed` times and peaks from a probe.

    passes: of a distilled condition, how often a stack's teachers speak. extra_bytes: by condition,
    what training holds that a few steps do not show.
    """
    sizes = [disk(part, prompts, recipe.evaluation.top_k) for part in parts]
    left = {stage: sum(size[stage] for size in sizes) for stage in ("train", "merge", "evaluate")}
    # the base
    left["evaluate"] += sum(
        blocks(shard_bytes(len(prompts_of), 1, recipe.evaluation.top_k))
        for prompts_of in prompts.values()
    )
    workers = workers or (environment.cores() if device == "cpu" else 1)
    if not probed:
        return Forecast({stage: Stage(disk_bytes=size) for stage, size in left.items()}, workers)
    ready = seconds_since_start()
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.time()
        prompts_of = {suite: tuple(rows) for suite, rows in prompts.items()}
        units = [
            Probe(recipe, device, Path(scratch) / str(n), tuple(parts), prompts_of)
            for n in range(workers)
        ]
        with LocalEngine(device, workers) as engine:
            workers_probed = [probed_worker for _, probed_worker in engine.run(probe, units)]

    def mean(of: Callable[[Probed], float]) -> float:
        return sum(map(of, workers_probed)) / len(workers_probed)

    begin = mean(lambda worker: worker.ready - begun + worker.load)
    train = sum(
        _train_seconds(part, workers, mean, (passes or {}).get(part.name, 0.0))
        for part in parts
        if part.plan
    )
    merge = sum(
        math.ceil(part.replicas // m.k / workers)
        * mean(lambda worker, key=(part.name, m.label): worker.merge.get(key, 0.0))
        for part in parts
        for m in part.mitigations
        if m.merge
    )
    low = max(1, min(family.rank for part in parts for family in part.families()))
    families = [Family(1, 1, low), *(family for part in parts for family in part.families())]
    effort = sum(
        family.units
        * family.adapters
        / answer_prompts.EVALUATION_WIDTH
        * (1 + mean(lambda worker: worker.per_rank) * max(0, family.rank - low))
        for family in families
    )
    answer = (
        sum(mean(lambda worker, suite=suite: worker.answer[suite]) for suite in prompts)
        * effort
        / workers
    )
    begin_train, begin_answer = (begin, 0.0) if train else (0.0, begin)
    peaks = [
        max(getattr(worker, name) for worker in workers_probed)
        for name in ("train_bytes", "merge_bytes", "answer_bytes")
    ]
    peaks[0] += max((extra_bytes or {}).values(), default=0)
    peaks = [max(peaks[: i + 1]) for i in range(3)]
    statistics, left["measure"] = _statistics(recipe, parts, prompts)
    stages = {
        "start": Stage(ready),
        "train": Stage(begin_train + train, peaks[0], left["train"]),
        "merge": Stage(merge, peaks[1], left["merge"]),
        "evaluate": Stage(begin_answer + answer, peaks[2], left["evaluate"]),
        "measure": Stage(statistics, disk_bytes=left["measure"]),
    }
    trained = [part.name for part in parts if part.plan]
    step = {name: mean(lambda worker, name=name: worker.step[name]) for name in trained}
    teaching = {
        name: mean(lambda worker, name=name: worker.spoken[name]) * (passes or {}).get(name, 0.0)
        for name in trained
    }
    return Forecast(stages, workers, peak_bytes(), step, teaching)


class _Invented(Table):
    """Invented answers: most runs agree, some differ."""

    def arm(self, condition: str, procedure: str, indexes: Sequence[int]) -> Arm:
        rng = np.random.default_rng(seeds.derive(0, f"{condition}/{procedure}"))
        code_RP = np.minimum(
            rng.geometric(0.6, (len(indexes), len(self.prompts))) - 1, len(self.answers) - 1
        ).astype(np.int32)
        return Arm(
            code_RP,
            (code_RP == 0).astype(np.float32),
            code_RP,
            rng.standard_normal(code_RP.shape).astype(np.float32),
        )


def _statistics(
    recipe: Recipe, parts: Sequence[Part], prompts: Mapping[str, Sequence[Prompt]]
) -> tuple[float, int]:
    """Seconds in which answers of the run's size are measured and reported, and bytes of the files;
    from one mitigation of all.
    """
    texts = [f"answer {i}" for i in range(5)]
    table = _Invented(prompts, texts, texts)
    # replicas; more of them take longer in proportion
    fit = max(16, CELLS // max(1, len(table.prompts)))
    taken = []
    for count in (0, 1):
        designs = []
        for part in parts:
            replicas = min(part.replicas, fit)
            some = [
                MitigationDesign(
                    m.label, m.title, "merge", m.k, groups(range(replicas), m.k), Price()
                )
                for m in sorted(part.mitigations, key=lambda m: m.k)[:count]
            ]
            designs.append(ConditionDesign(part.name, range(replicas), mitigations=some))
        start = time.perf_counter()
        results = analyse_table(table, designs, level=recipe.level, paired=not recipe.given)
        size = blocks(len(json.dumps(to_plain(results), indent=1))) + blocks(len(render(results)))
        taken.append((time.perf_counter() - start, size))
    (alone, small), (one_more, large) = taken
    mitigations = max((len(part.mitigations) for part in parts), default=0)
    scale = max(1.0, max(part.replicas for part in parts) / fit)
    seconds = scale * (alone + mitigations * max(0.0, one_more - alone))
    return seconds, small + mitigations * max(0, large - small)


def _train_seconds(
    part: Part, workers: int, mean: Callable[[Callable[[Probed], float]], float], passes: float
) -> float:
    assert part.plan
    step, overhead, spoken = (
        mean(lambda worker, kind=kind: getattr(worker, kind)[part.name])
        for kind in ("step", "overhead", "spoken")
    )
    return math.ceil(part.stacks / workers) * (step * part.plan.steps + overhead + spoken * passes)


def seconds_since_start() -> float:
    """Since this process began, imports included: a run needs as long before it begins to work."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return time.process_time()


def save(folder: Path, ahead: Forecast) -> Path:
    """RUN/forecast.json, with which `ftk run` compares itself when it has ended."""
    write_text(folder / NAME, json.dumps(ahead.to_dict(), indent=2) + "\n")
    return folder / NAME


def compared(folder: Path, stages: Mapping[str, float]) -> str | None:
    """One line, what was predicted and what this process took in all; None where nothing was
    predicted with times.

    stages: seconds by stage, as `Console` has them.
    """
    try:
        ahead = read_json(folder / NAME)
        wanted = {name: stage["seconds"] for name, stage in ahead["stages"].items()}
        seconds, size = float(ahead["seconds"]), int(ahead["disk_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    taken = seconds_since_start()
    each = ", ".join(
        f"{name} {wanted.get(name) or 0:.0f} -> {spent:.0f}" for name, spent in stages.items()
    )
    used = sum(
        path.stat().st_blocks * 512
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    )
    return (
        f"predicted {seconds:.0f} s and {size / 2**20:.0f} MiB on disk, took {taken:.0f} "
        f"s and {used / 2**20:.0f} MiB "
        f"({taken / seconds:.2f} and {used / size:.2f} of it; seconds: {each})"
    )
