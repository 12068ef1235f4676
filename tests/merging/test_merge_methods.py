"""Laws of every method of the table, on the changes of one module; each has a dense float64
reference, written here from its paper.
"""

import inspect
import math
import re
from pathlib import Path

import numpy as np
import peft.utils.merge_utils
import pytest
import scipy.optimize
import scipy.stats
import torch
from helpers.reference_merges import (
    ALONG,
    REFERENCES,
    ids,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.merge_methods import merge_tensors

from toolkit.merging import combine, find_method
from toolkit.merging.apply_method import load_method
from toolkit.merging.coefficients import geometric_median
from toolkit.model import delta
from toolkit.recipe import Mitigation
from toolkit.recipe.merge_methods import MERGE_METHODS, SHARE, MergeMethod, Parameter

MERGEKIT = [
    "ties",
    "dare_linear",
    "task_arithmetic",
    "sce",
    "karcher",
    "multislerp",
    "model_stock",
    "breadcrumbs",
    "linear",
    "ram",
]
PLAIN = [
    "mean",
    "trimmed_mean",
    "geometric_median",
    "model_stock",
    "shrink",
    "task_arithmetic",
    "karcher",
    "multislerp",
    "greedy_soup",
    "sce",
    *(
        f"mergekit:{name}"
        for name in ("linear", "sce", "karcher", "multislerp", "model_stock", "ram")
    ),
]
AT_DENSITY_ONE = [
    "ties",
    "dare",
    "della",
    "breadcrumbs",
    "mergekit:ties",
    "mergekit:dare_linear",
    "mergekit:breadcrumbs",
    "mergekit:task_arithmetic",
]
LAWFUL = [(name, {}) for name in PLAIN] + [
    (name, {} if name.endswith("arithmetic") else {"density": 1.0}) for name in AT_DENSITY_ONE
]
SPARSE = [
    ("ties", {"density": 0.3}),
    ("dare", {"density": 0.3}),
    ("della", {"density": 0.4, "epsilon": 0.2}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.1}),
    ("sce", {"select_topk": 0.5}),
    ("shrink", {"t": 0.7}),
    ("task_arithmetic", {"lambda": 0.5}),
    ("mergekit:ties", {"density": 0.3}),
    ("mergekit:dare_ties", {"density": 0.3}),
    ("mergekit:della", {"density": 0.4}),
]
ANY = LAWFUL + SPARSE
# take no weights
UNWEIGHTED = (
    "mergekit:sce",
    "mergekit:karcher",
    "mergekit:model_stock",
    "mergekit:ram",
)
NEED_TWO = ("mergekit:model_stock",)


def merged(method, factors, parameters=None, **options):
    A, B = combine(method, factors, **options, **(parameters or {}))
    return B @ A


@st.composite
def changes(draw, least=1, most=6, dtypes=(torch.float64, torch.float32, torch.bfloat16)):
    """The factors of K adapters of one module around a common change; ranks, scales and dtypes of
    their own.
    """
    O, I = draw(st.integers(2, 9)), draw(st.integers(2, 9))
    K = draw(st.integers(least, most))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    common = torch.randn(2, I, generator=generator), torch.randn(O, 2, generator=generator)
    factors = []
    for _ in range(K):
        r = draw(st.integers(1, 4))
        A = torch.cat([common[0], 0.7 * torch.randn(r, I, generator=generator)])
        B = torch.cat([common[1], 0.7 * torch.randn(O, r, generator=generator)], dim=1)
        dtype = draw(st.sampled_from(dtypes))
        factors.append(
            (
                A.to(dtype),
                B.to(dtype),
                draw(st.sampled_from([0.25, 1.0, 2.0])) * draw(st.sampled_from([1.0, 1e-2])),
            )
        )
    return factors


def weights_for(factors, seed):
    return (0.2 + torch.rand(len(factors), generator=torch.Generator().manual_seed(seed))).tolist()


