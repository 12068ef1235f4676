"""Sizes that are planned are sizes that do: known answers, inverses, and what simulated populations
of the planned size then show.
"""

import json
import math

import numpy as np
import pytest
import scipy.stats
from helpers.outcomes_of import World, vote
from statsmodels.stats.proportion import proportion_confint
from worlds.core import combine, latents, population
from worlds.planning import got_half_width, got_power, got_power_of_variances

from toolkit.measurement.analyse import analyse
from toolkit.measurement.replicas_needed import Guess, PlanError, Targets, plan, plan_text
from toolkit.record.results import save_results
from toolkit.statistics import MIN_GROUPS, MIN_REPLICAS, Estimate, disagreement, disagreement_ratio
from toolkit.statistics.intervals import TwoWay
from toolkit.statistics.planning import power as pw
from toolkit.statistics.planning.tolerance import runs_for_tail

FAILURES = 8.99334  # kurtosis of normal scores of which 5 % lie 6 standard deviations off


def answers(
    replicas: int, prompts: int, seed: int = 0, run_sd: float = 0.7, a: float = 0.6, b: float = 0.2
) -> np.ndarray:
    return population(np.random.default_rng(seed), replicas, prompts, a, b, run_sd)[0]


# -- known answers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kurtosis", "sizes"),
    [
        (3.0, (632, 248, 67, 23, 7)),
        (6.0, (1578, 618, 165, 56, 16)),
        (FAILURES, (2521, 988, 263, 88, 25)),
    ],
)
def test_runs_for_a_ratio_of_variances(kurtosis, sizes):
    for ratio, runs in zip((0.8, 0.7, 0.5, 0.3, 0.1), sizes, strict=True):
        assert (
            pw.runs_for_ratio(ratio, kurtosis=kurtosis)
            == pw.runs_for_ratio(1 / ratio, kurtosis=kurtosis)
            == runs
        )


def test_kurtosis_of_a_pilot():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(200_000) - 6 * (rng.random(200_000) < 0.05)
    assert (
        pw.kurtosis_of(scores)
        == pytest.approx(scipy.stats.kurtosis(scores, fisher=False))
        == pytest.approx(FAILURES, rel=0.03)
    )
    assert pw.kurtosis_of(np.append(scores, np.nan)) == pytest.approx(FAILURES, rel=0.03)
    for few in ([], [np.nan], [0.5, 0.5], [0.0, 1.0]):
        assert pw.kurtosis_of(np.array(few)) == 3.0


@pytest.mark.parametrize(
    ("runs", "low", "high"),
    [
        (3, 0.52, 6.3),
        (5, 0.60, 2.9),
        (10, 0.69, 1.83),
        (20, 0.76, 1.46),
        (30, 0.80, 1.34),
        (100, 0.88, 1.16),
        (1000, 0.96, 1.05),
    ],
)
def test_factors_of_a_standard_deviation(runs, low, high):
    assert pw.sd_factors(runs) == (pytest.approx(low, abs=0.006), pytest.approx(high, rel=0.01))
    tails = scipy.stats.chi2.ppf([0.975, 0.025], runs - 1)
    assert pw.sd_factors(runs) == pytest.approx(tuple(np.sqrt((runs - 1) / tails)))


def test_rare_runs():
    # Wilks 95/95, 99/95, 99.9/95
    assert [runs_for_tail(rate) for rate in (0.05, 0.01, 0.001)] == [
        59,
        299,
        2995,
    ]
    assert runs_for_tail(0.01, confidence=0.99) == 459
    for rate in (0.5, 0.05, 0.001):
        runs = runs_for_tail(rate)
        assert (1 - rate) ** runs <= 0.05 < (1 - rate) ** (runs - 1)
        assert pw.tail_bound(0, runs) <= rate < pw.tail_bound(0, runs - 1)
    assert pw.tail_bound(0, 10_000) == pytest.approx(3.0e-4, rel=0.01)  # the rule of three
    for events, runs in [(1, 20), (3, 50), (19, 20)]:
        assert pw.tail_bound(events, runs) == pytest.approx(
            proportion_confint(events, runs, alpha=0.1, method="beta")[1]
        )
    assert pw.tail_bound(5, 5) == 1.0


# -- the interval of disagreement ----------------------------------------------------------------


@pytest.mark.parametrize("clusters", [1, 4])
def test_at_its_own_size_a_pilot_has_the_interval_that_is_printed(clusters):
    answer_RP = answers(12, 120)
    answer_RP[3, ::2] = -1
    answer_RP[7] = -1
    cluster_P = np.arange(120) // clusters
    found, spread = (
        disagreement(answer_RP, cluster_P=cluster_P),
        pw.pilot_spread(answer_RP, cluster_P=cluster_P),
    )
    assert (
        spread.value == found.value
        and spread.parts.n_runs == 11
        and spread.parts.n_clusters == 120 // clusters
    )
    assert pw.interval_half_width(spread, 11) == pytest.approx((found.high - found.low) / 2)


