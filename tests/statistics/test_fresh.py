"""Runs that share levels of sources, clusters of unequal size: laws by brute force, and coverage in
worlds that have them.
"""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.measured import folder_of
from helpers.outcomes_of import World
from worlds import simulate
from worlds.unkind import design_world, levels_of, unkind_world

from toolkit import statistics as st
from toolkit.measurement.analyse import analyse
from toolkit.measurement.claims import hold_claims
from toolkit.record.results import ConditionDesign, MitigationDesign, Price
from toolkit.statistics.fresh import fresh_pairs, independent_runs, shared_sources
from toolkit.statistics.intervals import between_clusters, leverage, two_way

Levels = dict[str, np.ndarray]


def is_fresh(levels: Levels, r: int, s: int) -> bool:
    """By definition; a source that all runs share is held, not drawn."""
    return all(
        level_R[r] != level_R[s] for level_R in levels.values() if len(set(level_R.tolist())) > 1
    )


def holed(seed: int) -> Levels:
    """Three sources of a few levels, runs at random."""
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, n, 17) for name, n in (("init", 5), ("order", 4), ("dropout", 6))}


DESIGNS = {
    "grid 5 x 7": levels_of("5x7"),
    "grid 7 x 5": levels_of("7x5"),
    "nested 6 / 4": levels_of("6/4"),
    "repeated 4 x 4": levels_of("4x4r2"),
    "held": {**levels_of("4x5"), "dropout": np.zeros(20, dtype=int)},
    "three": {**levels_of("4x5"), "dropout": np.arange(20) % 3},
    "gaps": {
        name: level_R[[0, 1, 2, 5, 9, 11, 12, 18]] for name, level_R in levels_of("4x5").items()
    },
    **{f"random {seed}": holed(seed) for seed in range(4)},
}
KEPT = {
    "grid 5 x 7": 5,
    "grid 7 x 5": 5,
    "nested 6 / 4": 6,
    "repeated 4 x 4": 4,
    "held": 4,
    "three": 3,
}


# -- a set of runs that share nothing ------------------------------------------------------------


@pytest.mark.parametrize("title", DESIGNS)
def test_independent_runs_share_nothing_and_none_could_be_added(title):
    levels = DESIGNS[title]
    n_runs = len(next(iter(levels.values())))
    rows = independent_runs(levels, n_runs).tolist()
    assert rows == sorted(set(rows)) and len(rows) == KEPT.get(title, len(rows))
    assert all(is_fresh(levels, r, s) for r, s in itertools.combinations(rows, 2))
    for other in set(range(n_runs)) - set(rows):
        assert not all(is_fresh(levels, other, r) for r in rows), f"row {other} could be added"


@pytest.mark.parametrize("seed", range(6))
def test_of_two_sources_as_many_as_can_be(seed):
    """Whatever cells of the grid are there; the greedy choice would miss some."""
    rng = np.random.default_rng(seed)
    there = np.argwhere(rng.random((5, 4)) < 0.4)
    levels = {"init": there[:, 0], "order": there[:, 1]}
    most = next(
        size
        for size in range(4, -1, -1)
        for rows in itertools.combinations(range(len(there)), size)
        if all(is_fresh(levels, r, s) for r, s in itertools.combinations(rows, 2))
    )
    assert len(independent_runs(levels, len(there))) == most


def test_runs_that_share_nothing_stay_all():
    for levels in (
        {},
        {"init": np.arange(9), "order": np.arange(9)[::-1]},
        {"init": np.zeros(9), "order": np.arange(9)},
    ):
        assert shared_sources(levels, 9) == {} and independent_runs(levels, 9).tolist() == list(
            range(9)
        )
    with pytest.raises(ValueError, match="init must name one level for each of the 9 runs"):
        independent_runs({"init": np.arange(8)}, 9)


# -- how often fresh pairs disagree --------------------------------------------------------------


