"""Is today's value still from the same process? Control charts: limits from baseline values, and
values judged by them.

Textbook 3-sigma limits treat the baseline's mean and spread as known; estimated from N = 30 values
they alarm up to twice as often as their 0.27 %. The prediction limits here hold the stated rate for
normal values at every N: use them to decide.
"""

import math
from dataclasses import dataclass

import numpy as np

from toolkit.statistics.arrays import ROUNDING

ALPHA = 0.0027  # false alarms per judgement of 3-sigma limits whose parameters are known
D2 = 2 / math.sqrt(math.pi)  # mean of |x - y| in sigmas, for two normal values: 1.128


@dataclass(frozen=True)
class Chart:
    """A value below `low` or above `high` is an alarm. sigma: of single values; n: baseline values;
    limits None: not to be had.
    """

    center: float
    low: float | None
    high: float | None
    sigma: float
    n: int
    method: str


def outside(chart: Chart, x_T: np.ndarray) -> np.ndarray:
    """alarm_T: which new values lie outside the limits. nan, and any value where there are no
    limits, is no alarm.
    """
    x_T = np.asarray(x_T, dtype=np.float64)
    if chart.low is None or chart.high is None:
        return np.zeros(x_T.shape, dtype=bool)
    return (x_T < chart.low) | (x_T > chart.high)


def prediction(x_N: np.ndarray, *, alpha: float = ALPHA) -> Chart:
    """Prediction limits mean +- t_{1-alpha/2, N-1} s sqrt(1 + 1/N): one new normal value lies
    outside with probability alpha, at any N.

    No limits below two values, or where all are equal: what never varied says nothing about how far
    it may.
    """
    x_N = _values(x_N)
    sigma = float(x_N.std(ddof=1)) if len(x_N) > 1 else math.nan
    half = prediction_half_width(sigma, len(x_N), alpha)
    return _chart(
        float(x_N.mean()),
        half,
        sigma,
        len(x_N),
        f"prediction limits, {100 * alpha:.3g} % false alarms",
    )


def prediction_half_width(sigma: float, n: int, alpha: float = ALPHA) -> float:
    """The same from the baseline's standard deviation of n values; nan below two."""
    return _t(alpha, n - 1) * sigma * math.sqrt(1 + 1 / n) if n > 1 else math.nan


def reaches(sigma: float, n: int, skew: float, excess: float, alpha: float) -> tuple[float, float]:
    """How far prediction limits reach below and above the center where the baseline is skewed or
    heavy-tailed.

    The normal half width, plus half of what the first Cornish-Fisher terms add to its quantile q:
    skew (q^2 - 1)/6 on the long side and excess (q^3 - 3 q)/24 on both; never less than the normal
    one. Half, since both are known badly from a few dozen values.
    """
    half = prediction_half_width(sigma, n, alpha)
    q = half / sigma
    tails = max(0.0, excess) * (q**3 - 3 * q) / 48
    long = abs(skew) * (q**2 - 1) / 12
    below, above = (long, 0.0) if skew < 0 else (0.0, long)
    return half + sigma * (tails + below), half + sigma * (tails + above)


@dataclass(frozen=True)
class Ewma:
    """Exponentially weighted moving average against drift: z_t = weight x_t + (1-weight) z_(t-1),
    z_0 = center.

    n: baseline values behind center and sigma; None where both are known. alpha: false alarms at
    each time.
    """

    center: float
    sigma: float
    n: int | None
    weight: float = 0.2
    alpha: float = ALPHA


@dataclass(frozen=True)
class EwmaPath:
    """An EWMA chart: the average, its limits, and whether it is outside, at each time [T]."""

    z_T: np.ndarray
    low_T: np.ndarray
    high_T: np.ndarray
    outside_T: np.ndarray


def ewma_path(chart: Ewma, x_T: np.ndarray) -> EwmaPath:
    """New values in time order. Half width at time t: q sigma sqrt(weight/(2-weight) (1 -
    (1-weight)^2t) + (1-(1-weight)^t)^2/n).

    Known center and sigma (n None): no second term and q the normal quantile (3 for 0.27 %).
    Estimated: the error of the center enters z_t as often as x has, and q is the t quantile with
    n-1 degrees of freedom, so that alpha holds at each time for normal values. The rate of an alarm
    at some time is higher. No alarm where sigma is 0.
    """
    from scipy.special import ndtri

    x_T = _values(x_T)
    z_T, z = np.empty(len(x_T)), chart.center
    for t, x in enumerate(x_T):
        z = z_T[t] = chart.weight * x + (1 - chart.weight) * z
    left_T = (1 - chart.weight) ** np.arange(1, len(x_T) + 1)
    variance_T = chart.weight / (2 - chart.weight) * (1 - left_T**2)
    if chart.n is None:
        quantile = float(ndtri(1 - chart.alpha / 2))
    else:
        quantile = _t(chart.alpha, chart.n - 1) if chart.n > 1 else math.nan
        variance_T = variance_T + (1 - left_T) ** 2 / chart.n
    half_T = quantile * chart.sigma * np.sqrt(variance_T)
    alarm_T = np.abs(z_T - chart.center) > np.where(half_T > 0, half_T, np.inf)
    return EwmaPath(z_T, chart.center - half_T, chart.center + half_T, alarm_T)


@dataclass(frozen=True)
class Shares:
    """A share of size_t events: center +- 3 sigma_z sqrt(center (1-center) / size_t). sigma_z: 1
    for the p chart, Laney's for p'.
    """

    center: float
    sigma_z: float
    n: int
    method: str


def laney(count_T: np.ndarray, size_T: np.ndarray) -> Shares:
    """Laney's p' chart (2002): sigma_z = mean |zeta_t - zeta_(t-1)| / 1.128 of the z scores zeta_t
    against the p chart's center.

    sigma_z is how many times as much as by counting the shares vary. nan with one share, or where
    all or no events happen.
    """
    count_T, size_T = _counts(count_T, size_T)
    center = float(count_T.sum() / size_T.sum())
    if len(count_T) < 2 or center in (0.0, 1.0):
        return Shares(center, math.nan, len(count_T), "Laney p' chart")
    zeta_T = (count_T / size_T - center) / np.sqrt(center * (1 - center) / size_T)
    return Shares(
        center, float(np.abs(np.diff(zeta_T)).mean()) / D2, len(count_T), "Laney p' chart"
    )


def _values(x_N: np.ndarray) -> np.ndarray:
    x_N = np.asarray(x_N, dtype=np.float64)
    if x_N.ndim != 1 or len(x_N) == 0 or not np.isfinite(x_N).all():
        raise ValueError(
            "a chart needs a row of finite values, not shape "
            f"{x_N.shape}{'' if np.isfinite(x_N).all() else ' with nan'}"
        )
    return x_N


def _counts(count_T: np.ndarray, size_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count_T, size_T = _values(count_T), _values(size_T)
    if (
        count_T.shape != size_T.shape
        or np.any(count_T < 0)
        or np.any(count_T > size_T)
        or np.any(size_T < 1)
    ):
        raise ValueError(
            "count_T and size_T must be one count for each size, with 0 <= count <= size "
            "and size >= 1"
        )
    return count_T, size_T


def _t(alpha: float, df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - alpha / 2))


def _chart(center: float, half: float, sigma: float, n: int, method: str) -> Chart:
    """Without limits where nothing varies: an alarm at the first digit that differs would be no
    control.
    """
    possible = half > 0 and sigma > ROUNDING * abs(center)
    return Chart(
        center,
        center - half if possible else None,
        center + half if possible else None,
        sigma,
        n,
        method,
    )
