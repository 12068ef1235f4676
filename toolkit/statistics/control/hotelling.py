"""Several metrics of a run judged at once: Hotelling's T2 against the baseline's mean and
covariance.
"""

from dataclasses import dataclass

import numpy as np

from toolkit.statistics.control.control_charts import ALPHA

# simulated T2 values behind a calibrated limit: its rate of 0.27 % is then known to a tenth
DRAWS = 40_000


@dataclass(frozen=True)
class TSquared:
    """An alarm is a value of (x - center)' inverse (x - center) above `limit`. shrinkage: 0 = the
    sample covariance.
    """

    center_M: np.ndarray
    inverse_MM: np.ndarray
    limit: float
    n: int
    shrinkage: float
    method: str


def hotelling(x_NM: np.ndarray, *, alpha: float = ALPHA) -> TSquared:
    """Limits for a new run (phase II), exact for normal metrics at every N > p; see
    `from_covariance`.

    x_NM: N baseline runs, M = p metrics. Raises ValueError where they do not determine the
    covariance: N <= p, or metrics that are constant or follow from the others (see
    `hotelling_shrunk`).
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
            f"{n} runs do not determine the covariance of {p} metrics: shrink it, or "
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
        center_M, np.linalg.inv(covariance_MM), limit, n, 0.0, "Hotelling T2, F limit for a new run"
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


def hotelling_shrunk(
    x_NM: np.ndarray, rng: np.random.Generator, *, alpha: float = ALPHA, draws: int = DRAWS
) -> TSquared:
    """The same with the correlations shrunk (Ledoit & Wolf 2004), for metrics nearly as many as
    baseline runs, or more.

    With a shrunk covariance T2 does not follow F. The limit is the 1-alpha quantile of T2 in
    simulation (baselines of N and new runs from a normal distribution with the shrunk covariance,
    each baseline estimated anew), times mean T2 of the baseline runs, each judged by the others,
    over mean T2 in simulation: shrinking hides correlations that real runs have.
    """
    x_NM = _table(x_NM)
    n, p = x_NM.shape
    if n < 3 or not x_NM.std(axis=0).all():
        raise ValueError(f"T2 needs three baseline runs, in which every metric varies, not {n}")
    center_M, inverse_MM, shrinkage = _shrunk_inverse(x_NM)
    root_MM = np.linalg.cholesky(np.linalg.inv(inverse_MM))
    per_baseline = 100
    simulated = []
    for _ in range(-(-draws // per_baseline)):
        mean_M, inner_MM, _ = _shrunk_inverse(rng.standard_normal((n, p)) @ root_MM.T)
        deviation = rng.standard_normal((per_baseline, p)) @ root_MM.T - mean_M
        simulated.append(np.einsum("tm,mk,tk->t", deviation, inner_MM, deviation))
    simulated_T = np.concatenate(simulated)
    left_out = []
    for i in range(n):
        mean_M, inner_MM, _ = _shrunk_inverse(np.delete(x_NM, i, axis=0))
        left_out.append(float((x_NM[i] - mean_M) @ inner_MM @ (x_NM[i] - mean_M)))
    limit = float(np.quantile(simulated_T, 1 - alpha)) * float(
        np.mean(left_out) / simulated_T.mean()
    )
    method = (
        f"Hotelling T2, Ledoit-Wolf covariance, limit from {draws} simulated runs and leave-one-out"
    )
    return TSquared(center_M, inverse_MM, limit, n, shrinkage, method)


def t_squared(chart: TSquared, x_TM: np.ndarray) -> np.ndarray:
    """T2 of new runs [T, metrics]."""
    deviation_TM = np.atleast_2d(np.asarray(x_TM, dtype=np.float64)) - chart.center_M
    return np.einsum("tm,mk,tk->t", deviation_TM, chart.inverse_MM, deviation_TM)


def phase_one_limit(n: int, p: int, *, alpha: float = ALPHA) -> float:
    """Limit for a run that is itself part of the baseline: (N-1)^2/N Beta_{1-alpha}(p/2, (N-p-1)/2)
    (Tracy, Young & Mason 1992).
    """
    from scipy.special import betaincinv

    if n <= p + 1:
        raise ValueError(f"{n} runs are too few for a phase I limit with {p} metrics")
    return (n - 1) ** 2 / n * float(betaincinv(p / 2, (n - p - 1) / 2, 1 - alpha))


def ledoit_wolf(x_NM: np.ndarray) -> tuple[np.ndarray, float]:
    """Covariance shrunk towards mu I, and by how much (Ledoit & Wolf 2004, "A well-conditioned
    estimator for large-dimensional covariance matrices").

    S = X'X/N of centred X, mu = tr S/p, d2 = |S - mu I|^2, b2 = min(sum_k |x_k x_k' - S|^2 / N^2,
    d2), share b2/d2 of mu I.
    """
    x_NM = _table(x_NM)
    n, p = x_NM.shape
    centred_NM = x_NM - x_NM.mean(axis=0)
    s_MM = centred_NM.T @ centred_NM / n
    mu = float(np.trace(s_MM)) / p
    d2 = float(np.sum((s_MM - mu * np.eye(p)) ** 2))
    # sum_k |x_k x_k' - S|^2 = sum_k |x_k|^4 - N |S|^2
    b2 = (float(np.sum(np.sum(centred_NM**2, axis=1) ** 2)) - n * float(np.sum(s_MM**2))) / n**2
    share = min(1.0, max(0.0, b2) / d2) if d2 > 0 else 1.0
    return share * mu * np.eye(p) + (1 - share) * s_MM, share


def _shrunk_inverse(x_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, inverse of the covariance with its correlations shrunk, and the shrinkage: metrics have
    scales of their own.
    """
    mean_M, scale_M = x_NM.mean(axis=0), x_NM.std(axis=0, ddof=1)
    correlation_MM, share = ledoit_wolf((x_NM - mean_M) / scale_M)
    return mean_M, np.linalg.inv(correlation_MM) / scale_M / scale_M[:, None], share


def _table(x_NM: np.ndarray) -> np.ndarray:
    x_NM = np.asarray(x_NM, dtype=np.float64)
    if x_NM.ndim != 2 or x_NM.size == 0 or not np.isfinite(x_NM).all():
        raise ValueError(f"x_NM must be finite values [runs, metrics], not shape {x_NM.shape}")
    return x_NM
