"""Within which limits lie almost all runs, and how many runs does it take to say so? Tolerance
limits and required sizes.

content: share of all runs to be covered; confidence: how sure that they are. "95/95" = content
0.95, confidence 0.95.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from toolkit.statistics.arrays import ROUNDING

Side = Literal["both", "low", "high"]


@dataclass(frozen=True)
class Tolerance:
    """At least `content` of all runs lie in [low, high], with `confidence`. None: an open end, or
    (both) not to be had from n values.

    needed: values it takes, where n are too few.
    """

    low: float | None
    high: float | None
    content: float
    confidence: float
    n: int
    method: str
    needed: int | None = None


def runs_for_tail(rate: float, confidence: float = 0.95) -> int:
    """Runs without a single event that show the event's rate to be below `rate`: smallest n with
    (1-rate)^n <= 1-confidence, about 3/rate.

    The other way round, `zero_event_bound(n)` is the rate that n runs without an event show (the
    rule of three).
    """
    _check(rate=rate, confidence=confidence)
    return max(1, math.ceil(math.log1p(-confidence) / math.log1p(-rate) - 1e-9))


def wilks(content: float = 0.95, confidence: float = 0.95, *, two_sided: bool = False) -> int:
    """Smallest n whose maximum (or minimum; two_sided: whose range) covers `content` of all runs
    (Wilks 1941).

    One-sided content^n <= 1-confidence; two-sided 1 - n content^(n-1) + (n-1) content^n >=
    confidence. Any continuous distribution.
    """
    _check(content=content, confidence=confidence)
    if not two_sided:
        return runs_for_tail(1 - content, confidence)
    low, high = 1, 2  # too few, and perhaps enough
    while _covered(high, high - 1, content) < confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if _covered(middle, middle - 1, content) >= confidence else (middle, high)
        )
    return high


def distribution_free(
    x_N: np.ndarray, content: float = 0.95, confidence: float = 0.95, *, side: Side = "both"
) -> Tolerance:
    """Tolerance limits from order statistics, for any distribution: the narrowest that hold
    `confidence`.

    Between the r-th smallest and the s-th largest value lies a Beta(n-r-s+1, r+s) distributed
    share. The largest r+s that keeps the confidence is used, divided evenly (both) or on one side.
    nan are left out.
    """
    _check(content=content, confidence=confidence)
    x_N = _sorted(x_N)
    n = len(x_N)
    cut = 0  # r + s
    while _covered(n, n - cut, content) >= confidence:
        cut += 1
    least = 2 if side == "both" else 1
    method = "order statistics (Wilks)"
    if cut < least:
        return Tolerance(
            None,
            None,
            content,
            confidence,
            n,
            method,
            wilks(content, confidence, two_sided=side == "both"),
        )
    below = {"both": cut // 2, "low": cut, "high": 0}[side]
    above = {"both": cut - cut // 2, "low": 0, "high": cut}[side]
    return Tolerance(
        float(x_N[below - 1]) if below else None,
        float(x_N[n - above]) if above else None,
        content,
        confidence,
        n,
        method,
    )


def one_sided_factor(n: int, content: float = 0.95, confidence: float = 0.95) -> float:
    """k of the exact normal limit mean + k s: t'_{confidence; n-1, z_content sqrt(n)} / sqrt(n),
    the noncentral t.
    """
    from scipy.special import nctdtrit, ndtri

    _check_size(n, content, confidence)
    return float(nctdtrit(n - 1, float(ndtri(content)) * math.sqrt(n), confidence)) / math.sqrt(n)


def howe_factor(n: int, content: float = 0.95, confidence: float = 0.95) -> float:
    """k of the normal limits mean +- k s by Howe (1969): z_{(1+content)/2} sqrt(nu (1+1/n) /
    chi2_{1-confidence, nu}), nu = n-1.
    """
    from scipy.special import chdtri, ndtri

    _check_size(n, content, confidence)
    return float(ndtri((1 + content) / 2)) * math.sqrt(
        (n - 1) * (1 + 1 / n) / float(chdtri(n - 1, confidence))
    )


def two_sided_factor(n: int, content: float = 0.95, confidence: float = 0.95) -> float:
    """The exact k of mean +- k s (Krishnamoorthy & Mathew 2009, section 2.3), by integration over
    the error of the mean.

    confidence = E over z ~ N(0, 1/n) of P(chi2_nu > nu * r(z)^2 / k^2), where z +- r(z) holds
    `content` of a standard normal.
    """
    from scipy.optimize import brentq
    from scipy.special import chdtrc, chndtrix

    _check_size(n, content, confidence)
    node_S, weight_S = np.polynomial.hermite_e.hermegauss(60)
    weight_S = weight_S / weight_S.sum()
    r2_S = chndtrix(content, 1, node_S**2 / n)  # quantile of (standard normal - z)^2
    k = howe_factor(n, content, confidence)

    def excess(k: float) -> float:
        return float(weight_S @ chdtrc(n - 1, (n - 1) * r2_S / k**2)) - confidence

    return float(brentq(excess, k / 3, 3 * k))  # type: ignore[arg-type]


def normal(
    x_N: np.ndarray, content: float = 0.95, confidence: float = 0.95, *, side: Side = "both"
) -> Tolerance:
    """Tolerance limits mean +- k s of normal values, exact. nan are left out; no limits below three
    values or without spread.

    They lean on the normal shape far out in the tails: where the values are plenty,
    `distribution_free` does without.
    """
    _check(content=content, confidence=confidence)
    x_N = _sorted(x_N)
    n = len(x_N)
    method = "normal, exact factor"
    if n < 3 or x_N[-1] - x_N[0] <= ROUNDING * abs(x_N[-1]):
        return Tolerance(None, None, content, confidence, n, method, 3 if n < 3 else None)
    k = (
        two_sided_factor(n, content, confidence)
        if side == "both"
        else one_sided_factor(n, content, confidence)
    )
    mean, step = float(x_N.mean()), k * float(x_N.std(ddof=1))
    return Tolerance(
        None if side == "high" else mean - step,
        None if side == "low" else mean + step,
        content,
        confidence,
        n,
        method,
    )


def _covered(n: int, inside: int, content: float) -> float:
    """P(two order statistics that are `inside` places apart hold at least `content`): that share is
    Beta(inside, n-inside+1).
    """
    from scipy.special import betaincc

    return float(betaincc(inside, n - inside + 1, content)) if inside > 0 else 0.0


def _sorted(x_N: np.ndarray) -> np.ndarray:
    x_N = np.asarray(x_N, dtype=np.float64)
    if x_N.ndim != 1:
        raise ValueError(f"tolerance limits need a row of values, not shape {x_N.shape}")
    return np.sort(x_N[np.isfinite(x_N)])


def _check(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {share}")


def _check_size(n: int, content: float, confidence: float) -> None:
    _check(content=content, confidence=confidence)
    if n < 2:
        raise ValueError(f"a tolerance factor needs at least two values, not {n}")
