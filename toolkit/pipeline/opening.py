"""Open a run folder for one process: check the recipe and the machine, and write both down."""

from __future__ import annotations

import fcntl
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from toolkit import environment
from toolkit.data import asks_for_the_date
from toolkit.measurement.run import read_prompts
from toolkit.model.adopt import check_given
from toolkit.model.base import Base, check_cache, fastest_dtype, load_base, load_config, width
from toolkit.model.compiled import TESTED
from toolkit.pipeline.checks.with_base import check_all
from toolkit.pipeline.checks.without_base import check_free, keep_suites, recipe_mark
from toolkit.pipeline.engines import ENGINES
from toolkit.pipeline.fitting import fit_stacks
from toolkit.pipeline.job import Console, Run, RunError, as_json
from toolkit.pipeline.train_stacks import check_population, training_plan
from toolkit.recipe import Recipe, dump_recipe, read_recipe
from toolkit.record import shapes
from toolkit.record.files import remove_leftovers
from toolkit.record.folders import (
    EVALUATED,
    LOCK,
    RUN,
    FolderError,
    check_claim,
    claim,
    is_run,
    read_marker,
    seal,
)
from toolkit.record.plain import read_record
from toolkit.record.population import LEDGER, RECORD, write_text


@contextmanager
def open_run(
    recipe: Recipe,
    folder: Path,
    *,
    workers: int | None = None,
    engine: str = "local",
    console: Console | None = None,
    kind: str = RUN,
    answers: bool = True,
) -> Iterator[Run]:
    """Open `folder` for a run of `recipe`; refuse a folder that holds another recipe's run.
    `engine`: see `ENGINES`.

    kind: of the folder, see `toolkit.record.folders`; a folder that was made by a run is opened as
    one. answers: prompts will be asked, which not every base that can be trained can do. Raises
    RunError, FolderError, RecipeError or BaseError in one line, before anything is written.
    """
    console = console or Console()
    try:
        device = environment.resolve_device(recipe.device)
    except ValueError as error:
        raise RunError(str(error)) from None
    recipe = keep_suites(recipe, folder, console.note)
    kind, of = check_free(recipe, folder, kind)
    recipe = resolve_auto(recipe, device, folder)
    if answers:
        check_cache(recipe.base)
    base = load_base(recipe.base, recipe.dtype, device)
    prompts = read_prompts(recipe)  # a suite that is wrong should stop a run before it trains
    for note in check_all(recipe, base, prompts, device, answers=answers):
        console.note(note)
    check_same_run(recipe, folder, kind, base, device)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        check_free(recipe, folder, kind)
        claim(folder, kind, of)  # under the lock: of two that find a free folder one gets it
        check_same_run(recipe, folder, kind, base, device)
        remove_leftovers(folder)  # of a run that was killed
        write_text(folder / "recipe.yaml", dump_recipe(recipe))
        write_text(folder / "environment.json", as_json(environment.describe(device)))
        write_text(folder / "base.json", as_json(base.to_dict()))
        seal(folder, "recipe.yaml", "environment.json", "base.json")
        with ENGINES[engine](device, workers) as at_work:
            yield Run(recipe, folder, device, at_work, console)
            if len(at_work.machines) > 1:
                console.note(
                    "different processors did the work, and may round differently: "
                    f"{', '.join(sorted(at_work.machines))}"
                )
        # of workers that were killed in this one, and whose work others did
        remove_leftovers(folder)


def check_folder(recipe: Recipe, folder: Path, base: Base, device: str) -> None:
    """Whether a folder is free, or holds a run of this recipe. Raises RunError, FolderError or
    AdapterError in one line.
    """
    check_free(recipe, folder)
    check_same_run(recipe, folder, RUN, base, device)


