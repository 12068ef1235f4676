"""Laws of merging, through folders: what goes in and comes out are PEFT adapters; the references
are dense and written here.
"""

import json
import math
import shutil
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from helpers.processes import ran
from helpers.tiny import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.utils.merge_utils import ties as peft_ties

from toolkit.merging import combine, merge_adapters
from toolkit.model import delta
from toolkit.model.adapters import CONFIG, AdapterError, read_adapter, write_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPES = {
    "model.layers.0.self_attn.q_proj": (12, 12),
    "model.layers.0.self_attn.v_proj": (6, 12),
    "model.layers.1.mlp.down_proj": (12, 20),
}
# sparsifying methods obey the laws of averages at density 1; test_merge_methods.py holds these laws
# for every method of the table
LAWFUL = [
    ("mean", {}),
    ("ties", {"density": 1.0}),
    ("geometric_median", {}),
    ("mergekit:karcher", {}),
]
ANY = [
    *LAWFUL,
    ("ties", {"density": 0.3}),
    ("dare", {"density": 0.5}),
    ("shrink", {"t": 0.5}),
    ("mergekit:dare_ties", {"density": 0.5}),
]


def change(seed, r=3, shapes=None, factor=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(r, i, generator=generator),
            factor * torch.randn(o, r, generator=generator),
        )
        for name, (o, i) in (shapes or SHAPES).items()
    }


def write(path, factors, alpha=6.0, **options):
    r = next(iter(factors.values()))[0].shape[0]
    targets = sorted({name.split(".")[-1] for name in factors})
    write_adapter(
        path,
        factors,
        **{"r": r, "alpha": alpha, "target_modules": targets, "base": "org/base", **options},
    )
    return path


def population(folder, K, r=3, **options):
    return [write(folder / f"{k:05d}", change(k, r), **options) for k in range(K)]


def deltas(path):
    """dW of every module in float64, from nothing but the folder."""
    return {name: delta.dense(factors) for name, factors in read_adapter(path).items()}


def stacked(paths):
    return {name: torch.stack([deltas(path)[name] for path in paths]) for name in deltas(paths[0])}


def error(got, want):
    return max(float((got[name] - want[name]).norm() / want[name].norm()) for name in want)


def relative(paths, out, want, method="mean", **options):
    merge_adapters(paths, out, method=method, **options)
    assert set(deltas(out)) == set(want)
    return error(deltas(out), want)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# #
# -------------------------------------------------------------------------------------------------
# exactness


@st.composite
def cases(draw):
    """K adapters whose ranks, alphas, rsLoRA flags, patterns, dtypes and modules all differ."""
    members = []
    for _ in range(draw(st.integers(1, 6))):
        r = draw(st.integers(1, 8))
        options = {
            "alpha": draw(st.floats(0.5, 40)),
            "use_rslora": draw(st.booleans()),
            "dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])),
            "modules": draw(st.sets(st.sampled_from(sorted(SHAPES)), min_size=1)),
            "rank_pattern": draw(st.sampled_from([{}, {"v_proj": 2}, {"self_attn.*": 5}])),
            "alpha_pattern": draw(st.sampled_from([{}, {"q_proj": 3}, {r"layers\.1.*": 7.5}])),
        }
        members.append((r, options, draw(st.floats(0.1, 5))))
    return members


def write_case(folder, members, seed):
    """Raw PEFT folders with patterns, which write_adapter has no need to write; returns paths and
    the dense float64 changes.
    """
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    paths, dense = [], []
    for k, (r, options, _) in enumerate(members):
        path = folder / f"{k:02d}"
        path.mkdir(parents=True)
        tensors, changes = {}, {}
        for name in sorted(options["modules"]):
            rows, columns = SHAPES[name]
            rank, alpha = r, options["alpha"]
            if (
                options["rank_pattern"]
                and "self_attn" in name
                and ("v_proj" in name or "self_attn.*" in options["rank_pattern"])
            ):
                rank = next(iter(options["rank_pattern"].values()))
            if ("q_proj" in options["alpha_pattern"] and "q_proj" in name) or (
                r"layers\.1.*" in options["alpha_pattern"] and "layers.1" in name
            ):
                alpha = next(iter(options["alpha_pattern"].values()))
            A = torch.randn(rank, columns, generator=generator).to(options["dtype"])
            B = torch.randn(rows, rank, generator=generator).to(options["dtype"])
            (
                tensors[f"base_model.model.{name}.lora_A.weight"],
                tensors[f"base_model.model.{name}.lora_B.weight"],
            ) = A, B
            changes[name] = (
                alpha
                / (math.sqrt(rank) if options["use_rslora"] else rank)
                * (B.double() @ A.double())
            )
        save_file(tensors, path / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": r,
            "lora_alpha": options["alpha"],
            "target_modules": ["x"],
        }
        config |= {key: options[key] for key in ("use_rslora", "rank_pattern", "alpha_pattern")}
        (path / CONFIG).write_text(json.dumps(config))
        paths.append(path)
        dense.append(changes)
    return paths, dense