def gap(got, want):
    return float((got - want).norm() / want.norm())


def near(got, want, factors, share):
    """Equal up to a share of the largest change that went in: what is shrunk to nothing has no
    relative error.
    """
    return float((got - want).norm()) <= share * max(delta.norm(one) for one in factors)


def few(method, K):
    return method in NEED_TWO and K < 2


law = settings(max_examples=12, deadline=None)


def test_the_rows_of_the_table_name_functions_that_take_their_parameters():
    for name, row in MERGE_METHODS.items():
        method = load_method(name)
        function = method.coefficients or method.entries
        assert (method.coefficients is None) != (method.entries is None), name
        taken = {
            key.removesuffix("_")
            for part in (function, method.sources)
            for key in inspect.signature(part).parameters
        }
        assert set(row.parameters) <= taken, name
        assert (
            row.gram in ("", "module", "adapter")
            and row.holds
            and row.needs
            and row.paper.startswith("https://")
        ), name
    assert {name for name, _ in LAWFUL if name in MERGE_METHODS} | set(ALONG) == set(MERGE_METHODS)


# #
# -------------------------------------------------------------------------------------------------
# laws


@pytest.mark.parametrize("case", LAWFUL, ids=ids)
@given(one=changes(most=1), K=st.integers(1, 7), seed=st.integers(0, 999))
@law
def test_copies_merge_to_the_copy(case, one, K, seed):
    method, parameters = case
    if few(method, K):
        return
    factors = one * K
    weights = None if method in UNWEIGHTED else weights_for(factors, seed)
    assert gap(merged(method, factors, parameters, weights=weights), delta.dense(one[0])) < 1e-6


@pytest.mark.parametrize("case", ANY, ids=ids)
@given(factors=changes(least=2), seed=st.integers(0, 999))
@law
def test_order_does_not_matter(case, factors, seed):
    method, parameters = case
    weights, names = weights_for(factors, seed), [f"r{k}" for k in range(len(factors))]
    order = torch.randperm(len(factors), generator=torch.Generator().manual_seed(seed)).tolist()
    if method.startswith("mergekit:d"):
        return  # its masks are drawn in the order of the inputs, which merge_adapters sorts
    first = merged(method, factors, parameters, weights=weights, ids=names)
    again = merged(
        method,
        [factors[k] for k in order],
        parameters,
        weights=[weights[k] for k in order],
        ids=[names[k] for k in order],
    )
    assert near(again, first, factors, 1e-9)


@pytest.mark.parametrize("case", ANY, ids=ids)
@given(factors=changes(dtypes=(torch.float64,)), seed=st.integers(0, 999))
@law
def test_gauge_does_not_matter(case, factors, seed):
    method, parameters = case
    if few(method, len(factors)) or len(factors) == 1 and "select_topk" in parameters:
        return
    generator = torch.Generator().manual_seed(seed)
    turned = []
    for A, B, scale in factors:
        r = A.shape[0]
        G = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))[0] * (
            0.5 + torch.rand(r, generator=generator)
        )
        turned.append((G @ A, B @ torch.linalg.inv(G), scale))
    assert near(
        merged(method, turned, parameters), merged(method, factors, parameters), factors, 1e-7
    )


@pytest.mark.parametrize("factor", [2.0, -1.0, 1e-3, 1e-5, -1e-7])
@pytest.mark.parametrize("case", ANY, ids=ids)
@given(factors=changes())
@settings(max_examples=4, deadline=None)
def test_a_factor_of_all_changes_is_a_factor_of_the_result(case, factor, factors):
    """Homogeneity and negation: no threshold in units of the weights."""
    method, parameters = case
    if few(method, len(factors)) or len(factors) == 1 and "select_topk" in parameters:
        return
    if method == "mergekit:ram" and factor < 0:
        return  # tiny entries aside it keeps signs; its epsilon is compared with |change|
    scaled = [(A, B, factor * scale) for A, B, scale in factors]
    assert near(
        merged(method, scaled, parameters),
        factor * merged(method, factors, parameters),
        scaled,
        1e-6,
    )


