"""Laws of the statistics, and published numbers that they reproduce. That the intervals cover is in
test_statistics_coverage.py.
"""

import itertools
import json
import math
import time

import numpy as np
import pytest
import scipy.stats
from worlds import simulate
from worlds.core import spread_world
from worlds.unkind import unkind_world

from toolkit import statistics as st
from toolkit.statistics.intervals import TwoWay, leave_one_out_variance, logit_interval, two_way
from toolkit.statistics.pairs import count_pairs, leave_group_out, leave_one_out
from toolkit.statistics.prompt_averages import prompt_means

TABLES = {
    "few codes": (7, 40, 3, 0.0),
    "few codes, missing cells": (7, 40, 3, 0.3),
    "free text": (9, 25, 10_000, 0.1),
    "one code": (5, 20, 1, 0.2),
    "mostly missing": (4, 30, 2, 0.7),
}


def table(name: str) -> np.ndarray:
    replicas, prompts, codes, missing = TABLES[name]
    rng = np.random.default_rng(len(name))
    answer_RP = rng.integers(0, codes, (replicas, prompts))
    answer_RP[:, ::5] = answer_RP[0, ::5]
    return np.where(rng.random(answer_RP.shape) < missing, st.MISSING, answer_RP)


def over_pairs(answer_RP: np.ndarray) -> np.ndarray:
    """d_P by the definition: all pairs, one by one."""
    differ_P, pairs_P = np.zeros(answer_RP.shape[1]), np.zeros(answer_RP.shape[1])
    for one_P, two_P in itertools.combinations(answer_RP, 2):
        both_P = (one_P >= 0) & (two_P >= 0)
        pairs_P += both_P
        differ_P += both_P & (one_P != two_P)
    return np.where(pairs_P > 0, differ_P / np.maximum(pairs_P, 1), np.nan)


def arms(
    groups=12, k=4, prompts=150, seed=0, run_sd=0.7
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    latent_RP = (
        rng.normal(2, 3, prompts)
        + run_sd * rng.standard_normal((groups * k, 1))
        + rng.logistic(size=(groups * k, prompts))
    )
    mitigated_GP = (latent_RP.reshape(groups, k, prompts).mean(axis=1) > 0).astype(np.int64)
    return (
        mitigated_GP,
        (latent_RP > 0).astype(np.int64),
        list(np.arange(groups * k).reshape(groups, k)),
    )


def same(one: st.Estimate, two: st.Estimate) -> bool:
    return all(
        a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12))
        for a, b in zip(one.to_dict().values(), two.to_dict().values(), strict=True)
    )


# --- the fast formulas are the definitions ------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_disagreement_counts_every_pair(name):
    np.testing.assert_allclose(
        st.prompt_disagreement(table(name)), over_pairs(table(name)), atol=1e-12
    )