def free_folder(folder: Path, recipe: Recipe) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that is free or has the answers that
    this recipe asks for.
    """
    further = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    for path in itertools.chain([folder], further):
        try:
            check_claim(path, EVALUATED, {"recipe": recipe_mark(recipe)})
        except FolderError:
            continue
        if (
            not is_run(path)
            or read_marker(path)
            or recipe_mark(read_recipe(path / "recipe.yaml")) == recipe_mark(recipe)
        ):
            return path
    raise AssertionError("there is always a further number")


def kind_of_run(folder: Path) -> str:
    """The kind with which an existing run folder is reopened."""
    marker = read_marker(folder)
    return str(marker["kind"]) if marker else RUN


def check_same_run(recipe: Recipe, folder: Path, kind: str, base: Base, device: str) -> None:
    """Refuse a folder whose replicas or answers another recipe, base or data made. Raises RunError
    in one line; writes nothing.

    A recipe may go on in its folder with more replicas, other mitigations or further conditions,
    not with other training.
    """
    if not is_run(folder) and not any(folder.glob("*/replicas")):
        return
    way_out = "choose another --out, or delete that folder"
    then = read_recipe(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else None
    if (
        then
        and kind == EVALUATED
        and read_marker(folder) is None
        and recipe_mark(then) != recipe_mark(recipe)
    ):
        raise RunError(f"{folder}: holds answers of other adapters or to other prompts; {way_out}")
    base_hash = _base_hash(folder)
    made_of_it = itertools.chain(folder.glob("*/replicas/*"), folder.glob("outcomes/*/*.parquet"))
    if base_hash not in (None, base.sha256) and any(made_of_it):
        raise RunError(
            f"{folder}: holds replicas or answers of another base ({base_hash[:12]}..., this "
            f"one is {base.sha256[:12]}...); {way_out}"
        )
    for name in recipe.given:
        check_given(folder / name)
    if then != recipe:
        for name, condition in recipe.trained.items():
            # a student's own record is of its teachers, too
            has_mark = (folder / name / LEDGER).is_file() or not condition.teacher
            if has_mark and any((folder / name).glob(f"replicas/*/{RECORD}")):
                check_population(folder / name, training_plan(recipe, name, device)[1])


def _base_hash(folder: Path) -> str | None:
    try:
        return read_record(folder / "base.json", shapes.Base).get("sha256")
    except (OSError, ValueError):
        return None


def resolve_auto(recipe: Recipe, device: str, folder: Path | None = None) -> Recipe:
    """Resolve `auto`, a missing date and, on a GPU, a missing `stack`; in a run folder, to what
    they meant when its first replica was trained.

    Raises BaseError where there is no such base, RunError as `fit_stacks`.
    """
    if folder and (folder / "recipe.yaml").is_file():
        then = read_recipe(folder / "recipe.yaml")
        kept = {
            key: getattr(then, key)
            for key in ("dtype", "compile")
            if getattr(recipe, key) == "auto"
        }
        stacks = {name: condition.stack for name, condition in then.trained.items()}
        fitted = {
            name: condition.model_copy(update={"stack": stacks[name]})
            for name, condition in recipe.trained.items()
            if condition.stack is None and recipe.stack is None and stacks.get(name)
        }
        recipe = recipe.model_copy(update={**kept, "conditions": {**recipe.conditions, **fitted}})
        recipe = _on(recipe, then.data.date)
    config = load_config(recipe.base)
    if recipe.dtype == "auto":
        recipe = recipe.model_copy(update={"dtype": fastest_dtype(width(config), device)})
    if recipe.compile == "auto" and not (
        device == "cpu" and environment.compiler() and config.model_type in TESTED
    ):
        recipe = recipe.model_copy(update={"compile": "never"})
    if recipe.data.date is None and asks_for_the_date(
        load_base(recipe.base, recipe.dtype, device).tokenizer
    ):
        recipe = _on(recipe, _first_day(folder).isoformat())
    return fit_stacks(recipe, device) if device == "cuda" else recipe


def _on(recipe: Recipe, day: str | None) -> Recipe:
    """The recipe with the date that its chat template is told, unless it says one itself."""
    if recipe.data.date or day is None:
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"date": day})})


def _first_day(folder: Path | None) -> date:
    """Today; of a run whose recipe does not say it yet, the day on which its first replica was
    trained.
    """
    shapes = folder.glob(f"*/replicas/*/{RECORD}") if folder else ()
    return date.fromtimestamp(min((path.stat().st_mtime for path in shapes), default=time.time()))


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it whenever and however this process ends."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"{folder}: another ftk is at work here; wait for it, or choose another --out"
            ) from None
        yield
