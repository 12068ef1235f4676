"""Whether a base's architecture can do what a recipe asks, and whether peft loads what would be
trained: asked before anything starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toolkit.model.adapters import Adapter
from toolkit.model.adopt import find_adapters, layer_shapes
from toolkit.model.base import Base, skeleton
from toolkit.model.compiled import TESTED
from toolkit.model.full import read_weights
from toolkit.model.stack import target_modules
from toolkit.pipeline.checks.trial_step import rehearse_answers, rehearse_training
from toolkit.pipeline.job import RunError
from toolkit.recipe import Condition, Recipe


def check_architecture(recipe: Recipe, base: Base, *, answers: bool = True) -> list[str]:
    """What to know of this base, in lines; architectures that the tests hold are taken as they are.

    answers: prompts will be asked. Raises RunError or BaseError in one line for what the base, or
    peft, cannot do.
    """
    if base.model.config.model_type in TESTED:
        return []
    notes: list[str] = []
    conditions = {
        name: condition for name, condition in recipe.trained.items() if condition.method != "full"
    }
    for name, condition in conditions.items():
        notes += _as_peft(name, condition, base)
    for targets in {
        str(condition.targets): condition.targets for condition in conditions.values()
    }.values():
        rehearse_training(base, targets)
    if answers:
        rehearse_answers(base, _adapted_here(recipe, base))
    return notes


def _adapted_here(recipe: Recipe, base: Base) -> set[str]:
    """Modules that some adapter of the recipe changes, or will."""
    modules: set[str] = set()
    for condition in recipe.trained.values():
        modules |= (
            set(target_modules(base.model, condition.targets))
            if condition.method != "full"
            else set()
        )
    for given in recipe.given.values():
        for path in find_adapters(given.adapters):
            weights = read_weights(path)
            modules |= (
                set(weights.fitted(layer_shapes(base.model)).modules)
                if isinstance(weights, Adapter)
                else set()
            )
    return modules


def _as_peft(name: str, condition: Condition, base: Base) -> list[str]:
    """Refuse what peft would not load of a condition; say what its `all-linear` would adapt,
    too.
    """
    layers = set(target_modules(base.model, condition.targets))
    everything = condition.targets == "all-linear"
    kinds = (
        sorted({layer.rpartition(".")[2] for layer in layers})
        if everything
        else list(condition.targets)
    )
    adapted, why = _adapted(base, kinds)
    if adapted is None and why is None:
        return []  # its modules cannot be built without weights
    if adapted != layers:
        differing = min((adapted or set()) ^ layers)
        why = (
            why
            or f"by these names it {'leaves out' if differing in layers else 'adds'} {differing}"
        )
        good = [
            kind
            for kind in kinds
            if _adapted(base, [kind])[0] == set(target_modules(base.model, [kind]))
        ]
        bad = [kind for kind in kinds if kind not in good]
        raise RunError(
            f"conditions.{name}.targets: peft would not load as trained an adapter of "
            f"{', '.join(bad) or 'these layers'} on a "
            f"{type(base.model).__name__} ({why})"
            + (f"; set `targets: [{', '.join(good)}]`" if good else "; choose another base")
        )
    assert adapted is not None
    if not everything:
        return []
    theirs, _ = _adapted(base, "all-linear")
    added = sorted({_kind(layer) for layer in (theirs or set()) - layers})
    if not added:
        return []
    return [
        f"{name}: all-linear adapts the {len(layers)} linear layers ({', '.join(kinds)}); "
        f"peft's would adapt {', '.join(added)} too, "
        "which are not linear layers here, so a run of peft's all-linear is another procedure"
    ]


def _kind(layer: str) -> str:
    """The name of a module within its layer: `mlp.experts`."""
    parts = layer.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else layer


def _adapted(base: Base, targets: Sequence[str] | str) -> tuple[set[str] | None, str | None]:
    """Modules that peft adapts, on the base's modules without weights; or None, and why it refuses
    (None: they cannot be built).
    """
    import peft

    model: Any = skeleton(base.name)
    if model is None:
        return None, None
    wanted = targets if isinstance(targets, str) else list(targets)
    try:
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(r=1, target_modules=wanted, task_type="CAUSAL_LM")
        )
    except Exception as error:  # of peft, which refuses in several ways
        return None, " ".join(str(error).split()).partition(". ")[0][:160]
    adapted = {
        name.removeprefix("base_model.model.")
        for name, module in tuned.named_modules()
        if getattr(module, "lora_A", None)
    }
    return {name.removesuffix(".base_layer") for name in adapted}, None
