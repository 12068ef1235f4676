"""Before a run: what it would do and cost (`ftk check`), and what would make two runs differ (`ftk
doctor`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from toolkit import data, environment
from toolkit.measurement.run import read_prompts
from toolkit.model.adapters import read_adapter
from toolkit.model.adopt import base_hash, check_base, find_adapters, layer_shapes, remarks
from toolkit.model.base import Base, check_cache, load_base
from toolkit.model.full import copies
from toolkit.model.stack import stacked
from toolkit.pipeline import opening, populations, train_stacks
from toolkit.pipeline.checks import with_base
from toolkit.pipeline.forecast import Part, forecast, save
from toolkit.recipe import Given, Recipe, RecipeError
from toolkit.recipe.schedule import (
    SOFT_TARGET_BYTES,
    TRAINED_BYTES,
    TrainingPlan,
    soft_target_bytes,
)
from toolkit.record.folders import RUN, check_claim, claim
from toolkit.statistics import MIN_GROUPS
from toolkit.text import escape, tables

SIZES = ("worker_bytes", "disk_bytes")
SHOWN = 600
"""characters of a row that people see"""


def check(
    recipe: Recipe, *, probe: bool = True, workers: int | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Data as the model will see it, plan, memory, disk and time, as plain values.

    Raises RecipeError, DataError, BaseError or RunError in one line. The probe does a little of the
    run and throws it away.
    out: a run folder, where the forecast is saved for `ftk run` to compare itself with; FolderError
    where it is none, or another's.
    """
    try:
        device = environment.resolve_device(recipe.device)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    environment.make_deterministic(device)
    if out:
        check_claim(out, RUN)
    recipe = opening.resolve_auto(recipe, device, out)
    prompts = read_prompts(recipe)
    check_cache(recipe.base)
    base = load_base(recipe.base, recipe.dtype, device)
    if out:
        opening.check_folder(recipe, out, base, device)
    warnings = with_base.check_all(recipe, base, prompts, device)
    preview: dict[str, Any] = {
        "recipe": recipe.name,
        "base": base.to_dict(),
        "device": device,
        "data": _rows(recipe, base, device, warnings) if recipe.trained else None,
        "suites": {name: len(suite_prompts) for name, suite_prompts in prompts.items()},
        "conditions": {},
        "warnings": warnings,
    }
    warnings += train_stacks.data_notes(recipe, prompts, device)
    parts, passes, held = [], {}, {}
    for name, condition in recipe.given.items():
        preview["conditions"][name] = entry = _population(condition, base, warnings)
        layers = _layers(base.model, name, "all-linear")
        parts.append(
            Part(
                name,
                entry["replicas"],
                max(entry["ranks"]),
                layers,
                None,
                None,
                recipe.mitigations_of(name),
            )
        )
    for name, condition in recipe.trained.items():
        plan, _ = train_stacks.training_plan(recipe, name, device)
        replicas = recipe.replicas_of(name)
        stacks = math.ceil(replicas / plan.stack)
        layers = _layers(base.model, name, condition.targets)
        whole = condition.method == "full"
        trained = (
            base.parameters
            if condition.method == "full"
            else sum(condition.rank * (i + o) for i, o in layers.values())
        )
        taught = _teaching(recipe, name, plan, base, train_stacks.examples_of(recipe, name, device))
        rank, whole_bytes = condition.adapter_rank or 0, 4 * trained if whole else 0
        parts.append(
            Part(
                name,
                replicas,
                rank,
                layers,
                plan,
                condition,
                recipe.mitigations_of(name),
                whole_bytes,
            )
        )
        held[name] = (
            4 * plan.stack * trained * (condition.snapshots.count if condition.snapshots else 0)
        )
        if taught:
            passes[name] = (
                plan.steps_per_epoch * taught["groups_a_stack"] / plan.stack
                if taught["kept_bytes"]
                else plan.steps
            )
            held[name] += taught["memory_bytes"]
        preview["conditions"][name] = {
            "replicas": replicas,
            "at_most": recipe.until_of(name) is not None,  # a rule may stop earlier
            "crossed": condition.crossed,
            "teaching": taught,
            "plan": plan.to_dict(),
            "stacks": stacks,
            "method": condition.method,
            "trained_parameters": trained,
            "memory_bytes": _memory(base, plan, trained, condition.dropout)
            + (taught["memory_bytes"] if taught else 0),
        }
        if whole and set(recipe.vary_of(name)) - {"order"} and not condition.crossed:
            warnings.append(
                f"{name}: starts from the base and has no dropout, so that the order of "
                "the rows is all that varies"
            )
        if stacks * plan.stack > replicas:
            warnings.append(
                f"{name}: {stacks * plan.stack} replicas would cost no more than these "
                f"{replicas}: stacks of {plan.stack} are always trained whole"
            )
    ahead = forecast(
        recipe,
        parts,
        prompts,
        device,
        workers=workers,
        probed=probe,
        passes=passes,
        extra_bytes=held,
    )
    for name, seconds in ahead.step.items():
        preview["conditions"][name]["seconds_per_step"] = seconds
        if preview["conditions"][name]["teaching"]:
            preview["conditions"][name]["teaching"]["seconds_a_stack"] = ahead.teaching[name]
    preview["forecast"] = ahead.to_dict()
    if out:
        claim(out, RUN)
        preview["forecast"]["file"] = str(save(out, ahead))
    mitigated = [name for name in recipe.conditions if recipe.mitigations_of(name)]
    groups = {
        m.label: min(preview["conditions"][name]["replicas"] for name in mitigated) // m.k
        for m in recipe.mitigations
    }
    groups |= {
        name: entry["teaching"]["groups"]
        for name, entry in preview["conditions"].items()
        if entry.get("teaching") and entry["teaching"]["fresh"]
    }
    if few := [f"{label} ({g})" for label, g in groups.items() if g < MIN_GROUPS]:
        sizes = [
            c.teacher.k
            for c in recipe.trained.values()
            if c.teacher and c.teacher.groups == "fresh"
        ]
        needed = MIN_GROUPS * max([*(m.k for m in recipe.mitigations), *sizes])
        warnings.append(
            f"disjoint groups of K, where intervals need {MIN_GROUPS}: {', '.join(few)}; "
            f"{needed} replicas are enough for all"
        )
    preview["groups"] = groups
    return preview


