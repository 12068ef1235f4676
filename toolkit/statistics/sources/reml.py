"""Variance components of crossed designs with unequal cells, by restricted maximum likelihood
(REML).
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from toolkit.statistics.arrays import rounding
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import skewness_and_excess
from toolkit.statistics.outliers import far_from_median
from toolkit.statistics.sources.mean_squares import RESIDUAL, SMALL

METHOD = "REML, profile likelihood widened for heavy tails"
# log variances, in units of the variance of the scores; LEAST counts as 0
LEAST, MOST = (
    math.log(1e-7),
    math.log(1e4),
)
INSIDE = -2.0


def reml(
    score_N: np.ndarray, terms: Mapping[str, np.ndarray], *, level: float = 0.95
) -> dict[str, Estimate]:
    """How much variance does each random factor add? One estimate for every term, the residual, and
    their total.

    Model: score = mean + sum over terms of an effect of the run's level + residual, all normal with
    mean 0 (Patterson & Thompson 1971; with balanced cells and positive estimates it is the analysis
    of variance). Unlike there no estimate is negative. Intervals: all values that the profile
    likelihood does not reject against chi-squared with 1 degree of freedom (Cox & Snell), times 1 +
    kappa_+ / 2 for the excess kurtosis kappa of the predicted effects, since a variance of n draws
    has (2 + kappa)/n instead of 2/n. The total: from the parts by the square-and-add rule (Zou &
    Donner 2008), which is conservative as parts trade off against each other. Inconclusive, with
    the reason: a design that does not separate the terms; no convergence; equal scores.

    score_N: finite scores; terms: for each term the level of every run as codes 0, 1, ... The work
    is cubic in the levels of all terms together (some thousand).
    """
    names = [*terms, RESIDUAL]

    def unknown(note: str) -> dict[str, Estimate]:
        return dict.fromkeys(
            [*names, "total"],
            Estimate(None, None, None, level, len(score_N), 0, METHOD, False, None, note),
        )

    scale = float(score_N.std()) if len(score_N) else 0.0
    if len(score_N) == 0 or scale <= rounding(score_N):
        return unknown("all scores are equal: no spread to put an interval around")
    incidence = [np.eye(int(code_N.max()) + 1)[code_N] for code_N in terms.values()]
    if mixed_up(incidence):
        return unknown(
            f"the design does not separate {', '.join(names)}: some of them change only together"
        )
    model = _Model((score_N - score_N.mean()) / scale, incidence)
    best, deviance, converged = model.fit()
    if not converged:
        return unknown("the likelihood's maximum was not found (no convergence)")

    from scipy.special import chdtri

    draws = model.predicted(best)
    outlying = [
        name
        for name, x in zip(names, draws, strict=True)
        if len(far_from_median(x)) and (name != RESIDUAL or len(score_N) < SMALL)
    ]
    suspect = (
        f"a level of {outlying[0]} stands far off the others: did its runs fail?"
        if outlying
        else ""
    )
    estimates = {}
    for i, (name, x) in enumerate(zip(names, draws, strict=True)):
        # half a standard error more, as in mean_square
        tails = 1 + (max(skewness_and_excess(x)[1], 0.0) + 0.5 * math.sqrt(24 / len(x))) / 2
        without = best.copy()
        without[i] = LEAST
        value = (
            0.0 if model.deviance(without)[0] - deviance < 1e-3 else scale**2 * math.exp(best[i])
        )
        low, high = (
            scale**2 * x
            for x in model.profile(i, best, deviance, float(chdtri(1, 1 - level)) * tails)
        )
        ends, border = (low, high), ""
        if value == 0.0 and name == RESIDUAL:
            ends, border = (
                (None, None),
                "runs that should differ are equal: no spread to put an interval around",
            )
        elif value == 0.0:
            border = "at the border: the likelihood is highest without it"
        if not math.isfinite(high):
            ends = (low, None)
        note = "; ".join(filter(None, (border, suspect)))
        estimates[name] = Estimate(
            value,
            *ends,
            level,
            len(score_N),
            0,
            METHOD,
            ends[1] is not None and not suspect,
            None,
            note,
        )
    return estimates | {"total": _total(list(estimates.values()))}


def mixed_up(incidence: list[np.ndarray]) -> bool:
    """Whether the covariances that the terms and the residual add, seen through differences of
    scores, depend on each other.
    """
    centred = [Z - Z.mean(axis=0) for Z in incidence]
    # inner product of Z Z' with the residual's covariance
    alone = [float(np.sum(Z**2)) for Z in centred]
    gram = np.empty((len(centred) + 1,) * 2)
    gram[:-1, :-1] = [
        [float(np.sum((first.T @ second) ** 2)) for second in centred] for first in centred
    ]
    gram[-1, :-1] = gram[:-1, -1] = alone
    gram[-1, -1] = len(incidence[0]) - 1
    size = np.sqrt(np.diag(gram))
    if not size.all():
        return True
    return bool(np.linalg.eigvalsh(gram / size / size[:, None])[0] < 1e-9)


class _Model:
    """The REML deviance of log variances (terms, then residual), from the cross-products of
    incidences, mean and score.
    """

    def __init__(self, y_N: np.ndarray, incidence: list[np.ndarray]) -> None:
        self.levels = [Z.shape[1] for Z in incidence]
        self.design = np.hstack([*incidence, np.ones((len(y_N), 1)), y_N[:, None]])
        self.cross = self.design.T @ self.design

    def deviance(self, log_variance: np.ndarray) -> tuple[float, np.ndarray]:
        """-2 log restricted likelihood, up to a constant, and its gradient, by Woodbury's identity
        over the levels.

        The deviance is ln|V| + ln(1'V^-1 1) + r'V^-1 r. The gradient by the log variance of term i
        is s2_i tr(Z_i' P Z_i) - |u_i|^2 / s2_i, with u_i the predicted effects and P the projection
        of REML (Searle, Casella & McCulloch 1992, section 6.6); all of them add up to N - 1 -
        r'V^-1 r, as V is linear in the variances.
        """
        from scipy.linalg import solve_triangular

        root, noise = self._root(log_variance)
        q, scaled, n = len(root), self._scaled(log_variance), len(self.design)
        # M^-1 = inverse' inverse, for M = root root'; columns are levels
        inverse = solve_triangular(root, np.eye(q), lower=True, check_finite=False)
        half = inverse @ (scaled[:, None] * self.cross[:q, q:])
        (ones, both), (_, squares) = (self.cross[q:, q:] - half.T @ half) / noise
        mean = both / ones
        residual = float(squares - both * mean)
        seen = inverse.T @ half  # sqrt(s2 rest) Z' V^-1 (1, score)
        levels_T = (
            1
            - np.sum(inverse**2, axis=0)
            - seen[:, 0] ** 2 / (noise * ones)
            - (seen[:, 1] - mean * seen[:, 0]) ** 2 / noise
        )
        slope_T = np.add.reduceat(levels_T, np.cumsum([0, *self.levels[:-1]]))
        log_det = 2 * float(np.log(np.diag(root)).sum()) + n * math.log(noise)
        return log_det + math.log(ones) + residual, np.append(
            slope_T, n - 1 - residual - slope_T.sum()
        )

    def fit(
        self, fixed: int | None = None, fixed_at: float = 0.0, start: np.ndarray | None = None
    ) -> tuple[np.ndarray, float, bool]:
        """Lowest deviance, of all log variances or with one of them fixed; whether it was found."""
        from scipy.optimize import minimize

        parts = len(self.levels) + 1
        free = [i for i in range(parts) if i != fixed]

        def full(x: np.ndarray) -> np.ndarray:
            log_variance = np.full(parts, fixed_at)
            log_variance[free] = x
            return log_variance

        def free_deviance(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self.deviance(full(x))
            return value, slope[free]

        # near the border the ground is flat: a fit that began there would stay there
        first = np.full(parts, -math.log(parts)) if start is None else np.maximum(start, INSIDE)
        bounds = [(LEAST, MOST)] * len(free)
        # a profile need not be known better than to a thousandth
        options = {} if fixed is None else {"ftol": 1e-7}
        optimum = minimize(
            free_deviance, first[free], jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        if (
            not optimum.success
        ):  # its line search gives up on flat ground, where the simplex does not
            optimum = minimize(
                lambda x: free_deviance(x)[0], optimum.x, method="Nelder-Mead", bounds=bounds
            )
        return full(optimum.x), float(optimum.fun), bool(optimum.success)

    def profile(
        self, i: int, best: np.ndarray, deviance: float, rise: float
    ) -> tuple[float, float]:
        """The variances between which the deviance, lowest over all others, rises by no more than
        `rise`.
        """
        from scipy.optimize import brentq

        def above(log_variance: float) -> float:
            return self.fit(i, log_variance, best)[1] - deviance - rise

        def crossing(inside: float, outside: float) -> float:
            return math.exp(brentq(above, inside, outside, xtol=3e-3))  # type: ignore[arg-type]

        low = 0.0 if above(LEAST) <= 0 else crossing(best[i], LEAST)
        inside, step = float(best[i]), 0.5
        while (outside := inside + step) < MOST:
            if above(outside) > 0:
                return low, crossing(inside, outside)
            inside, step = outside, 2 * step
        return low, math.inf

    def predicted(self, log_variance: np.ndarray) -> list[np.ndarray]:
        """The best linear predictions of each term's effects, and the residuals."""
        root, _ = self._root(log_variance)
        q = len(root)
        scaled = self._scaled(log_variance)
        half = np.linalg.solve(root, scaled[:, None] * self.cross[:q, q:])
        left = self.cross[q:, q:] - half.T @ half
        mean = left[0, 1] / left[0, 0]
        effect = scaled * np.linalg.solve(root.T, half[:, 1] - mean * half[:, 0])
        rest_N = self.design[:, q + 1] - mean - self.design[:, :q] @ effect
        return [*np.split(effect, np.cumsum(self.levels)[:-1]), rest_N]

    def _scaled(self, log_variance: np.ndarray) -> np.ndarray:
        """Standard deviation of each level's effect in units of the residual's."""
        return np.repeat(np.exp((log_variance[:-1] - log_variance[-1]) / 2), self.levels)

    def _root(self, log_variance: np.ndarray) -> tuple[np.ndarray, float]:
        scaled = self._scaled(log_variance)
        q = len(scaled)
        return np.linalg.cholesky(
            np.eye(q) + scaled[:, None] * self.cross[:q, :q] * scaled
        ), math.exp(log_variance[-1])


def _total(parts: list[Estimate]) -> Estimate:
    value, below, above = 0.0, 0.0, 0.0
    for part in parts:
        if part.value is None or part.low is None or part.high is None:
            return replace(
                part,
                value=None,
                low=None,
                high=None,
                conclusive=False,
                note="a part has no interval",
            )
        value += part.value
        below += (part.value - part.low) ** 2
        above += (part.high - part.value) ** 2
    ends = max(0.0, value - math.sqrt(below)), value + math.sqrt(above)
    return replace(
        parts[-1],
        value=value,
        low=ends[0],
        high=ends[1],
        method=METHOD + "; parts squared and added",
    )
