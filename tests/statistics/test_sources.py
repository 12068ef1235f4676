"""Components of variance and of disagreement: published tables, definitions by brute force, planted
truth, and too little data.
"""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.regression.mixed_linear_model import MixedLM
from worlds import World, simulate
from worlds.sources import (
    THREE,
    answers_world,
    crossed_world,
    grid_scores,
    nested_world,
    precision_world,
    three_way_answers_world,
    three_way_world,
)

from toolkit.statistics.conclusive import MIN_LEVELS
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.fresh import _pairs, sharing
from toolkit.statistics.sources.answer_components import behaviour_components, missing_pairs
from toolkit.statistics.sources.mean_squares import RESIDUAL, MeanSquare, combine, mean_square
from toolkit.statistics.sources.reml import _Model, reml
from toolkit.statistics.sources.repeatability import iso_5725
from toolkit.statistics.sources.score_components import (
    Components,
    crossed,
    crossed_grid,
    difference,
    nested,
)

# Shrout & Fleiss (1979), Psychological Bulletin 86, 420: six targets rated by four judges.
JUDGES = np.array(
    [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
)

# AIAG, Measurement Systems Analysis (4th edition), the gauge study: 10 parts, by 3 appraisers
# with 3 trials each.
GAUGE = np.array(
    """.29 .41 .64 .08 .25 .07 .04 -.11 -.15   -.56 -.68 -.58 -.47 -1.22 -.68 -1.38 -1.13 -.96
    1.34 1.17 1.27 1.19 .94 1.34 .88 1.09 .67
    .47 .50 .64 .01 1.03 .20 .14 .20 .11   -.80 -.92 -.84 -.56 -1.20 -1.28 -1.46 -1.07 -1.45
    .02 -.11 -.21 -.20 .22 .06 -.29 -.67 -.49
    .59 .75 .66 .47 .55 .83 .02 .01 .21   -.31 -.20 -.17 -.63 .08 -.34 -.46 -.56 -.49   2.26 1.99
    2.01 1.80 2.12 2.19 1.77 1.45 1.87
    -1.36 -1.25 -1.31 -1.68 -1.62 -1.50 -1.49 -1.77 -2.16""".split(),
    dtype=float,
).reshape(10, 3, 3)

# Davies (1947), Statistical Methods in Research and Production: yield of dyestuff in six batches,
# five samples of each.
DYESTUFF = np.array(
    """1545 1440 1440 1520 1580 1540 1555 1490 1560 1495 1595 1550 1605 1510 1560 1445 1440 1595
    1465 1545 1595 1630 1515 1635 1625
    1520 1455 1450 1480 1445""".split(),
    dtype=float,
)

# Davies & Goldsmith (1972), Statistical Methods in Research and Production: strength of paste,
# two tests of three casks of ten batches.
PASTES = np.array(
    """62.8 62.6 60.1 62.3 62.7 63.1 60.0 61.4 57.5 56.9 61.1 58.9 58.7 57.5 63.9 63.1 65.4 63.7
    57.1 56.4 56.9 58.6 64.7 64.5
    55.1 55.1 54.7 54.2 58.8 57.5 63.4 64.9 59.3 58.1 60.5 60.0 62.5 62.6 61.0 58.7 56.9 57.7
    59.2 59.4 65.2 66.0 64.8 64.1
    54.8 54.8 64.0 64.0 57.7 56.8 58.3 59.3 59.2 59.2 58.9 56.6""".split(),
    dtype=float,
)
BATCH, CASK = np.repeat(np.arange(10), 6), np.repeat(np.arange(30), 2)


def values(components: Components) -> dict[str, float | None]:
    return {name: part.value for name, part in components.parts.items()}


# --- published tables ---------------------------------------------------------------------------


def test_shrout_and_fleiss():
    found = crossed_grid(JUDGES, ["target", "judge"])
    assert [found.table[name].value for name in ("target", "judge", RESIDUAL)] == pytest.approx(
        [11.2417, 32.4861, 1.0194], abs=5e-5
    )
    assert values(found) == pytest.approx(
        {"target": 2.5556, "judge": 5.2444, RESIDUAL: 1.0194}, abs=5e-5
    )
    assert found.share("target") == pytest.approx(0.2898, abs=5e-5)  # their ICC(2,1)
    # ICC(1,1)
    assert nested(JUDGES.ravel(), np.repeat(np.arange(6), 4)).share("between") == pytest.approx(
        0.1657, abs=5e-5
    )


def test_gauge_study_has_a_negative_interaction():
    """Sums of squares 88.3619, 3.1673, .3590, 2.7589 as Minitab prints them; the interaction's
    component is below 0, and shown so.
    """
    found = crossed_grid(GAUGE, ["part", "operator"])
    squares = {name: line.value * line.df for name, line in found.table.items()}
    assert squares == pytest.approx(
        {"part": 88.3619, "operator": 3.1673, "part x operator": 0.3590, RESIDUAL: 2.7589}, abs=6e-5
    )
    expected = {
        "part": (9.81799 - 0.01994) / 9,
        "operator": (1.58363 - 0.01994) / 30,
        "part x operator": (0.01994 - 0.04598) / 3,
    }
    assert values(found) == pytest.approx(expected | {RESIDUAL: 0.04598}, abs=1e-5)
    assert (
        not found.parts["operator"].conclusive
        and "operator has 3 levels" in found.parts["operator"].note
    )
    assert found.parts["part"].conclusive


def test_dyestuff():
    """Batch variance 1764, residual 2451: Davies' analysis, and what lme4's documentation gives as
    REML.
    """
    batch = np.repeat(np.arange(6), 5)
    assert values(nested(DYESTUFF, batch)) == pytest.approx({"between": 1764.05, RESIDUAL: 2451.25})
    found = reml(DYESTUFF, {"batch": batch})
    assert [found["batch"].value, found[RESIDUAL].value] == pytest.approx(
        [1764.05, 2451.25], rel=1e-3
    )


def test_pastes():
    """Nested casks by REML: lme4's documentation gives standard deviations 2.9041 (cask), 1.2874
    (batch), .8234 (residual).
    """
    found = reml(PASTES, {"batch": BATCH, "cask": CASK})
    assert [
        math.sqrt(found[name].value or 0) for name in ("cask", "batch", RESIDUAL)
    ] == pytest.approx([2.9041, 1.2874, 0.8234], abs=5e-4)
    assert found["batch"].low == 0.0  # lme4's profile of its standard deviation also begins at 0
    precision = iso_5725(PASTES, CASK, BATCH)
    figures = [precision.repeatability, precision.intermediate_precision, precision.reproducibility]
    expected = np.sqrt(np.cumsum([0.8234**2, 2.9041**2, 1.2874**2]))
    assert [figure.value for figure in figures if figure] == pytest.approx(expected, abs=5e-4)


# --- definitions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "repeats"), [((4, 3), 1), ((4, 3), 2), ((3, 4, 5), 1), ((2, 3, 2), 3)]
)
def test_components_are_unbiased_in_any_crossed_design(shape, repeats):
    """Means over draws are the planted components, every interaction with one of its own."""
    sets = [
        s
        for size in range(1, len(shape) + 1)
        for s in itertools.combinations(range(len(shape)), size)
    ]
    truth = {s: 0.2 + 0.1 * i for i, s in enumerate(sets)}
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"][: len(shape)]
    found = []
    for _ in range(400):
        found.append(
            list(
                values(
                    crossed_grid(grid_scores(rng, "normal", shape, repeats, truth, 0.5), names)
                ).values()
            )
        )
    expected = (
        [*truth.values(), 0.5]
        if repeats > 1
        else [*list(truth.values())[:-1], truth[sets[-1]] + 0.5]
    )
    error = np.std(found, axis=0) / math.sqrt(len(found))
    assert np.all(np.abs(np.mean(found, axis=0) - expected) < 4 * error)


