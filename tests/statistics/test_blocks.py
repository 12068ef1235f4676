"""Tables of any size are worked on in blocks: the results are the same, and so is the memory, but
for the table itself.
"""

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from toolkit import statistics as st
from toolkit.statistics import arrays
from toolkit.statistics.arrays import as_correct
from toolkit.statistics.intervals import share_interval, two_way
from toolkit.statistics.outliers import Differing, odd_replicas
from toolkit.statistics.pairs import HASH, PairShares, _occurrences, count_pairs, leave_one_out
from toolkit.statistics.prompt_averages import prompt_means

CLUSTERS = {
    "none": None,
    "sorted": np.arange(60) // 5,
    "scattered": np.random.default_rng(0).integers(0, 13, 60),
    "one holds most": np.where(np.arange(60) % 6 == 0, np.arange(60), 99),
}


def table(codes: int, missing: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    answer_RP = np.where(
        rng.random((13, 60)) < 0.6, rng.integers(0, codes, 60), rng.integers(0, codes, (13, 60))
    )
    answer_RP[rng.random(answer_RP.shape) < missing] = st.MISSING
    answer_RP[5] = st.MISSING  # a run without an answer
    answer_RP[:, 11] = st.MISSING
    return answer_RP


def figures(result) -> list:
    values = result.to_dict().values()
    return [x for value in values for x in (value.values() if isinstance(value, dict) else [value])]


@pytest.mark.parametrize("clusters", CLUSTERS)
@pytest.mark.parametrize("codes", [2, 10**9])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_size_of_a_block_changes_nothing(monkeypatch, clusters, codes, missing):
    answer_RP = table(codes, missing)
    correct_RP = np.where(answer_RP < 0, np.nan, answer_RP % 2)
    options = {"cluster_P": CLUSTERS[clusters]}

    def all_figures() -> list:
        found = [
            st.disagreement(answer_RP, **options),
            st.accuracy(correct_RP, **options),
            st.accuracy_spread(correct_RP, **options),
        ]
        return [x for result in found for x in figures(result)] + st.prompt_disagreement(
            answer_RP
        ).tolist()

    whole = all_figures()
    for cells in (1, 13 * 5, 13 * 17):
        monkeypatch.setattr(arrays, "BLOCK", cells)
        for x, y in zip(all_figures(), whole, strict=True):
            assert x == y or x == pytest.approx(y, rel=1e-9, abs=1e-14, nan_ok=True)


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_intervals_are_those_of_the_whole_table(monkeypatch, clusters):
    rng = np.random.default_rng(5)
    answer_RP = (rng.random((13, 60)) < 0.02).astype(np.int64)
    answer_RP[rng.random(answer_RP.shape) < 0.5] = st.MISSING
    # a failed run, which answered more prompts than the others
    answer_RP[5] = rng.integers(2, 4, 60)
    answer_RP[5, ::2] = answer_RP[7] = st.MISSING
    rows = np.delete(np.arange(13), 7)
    pairs, mark_RP = (
        count_pairs(answer_RP[rows]),
        np.where(answer_RP[rows] < 0, np.nan, answer_RP[rows] % 2),
    )
    name_P = np.arange(60) if CLUSTERS[clusters] is None else CLUSTERS[clusters]
    rows_of = Differing.rows
    assert rows[odd_replicas(pairs)].tolist() == [5]
    means = prompt_means(mark_RP)
    shares = PairShares(12)
    shares.add(answer_RP[rows])
    parts = (
        two_way(pairs.d_P, leave_one_out(pairs), name_P).and_pairs(shares.variance(12)),
        two_way(*means, name_P),
    )
    ends = [
        share_interval(value_P.mean(), part, 0.95)
        for value_P, part in zip((pairs.d_P, means[0]), parts, strict=True)
    ]
    monkeypatch.setattr(arrays, "BLOCK", 13 * 4)
    seen = []
    monkeypatch.setattr(Differing, "rows", lambda sums: seen.append(sums) or rows_of(sums))
    disagreement = st.disagreement(answer_RP, cluster_P=CLUSTERS[clusters])
    accuracy = st.accuracy(
        np.where(answer_RP < 0, np.nan, answer_RP % 2), cluster_P=CLUSTERS[clusters]
    )
    for estimate, (low, high) in zip((disagreement, accuracy), ends, strict=True):
        assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))
    at_once = Differing(12).add(pairs)
    np.testing.assert_allclose(seen[0].agreeing_R, at_once.agreeing_R)
    assert (
        seen[0].answered_R.tolist() == at_once.answered_R.tolist()
        and seen[0].n_prompts == at_once.n_prompts == 60
    )
    assert (
        "rows 5 differ" in disagreement.note
        and disagreement.n_replicas == accuracy.n_replicas == 12
    )


