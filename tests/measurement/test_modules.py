"""The spread of weight changes: what it is of copies, of strangers and in any gauge; and that its
interval and its p-values hold.
"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import false_discovery_control

from toolkit import statistics as st
from toolkit.cli import BAD_INPUT, main
from toolkit.measurement.run import _read_modules, save_modules
from toolkit.merging.module_spread import Population, modules, modules_text, place
from toolkit.model.adapters import read_adapter, write_adapter
from toolkit.model.delta import dense
from toolkit.pipeline.given import inspect_given
from toolkit.record.folders import RUN, claim
from toolkit.record.plain import JsonError
from toolkit.record.results import About, ConditionDesign, Results
from toolkit.report.html import render
from toolkit.statistics import weight_spread, weight_spread_ratio

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

SHAPES = {
    f"layers.{layer}.{kind}": (24, 20)
    for layer in (0, 1, 10)
    for kind in ("self_attn.q_proj", "mlp.up_proj")
}


def written(folder, factors_of, n=8):
    """Adapters whose modules are factors_of(replica, module) = (A, B); modules without factors are
    left out.
    """
    found = []
    for r in range(n):
        factors = {name: pair for name in SHAPES if (pair := factors_of(r, name)) is not None}
        write_adapter(
            folder / f"{r:02d}",
            factors,
            r=4,
            alpha=8,
            target_modules=["q_proj", "up_proj"],
            base=None,
        )
        found.append(read_adapter(folder / f"{r:02d}"))
    return found


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 20, generator=generator), torch.randn(24, 4, generator=generator)


def around(centre: int, noise: float, r: int, start=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rank 2 + 2: a common part, and one of the replica's own."""
    (A, B), (C, D) = drawn(1000 + centre), drawn(start + 50 * r + centre)
    return torch.cat([A[:2], noise * C[:2]]), torch.cat([B[:, :2], D[:, :2]], dim=1)


def population(adapters, name="a", seeds=None):
    numbers = range(len(adapters))
    return Population(name, adapters, numbers, seeds or [{"init": r, "order": 7} for r in numbers])


def gram_of(x_RD: np.ndarray) -> np.ndarray:
    return x_RD @ x_RD.T


# -- the figure ----------------------------------------------------------------------------------


def test_copies_have_no_spread(tmp_path):
    found = modules([population(written(tmp_path, lambda r, name: drawn(3)))])[0]
    for row in (found.total, *found.modules):
        assert (
            row.spread.value == 0
            and row.spread.low is None
            and not row.spread.conclusive
            and "equal" in row.spread.note
        )


def test_independent_changes_in_many_dimensions_have_nothing_in_common():
    x_RD = np.random.default_rng(0).standard_normal((12, 20_000))
    found = weight_spread(gram_of(x_RD))
    assert (
        found.value == pytest.approx(1.0, abs=0.01)
        and found.low < 1 < found.high
        and found.conclusive
    )


def test_the_spread_is_that_of_the_dense_changes(tmp_path):
    adapters = written(tmp_path, lambda r, name: around(len(name), 0.4, r), n=5)
    found = modules([population(adapters)])[0]

    def brute(names) -> float:
        x_RD = torch.stack(
            [torch.cat([dense(a.factors(name)).flatten() for name in names]) for a in adapters]
        ).numpy()
        distances = [np.sum((x_RD[i] - x_RD[j]) ** 2) for i in range(5) for j in range(i)]
        return float(np.mean(distances) / 2 / np.mean(np.sum(x_RD**2, axis=1)))

    assert {row.name: row.spread.value for row in found.modules} == pytest.approx(
        {name: brute([name]) for name in SHAPES}
    )
    assert found.total.spread.value == pytest.approx(brute(SHAPES))
    assert {row.name: row.spread.value for row in found.kinds} == pytest.approx(
        {
            kind: brute([name for name in SHAPES if name.endswith(kind)])
            for kind in ("self_attn.q_proj", "mlp.up_proj")
        }
    )
    assert [row.name for row in found.layers] == ["0", "1", "10"]
    for rows in (found.kinds, found.layers, found.modules):
        assert sum(row.share for row in rows) == pytest.approx(1.0)


def test_the_gauge_of_the_factors_does_not_matter(tmp_path):
    def turned(r: int, name: str):
        A, B = around(len(name), 0.4, r)
        G = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(r))
        return torch.linalg.inv(G) @ A, B @ G

    plain = modules(
        [population(written(tmp_path / "a", lambda r, name: around(len(name), 0.4, r)))]
    )[0]
    other = modules([population(written(tmp_path / "b", turned))])[0]
    for one, two in zip(plain.modules, other.modules, strict=True):
        assert (two.spread.value, two.spread.low, two.spread.high) == pytest.approx(
            (one.spread.value, one.spread.low, one.spread.high), rel=1e-4
        )