def test_order_of_runs_and_names_of_levels_do_not_matter():
    rng = np.random.default_rng(0)
    init, order = (x.ravel() for x in np.indices((6, 7)))
    score = rng.normal(size=42)
    shuffled = rng.permutation(42)
    one = crossed(score, {"init": init, "order": order})
    two = crossed(
        score[shuffled],
        {"init": np.array([f"seed {i}" for i in init])[shuffled], "order": -order[shuffled]},
    )
    assert values(one) == pytest.approx(values(two))
    assert values(one) == pytest.approx(
        values(crossed_grid(score.reshape(6, 7), ["init", "order"]))
    )


def test_a_constant_changes_nothing_and_a_factor_enters_squared():
    score = np.random.default_rng(0).normal(size=(6, 7, 2))
    one, two = (
        crossed_grid(score, ["init", "order"]),
        crossed_grid(1000 + 3 * score, ["init", "order"]),
    )
    for name, part in one.parts.items():
        other = two.parts[name]
        assert [other.value, other.low, other.high] == pytest.approx(
            [9 * x for x in (part.value, part.low, part.high) if x is not None]
        )


def test_unequal_groups_are_unbiased():
    """Thomas & Hultquist: the unweighted estimate has the planted mean, whatever the sizes."""
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(6), [1, 2, 9, 3, 1, 12])
    draws = [
        values(nested(rng.normal(size=6)[group] + 0.7 * rng.normal(size=len(group)), group))
        for _ in range(1500)
    ]
    assert np.array([x["between"] for x in draws]).mean() == pytest.approx(1.0, abs=0.08)
    assert np.array([x[RESIDUAL] for x in draws]).mean() == pytest.approx(0.49, abs=0.015)


