"""A little of everything that a run will do, in a worker process like the run's, by the run's own
functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from toolkit.answer.ensemble import ENSEMBLES
from toolkit.answer.predict import CACHED, generate, together
from toolkit.data import Prompt, encode_prompt, encode_reference
from toolkit.merging import merge_adapters
from toolkit.model.adapters import write_adapter
from toolkit.model.base import Base, load_base
from toolkit.model.stack import stacked
from toolkit.pipeline import answer_prompts, merge_groups, train_stacks
from toolkit.pipeline.engines import Progress
from toolkit.pipeline.forecast.work import Part, Shapes
from toolkit.recipe import Mitigation, Recipe
from toolkit.recipe.schedule import TrainingPlan
from toolkit.train import train_stack
from toolkit.train.distill import Teacher

STEPS = 4
"""of a stack that are timed, after a first one that warms up"""
MERGE_WORK = 2e9
"""largest sum of O x I x min(O, I) over the layers that a probe merges: a second or so of singular
values
"""
PROMPT_TOKENS = 10_000
PROBE_WORK = 2 * 10**10
"""of all adapters together that a probe lets answer: a second or two of a small model"""


@dataclass(frozen=True)
class Probe:
    """What one worker is asked to do, and where it may write."""

    recipe: Recipe
    device: str
    folder: Path
    parts: tuple[Part, ...]
    prompts: dict[str, tuple[Prompt, ...]]


@dataclass
class Probed:
    """Seconds of one worker. step, overhead: of a stack, by condition; merge: by (condition,
    mitigation); answer: by suite; per_rank: how much longer answering takes for each further rank,
    as a share. *_bytes: peaks so far.
    """

    ready: float  # time of day when the worker began
    load: float = 0.0
    step: dict[str, float] = field(default_factory=dict)
    overhead: dict[str, float] = field(default_factory=dict)
    spoken: dict[str, float] = field(default_factory=dict)  # what teachers add to a step
    merge: dict[tuple[str, str], float] = field(default_factory=dict)
    answer: dict[str, float] = field(default_factory=dict)
    per_rank: float = 0.0
    train_bytes: int = 0
    merge_bytes: int = 0
    answer_bytes: int = 0


def probe(unit: Probe, progress: Progress) -> Probed:
    """In a worker process: a little of everything that the run will do."""
    probed = Probed(ready=time.time())
    start = time.perf_counter()
    base = load_base(unit.recipe.base, unit.recipe.dtype, unit.device)
    if unit.recipe.trained:
        train_stacks.training_examples(unit.recipe, unit.device)
    probed.load = time.perf_counter() - start
    for part in unit.parts:
        if part.plan and part.condition:
            probed.step[part.name], probed.overhead[part.name], probed.spoken[part.name] = (
                _training(unit, part)
            )
    probed.train_bytes = peak_bytes()
    for part in unit.parts:
        for mitigation in part.mitigations:
            if mitigation.merge and not part.whole_bytes:  # a mean of files, soon done
                probed.merge[part.name, mitigation.label] = _merging(
                    unit.folder / "merge", part, mitigation, base
                )
    probed.merge_bytes = peak_bytes()
    ranks = [family.rank for part in unit.parts for family in part.families()]
    shapes = unit.parts[0].shapes
    low, high = max(1, min(ranks)), max(1, *ranks)
    for suite, suite_prompts in unit.prompts.items():
        probed.answer[suite] = _answering(base, suite_prompts, unit.recipe, shapes, low)
        if high > low and not probed.per_rank and probed.answer[suite]:
            slower = (
                _answering(base, suite_prompts, unit.recipe, shapes, high) / probed.answer[suite]
            )
            probed.per_rank = max(0.0, slower - 1) / (high - low)
    probed.answer_bytes = peak_bytes()
    return probed


def peak_bytes() -> int:
    """Largest resident memory of this process so far; `getrusage` would count what its parent held
    when it was started.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _training(unit: Probe, part: Part) -> tuple[float, float, float]:
    """Seconds of a step, of all else about a stack, and of what teachers say in a step."""
    assert part.plan and part.condition
    recipe, condition = unit.recipe, part.condition
    points = condition.snapshots.count if condition.snapshots else 0
    short = replace(part.plan, steps=max(STEPS + 1, min(points, 3 * STEPS)), warmup_steps=1)
    if condition.teacher:  # there is none yet
        alone = _steps(unit, part, short, teachers=False)
        return alone, 0.0, max(0.0, _steps(unit, part, short, teachers=True) - alone)
    keep = tuple(range(part.plan.stack))
    marks = [time.perf_counter()]
    stack = train_stacks.TrainingUnit(
        recipe,
        part.name,
        unit.folder / part.name,
        0,
        keep,
        short,
        dict.fromkeys(keep, "probe"),
        unit.device,
    )
    if short.compiled:  # once in a run; what was compiled here the run finds on the disk
        train_stacks.train_unit(replace(stack, plan=replace(short, steps=1)), lambda _: None)
        marks = [time.perf_counter()]
    train_stacks.train_unit(stack, lambda _: marks.append(time.perf_counter()))
    step = _median([later - earlier for earlier, later in zip(marks[1:], marks[2:], strict=False)])
    return step, max(0.0, time.perf_counter() - marks[0] - step * short.steps), 0.0