@given(cases(), st.integers(0, 10**6), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mean_equals_the_dense_reference_in_any_order(members, seed, random):
    with tempfile.TemporaryDirectory() as folder:
        paths, dense = write_case(Path(folder) / "in", members, seed)
        weights = [weight for _, _, weight in members]
        names = set().union(*dense)
        zero = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        want = {
            name: sum(
                (w * one.get(name, zero[name]) for w, one in zip(weights, dense, strict=True)),
                torch.zeros(()),
            )
            / sum(weights)
            for name in names
        }
        out = Path(folder) / "out"
        report = merge_adapters(paths, out, method="mean", weights=weights)
        got = deltas(out)
        assert set(got) == names
        for name in names:
            torch.testing.assert_close(
                got[name], want[name], rtol=0, atol=2e-6 * float(want[name].norm())
            )
        assert report.energy == pytest.approx(1)
        assert sum(one.weight for one in report.inputs) == pytest.approx(1)

        shuffled = list(zip(paths, weights, strict=True))
        random.shuffle(shuffled)
        merge_adapters(
            [p for p, _ in shuffled],
            Path(folder) / "again",
            method="mean",
            weights=[w for _, w in shuffled],
        )
        assert content(out) == content(Path(folder) / "again")


@pytest.mark.parametrize(("method", "parameters"), ANY)
def test_order_and_repetition_change_no_bit(tmp_path, method, parameters):
    paths = population(tmp_path / "in", 5)
    first = merge_adapters(paths, tmp_path / "a", method=method, rank=4, **parameters)
    second = merge_adapters(paths[::-1], tmp_path / "b", method=method, rank=4, **parameters)
    assert first.sha256 == second.sha256
    assert content(tmp_path / "a") == content(tmp_path / "b")
    shutil.copytree(tmp_path / "in", tmp_path / "moved")
    third = merge_adapters(
        [tmp_path / "moved" / path.name for path in paths],
        tmp_path / "c",
        method=method,
        rank=4,
        **parameters,
    )
    assert third.sha256 == first.sha256


@pytest.mark.parametrize(("method", "parameters"), LAWFUL)
@pytest.mark.parametrize("K", [1, 2, 7, 8])
def test_copies_merge_to_the_copy(tmp_path, method, parameters, K):
    paths = [write(tmp_path / f"{k}", change(0)) for k in range(K)]
    want = deltas(paths[0])
    assert relative(paths, tmp_path / "full", want, method, **parameters) < 1e-6
    assert relative(paths, tmp_path / "same", want, method, rank="same", **parameters) < 1e-6
    assert read_adapter(tmp_path / "same").rank == 3


@pytest.mark.parametrize(
    ("method", "parameters"), LAWFUL[:3]
)  # karcher of mergekit takes no weights
def test_weights(tmp_path, method, parameters):
    paths = population(tmp_path, 3)
    assert (
        relative(
            paths,
            tmp_path / "first",
            deltas(paths[0]),
            method,
            weights=[1, 0, 0],
            rank="same",
            **parameters,
        )
        < 1e-6
    )
    a = merge_adapters(paths[:2], tmp_path / "a", method=method, weights=[2, 1], **parameters)
    b = merge_adapters(paths[:2], tmp_path / "b", method=method, weights=[10, 5], **parameters)
    assert a.sha256 == b.sha256
    assert [one.weight for one in a.inputs] == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(("method", "parameters"), ANY)
@pytest.mark.parametrize("factor", [2.0, 1e-3, 1e-5, -1.0])
def test_scaling_every_alpha_scales_the_result(tmp_path, method, parameters, factor):
    plain = population(tmp_path / "plain", 5)
    scaled = population(tmp_path / "scaled", 5, alpha=6 * factor)
    merge_adapters(plain, tmp_path / "a", method=method, **parameters)
    want = {name: factor * D for name, D in deltas(tmp_path / "a").items()}
    assert relative(scaled, tmp_path / "b", want, method, **parameters) < 1e-5


@pytest.mark.parametrize(("method", "parameters"), ANY)
def test_gauge_changes_nothing(tmp_path, method, parameters):
    generator = torch.Generator().manual_seed(0)
    plain, turned = [], []
    for k in range(5):
        factors = {name: (A.double(), B.double()) for name, (A, B) in change(k).items()}
        plain.append(write(tmp_path / "plain" / f"{k}", factors))
        G = torch.randn(3, 3, dtype=torch.float64, generator=generator) + 2 * torch.eye(3)
        turned.append(
            write(
                tmp_path / "turned" / f"{k}",
                {n: (G @ A, B @ torch.linalg.inv(G)) for n, (A, B) in factors.items()},
            )
        )
    merge_adapters(plain, tmp_path / "a", method=method, **parameters)
    assert relative(turned, tmp_path / "b", deltas(tmp_path / "a"), method, **parameters) < 1e-6


def test_many_adapters_need_no_more_rank_than_the_layer_has(tmp_path):
    paths = population(tmp_path / "in", 20)
    report = merge_adapters(paths, tmp_path / "out", method="mean")
    assert report.rank == 12
    assert (
        error(deltas(tmp_path / "out"), {name: D.mean(0) for name, D in stacked(paths).items()})
        < 1e-6
    )


def test_the_variance_of_means_is_one_kth(tmp_path):
    """Independent replicas around a common change: groups of K vary 1/K as much, and their mean is
    unbiased.
    """
    generator = torch.Generator().manual_seed(0)
    signal = (torch.randn(2, 16, generator=generator), torch.randn(16, 2, generator=generator), 0.5)
    replicas = []
    for _ in range(512):
        noise = (
            torch.randn(4, 16, generator=generator),
            torch.randn(16, 4, generator=generator),
            0.5,
        )
        replicas.append(delta.truncate(*delta.concat([signal, noise], [1, 1]), rank=6))
    replicas = [(A, B, 1.0) for A, B, _ in replicas]
    single = torch.stack([delta.dense(one) for one in replicas])
    K = 8
    merged = []
    for g in range(0, 512, K):
        A, B = combine("mean", replicas[g : g + K])
        merged.append(B @ A)
    ratio = float(torch.stack(merged).var(0).sum() / single.var(0).sum()) * K
    truth = delta.dense(signal)
    projection = float((torch.stack(merged).mean(0) * truth).sum() / truth.square().sum())
    assert ratio == pytest.approx(1, abs=0.1)
    assert projection == pytest.approx(1, abs=0.05)


# #
# -------------------------------------------------------------------------------------------------
# rank


@pytest.mark.parametrize("rank", [1, 4, 6, "same"])
def test_truncation_is_the_best_and_its_energy_true(tmp_path, rank):
    paths = population(tmp_path / "in", 4)
    report = merge_adapters(paths, tmp_path / "out", method="mean", rank=rank)
    q = 3 if rank == "same" else rank
    assert report.rank == q == read_adapter(tmp_path / "out").rank
    kept = total = 0.0
    for name, D in stacked(paths).items():
        D, got = D.mean(0), deltas(tmp_path / "out")[name]
        S = torch.linalg.svdvals(D)
        best = float(S[q:].norm())
        assert float((got - D).norm()) <= best * (1 + 1e-5) + 1e-6 * float(S.norm())
        assert report.energy_of_module[name] == pytest.approx(
            float(S[:q].square().sum() / S.square().sum()), abs=1e-9
        )
        kept, total = kept + float(S[:q].square().sum()), total + float(S.square().sum())
    assert report.energy == pytest.approx(kept / total, abs=1e-9)


@pytest.mark.parametrize(("method", "parameters"), ANY)
def test_rank_by_energy(tmp_path, method, parameters):
    paths = population(tmp_path / "in", 4)
    report = merge_adapters(paths, tmp_path / "out", method=method, rank="energy=0.9", **parameters)
    assert all(kept >= 0.9 for kept in report.energy_of_module.values()) and report.energy >= 0.9
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (
        report.rank,
        report.rank,
        False,
    )
    assert "rank_pattern" not in config


@pytest.mark.parametrize(
    "rank", [0, 13, 1000, "big", "-1", "energy=0", "energy=2", "energy=x", 2.5]
)
def test_impossible_ranks_are_refused(tmp_path, rank):
    paths = population(tmp_path / "in", 4)
    with pytest.raises(ValueError, match="rank|energy"):
        merge_adapters(paths, tmp_path / "out", method="mean", rank=rank)
    assert not (tmp_path / "out").exists()


def test_rank_is_an_upper_bound(tmp_path):
    """v_proj has rank 6 at most, two adapters of rank 3 have 6: nothing is invented to fill rank
    12.
    """
    report = merge_adapters(
        population(tmp_path / "in", 2), tmp_path / "out", method="mean", rank=12
    )
    assert report.rank == 6 and report.energy == pytest.approx(1)


@pytest.mark.parametrize("method", ["mean", "multislerp"])
def test_a_buffer_bounds_the_error_that_it_makes(tmp_path, method):
    paths = population(tmp_path / "in", 12)
    merge_adapters(paths, tmp_path / "exact", method=method)
    report = merge_adapters(paths, tmp_path / "out", method=method, rank=3, buffer=4)
    exact, got = deltas(tmp_path / "exact"), deltas(tmp_path / "out")
    assert set(report.error_bound_of_module) == set(SHAPES) and report.rank == 3
    for name, bound in report.error_bound_of_module.items():
        error = float((got[name] - exact[name]).norm())
        assert error <= bound * float(got[name].norm()) * (1 + 1e-6)
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["parameters"]["buffer"] == 4
    wide = merge_adapters(paths, tmp_path / "wide", method=method, rank=3, buffer=36)
    assert not wide.error_bound_of_module
    assert error_of(deltas(tmp_path / "wide"), tmp_path, paths, method) < 1e-6
    for rank in ("full", "energy=0.9"):
        with pytest.raises(ValueError, match="buffer goes with a rank"):
            merge_adapters(paths, tmp_path / "no", method=method, rank=rank, buffer=4)


def error_of(got, folder, paths, method):
    merge_adapters(paths, folder / "cut", method=method, rank=3)
    return error(got, deltas(folder / "cut"))


# #
# -------------------------------------------------------------------------------------------------
# TIES


def ties_reference(D_K, weight_K, density):
    """TIES (arXiv:2306.01708, section 3) in float64 numpy, from the paper."""
    keep = max(1, int(density * D_K[0].size))
    trimmed_K = np.zeros_like(D_K)
    for trimmed, D in zip(trimmed_K, D_K, strict=True):
        index = np.argsort(-np.abs(D), axis=None, kind="stable")[:keep]
        trimmed.flat[index] = D.flat[index]
    weight_K = np.reshape(weight_K, (-1, 1, 1))
    elected = np.where((weight_K * trimmed_K).sum(0) >= 0, 1.0, -1.0)
    agrees = np.sign(trimmed_K) == elected
    weight = (weight_K * agrees).sum(0)
    return np.divide(
        (weight_K * trimmed_K * agrees).sum(0), weight, out=np.zeros_like(weight), where=weight > 0
    )


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.01])
@pytest.mark.parametrize("weights", [None, [3, 1, 2, 0.5]])
def test_ties_equals_numpy_and_peft(tmp_path, density, weights):
    paths = population(tmp_path / "in", 4)
    merge_adapters(paths, tmp_path / "out", method="ties", density=density, weights=weights)
    got = deltas(tmp_path / "out")
    for name, D_K in stacked(paths).items():
        want = ties_reference(D_K.numpy(), weights or [1.0] * 4, density)
        torch.testing.assert_close(
            got[name], torch.from_numpy(want), rtol=0, atol=2e-6 * float(np.linalg.norm(want))
        )
        if weights is None:
            want = peft_ties(list(D_K.float()), torch.ones(4), density).double()
            if int(
                density * D_K[0].numel()
            ):  # peft keeps nothing where mergekit and the paper's code keep one entry
                torch.testing.assert_close(got[name], want, rtol=0, atol=2e-6 * float(want.norm()))