@pytest.mark.parametrize("shared", [True, False])
def test_precision_is_unbiased(shared):
    """Crossed and (unequal) nested: squares of the figures have the planted means."""
    rng = np.random.default_rng(2)
    if shared:
        machine, seed, _ = (x.ravel() for x in np.indices((5, 6, 2)))
    else:
        machine = np.repeat(np.arange(5), [3, 8, 5, 12, 6])
        seed = np.concatenate(
            [100 * m + np.arange(n) // (1 + m % 2) for m, n in enumerate([3, 8, 5, 12, 6])]
        )
    codes = np.unique(seed, return_inverse=True)[1]
    draws = []
    for _ in range(400):
        both = 0.5 * rng.normal(size=(5, codes.max() + 1))[machine, codes] if shared else 0.0
        score = (
            0.7 * rng.normal(size=5)[machine]
            + rng.normal(size=codes.max() + 1)[codes]
            + both
            + 0.4 * rng.normal(size=len(machine))
        )
        p = iso_5725(score, seed, machine)
        draws.append(
            [
                e.value**2
                for e in (p.repeatability, p.intermediate_precision, p.reproducibility)
                if e and e.value is not None
            ]
        )
    seeds = 1.25 if shared else 1.0
    expected = np.array([0.16, 0.16 + seeds, 0.16 + seeds + 0.49])
    assert np.all(
        np.abs(np.mean(draws, axis=0) - expected)
        < 4 * np.std(draws, axis=0) / math.sqrt(len(draws)) + 0.005
    )


def test_a_single_mean_square_has_the_chi_squared_interval():
    from scipy.stats import chi2

    value, low, high = combine({"a": MeanSquare(2.0, 9, 9)}, {"a": 0.5}, 0.95)
    assert (value, low, high) == pytest.approx(
        (1.0, 9 / chi2.ppf(0.975, 9), 9 / chi2.ppf(0.025, 9))
    )


def test_an_overwhelming_mean_square_has_its_own_interval():
    """What the modified large-sample limits are built for: the part that counts less vanishes from
    them.
    """
    table = {"a": MeanSquare(1e6, 7, 7), "b": MeanSquare(1.0, 30, 30), "c": MeanSquare(1.0, 5, 5)}
    alone, all_three = (
        combine(table, {"a": 1.0}, 0.9),
        combine(table, {"a": 1.0, "b": -1.0, "c": 1.0}, 0.9),
    )
    assert all_three == pytest.approx(alone, rel=1e-5)


def test_heavy_tails_cost_degrees_of_freedom():
    rng = np.random.default_rng(0)
    normal, heavy = rng.standard_normal(200), rng.standard_t(4, 200)
    lines = [mean_square(x - x.mean(), x.shape, 1.0, 1.0) for x in (normal, heavy)]
    assert [line.value for line in lines] == pytest.approx([normal.var(ddof=1), heavy.var(ddof=1)])
    assert lines[0].df == lines[1].df == pytest.approx(199)
    assert 120 < lines[0].df_tails < 199 and lines[1].df_tails < 100


# --- REML ---------------------------------------------------------------------------------------


def test_reml_is_the_analysis_of_variance_where_that_is_positive():
    rng = np.random.default_rng(3)
    score = grid_scores(rng, "normal", (8, 7), 2, {(0,): 0.5, (1,): 0.4, (0, 1): 0.3}, 0.2)
    closed = crossed_grid(score, ["init", "order"])
    assert min(x for x in values(closed).values() if x is not None) > 0
    init, order, _ = (x.ravel() for x in np.indices(score.shape))
    found = reml(score.ravel(), {"init": init, "order": order, "init x order": 7 * init + order})
    assert [e.value for name, e in found.items() if name != "total"] == pytest.approx(
        list(values(closed).values()), rel=2e-3
    )


@pytest.mark.parametrize("seed", [4, 5])
def test_reml_is_that_of_statsmodels_on_unequal_cells(seed):
    rng = np.random.default_rng(seed)
    score = grid_scores(rng, "normal", (9, 7), 2, {(0,): 0.5, (1,): 0.8}, 0.3).ravel()
    init, order, _ = (x.ravel() for x in np.indices((9, 7, 2)))
    kept = rng.random(len(score)) < 0.6
    found = reml(
        score[kept],
        {
            "init": np.unique(init[kept], return_inverse=True)[1],
            "order": np.unique(order[kept], return_inverse=True)[1],
        },
    )
    frame = pd.DataFrame({"score": score[kept], "init": init[kept], "order": order[kept], "all": 1})
    formula = {"init": "0 + C(init)", "order": "0 + C(order)"}
    reference = MixedLM.from_formula("score ~ 1", groups="all", vc_formula=formula, data=frame).fit(
        reml=True
    )
    expected = dict(zip(reference.model.exog_vc.names, reference.vcomp, strict=True)) | {
        RESIDUAL: reference.scale
    }
    assert {name: e.value for name, e in found.items() if name != "total"} == pytest.approx(
        expected, rel=5e-3
    )


def test_missing_cells_go_to_reml_and_say_so():
    rng = np.random.default_rng(6)
    score = grid_scores(rng, "normal", (8, 8), 1, {(0,): 0.5, (1,): 0.4}, 0.3)[..., 0]
    score[2, 3] = score[5, 5] = np.nan
    init, order = (x.ravel() for x in np.indices(score.shape))
    found = crossed(score.ravel(), {"init": init, "order": order})
    assert set(found.parts) == {"init", "order", RESIDUAL} and "REML" in found.parts["init"].method
    assert all(
        part.conclusive and part.low is not None and part.low < part.value < part.high
        for part in found.parts.values()
    )
    assert found.total.n_replicas == 62 and found.table == {}
    with pytest.raises(ValueError, match="no table"):
        difference(found, "init", "order")


def test_reml_of_a_source_that_adds_nothing_is_zero_from_below():
    rng = np.random.default_rng(7)
    init = np.repeat(np.arange(10), 6)
    score = rng.normal(size=60)
    # group means closer together than by chance
    score -= 0.9 * (np.bincount(init, weights=score) / 6)[init]
    found = reml(score, {"init": init})
    assert (
        found["init"].value == found["init"].low == 0.0
        and found["init"].high > 0
        and "border" in found["init"].note
    )


@pytest.mark.parametrize(
    ("init", "order"),
    [
        (np.arange(12), np.arange(12)),  # every run its own seeds: nothing is shared
        (
            np.repeat(np.arange(4), 3),
            np.repeat(np.arange(4), 3),
        ),  # init and order change only together
        (
            np.array([0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
            np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ),  # each run its own order
    ],
)
def test_a_design_that_does_not_separate_its_sources_is_inconclusive(init, order):
    found = crossed(np.random.default_rng(0).normal(size=12), {"init": init, "order": order})
    assert (
        not found.total.conclusive
        and found.total.value is None
        and "does not separate" in found.parts["init"].note
    )


def unfilled_cube(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores of a 4 x 4 x 4 design with a tenth of the cells empty."""
    rng = np.random.default_rng(seed)
    score = grid_scores(rng, "normal", (4, 4, 4), 1, {(0,): 0.1, (1,): 0.1, (2,): 0.1}, 0.7)[..., 0]
    score[rng.random(score.shape) < 0.1] = np.nan
    places = np.indices(score.shape)
    return score, {name: places[axis] for axis, name in enumerate(THREE)}


def model_of(score: np.ndarray, levels: dict[str, np.ndarray]) -> _Model:
    known = np.isfinite(score)
    cells = [
        levels[a][known] * 4 * (a != b) + levels[b][known]
        for a, b in itertools.combinations_with_replacement(THREE, 2)
    ]
    return _Model(
        score[known] - score[known].mean(), [np.eye(int(code.max()) + 1)[code] for code in cells]
    )


def test_slope_of_the_reml_deviance_is_its_difference():
    model, at = model_of(*unfilled_cube(0)), np.array([-0.3, -2.0, -8.0, 0.2, -1.0, -4.0, 0.1])
    rises = [
        (model.deviance(at + step)[0] - model.deviance(at - step)[0]) / 2e-5
        for step in 1e-5 * np.eye(7)
    ]
    assert model.deviance(at)[1] == pytest.approx(rises, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_profile_does_not_get_stuck_at_the_border(seed):
    """Parts of which the likelihood makes nothing may count again once another one is held
    elsewhere.
    """
    model = model_of(*unfilled_cube(seed))
    best = model.fit()[0]
    for i in range(len(best)):
        for at in (-3.0, 0.5):
            assert model.fit(i, at, best)[1] <= model.fit(i, at)[1] + 0.02


def test_no_convergence_is_said(monkeypatch):
    from toolkit.statistics.sources import reml as module

    monkeypatch.setattr(module._Model, "fit", lambda self: (np.zeros(2), 0.0, False))
    found = reml(DYESTUFF, {"batch": np.repeat(np.arange(6), 5)})
    assert found["batch"].value is None and "no convergence" in found["batch"].note


# --- too little data ----------------------------------------------------------------------------


def test_equal_scores_have_no_interval():
    for found in (
        crossed_grid(np.full((6, 6), 0.9), ["init", "order"]),
        nested(np.full(20, 0.9), np.repeat(np.arange(5), 4)),
    ):
        for part in [*found.parts.values(), found.total]:
            assert (
                part.value == 0.0 and part.low is None and part.high is None and not part.conclusive
            )


def test_bitwise_equal_repeats_have_no_numerics():
    score = np.repeat(np.random.default_rng(0).normal(size=(6, 6, 1)), 2, axis=-1)
    found = crossed_grid(score, ["init", "order"])
    assert (
        found.parts[RESIDUAL].value == 0.0
        and found.parts[RESIDUAL].low is None
        and "equal to the last bit" in found.parts[RESIDUAL].note
    )
    assert found.parts["init"].conclusive


def test_equal_repeats_in_unequal_cells_have_no_numerics_either():
    init, order, _ = (x.ravel() for x in np.indices((7, 6, 2)))
    score = np.random.default_rng(0).normal(size=(7, 6))[init, order]
    found = crossed(score[5:], {"init": init[5:], "order": order[5:]})
    assert (
        found.parts[RESIDUAL].value == 0.0
        and found.parts[RESIDUAL].low is None
        and not found.parts[RESIDUAL].conclusive
    )
    assert not found.total.conclusive


def test_64_runs_are_needed_to_rank_sources():
    rng = np.random.default_rng(0)
    assert (
        "fewer than 64 runs cannot rank"
        in crossed_grid(rng.normal(size=(7, 9)), ["init", "order"]).parts["init"].note
    )
    assert "rank" not in crossed_grid(rng.normal(size=(8, 8)), ["init", "order"]).parts["init"].note


def test_difference_of_sources():
    rng = np.random.default_rng(0)
    score = grid_scores(rng, "normal", (25, 25), 1, {(0,): 4.0, (1,): 0.1}, 0.2)[..., 0]
    found = crossed_grid(score, ["init", "order"])
    ahead, even = (
        difference(found, "init", "order"),
        difference(crossed_grid(rng.normal(size=(8, 8)), ["init", "order"]), "init", "order"),
    )
    assert ahead.conclusive and ahead.low > 0
    assert ahead.value == pytest.approx(found.parts["init"].value - found.parts["order"].value)
    assert not even.conclusive and even.low < 0 < even.high


def test_a_failed_level_or_run_is_noticed():
    rng = np.random.default_rng(0)
    score = rng.normal(size=(10, 10))
    score[3] -= 12
    assert (
        "a level of init stands far off"
        in crossed_grid(score, ["init", "order"]).parts["order"].note
    )
    small = 0.1 * rng.normal(size=(6, 6)) + rng.normal(size=6)
    small[2, 4] -= 5
    assert "a run stands far off" in crossed_grid(small, ["init", "order"]).parts[RESIDUAL].note
    assert not crossed_grid(small, ["init", "order"]).total.conclusive


def test_scores_without_levels_to_compare():
    nothing = crossed([1.0, 2.0, np.nan, 3.0], {"init": [0, 0, 1, 0], "order": [0, 1, 2, 3]})
    assert nothing.total.value is None and "init has 1 level with a score" in nothing.total.note
    assert set(nothing.parts) == {"init", "order", "init x order", RESIDUAL}
    assert crossed([np.nan, np.nan], {"init": [0, 1]}).total.value is None
    assert nested([1.0, 2.0, 3.0], [0, 1, 2]).total.value is None
    assert nested([], []).total.value is None
    precision = iso_5725([1.0, 2.0, 4.0], [0, 1, 2])
    assert (
        precision.repeatability is None
        and precision.reproducibility is None
        and len(precision.notes) == 2
    )
    assert (
        precision.intermediate_precision is not None
        and not precision.intermediate_precision.conclusive
    )
    one_each = iso_5725([1.0, 2.0, 4.0], [0, 1, 2], ["a", "b", "c"])
    assert (
        one_each.intermediate_precision is None
        and one_each.reproducibility.value == pytest.approx(np.std([1, 2, 4], ddof=1))
    )
    assert iso_5725([np.nan], [0]).notes == ("no run has a score",)


@pytest.mark.parametrize(
    "call",
    [
        lambda: crossed([1.0, 2.0], {}),
        lambda: crossed([1.0, 2.0], {"init": [0]}),
        lambda: crossed(np.ones((2, 2)), {"init": [0, 1]}),
        lambda: crossed_grid(np.ones((3, 3, 3, 3)), ["init", "order"]),
        lambda: crossed_grid(np.full((3, 3), np.nan), ["init", "order"]),
        lambda: nested([1.0, 2.0], [0]),
        lambda: iso_5725([1.0], [0, 1]),
        lambda: crossed([1.0], {"init": [0]}, level=95),
        lambda: behaviour_components(
            np.zeros((4, 3), dtype=int), {"init": [0, 1], "order": [0, 0, 1, 1]}
        ),
        lambda: behaviour_components(np.zeros((4, 3), dtype=int), {}),
        lambda: behaviour_components(
            np.zeros((4, 3)), {"init": [0, 0, 1, 1], "order": [0, 1, 0, 1]}
        ),
    ],
)
def test_impossible_shapes_are_errors(call):
    with pytest.raises(ValueError):
        call()


# --- answers ------------------------------------------------------------------------------------


def design(*levels: int, repeats: int = 1) -> dict[str, np.ndarray]:
    """Every combination of levels, each `repeats` times."""
    columns = [x.ravel() for x in np.indices((*levels, repeats))][:-1]
    return dict(zip(("init", "order", "dropout"), columns, strict=False))


def over_pairs(
    answer_RP: np.ndarray, levels: dict[str, np.ndarray]
) -> dict[tuple[str, ...], np.ndarray]:
    """Disagreement by what a pair shares, by the definition."""
    kinds = [
        tuple(s) for size in range(len(levels) + 1) for s in itertools.combinations(levels, size)
    ]
    differ, pairs = ({kind: np.zeros(answer_RP.shape[1]) for kind in kinds} for _ in range(2))
    for r, s in itertools.combinations(range(len(answer_RP)), 2):
        kind = tuple(name for name, level_R in levels.items() if level_R[r] == level_R[s])
        both = (answer_RP[r] >= 0) & (answer_RP[s] >= 0)
        pairs[kind] += both
        differ[kind] += both & (answer_RP[r] != answer_RP[s])
    return {kind: differ[kind] / np.maximum(pairs[kind], 1) for kind in kinds}


@pytest.mark.parametrize("sizes", [(4,), (4, 3), (3, 3, 2)])
def test_kinds_of_pairs_are_counted_by_their_definition(sizes):
    rng = np.random.default_rng(0)
    levels = design(*sizes, repeats=2)
    answer_RP = rng.integers(-1, 3, (2 * math.prod(sizes), 15))
    expected = over_pairs(answer_RP, levels)
    found = behaviour_components(answer_RP, levels)
    assert list(found.disagreement) == [
        "fresh",
        *(f"same {' and '.join(kind)}" for kind in expected if kind),
    ]
    for one, kind in zip(found.disagreement.values(), expected, strict=True):
        assert one.value == pytest.approx(expected[kind].mean())
    groups = sharing(levels)
    agreeing, pairs = (
        _pairs(answer_RP, levels, groups),
        _pairs(np.minimum(answer_RP, 0), levels, groups),
    )
    for side, level_R in enumerate(levels.values(), 1):
        for level in range(level_R.max() + 1):
            kept = level_R != level
            without = over_pairs(answer_RP[kept], {name: x[kept] for name, x in levels.items()})
            for kind in without:
                n_P = pairs[side][kind][level]
                share_P = 1 - agreeing[side][kind][level] / np.maximum(n_P, 1)
                np.testing.assert_allclose(
                    np.where(n_P > 0, share_P, 0.0), without[kind], atol=1e-12
                )


def test_answers_have_the_components_of_their_one_hot_scores():
    """A balanced grid: the parts are those of the analysis of variance of every coordinate of the
    one-hot answer, summed.
    """
    rng = np.random.default_rng(3)
    for sizes, repeats in (((5, 6), 1), ((4, 3), 2), ((3, 4, 5), 1), ((3, 2, 4), 2), ((6,), 3)):
        levels = design(*sizes, repeats=repeats)
        answer_RP = rng.integers(0, 3, (math.prod(sizes) * repeats, 7))
        found = behaviour_components(answer_RP, levels)
        expected = dict.fromkeys(found.parts, 0.0)
        for answer_R, value in itertools.product(answer_RP.T, range(3)):
            for name, part in values(crossed((answer_R == value).astype(float), levels)).items():
                expected[name] += (part or 0.0) / 7
        assert {name: part.value for name, part in found.parts.items()} == pytest.approx(expected)


def test_kinds_of_pairs_that_a_design_lacks():
    assert (
        missing_pairs(design(3, 3))
        == missing_pairs(design(2, 3, 2))
        == missing_pairs(design(4, repeats=2))
        == []
    )
    assert missing_pairs({"init": np.arange(6), "order": np.arange(6)}) == [
        "same init",
        "same order",
    ]
    assert missing_pairs({"init": np.arange(8) // 2, "order": np.arange(8) // 2}) == [
        "same init",
        "same order",
    ]
    assert missing_pairs({"init": np.arange(6)}) == ["same init"]
    assert missing_pairs({"init": np.zeros(6), "order": np.arange(6)}) == ["fresh", "same order"]


@pytest.mark.parametrize("repeats", [1, 2])
def test_parts_add_up_to_the_disagreement_of_fresh_runs(repeats):
    answer_RP = np.random.default_rng(0).integers(0, 3, (25 * repeats, 40))
    found = behaviour_components(answer_RP, design(5, 5, repeats=repeats))
    parts = np.array([part.value for part in found.parts.values()])
    assert parts.sum() == pytest.approx(found.disagreement["fresh"].value)
    assert list(found.parts) == ["init", "order", *["init x order"] * (repeats > 1), "residual"]
    assert ("same init and order" in found.disagreement) == (repeats > 1)


@pytest.mark.parametrize("repeats", [1, 2])
def test_planted_sources_of_disagreement_are_found(repeats):
    """Margins with planted variances: the mean over draws is the closed-form truth, which brute
    simulation confirms for `fresh`.
    """
    for part in ["init", "order", "residual", "fresh", *["init x order"] * (repeats > 1)]:
        world = answers_world(part, 5, 5, 60, s2_order=0.2, repeats=repeats)
        rng = np.random.default_rng(1)
        draws = [world(rng) for _ in range(40)]
        found, truth = np.array([estimate.value for estimate, _ in draws]), draws[0][1]
        assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(40)


def test_planted_parts_of_three_sources_of_disagreement_are_found():
    for part in ["init", "init x order", "residual", "fresh"]:
        world = three_way_answers_world(part, 4, 3, 3, 60)
        rng = np.random.default_rng(1)
        draws = [world(rng) for _ in range(25)]
        found, truth = np.array([estimate.value for estimate, _ in draws]), draws[0][1]
        assert abs(found.mean() - truth) < 4 * found.std() / math.sqrt(25)


def test_generalised_variance_of_the_answer_is_the_disagreement():
    """E|y - y'|^2 / 2 of one-hot answers: what makes the parts add up without a factor 2."""
    answer_RP = np.random.default_rng(0).integers(0, 4, (50, 30))
    onehot_RPV = np.eye(4)[answer_RP]
    variance = onehot_RPV.var(axis=0, ddof=1).sum(axis=-1).mean()
    every_seed = behaviour_components(answer_RP, design(5, 10))
    pairs = over_pairs(answer_RP, {"init": np.arange(50)})[()].mean()
    assert variance == pytest.approx(pairs)
    assert every_seed.disagreement["fresh"].value == pytest.approx(pairs, abs=0.02)


def test_equal_answers_have_a_bound():
    found = behaviour_components(np.zeros((25, 100), dtype=int), design(5, 5))
    for part in found.parts.values():
        assert (
            (part.value, part.low) == (0.0, 0.0)
            and part.high == pytest.approx(1 - 0.05**0.01)
            and "zero-event" in part.method
        )


def test_a_source_that_decides_every_answer():
    levels = design(5, 5)
    found = behaviour_components(np.tile(levels["init"][:, None], (1, 100)), levels)
    assert (
        found.parts["init"].value == 1.0
        and found.parts["order"].value == found.parts["residual"].value == 0.0
    )


def test_answers_without_the_pairs_that_are_needed():
    answer_RP = np.zeros((6, 20), dtype=int)
    unshared = behaviour_components(answer_RP, {"init": np.arange(6), "order": np.arange(6)})
    assert (
        unshared.parts["init"].value is None
        and "pairs of every kind" in unshared.parts["init"].note
    )
    nobody = behaviour_components(np.full((4, 20), -1), design(2, 2))
    assert nobody.parts["init"].value is None and not nobody.parts["init"].conclusive
    small = behaviour_components(np.random.default_rng(0).integers(0, 2, (9, 20)), design(3, 3))
    assert (
        not small.parts["init"].conclusive
        and small.parts["init"].needed == MIN_LEVELS**2
        and small.parts["init"].low is not None
    )


def test_a_failed_init_is_noticed():
    rng = np.random.default_rng(0)
    levels = design(8, 8)
    answer_RP = (rng.random((64, 200)) < 0.05).astype(int)
    answer_RP[levels["init"] == 3] = rng.integers(2, 9, (8, 200))
    found = behaviour_components(answer_RP, levels)
    assert not found.parts["order"].conclusive and "did they fail" in found.parts["order"].note


# --- intervals cover ----------------------------------------------------------------------------

COVERAGE: dict[str, World] = {
    "init, 8x8": crossed_world("init", 8, 8),
    "small init, 10x10": crossed_world("init", 10, 10, s2_init=0.05, s2_order=0.05, s2_rest=0.9),
    "residual, 5x5, heavy tails": crossed_world("residual", 5, 5, draw="t5"),
    "init, 25x25, heavy tails": crossed_world("init", 25, 25, draw="t5"),
    "total, 10x10": crossed_world("total", 10, 10),
    "interaction, repeats": crossed_world("init x order", 6, 6, s2_both=0.3, repeats=2),
    "three-way init": three_way_world("init", 5, 5, 5),
    "intermediate precision of a crossed design": three_way_world("sd", 5, 5, 5),
    "reproducibility": precision_world("reproducibility", 6, 5, draw="t5"),
    "between unequal groups": nested_world("between", 10, 4, unequal=True),
}
SLOW: dict[str, World] = {
    "init, 5x5": crossed_world("init", 5, 5),
    "init, 10x10, heavy tails": crossed_world("init", 10, 10, draw="t5"),
    "init, 25x25": crossed_world("init", 25, 25),
    "total, 25x25, heavy tails": crossed_world("total", 25, 25, draw="t5"),
    "interaction of three-way": three_way_world("init x order", 5, 5, 5, draw="t5"),
    "init, many orders on 5": crossed_world("init", 5, 20, repeats=2, s2_both=0.2),
    "intermediate precision of shared seeds": precision_world(
        "intermediate_precision", 5, 10, shared=True
    ),
    "repeatability": precision_world("repeatability", 1, 12, draw="t5"),
    "between few groups": nested_world("between", 5, 4, draw="t5"),
    "answers of three sources, init": three_way_answers_world("init", 6, 6, 4, 300),
    "REML init, 8x8": crossed_world("init", 8, 8, missing=0.1),
    "REML residual, 5x5": crossed_world("residual", 5, 5, missing=0.1, draw="t5"),
    "answers, init": answers_world("init", 8, 8, 300),
    "answers, init common to all prompts": answers_world(
        "init", 8, 8, 300, common=1.0, s2_both=0.0
    ),
    "answers, residual": answers_world("residual", 5, 5, 300),
    "answers, interaction": answers_world("init x order", 6, 6, 300, repeats=2),
    "answers, clusters, missing": answers_world("fresh", 6, 6, 300, per_cluster=5, missing=0.1),
}


@pytest.mark.parametrize("name", COVERAGE)
def test_intervals_cover(name):
    tally = simulate(COVERAGE[name], 250, seed=11)
    assert tally.held / tally.samples >= 0.91 and tally.conclusive > 0.8 * tally.samples


@pytest.mark.parametrize("name", ["answers, init", "answers, residual"])
def test_intervals_of_answers_cover(name):
    assert simulate(SLOW[name], 60, seed=12).held >= 54


@pytest.mark.slow
@pytest.mark.parametrize("name", {**COVERAGE, **SLOW})
def test_intervals_cover_in_a_long_simulation(name):
    tally = simulate(
        {**COVERAGE, **SLOW}[name],
        80 if "REML" in name else 300 if "answers" in name else 2000,
        seed=13,
    )
    assert tally.held / tally.samples >= (0.9 if "REML" in name else 0.915)


def test_few_levels_are_said():
    estimate: Estimate = crossed_world("init", 4, 10)(np.random.default_rng(0))[0]
    assert not estimate.conclusive and estimate.needed == 50