def _steps(unit: Probe, part: Part, plan: TrainingPlan, *, teachers: bool) -> float:
    """Median seconds of a step of a distilled condition; the base stands in for teachers that are
    not trained yet.
    """
    assert part.condition and part.condition.teacher
    teacher, marks, stand_ins = part.condition.teacher, [], None
    seeds_R = [train_stacks.seeds_of(unit.recipe, part.name, r) for r in range(plan.stack)]
    if teachers:
        rule = ENSEMBLES[teacher.ensemble].rule if teacher.ensemble else None
        stand_ins = [Teacher((None,) * (teacher.k if rule else 1), rule) for _ in seeds_R]
    train_stack(
        load_base(unit.recipe.base, part.condition.dtype or unit.recipe.dtype, unit.device).model,
        train_stacks.examples_of(unit.recipe, part.name, unit.device),
        part.condition,
        plan,
        seeds_R,
        teachers_R=stand_ins,
        keep_soft_targets=False,
        on_step=lambda _: marks.append(time.perf_counter()),
    )
    return _median([later - earlier for earlier, later in zip(marks, marks[1:], strict=False)])


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _merging(folder: Path, part: Part, mitigation: Mitigation, base: Base) -> float:
    """Seconds of one merge: of one layer of every name, or of as many as are quick, times how much
    more all of them are.
    """

    def work(name: str) -> float:
        I, O = part.shapes[name]
        return I * O * min(I, O)

    kinds = sorted({name.rpartition(".")[2]: name for name in part.shapes}.values(), key=work)
    chosen, done = kinds[:1], work(kinds[0])
    for name in kinds[1:]:
        done += work(name)
        if done > MERGE_WORK:
            break
        chosen.append(name)
    parameters: dict[str, Any] = dict(mitigation.parameters)
    sources = [
        folder / part.name / mitigation.label / "of" / f"{k:03d}" for k in range(mitigation.k)
    ]
    for k, source in enumerate(sources):
        generator = torch.Generator().manual_seed(k)
        sizes = [(name, *part.shapes[name]) for name in chosen]
        factors = {
            n: (
                torch.randn(part.rank, I, generator=generator),
                torch.randn(O, part.rank, generator=generator),
            )
            for n, I, O in sizes
        }
        targets = sorted({n.rpartition(".")[2] for n in chosen})
        trajectory = [f"snapshots/s{s:03d}" for s in range(parameters.get("last") or 1)]
        for name in [*trajectory, "averages/swa", "averages/ema", "."]:
            write_adapter(
                source / name,
                factors,
                r=part.rank,
                alpha=part.rank,
                target_modules=targets,
                base=base.source,
            )
    start = time.perf_counter()
    out = folder / part.name / mitigation.label / "merged"
    merge_adapters(sources, out, method=mitigation.merge or "", rank=mitigation.rank, **parameters)
    merge_groups.describe_merge(out)
    return (time.perf_counter() - start) * sum(map(work, part.shapes)) / sum(map(work, chosen))