def test_ties_leaves_the_random_state_alone(tmp_path):
    paths = population(tmp_path / "in", 3)
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    merge_adapters(paths, tmp_path / "out", method="ties")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("density", [0, 1.5])
def test_ties_refuses_impossible_densities(tmp_path, density):
    with pytest.raises(ValueError, match="density"):
        merge_adapters(
            population(tmp_path / "in", 2), tmp_path / "out", method="ties", density=density
        )


# #
# -------------------------------------------------------------------------------------------------
# whole adapters, soups


def test_the_median_is_that_of_whole_adapters(tmp_path):
    """Two of three replicas are alike in one module, other two in the other: module by module the
    medians would be those, together they are not. The inner products of the modules are summed
    before the coefficients are found.
    """
    a, b = sorted(SHAPES)[:2]
    one, two, three = change(0), change(1), change(2)
    paths = [
        write(tmp_path / "0", {a: one[a], b: one[b]}),
        write(tmp_path / "1", {a: one[a], b: two[b]}),
        write(tmp_path / "2", {a: three[a], b: two[b]}),
    ]
    merge_adapters(paths, tmp_path / "out", method="geometric_median")
    got, D = deltas(tmp_path / "out"), [deltas(path) for path in paths]

    def cost(m):
        return sum(math.sqrt(sum(float((m[n] - d[n]).square().sum()) for n in (a, b))) for d in D)

    assert all(cost(got) <= cost(d) * (1 + 1e-9) for d in D)
    for n in (a, b):
        for eps in (1e-2, -1e-2):
            assert cost(got) <= cost({**got, n: got[n] + eps * (D[0][n] - D[2][n])}) * (1 + 1e-9)


