"""What the user will accept: his own limits, and where spread turns critical."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from toolkit.recipe.fields import Label, Model, Share, answer_rule, at


def _observable(observable: str) -> str:
    kinds = (
        "answer",
        "text",
        "correct",
        "exact",
        "normalised",
        "first-line",
        "numeric",
        "json",
        "embedding",
    )
    kind, _, argument = observable.partition(":")
    if kind == "regex" and argument:
        return answer_rule(observable)
    if kind not in kinds or (argument and kind not in ("numeric", "embedding")):
        raise ValueError(f"should be one of {', '.join(kinds)}, or regex:PATTERN")
    return observable


class Zone(Model):
    """Disagreement up to `acceptable` is no matter, above `critical` it is one; shares of
    prompts.
    """

    acceptable: Share = 0.05
    critical: Share = 0.20

    @model_validator(mode="after")
    def _in_order(self) -> Zone:
        if self.acceptable > self.critical:
            raise ValueError(
                f"'acceptable' ({self.acceptable:g}) should not be above 'critical' "
                f"({self.critical:g})"
            )
        return self


class Thresholds(Zone):
    """Where the matrix of the report changes its colour."""

    categories: dict[str, Zone] = {}
    """a category of prompts with limits of its own"""


class Criterion(Model):
    """What the user will not accept, decided by a one-sided confidence limit: PASS, FAIL or
    INCONCLUSIVE.
    """

    name: Label
    suite: str
    """name of a suite, or a shift"""
    category: str | None = None
    """only the prompts of this category"""
    observable: Annotated[str, AfterValidator(_observable)] = "answer"
    """what is looked at: `answer`, `text`, `correct`, or a rule of meaning: normalised, numeric,
    json, regex:PATTERN, ...
    """
    statistic: Literal["disagreement", "rate", "accuracy", "accuracy-sd", "tail"] = "disagreement"
    """disagreement: share of prompts on which two runs differ. rate: share of answers that hold the
    pattern (`correct`: that are wrong).
    accuracy: at least the limit. accuracy-sd: its standard deviation between runs. tail: share of
    runs with an accuracy `below`.
    """
    below: Share | None = None
    limit: Share
    aggregation: Literal["mean", "worst"] = "mean"
    """worst: every category of the suite must hold by itself"""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    consequence: Literal["watch", "critical"] = "critical"
    """how grave a FAIL is"""

    @model_validator(mode="after")
    def _fits(self) -> Criterion:
        if (self.statistic == "tail") != (self.below is not None):
            raise ValueError(
                "`statistic: tail` goes with `below`: the accuracy under which a run counts"
            )
        if self.statistic == "rate" and not (
            self.observable == "correct" or self.observable.startswith("regex:")
        ):
            raise ValueError(
                "`statistic: rate` goes with `observable: correct` or `observable: regex:PATTERN`"
            )
        if self.statistic in ("accuracy", "accuracy-sd", "tail") and self.observable != "answer":
            raise ValueError(
                f"`statistic: {self.statistic}` is about right answers: leave `observable` out"
            )
        return self

    @property
    def at_most(self) -> bool:
        """Whether small values are good, as of all statistics but accuracy."""
        return self.statistic != "accuracy"


class Criteria(Model):
    """What is demanded of the answers: a part of a recipe, or a file of its own for `ftk
    measure`.
    """

    criteria: list[Criterion] = []
    """the user's own limits, each with a verdict for every procedure"""
    thresholds: Thresholds = Thresholds()
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """nominal coverage of the intervals"""

    @model_validator(mode="after")
    def _names_differ(self) -> Criteria:
        names: list[str] = []
        for i, criterion in enumerate(self.criteria):
            if criterion.name in names:
                raise at(("criteria", i), f"{criterion.name!r} is listed twice")
            names.append(criterion.name)
        return self
