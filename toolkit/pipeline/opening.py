"""A run folder opened by one process: what is asked and where it runs, written down and checked."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from toolkit import environment
from toolkit.base import fastest_dtype, load_base, load_config
from toolkit.compiled import TESTED
from toolkit.data import asks_for_the_date
from toolkit.engines import ENGINES
from toolkit.files import remove_leftovers
from toolkit.measure import read_prompts
from toolkit.pipeline.checks import check_all
from toolkit.pipeline.fitting import fit_stacks
from toolkit.pipeline.job import Console, Run, RunError, as_json, open_folder
from toolkit.population import RECORD, write_text
from toolkit.recipe import Recipe, dump_recipe


@contextmanager
def open_run(
    recipe: Recipe, folder: Path, *, workers: int | None = None, engine: str = "local", console: Console | None = None
) -> Iterator[Run]:
    """Write down what is asked and where it runs; refuse a folder that holds another recipe's run. `engine`: see `ENGINES`.

    Raises RunError, RecipeError or BaseError in one line.
    """
    console = console or Console()
    try:
        device = environment.resolve_device(recipe.device)
    except ValueError as error:
        raise RunError(str(error)) from None
    recipe = settle(recipe, device, folder)
    base = load_base(recipe.base, recipe.dtype, device)
    prompts = read_prompts(recipe)  # a suite that is wrong should stop a run before it trains
    check_all(recipe, base, prompts, device)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        remove_leftovers(folder)  # of a run that was killed
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
        write_text(folder / "environment.json", as_json(environment.describe(device)))
        write_text(folder / "base.json", as_json(base.to_dict()))
        with ENGINES[engine](device, workers) as at_work:
            yield Run(recipe, folder, device, at_work, console)
            if len(at_work.machines) > 1:
                console.note(f"different processors did the work, and may round differently: {', '.join(sorted(at_work.machines))}")
        remove_leftovers(folder)  # of workers that were killed in this one, and whose work others did


def settle(recipe: Recipe, device: str, folder: Path | None = None) -> Recipe:
    """What `auto`, an open date, and on a GPU an open `stack`, mean here; in a run folder, what they meant when its first replica was
    trained.

    Raises BaseError where there is no such base, RunError as `fit_stacks`.
    """
    if folder and (folder / "recipe.yaml").is_file():
        then = open_folder(folder)
        kept = {key: getattr(then, key) for key in ("dtype", "compile") if getattr(recipe, key) == "auto"}
        stacks = {name: one.stack for name, one in then.trained.items()}
        fitted = {
            name: one.model_copy(update={"stack": stacks[name]})
            for name, one in recipe.trained.items()
            if one.stack is None and recipe.stack is None and stacks.get(name)
        }
        recipe = recipe.model_copy(update={**kept, "conditions": {**recipe.conditions, **fitted}})
        recipe = _on(recipe, then.data.date)
    config = load_config(recipe.base)
    if recipe.dtype == "auto":
        recipe = recipe.model_copy(update={"dtype": fastest_dtype(config.get_text_config().hidden_size, device)})
    if recipe.compile == "auto" and not (device == "cpu" and environment.compiler() and config.model_type in TESTED):
        recipe = recipe.model_copy(update={"compile": "never"})
    if recipe.data.date is None and asks_for_the_date(load_base(recipe.base, recipe.dtype, device).tokenizer):
        recipe = _on(recipe, _first_day(folder).isoformat())
    return fit_stacks(recipe, device) if device == "cuda" else recipe


def _on(recipe: Recipe, day: str | None) -> Recipe:
    """The recipe with the date that its chat template is told, unless it says one itself."""
    if recipe.data.date or day is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"date": day})})


def _first_day(folder: Path | None) -> date:
    """Today; of a run whose recipe does not say it yet, the day on which its first replica was trained."""
    records = folder.glob(f"*/replicas/*/{RECORD}") if folder else ()
    return date.fromtimestamp(min((path.stat().st_mtime for path in records), default=time.time()))


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it whenever and however this process ends."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: another ftk is at work here; wait for it, or choose another --out") from None
        yield