@pytest.mark.parametrize("clusters", CLUSTERS)
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_size_of_a_block_changes_no_contrast(monkeypatch, clusters, missing):
    b_RP, a_RP, options = (
        table(2, missing),
        table(2, missing, seed=1),
        {"cluster_P": CLUSTERS[clusters]},
    )
    right_b, right_a = (np.where(x < 0, np.nan, x % 2) for x in (b_RP, a_RP))
    groups, base_P = [[8, 1], [2, 12], [5, 0], [6, 11], [7, 10], [4, 9]], table(2, 0.0, seed=2)[0]

    def all_figures() -> list:
        found = [
            f(b_RP, a_RP, paired=p, **options)
            for f in (st.population_ratio, st.population_difference)
            for p in (False, True)
        ]
        found += [
            st.population_accuracy_change(right_b, right_a, paired=p, **options)
            for p in (False, True)
        ]
        found += [
            f(b_RP[:6], a_RP, groups, **options)
            for f in (st.disagreement_ratio, st.disagreement_difference)
        ]
        found.append(st.effect_size(b_RP[:6], a_RP, base_P, groups, **options))
        found.append(st.accuracy_change(right_b[:6], right_a, groups, **options))
        found.append(st.accuracy_effect_size(right_b[:6], right_a, base_P % 2, groups, **options))
        return [x for result in found for x in figures(result)]

    whole = all_figures()
    for cells in (1, 26 * 5, 26 * 17):
        monkeypatch.setattr(arrays, "BLOCK", cells)
        for x, y in zip(all_figures(), whole, strict=True):
            assert x == y or x == pytest.approx(y, rel=1e-8, abs=1e-14, nan_ok=True)


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_two_way_is_its_definition(monkeypatch, clusters):
    """V_R by deleting runs, V_P between clusters, V_RP by deleting runs cluster by cluster; nan:
    the prompt keeps its value.
    """
    rng = np.random.default_rng(4)
    value_P = rng.normal(size=60)
    left_JP = value_P + 0.05 * rng.normal(size=(13, 60))
    left_JP[rng.random(left_JP.shape) < 0.2] = np.nan
    name_P = np.arange(60) if CLUSTERS[clusters] is None else CLUSTERS[clusters]
    whole_JP = np.where(np.isnan(left_JP), value_P, left_JP)
    names = np.unique(name_P)
    n = len(names)
    runs = st.jackknife_variance(whole_JP.mean(axis=1))
    sum_CJ = np.array([whole_JP[:, name_P == name].sum(axis=1) / 60 for name in names])
    share_C = np.array([np.mean(name_P == name) for name in names])
    deviation_C = np.array(
        [(value_P[name_P == name] - value_P.mean()).sum() / 60 for name in names]
    )
    between = (n - 1) / n * np.sum((deviation_C / (1 - share_C)) ** 2)
    own_C = np.array([st.jackknife_variance(sum_J) for sum_J in sum_CJ]) - share_C**2 * runs
    noise = (n - 1) / n * np.sum(own_C / (1 - share_C) ** 2)
    # the weights are those of the mean without each cluster
    without_C = [value_P[name_P != name].mean() for name in names]
    assert between == pytest.approx(
        (n - 1) / n * np.sum((np.array(without_C) - value_P.mean()) ** 2)
    )
    for cells in (13 * 4, 1 << 18):
        monkeypatch.setattr(arrays, "BLOCK", cells)
        parts = two_way(value_P, left_JP, name_P)
        assert (parts.runs, parts.n_runs, parts.n_clusters) == (pytest.approx(runs), 13, n)
        assert parts.prompts == pytest.approx(max(0.0, between - max(0.0, noise)))