@pytest.mark.parametrize("case", [case for case in ANY if case[0] not in UNWEIGHTED], ids=ids)
@given(factors=changes(least=2, most=2))
@law
def test_only_ratios_of_weights_count(case, factors):
    method, parameters = case
    a = merged(method, factors, parameters, weights=[2, 1])
    assert near(merged(method, factors, parameters, weights=[10, 5]), a, factors, 1e-9)


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, row in MERGE_METHODS.items()
        if row.kind == "coefficients" and name not in ALONG
    ],
)
@given(factors=changes(least=2), seed=st.integers(0, 999))
@law
def test_the_result_stays_in_the_span(method, factors, seed):
    """What works by inner products returns a combination of the changes."""
    flat = torch.stack([delta.dense(one).flatten() for one in factors]).T
    got = merged(method, factors, weights=weights_for(factors, seed)).flatten()
    best = torch.linalg.lstsq(flat, got, driver="gelsd").solution
    assert float((flat @ best - got).norm()) <= 1e-7 * max(delta.norm(one) for one in factors)


@pytest.mark.parametrize("method", ["dare", "della"])
def test_masks_depend_on_seed_and_name_alone(method):
    """An adapter's mask is the same alone and among others, in any place; another seed, name or
    module has another one.
    """
    generator = torch.Generator().manual_seed(0)
    D = (torch.randn(4, 30, generator=generator), torch.randn(20, 4, generator=generator), 1.0)
    zero = (torch.zeros(1, 30), torch.zeros(20, 1), 1.0)
    options = {"density": 0.5}
    alone = merged(method, [D], options, ids=["7:m"]) != 0
    torch.manual_seed(123)
    among = merged(method, [zero, D, zero], options, ids=["1:m", "7:m", "9:m"]) != 0
    assert torch.equal(alone, among)
    for other in ({"ids": ["8:m"]}, {"ids": ["7:n"]}, {"ids": ["7:m"], "seed": 1}):
        assert not torch.equal(merged(method, [D], options, **other) != 0, alone)


def test_random_methods_leave_the_global_state_alone():
    factors = [(torch.randn(2, 6), torch.randn(5, 2), 1.0) for _ in range(3)]
    for method in ("dare", "della", "mergekit:dare_ties", "mergekit:della"):
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = merged(method, factors, {"density": 0.5})
        assert torch.equal(torch.get_rng_state(), before), method
        torch.manual_seed(2)
        assert torch.equal(merged(method, factors, {"density": 0.5}), first), method
        assert not torch.equal(merged(method, factors, {"density": 0.5, "seed": 1}), first), method


# #
# -------------------------------------------------------------------------------------------------
# references


def test_every_method_has_a_reference():
    assert set(REFERENCES) | set(ALONG) == set(MERGE_METHODS)


@pytest.mark.parametrize("method", REFERENCES)
@given(factors=changes(), seed=st.integers(0, 999))
@settings(max_examples=12, deadline=None)
def test_equals_the_reference(method, factors, seed):
    reference, parameters = REFERENCES[method]
    if method == "sce" and len(factors) == 1:
        return
    w = weights_for(factors, seed)
    D = torch.stack([delta.dense(one) for one in factors]).numpy()
    want = reference(D, np.array(w) / sum(w), **parameters)
    got = merged(method, factors, parameters, weights=w).numpy()
    if (
        method == "geometric_median"
    ):  # the reference is a search, whose steps are those of the largest change
        assert np.linalg.norm(got - want) <= 1e-5 * max(np.linalg.norm(one) for one in D)
    else:
        assert np.linalg.norm(got - want) <= 1e-7 * max(np.linalg.norm(want), 1e-9)


