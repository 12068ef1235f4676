"""What is wrong with a recipe, in one line: file, line, field and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from toolkit.recipe.conditions import METHODS, Condition, Lookahead, Snapshots
from toolkit.recipe.criteria import Criterion, Thresholds, Zone
from toolkit.recipe.merge_methods import parameter_names
from toolkit.recipe.mitigations import Mitigation, Teacher
from toolkit.recipe.models import Data, Evaluation, Recipe, Sequential, Target
from toolkit.record.plain import shortened
from toolkit.text.nearest import Path_, nearest

Blocks = Mapping[str, type[BaseModel] | UnionType]
"""the model, or models, of every block of a document; NAME is a key of the user's own"""

BLOCKS: Blocks = {
    "": Recipe,
    "data": Data,
    "conditions.NAME": Condition,
    "conditions.NAME.snapshots": Snapshots,
    "conditions.NAME.lookahead": Lookahead,
    "mitigations": Mitigation,
    "criteria": Criterion,
    "thresholds": Thresholds,
    "thresholds.categories.NAME": Zone,
    "replicas": Sequential,
    "replicas.until.NAME": Target,
    "conditions.NAME.teacher": Teacher,
    "evaluation": Evaluation,
}


def keys_of(block: type[BaseModel] | UnionType) -> list[str]:
    """The keys that a block may have, of whichever of its models."""
    models: tuple[type[BaseModel], ...] = get_args(block) or (block,)  # type: ignore[assignment]
    return list(dict.fromkeys(key for model in models for key in model.model_fields))


def _fields_at(path: Path_, blocks: Blocks) -> list[str]:
    """Keys of the block that a path leads to."""
    # blocks with keys of the user's own
    named = {"conditions": 1, "thresholds": 2, "replicas": 2}.get(str(path[0])) if path else None
    steps = [
        "NAME" if i == named else step for i, step in enumerate(path) if not isinstance(step, int)
    ]
    model = blocks[".".join(steps)]
    further = {
        Condition: ["from", "adapters"],
        Mitigation: sorted(parameter_names()),
        Teacher: sorted(parameter_names()),
    }.get(model, [])
    return [
        *(
            name
            for name in keys_of(model)
            if name != "parameters" or model not in (Mitigation, Teacher)
        ),
        *further,
    ]


def _unknown_key(path: Path_, lines: dict[Path_, int], blocks: Blocks) -> str:
    *parent, key = path
    if (*parent, "adapters") in lines and key in (*keys_of(Condition), "from"):
        return (
            f"'{'.'.join(map(str, path))}': is about training, and a condition with "
            "`adapters` is not trained; leave it out"
        )
    inside = f" in '{'.'.join(map(str, parent))}'" if parent else ""
    homes = [home for home, model in blocks.items() if key in keys_of(model)]
    keys = _fields_at(tuple(parent), blocks)
    belongs = (
        f"; it belongs in '{homes[0]}'"
        if homes and homes[0]
        else "; it belongs at the top level"
        if homes
        else ""
    )
    if difflib.get_close_matches(
        key, keys, n=1, cutoff=0.85
    ):  # a slip of the pen rather than a wrong place
        belongs = ""
    return f"unknown key {key!r}{inside}{belongs or nearest(key, keys)}"


EXPECTED = {
    "model_type": "a block of keys",
    "dict_type": "a block of keys",
    "list_type": "a list",
    "string_type": "text",
    "string_too_short": "text of {min_length} or more characters",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "too_short": "{min_length} or more entries",
    "too_long": "{max_length} entries or fewer",
}


def _wrong_value(errors: list[ErrorDetails]) -> str:
    """What a value should be; the branches of a union in one sentence."""
    texts = [
        EXPECTED[e["type"]].format(**e.get("ctx", {})) if e["type"] in EXPECTED else e["msg"]
        for e in errors
    ]
    if errors[0]["type"] in ("value_error", "recipe"):
        text = texts[0].removeprefix("Value error, ")
    else:
        text = "should be " + " or ".join(
            dict.fromkeys(text.removeprefix("Input should be ") for text in texts)
        )
    value = errors[0]["input"]
    return text + (
        ""
        if isinstance(value, dict | BaseModel)
        else " (got nothing)"
        if value is None
        else f" (got {shortened(value)})"
    )


def _place(error: ErrorDetails) -> Path_:
    path = tuple(error.get("ctx", {}).get("path", error["loc"]))
    # no step of the document
    kind = path[:1] == ("conditions",) and path[2:3] in (
        *((kind,) for kind in (*METHODS, "given")),
    )
    return (*path[:2], *path[3:]) if kind else path


def explain(
    error: ValidationError, lines: dict[Path_, int], file: str, blocks: Blocks = BLOCKS
) -> str:
    """The first error as `file:line: what is wrong and how to mend it`, and the number of the
    others.
    """
    errors_at: dict[Path_, list[ErrorDetails]] = {}
    everything = [(_place(e), e) for e in error.errors()]
    inherited = [
        path[:1] == ("conditions",) and len(path) > 2 and path[:3] not in lines
        for path, _ in everything
    ]
    for (path, e), elsewhere in zip(everything, inherited, strict=True):
        if elsewhere and not all(inherited):
            continue  # told where it stands
        place: Path_ = ()
        for step in path:  # branches of a union are steps that the document does not have
            place = (*place, step) if (*place, step) in lines else place
        errors_at.setdefault((*place, *path[-1:]) if e["type"] == "missing" else place, []).append(
            e
        )
    # a typo explains a missing key
    place = min(errors_at, key=lambda p: errors_at[p][0]["type"] != "extra_forbidden")
    # the part of a value that is wrong, rather than all of it
    place = max((p for p in errors_at if p[: len(place)] == place), key=len)
    errors, field = errors_at[place], ".".join(map(str, place))
    if errors[0]["type"] == "extra_forbidden":
        message = _unknown_key(place, lines, blocks)
    elif errors[0]["type"] == "missing":
        message = f"missing key '{field}'"
    else:
        message = f"'{field}': {_wrong_value(errors)}" if field else _wrong_value(errors)
    others = sum(p != place[: len(p)] for p in errors_at)
    line = lines.get(place) or lines.get(place[:-1], 1)
    return f"{file}:{line}: {message}" + (f" (and {others} more)" if others else "")