def over_fresh_pairs(answer_RP: np.ndarray, levels: Levels) -> np.ndarray:
    pairs = [
        (r, s)
        for r, s in itertools.combinations(range(len(answer_RP)), 2)
        if is_fresh(levels, r, s)
    ]
    share_P = np.full(answer_RP.shape[1], np.nan)
    for i, answer_R in enumerate(answer_RP.T):
        differ = [
            answer_R[r] != answer_R[s] for r, s in pairs if answer_R[r] >= 0 and answer_R[s] >= 0
        ]
        if differ:
            share_P[i] = np.mean(differ)
    return share_P


@pytest.mark.parametrize("title", DESIGNS)
def test_fresh_pairs_are_all_pairs_that_share_nothing_and_leaving_a_level_out_is_recomputing(title):
    levels = DESIGNS[title]
    n_runs = len(next(iter(levels.values())))
    answer_RP = np.random.default_rng(1).integers(-1, 3, (n_runs, 12))
    sources = shared_sources(levels, n_runs)
    value_P, left = fresh_pairs(answer_RP, sources)
    np.testing.assert_allclose(value_P, over_fresh_pairs(answer_RP, levels), atol=1e-12)
    for left_LP, code_R in zip(left, sources.values(), strict=True):
        assert len(left_LP) == code_R.max() + 1
        for level, left_P in enumerate(left_LP):
            kept = code_R != level
            # of the runs that are left a source may have one level, which is then no longer drawn:
            # so the whole design says who is fresh
            direct_P = over_fresh_pairs(np.where(kept[:, None], answer_RP, -1), levels)
            np.testing.assert_allclose(left_P, direct_P, atol=1e-12)


@pytest.mark.parametrize("title", DESIGNS)
def test_disagreement_of_a_design_is_that_of_its_fresh_pairs(title):
    levels = DESIGNS[title]
    answer_RP = np.random.default_rng(2).integers(0, 3, (len(next(iter(levels.values()))), 30))
    found = st.disagreement(answer_RP, levels=levels)
    assert found.value == pytest.approx(np.nanmean(over_fresh_pairs(answer_RP, levels)))
    few = (
        min(
            len(set(level_R.tolist()))
            for level_R in levels.values()
            if len(set(level_R.tolist())) > 1
        )
        < 5
    )
    assert found.conclusive == st.accuracy(answer_RP == 0, levels=levels).conclusive == (not few)
    assert not few or "levels of" in found.note


@pytest.mark.parametrize("figure", [st.disagreement, st.accuracy])
def test_where_no_level_is_shared_levels_change_nothing(figure):
    answer_RP = np.random.default_rng(3).integers(0, 2, (12, 40))
    cluster_P = np.arange(40) // 2
    levels = {
        "init": np.arange(12),
        "order": np.arange(12)[::-1],
        "dropout": np.zeros(12, dtype=int),
    }
    assert figure(answer_RP, cluster_P=cluster_P, levels=levels) == figure(
        answer_RP, cluster_P=cluster_P
    )


@pytest.mark.parametrize("figure", [st.disagreement, st.accuracy])
def test_a_design_is_known_by_its_levels_not_by_their_names_nor_by_the_order_of_runs(figure):
    levels = levels_of("6x7")
    answer_RP = np.random.default_rng(4).integers(0, 2, (42, 40))
    order = np.random.default_rng(5).permutation(42)
    named = {
        name: np.array([f"{name} {9 - level}" for level in level_R])[order]
        for name, level_R in levels.items()
    }
    one, other = figure(answer_RP, levels=levels), figure(answer_RP[order], levels=named)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_copies_of_a_run_are_no_more_runs():
    """Every run of a grid twice: the disagreement, and how well it is known, stay where they
    are.
    """
    levels, answer_RP = levels_of("7x7"), np.random.default_rng(6).integers(0, 2, (49, 60))
    once = st.disagreement(answer_RP, levels=levels)
    twice = st.disagreement(
        np.tile(answer_RP, (2, 1)),
        levels={name: np.tile(level_R, 2) for name, level_R in levels.items()},
    )
    assert (once.value, once.low, once.high) == pytest.approx((twice.value, twice.low, twice.high))


