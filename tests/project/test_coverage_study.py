"""The coverage study finds an interval that misses, says why, and says the same on every machine
and with any number of processes.
"""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import CLASSES, Tally, World, simulate, unkind
from worlds.core import (
    combine,
    disagreement_world,
    group_truth,
    group_world,
    latents,
    logits,
    population_truths,
    spread_on_suite,
)

from toolkit.statistics import Estimate

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coverage.py"


def load_study():
    """By its path: an installed `coverage` package may have the name."""
    spec = importlib.util.spec_from_file_location("coverage_study", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


study = load_study()


# -- what an interval is called ------------------------------------------------------------------


def mean_world(width=1.0, shift=0.0, conclusive=lambda z: True, interval=True) -> World:
    """The mean of a normal sample, whose 95 % interval is exact: scaled by `width`, with the truth
    moved by `shift` standard errors.
    """

    def world(rng: np.random.Generator):
        z = float(rng.standard_normal())
        half = 1.959964 * width
        ends = (z - half, z + half) if interval else (None, None)
        return Estimate(z, *ends, 0.95, 5, 5, "z", conclusive(z)), shift

    return world


def kind(world: World) -> str:
    return simulate(world, 1500, seed=1).kind()


def test_an_exact_interval_is_ok():
    tally = simulate(mean_world(), 1500, seed=1)
    assert tally.kind() == "ok" and abs(tally.coverage - 0.95) < 0.02
    assert tally.error[0] < 0.95 < tally.error[1]
    assert tally.width == pytest.approx(2 * 1.959964)


def test_a_halved_interval_and_a_shifted_truth_fail():
    assert kind(mean_world(width=0.5)) == "FAIL"
    assert kind(mean_world(shift=1.0)) == "FAIL"


def test_an_interval_twice_as_wide_is_conservative():
    assert kind(mean_world(width=2.0)) == "conservative"


def test_misses_are_guarded_only_where_the_estimator_says_inconclusive():
    assert kind(mean_world(width=0.5, conclusive=lambda z: False)) == "guarded"
    # it knows which samples are bad
    assert kind(mean_world(width=0.5, conclusive=lambda z: abs(z) < 0.9)) == "guarded"
    assert kind(mean_world(width=0.5, conclusive=lambda z: abs(z) < 1.5)) == "FAIL"
    # claims in 3 % of the samples
    assert kind(mean_world(width=0.5, conclusive=lambda z: z > 1.9)) == "guarded"
    assert kind(mean_world(interval=False)) == "guarded"


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        (1900, "ok"),
        (1841, "ok"),
        (1835, "FAIL"),
        (1952, "ok"),
        (1957, "conservative"),
        (2000, "conservative"),
        (0, "FAIL"),
    ],
)
def test_what_monte_carlo_error_may_explain_is_ok(held, expected):
    """Of 2000 samples 93 % are 1860: an interval of the coverage that reaches it is no finding, nor
    one that reaches 1940.
    """
    assert Tally(2000, 2000, held, 2000, held, None).kind() == expected


def test_samples_without_an_interval_do_not_count_as_covered():
    tally = Tally(1000, 200, 100, 200, 100, 1.0)
    assert tally.coverage == 0.5 and tally.kind() == "FAIL"
    assert math.isnan(Tally(10, 0, 0, 0, 0, None).coverage)


def test_runs_that_are_not_in_the_sample_excuse_as_many_misses_as_samples_without_them():
    """0.95^30 = 21 % of samples of 30 hold none of the 5 % failed runs."""
    unseen = study.Cell("disagreement", {"replicas": 30, "prompts": 500, "garbage": 0.05}).unseen
    assert unseen == pytest.approx(0.2146, abs=1e-4)
    assert Tally(2000, 2000, 1600, 2000, 1600, None).kind(unseen) == "unseen"
    assert Tally(2000, 2000, 1300, 2000, 1300, None).kind(unseen) == "FAIL"
    assert Tally(2000, 2000, 1600, 2000, 1600, None).kind() == "FAIL"
    assert study.Cell("disagreement", {"replicas": 30, "prompts": 500}).unseen == 0
    # of four, three are right with probability 5/16: so often do all of four groups decide alike
    votes = study.Cell(
        "unkind.vote_ratio", {"replicas": 16, "prompts": 150, "kinds": 0.5, "drop": 8.0, "k": 4}
    ).unseen
    assert votes == pytest.approx((5 / 16) ** 4 + (11 / 16) ** 4)