@pytest.mark.parametrize("clusters", CLUSTERS)
def test_spread_is_its_definition_with_missing_marks_too(monkeypatch, clusters):
    correct_RP = np.where(table(2, 0.3) < 0, np.nan, table(2, 0.3))
    used_P, row_R = np.delete(np.arange(60), 11), np.delete(np.arange(13), 5)
    mark_RP = correct_RP[np.ix_(row_R, used_P)]
    name_P = np.arange(59) if CLUSTERS[clusters] is None else CLUSTERS[clusters][used_P]
    deviation_RP = mark_RP - np.nanmean(mark_RP, axis=0)
    scaled_RP = np.nan_to_num(deviation_RP) * (59 / np.isfinite(mark_RP).sum(axis=1))[:, None]
    sd = scaled_RP.mean(axis=1).std(ddof=1)
    noise = np.sqrt(np.nanvar(mark_RP, axis=0, ddof=1).sum()) / 59
    covariance_PP = np.cov(scaled_RP.T)
    covariance = covariance_PP[name_P[:, None] != name_P].mean()
    for cells in (13 * 4, 1 << 18):
        monkeypatch.setattr(arrays, "BLOCK", cells)
        spread = st.accuracy_spread(correct_RP, cluster_P=CLUSTERS[clusters])
        assert (spread.sd.value, spread.noise, spread.excess.value) == pytest.approx(
            (sd, noise, sd / noise)
        )
        assert spread.distribution_variance.value == pytest.approx(covariance)


def test_marks_may_have_any_dtype():
    answer_RP = table(2, 0.2)
    float_RP = np.where(answer_RP < 0, np.nan, answer_RP)
    full_RP = np.abs(answer_RP) % 2
    for function in (st.accuracy, st.accuracy_spread):
        assert (
            function(answer_RP.astype(np.int8))
            == function(float_RP)
            == function(float_RP.astype(np.float32))
        )
        assert (
            function(full_RP.astype(bool))
            == function(full_RP.astype(np.uint8))
            == function(full_RP.astype(float))
        )
    np.testing.assert_array_equal(as_correct(answer_RP.astype(np.int16), "marks"), float_RP)
    with pytest.raises(ValueError, match="between 0"):
        # only integers write a missing mark as -1
        st.accuracy(np.where(np.isnan(float_RP), -1.0, float_RP))
    with pytest.raises(ValueError, match="between 0"):
        st.accuracy(answer_RP.astype(np.int8) * 2)


@pytest.mark.parametrize("span", [3, 10**4, 2**62])
def test_occurrences_of_sparse_keys(span):
    key_N = np.random.default_rng(1).integers(0, span, 20_000)
    _, inverse_N, count_N = np.unique(key_N, return_inverse=True, return_counts=True)
    np.testing.assert_array_equal(_occurrences(key_N), count_N[inverse_N])


def test_occurrences_of_keys_that_share_their_slots():
    """Multiples of the inverse of the hash's factor are the worst there is: all of them fall into
    the first slot.
    """
    inverse = pow(HASH, -1, 2**64)
    key_N = np.array(3 * [key for k in range(40_000) if (key := k * inverse % 2**64) < 2**63])
    start = time.process_time()
    np.testing.assert_array_equal(_occurrences(key_N), np.full(len(key_N), 3))
    # 0.01 s; one key a round would take a minute
    assert len(key_N) > 50_000 and time.process_time() - start < 1


def test_free_text_has_no_price_in_the_number_of_codes():
    answer_RP = np.random.default_rng(2).integers(0, 2**31 - 1, (30, 40)).astype(np.int32)
    answer_RP[:, ::2] = answer_RP[0, ::2]
    pairs = count_pairs(answer_RP)
    np.testing.assert_array_equal(pairs.d_P, np.arange(40) % 2)


def numacc4() -> np.ndarray:
    """NIST StRD, univariate summary statistics, NumAcc4 (higher difficulty): mean 10000000.2,
    standard deviation 0.1, both exact.
    """
    return np.array([10000000.2, *[10000000.1, 10000000.3] * 500])


