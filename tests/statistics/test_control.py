"""Control charts and tolerance limits: published limits, and the false alarms and confidence that
they promise.
"""

import math

import numpy as np
import pytest
from scipy import stats

from toolkit.statistics.control.control_charts import (
    ALPHA,
    Chart,
    Ewma,
    ewma_path,
    laney,
    outside,
    prediction,
    reaches,
)
from toolkit.statistics.control.hotelling import (
    from_covariance,
    hotelling,
    mardia,
    t_squared,
)
from toolkit.statistics.intervals import skewness_and_excess, zero_event_bound
from toolkit.statistics.planning.tolerance import (
    distribution_free,
    howe_factor,
    normal,
    one_sided_factor,
    runs_for_tail,
    two_sided_factor,
    wilks,
)

# NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2.4 (EWMA); its last ten values are those
# of 6.3.2.2 (individuals).
NIST = np.array(
    (
        "52 47 53 49.3 50.1 47 51 50.1 51.2 50.5 49.6 47.6 49.9 51.3 47.8 51.2 52.6 52.4 53.6 52.1"
    ).split(),
    dtype=float,
)
THREE_SIGMA = 2 * stats.norm.sf(3)

# Johnson & Wichern, Applied Multivariate Statistical Analysis, table 5.1: sweat rate, sodium,
# potassium of 20 women.
SWEAT = np.array(
    """3.7 48.5 9.3 5.7 65.1 8.0 3.8 47.2 10.9 3.2 53.2 12.0 3.1 55.5 9.7 4.6 36.1 7.9 2.4 24.8
    14.0 7.2 33.1 7.6 6.7 47.4 8.5 5.4 54.1 11.3
    3.9 36.9 12.7 4.5 58.8 12.3 3.5 27.8 9.8 4.5 40.2 8.4 1.5 13.5 10.1 8.5 56.4 7.1 4.5 71.6 8.2
    6.5 52.8 10.9 4.1 44.1 11.2 5.5 40.9 9.4
    """.split(),
    dtype=float,
).reshape(20, 3)


# --- published charts ---------------------------------------------------------------------------


def test_nist_ewma():
    path = ewma_path(Ewma(50.0, 2.0539, None, weight=0.3, alpha=THREE_SIGMA), NIST)
    assert path.z_T[[0, 1, 2, -1]] == pytest.approx([50.60, 49.52, 50.56, 51.99], abs=0.006)
    assert (path.low_T[-1], path.high_T[-1]) == pytest.approx((47.4115, 52.5884), abs=2e-4)
    assert path.high_T[0] == pytest.approx(50 + 3 * 2.0539 * 0.3)
    assert not path.outside_T.any()


def test_johnson_and_wichern_t_squared():
    """Examples 5.1 and 5.2: T2 of a mean is N times that of a single vector, and its critical value
    N/(N+1) of that of a new run.
    """
    first = from_covariance(np.array([8.0, 6.0]), np.array([[4.0, -3.0], [-3.0, 9.0]]), 3)
    assert 3 * t_squared(first, [9.0, 5.0])[0] == pytest.approx(7 / 9)
    chart = hotelling(SWEAT, alpha=0.10)
    assert chart.center_M == pytest.approx([4.640, 45.400, 9.965])
    assert 20 * t_squared(chart, [4.0, 50.0, 10.0])[0] == pytest.approx(9.74, abs=5e-3)
    assert chart.limit * 20 / 21 == pytest.approx(8.18, abs=0.01)  # they use the rounded F of 2.44


def test_hotelling_of_one_metric_is_the_prediction_limit():
    x = np.random.default_rng(0).normal(3, 2, 20)
    chart, limits = hotelling(x[:, None], alpha=0.01), prediction(x, alpha=0.01)
    assert chart.limit == pytest.approx((1 + 1 / 20) * stats.t.ppf(0.995, 19) ** 2)
    assert t_squared(chart, [[limits.high]])[0] == pytest.approx(chart.limit)