def broken(world: World, width=1.0, shift=0.0) -> World:
    def worse(rng: np.random.Generator):
        estimate, truth = world(rng)
        assert estimate.value is not None and estimate.low is not None and estimate.high is not None
        value = estimate.value
        return replace(
            estimate,
            low=value + width * (estimate.low - value),
            high=value + width * (estimate.high - value),
        ), truth + shift

    return worse


def test_a_real_statistic_is_ok_and_its_broken_versions_fail():
    world = disagreement_world(10, 100)
    assert simulate(world, 300, seed=3).kind() == "ok"
    assert simulate(broken(world, width=0.5), 300, seed=3).kind() == "FAIL"
    assert simulate(broken(world, shift=0.06), 300, seed=3).kind() == "FAIL"


# -- the same figures everywhere -----------------------------------------------------------------


def test_a_seed_makes_a_simulation_reproducible_and_a_longer_one_begins_alike():
    seen: list[list[float]] = [[], [], []]

    def recorded(into: list[float]) -> World:
        def world(rng: np.random.Generator):
            estimate, truth = mean_world()(rng)
            into.append(estimate.value or 0.0)
            return estimate, truth

        return world

    for into, (repetitions, seed) in zip(seen, [(5, 1), (9, 1), (5, 2)], strict=True):
        simulate(recorded(into), repetitions, seed)
    assert seen[0] == seen[1][:5] and seen[0] != seen[2]


def test_every_cell_has_a_seed_of_its_own():
    cells = study.cells("full")
    assert len({cell.title for cell in cells}) == len({cell.seed for cell in cells}) == len(cells)
    # by name, not by place or process
    assert study.Cell("accuracy", {"replicas": 5}).seed == 1188085177425732006


def test_results_do_not_depend_on_the_number_of_processes(tmp_path):
    """Two of the script, and this one alone."""
    command = [
        sys.executable,
        SCRIPT,
        "--only",
        "failure_rate",
        "--repetitions",
        "40",
        "--workers",
        "2",
    ]
    out = tmp_path / "found.json"
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["cells"]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["cells"] == sum(last["counts"].values()) == len(rows)
    assert "minutes on" in done.stderr.splitlines()[0]  # said before it starts
    assert rows == [study.measure(cell, 40) for cell in study.cells("quick", "failure_rate")]


def test_an_update_keeps_the_other_cells_and_its_place_in_the_study():
    def rows(name: str, repetitions: int) -> list[dict]:
        return [
            {"statistic": name, "world": cell.settings, "repetitions": repetitions}
            for cell in study.cells("full", name)
        ]

    old = rows("failure_rate", 20) + rows("base accuracy", 20)
    assert study.joined(old, rows("failure_rate", 30)) == rows("failure_rate", 30) + rows(
        "base accuracy", 20
    )
    assert study.joined(rows("base accuracy", 20), rows("accuracy", 1))[0] == rows("accuracy", 1)[0]


# -- what is swept -------------------------------------------------------------------------------


def test_the_full_study_spans_the_sizes_and_leaves_out_what_costs_too_much():
    found = [cell.settings for cell in study.cells("full", "disagreement")]
    for name, values in (
        ("replicas", {3, 4, 5, 10, 30, 100, 1000}),
        ("prompts", {30, 50, 100, 500, 5000}),
        ("run_sd", {0.0, 0.2, 0.7, 1.0}),
    ):
        assert {settings[name] for settings in found} == values
    for flaw in ("failed", "garbage", "per_cluster", "missing"):
        assert any(flaw in settings for settings in found)
    assert {
        settings["k"]
        for settings in (cell.settings for cell in study.cells("full", "disagreement_ratio"))
    } == {2, 4, 8}
    assert all(cell.answers <= study.MOST_ANSWERS for cell in study.cells("full"))
    assert {
        (cell.settings["replicas"], cell.settings["prompts"]) for cell in study.cells("corner")
    } == {(1000, 5000)}


