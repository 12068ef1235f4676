"""What the parts of a recipe are made of: strict models, and values that keep a rule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)
from pydantic_core import PydanticCustomError

from toolkit.patterns import PatternError, compiled
from toolkit.recipe.words import Path_

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Source = Literal["init", "order", "dropout"]
Dtype = Literal["float32", "bfloat16", "float16", "float64", "nf4"]
Compile = Literal["auto", "always", "never"]
Width = Annotated[int, Field(ge=1, le=4096)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def answer_rule(rule: str) -> str:
    if rule in ("text", "first-line", "embedded"):
        return rule
    if not rule.startswith("regex:") or rule == "regex:":
        raise ValueError("should be text, first-line, embedded or regex:PATTERN")
    try:
        compiled(rule.removeprefix("regex:"))
    except PatternError as error:
        raise ValueError(str(error)) from None
    return rule


def at(path: Path_, text: str) -> PydanticCustomError:
    """An error of several keys, told at the one to change."""
    return PydanticCustomError("recipe", "{text}", {"text": text, "path": path})
