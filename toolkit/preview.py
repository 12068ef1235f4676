"""Before a run: what it would do and cost (`ftk check`), and what would make two runs differ (`ftk doctor`)."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from toolkit import data, environment, pipeline
from toolkit.base import Base, load_base
from toolkit.measure import read_prompts
from toolkit.merge import find_method
from toolkit.plan import TrainingPlan
from toolkit.recipe import Mitigation, Recipe, RecipeError
from toolkit.stack import stacked
from toolkit.statistics import MIN_GROUPS

PROBE_STEPS = 3
SHOWN = 600
"""characters of a row that people see"""


def check(recipe: Recipe, *, probe: bool = True) -> dict[str, Any]:
    """Data as the model will see it, plan, memory, disk and time, as plain values.

    Raises RecipeError, DataError, BaseError or RunError in one line. The probe trains one stack for a few steps and throws it away.
    """
    try:
        device = environment.resolve_device(recipe.device)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    environment.make_deterministic(device)
    rows = data.read_rows(recipe.data.train)
    form = data.detect_format(rows) if recipe.data.format == "auto" else recipe.data.format
    prompts = read_prompts(recipe)
    base = load_base(recipe.base, recipe.dtype, device)
    pipeline.check_lengths(recipe, base, prompts, device)
    examples = pipeline.training_examples(recipe, device)
    warnings = data.check_tokenizer(base.tokenizer, [example.prompt for example in examples[:50]])
    found: dict[str, Any] = {
        "recipe": recipe.name,
        "base": base.to_dict(),
        "device": device,
        "data": {
            "rows": len(examples),
            "format": form,
            "longest": max(len(e.ids) for e in examples),
            "mean_length": sum(len(e.ids) for e in examples) / len(examples),
            "examples": [data.render(example, base.tokenizer) for example in examples[:2]],
        },
        "suites": {name: len(asked) for name, asked in prompts.items()},
        "conditions": {},
        "warnings": warnings,
    }
    for name, condition in recipe.conditions.items():
        plan, _ = pipeline.training_plan(recipe, name, device)
        replicas = recipe.replicas_of(name)
        stacks = math.ceil(replicas / plan.stack)
        layers = _layers(base.model, name, condition.targets)
        adapter = sum(condition.rank * (i + o) for i, o in layers)
        folders = 1 + len(condition.averages) + (condition.snapshots.count if condition.snapshots and condition.snapshots.save else 0)
        entry: dict[str, Any] = {
            "replicas": replicas,
            "at_most": recipe.until_of(name) is not None,  # a rule may stop earlier
            "crossed": condition.crossed,
            "plan": asdict(plan),
            "stacks": stacks,
            "adapter_parameters": adapter,
            "memory_bytes": _memory(base, plan, adapter, condition.dropout),
            "disk_bytes": replicas * folders * (adapter * 4 + 20_000)
            + sum(replicas // m.k * _merged_bytes(m, layers, condition.rank) for m in recipe.mitigations if m.merge),
        }
        if stacks * plan.stack > replicas:
            idle = stacks * plan.stack - replicas
            warnings.append(
                f"{name}: {idle} of {stacks * plan.stack} places are trained for the shape alone; N = {stacks * plan.stack} costs the same"
            )
        if probe:
            seconds = _probe(recipe, name, plan, device)
            workers = min(stacks, environment.cores() if device == "cpu" else 1)
            entry["seconds_per_step"] = seconds
            entry["hours"] = seconds * plan.steps * math.ceil(stacks / workers) / 3600
        found["conditions"][name] = entry
    groups = {m.label: min(recipe.replicas_of(name) for name in recipe.conditions) // m.k for m in recipe.mitigations}
    if few := [f"{label} ({g})" for label, g in groups.items() if g < MIN_GROUPS]:
        needed = MIN_GROUPS * max(m.k for m in recipe.mitigations)
        warnings.append(f"disjoint groups of K, where intervals need {MIN_GROUPS}: {', '.join(few)}; {needed} replicas are enough for all")
    found["groups"] = groups
    return found


def _design(entry: dict[str, Any]) -> str:
    """`at most 10000 replicas`, `64 replicas (8 init x 8 order)`."""
    levels = " x ".join(f"{count} {source}" for source, count in entry["crossed"].items())
    return f"{'at most ' * entry['at_most']}{entry['replicas']} replicas{f' ({levels})' if levels else ''}"


def _layers(model: Any, condition: str, targets: str | list[str]) -> list[tuple[int, int]]:
    """Input and output size of every layer that is adapted."""
    try:
        with stacked(model, targets) as stack:
            return [(int(layer.in_features), int(layer.out_features)) for layer in stack.layers.values()]
    except ValueError as error:
        raise RecipeError(f"'conditions.{condition}.targets': {error}") from None


def _merged_bytes(mitigation: Mitigation, layers: list[tuple[int, int]], rank: int) -> int:
    """Largest size of one merged adapter: all its layers have the rank of the widest."""
    widest = max(min(sizes) for sizes in layers)
    exact = widest if find_method(mitigation.method, mitigation.parameters)[0].entries else min(mitigation.k * rank, widest)
    merged = {"same": rank, "full": exact}.get(str(mitigation.rank), mitigation.rank)
    merged = merged if isinstance(merged, int) else exact  # a share of the energy: at most the exact rank
    return 4 * sum(merged * (i + o) for i, o in layers)


def _memory(base: Base, plan: TrainingPlan, adapter: int, dropout: float) -> int:
    """Rough peak of one worker: base, adapters with gradients and moments, and what a transformer block keeps for its backward pass.

    The values kept for each token and layer were counted on Qwen2 blocks with all linear layers adapted (`saved_tensors_hooks`).
    """
    config = base.model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    values = 18 * hidden + 5 * inner if dropout else 8 * hidden + 4 * inner
    activations = plan.stack * plan.micro_batch * plan.length * layers * values * 4
    logits = plan.stack * plan.micro_batch * plan.targets * config.vocab_size * 4 * 3
    return base.parameters * base.model.dtype.itemsize + plan.stack * adapter * 16 + activations + logits


def _probe(recipe: Recipe, name: str, plan: TrainingPlan, device: str) -> float:
    """Median seconds of a step of one stack, the first left out."""
    from dataclasses import replace

    from toolkit.train import train_stack

    marks: list[float] = []
    seeds_R = [pipeline.seeds_of(recipe, name, r) for r in range(plan.stack)]
    condition = recipe.conditions[name].model_copy(update={"snapshots": None, "averages": []})
    short = replace(plan, steps=PROBE_STEPS + 1, warmup_steps=1)
    examples = pipeline.training_examples(recipe, device)
    train_stack(
        load_base(recipe.base, recipe.dtype, device).model,
        examples,
        condition,
        short,
        seeds_R,
        on_step=lambda _: marks.append(time.perf_counter()),
    )
    steps = sorted(later - earlier for earlier, later in zip(marks, marks[1:], strict=False))
    return steps[len(steps) // 2]


def show(found: dict[str, Any]) -> None:
    """`check` for people."""
    console = Console(highlight=False, soft_wrap=True)
    base, rows = found["base"], found["data"]
    size = f"{base['parameters']:,} parameters, {base['dtype']} on {found['device']}"
    console.print(f"[bold]{escape(found['recipe'])}[/]: {base['architecture']}, {size}")
    lengths = f"longest {rows['longest']} tokens, mean {rows['mean_length']:.1f}"
    console.print(f"data: {rows['rows']:,} rows, read as [bold]{rows['format']}[/], {lengths}")
    console.print("suites: " + (", ".join(f"{escape(name)} ({n:,} prompts)" for name, n in found["suites"].items()) or "none"))
    console.print("two rows as the model sees them, what counts in the loss between ⟦ and ⟧:")
    for example in rows["examples"]:
        console.print(f"  {escape(_shortened(example))}")
    for name, entry in found["conditions"].items():
        plan = entry["plan"]
        stacks = f"{entry['stacks']} stack{'s' * (entry['stacks'] > 1)} of {plan['stack']}"
        console.print(f"[bold]{escape(name)}[/]: {_design(entry)} in {stacks}")
        console.print(f"  {plan['steps']} steps of {plan['micro_batch'] * plan['accumulation']} rows, padded to {plan['length']} tokens")
        sizes = f"about {_size(entry['memory_bytes'])} a worker, {_size(entry['disk_bytes'])} on disk with merges"
        console.print(f"  {entry['adapter_parameters']:,} adapter parameters; {sizes}")
        if "hours" in entry:
            hours = entry["hours"]
            left = f"{hours:.1f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes" if hours >= 1 / 30 else f"{hours * 3600:.0f} seconds"
            console.print(f"  {entry['seconds_per_step'] * 1000:.0f} ms a step of a stack (measured now): about {left} of training")
    for warning in found["warnings"]:
        console.print(f"[yellow]note[/]: {escape(warning)}")


def _size(n: int) -> str:
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def _shortened(example: str) -> str:
    """What surrounds the first token that counts."""
    if len(example) <= SHOWN:
        return example
    at = max(example.find("⟦"), 0)
    start, end = max(at - SHOWN // 2, 0), at + SHOWN // 2
    return ("… " if start else "") + example[start:end] + (" …" if end < len(example) else "")


def doctor() -> dict[str, Any]:
    """Environment, and what could make two runs of one recipe differ here."""
    device = environment.resolve_device("auto")
    found = environment.describe(device)
    notes = []
    if device == "cpu":
        notes.append("CPU: every worker runs one thread with fixed shapes; the same machine and versions give the same bits")
        notes.append("another CPU model or torch build may choose other kernels: expect equal results to rounding, not equal bits")
    else:
        notes.append("GPU: deterministic kernels are switched on; bits hold for one GPU model, driver and torch build")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED"):
        if name in os.environ:
            notes.append(f"{name}={os.environ[name]} is set; workers set their own threads, and hashes of strings decide nothing")
    missing = [name for name, version in found["versions"].items() if version is None]
    if missing:
        notes.append(f"not installed: {', '.join(missing)}; `pip install ftk` brings them")
    return {**found, "notes": notes}


def show_doctor(found: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    numerics = found["numerics"]
    console.print(f"ftk {found['ftk']}, Python {found['python']}, {found['system']}")
    console.print(f"{numerics['gpu'] or numerics['cpu']}, {found['cores']} cores, {(found['memory_bytes'] or 0) / 2**30:.0f} GiB")
    console.print(", ".join(f"{name} {version or 'missing'}" for name, version in found["versions"].items()))
    for note in found["notes"]:
        console.print(f"- {escape(note)}")
