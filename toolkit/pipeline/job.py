"""A run at work: its recipe, its folder, the engine that works for it, and how it speaks to the
outside.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.pipeline.checks.without_base import RunError as RunError
from toolkit.pipeline.console import Console as Console
from toolkit.pipeline.engines import LocalEngine, RayEngine
from toolkit.recipe import Recipe, read_recipe
from toolkit.record.folders import check_sealed
from toolkit.record.population import read_population


@dataclass
class Run:
    """A recipe, its folder, and what it needs at hand."""

    recipe: Recipe
    folder: Path
    device: str
    engine: LocalEngine | RayEngine
    console: Console

    def condition(self, name: str) -> Path:
        """The folder of a condition."""
        return self.folder / name


def open_folder(folder: Path, *, as_it_is: bool = False) -> Recipe:
    """The recipe of an existing run folder, whose files are what was written."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise RunError(
            f"{folder}: not a run folder (no recipe.yaml); `ftk run RECIPE --out "
            f"{folder}` makes one"
        )
    if not as_it_is:
        check_sealed(folder)
    return read_recipe(path)


def successful(folder: Path) -> list[int]:
    """The indexes of a condition's replicas that finished and did not diverge, sorted."""
    return sorted(r for r, record in read_population(folder).items() if record.status == "ok")


def as_json(value: Any) -> str:
    """A JSON document whose keys are sorted, with a line end."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
