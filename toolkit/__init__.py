"""ftk: how different are two fine-tunes of one model on one data set, where does it matter, and
what does a remedy buy?

Example:
    >>> import toolkit
    >>> results = toolkit.measure("predictions.csv")
    >>> results.conditions[0].n_replicas
    30

The public names are those of `__all__`. They are imported when they are first used: `measure`,
`plan`, `gate`, `claims` and the results need the core alone; `run`, `train_replicas`, `merge`,
`evaluate` and `Ensemble` need the extra `train`.
"""

import sys

if (
    sys.argv[:1] == ["-m"] and not sys.flags.safe_path
):  # `python -m toolkit.cli`: a module of the user's folder is not the library's
    _started = sys.path.pop(0)
    # a checkout that is not installed: last
    sys.path += [_started] * (__file__ == f"{_started}/toolkit/__init__.py")

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit import statistics
    from toolkit.answer.ensemble import Ensemble
    from toolkit.api import (
        claims,
        evaluate,
        gate,
        gate_limits,
        measure,
        measure_metrics,
        merge,
        plan,
        run,
        train_replicas,
    )
    from toolkit.errors import FtkError
    from toolkit.pipeline.console import Console
    from toolkit.recipe import Recipe, load_recipe, write_recipe
    from toolkit.record.results import Results, load_results

__version__ = "0.1.0"
__all__ = [
    "Console",
    "Ensemble",
    "FtkError",
    "Recipe",
    "Results",
    "__version__",
    "claims",
    "evaluate",
    "gate",
    "gate_limits",
    "load_recipe",
    "load_results",
    "measure",
    "measure_metrics",
    "merge",
    "plan",
    "run",
    "statistics",
    "train_replicas",
    "write_recipe",
]

_ELSEWHERE = {
    "Console": "pipeline.console",
    "Ensemble": "answer.ensemble",
    "FtkError": "errors",
    "Recipe": "recipe",
    "Results": "record.results",
    "load_recipe": "recipe",
    "load_results": "record.results",
    "write_recipe": "recipe",
}
"""Public name -> its module, for those that are not in `toolkit.api`."""


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: `import toolkit` costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "statistics":
        return importlib.import_module("toolkit.statistics")
    try:
        module = importlib.import_module(f"toolkit.{_ELSEWHERE.get(name, 'api')}")
    except ImportError as error:
        from toolkit.errors import missing_extra

        missing = missing_extra(error, f"toolkit.{name}")
        if missing is None:
            raise
        raise missing from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