def test_t_squared_does_not_depend_on_units():
    rng = np.random.default_rng(0)
    x, new, mix = rng.normal(size=(30, 4)), rng.normal(size=(5, 4)), rng.normal(size=(4, 4))
    assert t_squared(hotelling(x), new) == pytest.approx(
        t_squared(hotelling(5 + x @ mix), 5 + new @ mix)
    )


def test_a_baseline_run_against_its_own_baseline_is_bounded():
    """T2 of a run that is in the baseline never exceeds (N-1)^2/N, which is the phase I limit
    without false alarms.
    """
    x = np.random.default_rng(0).normal(size=(12, 3))
    x[0] = [1e3, 0.0, -50.0]
    assert t_squared(hotelling(x), x)[0] == pytest.approx(121 / 12, rel=1e-3)


def test_mardia_is_zero_for_normal_metrics_and_kappa_for_t():
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(20_000, 3))
    assert mardia(normals) == pytest.approx(0.0, abs=0.02)
    heavy = normals / np.sqrt(rng.chisquare(12, (20_000, 1)) / 12)
    assert mardia(heavy) == pytest.approx(2 / (12 - 4), abs=0.05)


def test_moments_are_those_of_scipy():
    x = np.random.default_rng(0).exponential(size=25)
    assert skewness_and_excess(x) == pytest.approx(
        (stats.skew(x, bias=False), stats.kurtosis(x, bias=False))
    )
    assert (
        skewness_and_excess(np.ones(9)) == skewness_and_excess(np.array([1.0, 2.0])) == (0.0, 0.0)
    )


def test_laney_is_its_definition():
    size = np.array([100.0, 200.0, 50.0])
    z = (np.array([0.10, 0.15, 0.10]) - 45 / 350) / np.sqrt(45 / 350 * 305 / 350 / size)
    assert laney(np.array([10, 30, 5]), size).sigma_z == pytest.approx(
        np.abs(np.diff(z)).mean() / 1.128, rel=1e-3
    )
    assert math.isnan(laney(np.array([5, 5]), np.array([5, 5])).sigma_z)


# --- what never varied has no limits ------------------------------------------------------------


def test_no_spread_no_limits():
    for chart in (
        prediction(np.full(30, 0.1)),
        prediction(np.array([1.0])),
    ):
        assert (
            isinstance(chart, Chart)
            and chart.low is None
            and chart.high is None
            and not outside(chart, [5.0]).any()
        )
    assert not outside(prediction(np.arange(9.0)), [math.nan]).any()


@pytest.mark.parametrize(
    "call",
    [
        lambda: prediction(np.array([])),
        lambda: prediction(np.array([1.0, math.nan])),
        lambda: hotelling(np.ones((5, 2))),
        lambda: hotelling(np.random.default_rng(0).normal(size=(4, 4))),
        lambda: hotelling(np.repeat(np.arange(9.0)[:, None], 2, axis=1)),
        lambda: laney(np.array([5]), np.array([4])),
        lambda: wilks(1.0),
        lambda: runs_for_tail(0.0),
        lambda: howe_factor(1),
        lambda: normal(np.ones((2, 2))),
    ],
)
def test_impossible_input_is_an_error(call):
    with pytest.raises(ValueError):
        call()


# --- tolerance ----------------------------------------------------------------------------------


def test_wilks_sizes():
    assert [wilks(p) for p in (0.95, 0.99, 0.999)] == [59, 299, 2995]
    assert [wilks(p, two_sided=True) for p in (0.95, 0.99)] == [93, 473]
    assert runs_for_tail(0.01) == 299 and runs_for_tail(3e-4) <= 10_000
    assert zero_event_bound(runs_for_tail(0.01)) <= 0.01 < zero_event_bound(runs_for_tail(0.01) - 1)
    assert zero_event_bound(1000) == pytest.approx(3 / 1000, rel=3e-3)  # the rule of three