@pytest.mark.parametrize("name", TABLES)
def test_leaving_a_replica_out_is_recomputing_without_it(name):
    answer_RP = table(name)
    direct_RP = [over_pairs(np.delete(answer_RP, r, axis=0)) for r in range(len(answer_RP))]
    np.testing.assert_allclose(leave_one_out(count_pairs(answer_RP)), direct_RP, atol=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_leaving_a_group_out_is_recomputing_without_it(name):
    answer_RP = table(name)
    groups = [np.array([0, 2]), np.array([1]), np.array([3])]
    direct_GP = [over_pairs(np.delete(answer_RP, group, axis=0)) for group in groups]
    np.testing.assert_allclose(
        leave_group_out(answer_RP, count_pairs(answer_RP), groups), direct_GP, atol=1e-12
    )


def test_leaving_marks_out_is_recomputing_without_them():
    rng = np.random.default_rng(0)
    mark_RP = np.where(rng.random((6, 30)) < 0.3, np.nan, rng.integers(0, 2, (6, 30)))
    groups = [np.array([0, 4]), np.array([1]), np.array([2, 3, 5])]
    mean_P, left_GP = prompt_means(mark_RP, groups)
    direct = [_nanmean(np.delete(mark_RP, group, axis=0)) for group in groups]
    np.testing.assert_allclose(mean_P, _nanmean(mark_RP))
    np.testing.assert_allclose(left_GP, direct)


def _nanmean(mark_RP: np.ndarray) -> np.ndarray:
    count_P = np.isfinite(mark_RP).sum(axis=0)
    return np.where(count_P > 0, np.nansum(mark_RP, axis=0) / np.maximum(count_P, 1), np.nan)


def test_leaving_a_score_out_of_a_variance_is_recomputing_without_it():
    score_N = 1e6 + np.random.default_rng(1).normal(size=12)
    direct_N = [np.delete(score_N, i).var(ddof=1) for i in range(12)]
    np.testing.assert_allclose(leave_one_out_variance(score_N), direct_N, rtol=1e-6)


def test_variance_of_a_mean_is_that_of_its_runs_and_its_prompts():
    """Additive table run + prompt without noise: V_R = var(runs)/N and V_P = var(prompts)/M, to
    rounding.
    """
    rng = np.random.default_rng(2)
    run_R, prompt_P = rng.normal(size=8), rng.normal(size=50)
    value_RP = run_R[:, None] + prompt_P
    left_RP = (value_RP.sum(axis=0) - value_RP) / 7
    parts = two_way(value_RP.mean(axis=0), left_RP, np.arange(50))
    assert parts.runs == pytest.approx(run_R.var(ddof=1) / 8)
    assert parts.prompts == pytest.approx(prompt_P.var(ddof=1) / 50)


def test_noise_of_single_answers_is_counted_once():
    """Cells of pure noise: the variance of the grand mean is sigma^2 / NM, which runs and prompts
    would each claim in full.
    """
    rng = np.random.default_rng(3)
    totals = []
    for _ in range(300):
        cell_RP = rng.normal(size=(10, 40))
        parts = two_way(cell_RP.mean(axis=0), (cell_RP.sum(axis=0) - cell_RP) / 9, np.arange(40))
        totals.append(parts.runs)
        assert parts.prompts < 1 / 400  # what is left of 1/400 +- its noise
    assert np.mean(totals) == pytest.approx(1 / 400, rel=0.1)


@pytest.mark.parametrize("function", [st.disagreement, st.accuracy])
def test_copies_of_prompts_in_one_cluster_add_no_information(function):
    rng = np.random.default_rng(4)
    once_RP = rng.integers(0, 2, (12, 60))
    copies_RP, cluster_P = np.repeat(once_RP, 5, axis=1), np.repeat(np.arange(60), 5)
    once, clustered, naive = (
        function(once_RP),
        function(copies_RP, cluster_P=cluster_P),
        function(copies_RP),
    )
    assert (clustered.value, clustered.low, clustered.high) == pytest.approx(
        (once.value, once.low, once.high)
    )
    assert naive.high - naive.low < clustered.high - clustered.low


# --- published numbers --------------------------------------------------------------------------


def test_fleiss_textbook_table():
    """14 raters, 10 subjects, 5 categories: mean P_i .37802, so D = .62198. Replicas are the
    raters, prompts the subjects.
    """
    count_PV = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    answer_RP = np.array([np.repeat(np.arange(5), counts) for counts in count_PV]).T
    assert st.disagreement(answer_RP).value == pytest.approx(0.62198, abs=5e-6)


def test_efron_law_school_jackknife():
    lsat = np.array([576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594])
    gpa = np.array(
        [3.39, 3.30, 2.81, 3.03, 3.44, 3.07, 3.00, 3.43, 3.36, 3.13, 3.12, 2.74, 2.76, 2.88, 2.96]
    )
    left_out = [np.corrcoef(np.delete(lsat, i), np.delete(gpa, i))[0, 1] for i in range(15)]
    assert np.corrcoef(lsat, gpa)[0, 1] == pytest.approx(0.7764, abs=5e-5)
    assert math.sqrt(st.jackknife_variance(np.array(left_out))) == pytest.approx(0.1425, abs=5e-5)


def test_clopper_pearson_and_the_rule_of_three():
    assert st.failure_rate(0, 10).high == pytest.approx(0.3085, abs=5e-5)
    assert st.failure_rate(10, 10).low == pytest.approx(1 - 0.3085, abs=5e-5)
    # Wilks: 99.9 % of runs at 95 % confidence
    assert st.zero_event_bound(2995) <= 0.001 < st.zero_event_bound(2994)
    assert st.zero_event_bound(59) <= 0.05 < st.zero_event_bound(58)


def test_jackknife_error_of_a_mean_is_s_over_root_n():
    x = np.random.default_rng(5).normal(size=20)
    assert st.jackknife_variance((x.sum() - x) / 19) == pytest.approx(x.var(ddof=1) / 20)


def test_resampling_replicas_with_their_copies_is_low_by_one_in_n():
    """Why replicas are not bootstrapped: a duplicate agrees with itself, so the mean is (1 - 1/N) *
    D.
    """
    rng = np.random.default_rng(6)
    answer_RP = rng.integers(0, 3, (8, 60))
    resampled = [
        st.prompt_disagreement(answer_RP[rng.integers(0, 8, 8)]).mean() for _ in range(3000)
    ]
    assert np.mean(resampled) == pytest.approx(
        (1 - 1 / 8) * st.disagreement(answer_RP).value, rel=0.01
    )


# --- planted truths -----------------------------------------------------------------------------


def test_identical_replicas_have_no_disagreement_up_to_a_stated_bound():
    estimate = st.disagreement(np.tile(np.arange(100), (10, 1)))
    assert (estimate.value, estimate.low, estimate.high) == (
        0.0,
        0.0,
        pytest.approx(1 - 0.05 ** (1 / 100)),
    )
    assert estimate.conclusive and "10 replicas" in estimate.note


def test_the_bound_of_no_disagreement_counts_clusters():
    estimate = st.disagreement(np.zeros((10, 100), dtype=int), cluster_P=np.arange(100) // 5)
    assert estimate.high == pytest.approx(st.zero_event_bound(20))


@pytest.mark.parametrize(("share", "prompts"), [(0.01, 300), (0.03, 100), (0.06, 50)])
def test_the_bound_of_no_disagreement_holds_whatever_few_prompts_split_the_replicas(share, prompts):
    """A share of the prompts splits all replicas in two, on the others all agree: the hardest case
    for a bound, since more replicas see nothing more. When no split prompt is drawn the bound must
    still be above D = share / 2 in at least 95 % of suites.
    """
    rng = np.random.default_rng(7)
    held = []
    for _ in range(400):
        answer_RP = rng.integers(0, 2, (20, prompts)) * (rng.random(prompts) < share)
        held.append(st.disagreement(answer_RP).high >= share / 2)
    assert np.mean(held) > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 400)


def test_near_zero_the_interval_is_no_tighter_than_at_zero():
    """One flip more than none must not shrink the bound: prompts that the suite happens to lack are
    as unknown as before.
    """
    flipped_RP = np.zeros((40, 500), dtype=int)
    none = st.disagreement(flipped_RP)
    flipped_RP[3, 7] = 1
    one = st.disagreement(flipped_RP)
    assert 0 < one.low < one.value < none.high <= one.high
    assert st.accuracy(1.0 - flipped_RP).low <= 1 - none.high


def test_coin_flips_disagree_as_coin_flips_do():
    estimate = st.disagreement(np.random.default_rng(8).integers(0, 2, (20, 500)))
    assert estimate.low <= 0.5 <= estimate.high and estimate.high - estimate.low < 0.03


def test_replicas_that_always_differ():
    estimate = st.disagreement(np.tile(np.arange(10)[:, None], (1, 100)))
    assert (estimate.value, estimate.high) == (1.0, 1.0) and estimate.low == pytest.approx(
        0.05 ** (1 / 100)
    )


def test_independent_errors_have_no_excess_and_a_planted_run_effect_is_found():
    rng = np.random.default_rng(9)
    p_P, run_R = rng.uniform(0.2, 0.8, 400), 0.05 * rng.standard_normal(200)
    noise_only = st.accuracy_spread((rng.random((200, 400)) < p_P).astype(float))
    assert noise_only.excess.low <= 1 <= noise_only.excess.high
    planted = st.accuracy_spread((rng.random((200, 400)) < p_P + run_R[:, None]).astype(float))
    truth = 0.05**2
    assert planted.distribution_variance.low <= truth <= planted.distribution_variance.high
    assert planted.excess.low > 1.5


def test_distribution_variance_is_the_mean_over_all_ways_to_halve_the_suite():
    rng = np.random.default_rng(10)
    correct_RP = rng.integers(0, 2, (9, 8)).astype(float)
    halves = [np.array(half) for half in itertools.combinations(range(8), 4)]
    covariance = [
        np.cov(correct_RP[:, half].mean(axis=1), np.delete(correct_RP, half, axis=1).mean(axis=1))[
            0, 1
        ]
        for half in halves
    ]
    assert st.accuracy_spread(correct_RP).distribution_variance.value == pytest.approx(
        np.mean(covariance)
    )


def test_spread_is_noise_and_covariance():
    """Var(accuracy) = c / 2n + (n-1)/n * mean covariance between prompts, exactly."""
    correct_RP = np.random.default_rng(11).integers(0, 2, (15, 40)).astype(float)
    spread = st.accuracy_spread(correct_RP)
    assert spread.sd.value == pytest.approx(correct_RP.mean(axis=1).std(ddof=1))
    assert spread.noise**2 == pytest.approx(
        st.disagreement(correct_RP.astype(int)).value / (2 * 40)
    )
    assert spread.sd.value**2 == pytest.approx(
        spread.noise**2 + 39 / 40 * spread.distribution_variance.value
    )


# --- mitigation against baseline ----------------------------------------------------------------


def test_pairing_beats_treating_the_arms_as_independent():
    """Members share their fate with their group, so errors of the two arms cancel: with the members
    of other groups the interval is wider on average.
    """
    widths = []
    for seed in range(30):
        mitigated_GP, baseline_RP, members = arms(seed=seed, run_sd=2.0)
        shuffled = [members[(g + 5) % 12] for g in range(12)]
        widths.append(
            [
                e.high - e.low
                for e in (
                    st.accuracy_change(mitigated_GP, baseline_RP, m) for m in (members, shuffled)
                )
            ]
        )
    paired, unpaired = np.mean(widths, axis=0)
    assert paired < 0.8 * unpaired


def test_a_mitigation_that_changes_nothing():
    _, baseline_RP, _ = arms()
    single = [np.array([r]) for r in range(len(baseline_RP))]
    ratio, difference = (
        f(baseline_RP, baseline_RP, single)
        for f in (st.disagreement_ratio, st.disagreement_difference)
    )
    assert ratio.value == pytest.approx(1) and difference.value == pytest.approx(0)
    assert ratio.conclusive and "no change" in ratio.note
    effect = st.effect_size(baseline_RP, baseline_RP, np.zeros(150, dtype=int), single)
    assert effect.value == pytest.approx(1) and effect.low > st.EFFECT_KEPT


def test_a_mitigation_that_collapses_to_the_base_is_caught():
    mitigated_GP, baseline_RP, members = arms()
    base_P = np.zeros(150, dtype=int)
    collapsed_GP = np.tile(base_P, (12, 1))
    effect = st.effect_size(collapsed_GP, baseline_RP, base_P, members)
    assert effect.value == 0 and effect.high < 0.1 < st.EFFECT_KEPT and effect.conclusive
    ratio = st.disagreement_ratio(collapsed_GP, baseline_RP, members)  # and it is perfectly stable
    assert ratio.value == 0 and 0 < ratio.high < 1 and ratio.conclusive
    half_GP = np.where(np.arange(150) % 2, mitigated_GP, base_P)
    half = st.effect_size(half_GP, baseline_RP, base_P, members)
    assert half.high < st.EFFECT_KEPT and half.conclusive
    marks = st.accuracy_effect_size(
        half_GP.astype(float), baseline_RP.astype(float), base_P.astype(float), members
    )
    # the base is always wrong here, so both count the same answers
    assert marks.value == pytest.approx(half.value)


def test_no_effect_to_keep():
    mitigated_GP, baseline_RP, members = arms()
    effect = st.effect_size(
        np.zeros_like(mitigated_GP), np.zeros_like(baseline_RP), np.zeros(150, dtype=int), members
    )
    assert effect.value is None and not effect.conclusive and effect.note
    unclear = st.accuracy_effect_size(
        mitigated_GP.astype(float), baseline_RP.astype(float), baseline_RP[0].astype(float), members
    )
    assert unclear.low is None and not unclear.conclusive


def test_ratios_without_disagreement_in_an_arm():
    mitigated_GP, baseline_RP, members = arms()
    neither = st.disagreement_ratio(mitigated_GP * 0, baseline_RP * 0, members)
    only_mitigated = st.disagreement_ratio(mitigated_GP, baseline_RP * 0, members)
    for estimate in (neither, only_mitigated):
        assert estimate.value is None and not estimate.conclusive and estimate.note
    difference = st.disagreement_difference(mitigated_GP * 0, baseline_RP * 0, members)
    assert difference.value == 0 and difference.low == -difference.high < 0


def test_one_group_that_holds_all_disagreement_is_no_evidence():
    mitigated_GP, baseline_RP, members = arms()
    mitigated_GP[:] = mitigated_GP[0]
    mitigated_GP[5, :3] = 1 - mitigated_GP[5, :3]
    ratio = st.disagreement_ratio(mitigated_GP, baseline_RP, members)
    assert 0 < ratio.low < ratio.value / 3 and ratio.high > 3 * ratio.value


def test_prompts_that_can_only_disagree_in_one_arm():
    mitigated_GP, baseline_RP, members = arms()
    mitigated_GP[:, :50], baseline_RP[:, 50:100] = 0, 0
    ratio = st.disagreement_ratio(mitigated_GP, baseline_RP, members)
    assert ratio.low < ratio.value < ratio.high


def test_replicas_outside_all_groups_take_no_part():
    mitigated_GP, baseline_RP, members = arms()
    spare_RP = np.concatenate([baseline_RP, 7 + np.zeros((3, 150), dtype=int)])
    for function in (st.disagreement_ratio, st.disagreement_difference):
        assert same(
            function(mitigated_GP, spare_RP, members), function(mitigated_GP, baseline_RP, members)
        )


def test_needed_groups_resolve_the_effect():
    """The promise of `needed`: at that many groups an effect of the observed size has an interval
    on one side, at one fewer not.
    """
    parts = TwoWay(runs=0.04, prompts=0.001, n_runs=8, n_clusters=200)
    needed = parts.runs_needed(0.2, 0.95, 9)

    def grown(n: int) -> TwoWay:
        return TwoWay(0.04 * 8 / n, 0.001, n, 200)

    assert grown(needed).half_width(0.95) < 0.2 <= grown(needed - 1).half_width(0.95)
    assert parts.runs_needed(0.01, 0.95, 9) is None  # the prompts alone are too few


def test_inconclusive_ratios_name_their_remedy():
    mitigated_GP, baseline_RP, members = arms(groups=6, k=2, prompts=20, seed=3)
    estimates = [
        f(mitigated_GP, baseline_RP, members)
        for f in (st.disagreement_ratio, st.disagreement_difference)
    ]
    for estimate in estimates:
        assert estimate.conclusive or estimate.needed or estimate.note


# --- invariance ---------------------------------------------------------------------------------


def test_order_and_names_do_not_matter():
    rng = np.random.default_rng(12)
    mitigated_GP, baseline_RP, members = arms()
    baseline_RP[rng.random(baseline_RP.shape) < 0.05] = st.MISSING
    expected = (
        st.disagreement(baseline_RP),
        st.disagreement_ratio(mitigated_GP, baseline_RP, members),
    )
    rows, columns, order = rng.permutation(48), rng.permutation(150), rng.permutation(12)
    position = np.argsort(rows)
    renamed_RP = np.where(baseline_RP < 0, st.MISSING, 17 - 5 * baseline_RP)[rows][:, columns]
    moved = [position[members[g]] for g in order]
    assert same(st.disagreement(renamed_RP), expected[0])
    assert same(
        st.disagreement_ratio(17 - 5 * mitigated_GP[order][:, columns], renamed_RP, moved),
        expected[1],
    )


def test_a_run_without_answers_is_no_run():
    answer_RP = np.random.default_rng(13).integers(0, 2, (9, 60))
    failed_RP = np.insert(answer_RP, 4, st.MISSING, axis=0)
    assert same(st.disagreement(failed_RP), st.disagreement(answer_RP))
    marks_RP = np.where(failed_RP < 0, np.nan, failed_RP)
    assert same(st.accuracy(marks_RP), st.accuracy(answer_RP))
    assert same(st.accuracy_spread(marks_RP).excess, st.accuracy_spread(answer_RP).excess)
    mitigated_GP, baseline_RP, members = arms()
    without = np.delete(np.arange(12), 4)
    mitigated_GP[4] = st.MISSING
    assert same(
        st.disagreement_ratio(mitigated_GP, baseline_RP, members),
        st.disagreement_ratio(mitigated_GP[without], baseline_RP, [members[g] for g in without]),
    )


def test_a_prompt_without_answers_is_no_prompt():
    answer_RP = np.random.default_rng(14).integers(0, 2, (9, 60))
    wider_RP = np.insert(answer_RP, 7, st.MISSING, axis=1)
    assert same(st.disagreement(wider_RP), st.disagreement(answer_RP))
    assert same(st.accuracy(np.where(wider_RP < 0, np.nan, wider_RP)), st.accuracy(answer_RP))


def test_variance_ratio_knows_units_and_direction():
    rng = np.random.default_rng(15)
    one, two = rng.normal(size=40), rng.normal(size=50)
    forth, back = st.variance_ratio(one, 3 * two), st.variance_ratio(3 * two, one)
    assert (forth.value, forth.low, forth.high) == pytest.approx(
        (1 / back.value, 1 / back.high, 1 / back.low)
    )
    assert same(st.variance_ratio(100 + 7 * one, 21 * two - 4), forth)


def test_an_interval_on_the_logit_scale_stays_inside():
    for share, half in itertools.product((1e-9, 0.01, 0.5, 0.999), (1e-6, 0.3, 1e6)):
        low, high = logit_interval(share, half)
        assert 0 <= low <= share * (1 + 1e-12) and share * (1 - 1e-12) <= high <= 1


# --- what cannot be had, and what cannot be meant -----------------------------------------------


def test_two_replicas_are_inconclusive():
    estimate = st.disagreement(np.random.default_rng(16).integers(0, 2, (2, 100)))
    assert (
        estimate.value is not None
        and not estimate.conclusive
        and estimate.needed == st.MIN_REPLICAS
    )


def test_very_few_clusters_are_inconclusive():
    answer_RP = np.random.default_rng(17).integers(0, 2, (20, 100))
    assert not st.disagreement(answer_RP, cluster_P=np.arange(100) // 50).conclusive
    one = st.disagreement(answer_RP, cluster_P=np.zeros(100, dtype=int))
    assert one.low is None and not one.conclusive


def test_scores_without_spread_or_with_failures():
    equal, normal = np.ones(40), np.random.default_rng(18).normal(size=40)
    assert st.variance_ratio(equal, normal).value is None
    assert not st.variance_ratio(
        np.where(np.arange(40) == 3, np.nan, normal), 9 * normal
    ).conclusive
    spread = st.accuracy_spread(np.ones((12, 50)))
    assert (
        spread.sd.value == 0
        and spread.sd.high is None
        and not spread.sd.conclusive
        and spread.noise is None
    )


def test_nothing_answered_is_no_crash():
    nothing_RP = np.full((6, 20), st.MISSING)
    marks_RP = np.full((6, 20), np.nan)
    pairs = [np.array([0]), np.array([1]), np.array([2])]
    estimates = [
        st.disagreement(nothing_RP),
        st.accuracy(marks_RP),
        st.accuracy_spread(marks_RP).sd,
        st.disagreement_ratio(nothing_RP[:3], nothing_RP, pairs),
        st.disagreement_difference(nothing_RP[:3], nothing_RP, pairs),
        st.accuracy_change(marks_RP[:3], marks_RP, pairs),
        st.effect_size(nothing_RP[:3], nothing_RP, nothing_RP[0], pairs),
        st.accuracy_effect_size(marks_RP[:3], marks_RP, marks_RP[0], pairs),
    ]
    assert all(e.value is None and e.low is None and not e.conclusive and e.note for e in estimates)


def test_no_number_is_ever_nan_and_all_fits_json():
    """Degenerate tables of every kind, all functions: figures are finite or None."""
    rng = np.random.default_rng(19)
    for replicas, prompts, codes, missing in itertools.product(
        (2, 3, 6), (1, 2, 12), (1, 2, 99), (0.0, 0.5, 0.9)
    ):
        answer_RP = rng.integers(0, codes, (2 * replicas, prompts))
        answer_RP[rng.random(answer_RP.shape) < missing] = st.MISSING
        mitigated_GP, members = (
            answer_RP[:replicas],
            list(np.arange(2 * replicas).reshape(replicas, 2)),
        )
        marks_RP = np.where(answer_RP < 0, np.nan, answer_RP % 2)
        results = [
            st.disagreement(answer_RP),
            st.accuracy(marks_RP),
            st.accuracy_spread(marks_RP),
            st.disagreement_ratio(mitigated_GP, answer_RP, members),
            st.disagreement_difference(mitigated_GP, answer_RP, members),
            st.accuracy_change(marks_RP[:replicas], marks_RP, members),
            st.effect_size(mitigated_GP, answer_RP, answer_RP[0], members),
            st.accuracy_effect_size(marks_RP[:replicas], marks_RP, marks_RP[0], members),
            st.variance_ratio(marks_RP[:, 0], marks_RP[:, -1]),
        ]
        for result in results:
            text = json.dumps(result.to_dict(), allow_nan=False)
            assert "NaN" not in text
            if isinstance(result, st.Estimate) and None not in (
                result.low,
                result.value,
                result.high,
            ):
                assert result.low - 1e-9 <= result.value <= result.high + 1e-9


def test_encode():
    codes = st.encode([["a", "b", None], ["b", "b", "a"]])
    assert codes.tolist() == [[0, 1, -1], [1, 1, 0]]


MEMBERS = [np.array([0, 1]), np.array([2, 3])]
GOOD = np.zeros((4, 6), dtype=int)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: st.disagreement(GOOD[:1]), "at least 2"),
        (lambda: st.disagreement(GOOD[0]), "replicas, prompts"),
        (lambda: st.disagreement(GOOD.astype(float)), "integer"),
        (lambda: st.disagreement(GOOD - 2), "negative code"),
        (lambda: st.disagreement(GOOD, cluster_P=[1, 2]), "6 prompts"),
        (lambda: st.disagreement(GOOD, level=95), "level"),
        (lambda: st.accuracy(GOOD + 2.0), "between 0"),
        (lambda: st.accuracy_spread(GOOD[:1]), "at least 2"),
        (lambda: st.disagreement_ratio(GOOD[:2], GOOD, MEMBERS[:1]), "2 mitigated rows"),
        (
            lambda: st.disagreement_ratio(GOOD[:2], GOOD, [np.array([0, 1]), np.array([1, 2])]),
            "disjoint",
        ),
        (
            lambda: st.disagreement_ratio(GOOD[:2], GOOD, [np.array([0, 1]), np.array([2, 9])]),
            "outside",
        ),
        (lambda: st.disagreement_ratio(GOOD[:2, :3], GOOD, MEMBERS), "same prompts"),
        (lambda: st.effect_size(GOOD[:2], GOOD, GOOD[0, :3], MEMBERS), "same prompts"),
        (lambda: st.failure_rate(3, 2), "failed runs"),
        (lambda: st.variance_ratio(np.zeros(3), np.zeros(4), paired=True), "paired"),
        (lambda: st.encode([["a"], ["a", "b"]]), "one entry per prompt"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, says):
    with pytest.raises(ValueError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_cost_is_linear_in_the_cells():
    rng = np.random.default_rng(20)
    for codes in (4, 10**6):
        answer_RP = rng.integers(0, codes, (1000, 600))
        start = time.perf_counter()
        st.disagreement(answer_RP)
        assert time.perf_counter() - start < 1.5  # about 0.1 s on one idle core


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(
            spread_world("sd", 30, 100, 6, 2, 0.7),
            id="75 %, SD of 11 points, near the end of the scale",
        ),
        pytest.param(spread_world("sd", 20, 200, 20, 1, 1.0), id="95 %, a long tail below"),
        pytest.param(
            unkind_world("sd", 20, 100, kinds=0.2), id="a fifth of the runs is of another kind"
        ),
        pytest.param(unkind_world("sd", 40, 100, kinds=0.1), id="a tenth is"),
    ],
)
def test_a_spread_with_a_long_tail_is_claimed_and_covered(world):
    """A guard that refuses samples which show the tail would leave those that lack it, and they
    look narrow.
    """
    tally = simulate(world, 200, seed=0)
    assert tally.conclusive > 190 and tally.coverage_conclusive >= 0.91


