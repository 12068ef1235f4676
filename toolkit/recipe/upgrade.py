"""Formats of a run's resolved recipe: what older versions wrote otherwise, said in today's words
before it is read.
"""

from __future__ import annotations

from typing import Any

KEY, FORMAT = "format", 2
"""of a resolved recipe. 1, without the key: `density: null` beside every mitigation. 2: parameters
of a method beside it alone
"""
RESOLVED = ("name", "device", "level", "vary", "stack", "mitigations", "evaluation")
"""keys that a recipe has all of when every default was written out"""


def migrate(document: dict[str, Any]) -> dict[str, Any]:
    """A recipe as today's models read it. Raises ValueError for a format that this version does not
    know.
    """
    document = dict(document)
    written = document.pop(KEY, 1)
    if type(written) is not int or not 1 <= written <= FORMAT:
        raise ValueError(
            f"is format {written!r} of a recipe, and this ftk reads 1 to {FORMAT}; update ftk"
        )
    if written > 1:
        return document
    if all(key in document for key in RESOLVED):
        # it was not there to be asked for, and is a part of the bits
        document.setdefault("compile", "never")
    if isinstance(document.get("mitigations"), list):
        document["mitigations"] = [
            _without_density(mitigation) for mitigation in document["mitigations"]
        ]
    if isinstance(document.get("conditions"), dict):
        document["conditions"] = {
            name: _with_teacher(mitigation) for name, mitigation in document["conditions"].items()
        }
    return document


def _with_teacher(condition: Any) -> Any:
    teacher = condition.get("teacher") if isinstance(condition, dict) else None
    return (
        {**condition, "teacher": _without_density(teacher)}
        if isinstance(teacher, dict)
        else condition
    )


def _without_density(block: Any) -> Any:
    """Without a density that nobody gave; what `ties` then takes was its default then, too."""
    given = not isinstance(block, dict) or block.get("density", "none") is not None
    return block if given else {key: value for key, value in block.items() if key != "density"}
