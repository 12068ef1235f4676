"""What can be refused of a run in its first second: the folder is not free, no prompt is meant, no
base is there. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.data import Prompt
from toolkit.embedded import suite_of
from toolkit.errors import FtkError
from toolkit.measurement.meaning import classes
from toolkit.measurement.run import read_prompts
from toolkit.pipeline.sequential_training import asked_about
from toolkit.recipe import Recipe, Sequential, read_recipe, with_suites
from toolkit.record.files import no_folder
from toolkit.record.folders import EVALUATED, RUN, check_claim, is_run, is_sealed, read_marker
from toolkit.record.population import RECORD, fingerprint

RESOLVED = {"stack", "compile", "dtype"}
"""of a condition, what a run may settle for it"""
UNTRAINED = {"replicas", "vary", "crossed", "repeats", "rows"}
"""of a condition, what is not in the fingerprint of its replicas as it is written"""


class RunError(FtkError, RuntimeError):
    """A run that cannot go on; one line with the reason and the way out."""


def check_early(recipe: Recipe, folder: Path | None, *, answers: bool = False) -> None:
    """What `ftk run` and `ftk check` ask of a recipe and a folder before torch and the base are
    loaded; both ask again, and more.

    answers: prompts will be asked, so that there must be some.
    Raises RunError, FolderError, DataError or RecipeError in one line.
    """
    if folder:
        recipe = keep_suites(recipe, folder)
        check_free(recipe, folder)
    if no_folder(recipe.base):
        raise RunError(f"base {recipe.base!r}: no such folder")
    prompts = read_prompts(with_suites(recipe))
    if answers and not prompts:
        raise RunError(
            "'data.suites' names no prompts, and replicas are compared by their answers: add "
            "`suites: {mine: FILE}`; `ftk train-replicas` trains without any"
        )
    check_criteria(recipe, prompts)


def check_free(recipe: Recipe, folder: Path, kind: str = RUN) -> tuple[str, dict[str, str]]:
    """Whether a folder is free, or holds a run of this recipe as far as that is known without its
    base; its kind, and what it is of.

    Raises RunError or FolderError in one line; writes nothing.
    """
    of = {"recipe": recipe_mark(recipe)}
    marked = read_marker(folder)
    if marked and (marked["kind"], marked["of"]) == (
        EVALUATED,
        of,
    ):  # `ftk run` with the recipe that lies there
        kind = EVALUATED
    of = of if kind == EVALUATED else {}
    check_claim(folder, kind, of)
    then = read_recipe(folder / "recipe.yaml") if is_run(folder) else None
    if then and kind == RUN:
        made = [name for name in then.conditions if any(folder.glob(f"{name}/replicas/*"))]
        way_out = "choose another --out, or delete that folder"
        if made and not set(made) & set(recipe.conditions):
            raise RunError(
                f"{folder}: holds the run of another recipe (conditions "
                f"{', '.join(made)}); {way_out}"
            )
        trained = [name for name in then.trained if any(folder.glob(f"{name}/replicas/*/{RECORD}"))]
        for name in trained if is_sealed(folder, "recipe.yaml") else ():
            if name in recipe.trained and (other := _trained_otherwise(then, recipe, name)):
                raise RunError(
                    f"{folder / name}: holds replicas of another recipe "
                    f"({', '.join(other)}); {way_out}"
                )
    return kind, of


def _trained_otherwise(then: Recipe, now: Recipe, name: str) -> list[str]:
    """What two recipes say differently about how a condition's replicas are trained."""
    old, new = (
        recipe.trained[name].model_dump(exclude=RESOLVED | UNTRAINED) for recipe in (then, now)
    )
    varied = ["vary"] * (sorted(then.vary_of(name)) != sorted(now.vary_of(name)))
    return (
        [key for key in new if old.get(key) != new[key]]
        + varied
        + ["seed"] * (then.seed != now.seed)
    )


def recipe_mark(recipe: Recipe) -> str:
    """Fingerprint of what adapters are asked; `auto` is resolved later and left out."""
    return fingerprint(
        recipe.model_dump(
            mode="json", exclude={"dtype": True, "compile": True, "name": True, "data": {"date"}}
        )
    )


def keep_suites(
    recipe: Recipe, folder: Path, note: Callable[[str], None] = lambda text: None
) -> Recipe:
    """With the version of the embedded suites that a run folder began with; in a new one as named,
    or the newest.
    """
    recipe = with_suites(recipe)
    then = read_recipe(folder / "recipe.yaml").data.suites if is_run(folder) else {}
    suites = {
        name: then[name] if _other_version(name, source, then.get(name, "")) else source
        for name, source in recipe.data.suites.items()
    }
    if changed := [name for name, source in suites.items() if source != recipe.data.suites[name]]:
        note(
            f"{folder}: goes on with {', '.join(suites[name] for name in changed)}, which "
            "it began with; "
            f"another --out asks {', '.join(recipe.data.suites[name] for name in changed)}"
        )
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"suites": suites})})


def _other_version(name: str, now: str, then: str) -> bool:
    """Whether two sources of a suite are of one shift (its name, where they do not say it) in two
    versions.
    """
    asked, kept = suite_of(now), suite_of(then)
    return bool(asked and kept and (asked[1] or name) == (kept[1] or name) and asked[0] != kept[0])


@contextmanager
def refused_at(where: str) -> Iterator[None]:
    """Raise a ValueError of the block as RunError, prefixed with the place in the recipe."""
    try:
        yield
    except ValueError as error:
        raise RunError(f"{where}: {error}") from None


def check_criteria(recipe: Recipe, prompts: dict[str, list[Prompt]]) -> None:
    """Refuse criteria, thresholds and rules for stopping of prompts that there are not, and what
    cannot be read in an answer.
    """
    for criterion in recipe.criteria:
        where = f"criterion {criterion.name!r}"
        judged = prompts.get(criterion.suite) or [
            p for suite in prompts.values() for p in suite if p.shift == criterion.suite
        ]
        if not judged:
            categories = ", ".join(
                dict.fromkeys([*prompts, *(p.shift for suite in prompts.values() for p in suite)])
            )
            raise RunError(
                f"{where}: no prompts in {criterion.suite!r}; there are: {categories or 'none'}"
            )
        names = list(dict.fromkeys(prompt.category for prompt in judged))
        if criterion.category is not None and criterion.category not in names:
            raise RunError(
                f"{where}: no category {criterion.category!r} in {criterion.suite}; there "
                f"are: {', '.join(names)}"
            )
        marked = criterion.observable == "correct" or criterion.statistic in (
            "accuracy",
            "accuracy-sd",
            "tail",
        )
        if marked and all(prompt.reference is None for prompt in judged):
            raise RunError(
                f"{where}: the prompts of {criterion.suite} have no `reference`, so that "
                "no answer is right or wrong"
            )
        if criterion.observable not in ("answer", "text", "correct"):
            with refused_at(where):
                classes(["1", "2"], criterion.observable)
    for figure in recipe.replicas.until if isinstance(recipe.replicas, Sequential) else ():
        asked_about(figure, prompts)
    categories = {prompt.category for suite in prompts.values() for prompt in suite}
    for name in recipe.thresholds.categories:
        if name not in categories:
            raise RunError(
                f"thresholds.categories: no prompt has the category {name!r}; there are: "
                f"{', '.join(sorted(categories)) or 'none'}"
            )
