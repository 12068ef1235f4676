"""What is claimed: strict models of a claims file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from toolkit.recipe import Condition, read_document

ORIGIN = Path(__file__).with_name("origin.yaml")
"""the claims that ftk ships with"""
EVERY = "all"
"""`prompts: all`: those of every suite"""


def _range(value: Any) -> Any:
    return (
        [value, value] if isinstance(value, int | float) and not isinstance(value, bool) else value
    )


Number = Annotated[float, Field(ge=0)]
Range = Annotated[list[Number], Field(min_length=2, max_length=2), BeforeValidator(_range)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class About(_Model):
    """Which conditions of a run a claim speaks of: one by its name, or all that have the
    properties.
    """

    condition: str | None = None
    method: Literal["lora", "full", "distill"] | None = None
    epochs: Range | None = None
    rank: Range | None = None
    lr: Range | None = None
    fixed: bool = False
    """every source of variation is held"""

    @model_validator(mode="after")
    def _name_or_properties(self) -> About:
        if self.condition is not None and self.model_fields_set != {"condition"}:
            raise ValueError("a condition is named, or described by its properties, not both")
        return self

    def means(self, name: str, condition: Condition | None, varied: bool) -> bool:
        """condition: how it is trained, None for adapters that are given. varied: whether any
        source of variation is not held.
        """
        if self.condition is not None:
            return name == self.condition
        if condition is None or self.fixed == varied or self.method not in (None, condition.method):
            return False
        return all(
            span is None or span[0] <= getattr(condition, key) <= span[1]
            for key, span in (("epochs", self.epochs), ("rank", self.rank), ("lr", self.lr))
        )


class Claim(_Model):
    """One claim; origin.yaml explains every key."""

    name: str
    says: str
    about: About
    quantity: Literal["agreement", "disagreement", "files", "weights"]
    prompts: str = ""
    category: str | None = None
    range: Range | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Of the claimed range."""
        return (self.range[0], self.range[1]) if self.range else None

    @property
    def behaviour(self) -> bool:
        """Whether it is about answers."""
        return self.quantity in ("agreement", "disagreement")

    @model_validator(mode="after")
    def _fits(self) -> Claim:
        if self.behaviour != bool(self.prompts):
            raise ValueError(
                f"`prompts` (a shift, a suite, or {EVERY}) goes with `quantity: "
                "agreement` and `quantity: disagreement`"
            )
        if self.category is not None and not self.behaviour:
            raise ValueError("`category` is one of `prompts`")
        if self.range and self.range[0] > self.range[1]:
            raise ValueError(
                f"the lowest of `range` comes first: [{self.range[1]:g}, {self.range[0]:g}]"
            )
        if self.range and self.quantity != "weights" and self.range[1] > 1:
            raise ValueError(
                f"`range` holds shares from 0 to 1: {self.range[1]:g} % is {self.range[1] / 100:g}"
            )
        return self


class ClaimsFile(_Model):
    """A YAML file of claims, no two of one name."""

    claims: Annotated[list[Claim], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> ClaimsFile:
        names = [claim.name for claim in self.claims]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"claim {twice[0]!r} is listed twice")
        return self


BLOCKS: dict[str, type[BaseModel]] = {"": ClaimsFile, "claims": Claim, "claims.about": About}


def read_claims(path: Path = ORIGIN) -> list[Claim]:
    """The claims of a file. Raises RecipeError with one line: file, line, field and the fix."""
    return read_document(
        path, ClaimsFile, "a mapping with `claims`, a list, is expected", BLOCKS
    ).claims
