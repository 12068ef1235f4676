"""Stacks as wide as the memory of a GPU lets them be, found by trying a step."""

from __future__ import annotations

from dataclasses import replace

import torch

from toolkit import seeds
from toolkit.model.base import load_base
from toolkit.pipeline.job import RunError
from toolkit.pipeline.train_stacks import examples_of, training_plan
from toolkit.recipe import Recipe
from toolkit.train import train_stack


def fit_stacks(recipe: Recipe, device: str) -> Recipe:
    """Conditions whose stack the recipe leaves open get one of half the width, again and again,
    until a step of it fits.

    A width is part of a replica's bits: the run's recipe keeps what was found, whatever else is on
    the GPU later. Raises RunError where not even one replica fits.
    """
    fitted = {}
    for name, condition in recipe.trained.items():
        if recipe.stack or condition.stack:
            continue
        width = training_plan(recipe, name, device)[0].stack
        while not fits(recipe, name, device, width):
            if width == 1:
                raise RunError(
                    f"conditions.{name}: not even one replica fits the memory of the GPU; "
                    "set a smaller `batch_size` (with "
                    "`gradient_accumulation` for the same steps) or `data.max_length`"
                )
            width //= 2
        fitted[name] = condition.model_copy(update={"stack": width})
    return recipe.model_copy(update={"conditions": {**recipe.conditions, **fitted}})


def fits(recipe: Recipe, name: str, device: str, width: int) -> bool:
    """Whether one step of a stack of this width stays within the memory of the device. What
    teachers take is not in it.
    """
    condition = recipe.trained[name].model_copy(update={"stack": width})
    trial = recipe.model_copy(update={"conditions": {**recipe.conditions, name: condition}})
    plan = replace(training_plan(trial, name, device)[0], steps=1, compiled=False)
    base = load_base(recipe.base, condition.dtype or recipe.dtype, device)
    seeds_R = [seeds.replica_seeds(0, r, seeds.SOURCES) for r in range(width)]
    try:
        train_stack(
            base.model,
            examples_of(recipe, name, device),
            condition.model_copy(update={"snapshots": None}),
            plan,
            seeds_R,
        )
    except torch.OutOfMemoryError:
        return False
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()
    return True