@pytest.mark.parametrize("n_runs", [3, 4])
def test_no_interval_is_narrower_than_the_prompts_alone_make_it(n_runs):
    """Three runs that differ from each other equally often look as if they brought no error."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        answer_RP = (rng.random((n_runs, 30)) < 0.8).astype(np.int64)
        d_P = np.array([len(set(answers)) > 1 for answers in answer_RP.T])
        if not d_P.any():
            continue
        estimate = st.disagreement(answer_RP)
        shares_P = np.array([2 * k * (n_runs - k) for k in answer_RP.sum(0)])
        shares_P = shares_P / (n_runs * (n_runs - 1))
        half = scipy.stats.t.ppf(0.975, 29) * shares_P.std(ddof=1) / math.sqrt(30)
        low, high = logit_interval(shares_P.mean(), half)
        assert estimate.low <= low * (1 + 1e-9) and estimate.high >= high * (1 - 1e-9)


@pytest.mark.parametrize("number", [0.3, 1 / 3, 1e-3, 7.7, -2e9])
def test_equal_numbers_make_no_interval(number):
    """Their mean is off by rounding, so their SD is not 0: an interval of no width claims all."""
    rng = np.random.default_rng(0)
    equal_R, varied_R = np.full(20, number), number + abs(number) * rng.random(20)
    for estimate in (
        st.run_mean(equal_R),
        st.run_sd(equal_R),
        st.run_mean_change(equal_R, np.full(20, 2 * number)),
        st.run_mean_change(varied_R + 0.1 * number, varied_R, paired=True),
        st.score_mean(np.tile(equal_R, (5, 1))),
    ):
        assert estimate.low is None and estimate.high is None and not estimate.conclusive
        assert estimate.value is not None and estimate.note
    assert st.run_sd(equal_R).value == 0.0
