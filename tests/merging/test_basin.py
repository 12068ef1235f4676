"""The basin guard: clusters that are there are found, a single cloud is not split, and a barrier is
what lies above the line.
"""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.bases import draw, on_the_base

from toolkit import cli
from toolkit.data import read_suite
from toolkit.merging import basin, merge_adapters
from toolkit.model import grams
from toolkit.model.adapters import read_adapter, write_adapter
from toolkit.model.base import load_base
from toolkit.model.delta import dense
from toolkit.pipeline.given import inspect_given, merge_given
from toolkit.record.population import groups

PROMPTS = [p for p in read_suite("embedded:typical", name="typical") if p.reference][:4]


@pytest.fixture(scope="module")
def base():
    return load_base("embedded")


def population(folder, centres, noise=0.5, shapes=None):
    """Adapters around the given centres (seeds of common parts)."""
    shapes = shapes or {"x.q_proj": (24, 20), "x.v_proj": (12, 20)}
    paths = []
    for k, seed in enumerate(centres):
        common = torch.Generator().manual_seed(1000 + seed)
        centre = {
            n: (torch.randn(2, i, generator=common), torch.randn(o, 2, generator=common))
            for n, (o, i) in shapes.items()
        }
        factors = draw(torch.Generator().manual_seed(k), centre, noise, shapes)
        write_adapter(
            folder / f"{k:02d}",
            factors,
            r=4,
            alpha=8,
            target_modules=["q_proj", "v_proj"],
            base=None,
        )
        paths.append(folder / f"{k:02d}")
    return [read_adapter(path) for path in paths]