@given(factors=changes(least=3))
@settings(max_examples=25, deadline=None)
def test_no_point_has_a_smaller_sum_of_distances(factors):
    """The geometric median by its definition: conditions of first order, or better than all
    neighbours and all members.
    """
    x = torch.stack([delta.dense(one).flatten() for one in factors])
    c = geometric_median(x @ x.T, torch.full((len(x),), 1 / len(x), dtype=torch.float64))
    cost = lambda m: float((x - m).norm(dim=1).sum())  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    rivals = [*x, x.mean(0)]
    rivals += [
        c @ x
        + s * float(x.norm()) * torch.randn(x.shape[1], generator=generator, dtype=torch.float64)
        for s in (1e-1, 1e-3, 1e-5)
    ]
    assert all(cost(c @ x) <= cost(m) * (1 + 1e-9) for m in rivals)


@pytest.mark.parametrize("trim", [0.1, 0.2, 0.4])
def test_trimmed_mean_is_that_of_scipy_where_whole_values_are_cut(trim):
    generator = torch.Generator().manual_seed(0)
    factors = [
        (torch.randn(3, 7, generator=generator), torch.randn(5, 3, generator=generator), 1.0)
        for _ in range(10)
    ]
    D = torch.stack([delta.dense(one) for one in factors]).numpy()
    np.testing.assert_allclose(
        merged("trimmed_mean", factors, {"trim": trim}),
        scipy.stats.trim_mean(D, trim, axis=0),
        rtol=1e-12,
        atol=1e-13,
    )


def test_trimmed_mean_in_blocks(monkeypatch):
    factors = [(torch.randn(3, 7), torch.randn(5, 3), 1.0) for _ in range(6)]
    whole = merged("trimmed_mean", factors)
    monkeypatch.setattr("toolkit.merging.entrywise.BLOCK", 1)  # row by row
    torch.testing.assert_close(merged("trimmed_mean", factors), whole, rtol=0, atol=1e-12)


# #
# -------------------------------------------------------------------------------------------------
# statistics


def replicas(n, generator, noise=1.0):
    """A common change of rank 2 and independent noise of rank 3 in each."""
    O = I = 14
    S = (torch.randn(2, I, generator=generator), torch.randn(O, 2, generator=generator), 1.0)
    out = []
    for _ in range(n):
        N = (
            torch.randn(3, I, generator=generator),
            noise * torch.randn(O, 3, generator=generator),
            1.0,
        )
        A, B = delta.concat([S, N], [1, 1])
        out.append((A, B, 1.0))
    return delta.dense(S), out


def test_shrink_comes_close_to_the_best_factor_and_errs_less_than_the_mean():
    """Independent groups: t estimates |S|^2 / (|S|^2 + v / K), and the squared error falls as that
    predicts. 300 groups of 4.
    """
    S, all_ = replicas(1200, torch.Generator().manual_seed(0), noise=1.5)
    single = torch.stack([delta.dense(one) for one in all_])
    v = float(single.var(0).sum())
    best = float(S.square().sum()) / (float(S.square().sum()) + v / 4)
    t, gain = [], []
    for g in range(0, 1200, 4):
        mean, shrunk = merged("mean", all_[g : g + 4]), merged("shrink", all_[g : g + 4])
        t.append(float(shrunk.norm() / mean.norm()))
        gain.append(float((mean - S).square().sum() - (shrunk - S).square().sum()))
    assert np.mean(t) == pytest.approx(best, abs=0.03) and best < 0.85
    assert np.mean(gain) > 5 * np.std(gain) / math.sqrt(len(gain)) > 0
    # error of the mean v/K, of the best shrunken mean v/K * t
    assert np.mean(gain) == pytest.approx(v / 4 * (1 - best), rel=0.15)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("mean", {}), ("dare", {"density": 0.5}), ("della", {"density": 1.0})],
)
def test_unbiased_methods_are_unbiased(method, parameters):
    """Over independent groups the projection on the truth is 1 (della at density 1 elects signs,
    which is no mean: it is not).
    """
    S, all_ = replicas(800, torch.Generator().manual_seed(1), noise=0.5)
    names = [str(k) for k in range(800)]
    groups = torch.stack(
        [
            merged(method, all_[g : g + 4], parameters, ids=names[g : g + 4])
            for g in range(0, 800, 4)
        ]
    )
    projection = (groups * S).sum((1, 2)) / S.square().sum()
    error = float(projection.std()) / math.sqrt(len(projection))
    if method == "della":
        assert float(projection.mean()) > 1 + 3 * error
    else:
        assert abs(float(projection.mean()) - 1) < 3 * error