# -- one figure wherever it is printed -----------------------------------------------------------

CLAIM = {
    "name": "C",
    "says": "runs differ",
    "about": {},
    "quantity": "disagreement",
    "prompts": "far",
    "range": [0.0, 0.9],
}


class Crossed(World):
    """64 runs, 8 initial weights x 8 orders."""

    @property
    def designs(self) -> list[ConditionDesign]:
        factors = {name: level_R.tolist() for name, level_R in levels_of("8x8").items()}
        return [replace(super().designs[0], factors=factors).independent()]


def test_a_crossed_condition_has_one_disagreement_in_table_sources_and_claims(tmp_path):
    world = Crossed(64, per_category=20)
    results = analyse(world.table, world.prompts, world.designs)
    shown = results.conditions[0].single.cell("far").disagreement
    (source,) = [
        source
        for source in results.conditions[0].sources
        if (source.shift, source.figure) == ("far", "disagreement")
    ]
    (tmp_path / "claims.yaml").write_text(json.dumps({"claims": [CLAIM]}))
    claims = hold_claims(folder_of(world, tmp_path), tmp_path / "claims.yaml")
    (foretold,) = [row.differ for row in claims.outlook if (row.shift, row.category) == ("far", "")]
    code = {
        answer: n
        for n, answer in enumerate(sorted({a for row in world.answers.values() for a in row}))
    }
    far = [i for i, (_, prompt) in enumerate(world.flat) if prompt.shift == "far"]
    answer_RP = np.array([[code[world.answers[r][i]] for i in far] for r in range(64)])
    direct = st.disagreement(answer_RP, levels=levels_of("8x8"))
    for found in (shown, source.total, foretold, claims.tested[0].estimate):
        assert (found.value, found.low, found.high) == pytest.approx(
            (direct.value, direct.low, direct.high)
        )
    assert shown.value != pytest.approx(st.disagreement(answer_RP).value), (
        "runs that share a seed are other pairs"
    )


def test_groups_whose_members_share_levels_are_dropped():
    members = [[0, 9], [18, 27], [36, 37], [45, 54]]  # on the diagonal of the grid, but for 37
    mitigation = MitigationDesign("vote-k2", "vote", "ensemble", 2, members, Price(2, 2, 8))
    factors = {name: level_R.tolist() for name, level_R in levels_of("8x8").items()}
    design = ConditionDesign(
        "lora", range(64), mitigations=[mitigation], factors=factors
    ).independent()
    kept = design.mitigations[0]
    assert len(design.replicas) == 8 and list(design.everyone) == list(range(64))
    fresh = set(design.replicas)
    assert [list(group) for group in kept.members] == [
        group for group in members if set(group) <= fresh
    ]
    assert [list(mitigation.members[run]) for run in kept.runs] == [
        list(group) for group in kept.members
    ], "a group keeps its number"
    levels = levels_of("8x8")
    assert kept.members and [36, 37] not in kept.members
    rows = [row for group in kept.members for row in group]
    assert all(is_fresh(levels, r, s) for r, s in itertools.combinations(rows, 2))
    assert design.independent() == design


# -- clusters of unequal size --------------------------------------------------------------------


@pytest.mark.parametrize(("clusters", "size"), [(2, 3), (12, 1), (30, 7)])
def test_equal_clusters_have_the_usual_weights_and_degrees_of_freedom(clusters, size):
    known = leverage(np.full(clusters, size))
    np.testing.assert_allclose(known.weight_C, clusters / (clusters - 1))
    assert (known.df, known.effective) == (pytest.approx(clusters - 1), pytest.approx(clusters))


@pytest.mark.parametrize("size_C", [[1, 2, 3], [10] + [1] * 30, list(range(1, 20)), [4, 4, 4, 5]])
def test_unequal_clusters_know_less_than_as_many_equal_ones(size_C):
    size_C = np.array(size_C)
    known, order = leverage(size_C), np.random.default_rng(0).permutation(len(size_C))
    assert 0 < known.df < len(size_C) - 1 and 1 < known.effective < len(size_C)
    moved, larger = leverage(size_C[order]), leverage(3 * size_C)
    np.testing.assert_allclose(moved.weight_C, known.weight_C[order])
    assert (moved.df, larger.df, larger.effective) == pytest.approx(
        (known.df, known.df, known.effective)
    )


