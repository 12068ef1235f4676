"""The arrows of ftk in order: read `run` in `stages` first, then the stage that concerns you.

    recipe -> plan -> train -> population -> merge / ensemble -> predict
           -> outcomes -> statistics -> results -> report

Every arrow leaves files in the run folder, and every stage skips what it finds finished there.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.pipeline.stages import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """`pipeline.run` and the stages, when they are asked for: they bring torch."""
    stages = importlib.import_module("toolkit.pipeline.stages")
    if name not in stages.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(stages, name)