def test_the_mean_has_the_variance_of_one_over_k_and_dare_more():
    """dare adds (1 - p) / p * E[D^2] / K to the variance of a mean of K."""
    S, all_ = replicas(1600, torch.Generator().manual_seed(2))
    names = [str(k) for k in range(1600)]
    single = torch.stack([delta.dense(one) for one in all_])
    v, power = float(single.var(0).sum()), float(single.square().mean(0).sum())
    for method, parameters, want in (
        ("mean", {}, v / 4),
        ("dare", {"density": 0.5}, (v + power) / 4),
    ):
        groups = torch.stack(
            [
                merged(method, all_[g : g + 4], parameters, ids=names[g : g + 4])
                for g in range(0, 1600, 4)
            ]
        )
        assert float(groups.var(0).sum()) == pytest.approx(want, rel=0.05), method


def test_the_median_and_the_trimmed_mean_withstand_a_broken_replica():
    """One of eight is 1000 times too large: the mean follows it, these stay within the spread of
    the others.
    """
    _, all_ = replicas(8, torch.Generator().manual_seed(3))
    broken = [(A, B, 1000.0 if k == 0 else 1.0) for k, (A, B, _) in enumerate(all_)]
    sound = merged("mean", all_[1:])
    spread = max(float((delta.dense(one) - sound).norm()) for one in all_[1:])
    assert float((merged("mean", broken) - sound).norm()) > 10 * spread
    for method in ("geometric_median", "trimmed_mean"):
        assert float((merged(method, broken) - sound).norm()) < spread, method


# #
# -------------------------------------------------------------------------------------------------
# against peft and mergekit


def dense_changes(K=5, shape=(12, 17), seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    factors = []
    for _ in range(K):
        A, B = (
            torch.randn(3, shape[1], generator=generator),
            torch.randn(shape[0], 3, generator=generator),
        )
        factors.append((A.double() + 0.5, B.double() + 0.5, scale))
    return factors, [delta.dense(one) for one in factors]


def in_mergekit(method, D, **parameters):
    zero = method not in ("linear", "karcher", "multislerp")
    return merge_tensors(
        [torch.zeros_like(D[0])] * zero + D,
        method,
        base_index=0 if zero else None,
        parameters=parameters,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.01])
def test_ties_is_that_of_mergekit_and_of_peft(density):
    factors, D = dense_changes()
    got = merged("ties", factors, {"density": density})
    assert (
        float((got - in_mergekit("ties", D, weight=[0.2] * 5, density=density)).abs().max()) < 5e-9
    )
    weights = [0.1, 0.2, 0.3, 0.15, 0.25]
    weighted = merged("ties", factors, {"density": density}, weights=weights)
    assert (
        float((weighted - in_mergekit("ties", D, weight=weights, density=density)).abs().max())
        < 5e-9
    )
    if int(density * D[0].numel()):
        want = peft.utils.merge_utils.ties([one.float() for one in D], torch.ones(5), density)
        assert gap(got.float(), want) < 1e-6