@pytest.mark.parametrize(
    ("content", "confidence"), [(0.5, 0.05), (0.9, 0.99), (0.999, 0.9), (0.99999, 0.95)]
)
@pytest.mark.parametrize("two_sided", [True, False])
def test_wilks_is_the_smallest_size(content, confidence, two_sided):
    def held(n: int) -> float:
        return 1 - n * content ** (n - 1) + (n - 1) * content**n if two_sided else 1 - content**n

    n = wilks(content, confidence, two_sided=two_sided)
    assert held(n) >= confidence - 1e-9
    assert n == 1 + two_sided or held(n - 1) < confidence


def test_normal_factors():
    """NIST handbook 7.2.6.3 (N = 43, 90 % content, 99 % confidence), and the tables of 95/95."""
    assert howe_factor(43, 0.90, 0.99) == pytest.approx(2.217, abs=5e-4)
    assert one_sided_factor(43, 0.90, 0.99) == pytest.approx(1.8740, abs=1e-4)
    sizes = (10, 20, 30, 100, 1000)
    assert [howe_factor(n) for n in sizes] == pytest.approx(
        [3.382, 2.752, 2.550, 2.233, 2.036], abs=6e-4
    )
    assert [one_sided_factor(n) for n in sizes] == pytest.approx(
        [2.911, 2.396, 2.220, 1.927, 1.727], abs=6e-4
    )
    # ISO 16269-6 (2014), exact two-sided factors for 95/95
    assert [two_sided_factor(n) for n in (2, 3, 10, 20)] == pytest.approx(
        [36.520, 9.789, 3.394, 2.760], abs=2e-3
    )


@pytest.mark.parametrize("side", ["both", "low", "high"])
@pytest.mark.parametrize("n", [5, 12, 100])
def test_normal_limits_hold_their_confidence(side, n):
    rng = np.random.default_rng(0)
    k = two_sided_factor_cached(n) if side == "both" else one_sided_factor(n)

    def ends(x: np.ndarray) -> tuple[float, float]:
        mean, sd = x.mean(), x.std(ddof=1)
        return (
            -math.inf if side == "high" else mean - k * sd,
            math.inf if side == "low" else mean + k * sd,
        )

    held, draws = 0, rng.normal(size=(1500, n))
    for x in draws:
        low, high = ends(x)
        held += stats.norm.cdf(high) - stats.norm.cdf(low) >= 0.95
    assert held / 1500 == pytest.approx(0.95, abs=0.02)
    limits, (low, high) = normal(draws[-1], side=side), ends(draws[-1])
    assert (limits.low, limits.high) == (
        None if side == "high" else pytest.approx(low),
        None if side == "low" else pytest.approx(high),
    )


_FACTORS: dict[int, float] = {}


def two_sided_factor_cached(n: int) -> float:
    return _FACTORS.setdefault(n, two_sided_factor(n))


@pytest.mark.parametrize(("side", "n"), [("both", 93), ("both", 300), ("low", 59), ("high", 200)])
def test_order_statistics_hold_their_confidence_for_any_distribution(side, n):
    rng = np.random.default_rng(0)
    held = 0
    for u in rng.random((1500, n)):
        limits = distribution_free(stats.expon.ppf(u), side=side)
        low = 0.0 if limits.low is None else stats.expon.cdf(limits.low)
        high = 1.0 if limits.high is None else stats.expon.cdf(limits.high)
        held += high - low >= 0.95
    assert 0.94 <= held / 1500 <= 0.995


def test_tolerance_of_too_few_values_says_how_many():
    assert (
        distribution_free(np.arange(92.0)).needed == 93
        and distribution_free(np.arange(92.0)).low is None
    )
    assert (distribution_free(np.arange(93.0)).low, distribution_free(np.arange(93.0)).high) == (
        0.0,
        92.0,
    )
    assert distribution_free(np.append(np.arange(58.0), math.nan), side="high").needed == 59
    assert distribution_free(np.array([]), side="low").low is None
    assert normal(np.array([1.0, 2.0])).needed == 3 and normal(np.full(9, 0.1)).low is None