def test_quick_is_part_of_full():
    quick, full = ({cell.title for cell in study.cells(name)} for name in ("quick", "full"))
    assert quick < full and {cell.statistic for cell in study.cells("quick")} == set(study.SWEEPS)


@pytest.mark.parametrize("name", study.SWEEPS)
def test_every_statistic_gives_a_row_that_json_can_hold(name):
    cell = min(study.cells("full", name), key=lambda cell: cell.answers)
    row = study.measure(cell, 1)
    assert row["class"] in CLASSES and json.loads(json.dumps(row, allow_nan=False)) == row


def test_the_table_shows_what_is_not_ok_with_sizes_on_one_line():
    row = {"statistic": "s", "coverage": 0.9, "conclusive": 1.0}
    worlds = [("FAIL", 5, 50), ("FAIL", 5, 500), ("FAIL", 10, 50), ("ok", 30, 50)]
    rows = [
        {**row, "class": kind, "world": {"replicas": n, "prompts": m, "run_sd": 0.7}}
        for kind, n, m in worlds
    ]
    rows[1]["coverage"] = 0.8
    lines = study.markdown(rows).splitlines()
    assert lines[2:] == ["| s | run_sd=0.7 | 5 x 50, 500; 10 x 50 | 80.0-90.0 | 100.0 | FAIL |"]


# -- the truths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.2), (18, 2), (0.02, 0.02), (0.5, 0.005)])
def test_truths_without_a_run_effect_are_those_of_the_beta(a, b):
    truths = population_truths(a, b, 0.0, 0.0)
    assert truths["accuracy"] == pytest.approx(a / (a + b), rel=1e-9)
    assert truths["disagreement"] == pytest.approx(2 * a * b / (a + b) / (a + b + 1), rel=1e-9)
    assert truths["distribution_variance"] == pytest.approx(0.0, abs=1e-12)


def test_truths_with_run_effect_and_unmarked_failures_are_those_of_a_large_population():
    rng = np.random.default_rng(5)
    runs, prompts = 1500, 3000
    p_RP = 1 / (1 + np.exp(-(logits(rng, 18, 2, prompts) + 0.7 * rng.standard_normal((runs, 1)))))
    p_RP[rng.random(runs) < 0.2] = 0.5
    mean_P = p_RP.mean(axis=0)
    truths = population_truths(18, 2, 0.7, 0.2)
    assert truths["accuracy"] == pytest.approx(p_RP.mean(), abs=0.015)
    assert truths["disagreement"] == pytest.approx(np.mean(2 * mean_P * (1 - mean_P)), abs=0.01)
    assert truths["distribution_variance"] == pytest.approx(p_RP.mean(axis=1).var(), rel=0.1)


def test_spread_on_a_suite_is_that_of_many_runs_on_it():
    rng = np.random.default_rng(6)
    logit_P = np.repeat(logits(rng, 0.6, 0.2, 20), 2)
    p_RP = 1 / (1 + np.exp(-(logit_P + 0.7 * rng.standard_normal((40_000, 1)))))
    p_RP[rng.random(40_000) < 0.1] = 0.5
    right_RP = rng.random(p_RP.shape) < p_RP
    mean_P = right_RP.mean(axis=0)
    sd, noise = right_RP.mean(axis=1).std(), math.sqrt(np.sum(mean_P * (1 - mean_P))) / 40
    assert spread_on_suite(logit_P, 0.7, 0.1) == pytest.approx(
        {"sd": sd, "excess": sd / noise}, rel=0.02
    )