@pytest.mark.parametrize(
    ("method", "own", "parameters"),
    [
        ("linear", "mean", {"weight": [0.2] * 5}),
        ("task_arithmetic", "mean", {"weight": [0.2] * 5}),
        ("sce", "sce", {}),
        ("sce", "sce", {"select_topk": 0.4}),
        ("karcher", "karcher", {"max_iter": 100, "tol": 1e-12}),
        ("multislerp", "multislerp", {"weight": [0.2] * 5, "eps": 1e-15}),
        ("model_stock", "model_stock", {}),
        ("breadcrumbs", "breadcrumbs", {"weight": [0.2] * 5, "density": 0.7, "gamma": 0.1}),
    ],
)
def test_equals_mergekit_where_that_is_right(method, own, parameters):
    """At a scale at which its absolute thresholds do not bite."""
    factors, D = dense_changes()
    mine = {
        name: value for name, value in parameters.items() if name in MERGE_METHODS[own].parameters
    }
    assert gap(merged(own, factors, mine), in_mergekit(method, D, **parameters)) < 1e-7
    foreign = {name: value for name, value in parameters.items() if name != "weight"}
    assert (
        gap(merged(f"mergekit:{method}", factors, foreign), in_mergekit(method, D, **parameters))
        < 1e-7
    )


def test_the_thresholds_of_mergekit_are_absolute():
    """Why its methods are scaled to 1 here: on changes of entries near 1e-6, as LoRA makes them, it
    returns something else.
    """
    _, D = dense_changes()
    small = [1e-6 * one for one in D]
    wrong = {}
    for method, parameters in (("model_stock", {}), ("sce", {}), ("ram", {"epsilon": 1e-5})):
        wrong[method] = gap(
            1e6 * in_mergekit(method, small, **parameters), in_mergekit(method, D, **parameters)
        )
        factors, _ = dense_changes(scale=1e-6)
        assert (
            gap(
                1e6 * merged(f"mergekit:{method}", factors, parameters),
                in_mergekit(method, D, **parameters),
            )
            < 1e-4
        )
    assert wrong["model_stock"] > 0.5 and wrong["sce"] > 0.01 and wrong["ram"] > 0.5


def test_mergekit_dare_keeps_the_l1_norm_not_the_mean():
    """DARE divides by the density; mergekit rescales each tensor to its old L1 norm, so one outlier
    decides the factor.
    """
    x = torch.ones(1, 2000, dtype=torch.float64)
    x[0, 0] = 2000.0  # half of the L1 norm
    base = torch.zeros_like(x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = [
            merge_tensors(
                [base, x], "dare_linear", base_index=0, parameters={"weight": 1.0, "density": 0.1}
            )
            for _ in range(60)
        ]
    factor = [float(d[d > 0].min()) for d in draws]
    assert max(factor) / min(factor) > 5  # about 1.8 with the outlier and 20 without it, never 10
    factors = [(x, torch.ones(1, 1), 1.0)]
    own = [merged("dare", factors, {"density": 0.1, "seed": s}) for s in range(60)]
    assert {round(float(d[d > 0].min()), 6) for d in own} == {10.0}


def test_karcher_and_multislerp_undo_the_shrinkage_of_averaging():
    """The norm of the result is the mean norm: of independent noise nothing is averaged away."""
    generator = torch.Generator().manual_seed(0)
    noise = [
        (torch.randn(4, 40, generator=generator), torch.randn(40, 4, generator=generator), 1.0)
        for _ in range(16)
    ]
    norm = np.mean([delta.norm(one) for one in noise])
    assert float(merged("mean", noise).norm()) < 0.3 * norm
    for method in ("karcher", "multislerp"):
        assert float(merged(method, noise).norm()) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("method", ["karcher", "multislerp"])
@given(factors=changes(), seed=st.integers(0, 999))
@law
def test_multislerp_has_the_weighted_mean_of_the_norms(method, factors, seed):
    w = weights_for(factors, seed)
    norm = np.average([delta.norm(one) for one in factors], weights=w)
    assert float(merged(method, factors, weights=w).norm()) == pytest.approx(norm, rel=1e-6)


def test_slerp_takes_two():
    factors, D = dense_changes(2)
    want = merge_tensors(D, "slerp", base_index=0, parameters={"t": 0.3}, dtype=torch.float64)
    assert gap(merged("mergekit:slerp", factors, {"t": 0.3}), want) < 1e-9


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("mergekit:tie", {}, "unknown merge method 'mergekit:tie'; did you mean 'ties'?"),
        (
            "mergekit:ties",
            {"densty": 1},
            "unknown parameter 'densty' of merge method mergekit:ties; did you mean 'density'?",
        ),
        ("mergekit:ties", {"density": "many"}, "density 'many' is impossible for mergekit:ties"),
        (
            "mergekit:nearswap",
            {"t": 0.1},
            "mergekit:nearswap cannot merge changes: its t is a distance",
        ),
        ("mergekit:arcee_fusion", {}, "mergekit:arcee_fusion cannot merge changes"),
        ("mergekit:slerp", {}, "mergekit:slerp needs 't'"),
        ("mergekit:slerp", {"t": 0.5}, "mergekit:slerp: Merge method requires exactly 2 inputs"),
        ("ties", {"density": 0}, "density 0 is impossible: a share above 0 and at most 1"),
        ("dare", {"seed": -1}, "seed -1 is impossible: a whole number from 0"),
        ("della", {"density": 0.1, "epsilon": 0.2}, "epsilon 0.2 is impossible at density 0.1"),
        ("trimmed_mean", {"trim": 0.5}, "trim 0.5 is impossible: a share from 0 to below 0.5"),
        ("shrink", {"t": math.nan}, "t nan is impossible"),
        ("trimmed_mean", {"trim": "0.1"}, "trim '0.1' is impossible"),
    ],
)
def test_wrong_parameters_are_named(method, parameters, words):
    factors, _ = dense_changes(3)
    with pytest.raises(ValueError) as error:
        merged(method, factors, parameters)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_directions_that_cancel_have_no_mean():
    one = (torch.randn(2, 5), torch.randn(4, 2), 1.0)
    for method in ("karcher", "multislerp"):
        with pytest.raises(ValueError, match="cancel"):
            merged(method, [one, (*one[:2], -1.0)])