def _rows(recipe: Recipe, base: Base, device: str, warnings: list[str]) -> dict[str, Any]:
    """The training rows as the model will see them."""
    rows = data.read_rows(recipe.data.train)
    examples = train_stacks.training_examples(recipe, device)
    warnings += data.check_tokenizer(base.tokenizer, [example.prompt for example in examples[:50]])
    return {
        "rows": len(examples),
        "format": data.detect_format(rows) if recipe.data.format == "auto" else recipe.data.format,
        "truncated": sum(e.truncated for e in examples),
        "longest": max(len(e.ids) for e in examples),
        "mean_length": sum(len(e.ids) for e in examples) / len(examples),
        "examples": [data.render(example, base.tokenizer) for example in examples[:2]],
    }


def _population(condition: Given, base: Base, warnings: list[str]) -> dict[str, Any]:
    """Adapters that are there already, every one checked."""
    paths = find_adapters(condition.adapters)
    shape_of = layer_shapes(base.model)
    adapters = [check_base(read_adapter(path), base, shape_of) for path in paths]
    if twins := copies(adapters):
        raise RecipeError(f"{twins}; leave one out")
    warnings += remarks(paths, base.name)
    return {
        "replicas": len(paths),
        "adapters": [str(path) for path in paths],
        "ranks": sorted({adapter.rank for adapter in adapters}),
        "targets": sorted(
            {name.rpartition(".")[2] for adapter in adapters for name in adapter.modules}
        ),
        "base_known_by_hash": sum(base_hash(path) is not None for path in paths),
    }


