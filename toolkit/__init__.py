"""ftk: how different are two fine-tunes of one model on one data set, where does it matter, and what does a remedy buy?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.ensemble import Ensemble

__version__ = "0.1.0"
__all__ = ["Ensemble", "__version__"]


def __getattr__(name: str) -> Any:
    """`toolkit.Ensemble`, when it is asked for: it brings torch."""
    if name != "Ensemble":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toolkit.ensemble import Ensemble

    return Ensemble
