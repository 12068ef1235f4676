"""What is done with trained replicas: merges and ensembles of K, and the teachers of distilled
ones.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from toolkit.recipe.fields import WIDEST, Model, NonNegative, Replicas
from toolkit.recipe.merge_methods import (
    MERGE_METHODS,
    MERGEKIT,
    check_method,
    merge_parameters,
    parameter_names,
)

MergeMethod = Annotated[str, AfterValidator(check_method)]
EnsembleMethod = Literal["probabilities", "logits", "token-vote", "median", "gated", "vote", "mbr"]
Similarity = Literal["exact", "edit", "chrf"]


def _merge_rank(rank: Any) -> Any:
    if type(rank) is int and rank > WIDEST:
        raise ValueError(f"should be at most {WIDEST:,}: no layer is that wide")
    share = (
        float(rank[7:]) if isinstance(rank, str) and re.fullmatch(r"energy=\d*\.?\d+", rank) else 0
    )
    if rank in ("full", "same") or type(rank) is int and rank >= 1 or 0 < share <= 1:
        return rank
    raise ValueError(
        "should be full, same, a number from 1, or energy=0.99 (a share above 0, at most 1)"
    )


def _weights(weights: str) -> str:
    kind, _, suite = weights.partition(":")
    if weights == "confidence" or kind == "accuracy" and suite:
        return weights
    raise ValueError("should be confidence, or accuracy:SUITE")


class Mitigation(Model):
    """A post-hoc procedure on K replicas: `{merge: ties, k: 8, density: 0.5}` or `{ensemble:
    probabilities, k: 8}`.
    """

    merge: MergeMethod | None = None
    ensemble: EnsembleMethod | None = None
    k: Replicas
    rank: Annotated[int | str, BeforeValidator(_merge_rank)] = "full"
    """rank of a merged adapter: exact, that of the inputs, a number, or the least that keeps a
    share of the energy.
    """
    parameters: Annotated[
        dict[str, bool | int | float | str | None], Field(validate_default=True)
    ] = {}
    """of the merge method, by the names that `merges.py` has; in a recipe they stand beside `k`."""
    weights: Annotated[str, AfterValidator(_weights)] | None = None
    """of the members of an ensemble: `accuracy:SUITE` (each by its accuracy there), or `confidence`
    in its answer (vote and mbr).
    """
    similarity: Similarity | None = None
    """mbr: what makes two answers alike: the same text, few edits, or common character n-grams
    (chrf needs `ftk[chrf]`).
    """
    threshold: NonNegative | None = None
    """gated: nats by which every token of the first member's answer must lead the next best, for it
    to answer alone.
    """

    @model_validator(mode="before")
    @classmethod
    def _parameters_stand_beside_k(cls, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        foreign = str(block.get("merge")).startswith(MERGEKIT)
        names = parameter_names()
        parameters = {
            key: value
            for key, value in block.items()
            if key in names or foreign and key not in cls.model_fields
        }
        rest = {key: value for key, value in block.items() if key not in parameters}
        return (
            {**rest, "parameters": {**block.get("parameters", {}), **parameters}}
            if parameters
            else block
        )

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = plain(self)
        return fields | fields.pop("parameters")

    @field_validator("parameters")
    @classmethod
    def _of_the_method(cls, parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "merge" not in info.data:  # it is wrong itself
            return parameters
        method = info.data["merge"]
        row = MERGE_METHODS.get(method)
        accepted = row.parameters if row else parameters if method else {}
        for name in parameters:
            homes = ", ".join(
                f"`merge: {home}`" for home, row in MERGE_METHODS.items() if name in row.parameters
            )
            if homes and name not in accepted:
                raise ValueError(f"{name!r} belongs to {homes}")
        return merge_parameters(method, parameters) if method else {}

    @model_validator(mode="after")
    def _of_its_ensemble(self) -> Mitigation:
        for key, method, needs in (
            ("similarity", "mbr", "exact, edit or chrf"),
            ("threshold", "gated", "nats, such as 1.0"),
        ):
            if (getattr(self, key) is not None) != (self.ensemble == method):
                raise ValueError(f"`ensemble: {method}` goes with `{key}`: {needs}")
        weighted = {
            "accuracy": ("probabilities", "logits", "token-vote", "vote", "mbr"),
            "confidence": ("vote", "mbr"),
        }
        if self.weights and self.ensemble not in weighted[self.weights.partition(":")[0]]:
            known = ", ".join(weighted[self.weights.partition(":")[0]])
            raise ValueError(f"`weights: {self.weights}` belongs to an ensemble by {known}")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> Mitigation:
        if (self.merge is None) == (self.ensemble is None):
            raise ValueError(
                "a mitigation is either `merge: METHOD` or `ensemble: METHOD`, with `k`"
            )
        if self.ensemble and self.rank != "full":
            raise ValueError("'rank' belongs to a merge")
        if self.ensemble and self.k < 2:
            raise ValueError("an ensemble has k of 2 or more")
        return self

    @property
    def method(self) -> str:
        """The merge method, or the ensemble's rule."""
        return self.merge or self.ensemble or ""

    @property
    def label(self) -> str:
        """Name of the folder and of the row, unique within a recipe: `ties-density0.2-k8`."""
        parts = [self.method, *(f"{name}{value}" for name, value in self._shown())]
        if self.rank != "full":
            parts.append(f"rank-{self.rank}")
        parts += [part for part in (self.similarity, self.weights) if part]
        return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join([*parts, f"k{self.k}"]))

    @property
    def title(self) -> str:
        """The method in words, without K: `ties, density 0.2`."""
        rank = [] if self.rank == "full" else [f"rank {self.rank}"]
        chosen = [part for part in (self.similarity, self.weights) if part]
        return ", ".join(
            [self.method, *(f"{name} {value}" for name, value in self._shown()), *rank, *chosen]
        )

    def _shown(self) -> list[tuple[str, str]]:
        given = {
            name: value
            for name, value in ({"threshold": self.threshold} | self.parameters).items()
            if value is not None
        }
        return [
            (name, f"{value:.12g}" if type(value) is float else str(value))
            for name, value in given.items()
        ]


class Teacher(Mitigation):
    """Whom a distilled replica learns from: K replicas of another condition, trained or given, as
    an ensemble or merged.
    """

    condition: str
    groups: Literal["fresh", "fixed"] = "fresh"
    """fresh: disjoint groups of K, so that a student is a run of the whole procedure. fixed: all
    students share the first group, and differ by their own seeds alone.
    """

    @model_validator(mode="after")
    def _has_a_distribution(self) -> Teacher:
        if self.ensemble not in (None, "probabilities", "logits"):
            raise ValueError(
                f"'ensemble: {self.ensemble}' has no probabilities to learn from; take "
                "probabilities, logits, or a merge"
            )
        allowed = ("ensemble", "k", "condition", "groups")
        other = [
            name
            for name, f in type(self).model_fields.items()
            if name not in allowed and getattr(self, name) != f.default
        ]
        if self.ensemble and other:
            raise ValueError(f"{other[0]!r} is not for an ensemble that teaches; leave it out")
        return self