def _answering(
    base: Base, prompts: Sequence[Prompt], recipe: Recipe, shapes: Shapes, rank: int
) -> float:
    """Seconds in which a full stack of adapters answers a suite, told from some of its prompts.

    How long answers will be nobody knows: taken as long as the references, of which the longest is
    the last to leave a batch. Without
    references: as long as is allowed.
    """
    width, longest = answer_prompts.EVALUATION_WIDTH, recipe.evaluation.max_new_tokens
    ids = [encode_prompt(p, base.tokenizer) for p in prompts]
    references = [
        None if p.reference is None else encode_reference(p, p.reference, base.tokenizer)
        for p in prompts
    ]
    lengths = [len(tokens) for tokens in references if tokens is not None] or [longest]
    usual, last = min(longest, round(sum(lengths) / len(lengths))), min(longest, max(lengths))
    batches = _some(ids, width, longest, usual, base)
    chosen = [i for batch in batches for i in batch]
    share = sum(len(ids[i]) + usual for i in chosen) / sum(len(tokens) + usual for tokens in ids)
    choices = recipe.evaluation.choices if recipe.evaluation.token_scores else []

    def continuations_of(i: int) -> list[list[int]]:
        texts = [text for text in (prompts[i].reference, *choices) if text is not None]
        return [encode_reference(prompts[i], text, base.tokenizer) for text in texts]

    device = next(base.model.parameters()).device
    options: dict[str, Any] = {"voices": width, "eos_ids": (-1,), "top_k": recipe.evaluation.top_k}
    with stacked(base.model) as stack:
        generator = torch.Generator().manual_seed(0)
        size = {"dtype": torch.float32, "device": device}
        stack.load(
            {
                name: (
                    0.01 * torch.randn(width, rank, I, generator=generator).to(**size),
                    0.01 * torch.randn(width, O, rank, generator=generator).to(**size),
                )
                for name, (I, O) in shapes.items()
            }
        )

        def seconds(work: Callable[[], object]) -> float:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

        seconds(lambda: generate(stack, [ids[chosen[0]]], max_new_tokens=2, **options))  # warms up
        taken = 0.0
        for batch in batches:
            some = {"continuations": [continuations_of(i) for i in batch], "max_new_tokens": usual}
            taken += seconds(
                lambda batch=batch, some=some: generate(
                    stack, [ids[i] for i in batch], **some, **options
                )
            )
        if last > usual:
            few, many = (
                seconds(lambda n=n: generate(stack, [ids[chosen[0]]], max_new_tokens=n, **options))
                for n in (2, 10)
            )
            taken += max(0.0, many - few) / 8 * (last - usual) * len(batches)
    return taken / share


def _some(
    ids: Sequence[Sequence[int]], width: int, longest: int, usual: int, base: Base
) -> list[list[int]]:
    """Batches as `generate` makes them, spread over lengths, until they hold enough tokens for all
    adapters; or a part of one.
    """
    lengths = [len(prompt) for prompt in ids]
    enough = min(CACHED, max(PROMPT_TOKENS, PROBE_WORK // base.parameters))
    batches = list(
        together(lengths, width, longest, base.model.config.get_text_config().vocab_size)
    )
    every = max(1, round(width * sum(n + usual for n in lengths) / enough))
    chosen = batches[min(every // 2, len(batches) // 2) :: every]
    size = [width * sum(lengths[i] + usual for i in batch) for batch in chosen]
    keep = [
        max(1, min(len(batch), round(len(batch) * enough / all)))
        for batch, all in zip(chosen, size, strict=True)
    ]
    return [batch[(len(batch) - n) // 2 :][:n] for batch, n in zip(chosen, keep, strict=True)]