def test_the_record_says_how_much_a_method_shrinks(tmp_path):
    paths = population(tmp_path / "in", 4)
    for method, least, most in (
        ("mean", 1, 1),
        ("shrink", 0, 0.99),
        ("model_stock", 0, 0.99),
        ("multislerp", 1.2, 9),
    ):
        sums = merge_adapters(paths, tmp_path / method, method=method).coefficient_sum_of_module
        assert set(sums) == set(SHAPES) and all(
            least - 1e-12 <= x <= most + 1e-12 for x in sums.values()
        ), method
    assert not merge_adapters(paths, tmp_path / "ties", method="ties").coefficient_sum_of_module


def test_greedy_soup_keeps_what_helps(tmp_path):
    """The score is the distance to a target that is the mean of 0, 1 and 2; 3 and 4 only lead away.
    Reference: the paper's recipe 1.
    """
    paths = population(tmp_path / "in", 5)
    target = {name: D.mean(0) for name, D in stacked(paths[:3]).items()}
    asked = []

    def score(folder):
        asked.append(folder)
        return -sum(float((D - target[name]).square().sum()) for name, D in deltas(folder).items())

    report = merge_adapters(paths, tmp_path / "out", method="greedy_soup", score=score)
    soup, best = [], -math.inf
    for path in sorted(paths, key=lambda p: -score(p)):
        tried = [*soup, path]
        value = -sum(
            float((D.mean(0) - target[name]).square().sum()) for name, D in stacked(tried).items()
        )
        if value >= best:
            soup, best = tried, value
    assert (
        {one.path for one in report.inputs}
        == {str(path) for path in soup}
        == {str(path) for path in paths[:3]}
    )
    assert error(deltas(tmp_path / "out"), target) < 1e-6
    assert [step.kept for step in report.soup] == [True, True, True, False, False] and len(
        report.soup
    ) == 5
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["soup"][0]["kept"] is True
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out"]  # candidates are gone
    with pytest.raises(ValueError, match="needs the validation score"):
        merge_adapters(paths, tmp_path / "no", method="greedy_soup")
    with pytest.raises(AdapterError, match="not a number"):
        merge_adapters(paths, tmp_path / "no", method="greedy_soup", score=lambda folder: math.nan)