@pytest.mark.parametrize(
    ("k", "how", "garbage"),
    [(1, "mean", 0.0), (4, "mean", 0.0), (4, "mean", 0.2), (5, "vote", 0.2), (2, "vote", 0.0)],
)
def test_group_truths_are_those_of_fresh_groups(k, how, garbage):
    rng = np.random.default_rng(7)
    one, two, right, d_a, d_b = [], [], [], [], []
    for _ in range(
        3000
    ):  # few prompts with each pair of groups, so that the run effect is drawn often
        latent_RP = latents(rng, 2 * k, 50, 2.0, 4.0, 0.7, garbage=garbage)
        replica_RP, group_GP = latent_RP > 0, combine(latent_RP, k, how)
        one.append(replica_RP.mean())
        right.append(group_GP.mean())
        two.append(group_GP[0] != group_GP[1])
        d_a.append(replica_RP[0] != replica_RP[k])
    d_a, d_b = float(np.mean(d_a)), float(np.mean(two))
    truths = group_truth(2.0, 4.0, 0.7, k, how, garbage)
    assert truths["difference"] == pytest.approx(d_b - d_a, abs=0.006)
    assert truths["ratio"] == pytest.approx(d_b / d_a, abs=0.03)
    assert truths["change"] == pytest.approx(np.mean(right) - np.mean(one), abs=0.006)
    assert truths["kept"] == pytest.approx(np.mean(right) / np.mean(one), abs=0.01)


def test_a_group_of_one_is_its_replica():
    truths = group_truth(2.0, 4.0, 0.7, 1, "mean")
    assert truths == pytest.approx(
        {"ratio": 1.0, "difference": 0.0, "change": 0.0, "kept": 1.0}, abs=1e-12
    )
    assert simulate(group_world("difference", 8, prompts=50, k=1), 20, seed=0).held == 20


# -- the truths of worlds that are not kind ------------------------------------------------------

KINDS = {
    "kind": {},
    "runs of two kinds": {"kinds": 0.2},
    "that differ on some templates": {"kinds": 0.3, "templates": 0.3},
    "garbage": {"garbage": 0.1},
    "heavy tails": {"difficulty": "heavy"},
    "five answers": {"answers": 5},
    "everything": {
        "difficulty": "heavy",
        "answers": 5,
        "kinds": 0.2,
        "templates": 0.5,
        "garbage": 0.1,
    },
}


@pytest.mark.parametrize("title", KINDS)
def test_truths_of_unkind_worlds_are_those_of_a_large_population(title):
    """2,500 runs that answer 2,500 prompts, each its own template: of the answers drawn, with the
    error of both samples.
    """
    kind = unkind.Kind(**KINDS[title])
    rng = np.random.default_rng(8)
    templates = unkind.draw_templates(rng, np.ones(2500, dtype=np.int64), kind)
    population = unkind.draw(rng, 2500, templates, kind)
    share_VP = np.array(
        [(population.answer_RP == code).mean(axis=0) for code in range(kind.answers)]
    )
    differ_P = (1 - np.sum(share_VP**2, axis=0)) * 2500 / 2499
    right_RP = population.answer_RP == 0
    accuracy_R, truths = right_RP.mean(axis=1), unkind.truths(kind)
    # the luck of answers, at most
    own = np.mean(right_RP.mean(axis=0) * (1 - right_RP.mean(axis=0))) / 2500

    def error(x_P: np.ndarray, of_runs: float) -> float:
        return 4 * math.hypot(x_P.std() / 50, of_runs)

    run_error = accuracy_R.std() / 50
    assert truths["accuracy"] == pytest.approx(
        accuracy_R.mean(), abs=error(right_RP.mean(axis=0), run_error)
    )
    assert truths["disagreement"] == pytest.approx(
        differ_P.mean(), abs=error(differ_P, 2 * run_error)
    )
    assert truths["distribution_variance"] == pytest.approx(accuracy_R.var(), rel=0.25, abs=2 * own)
    assert (
        population.answer_RP.max() == kind.answers - 1
        and len(set(population.answer_RP[:, 0].tolist())) <= kind.answers
    )


@pytest.mark.parametrize("title", ["kind", "runs of two kinds", "garbage"])
def test_the_spread_on_an_unkind_suite_is_that_of_many_runs_on_it(title):
    kind, rng = unkind.Kind(**KINDS[title]), np.random.default_rng(9)
    templates = unkind.draw_templates(rng, unkind.sizes_of(60, 12, "rank"), kind)
    population = unkind.draw(rng, 40_000, templates, kind)
    assert unkind.sd_on_suite(population, kind) == pytest.approx(
        (population.answer_RP == 0).mean(axis=1).std(), rel=0.02
    )