def _teaching(
    recipe: Recipe, name: str, plan: TrainingPlan, base: Base, examples: Sequence[data.Example]
) -> dict[str, Any] | None:
    """Of a distilled condition: its teachers, how many groups, and what a worker keeps of what they
    say (0: computed at every step).
    """
    condition = recipe.trained[name]
    teacher = condition.teacher
    if teacher is None:
        return None
    if teacher.condition in recipe.given:
        taught_by = [
            read_adapter(path) for path in find_adapters(recipe.given[teacher.condition].adapters)
        ]
        n_teachers, rank = len(taught_by), max(adapter.rank for adapter in taught_by)
        layers = {
            name: (module.in_features, module.out_features)
            for name, module in taught_by[0].modules.items()
        }
    else:
        taught = recipe.trained[teacher.condition]
        n_teachers, rank = recipe.replicas_of(teacher.condition), taught.adapter_rank or 0
        layers = _layers(base.model, teacher.condition, taught.targets)
    last = min(
        condition.group_of(max(recipe.replicas_of(name) - 1, 0)),
        max(n_teachers // teacher.k - 1, 0),
    )
    vocabulary = base.model.config.get_text_config().vocab_size
    size = soft_target_bytes(
        condition, [sum(e.loss_mask[1:]) for e in examples], vocabulary, plan.stack
    )
    kept = size if size <= SOFT_TARGET_BYTES else 0
    teachers = Part(teacher.condition, 0, rank, layers, None, None, ())
    together = teachers.merged_rank(teacher) if teacher.merge else teacher.k * rank
    adapters = sum(4 * together * (i + o) for i, o in layers.values())
    groups_a_stack = len({condition.group_of(r) for r in range(plan.stack)})
    return {
        "condition": teacher.condition,
        "method": teacher.method,
        "k": teacher.k,
        "fresh": teacher.groups == "fresh",
        "groups": last + 1,
        "students": condition.students,
        "groups_a_stack": groups_a_stack,
        "kept_bytes": kept,
        "memory_bytes": kept + groups_a_stack * adapters,
    }


def _design(entry: dict[str, Any]) -> str:
    """`at most 10000 replicas`, `64 replicas (8 init x 8 order)`."""
    levels = " x ".join(f"{count} {source}" for source, count in entry["crossed"].items())
    return (
        f"{'at most ' * entry['at_most']}{entry['replicas']} "
        f"replicas{f' ({levels})' if levels else ''}"
    )


def _layers(model: Any, condition: str, targets: str | list[str]) -> dict[str, tuple[int, int]]:
    """Input and output size of every layer that is adapted."""
    try:
        with stacked(model, targets) as stack:
            return {
                name: (int(layer.in_features), int(layer.out_features))
                for name, layer in stack.layers.items()
            }
    except ValueError as error:
        raise RecipeError(f"'conditions.{condition}.targets': {error}") from None


def _memory(base: Base, plan: TrainingPlan, trained: int, dropout: float) -> int:
    """Rough peak of one worker: base, what is trained with gradients and moments, and what a
    transformer block keeps for its backward pass.

    The values kept for each token and layer were counted on Qwen2 blocks with all linear layers
    adapted (`saved_tensors_hooks`).
    """
    config = base.model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    values = 18 * hidden + 5 * inner if dropout else 8 * hidden + 4 * inner
    activations = plan.stack * plan.micro_batch * plan.length * layers * values * 4
    targets = plan.stack * plan.micro_batch * plan.targets
    logits = (plan.piece or targets) * config.vocab_size * 4 * 3 + (
        targets * hidden * 4 * 3 if plan.piece else 0
    )
    return (
        sum(p.nbytes for p in base.model.parameters())
        + plan.stack * trained * TRAINED_BYTES
        + activations
        + logits
    )


def _say(console: Console, *parts: str | tuple[str, str]) -> None:
    """One line of text, and of (text, style): nothing in it is read as markup."""
    styled = ((part, "") if isinstance(part, str) else part for part in parts)
    console.print(Text.assemble(*((escape.line(text), style) for text, style in styled)))


def show(preview: dict[str, Any]) -> None:
    """`check` for people."""
    console = Console(highlight=False, soft_wrap=True)
    base, rows = preview["base"], preview["data"]
    size = f"{base['parameters']:,} parameters, {base['dtype']} on {preview['device']}"
    _say(console, (preview["recipe"], "bold"), f": {base['architecture']}, {size}")
    if rows:
        lengths = f"longest {rows['longest']} tokens, mean {rows['mean_length']:.1f}"
        _say(
            console,
            f"data: {rows['rows']:,} rows, read as ",
            (rows["format"], "bold"),
            f", {lengths}",
        )
    _say(
        console,
        "suites: "
        + (", ".join(f"{name} ({n:,} prompts)" for name, n in preview["suites"].items()) or "none"),
    )
    if rows:
        _say(console, "two rows as the model sees them, what counts in the loss between ⟦ and ⟧:")
        for example in rows["examples"]:
            for i, line in enumerate(_shortened(example).split("\n")):
                _say(console, "  " * (i == 0) + line)
    for name, entry in preview["conditions"].items():
        if "adapters" in entry:
            _show_given(console, name, entry)
            continue
        plan = entry["plan"]
        stacks = f"{entry['stacks']} stack{'s' * (entry['stacks'] > 1)} of {plan['stack']}"
        _say(console, (name, "bold"), f": {_design(entry)} in {stacks}")
        if entry["teaching"]:
            _say(console, f"  {_taught(entry['teaching'])}")
        _say(
            console,
            f"  {plan['steps']} steps of {plan['micro_batch'] * plan['accumulation']} "
            f"rows, padded to {plan['length']} tokens",
        )
        pace = (
            f"; {entry['seconds_per_step'] * 1000:.0f} ms a step of a stack (measured now)"
            if "seconds_per_step" in entry
            else ""
        )
        needed = (
            f"a stack needs about {_size(entry['memory_bytes'])} by its "
            f"shapes{', compiled' if plan.get('compiled') else ''}"
        )
        kind = "parameters" if entry["method"] == "full" else "adapter parameters"
        _say(console, f"  {entry['trained_parameters']:,} {kind}; {needed}{pace}")
    _show_forecast(console, preview["forecast"])
    for warning in preview["warnings"]:
        _say(console, ("note", "yellow"), f": {warning}")


def _show_forecast(console: Console, ahead: dict[str, Any]) -> None:
    """Stage by stage: wall time, peak of a worker, what is left on the disk."""
    workers = f"{ahead['workers']} worker{'s' * (ahead['workers'] > 1)}"
    if ahead["seconds"] is None:
        sizes = (f"{name} {_size(stage['disk_bytes'])}" for name, stage in ahead["stages"].items())
        _say(console, f"on disk, by shapes: {', '.join(sizes)}")
        return
    _say(
        console,
        ("what a run would take", "bold"),
        f" with {workers}, from a probe on this machine:",
    )
    in_all = {name: ahead[name] for name in ("seconds", "worker_bytes", "disk_bytes")}
    rows = [["stage", "wall time", "memory of a worker", "on disk"]]
    rows += [
        [name, _time(stage["seconds"]), *(_size(stage[of]) if stage[of] else "" for of in SIZES)]
        for name, stage in {**ahead["stages"], "in all": in_all}.items()
    ]
    for line in tables.plain(rows, right=(1, 2, 3), indent=2):
        _say(console, line)
    _say(
        console,
        f"  {workers} and the process that leads them: {_size(ahead['memory_bytes'])} of memory",
    )


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _show_given(console: Console, name: str, entry: dict[str, Any]) -> None:
    ranks, paths = entry["ranks"], entry["adapters"]
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    hashed = (
        f"base known by hash for {entry['base_known_by_hash']}, by names and shapes of the "
        "layers for all"
    )
    _say(console, (name, "bold"), f": {populations.given_note(len(paths))}")
    _say(console, f"  {span}, on {', '.join(entry['targets'])}; {hashed}")
    _say(console, f"  {paths[0]}" + (f" to {paths[-1]}" if len(paths) > 1 else ""))


def _taught(teaching: dict[str, Any]) -> str:
    """`learns from 8 groups of 4 of lora (probabilities), 1 student each; ...`"""
    k, groups = teaching["k"], teaching["groups"]
    who = f"{groups} fresh groups of {k}" if teaching["fresh"] else f"the first {k}"
    each = (
        f", {teaching['students']} student{'s' * (teaching['students'] > 1)} each"
        if teaching["fresh"]
        else ""
    )
    kept = teaching["kept_bytes"]
    how = (
        f"kept, {_size(kept)} a worker"
        if kept
        else f"more than {_size(SOFT_TARGET_BYTES)}, so computed anew at every step"
    )
    cost = (
        f" ({teaching['seconds_a_stack']:.0f} s a stack)" if "seconds_a_stack" in teaching else ""
    )
    return (
        f"learns from {who} of {teaching['condition']} ({teaching['method']}){each}: a "
        f"run is {k + 1} trainings, one model answers; "
        f"what the teachers say of all rows is {how}{cost}"
    )


def _size(n: int) -> str:
    return f"{n / 2**30:,.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def _shortened(example: str) -> str:
    """What surrounds the first token that counts."""
    if len(example) <= SHOWN:
        return example
    mark = max(example.find("⟦"), 0)
    start, end = max(mark - SHOWN // 2, 0), mark + SHOWN // 2
    return ("… " if start else "") + example[start:end] + (" …" if end < len(example) else "")


def doctor() -> dict[str, Any]:
    """Environment, and what could make two runs of one recipe differ here."""
    device = environment.resolve_device("auto")
    system = environment.describe(device)
    notes = []
    if device == "cpu":
        notes.append(
            "CPU: every worker runs one thread with fixed shapes; the same machine and "
            "versions give the same bits"
        )
        notes.append(
            "another CPU model or torch build may choose other kernels: expect equal "
            "results to rounding, not equal bits"
        )
    else:
        notes.append(
            "GPU: deterministic kernels are switched on; bits hold for one GPU model, "
            "driver and torch build"
        )
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED"):
        if name in os.environ:
            notes.append(
                f"{name}={os.environ[name]} is set; workers set their own threads, and "
                "hashes of strings decide nothing"
            )
    missing = [name for name, version in system["versions"].items() if version is None]
    if missing:
        notes.append(f"not installed: {', '.join(missing)}; `pip install 'ftk[train]'` brings them")
    return {**system, "notes": notes}


def show_doctor(system: dict[str, Any]) -> None:
    """Print what `ftk doctor` finds on this machine."""
    console = Console(highlight=False, soft_wrap=True)
    numerics = system["numerics"]
    _say(console, f"ftk {system['ftk']}, Python {system['python']}, {system['system']}")
    _say(
        console,
        f"{numerics['gpu'] or numerics['cpu']}, {system['cores']} cores, "
        f"{(system['memory_bytes'] or 0) / 2**30:.0f} GiB",
    )
    _say(
        console,
        ", ".join(f"{name} {version or 'missing'}" for name, version in system["versions"].items()),
    )
    for note in system["notes"]:
        _say(console, f"- {note}")
