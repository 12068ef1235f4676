"""Before a run: what it would do and cost (`ftk check`), and what would make two runs differ (`ftk doctor`)."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape

from toolkit import data, environment, pipeline, seeds
from toolkit.base import load_base
from toolkit.plan import TrainingPlan
from toolkit.recipe import Recipe

PROBE_STEPS = 3


def check(recipe: Recipe, *, probe: bool = True) -> dict[str, Any]:
    """Data as the model will see it, plan, memory, disk and time, as plain values.

    Raises RecipeError, DataError or BaseError in one line. The probe trains one stack for a few steps and throws it away.
    """
    device = environment.resolve_device(recipe.device)
    environment.make_deterministic(device)
    base = load_base(recipe.base, recipe.dtype, device)
    rows = data.read_rows(recipe.data.train)
    form = data.detect_format(rows) if recipe.data.format == "auto" else recipe.data.format
    examples = pipeline.training_examples(recipe, device)
    prompts = pipeline.read_prompts(recipe)
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
        adapter = _adapter_parameters(base.model, condition)
        folders = 1 + len(condition.averages) + (condition.snapshots.count if condition.snapshots and condition.snapshots.save else 0)
        entry: dict[str, Any] = {
            "replicas": replicas,
            "plan": asdict(plan),
            "stacks": stacks,
            "adapter_parameters": adapter,
            "memory_bytes": _memory(base.parameters, base.model.config, plan, adapter),
            "disk_bytes": replicas * folders * (adapter * 4 + 20_000),
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
    warnings += [f"{label}: only {g} disjoint groups; intervals need about 8" for label, g in groups.items() if g < 8]
    found["groups"] = groups
    return found


def _adapter_parameters(model: Any, condition: Any) -> int:
    from toolkit.stack import stacked

    with stacked(model, condition.targets) as stack:
        return sum(condition.rank * (layer.in_features + layer.out_features) for layer in stack.layers.values())


def _memory(parameters: int, config: Any, plan: TrainingPlan, adapter: int) -> int:
    """Rough peak of one worker: base, adapters with gradients and moments, and saved activations (about 34 values a token, layer and
    hidden unit, from counting what a transformer block keeps for its backward pass)."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    activations = plan.stack * plan.micro_batch * plan.length * layers * hidden * 34 * 4
    logits = plan.stack * plan.micro_batch * plan.targets * config.vocab_size * 4 * 3
    return parameters * 4 + plan.stack * adapter * 16 + activations + logits


def _probe(recipe: Recipe, name: str, plan: TrainingPlan, device: str) -> float:
    """Median seconds of a step of one stack, the first left out."""
    from dataclasses import replace

    from toolkit.train import train_stack

    marks: list[float] = []
    seeds_R = [seeds.replica_seeds(recipe.seed, r, recipe.vary_of(name)) for r in range(plan.stack)]
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
    console = Console(highlight=False)
    base, rows = found["base"], found["data"]
    console.print(
        f"[bold]{escape(found['recipe'])}[/]: {base['architecture']}, {base['parameters']:,} parameters, {base['dtype']} on {found['device']}"
    )
    lengths = f"longest {rows['longest']} tokens, mean {rows['mean_length']:.1f}"
    console.print(f"data: {rows['rows']:,} rows, read as [bold]{rows['format']}[/], {lengths}; suites: {found['suites'] or 'none'}")
    console.print("two rows as the model sees them, what counts in the loss between ⟦ and ⟧:")
    for example in rows["examples"]:
        console.print(f"  {escape(example)}")
    for name, entry in found["conditions"].items():
        plan = entry["plan"]
        console.print(f"[bold]{escape(name)}[/]: {entry['replicas']} replicas in {entry['stacks']} stacks of {plan['stack']}")
        console.print(f"  {plan['steps']} steps of {plan['micro_batch'] * plan['accumulation']} rows, padded to {plan['length']} tokens")
        memory, disk = entry["memory_bytes"] / 2**30, entry["disk_bytes"] / 2**20
        console.print(f"  {entry['adapter_parameters']:,} adapter parameters; about {memory:.1f} GiB a worker, {disk:,.0f} MiB on disk")
        if "hours" in entry:
            hours = entry["hours"]
            left = f"{hours:.1f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes" if hours >= 1 / 30 else f"{hours * 3600:.0f} seconds"
            console.print(f"  {entry['seconds_per_step'] * 1000:.0f} ms a step of a stack (measured now): about {left} of training")
    for warning in found["warnings"]:
        console.print(f"[yellow]note[/]: {escape(warning)}")


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
    console = Console(highlight=False)
    numerics = found["numerics"]
    console.print(f"ftk {found['ftk']}, Python {found['python']}, {found['system']}")
    console.print(f"{numerics['gpu'] or numerics['cpu']}, {found['cores']} cores, {(found['memory_bytes'] or 0) / 2**30:.0f} GiB")
    console.print(", ".join(f"{name} {version or 'missing'}" for name, version in found["versions"].items()))
    for note in found["notes"]:
        console.print(f"- {escape(note)}")