@pytest.mark.parametrize("title", ["kind", "runs of two kinds", "garbage"])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_truths_of_votes_are_those_of_fresh_votes(title, k):
    """Few prompts with each pair of groups, so that runs are drawn often."""
    kind, rng = unkind.Kind(**KINDS[title]), np.random.default_rng(10)
    pairs, votes = [], []
    for _ in range(1500):
        templates = unkind.draw_templates(rng, np.ones(40, dtype=np.int64), kind)
        right_GKP = (unkind.draw(rng, 2 * k, templates, kind).answer_RP == 0).reshape(2, k, 40)
        vote_GP = right_GKP.sum(axis=1) > k // 2
        pairs.append((np.mean(right_GKP[0, 0] != right_GKP[1, 0]), right_GKP.mean()))
        votes.append((np.mean(vote_GP[0] != vote_GP[1]), vote_GP.mean()))
    (d_a, right_a), (d_b, right_b) = np.mean(pairs, axis=0), np.mean(votes, axis=0)
    truths = unkind.vote_truths(kind, k)
    assert truths["ratio"] == pytest.approx(d_b / d_a, abs=0.04)
    assert truths["difference"] == pytest.approx(d_b - d_a, abs=0.01)
    assert truths["change"] == pytest.approx(right_b - right_a, abs=0.01)
    assert truths["kept"] == pytest.approx(right_b / right_a, abs=0.015)


@pytest.mark.parametrize("design", ["8x8", "10/4"])
@pytest.mark.parametrize(("main", "own"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_truths_of_designs_are_those_of_runs_with_fresh_levels(design, main, own):
    """Two runs of one draw, with levels of their own in every source, many times."""
    rng = np.random.default_rng(11)
    sources = len(unkind.levels_of(design))
    differ, right = [], []
    for _ in range(1500):
        shift_RP = sum(
            main * rng.standard_normal((2, 1)) + own * rng.standard_normal((2, 100))
            for _ in range(sources)
        )
        logit_RP = (
            unkind.draw_logits(rng, "beta", 100) + shift_RP + 0.2 * rng.standard_normal((2, 1))
        )
        answer_RP = rng.random((2, 100)) < 1 / (1 + np.exp(-logit_RP))
        differ.append(np.mean(answer_RP[0] != answer_RP[1]))
        right.append(answer_RP.mean())
    for figure, found in (("disagreement", np.array(differ)), ("accuracy", np.array(right))):
        truth = unkind.design_world(figure, design, 10, main=main, own=own)(rng)[1]
        assert truth == pytest.approx(found.mean(), abs=4 * found.std() / math.sqrt(1500))


@pytest.mark.parametrize(("sizes", "largest"), [("equal", 10), ("rank", 75), ("dominant", 90)])
def test_templates_have_the_sizes_that_are_asked_for(sizes, largest):
    size_C = unkind.sizes_of(300, 30, sizes)
    assert (
        len(size_C) == 30
        and size_C.min() >= 1
        and size_C.max() == largest
        and abs(size_C.sum() - 300) <= 15
    )


@pytest.mark.parametrize(
    "name", [name for name in study.SWEEPS if name.startswith(("unkind", "design"))]
)
def test_every_unkind_world_can_be_drawn(name):
    for settings in study.SWEEPS[name].settings:
        estimate, truth = study.SWEEPS[name].factory(**settings)(np.random.default_rng(0))
        assert isinstance(estimate, Estimate) and math.isfinite(truth), settings


def test_a_row_of_an_earlier_study_is_classified_by_the_rules_of_today():
    row = {
        "statistic": "disagreement",
        "world": {"replicas": 30, "prompts": 500, "run_sd": 0.7},
        "class": "ok",
        "repetitions": 400,
    }
    row |= {
        "printed": 1.0,
        "coverage": 0.96,
        "conclusive": 1.0,
        "coverage_conclusive": 0.96,
        "width": 0.1,
    }
    assert study.again(row)["class"] == "ok"
    assert study.again(row | {"coverage": 0.8, "coverage_conclusive": 0.8})["class"] == "FAIL"
    # half of them withheld, at a size that is enough
    assert study.again(row | {"conclusive": 0.5})["class"] == "SILENT"
