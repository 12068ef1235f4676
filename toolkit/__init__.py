"""ftk: how different are two fine-tunes of one model on one data set, where does it matter, and
what does a remedy buy?
"""

import sys

if (
    sys.argv[:1] == ["-m"] and not sys.flags.safe_path
):  # `python -m toolkit.cli`: a module of the user's folder is not the library's
    _started = sys.path.pop(0)
    # a checkout that is not installed: last
    sys.path += [_started] * (__file__ == f"{_started}/toolkit/__init__.py")

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.answer.ensemble import Ensemble

__version__ = "0.1.0"
__all__ = ["Ensemble", "__version__"]


def __getattr__(name: str) -> Any:
    """`toolkit.Ensemble`, when it is asked for: it brings torch."""
    if name != "Ensemble":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toolkit.answer.ensemble import Ensemble

    return Ensemble