# #
# -------------------------------------------------------------------------------------------------
# SWA and EMA


def trajectories(folder, K=2, S=11):
    """K replicas with S snapshots; s9 is older than s10, whatever the alphabet says."""
    for k in range(K):
        write(folder / f"{k}", change(1000 + k))
        for s in range(S):
            write(folder / f"{k}" / "snapshots" / f"s{s}", change(100 * k + s))
    return [folder / f"{k}" for k in range(K)]


def snapshot_deltas(replica, S=11):
    return [deltas(replica / "snapshots" / f"s{s}") for s in range(S)]


@pytest.mark.parametrize(("last", "used"), [(None, range(11)), (3, range(8, 11))])
def test_swa_is_the_mean_along_and_across(tmp_path, last, used):
    replicas = trajectories(tmp_path / "in")
    want = {
        name: sum(snapshot_deltas(replica)[s][name] for replica in replicas for s in used)
        / (2 * len(used))
        for name in SHAPES
    }
    assert relative(replicas, tmp_path / "out", want, "swa", last=last) < 1e-6


def test_lawa_is_the_mean_of_the_latest(tmp_path):
    replicas = trajectories(tmp_path / "in")
    want = {
        name: sum(snapshot_deltas(replica)[s][name] for replica in replicas for s in range(6, 11))
        / 10
        for name in SHAPES
    }
    assert relative(replicas, tmp_path / "out", want, "lawa") < 1e-6
    with pytest.raises(AdapterError, match="11 snapshots, fewer than the last 12"):
        merge_adapters(replicas, tmp_path / "out", method="lawa", last=12)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_ema_is_the_recursion_along_and_the_mean_across(tmp_path, decay):
    replicas = trajectories(tmp_path / "in")
    want = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for replica in replicas:
        first, *rest = snapshot_deltas(replica)
        for name in SHAPES:
            e = first[name]
            for x in rest:
                e = decay * e + (1 - decay) * x[name]
            want[name] += e / 2
    assert relative(replicas, tmp_path / "out", want, "ema", decay=decay) < 1e-6


@pytest.mark.parametrize("method", ["swa", "ema"])
def test_averages_of_the_training_come_first(tmp_path, method):
    replicas = trajectories(tmp_path / "in", S=2)
    for k, replica in enumerate(replicas):
        write(replica / "averages" / method, change(2000 + k))
    want = {
        name: D.mean(0)
        for name, D in stacked([replica / "averages" / method for replica in replicas]).items()
    }
    assert relative(replicas, tmp_path / "out", want, method) < 1e-6