@pytest.mark.parametrize("half_width", [0.08, 0.05, 0.045])
def test_the_planned_replicas_are_the_fewest_that_do(half_width):
    spread = pw.pilot_spread(answers(12, 300, a=18, b=2, seed=1))
    size = pw.replicas_for_half_width(spread, half_width)
    assert size.replicas > MIN_REPLICAS and size.prompts == 300 and size.note == ""
    assert (
        pw.interval_half_width(spread, size.replicas)
        <= half_width
        < pw.interval_half_width(spread, size.replicas - 1)
    )


def test_where_only_more_prompts_help_it_says_so_and_how_many():
    spread = pw.pilot_spread(answers(12, 60))
    size = pw.replicas_for_half_width(spread, 0.02)
    assert "more prompts" in size.note and size.prompts > 60
    assert (
        pw.interval_half_width(spread, 100_000)
        > 0.02
        >= pw.interval_half_width(spread, size.replicas, size.prompts)
    )
    assert pw.replicas_for_half_width(spread, 0.02, size.prompts).replicas == size.replicas
    assert pw.replicas_for_half_width(spread, 1e-5) == pw.Size(
        None, 60, "no number of replicas and prompts up to 100,000 is enough"
    )


def test_pilots_that_say_little():
    assert pw.pilot_spread(answers(2, 50)) is None and pw.pilot_spread(answers(5, 1)) is None
    assert pw.pilot_spread(np.full((6, 9), -1)) is None
    same = pw.pilot_spread(np.zeros((6, 40), dtype=int))
    size = pw.replicas_for_half_width(same, 0.05)
    assert same.value == 0 and "says nothing of how many replicas" in size.note
    assert pw.interval_half_width(same, 6) == pytest.approx(pw.tail_bound(0, 40) / 2)
    few = pw.replicas_for_half_width(same, 0.01)
    assert few.prompts > 40 and pw.tail_bound(0, few.prompts) / 2 <= 0.01
    assert pw.runs_for_disagreement_ratio(same, 0.5, 4).replicas is None
    assert pw.detectable_disagreement_ratio(same, 100, 4) is None


def test_a_guess_is_the_sum_of_its_three_parts():
    spread = pw.guessed_spread(0.2, 500, run_spread=0.3, prompt_spread=0.1)
    parts = spread.error_of(40)
    assert parts.runs == pytest.approx(
        4 * 0.06**2 / 40 + 0.16 / (40 * 500)
    ) and parts.prompts == pytest.approx(0.1**2 / 500)
    assert spread.guessed and spread.squares == pytest.approx(0.04 + 0.01)
    assert pw.guessed_spread(0.2, 500).parts.prompts == pytest.approx(0.2 * 0.8 / 4 / 500)


def test_an_interval_alone_gives_its_own_width_back():
    found = disagreement(answers(20, 400))
    spread = pw.interval_spread(found)
    assert spread.guessed and pw.interval_half_width(spread, 20) == pytest.approx(
        (found.high - found.low) / 2, rel=1e-6
    )
    assert pw.interval_half_width(spread, 80) < pw.interval_half_width(spread, 20)
    nothing = disagreement(np.zeros((8, 100), dtype=int))
    assert pw.interval_half_width(pw.interval_spread(nothing), 8) == pytest.approx(nothing.high / 2)
    assert pw.interval_spread(Estimate(None, None, None, 0.95, 8, 0, "none", False)) is None


# -- ratios of disagreement ----------------------------------------------------------------------


def mitigated(
    groups: int, prompts: int, k: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list]:
    latent_RP = latents(np.random.default_rng(seed), groups * k, prompts, 2.0, 4.0, 0.7)
    return (
        combine(latent_RP, k, "mean"),
        (latent_RP > 0).astype(np.int64),
        list(np.arange(groups * k).reshape(groups, k)),
    )


def test_a_pilot_with_the_mitigation_knows_the_width_that_is_printed():
    mitigated_GP, baseline_RP, members = mitigated(20, 200, 4)
    parts = pw.ratio_spread(mitigated_GP, baseline_RP, members)
    found = disagreement_ratio(mitigated_GP, baseline_RP, members)
    assert parts.half_width(0.95) == pytest.approx(math.log(found.high / found.low) / 2, rel=0.05)
    # replicas in any order, and one that is in no group
    order = np.random.default_rng(1).permutation(80)
    shuffled = np.vstack([np.zeros((1, 200), dtype=int), baseline_RP[order]])
    moved = [1 + np.argsort(order)[group] for group in members]
    assert pw.ratio_spread(mitigated_GP, shuffled, moved) == pytest.approx(parts)
    assert pw.ratio_spread(mitigated_GP[:2], baseline_RP, members[:2]) is None
    assert pw.ratio_spread(np.zeros_like(mitigated_GP), baseline_RP, members) is None


