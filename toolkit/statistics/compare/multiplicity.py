"""Many p-values at once: prompts, modules, or the contrasts of a report.

Each function takes p-values (None or nan = not tested, and then not counted) and gives adjusted
ones in the same order, nan where nothing was tested: what is at most alpha may be called found, at
the error rate that the function names.
"""

from collections.abc import Sequence

import numpy as np

PValues = Sequence[float | None] | np.ndarray


def holm(p: PValues) -> np.ndarray:
    """For a few primary contrasts: the probability of ANY false finding is at most alpha, whatever
    their dependence.

    The i-th smallest of m times (m - i + 1), never below the one before (Holm 1979). Raises
    ValueError for p outside [0, 1].
    """
    p_N, tested_N = _tested(p)
    order = np.argsort(p_N[tested_N])
    stepped = np.maximum.accumulate(p_N[tested_N][order] * np.arange(len(order), 0, -1))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(stepped, 1.0)
    return _placed(adjusted, tested_N)


def benjamini_hochberg(p: PValues) -> np.ndarray:
    """For many prompts or modules: of what is found, a share of alpha is expected to be false
    (Benjamini & Hochberg 1995).

    Holds for independent tests, and for positively dependent ones. Raises ValueError for p outside
    [0, 1].
    """
    return _false_discovery(p, "bh")


def benjamini_yekutieli(p: PValues) -> np.ndarray:
    """The same under any dependence, at the price of a factor of about ln m (Benjamini & Yekutieli
    2001).
    """
    return _false_discovery(p, "by")


def _false_discovery(p: PValues, method: str) -> np.ndarray:
    p_N, tested_N = _tested(p)
    if not tested_N.any():
        return p_N
    from scipy.stats import false_discovery_control

    return _placed(false_discovery_control(p_N[tested_N], method=method), tested_N)


def _tested(p: PValues) -> tuple[np.ndarray, np.ndarray]:
    p_N = np.array([np.nan if value is None else value for value in p], dtype=np.float64)
    tested_N = ~np.isnan(p_N)
    if p_N.ndim != 1 or np.any((p_N[tested_N] < 0) | (p_N[tested_N] > 1)):
        raise ValueError(
            "p must be one list of values between 0 and 1, with None or nan for what was not tested"
        )
    return p_N, tested_N


def _placed(adjusted: np.ndarray, tested_N: np.ndarray) -> np.ndarray:
    placed_N = np.full(len(tested_N), np.nan)
    placed_N[tested_N] = adjusted
    return placed_N