def test_a_module_that_nobody_changes_has_no_spread(tmp_path):
    found = weight_spread(np.zeros((9, 9)))
    assert found.value is None and found.low is None and "no run changes" in found.note
    some = modules(
        [
            population(
                written(tmp_path, lambda r, name: drawn(r) if r < 4 or "q_proj" in name else None)
            )
        ]
    )[0]
    assert some.kinds[1].name == "self_attn.q_proj" and all(
        row.spread.value is not None for row in some.modules
    )


@pytest.mark.parametrize(("name", "expected"), [
    ("model.layers.3.self_attn.q_proj", ("3", "self_attn.q_proj")),
    ("transformer.h.11.attn.c_attn", ("11", "attn.c_attn")),
    ("lm_head", ("", "lm_head")),
])  # fmt: skip
def test_place_of_a_module(name, expected):
    assert place(name) == expected


# -- its interval --------------------------------------------------------------------------------


def changes(rng, runs: int, dimensions: int, spread: float, size=0.0) -> np.ndarray:
    """A common direction and noise in some dimensions; runs differ in length by `size` on the log
    scale.
    """
    x_RD = math.sqrt(spread / dimensions) * rng.standard_normal((runs, dimensions))
    x_RD[:, 0] += math.sqrt(1 - spread)
    return x_RD * np.exp(size * rng.standard_normal((runs, 1)))


def true_spread(spread: float, size: float) -> float:
    return 1 - (1 - spread) * math.exp(-(size**2))


@pytest.mark.parametrize(("runs", "dimensions", "spread", "size"), [
    (8, 200, 0.05, 0.0), (8, 20, 0.5, 0.3), (8, 3, 0.95, 0.0), (16, 1, 0.05, 0.3), (32, 3, 0.95,
        0.3), (32, 200, 1.0, 0.3),
])  # fmt: skip
def test_intervals_cover(runs, dimensions, spread, size):
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        found = weight_spread(gram_of(changes(rng, runs, dimensions, spread, size)))
        held += found.low <= true_spread(spread, size) <= found.high
    assert held >= 0.9 * 300


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("runs", "dimensions"), [(8, 50), (24, 3)])
def test_ratios_cover_and_their_p_values_are_small_as_rarely_as_they_say(paired, runs, dimensions):
    rng, held, found_different = np.random.default_rng(2), 0, 0
    for _ in range(300):
        a, same = changes(rng, runs, dimensions, 0.4), changes(rng, runs, dimensions, 0.4)
        if paired:
            same[:, 1:] = 0.6 * a[:, 1:] + 0.8 * same[:, 1:]
        ratio = weight_spread_ratio(gram_of(same), gram_of(a), paired=paired)
        held += ratio.low <= 1 <= ratio.high
        found_different += ratio.p < 0.05
        assert (ratio.p < 0.05) == (not ratio.low <= 1 <= ratio.high)
    assert held >= 0.92 * 300 and found_different <= 0.08 * 300


def test_a_true_difference_is_found_and_pairs_help():
    rng = np.random.default_rng(3)
    a = changes(rng, 16, 50, 0.4)
    half = a.copy()
    half[:, 1:] *= 0.7
    apart, together = (
        weight_spread_ratio(gram_of(half), gram_of(a), paired=paired) for paired in (False, True)
    )
    assert together.conclusive and together.high < 1 and together.p < apart.p