# --- false alarms -------------------------------------------------------------------------------


def alarm_rate(make, n: int, draws: int, alpha: float) -> float:
    """P(a new normal value is outside the limits of n baseline values), exactly, averaged over
    baselines.
    """
    rng = np.random.default_rng(n)
    rates = []
    for _ in range(draws):
        chart = make(rng.normal(size=n))
        rates.append(stats.norm.cdf(chart.low) + stats.norm.sf(chart.high))
    return float(np.mean(rates)) / alpha


@pytest.mark.parametrize("n", [5, 30, 100])
def test_prediction_limits_hold_their_false_alarm_rate(n):
    assert alarm_rate(lambda x: prediction(x, alpha=0.01), n, 4000, 0.01) == pytest.approx(
        1.0, abs=0.12
    )


def ewma_of(x: np.ndarray, alpha: float = ALPHA) -> Ewma:
    return Ewma(float(x.mean()), float(x.std(ddof=1)), len(x), alpha=alpha)


def test_ewma_holds_its_rate_at_every_time():
    rng = np.random.default_rng(0)
    alarms = np.array(
        [
            ewma_path(ewma_of(rng.normal(size=30), alpha=0.05), rng.normal(size=25)).outside_T
            for _ in range(4000)
        ]
    )
    assert alarms.mean(axis=0)[[0, 4, 24]] == pytest.approx([0.05, 0.05, 0.05], abs=0.013)


def test_ewma_finds_a_drift_that_single_values_do_not_show():
    rng = np.random.default_rng(0)
    found = single = 0
    for _ in range(300):
        x, new = rng.normal(size=60), rng.normal(1.0, 1.0, 20)
        found += ewma_path(ewma_of(x), new).outside_T[-1]
        single += outside(prediction(x), new[-1:])[0]
    assert found > 90 > 30 > single


@pytest.mark.parametrize(("n", "p"), [(20, 3), (30, 8), (12, 10)])
def test_hotelling_holds_its_false_alarm_rate(n, p):
    rng = np.random.default_rng(p)
    root = rng.normal(size=(p, p))
    rate = np.mean(
        [
            t_squared(
                c := hotelling(rng.normal(size=(n, p)) @ root, alpha=0.02),
                rng.normal(size=(50, p)) @ root,
            )
            > c.limit
            for _ in range(1500)
        ]
    )
    assert rate == pytest.approx(0.02, abs=0.004)


def test_reaches_are_the_normal_ones_unless_the_baseline_is_skewed_or_heavy_tailed():
    chart = prediction(np.random.default_rng(0).normal(size=40))
    half = chart.high - chart.center
    assert reaches(chart.sigma, 40, 0.0, 0.0, ALPHA) == pytest.approx((half, half))
    below, above = reaches(chart.sigma, 40, 0.8, -1.0, ALPHA)
    assert below == pytest.approx(half) and above > 1.15 * half
    assert reaches(chart.sigma, 40, -0.8, -1.0, ALPHA) == pytest.approx((above, below))
    assert min(reaches(chart.sigma, 40, 0.0, 2.0, ALPHA)) > 1.15 * half


def test_reaches_halve_the_false_alarms_of_skewed_values():
    rng = np.random.default_rng(0)
    plain = wide = 0
    for _ in range(400):
        x, new = rng.gamma(6, size=60), rng.gamma(6, size=200)
        chart = prediction(x)
        _, above = reaches(chart.sigma, 60, *skewness_and_excess(x), ALPHA)
        plain += np.sum(new > chart.high)
        wide += np.sum(new > chart.center + above)
    assert wide < 0.5 * plain
