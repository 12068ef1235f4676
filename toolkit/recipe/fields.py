"""What the parts of a recipe are made of: strict models, and values that keep a rule."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
)
from pydantic_core import PydanticCustomError

from toolkit.text.nearest import Path_
from toolkit.text.patterns import PatternError, compiled


def at_most(limit: float, reason: str) -> AfterValidator:
    """A ceiling: what is asked for beyond it is a slip of the pen, and would only be told when
    memory or patience is used up.
    """

    def check(value: float) -> float:
        if value > limit:
            raise ValueError(
                f"should be at most {limit if limit > 1e12 else f'{limit:,}'}: {reason}"
            )
        return value

    return AfterValidator(check)


def at_least(limit: float, reason: str, *, or_zero: bool = False) -> AfterValidator:
    """A floor: what is asked for below it is lost in the numbers that training computes with."""

    def check(value: float) -> float:
        if value < limit and not (or_zero and value == 0):
            raise ValueError(f"should be {'0, or ' if or_zero else ''}at least {limit:g}: {reason}")
        return value

    return AfterValidator(check)


MOST = 100_000
"""replicas of a run"""
Replicas = Annotated[int, Field(ge=1), at_most(MOST, "a run has no more replicas")]
WIDEST = 65_536
"""a rank"""
Rank = Annotated[int, Field(ge=1), at_most(WIDEST, "no layer is that wide")]
Rows = Annotated[int, Field(ge=1), at_most(10**9, "no machine holds more rows")]
Batch = Annotated[int, Field(ge=1), at_most(65_536, "no machine holds a larger batch")]
Epochs = Annotated[float, Field(gt=0, allow_inf_nan=False), at_most(100_000, "no run would end")]
Steps = Annotated[int, Field(ge=1), at_most(1_000_000, "no training has more steps")]
Points = Annotated[int, Field(ge=1), at_most(10_000, "each of them is kept")]
Tokens = Annotated[int, Field(ge=1), at_most(10_000_000, "no base reads or writes more tokens")]
Candidates = Annotated[int, Field(ge=1), at_most(1_000, "they are stored with every answer")]
Seed = Annotated[int, Field(ge=0), at_most(2**63 - 1, "a seed has 63 bits")]
Label = Annotated[str, Field(max_length=200)]
"""a name that stands in tables and charts"""
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[
    float, Field(ge=0, allow_inf_nan=False), at_most(1e30, "a number of 32 bits ends there")
]
_SMALL = "less is lost in numbers of 32 bits"
Factor = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False),
    at_least(1e-6, _SMALL),
    at_most(1_000_000, "nothing can be trained so"),
]
"""of something that is multiplied: weights, a learning rate, a loss"""
LearningRate = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False),
    at_least(1e-30, _SMALL),
    at_most(1_000_000, "no weight survives such a step"),
]
Decay = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    at_least(1e-30, _SMALL, or_zero=True),
    at_most(10_000, "no change survives it"),
]
Norm = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False),
    at_least(1e-30, _SMALL, or_zero=True),
    at_most(1e30, "no gradient is larger"),
]
Epsilon = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False),
    at_least(1e-30, _SMALL),
    at_most(1_000_000, "no weight would move"),
]
Source = Literal["init", "order", "dropout"]
Dtype = Literal["float32", "bfloat16", "float16", "float64", "nf4"]
Compile = Literal["auto", "always", "never"]
Width = Annotated[int, Field(ge=1, le=4096)]


class Model(BaseModel):
    """Keys of a file. One that is not known, or whose value is of another type, is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def answer_rule(rule: str) -> str:
    """The rule by which an answer is taken from a text, as written. Raises ValueError."""
    if rule in ("text", "first-line", "embedded"):
        return rule
    if not rule.startswith("regex:") or rule == "regex:":
        raise ValueError("should be text, first-line, embedded or regex:PATTERN")
    try:
        compiled(rule.removeprefix("regex:"))
    except PatternError as error:
        raise ValueError(str(error)) from None
    return rule


def day(text: str) -> str:
    """A day as YYYY-MM-DD, as written. Raises ValueError."""
    try:
        if date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError:
        pass
    raise ValueError("should be a day as YYYY-MM-DD")


def at(path: Path_, text: str) -> PydanticCustomError:
    """An error of several keys, told at the one to change."""
    return PydanticCustomError("recipe", "{text}", {"text": text, "path": path})
