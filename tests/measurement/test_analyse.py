"""The numbers in results are those of the statistics, whatever the order of the table; what data
cannot support is said so.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from helpers.outcomes_of import World, vote

from toolkit import statistics as st
from toolkit.measurement.analyse import analyse
from toolkit.record.results import (
    About,
    ConditionDesign,
    Price,
    Results,
    load_results,
    save_results,
)
from toolkit.record.words import mitigation_of
from toolkit.report.html import render
from toolkit.report.sweeps import controls
from toolkit.report.terminal import table_text

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart


def results_of(world: World, **options) -> Results:
    return analyse(world.table, world.prompts, world.designs, **options)


@pytest.fixture(scope="module")
def world() -> World:
    world = World(48, failed=(5, 17)).mitigate("vote", 2, vote).mitigate("vote", 4, vote)
    return world.mitigate("collapse", 4, lambda members: world.base, "merge")


@pytest.fixture(scope="module")
def results(world: World) -> Results:
    return results_of(world)


def test_results_are_the_statistics_called_directly(world: World, results: Results) -> None:
    single, mitigation = (
        results.conditions[0].single,
        next(m for m in world.mitigations if m.label == "vote-k4"),
    )
    voted = [vote([world.answers[r] for r in group]) for group in mitigation.members]
    codes = st.encode([world.base, *world.answers.values(), *voted])
    base_P, answer_RP, answer_GP = (
        codes[0],
        codes[1 : 1 + len(world.replicas)],
        codes[1 + len(world.replicas) :],
    )
    members = [[world.replicas.index(r) for r in group] for group in mitigation.members]
    right_P = np.array([prompt.reference for _, prompt in world.flat])
    right_RP = (np.array(list(world.answers.values())) == right_P).astype(float)
    right_GP = (np.array(voted) == right_P).astype(float)
    for shift in ("typical", "near", "far"):
        at = np.array([prompt.shift == shift for _, prompt in world.flat])
        cell, pair = (
            results.conditions[0].procedures[2].cell(shift),
            (answer_GP[:, at], answer_RP[:, at]),
        )
        assert cell and single.cell(shift).disagreement == st.disagreement(answer_RP[:, at])
        assert cell.disagreement == st.disagreement(answer_GP[:, at])
        assert cell.ratio == st.disagreement_ratio(*pair, members)
        assert cell.disagreement_change == st.disagreement_difference(*pair, members)
        assert cell.effect_size == st.effect_size(*pair, base_P[at], members)
        assert cell.accuracy == st.accuracy(right_GP[:, at])
        assert cell.accuracy_change == st.accuracy_change(right_GP[:, at], right_RP[:, at], members)
        assert single.cell(shift).scores == pytest.approx(right_RP[:, at].mean(axis=1))
    at = np.array([prompt.category == "two intents" for _, prompt in world.flat])
    assert single.cell("far", "two intents").disagreement == st.disagreement(answer_RP[:, at])
    assert results.conditions[0].failure_rate == st.failure_rate(2, 48)


def test_order_of_rows_does_not_matter(world: World, results: Results) -> None:
    table = world.table.take(np.random.default_rng(1).permutation(len(world.rows)))
    assert analyse(table, world.prompts, world.designs) == results


def test_planted_instability_is_found_and_the_vote_recommended(results: Results) -> None:
    single = results.conditions[0].single
    assert single.cell("far").disagreement.low > single.cell("typical").disagreement.high
    vote4 = results.conditions[0].procedures[2]
    assert vote4.cell("far").ratio.high < 1 and not vote4.cell("typical").collapsed
    assert "best-supported mitigation is vote, K = 4 (lora)" in results.verdict[1]
    assert "price is 4 training runs per model, and 4 models answer" in results.verdict[1]
    assert "2 of 48 training runs failed" in results.verdict[2]


def test_collapse_to_the_base_is_flagged_and_never_recommended(results: Results) -> None:
    collapsed = results.conditions[0].procedures[3]
    assert collapsed.cell("far").ratio.high < 1, "it is perfectly stable"
    assert collapsed.cell("typical").collapsed and collapsed.cell("typical").effect_size.value == 0
    assert "collapse" not in results.verdict[1]
    assert (
        "fall back towards the base" in results.verdict[2]
        and "collapse, K = 4" in results.verdict[2]
    )


def test_a_merge_that_answers_nonsense_keeps_nothing_though_it_differs_from_the_base() -> None:
    results = results_of(
        World(40).mitigate("broken", 4, lambda members: ["nonsense"] * len(members[0]), "merge")
    )
    broken = results.conditions[0].procedures[1]
    cell = broken.cell("typical")
    assert broken.cell("far").ratio.high < 1 and cell.effect_size.value > 1, (
        "stable, and other than the base"
    )
    assert cell.kept == cell.gain_kept and cell.kept.value < 0 and cell.collapsed
    assert "none is recommended" in results.verdict[1] and "broken, K = 4" in results.verdict[2]


def test_only_a_collapse_resolves_then_nothing_is_recommended() -> None:
    world = World(40)
    world.mitigate("collapse", 4, lambda members: world.base, "merge")
    assert "none is recommended" in results_of(world).verdict[1]


def test_a_mitigation_that_makes_it_worse_is_named() -> None:
    rng = np.random.default_rng(3)
    world = World(30).mitigate(
        "noise", 2, lambda members: [f"{rng.integers(9)}" for _ in members[0]], "merge"
    )
    verdict = results_of(world).verdict
    assert (
        "noise, K = 2" not in verdict[1]
        and "conclusively less stable than a single replica: noise, K = 2 (lora)" in verdict[2]
    )
    several = results_of(
        world.mitigate(
            "noise", 3, lambda members: [f"{rng.integers(9)}" for _ in members[0]], "merge"
        )
    ).verdict
    assert "less stable than a single replica: noise, K = 2, 3 (lora)" in several[2]


def test_identical_replicas_have_a_bound_never_a_certain_zero() -> None:
    results = results_of(World(16, flips=0.0))
    for shift in results.shifts:
        zero = results.conditions[0].single.cell(shift).disagreement
        assert zero.value == 0 and zero.low == 0 and zero.high > 0
    assert results.conditions[0].unstable == ()
    assert "0.0 % [0.0, 3.7]" in results.verdict[0]


def test_too_few_groups_are_inconclusive_with_the_number_needed() -> None:
    world = World(8).mitigate("vote", 4, vote).mitigate("vote", 8, vote).mitigate("vote", 16, vote)
    results = results_of(world)
    for procedure, runs in zip(results.conditions[0].procedures[1:], (2, 1, 0), strict=True):
        ratio = procedure.cell("far").ratio
        assert procedure.n_runs == runs and not ratio.conclusive and ratio.needed >= st.MIN_GROUPS
    assert (
        "No mitigation is shown" in results.verdict[1]
        and "12 replicas would be needed" in results.verdict[1]
    )


def test_missing_cells_and_references_are_no_obstacle(world: World) -> None:
    table = world.table.filter(np.random.default_rng(2).random(len(world.rows)) > 0.1)
    results = analyse(table, world.prompts, world.designs)
    assert results.conditions[0].single.cell("far").disagreement.conclusive
    unmarked = World(10)
    for row in unmarked.rows:
        row["correct"] = None
    cell = results_of(unmarked).conditions[0].single.cell("far")
    assert cell.accuracy is None and cell.scores == () and cell.disagreement.value > 0


def test_one_replica_and_no_base(world: World) -> None:
    alone = World(1)
    alone.rows = [row for row in alone.rows if row["procedure"] != "base"]
    results = results_of(alone)
    assert (
        results.base is None
        and not results.conditions[0].single.cell("far").disagreement.conclusive
    )


def test_mitigation_without_outcomes_is_noted(world: World) -> None:
    rows = [row for row in world.rows if row["procedure"] != "vote-k2"]
    partial = World(48, failed=(5, 17))
    partial.rows, partial.mitigations = rows, world.mitigations
    assert results_of(partial).notes == ("lora: no outcomes of vote-k2",)


def test_what_cannot_be_meant_is_refused(world: World) -> None:
    twice = World(6)
    twice.rows.append(twice.rows[-1])
    with pytest.raises(ValueError, match="two rows for the same run and prompt"):
        results_of(twice)
    stranger = World(6).mitigate("vote", 2, vote)
    stranger.mitigations[0] = dataclasses.replace(stranger.mitigations[0], members=[[0, 99]])
    with pytest.raises(ValueError, match="replica 99"):
        results_of(stranger)


def test_least_stable_prompts_come_with_their_answers(world: World, results: Results) -> None:
    unstable = results.conditions[0].unstable
    assert len(unstable) == 10 and [u.disagreement for u in unstable] == sorted(
        (u.disagreement for u in unstable), reverse=True
    )
    for prompt in unstable:
        assert sum(count for _, count in prompt.answers) == len(world.replicas)
        i = next(i for i, (_, p) in enumerate(world.flat) if p.id == prompt.id)
        assert dict(prompt.answers)[world.answers[0][i]] == sum(
            a[i] == world.answers[0][i] for a in world.answers.values()
        )
        assert prompt.base_answer == world.base[i]


def test_clusters_widen_intervals(world: World, results: Results) -> None:
    clustered = World(48, failed=(5, 17))
    for _, prompt in clustered.flat:
        prompt.cluster = f"{prompt.category}-{int(prompt.id.rpartition('-')[2]) // 4}"
    wide = results_of(clustered).conditions[0].single.cell("far").accuracy
    narrow = results.conditions[0].single.cell("far").accuracy
    assert wide.value == narrow.value and (wide.low, wide.high) != (narrow.low, narrow.high)


def test_results_survive_the_file(results: Results, tmp_path) -> None:
    about = About("0.1.0", "r", "embedded", 7, {"torch": "2.9"}, "ftk run r.yaml")
    results = dataclasses.replace(results, about=about)
    save_results(tmp_path / "results.json", results)
    assert load_results(tmp_path / "results.json") == results
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_numbers_that_are_none_become_null(results: Results, tmp_path) -> None:
    cell = dataclasses.replace(results.base.cells[0], scores=(float("nan"), np.float32(0.5)))
    base = dataclasses.replace(results.base, cells=(cell,), n_runs=np.int64(1))
    save_results(tmp_path / "results.json", dataclasses.replace(results, base=base))
    loaded = load_results(tmp_path / "results.json").base
    assert loaded.cells[0].scores == (None, 0.5) and type(loaded.n_runs) is int


@pytest.mark.parametrize("text", ['{"version": 2}', "{}", "[]", '{"version": 1}'])
def test_a_file_of_another_kind_is_refused(tmp_path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="results"):
        load_results(tmp_path / "results.json")


def test_a_mitigation_is_held_against_one_training_of_the_same_compute(world: World) -> None:
    """K times the epochs: a condition whose training takes as many tokens as all K trainings of a
    group.
    """
    longer = World(48, seed=5, flips=0.3)
    longer.rows = [
        row | {"condition": "longer"} for row in longer.rows if row["procedure"] == "replica"
    ]
    joined = pa.concat_tables([world.table, longer.table])
    (lora,) = world.designs
    mitigations = [
        dataclasses.replace(m, price=dataclasses.replace(m.price, tokens=m.k * 1000))
        for m in lora.mitigations
    ]
    lora = dataclasses.replace(lora, mitigations=mitigations, price=Price(tokens=1000))
    other = ConditionDesign("longer", longer.replicas, price=Price(tokens=3900))
    found = analyse(joined, world.prompts, [lora, other]).same_compute
    # of one replica: nothing was spent beside its training
    one = dataclasses.replace(mitigations[0], k=1, price=Price(tokens=3900))
    assert (
        analyse(
            joined, world.prompts, [dataclasses.replace(lora, mitigations=[one]), other]
        ).same_compute
        == ()
    )
    assert {c.condition for c in found} == {"vote, K = 4 (lora)", "collapse, K = 4 (lora)"} and {
        c.baseline for c in found
    } == {"longer"}
    far = next(c for c in found if c.condition.startswith("vote") and c.shift == "far")
    voted = [vote([world.answers[r] for r in group]) for group in mitigations[1].members]
    codes = st.encode([*voted, *longer.answers.values()])
    at = np.array([prompt.shift == "far" for _, prompt in world.flat])
    assert (
        far.ratio == st.population_ratio(codes[: len(voted), at], codes[len(voted) :, at])
        and far.p_adjusted >= far.ratio.p
    )
    assert (
        analyse(
            joined, world.prompts, [lora, dataclasses.replace(other, price=Price(tokens=3000))]
        ).same_compute
        == ()
    )


@pytest.mark.parametrize("paired", [False, True])
def test_a_mitigation_of_another_condition_is_held_against_single_replicas_of_the_first(
    paired: bool,
) -> None:
    """Groups of several replicas are independent of the first condition's; those of one are its
    pairs by seed.
    """
    world = World(24)
    other = (
        World(24, seed=5, flips=0.3)
        .mitigate("swa", 1, lambda members: world.answers[0][:50] + members[0][50:])
        .mitigate("vote", 4, vote)
    )
    rows = [row | {"condition": "other"} for row in other.rows if row["procedure"] != "base"]
    other.rows = world.rows + rows
    design = dataclasses.replace(*other.designs, name="other")
    results = analyse(other.table, world.prompts, [*world.designs, design], paired=paired)
    at = np.array([prompt.shift == "far" for _, prompt in world.flat])
    for m in other.mitigations:
        name = mitigation_of(m.title, m.k, "other")
        pairs, found = (
            paired and m.k == 1,
            [c for c in results.mitigated if c.condition == name],
        )
        assert [c.shift for c in found] == ["typical", "near", "far"] and {
            c.paired for c in found
        } == {pairs}
        groups = {row["index"]: [] for row in rows if row["procedure"] == m.label}
        for row in rows:
            if row["procedure"] == m.label:
                groups[row["index"]].append(row["answer"])
        codes = st.encode([*groups.values(), *world.answers.values()])
        assert found[-1].ratio == st.population_ratio(
            codes[: len(groups), at], codes[len(groups) :, at], paired=pairs
        )
        differs_RP = (
            (codes[: len(groups), at] != codes[len(groups) :, at]).astype(float) if pairs else None
        )
        assert found[-1].pair_differs == (st.accuracy(differs_RP) if pairs else None)
        assert f"{name} against single replicas of lora" in table_text(results)
    assert {one.name for one in controls(results)} == {
        "other",
        "swa, K = 1 (other)",
        "vote, K = 4 (other)",
    }
    assert "Mitigations of other conditions" in render(results)