def test_too_few_or_wrong_inputs():
    x_RD = np.random.default_rng(0).standard_normal((5, 40))
    few = weight_spread(gram_of(x_RD))
    assert few.low is not None and not few.conclusive and few.needed == st.MIN_RUNS_WEIGHTS
    assert weight_spread(gram_of(x_RD[:2])).low is None
    for call, told in (
        (lambda: weight_spread(x_RD), "square"),
        (lambda: weight_spread(np.full((3, 3), np.nan)), "not finite"),
        (lambda: weight_spread_ratio(np.eye(3), np.eye(4), paired=True), "paired"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


# -- populations ---------------------------------------------------------------------------------


def test_conditions_are_held_against_the_first_as_pairs_of_the_same_seeds(tmp_path):
    a = written(tmp_path / "a", lambda r, name: around(len(name), 0.4, r))
    b = written(
        tmp_path / "b",
        lambda r, name: around(len(name), 0.1 if name.startswith("layers.0.") else 0.4, r, start=0),
    )
    first, second = modules([population(a), population(b, "b")])
    assert first.baseline == "" and first.modules[0].ratio is None
    assert second.baseline == "a" and second.paired
    tested = {row.name: row for row in second.modules if row.ratio.p is not None}
    # the others are pairs of equals
    assert set(tested) == {name for name in SHAPES if name.startswith("layers.0.")}
    assert all(row.p_adjusted < 0.05 and row.ratio.high < 1 for row in tested.values())
    third = modules([population(a), population(b, "b", [{"init": 100 + r} for r in range(8)])])[1]
    p, adjusted = zip(*((row.ratio.p, row.p_adjusted) for row in third.modules), strict=True)
    assert not third.paired and adjusted == pytest.approx(false_discovery_control(p))
    assert "against a" in modules_text([first, third])


def test_replicas_that_share_seeds_are_not_taken_for_independent(tmp_path):
    adapters = written(tmp_path, lambda r, name: around(len(name), 0.4, r))
    crossed = [{"init": r // 4, "order": r % 4} for r in range(8)]
    found = modules([population(adapters, seeds=crossed)])[0]
    assert not found.total.spread.conclusive and "share their init" in found.total.spread.note
    # one order for all is what the figure is about
    assert modules([population(adapters)])[0].total.spread.conclusive


def test_only_figures_of_the_replicas_that_were_measured_reach_the_report(tmp_path):
    found = modules(
        [population(written(tmp_path / "a", lambda r, name: around(len(name), 0.4, r)))]
    )
    save_modules(tmp_path, found)
    assert _read_modules(tmp_path, [ConditionDesign("a", range(8))]) == found
    assert _read_modules(tmp_path, [ConditionDesign("a", range(9))]) == ()
    empty = Results(About(), 0.95, (), None, (), (), modules=found)
    html = render(empty)
    assert "Which modules replicas change alike" in html and "layers.10.mlp.up_proj" in html
    (tmp_path / "modules.json").write_text("[{}]")
    with pytest.raises(JsonError, match="ftk modules"):
        _read_modules(tmp_path, [])


def test_the_command_takes_any_folder_of_adapters(tmp_path):
    written(tmp_path / "a", lambda r, name: around(len(name), 0.4, r))
    shown = CliRunner().invoke(main, ["modules", str(tmp_path / "a")])
    assert shown.exit_code == 0 and "a: 8 replicas" in shown.output and "most alike" in shown.output
    told = json.loads(CliRunner().invoke(main, ["modules", str(tmp_path / "a"), "--json"]).stdout)
    assert len(told["conditions"][0]["modules"]) == len(SHAPES)
    alone = CliRunner().invoke(main, ["modules", str(tmp_path / "a" / "00")])
    assert (
        alone.exit_code == BAD_INPUT
        and "a spread takes two or more" in alone.output
        and len(alone.output.splitlines()) == 1
    )


def test_of_a_run_whole_models_are_left_out(tmp_path, monkeypatch):
    """They have no factors; a run that has adapters too is still told, and one that has none says
    so.
    """
    claim(tmp_path, RUN)
    (tmp_path / "recipe.yaml").touch()
    whole = tmp_path / "full" / "replicas" / "00000"
    whole.mkdir(parents=True)
    (whole / "full.json").touch()
    found: list[list[str]] = []
    monkeypatch.setattr(
        inspect_given, "collections_of", lambda sources: [(tmp_path / "full", [whole])]
    )
    with pytest.raises(RuntimeError, match="none of its conditions trains adapters"):
        inspect_given.module_spreads([tmp_path])
    monkeypatch.setattr(
        inspect_given,
        "modules",
        lambda populations: found.append([one.name for one in populations]),
    )
    monkeypatch.setattr(inspect_given, "save_modules", lambda folder, modules: None)
    monkeypatch.setattr(
        inspect_given, "read_adapter", lambda path: SimpleNamespace(base=None, revision=None)
    )
    monkeypatch.setattr(
        inspect_given, "under_one_naming", lambda adapters, identity: (adapters, [])
    )
    monkeypatch.setattr(inspect_given, "copies", lambda adapters: "")
    adapters = [(tmp_path / "lora", [tmp_path / "a", tmp_path / "b"]), (tmp_path / "full", [whole])]
    monkeypatch.setattr(inspect_given, "collections_of", lambda sources: adapters)
    inspect_given.module_spreads([tmp_path])
    assert found == [["lora"]]
