"""Figures over the conditions of a run: who stands on one line, in which order, and that nothing is
left out of the picture.
"""

import re
from dataclasses import replace

import pytest
from helpers.outcomes_of import World

from toolkit.data import DataError, read_rows
from toolkit.embedded.prompts import VERSIONS, suite
from toolkit.measurement.analyse import analyse
from toolkit.record.results import (
    ConditionResult,
    Contrast,
    Price,
    Results,
    Sources,
    from_plain,
    to_plain,
)
from toolkit.report import charts
from toolkit.report.html import figures, render
from toolkit.report.sweeps import controls, joined, sweeps
from toolkit.statistics import Estimate


@pytest.fixture(scope="module")
def measured() -> Results:
    world = World(40, per_category=12, seed=1)
    return analyse(world.table, world.prompts, world.designs)


def condition(measured: Results, name: str, **settings) -> ConditionResult:
    one = measured.conditions[0]
    priced = replace(one.procedures[0], price=Price(seconds=2.5))
    return replace(
        one,
        name=name,
        procedures=(priced,),
        settings={"method": "lora", "rank": 8, "epochs": 2, "lr": 1e-3} | settings,
    )


def contrast(name: str, value: float, shift: str = "far") -> Contrast:
    ratio = Estimate(value, value - 0.1, value + 0.1, 0.95, 200, 50, "test")
    return Contrast(name, "base", shift, True, ratio, ratio)


@pytest.fixture(scope="module")
def results(measured) -> Results:
    conditions = [
        condition(measured, "base"),
        condition(measured, "e10", epochs=10),
        condition(measured, "e1", epochs=1),
        condition(measured, "r16", rank=16),
        condition(measured, "r16-e10", rank=16, epochs=10),
        condition(measured, "full", method="full"),
    ]
    contrasts = [
        contrast("e10", 0.6),
        contrast("e1", 1.4),
        contrast("r16", 0.9),
        contrast("full", 0.2),
        contrast("e10", 0.1, "near"),
    ]
    return replace(measured, conditions=tuple(conditions), contrasts=tuple(contrasts))


def test_a_line_holds_what_differs_in_one_number_alone(results):
    (line,) = sweeps(results)
    assert line.key == "epochs" and [(at, c.name) for at, c in line.points] == [
        (1, "e1"),
        (2, "base"),
        (10, "e10"),
    ]


def test_controls_stand_in_the_order_of_their_ratio_on_far_prompts(results):
    assert [one.name for one in controls(results)] == ["full", "e10", "r16", "e1"]


def test_remedies_for_the_first_condition_stand_among_the_others(results, measured):
    procedures = measured.conditions[0].procedures
    with_remedies = replace(
        results,
        conditions=(replace(results.conditions[0], procedures=procedures), *results.conditions[1:]),
    )
    rows = controls(with_remedies)
    assert {one.name for one in rows} == {
        "full",
        "e10",
        "r16",
        "e1",
        *(f"{p.title}, K = {p.k}" for p in procedures[1:]),
    }
    ratios = [one.ratio.value for one in rows]
    assert ratios == sorted(ratios)
    words = re.sub(r"<[^>]*>", " ", figures(with_remedies)["controls"])
    assert all(one.name in words for one in rows)


def test_results_that_begin_alike_are_one(results):
    def part(of: slice) -> Results:
        conditions = (results.conditions[0], *results.conditions[of])
        names = {one.name for one in conditions}
        return replace(
            results,
            conditions=conditions,
            contrasts=tuple(c for c in results.contrasts if c.condition in names),
        )

    first, second = part(slice(1, 3)), part(slice(3, None))
    whole = joined([first, second])
    assert controls(whole) == controls(results) and [c.name for c in whole.conditions] == [
        c.name for c in results.conditions
    ]
    other = replace(second, conditions=(condition_of(second, lr=2e-3), *second.conditions[1:]))
    with pytest.raises(ValueError, match="trained otherwise"):
        joined([first, other])


def test_joined_prices_are_those_of_one_machine(results):
    def slower(of: Results) -> Results:
        conditions = []
        for one in of.conditions:
            [single] = one.procedures
            conditions.append(
                replace(
                    one,
                    procedures=(
                        replace(single, price=Price(seconds=3 * (single.price.seconds or 0))),
                    ),
                )
            )
        return replace(of, conditions=tuple(conditions))

    assert joined([results, slower(results)]) == results
    assert [one.price.seconds for one in controls(joined([slower(results), results]))] == [7.5] * 4
    free = replace(
        results,
        conditions=tuple(
            replace(c, procedures=(replace(c.single, price=Price()),)) for c in results.conditions
        ),
    )
    assert joined([results, free]).conditions[1].single.price.seconds is None