def test_a_trajectory_of_copies_is_the_copy(tmp_path):
    for s in range(4):
        write(tmp_path / "r" / "snapshots" / f"s{s}", change(0))
    want = deltas(tmp_path / "r" / "snapshots" / "s0")
    assert relative([tmp_path / "r"], tmp_path / "swa", want, "swa") < 1e-6
    assert relative([tmp_path / "r"], tmp_path / "ema", want, "ema", decay=0.7, rank="same") < 1e-6


def test_missing_trajectories_are_named(tmp_path):
    replica = write(tmp_path / "r", change(0))
    with pytest.raises(AdapterError, match="snapshots"):
        merge_adapters([replica], tmp_path / "out", method="swa")
    with pytest.raises(AdapterError, match="decay"):
        merge_adapters([replica], tmp_path / "out", method="ema")


# #
# -------------------------------------------------------------------------------------------------
# in peft


def trained(folder, kind, seed, targets, **config):
    """A few steps of plain peft training."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, **config
    )
    model = peft.get_peft_model(tiny_model(kind), config)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=5e-2)
    for _ in range(4):
        ids = torch.randint(0, 64, (4, 12))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model):
    ids = torch.arange(24).reshape(2, 12) % 64
    return model.eval()(input_ids=ids).logits.double()


@torch.no_grad()
def logits_with(kind, change_of):
    """The base model with dW added to its weights by hand."""
    model = tiny_model(kind).double()
    for name, D in change_of.items():
        module = model.get_submodule(name)
        module.weight += D.T if type(module).__name__ == "Conv1D" else D
    return logits(model)


MODELS = {
    "qwen2": ["q_proj", "v_proj", "down_proj"],
    "llama": ["q_proj", "gate_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("method", "rank", "parameters"),
    [("mean", "full", {}), ("mean", 5, {}), ("ties", "same", {"density": 0.5})],
)
def test_a_merged_adapter_gives_the_logits_of_its_change(tmp_path, kind, method, rank, parameters):
    paths = [trained(tmp_path / f"{k}", kind, k, MODELS[kind]) for k in range(3)]
    out = tmp_path / "out"
    merge_adapters(paths, out, method=method, rank=rank, **parameters)
    want = logits_with(kind, deltas(out))
    if method == "mean" and rank == "full":
        mean = {name: D.mean(0) for name, D in stacked(paths).items()}
        torch.testing.assert_close(want, logits_with(kind, mean), rtol=0, atol=1e-5)
    assert (want - logits_with(kind, {})).abs().max() > 0.05  # the change is felt
    model = peft.PeftModel.from_pretrained(tiny_model(kind), out)
    torch.testing.assert_close(logits(model), want, rtol=0, atol=2e-4)
    model.save_pretrained(tmp_path / "saved")
    again = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "saved")
    assert torch.equal(logits(again), logits(model))
    assert not error(deltas(tmp_path / "saved"), deltas(out))


def test_merging_different_targets_loads_in_peft(tmp_path):
    """Where the inputs disagree, the merge names its modules in full, so that peft adapts these and
    no others.
    """
    a = trained(tmp_path / "a", "llama", 0, ["q_proj"], layers_to_transform=[1])
    b = trained(
        tmp_path / "b",
        "llama",
        1,
        ["v_proj", "q_proj"],
        use_rslora=True,
        rank_pattern={"v_proj": 2},
    )
    merge_adapters([a, b], tmp_path / "out", method="mean")
    assert len(read_adapter(tmp_path / "out").modules) == 4
    model = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out")
    adapted = [
        name
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    ]
    assert len(adapted) == 4
    torch.testing.assert_close(
        logits(model), logits_with("llama", deltas(tmp_path / "out")), rtol=0, atol=2e-4
    )


def in_peft(paths, combination, weights, **options):
    model = peft.PeftModel.from_pretrained(tiny_model("llama"), paths[0], adapter_name="a0")
    for k, path in enumerate(paths[1:], 1):
        model.load_adapter(path, f"a{k}")
    model.add_weighted_adapter(
        [f"a{k}" for k in range(len(paths))],
        weights,
        "merged",
        combination_type=combination,
        **options,
    )
    layers: dict[str, Any] = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    return {
        name: layer.get_delta_weight("merged").detach().double() for name, layer in layers.items()
    }


def test_the_mean_equals_peft_cat(tmp_path):
    paths = [trained(tmp_path / f"{k}", "llama", k, ["q_proj", "v_proj"]) for k in range(4)]
    assert relative(paths, tmp_path / "out", in_peft(paths, "cat", [0.25] * 4)) < 1e-5


def test_a_cut_mean_equals_peft_svd(tmp_path):
    """peft's `svd` forms the dense sum and takes its SVD: right since 0.21, slow."""
    paths = [trained(tmp_path / f"{k}", "llama", k, ["q_proj", "v_proj"]) for k in range(4)]
    assert (
        relative(paths, tmp_path / "out", in_peft(paths, "svd", [0.25] * 4, svd_rank=5), rank=5)
        < 1e-4
    )


def test_peft_ties_divides_by_the_weights_once_too_often(tmp_path):
    """Weights 1/K make it K times too small, even for K copies at density 1; and it elects signs on
    A and B.
    """
    paths = [trained(tmp_path / "0", "llama", 0, ["q_proj", "v_proj"])] * 4
    copy = deltas(paths[0])
    wrong = in_peft(paths, "ties_svd", [0.25] * 4, density=1.0)
    assert error(wrong, {name: D / 4 for name, D in copy.items()}) < 1e-4
    assert relative(paths, tmp_path / "out", copy, "ties", density=1.0) < 1e-6


def test_peft_cat_is_wrong_for_rslora(tmp_path):
    """The merged adapter inherits use_rslora with alpha = rank: its scale is sqrt(new rank) instead
    of 1.
    """
    paths = [
        trained(tmp_path / f"{k}", "llama", k, ["q_proj", "v_proj"], use_rslora=True)
        for k in range(2)
    ]
    mean = {name: D.mean(0) for name, D in stacked(paths).items()}
    wrong = in_peft(paths, "cat", [0.5] * 2)
    assert error(wrong, {name: math.sqrt(8) * D for name, D in mean.items()}) < 1e-5
    assert relative(paths, tmp_path / "out", mean) < 1e-6


def test_peft_linear_is_not_a_mean(tmp_path):
    """Why `mean` is our own: peft's `linear` adds the factors, so K copies at weight 1/K are K
    times the adapter (peft #3004).
    """
    paths = [trained(tmp_path / "0", "llama", 0, ["q_proj", "v_proj"])] * 4
    copy = deltas(paths[0])
    wrong = in_peft(paths, "linear", [0.25] * 4)
    assert error(wrong, {name: 4 * D for name, D in copy.items()}) < 1e-5
    assert relative(paths, tmp_path / "out", copy) < 1e-6


# #
# -------------------------------------------------------------------------------------------------
# the record, refusals, memory


def test_the_record_says_what_was_done(tmp_path):
    paths = population(tmp_path / "in", 3)
    report = merge_adapters(paths, tmp_path / "out", method="ties", rank=2, weights=[1, 2, 0])
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["method"] == "ties" and record["parameters"] == {"density": 0.2, "rank": 2}
    assert [one["path"] for one in record["inputs"]] == [str(path) for path in paths[:2]]
    assert [one["sha256"] for one in record["inputs"]] == [
        read_adapter(path).sha256() for path in paths[:2]
    ]
    assert (
        set(record["energy_of_module"]) == set(SHAPES)
        and record["rank"] == 2
        and 0 < record["energy"] < 1
    )
    assert {"ftk", "torch", "numpy", "safetensors"} <= set(record["versions"])
    assert report.sha256 == read_adapter(tmp_path / "out").sha256()
    assert read_adapter(tmp_path / "out").base == "org/base"


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("men", {}, "unknown merge method 'men'; did you mean 'mean'?"),
        ("ties", {"densty": 0.5}, "unknown parameter 'densty'.*did you mean 'density'?"),
        ("mean", {"density": 0.5}, "unknown parameter 'density'.*known: none"),
        ("mean", {"weights": [1]}, "1 weights for 2 adapters"),
        ("mean", {"weights": [1, -1]}, "negative"),
        ("mean", {"weights": [0, 0]}, "above 0"),
        ("mean", {"weights": [1, math.nan]}, "normalised"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, method, parameters, words):
    with pytest.raises(ValueError, match=words):
        merge_adapters(
            population(tmp_path / "in", 2), tmp_path / "out", method=method, **parameters
        )
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_together_is_refused(tmp_path):
    a = write(tmp_path / "a", change(0))
    b = write(tmp_path / "b", change(1), base="org/other")
    with pytest.raises(AdapterError, match="org/other.*`base`"):
        merge_adapters([a, b], tmp_path / "out", method="mean")
    assert merge_adapters(
        [a, b], tmp_path / "out", method="mean", base="org/base"
    ).energy == pytest.approx(1)
    larger = write(
        tmp_path / "c", change(2, shapes={name: (o + 2, i) for name, (o, i) in SHAPES.items()})
    )
    with pytest.raises(AdapterError, match="shape"):
        merge_adapters([a, larger], tmp_path / "out2", method="mean")
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_adapters([], tmp_path / "out2", method="mean")
    with pytest.raises(AdapterError, match="not a merge"):
        merge_adapters([a], b, method="mean")
    dora = tmp_path / "dora"
    peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    ).save_pretrained(dora)
    with pytest.raises(AdapterError, match="DoRA"):
        merge_adapters([a, dora], tmp_path / "out2", method="mean")
    assert not (tmp_path / "out2").exists()


def damage(folder, kind):
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    if kind == "truncated":
        weights.write_bytes(data[:-40])
    elif kind == "corrupted":
        data[-8:] = b"\xff" * 8  # not finite
        weights.write_bytes(data)
    elif kind == "renamed":
        data = data.replace(b"lora_A", b"lora_C", 1)
        weights.write_bytes(data)
    elif kind == "mis-shaped":
        write(folder, {name: (A[:, :-1], B) for name, (A, B) in change(9).items()})
    elif kind == "foreign":
        write(
            folder,
            {f"transformer.{name}": factors for name, factors in change(9).items()},
            base="org/other",
        )
    elif kind == "not PEFT":
        (folder / CONFIG).write_text("[1, 2]")


@pytest.mark.parametrize(
    "kind", ["truncated", "corrupted", "renamed", "mis-shaped", "foreign", "not PEFT"]
)
@pytest.mark.parametrize("method", ["mean", "ties", "geometric_median"])
def test_a_bad_adapter_stops_the_merge_in_one_line(tmp_path, kind, method):
    paths = population(tmp_path / "in", 3)
    damage(paths[1], kind)
    with pytest.raises(AdapterError) as caught:
        merge_adapters(paths, tmp_path / "out", method=method)
    assert "00001" in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in"]


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path):
    path = population(tmp_path / "in", 1)[0]
    adapter = read_adapter(path)
    write(path, change(5, r=2))
    with pytest.raises(AdapterError, match="changed"):
        adapter.factors(sorted(SHAPES)[0])


KILLED = """
import os, sys
from toolkit.model import adapters
from toolkit.merging import merge_adapters
plain, count = os.replace, 0
def killed(*paths):  # between the files that are moved into a folder that is there
    global count
    count += 1
    if count > int(sys.argv[1]):
        os._exit(9)
    plain(*paths)
os.replace = killed
if sys.argv[1] == "-1":
    adapters.publish = lambda *_, **__: os._exit(9)
merge_adapters(sys.argv[3:], sys.argv[2], method="mean")
"""


@pytest.mark.parametrize(
    "after", [-1, 1, 2, 3]
)  # the first file to move is ftk.json, and until then nothing has changed
def test_a_merge_that_is_killed_does_not_look_finished(tmp_path, after):
    """A new folder appears as a whole; in one that is there, merge.json goes first and comes
    last.
    """
    paths = population(tmp_path / "in", 2)
    out = tmp_path / "merged" / "out"
    if after >= 0:
        merge_adapters(paths, out, method="mean", rank=1)
    assert ran(KILLED, after, out, *paths) == 9
    assert not (out / "merge.json").exists()
    if after >= 0:  # what is left can be merged into again
        for leftover in out.parent.glob(".*.tmp"):
            shutil.rmtree(leftover)
        if (out / CONFIG).exists():
            with pytest.raises(AdapterError, match="not a merge"):
                merge_adapters(paths, out, method="mean")
            shutil.rmtree(out)
    merge_adapters(paths, out, method="mean")
    assert error(deltas(out), {name: D.mean(0) for name, D in stacked(paths).items()}) < 1e-6


def test_a_merge_can_be_written_again(tmp_path):
    paths = population(tmp_path / "in", 2)
    merge_adapters(paths, tmp_path / "out", method="mean", rank=1)
    report = merge_adapters(paths, tmp_path / "out", method="mean")
    assert read_adapter(tmp_path / "out").rank == report.rank == 6


def test_memory_does_not_grow_with_the_number_of_adapters(tmp_path, monkeypatch):
    """Of 200 adapters only those of one block hold tensors at any time, and what Python holds grows
    by their headers alone.
    """
    import weakref

    from toolkit.model.adapters import Adapter

    alive, most = [], 0
    plain = Adapter.factors

    def counted(self, name):
        nonlocal most
        factors = plain(self, name)
        alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(factors[0])]
        most = max(most, len(alive))
        return factors

    monkeypatch.setattr(Adapter, "factors", counted)
    monkeypatch.setattr(delta, "BLOCK", 64)
    shapes = {"model.layers.0.mlp.up_proj": (64, 48)}
    one = write(tmp_path / "one", change(0, 4, shapes))
    for k in range(200):
        shutil.copytree(one, tmp_path / "in" / f"{k:05d}")
    paths = sorted((tmp_path / "in").iterdir())
    tracemalloc.start()
    report = merge_adapters(paths, tmp_path / "out", method="mean", rank=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.energy == pytest.approx(1) and most <= 64 / 4 + 3
    assert peak < 200 * 20_000
    assert error(deltas(tmp_path / "out"), deltas(one)) < 1e-6