def test_variances_keep_their_digits_far_from_zero():
    """A variance from sums of squares would be off by its own size here, and so would one carried
    carelessly from block to block.
    """
    x_N = numacc4()
    n, m = len(x_N), 2 * arrays.BLOCK // 1001
    left_N = (x_N.sum() - x_N) / (n - 1)
    as_runs = two_way(np.full(m, x_N.mean()), np.tile(left_N[:, None], m), np.arange(m))
    # a left-out mean has 4 digits behind those of 1e7 / 1000
    assert as_runs.runs * n == pytest.approx(0.1**2, rel=1e-4)
    as_prompts = two_way(x_N, np.tile(x_N, (1000, 1)), np.arange(n))
    assert (as_prompts.runs, as_prompts.prompts * n) == (0.0, pytest.approx(0.1**2, rel=1e-7))
    as_clusters = two_way(
        np.repeat(x_N, 3), np.tile(np.repeat(x_N, 3), (400, 1)), np.repeat(np.arange(n), 3)
    )
    assert as_clusters.prompts * n == pytest.approx(0.1**2, rel=1e-7)


@pytest.mark.parametrize(
    "function", [st.disagreement, st.accuracy, st.accuracy_spread, st.prompt_disagreement]
)
def test_memory_is_that_of_the_table_and_a_block(function):
    """A table of 32 MB in int8 would be 256 MB in float64, and every intermediate table as much
    again.
    """
    table_RP = np.random.default_rng(3).integers(0, 2, (4000, 8000)).astype(np.int8)
    function(table_RP[:20, :20])  # imports
    tracemalloc.start()
    function(table_RP)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6


CONTRAST = """
import resource, sys
import numpy as np
from toolkit import statistics as st
rng = np.random.default_rng(0)
b_RP, a_RP = (rng.integers(0, 2, (2000, PROMPTS)).astype(np.int32) for _ in range(2))
st.population_ratio(b_RP[:9, :20], a_RP[:9, :20])  # imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for paired in (False, True):
    st.population_ratio(b_RP, a_RP, paired=paired)
    st.population_difference(b_RP, a_RP, paired=paired)
    st.population_accuracy_change(b_RP, a_RP, paired=paired)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_contrasts_need_little_more_memory_than_their_tables():
    """Two tables of 2,000 x 3,000 in int32 are 46 MiB; the differences that a contrast looks at
    would be 46 MiB a table in float64.
    """
    code = CONTRAST.replace("PROMPTS", "3000")
    grown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert float(grown) < 40


def test_a_spread_without_which_nothing_differs_has_no_interval():
    """Only one replica ever differs from another on a prompt, and each answered other prompts: no
    figure is nan, and none is made up.
    """
    correct_RP = np.full((12, 40), np.nan)
    for r in range(12):
        correct_RP[r, 3 * r : 3 * r + 4] = 1.0
    correct_RP[0] = np.arange(40) % 2
    excess = st.accuracy_spread(correct_RP).excess
    assert excess.value is not None and excess.low is None and not excess.conclusive and excess.note


def test_an_accuracy_that_all_but_one_share_to_rounding_has_no_interval():
    correct_RP = np.zeros((4, 54))
    correct_RP[0, :36] = correct_RP[1, :18] = correct_RP[2, 18:36] = correct_RP[3, 36:] = 1.0
    for estimate in (st.accuracy_spread(correct_RP).sd, st.accuracy_spread(correct_RP).excess):
        assert estimate.low is None and not estimate.conclusive


@pytest.mark.parametrize("answers", [3, 500])
def test_shares_of_pairs_are_counted_pair_by_pair(answers):
    """With products of matrices where answers are few, else one by one; in blocks as at once."""
    answer_RP = np.random.default_rng(0).integers(-1, answers, (30, 70))
    shares = PairShares(30)
    shares.add(answer_RP[:, :20])
    shares.add(answer_RP[:, 20:])
    counted = [[np.mean((x != y)[(x >= 0) & (y >= 0)]) for y in answer_RP] for x in answer_RP]
    np.testing.assert_allclose(shares.shares(), counted)
