"""Several metrics of a run judged at once: Hotelling's T2 against the baseline's mean and
covariance.
"""

from dataclasses import dataclass

import numpy as np

from toolkit.statistics.control.control_charts import ALPHA


@dataclass(frozen=True)
class TSquared:
    """An alarm is a value of (x - center)' inverse (x - center) above `limit`."""

    center_M: np.ndarray
    inverse_MM: np.ndarray
    limit: float
    n: int
    method: str


def hotelling(x_NM: np.ndarray, *, alpha: float = ALPHA) -> TSquared:
    """Limits for a new run (phase II), exact for normal metrics at every N > p; see
    `from_covariance`.

    x_NM: N baseline runs, M = p metrics. Raises ValueError where they do not determine the
    covariance: N <= p, or metrics that are constant or follow from the others.
    """
    x_NM = _table(x_NM)
    n, p = x_NM.shape
    covariance_MM = np.cov(x_NM, rowvar=False).reshape(p, p) if n > 1 else np.zeros((p, p))
    scale_M = np.sqrt(np.diag(covariance_MM))
    if (
        n <= p
        or not scale_M.all()
        or np.linalg.eigvalsh(covariance_MM / scale_M / scale_M[:, None])[0] < 1e-10
    ):
        raise ValueError(
            f"{n} runs do not determine the covariance of {p} metrics: "
            "leave out those that do not vary"
        )
    return from_covariance(x_NM.mean(axis=0), covariance_MM, n, alpha=alpha)


def from_covariance(
    center_M: np.ndarray,
    covariance_MM: np.ndarray,
    n: int,
    *,
    alpha: float = ALPHA,
    heavy: float = 0.0,
) -> TSquared:
    """The same from the baseline's mean and covariance: limit p (N+1)(N-1) / (N (N-p)) F_{1-alpha;
    p, N-p}.

    heavy: excess kurtosis kappa of the metrics together (see `mardia`). Above 0 the limit grows as
    that of a multivariate t with nu = 4 + 2/kappa degrees of freedom exceeds that of a normal: by p
    (nu-2)/nu F_{1-alpha; p, nu} / chi2_{1-alpha; p}.
    """
    from scipy.special import chdtri, fdtri

    p = len(center_M)
    limit = p * (n + 1) * (n - 1) / (n * (n - p)) * float(fdtri(p, n - p, 1 - alpha))
    if heavy > 0:
        nu = 4 + 2 / heavy
        limit *= max(
            1.0, p * (nu - 2) / nu * float(fdtri(p, nu, 1 - alpha)) / float(chdtri(p, alpha))
        )
    return TSquared(
        center_M, np.linalg.inv(covariance_MM), limit, n, "Hotelling T2, F limit for a new run"
    )


def mardia(x_NM: np.ndarray) -> float:
    """Excess kurtosis of metrics together (Mardia 1970), as the kappa of an elliptical
    distribution: 0 for normal ones.

    Mean squared T2 of the baseline runs over its expectation p (p+2) (N-1)/(N+1), less 1; with the
    covariance of divisor N.
    """
    x_NM = _table(x_NM)
    n, p = x_NM.shape
    centred_NM = x_NM - x_NM.mean(axis=0)
    t2_N = np.einsum(
        "nm,mk,nk->n", centred_NM, np.linalg.inv(centred_NM.T @ centred_NM / n), centred_NM
    )
    return float(np.mean(t2_N**2)) / (p * (p + 2) * (n - 1) / (n + 1)) - 1


def t_squared(chart: TSquared, x_TM: np.ndarray) -> np.ndarray:
    """T2 of new runs [T, metrics]."""
    deviation_TM = np.atleast_2d(np.asarray(x_TM, dtype=np.float64)) - chart.center_M
    return np.einsum("tm,mk,tk->t", deviation_TM, chart.inverse_MM, deviation_TM)


def _table(x_NM: np.ndarray) -> np.ndarray:
    x_NM = np.asarray(x_NM, dtype=np.float64)
    if x_NM.ndim != 2 or x_NM.size == 0 or not np.isfinite(x_NM).all():
        raise ValueError(f"x_NM must be finite values [runs, metrics], not shape {x_NM.shape}")
    return x_NM
