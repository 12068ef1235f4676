"""Recipes from and to YAML files."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from toolkit.embedded import suite_of, with_version
from toolkit.errors import FtkError
from toolkit.recipe.conditions import ADAPTER_KEYS, OWN_KEYS, Given
from toolkit.recipe.criteria import Criteria
from toolkit.recipe.document import Dumper, Loader, lines_of
from toolkit.recipe.explain import BLOCKS, Blocks, explain
from toolkit.recipe.models import Recipe
from toolkit.recipe.upgrade import FORMAT, KEY, migrate
from toolkit.record.files import home, write_text
from toolkit.text.nearest import Path_, nearest

LARGEST = 1 << 20
"""bytes of a YAML file"""
Model_ = TypeVar("Model_", bound=BaseModel)


class RecipeError(FtkError, ValueError):
    """A recipe that cannot be run as written. The message is one line for the user."""


def _inherit(conditions: Any, lines: dict[Path_, int], file: str) -> Any:
    """Replace `from: OTHER` by the keys of OTHER, its own keys winning; a student trains as its
    teachers do where it does not say.
    """
    if not isinstance(conditions, dict):
        return conditions

    def resolve(name: str, seen: tuple[str, ...]) -> Any:
        block = conditions[name]
        if not isinstance(block, dict):
            return block
        if "from" not in block:
            return {**as_teachers(block, (*seen, name)), **block}
        parent = block["from"]
        where = f"{file}:{lines.get(('conditions', name, 'from'), 1)}"
        if not isinstance(parent, str) or parent not in conditions:
            raise RecipeError(
                f"{where}: 'from: {parent}' names no "
                f"condition{nearest(str(parent), list(conditions))}"
            )
        if parent in seen:
            raise RecipeError(f"{where}: 'from: {parent}' leads back to itself")
        if (
            "adapters" in block
            or isinstance(conditions[parent], dict)
            and "adapters" in conditions[parent]
        ):
            raise RecipeError(
                f"{where}: 'from' hands on how to train, and a condition with `adapters` "
                "is not trained; leave it out"
            )
        inherited = resolve(parent, (*seen, name))
        changed = {key: value for key, value in block.items() if key != "from"}
        if not isinstance(inherited, dict):
            return changed
        if (
            changed.get("method") == "full" != inherited.get("method")
        ):  # what is right for adapters alone
            inherited = {
                key: value for key, value in inherited.items() if key not in (*ADAPTER_KEYS, "lr")
            }
        return {**inherited, **changed}

    def as_teachers(block: dict[str, Any], seen: tuple[str, ...]) -> dict[str, Any]:
        teacher = block.get("teacher")
        condition = teacher.get("condition") if isinstance(teacher, dict) else None
        if not isinstance(condition, str) or condition not in conditions or condition in seen:
            return {}
        inherited = resolve(condition, seen)
        return (
            {key: value for key, value in inherited.items() if key not in (*OWN_KEYS, "adapters")}
            if isinstance(inherited, dict)
            else {}
        )

    return {name: resolve(name, (name,)) for name in conditions}


def _each_k(mitigations: Any, lines: dict[Path_, int]) -> Any:
    """Write `{merge: mean, k: [4, 8]}` as one mitigation for each k; `lines` tells where each of
    them stands.
    """
    if not isinstance(mitigations, list):
        return mitigations
    written = {path: line for path, line in lines.items() if path[:1] == ("mitigations",)}
    alone, origin = [], []
    for i, block in enumerate(mitigations):
        several = (
            block["k"]
            if isinstance(block, dict) and isinstance(block.get("k"), list) and block["k"]
            else None
        )
        alone += [{**block, "k": k} for k in several] if several else [block]
        origin += [i] * (len(several) if several else 1)
    for i, source in enumerate(origin):
        lines |= {
            (path[0], i, *path[2:]): line
            for path, line in written.items()
            if path[1:2] == (source,)
        }
    return alone


def _locate(value: str, folder: Path) -> str:
    """A relative path in a recipe counts from the recipe's folder first, then from the working
    directory. Names stay as they are.
    """
    if not value or suite_of(value):
        return value
    path = home(value)
    return next((str(p.resolve()) for p in (folder / path, path) if p.exists()), value)


def _locate_pattern(value: str, folder: Path) -> str:
    """`_locate` for a pattern: it counts from the recipe's folder where it matches something
    there.
    """
    beside = str(folder.resolve() / home(value))
    # Path.glob takes no absolute pattern
    return beside if glob.glob(beside) else str(home(value).absolute())  # noqa: PTH207


def parse_recipe(text: str, file: str = "recipe.yaml") -> Recipe:
    """Read a recipe from YAML text; paths are left as written.

    Raises RecipeError with one line: file, line, field and the fix.
    """
    document, lines = read_yaml(
        text,
        file,
        "a recipe is a mapping with `base`, `data` and `conditions`; `ftk init` writes one",
    )
    try:
        document = migrate(document)
    except ValueError as error:
        raise RecipeError(f"{file}:{lines.get((KEY,), 1)}: {error}") from None
    if "conditions" in document:
        document["conditions"] = _inherit(document["conditions"], lines, file)
    if "mitigations" in document:
        document["mitigations"] = _each_k(document["mitigations"], lines)
    document.setdefault("name", Path(file).stem)
    return _validate(Recipe, document, lines, file)


def read_recipe(path: Path) -> Recipe:
    """The recipe of a run folder, its paths as they are. Raises RecipeError as `parse_recipe` does.

    A run names the version of embedded suites since there are two; one that does not asked the
    first.
    """
    return with_suites(parse_recipe(text_of(path), str(path)), 1)


def with_suites(recipe: Recipe, *version: int) -> Recipe:
    """A recipe whose embedded suites name their version: `version`, by default the newest, where
    they do not.
    """
    suites = {name: with_version(source, *version) for name, source in recipe.data.suites.items()}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"suites": suites})})


def load_criteria(path: Path) -> Criteria:
    """Read a file of `criteria`, `thresholds` and `level`. Raises RecipeError as `parse_recipe`
    does.
    """
    return read_document(path, Criteria, "a mapping with `criteria` and `thresholds` is expected")


def read_document(
    path: Path, model: type[Model_], expected: str, blocks: Blocks = BLOCKS
) -> Model_:
    """Any YAML file with a strict model. expected: said of a file that is no mapping; blocks: see
    `explain`. Raises RecipeError.
    """
    document, lines = read_yaml(text_of(path), str(path), expected)
    return _validate(model, document, lines, str(path), blocks)


def _validate(
    model: type[Model_],
    document: dict[str, Any],
    lines: dict[Path_, int],
    file: str,
    blocks: Blocks = BLOCKS,
) -> Model_:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise RecipeError(explain(error, lines, file, blocks)) from None


def read_yaml(text: str, file: str, expected: str) -> tuple[dict[str, Any], dict[Path_, int]]:
    """A YAML mapping, and the line of every key and item in it."""
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        lines = lines_of(node)
        document = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{file}:{mark.line + 1 if mark else 1}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{file}:1: {expected}")
    return document, lines


def text_of(path: Path) -> str:
    """The text of a YAML file. Raises RecipeError where there is none, or more than a person
    writes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise RecipeError(
                f"{path}: larger than {LARGEST >> 20} MiB; a recipe names its data, it "
                "does not hold them"
            )
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; `ftk init` writes a starter recipe") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: cannot be read: not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from None