@pytest.mark.parametrize("ratio", [0.9, 0.7, 0.5, 1.5])
def test_a_ratio_is_found_by_the_fewest_groups_that_reach_it(ratio):
    parts = TwoWay(0.02, 0.0005, 10, 100)
    size = pw.runs_for_disagreement_ratio(parts, ratio, 4)
    assert size.replicas % 4 == 0 and size.replicas >= 4 * MIN_GROUPS

    def reach(groups: int) -> float:
        runs, prompts = 0.02 * 10 / groups, 0.0005
        t_runs, t_prompts = scipy.stats.t.ppf(0.975, [groups - 1, 99])
        power = float(scipy.stats.norm.ppf(0.8))
        return math.sqrt(t_runs**2 * runs + t_prompts**2 * prompts) + power * math.sqrt(
            runs + prompts
        )

    groups = size.replicas // 4
    assert reach(groups) <= abs(math.log(ratio)) and (
        groups == MIN_GROUPS or reach(groups - 1) > abs(math.log(ratio))
    )
    if ratio < 1:
        assert ratio - 0.011 <= pw.detectable_disagreement_ratio(parts, size.replicas, 4)
    assert pw.detectable_disagreement_ratio(parts, 4 * MIN_GROUPS - 1, 4) is None


def test_single_replicas_alone_plan_for_a_mitigation_and_say_when_prompts_are_too_few():
    spread = pw.pilot_spread(answers(20, 100))
    sizes = [pw.runs_for_disagreement_ratio(spread, ratio, 4).replicas for ratio in (0.8, 0.7, 0.5)]
    assert sizes == sorted(sizes, reverse=True) and all(size % 4 == 0 for size in sizes)
    found = pw.detectable_disagreement_ratio(spread, sizes[1], 4)
    assert 0.69 <= found < 0.8
    close = pw.runs_for_disagreement_ratio(TwoWay(0.02, 0.01, 10, 100), 0.9, 4)
    assert "more prompts" in close.note and close.prompts > 100


@pytest.mark.parametrize(
    "call",
    [
        lambda: pw.runs_for_ratio(1.0),
        lambda: pw.runs_for_ratio(-1.0),
        lambda: pw.runs_for_ratio(0.5, power=1.0),
        lambda: pw.runs_for_ratio(0.5, kurtosis=1.0),
        lambda: runs_for_tail(0.0),
        lambda: pw.tail_bound(3, 2),
        lambda: pw.sd_factors(1),
        lambda: pw.guessed_spread(0.0, 100),
        lambda: pw.guessed_spread(0.1, 1),
        lambda: pw.replicas_for_half_width(pw.guessed_spread(0.1, 100), 0.5),
    ],
)
def test_what_cannot_be_asked(call):
    with pytest.raises(ValueError):
        call()


# -- by simulation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "run_sd", "half_width"), [(18, 2, 0.7, 0.035), (6, 2, 1.0, 0.035)]
)
def test_planned_replicas_give_the_planned_width(a, b, run_sd, half_width):
    rng = np.random.default_rng(5)
    got = [got_half_width(rng, 40, 500, half_width, a, b, run_sd) for _ in range(30)]
    assert np.median([g for g in got if g is not None]) == pytest.approx(1.0, abs=0.15)


def test_a_good_guess_gives_the_planned_width():
    size = pw.replicas_for_half_width(
        pw.guessed_spread(0.193, 500, run_spread=0.244, prompt_spread=0.1), 0.025
    )
    widths = [disagreement(answers(size.replicas, 500, seed, 0.7, 18, 2)) for seed in range(20)]
    assert np.median([(e.high - e.low) / 2 for e in widths]) == pytest.approx(0.025, rel=0.15)


def test_planned_groups_have_the_planned_power():
    rng = np.random.default_rng(6)
    truth = disagreement_ratio(*mitigated(500, 2000, 4, seed=9)).value
    got = [got_power(rng, truth, 30, 40, 4, trials=20) for _ in range(15)]
    assert np.mean([g for g in got if g is not None]) == pytest.approx(0.8, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["normal", "laplace"])