def test_lengths_and_cosines_are_those_of_the_dense_changes(tmp_path, monkeypatch):
    adapters = population(tmp_path, [0, 0, 1, 1, 0])
    monkeypatch.setattr(grams, "CHUNK", 2)
    dense_KD = torch.stack(
        [torch.cat([dense(a.factors(name)).flatten() for name in a.modules]) for a in adapters]
    )
    merged = population(tmp_path / "merged", [7, 8])
    found = basin.geometry(adapters, [[0, 1], [2, 3]], merged)
    np.testing.assert_allclose(found.norm_K, dense_KD.norm(dim=1), rtol=1e-10)
    np.testing.assert_allclose(
        found.to_mean_K, (dense_KD - dense_KD.mean(0)).norm(dim=1), rtol=1e-10
    )
    M = torch.stack(
        [torch.cat([dense(a.factors(name)).flatten() for name in a.modules]) for a in merged]
    )
    np.testing.assert_allclose(
        found.to_merge_K, [float((dense_KD[i] - M[i // 2]).norm()) for i in range(4)], rtol=1e-10
    )
    want = torch.nn.functional.cosine_similarity(dense_KD[:, None], dense_KD[None], dim=2)
    np.testing.assert_allclose(found.cosine_KK, want, atol=1e-10)
    assert found.kept == pytest.approx(
        float(dense_KD.mean(0).norm() ** 2 / dense_KD.norm(dim=1).square().mean())
    )
    assert found.cluster_K is None  # five are too few to tell


def test_a_module_that_an_adapter_leaves_alone_is_a_change_of_zero(tmp_path):
    both = population(tmp_path / "a", [0, 0])
    one = population(tmp_path / "b", [0], shapes={"x.q_proj": (24, 20)})
    gram_KK = grams.gram([both[0], one[0]])
    Q = dense(both[0].factors("x.q_proj")), dense(one[0].factors("x.q_proj"))
    assert gram_KK[0, 1] == pytest.approx(float((Q[0] * Q[1]).sum()))
    assert gram_KK[1, 1] == pytest.approx(float(Q[1].square().sum()))


def test_two_clusters_are_found(tmp_path):
    centres = [0, 1, 0, 0, 1, 1, 0, 1, 0, 0]
    found = basin.geometry(population(tmp_path, centres), [], [])
    assert found.cluster_K and len(set(found.cluster_K)) == 2
    # the same parts, whatever their names
    assert len(set(zip(centres, found.cluster_K, strict=True))) == 2


def test_one_cluster_is_not_split(tmp_path):
    assert basin.geometry(population(tmp_path, [0] * 12), [], []).cluster_K == [1] * 12


@pytest.mark.parametrize(("long", "K"), [(1, 12), (30, 12), (1, 8), (30, 8)])
def test_a_cloud_is_not_split_however_long_and_thin(long, K):
    """A Gaussian along one axis has a silhouette that a rule of thumb alone would take for two
    clusters.
    """
    split = 0
    for seed in range(12):
        point_KD = np.random.default_rng(seed).standard_normal((K, 40)) * np.array(
            [long] + [1] * 39
        )
        split += max(basin.clusters(point_KD @ point_KD.T)[0]) > 1
        assert long == 1 or basin.cut(point_KD[:, :1], 2)[0] > 0.45
    assert split <= 1


@pytest.mark.parametrize("sizes", [(4, 4), (3, 9), (5, 5, 5)])
def test_clusters_among_noise_in_many_directions(sizes):
    found = 0
    for seed in range(5):
        draw = np.random.default_rng(seed)
        want = np.repeat(range(len(sizes)), sizes)
        point_KD = draw.standard_normal((len(want), 300)) + 25 * np.eye(300)[want]
        cluster_K = basin.clusters(point_KD @ point_KD.T)[0]
        found += len(set(zip(want, cluster_K, strict=True))) == max(cluster_K) == len(sizes)
    assert found >= 4


def test_copies_are_one_cluster():
    assert basin.clusters(np.ones((9, 9)))[0] == [1] * 9


def test_the_silhouette_is_that_of_its_definition():
    draw = np.random.default_rng(3)
    point_KD, cluster_K = draw.standard_normal((9, 4)), np.array([1, 1, 2, 2, 2, 3, 1, 2, 1])
    distance_KK = np.linalg.norm(point_KD[:, None] - point_KD[None], axis=2)
    want = []
    for i in range(9):
        mean = {
            c: np.mean([distance_KK[i, j] for j in range(9) if cluster_K[j] == c and j != i] or [0])
            for c in (1, 2, 3)
        }
        a, b = mean[cluster_K[i]], min(value for c, value in mean.items() if c != cluster_K[i])
        want.append(0.0 if (cluster_K == cluster_K[i]).sum() == 1 else (b - a) / max(a, b))
    assert basin.mean_silhouette(distance_KK, cluster_K) == pytest.approx(np.mean(want))


# -- barriers ------------------------------------------------------------------------------------


def test_a_blend_answers_as_the_merge_that_it_stands_for(tmp_path, base):
    adapters = on_the_base(tmp_path, base, 3, 0.05)
    merge_adapters([a.path for a in adapters], tmp_path / "out", method="mean")
    held, _ = basin.losses([basin.blend(adapters, [1 / 3] * 3), adapters[0]], base, PROMPTS)
    written, tokens = basin.losses([read_adapter(tmp_path / "out"), adapters[0]], base, PROMPTS)
    np.testing.assert_allclose(held, written, rtol=1e-4)
    assert abs(written[0] - written[1]).max() > 0.01 and tokens.min() > 1  # the change is felt


def test_identical_members_have_no_barrier(tmp_path, base):
    one = on_the_base(tmp_path, base, 1, 0.05)[0]
    found = basin.diagnose_basin([one] * 4, base, PROMPTS)
    assert found.barriers[0].sd == pytest.approx(0, abs=1e-6)
    assert found.barriers[0].excess == pytest.approx(0, abs=1e-4) and found.barriers[
        0
    ].barrier == pytest.approx(0, abs=1e-4)
    assert found.barriers[0].size == 0 and found.geometry.to_mean_K == pytest.approx(
        [0] * 4, abs=1e-5
    )


def with_loss(monkeypatch, loss_of):
    """Barriers with a loss that is a function of the change itself."""
    monkeypatch.setattr(
        basin,
        "losses",
        lambda adapters, base, prompts: (
            np.array(
                [
                    [loss_of(0.0 if a is None else float(dense(a.factors("x")).sum()))]
                    * len(prompts)
                    for a in adapters
                ]
            ),
            np.ones(len(prompts)),
        ),
    )


def at(folder, positions):
    """Adapters whose changes are single numbers."""
    for k, x in enumerate(positions):
        write_adapter(
            folder / f"{k}",
            {"x": (torch.tensor([[x]]), torch.ones(1, 1))},
            r=1,
            alpha=1,
            target_modules=["x"],
            base=None,
        )
    return [read_adapter(folder / f"{k}") for k in range(len(positions))]


def look_at(adapters, k):
    """The first barrier, of merges of groups of k that are means."""
    members = groups(range(len(adapters)), k)
    merged = [basin.blend([adapters[i] for i in group], [1 / k] * k) for group in members]
    return basin.barriers(adapters, None, PROMPTS, members, merged)[0]


@pytest.mark.parametrize("k", [2, 4])
def test_a_convex_loss_has_no_barrier(tmp_path, monkeypatch, k):
    with_loss(monkeypatch, lambda x: (x - 1) ** 2)
    found = look_at(at(tmp_path, [-2.0, 3.0, 0.5, 1.0]), k)
    assert found.excess < 0 and found.barrier == 0 and found.size == 0


def test_a_ridge_between_two_members_is_flagged(tmp_path, monkeypatch):
    """Wells at -1 and +1: (x^2 - 1)^2. The mean of -1 and +1 lies on the ridge, at 1."""
    with_loss(monkeypatch, lambda x: (x * x - 1) ** 2)
    found = look_at(at(tmp_path, [-1.0, 1.0, -1.1, 1.1]), 2)
    members = [0.0, 0.0, (1.21 - 1) ** 2, (1.21 - 1) ** 2]
    assert found.merged == pytest.approx(1) and found.excess == pytest.approx(1)
    assert found.sd == pytest.approx(np.std(members, ddof=1)) and found.size > basin.WARN
    same_side = look_at(at(tmp_path / "s", [-1.0, -1.1, 1.0, 1.1]), 2)
    assert same_side.size == 0


def test_a_hill_on_the_way_is_flagged_where_the_mean_itself_is_well(tmp_path, monkeypatch):
    with_loss(
        monkeypatch,
        lambda x: math.cos(2 * math.pi * x) * 0.0 + (1.0 if 0.4 < abs(x) < 0.6 else 0.0),
    )
    found = look_at(at(tmp_path, [-1.0, 1.0, -1.0, 1.0]), 2)
    assert found.excess == 0 and found.barrier == 1 and found.at == 0.5 and found.size > basin.WARN


def test_the_merge_that_was_asked_for_is_judged(tmp_path, monkeypatch, base):
    """Two wells at -1 and +1, all members in the right one: their mean is well, a merge at 0 lies
    on the ridge.
    """
    with_loss(monkeypatch, lambda x: (x * x - 1) ** 2)
    members = at(tmp_path / "members", [1.0, 1.1, 0.9])
    assert basin.diagnose_basin(members, base, PROMPTS).verdict == "ok"
    merged = at(tmp_path / "merged", [0.0])
    found = basin.diagnose_basin(members, base, PROMPTS, method="ties", merged_G=merged)
    assert found.verdict == "warn" and found.geometry.to_merge_K == pytest.approx([1, 1.1, 0.9])
    assert "ties of 3" in basin.basin_text(found)


def test_verdicts(tmp_path, monkeypatch, base):
    with_loss(monkeypatch, lambda x: (x * x - 1) ** 2)
    warned = basin.diagnose_basin(at(tmp_path / "a", [-1.0, 1.0, -1.1, 1.1]), base, PROMPTS, k=2)
    assert (
        warned.verdict == "warn"
        and "typical: the merge itself lies 1 nats above" in warned.reasons[0]
    )
    assert "WARN" in basin.basin_text(warned) and "INCONCLUSIVE with 4 members" in basin.basin_text(
        warned
    )
    assert basin.diagnose_basin(at(tmp_path / "b", [1.0, 1.1, 0.9]), base, PROMPTS).verdict == "ok"
    assert (
        basin.diagnose_basin(at(tmp_path / "c", [1.0, 1.1]), base, PROMPTS).verdict
        == "inconclusive"
    )
    odd = basin.diagnose_basin(at(tmp_path / "d", [2.0, 2.1, 1.9]), base, PROMPTS)
    assert odd.verdict == "inconclusive" and "give them as in training" in odd.reasons[0]
    with pytest.raises(basin.BasinError, match="two or more"):
        basin.diagnose_basin(at(tmp_path / "e", [1.0]), base, PROMPTS)
    with pytest.raises(basin.BasinError, match="no prompt has a reference"):
        basin.diagnose_basin(
            at(tmp_path / "f", [1.0, 2.0]),
            base,
            [p.__class__(**{**p.__dict__, "reference": None}) for p in PROMPTS],
        )


# -- the commands --------------------------------------------------------------------------------


def test_the_guard_stops_a_merge_before_it_is_written(tmp_path, monkeypatch, base):
    on_the_base(tmp_path / "runs", base, 3, 0.05)
    suite = tmp_path / "suite.jsonl"
    suite.write_text(
        "".join(
            json.dumps({"id": p.id, "prompt": p.prompt, "reference": p.reference}) + "\n"
            for p in PROMPTS
        )
    )

    def ftk(*arguments):
        return CliRunner().invoke(cli.main, [str(a) for a in arguments])

    result = ftk("basin", tmp_path / "runs", "--prompts", suite, "--json")
    found = json.loads(result.stdout)["populations"][0]
    assert (
        result.exit_code == cli.DONE
        and len(found["members"]) == 3
        and found["barriers"][0]["n_prompts"] == 4
    )

    bad = inspect_given.diagnose_basin
    monkeypatch.setattr(
        inspect_given,
        "diagnose_basin",
        lambda *a, **k: basin.Basin(
            **{**bad(*a, **k).__dict__, "verdict": "warn", "reasons": ["a ridge"]}
        ),
    )
    merge = (
        "merge",
        tmp_path / "runs",
        "--method",
        "mean",
        "--guard",
        suite,
        "--out",
        tmp_path / "out",
    )
    result = ftk(*merge, "--strict")
    assert (
        result.exit_code == cli.GATE_SAID_NO
        and not (tmp_path / "out").exists()
        and "warn: a ridge" in result.stderr
    )
    result = ftk(*merge)
    assert (
        result.exit_code == cli.DONE
        and (tmp_path / "out" / "merge.json").is_file()
        and "warn: a ridge" in result.stderr
    )
    assert (
        ftk("basin", tmp_path / "runs", "--prompts", suite, "--strict").exit_code
        == cli.GATE_SAID_NO
    )


def test_the_guard_judges_the_method_that_was_asked_for(tmp_path, base):
    """A multiple of the mean that is far outside is refused where the mean is not; and what is
    judged is what would be written.
    """
    on_the_base(tmp_path / "runs", base, 3, 0.05)
    suite = tmp_path / "suite.jsonl"
    suite.write_text(
        "".join(
            json.dumps({"id": p.id, "prompt": p.prompt, "reference": p.reference}) + "\n"
            for p in PROMPTS
        )
    )
    sources, guard = (
        [tmp_path / "runs"],
        {"guard": [str(suite)], "strict": True, "rank": "same", "base": "embedded"},
    )
    made = merge_given.merge_sources(
        sources, method="mean", k=None, out=tmp_path / "mean", parameters={}, **guard
    )
    assert len(made) == 1 and read_adapter(tmp_path / "mean").rank == 2
    said = []
    with pytest.raises(merge_given.GuardError, match="nothing was merged"):
        far = {"lambda": 60.0}
        merge_given.merge_sources(
            sources,
            method="task_arithmetic",
            k=None,
            out=tmp_path / "far",
            parameters=far,
            note=said.append,
            **guard,
        )
    assert not (tmp_path / "far").exists() and "warn: typical: the merge itself lies" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mean", "runs", "suite.jsonl"]