def test_sce_selects_nothing_where_nothing_varies():
    with pytest.raises(ValueError, match="nothing does; set it to 1"):
        merged("sce", dense_changes(1)[0] * 3, {"select_topk": 0.5})


def test_a_new_method_is_one_row(monkeypatch):
    def half_of_the_first(gram, weights, *, share):
        return share * torch.eye(len(weights), dtype=torch.float64)[0]

    row = MergeMethod(
        "coefficients",
        half_of_the_first,
        "https://example.org",
        {"share": Parameter(0.5, SHARE, "of the first change")},
    )
    monkeypatch.setitem(MERGE_METHODS, "first", row)
    factors, D = dense_changes(3)
    assert gap(merged("first", factors, {}), D[0] / 2) < 1e-12
    asked = Mitigation.model_validate({"merge": "first", "k": 2, "share": 0.25})
    assert asked.parameters == {"share": 0.25}
    with pytest.raises(ValueError, match="share 2 is impossible"):
        find_method("first", {"share": 2})


def test_changes_of_zero():
    zero = (torch.zeros(2, 5), torch.zeros(4, 2), 1.0)
    for method, parameters in ANY:
        got = merged(method, [zero] * 3, parameters)
        assert got.shape == (4, 5) and not got.any(), method
    assert find_method("mean", {})[1] == {}


def test_the_page_describes_every_method_and_names_tests_that_are_there():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "merging.md").read_text()
    tests = "".join(
        path.read_text()
        for path in [
            *root.glob("tests/merging/test_merge*.py"),
            root / "tests/model/test_lora_on_embeddings.py",
        ]
    )
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    described = {name for line in rows for name in re.findall(r"`([\w:]+)`", line.split("|")[1])}
    assert set(MERGE_METHODS) <= described  # their parameters are a generated block
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 15 and all(f"def {name}(" in tests for name in named)