@pytest.mark.parametrize("ratio", [0.4, 0.5, 0.7])
def test_planned_runs_have_the_planned_power_of_variances(ratio, draw):
    assert got_power_of_variances(
        np.random.default_rng(7), ratio, draw, trials=2000
    ) == pytest.approx(0.8, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("k", "prompts", "world"),
    [(4, 50, {}), (2, 50, {}), (2, 60, {"mean": 3.0, "prompt_sd": 1.0}), (5, 50, {"how": "vote"})],
)
def test_planned_groups_have_the_planned_power_in_many_worlds(k, prompts, world):
    rng = np.random.default_rng(8)
    settings = {"mean": 2.0, "prompt_sd": 4.0, "how": "mean"} | world
    latent_RP = latents(rng, 400 * k, 2000, settings["mean"], settings["prompt_sd"], 0.7)
    arms = (
        combine(latent_RP, k, settings["how"]),
        (latent_RP > 0).astype(np.int64),
        list(np.arange(400 * k).reshape(400, k)),
    )
    got = [
        got_power(rng, disagreement_ratio(*arms).value, 40, prompts, k, trials=25, **world)
        for _ in range(40)
    ]
    assert np.mean([g for g in got if g is not None]) == pytest.approx(0.8, abs=0.05)


# -- the plan ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results():
    world = World(24, failed=(5,)).mitigate("vote", 4, vote)
    return analyse(world.table, world.prompts, world.designs)


def test_a_plan_from_results_alone(results, tmp_path):
    save_results(tmp_path / "results.json", results)
    found = plan(tmp_path / "results.json")
    assert plan(tmp_path).conditions == found.conditions
    (condition,) = found.conditions
    assert (condition.replicas, condition.failed, [s.shift for s in condition.shifts]) == (
        23,
        1,
        ["typical", "near", "far"],
    )
    far = condition.shifts[2]
    printed = results.conditions[0].single.cell("far").disagreement
    assert (
        far.guessed
        and far.disagreement == printed.value
        and far.half_width == pytest.approx((printed.high - printed.low) / 2, rel=1e-6)
    )
    assert (
        [goal.target for goal in far.goals] == [0.05, 0.02, 0.01]
        and far.comparisons[0].label == "vote-k4"
        and far.comparisons[0].assumed
    )
    assert condition.tail == pw.tail_bound(0, 23) and found.rare == ((0.01, 299), (0.001, 2995))
    json.dumps(found.to_dict(), allow_nan=False)
    text = plan_text(found)
    assert (
        "far, 80 prompts or clusters: two runs differ on" in text and "299 show one of 1 %" in text
    )
    assert "vote-k4*: finds a ratio of" in text and "*: the pilot has too few groups" in text
    needed = far.goals[2]
    assert (
        f"; {needed.replicas:,} on {needed.prompts:,} prompts" in text
        and "more replicas do not help on the prompts of the pilot" in text
    )
    assert max(map(len, text.splitlines())) <= 140


def test_a_pilot_without_any_difference_plans_for_prompts_alone(tmp_path):
    world = World(8, flips=0.0)
    save_results(tmp_path / "results.json", analyse(world.table, world.prompts, world.designs))
    found = plan(tmp_path)
    far = found.conditions[0].shifts[2]
    assert far.disagreement == 0 and [goal.prompts for goal in far.goals] == [80, 80, 149]
    assert "no two runs differed, which says nothing of how many replicas" in plan_text(found)


def test_a_plan_from_a_guess():
    found = plan(guess=Guess(0.1, 1000, replicas=20), targets=Targets(k=4, ratios=(0.5,)))
    (shift,) = found.conditions[0].shifts
    assert shift.disagreement == 0.1 and shift.guessed and shift.comparisons[0].k == 4
    spread = pw.guessed_spread(0.1, 1000)
    assert [goal.replicas for goal in shift.goals] == [
        pw.replicas_for_half_width(spread, half).replicas for half in (0.05, 0.02, 0.01)
    ]
    assert shift.variance_goals[0].replicas == 67
    assert "plan from a guess" in plan_text(found)


def test_too_small_a_pilot_is_told(tmp_path):
    world = World(2)
    save_results(tmp_path / "results.json", analyse(world.table, world.prompts, world.designs))
    found = plan(tmp_path / "results.json")
    assert all(
        shift.disagreement is None and "too few to plan from" in shift.note
        for shift in found.conditions[0].shifts
    )
    assert "too few to plan from" in plan_text(found)


def test_nothing_to_plan_from(tmp_path):
    with pytest.raises(PlanError, match="neither a finished run nor a results.json"):
        plan(tmp_path)
    with pytest.raises(PlanError, match="one of them"):
        plan()
    with pytest.raises(PlanError, match="one of them"):
        plan(tmp_path, guess=Guess(0.1, 10))