def condition_of(results: Results, **settings) -> ConditionResult:
    return replace(results.conditions[0], settings=results.conditions[0].settings | settings)


def test_the_figures_show_every_condition_its_n_and_its_price(results):
    drawn = figures(results)
    assert set(drawn) == {"controls", "dependence"}
    words = re.sub(r"<[^>]*>", " ", drawn["controls"])
    assert all(name in words for name in ("full", "e10", "r16", "e1", "N = 200", "2.5 s", "far"))
    assert re.sub(r"<[^>]*>", " ", drawn["dependence"]).count("N = 40") == 3
    assert figures(results) == drawn
    html = render(results)
    assert (
        "What disagreement depends on" in html and "Do runs trade one category for another?" in html
    )


def test_every_setting_has_a_panel_and_no_panel_is_empty():
    line = [(float(at), charts.Dot(0.2, 0.1, 0.3), 64) for at in (1, 2, 4)]
    for n in range(1, 5):
        svg = charts.against_setting({f"setting {i}": {"far": line} for i in range(n)})
        assert svg.count('id="axes_') == n


def test_sources_are_drawn_part_by_part(measured):
    def part(value: float) -> Estimate:
        return Estimate(value, value - 0.05, value + 0.05, 0.95, 16, 50, "test")

    taken = tuple(
        Sources(shift, "disagreement", {"init": part(0.1), "order": part(-0.01)}, part(0.3))
        for shift in ("typical", "far")
    )
    crossed = replace(
        measured,
        conditions=(replace(measured.conditions[0], name="grid", sources=taken),),
        contrasts=(),
    )
    words = re.sub(r"<[^>]*>", " ", figures(crossed)["sources"])
    assert all(
        name in words for name in ("grid", "init", "order", "in all", "typical", "far", "replicas")
    )
    assert "taken apart by source" in render(crossed)


def test_nothing_is_drawn_of_one_condition(measured):
    assert figures(measured) == {}


def test_categories_of_a_condition_are_held_against_each_other(measured):
    """Every two categories that have references, and the file keeps it."""
    trade = measured.conditions[0].trade
    assert trade is not None and len(trade.places) == 5 and len(trade.p_adjusted) == 10
    assert from_plain(Results, to_plain(measured)) == measured


def test_as_many_embedded_rows_as_asked_for():
    """The usual training set does not change, and no suite is in a larger one."""
    assert [dict(row) for row in read_rows("embedded:1120")] == [
        dict(row) for row in read_rows("embedded")
    ]
    many = {row["prompt"] for row in read_rows("embedded:10000")}
    assert len(many) == 10_000
    assert not any(
        row["prompt"] in many
        for v in VERSIONS
        for shift in ("typical", "near", "far")
        for row in suite(shift, v)
    )
    for wrong in ("embedded:far", "embedded:0", "embedded:20000"):
        with pytest.raises(
            DataError, match=r"^embedded:\w+: `embedded` has 11,\d\d\d training rows"
        ):
            read_rows(wrong)


def test_conditions_train_on_the_first_rows_of_one_shuffle():
    from toolkit.pipeline.job import RunError
    from toolkit.pipeline.train_stacks import examples_of, training_plan
    from toolkit.recipe import parse_recipe

    recipe = parse_recipe(
        "{base: embedded, data: {train: embedded, suites: {}}, "
        "conditions: {a: {}, b: {rows: 30}, c: {rows: 10}, d: {rows: 5000}}}"
    )
    a, b, c = (examples_of(recipe, name, "cpu") for name in "abc")
    assert (
        len(b) == 30
        and b[:10] == c
        and set(map(str, b)) < set(map(str, a))
        and list(b) != list(a[:30])
    )
    assert training_plan(recipe, "b", "cpu")[1] != training_plan(recipe, "c", "cpu")[1], (
        "other rows, other replicas"
    )
    with pytest.raises(
        RunError, match=r"^conditions\.d\.rows: there are 1,120 training rows, not 5,000$"
    ):
        examples_of(recipe, "d", "cpu")