def test_degrees_of_freedom_match_the_moments_of_the_variance_of_independent_prompts():
    """Satterthwaite: 2 mean^2 / variance of V_P, for normal prompts that share nothing within their
    clusters.
    """
    size_C = np.array([30, 12, 9, 6, 5, 4, 4, 3, 3, 2])
    name_P, rng = np.repeat(np.arange(10), size_C), np.random.default_rng(0)
    drawn = np.array(
        [
            between_clusters(rng.normal(size=len(name_P)), name_P, np.zeros(10), 0.0)[0]
            for _ in range(20_000)
        ]
    )
    assert 2 * drawn.mean() ** 2 / drawn.var() == pytest.approx(leverage(size_C).df, rel=0.05)


@pytest.mark.parametrize("figure", [st.disagreement, st.accuracy])
def test_a_prompt_a_cluster_is_no_clusters_and_the_order_of_prompts_says_nothing(figure):
    rng = np.random.default_rng(7)
    answer_RP = rng.integers(0, 2, (12, 90))
    name_P = np.repeat(np.arange(20), np.array([14] + [4] * 19))
    order = rng.permutation(90)
    for one, other in (
        (figure(answer_RP), figure(answer_RP, cluster_P=np.arange(90)[::-1])),
        (figure(answer_RP, cluster_P=name_P), figure(answer_RP[:, order], cluster_P=name_P[order])),
    ):
        assert (one.value, one.low, one.high, one.conclusive) == pytest.approx(
            (other.value, other.low, other.high, other.conclusive)
        )


def test_what_no_run_adds_is_taken_off_no_cluster():
    """Noise of single answers is taken off a cluster's deviation, never the runs' own movement of
    the whole suite.
    """
    rng = np.random.default_rng(8)
    value_P, name_P = rng.normal(size=60), np.repeat(np.arange(8), [20, 10, 10, 5, 5, 4, 3, 3])
    together_JP = value_P + rng.normal(size=(10, 1)) + np.zeros((10, 60))
    assert two_way(value_P, together_JP, name_P).prompts == pytest.approx(
        between_clusters(value_P, name_P, np.zeros(8), 0.0)[0], rel=1e-9
    )


# -- intervals cover -----------------------------------------------------------------------------

RANK = {"prompts": 120, "clusters": 30, "sizes": "rank"}
DOMINANT = {"prompts": 300, "clusters": 30, "sizes": "dominant"}
WORLDS = {
    **{
        f"{figure}, {s['sizes']}": unkind_world(figure, 10, **s)
        for figure in ("disagreement", "accuracy")
        for s in (RANK, DOMINANT)
    },
    **{
        f"{figure}, {d}": design_world(figure, d, 50)
        for figure in ("disagreement", "accuracy")
        for d in ("8x8", "5x20")
    },
}


@pytest.mark.parametrize("title", WORLDS)
def test_intervals_cover_in_worlds_that_are_not_kind(title):
    tally = simulate(WORLDS[title], 200, seed=list(WORLDS).index(title))
    assert tally.printed == 200 and tally.coverage >= 0.92, f"covered {tally.coverage:.3f}"


def test_pairs_that_share_a_seed_would_not_do():
    """Why fresh pairs: in a world where initial weights decide, all pairs of a grid disagree less
    than two fresh runs do.
    """
    rng = np.random.default_rng(0)
    found = [design_world("disagreement", "8x8", 100, main=0.0, own=1.5)(rng) for _ in range(30)]
    fresh, truth = np.array([estimate.value for estimate, _ in found]), found[0][1]
    assert abs(fresh.mean() - truth) < 4 * fresh.std() / np.sqrt(30)