def load_recipe(source: Path | str | Mapping[str, Any]) -> Recipe:
    """Read a recipe file, with every path made absolute where it exists beside the recipe, and
    embedded suites of the newest version where it names none.

    source: a YAML file, or what would be in one; paths of the latter count from the working
    directory. Raises RecipeError with one line: file, line, field and the fix.

    Example:
        >>> import toolkit
        >>> recipe = toolkit.load_recipe({
        ...     "base": "embedded",
        ...     "data": {"train": "embedded", "suites": {"far": "embedded"}},
        ...     "replicas": 8,
        ...     "conditions": {"short": {"epochs": 1}, "long": {"from": "short", "epochs": 3}},
        ... })
        >>> recipe.conditions["long"].epochs
        3.0
    """
    if isinstance(source, Mapping):
        path, text = Path("recipe"), yaml.safe_dump(dict(source), sort_keys=False)
    else:
        path, text = Path(source), text_of(Path(source))
    recipe = with_suites(parse_recipe(text, str(path)))
    data = recipe.data.model_copy(
        update={
            "train": _locate(recipe.data.train, path.parent),
            "suites": {
                name: _locate(source, path.parent) for name, source in recipe.data.suites.items()
            },
        }
    )
    conditions = {
        name: c.model_copy(
            update={
                "adapters": [_locate_pattern(condition, path.parent) for condition in c.adapters]
            }
        )
        if isinstance(c, Given)
        else c
        for name, c in recipe.conditions.items()
    }
    return recipe.model_copy(
        update={"data": data, "base": _locate(recipe.base, path.parent), "conditions": conditions}
    )


def with_replicas(recipe: Recipe, replicas: int) -> Recipe:
    """The same recipe with so many replicas of every condition that is trained. Raises RecipeError
    where none is.
    """
    if not recipe.trained:
        raise RecipeError(
            "--replicas is about training, and no condition of this recipe is trained; leave it out"
        )
    conditions = {
        name: condition.model_copy(update={"replicas": None})
        for name, condition in recipe.trained.items()
    }
    return recipe.model_copy(
        update={"replicas": replicas, "conditions": recipe.conditions | conditions}
    )


def write_recipe(recipe: Recipe, path: Path | str) -> None:
    """Write a recipe as YAML with every default written out; `load_recipe` reads it back.

    Example:
        >>> import toolkit
        >>> recipe = toolkit.load_recipe("recipe.yaml")
        >>> toolkit.write_recipe(recipe, "copy.yaml")
        >>> toolkit.load_recipe("copy.yaml").conditions == recipe.conditions
        True
    """
    write_text(Path(path), dump_recipe(recipe))


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `parse_recipe` reads it back to an equal
    recipe.
    """
    return yaml.dump(
        {KEY: FORMAT, **recipe.model_dump()},
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )
