"""Laws 5, 6, 7, 8 and 12 of every method, from files to files: any ranks, scales, dtypes, gauges;
float64 references on dense changes.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.reference_merges import ALONG, REFERENCES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from toolkit.merging import merge_adapters
from toolkit.model import delta
from toolkit.model.adapters import CONFIG, read_adapter
from toolkit.recipe.merge_methods import MERGE_METHODS

SHAPES = {"a.q_proj": (5, 4), "b.v_proj": (3, 6)}
DECAY = 0.6
PARAMETERS = {
    **{name: values for name, (_, values) in REFERENCES.items()},
    "swa": {},
    "lawa": {"last": 2},
    "ema": {"decay": DECAY},
}
SNAPSHOTS = 2
law = settings(
    max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def populations(draw):
    """K adapters around a common change: (seed, [(rank, alpha, dtype, rslora, weight)])."""
    member = st.tuples(
        st.integers(2, 4),
        st.sampled_from([0.5, 3.0, 16.0]),
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        st.booleans(),
        st.sampled_from([1.0, 2.0, 0.5]),
    )
    return draw(st.integers(0, 2**31)), draw(st.lists(member, min_size=2, max_size=4))


def factors_of(seed, k, rank, dtype):
    """Of one adapter: a change that all have, and its own, as the file has them."""
    common, own = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1 + k)
    found = {}
    for name, (O, I) in SHAPES.items():
        A, B = torch.randn(1, I, generator=common), torch.randn(O, 1, generator=common)
        A = torch.cat([A, 0.7 * torch.randn(rank - 1, I, generator=own)])
        found[name] = (
            A.to(dtype),
            torch.cat([B, 0.7 * torch.randn(O, rank - 1, generator=own)], 1).to(dtype),
        )
    return found


def write(path, factors, alpha, rslora):
    path.mkdir(parents=True)
    tensors = {
        f"base_model.model.{n}.lora_{x}.weight": t.contiguous()
        for n, both in factors.items()
        for x, t in zip("AB", both, strict=True)
    }
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = next(iter(factors.values()))[0].shape[0]
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "target_modules": ["q_proj", "v_proj"],
    }
    (path / CONFIG).write_text(json.dumps(config))


def write_all(folder, population, along, gauge=None, doubled=1):
    """Adapters (with snapshots, if it goes along a trajectory) and their changes: paths, module ->
    [K, S, O, I].

    gauge: another pair of factors for every change, (G A, B G^-1), in float64, so that the change
    is the same.
    """
    seed, members = population
    paths, dense = [], {name: [] for name in SHAPES}
    for k, (rank, alpha, dtype, rslora, _) in enumerate(members):
        steps = [
            factors_of(seed, 100 * s + k, rank, dtype) for s in range(SNAPSHOTS if along else 1)
        ]
        for name, changes in dense.items():
            scale = doubled * alpha / (rank**0.5 if rslora else rank)
            changes.append(
                [scale * (one[name][1].double() @ one[name][0].double()).numpy() for one in steps]
            )
        if gauge is not None:
            steps = [
                {name: turned(*both, gauge + k) for name, both in one.items()} for one in steps
            ]
        paths.append(folder / f"{k:05d}")
        write(paths[-1], steps[-1], doubled * alpha, rslora)
        for s, one in enumerate(steps if along else ()):
            write(paths[-1] / "snapshots" / f"s{s}", one, doubled * alpha, rslora)
    return paths, {name: np.array(changes) for name, changes in dense.items()}


def turned(A, B, seed):
    generator = torch.Generator().manual_seed(seed)
    r = len(A)
    G = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))[0] * (
        0.5 + torch.rand(r, generator=generator).double()
    )
    return G @ A.double(), B.double() @ torch.linalg.inv(G)


def reference(method, dense, w):
    """Merged changes of all modules, from the definition of the method."""
    if method in ALONG:
        steps = [DECAY, 1 - DECAY] if method == "ema" else [0.5, 0.5]
        return {name: np.einsum("k,s,ksoi->oi", w, steps, D) for name, D in dense.items()}
    merge, parameters = REFERENCES[method]
    single = {name: D[:, 0] for name, D in dense.items()}
    if MERGE_METHODS[method].gram == "adapter":  # one vector is a whole adapter
        whole = merge(
            np.concatenate([D.reshape(len(w), 1, -1) for D in single.values()], 2), w, **parameters
        )
        parts = np.split(whole.ravel(), np.cumsum([O * I for O, I in SHAPES.values()])[:-1])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
        }

    def ids(name):
        drawn = method in ("dare", "della")
        return {"ids": [f"{k:05d}:{name}" for k in range(len(w))]} if drawn else {}

    return {name: merge(D, w, **parameters, **ids(name)) for name, D in single.items()}


def changes(path):
    return {name: delta.dense(factors).numpy() for name, factors in read_adapter(path).items()}


def merged(method, paths, out, weights, **options):
    asked = {"score": lambda folder: 0.0} if method == "greedy_soup" else {"weights": weights}
    return merge_adapters(paths, out, method=method, **asked, **PARAMETERS[method], **options)


def near(got, want, dense, share):
    """Equal up to a share of the largest change that went in: what is shrunk to nothing has no
    relative error.
    """
    return all(
        np.linalg.norm(got[n] - want[n]) <= share * max(np.linalg.norm(D, axis=(2, 3)).max(), 1e-9)
        for n, D in dense.items()
    )


@pytest.mark.parametrize("method", MERGE_METHODS)
@given(population=populations())
@law
def test_from_files_to_files_the_laws_hold(method, population):
    with tempfile.TemporaryDirectory() as folder:
        home, along = Path(folder), method in ALONG
        paths, dense = write_all(home / "in", population, along)
        weights = (
            [1.0] * len(paths)
            if method == "greedy_soup"
            else [member[-1] for member in population[1]]
        )
        want = reference(method, dense, np.array(weights) / sum(weights))
        report = merged(method, paths, home / "out", weights)
        exact = changes(home / "out")
        # the reference of the median is a search
        assert near(exact, want, dense, 1e-4 if method == "geometric_median" else 2e-6)
        left = any(D.any() for D in exact.values())  # `shrink` may leave nothing
        assert report.energy == pytest.approx(float(left))

        # 6: only ratios of weights count; and weights such as 2 and 0.5 are exact in binary, so no
        # bit changes
        assert (
            merged(method, paths, home / "weights", [4 * w for w in weights]).sha256
            == report.sha256
        )

        # 7: twice every alpha, twice the change
        paths2, _ = write_all(home / "doubled", population, along, doubled=2)
        merged(method, paths2, home / "out2", weights)
        assert near(changes(home / "out2"), {name: 2 * D for name, D in exact.items()}, dense, 4e-6)

        # 5: other factors of the same changes
        turned_paths, _ = write_all(home / "turned", population, along, gauge=population[0] % 1000)
        merged(method, turned_paths, home / "out3", weights)
        assert near(changes(home / "out3"), exact, dense, 2e-6)

        # 12: a lower rank is the best there is, and the energy that it is said to keep is the one
        # it keeps
        cut = merged(method, paths, home / "cut", weights, rank=2)
        for name, D in changes(home / "cut").items():
            S = np.linalg.svd(exact[name], compute_uv=False)
            if S[0] > 1e-6 * np.linalg.norm(dense[name]):
                assert cut.energy_of_module[name] == pytest.approx(
                    (S[:2] ** 2).sum() / (S**2).sum(), abs=1e-5
                )
            assert np.linalg.norm(D - exact[name]) <= np.linalg.norm(S[2:]) * (
                1 + 1e-5
            ) + 2e-6 * np.linalg.norm(dense[name])


@pytest.mark.parametrize("method", ["mean", "swa", "lawa", "ema"])
@given(population=populations(), split=st.integers(1, 3))
@law
def test_means_of_blocks_combine(method, population, split):
    """Law 8: the weighted mean of the means of blocks is the mean of all."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        paths, dense = write_all(home / "in", population, method in ALONG)
        weights = [member[-1] for member in population[1]]
        at = min(split, len(paths) - 1)
        blocks = [(paths[:at], weights[:at]), (paths[at:], weights[at:])]
        for b, (some, own) in enumerate(blocks):
            merged(method, some, home / f"block{b}", own)
        merged(
            "mean",
            [home / "block0", home / "block1"],
            home / "blocks",
            [sum(own) for _, own in blocks],
        )
        merged(method, paths, home / "all", weights)
        assert near(changes(home / "blocks"), changes(home / "all"), dense, 2e-6)
