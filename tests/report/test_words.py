"""What is said of results: nothing is won without what is lost beside it, and nothing is called
lost, or fine, by its value alone.
"""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.outcomes_of import World, vote

from toolkit import cli
from toolkit import statistics as st
from toolkit.measurement.analyse import analyse, zone
from toolkit.measurement.analyse.verdict import verdict
from toolkit.measurement.run import measure_predictions
from toolkit.recipe import load_criteria
from toolkit.record.results import Cell, ConditionDesign, Results, Suspects, save_results
from toolkit.report.card import run_card
from toolkit.report.html import render
from toolkit.report.terminal import table_text

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart


def results_of(world: World) -> Results:
    return analyse(world.table, world.prompts, world.designs)


def on(world: World, shift: str, there, elsewhere=vote):
    """A mitigation that answers by one rule on a shift and by another elsewhere."""
    here = [prompt.shift == shift for _, prompt in world.flat]

    def combine(members: list[list[str]]) -> list[str]:
        return [
            a if at else b
            for a, b, at in zip(there(members), elsewhere(members), here, strict=True)
        ]

    return combine


def wrong_now_and_then(members: list[list[str]]) -> list[str]:
    """A vote that is wrong on every third prompt, and not as the base is."""
    return ["wrong" if i % 3 == 0 else answer for i, answer in enumerate(vote(members))]


def as_text(results: Results, tmp_path: Path) -> dict[str, str]:
    """All that a user reads: terminal, report, card; white space, tags and escapes of Markdown as
    nothing.
    """
    save_results(tmp_path / "results.json", results)
    shown = {
        "terminal": table_text(results) + "\n" + "\n".join(results.verdict),
        "report": re.sub(r"<[^>]*>", " ", render(results)),
        "card": re.sub(r"\\([^\w\s])", r"\1", run_card(tmp_path)),
    }
    return {where: " ".join(text.split()) for where, text in shown.items()}


# -- nothing is recommended against its own column -----------------------------------------------


@pytest.fixture(scope="module")
def planted() -> World:
    world = World(48)
    world.mitigate("rule", 4, on(world, "far", lambda members: world.base))
    world.mitigate("worse", 4, on(world, "far", wrong_now_and_then))
    world.mitigate("lost-at-home", 4, on(world, "typical", wrong_now_and_then))
    return world


@pytest.fixture(scope="module")
def planted_results(planted: World) -> Results:
    return results_of(planted)


def test_what_collapsed_or_lost_accuracy_on_one_shift_alone_is_not_recommended(
    planted_results: Results, tmp_path: Path
) -> None:
    rule, worse, home = planted_results.conditions[0].procedures[1:]
    for procedure in (rule, worse):
        assert procedure.cell("far").ratio.high < 1 and not procedure.cell("typical").collapsed, (
            "steadier, and kept at home"
        )
    assert rule.cell("far").returned and rule.cell("far").as_base.value == 1.0
    assert not worse.cell("far").returned and worse.cell("far").loses and home.cell("typical").loses
    assert "none is recommended" in planted_results.verdict[1]
    share = planted_results.conditions[0].single.cell("far").as_base
    falls = worse.cell("far").accuracy_change
    for where, text in as_text(planted_results, tmp_path).items():
        assert "on far prompts the gain is a return to the base: 100.0 % [" in text, where
        assert f"{100 * share.value:.1f} % [" in text and "of those of single replicas" in text, (
            where
        )
        assert (
            f"on far prompts it loses accuracy: {100 * falls.value:.1f} points "
            f"[{100 * falls.low:.1f}" in text
        ), where
        assert "on typical prompts it loses accuracy" in text, where


def test_the_table_flags_what_is_shown_and_fits_a_terminal(planted_results: Results) -> None:
    lines = table_text(planted_results).splitlines()
    rows = {line.split()[0]: line for line in lines if " K=4 " in line}
    assert rows["rule"].endswith("0.00!") and "!" in rows["worse"].split("]")[-1]
    assert max(map(len, lines)) <= 120


def test_a_sound_mitigation_is_recommended_beside_those_that_are_not(planted: World) -> None:
    world = World(48)
    world.rows, world.mitigations = list(planted.rows), list(planted.mitigations)
    best, caveats = results_of(world.mitigate("vote", 4, vote)).verdict[1:3]
    assert "best-supported mitigation is vote, K = 4 (lora)" in best
    assert re.search(r"on far prompts accuracy moves by [+-][\d.]+ points \[", best)
    assert re.search(
        r"it keeps [\d.]+ \[[^]]*\] on far prompts and [\d.]+ \[[^]]*\] on typical prompts", best
    )
    assert "these lose accuracy" in caveats and "the gain is a return to the base" in caveats


def estimate(value: float, low: float, high: float, **more) -> st.Estimate:
    return st.Estimate(value, low, high, 0.95, 12, 200, "test", **more)


@pytest.mark.parametrize(
    ("value", "low", "high", "lost"),
    [(-0.05, -0.12, 0.02, False), (-0.005, -0.009, -0.001, True), (0.02, 0.0, 0.04, False)],
)
def test_a_loss_is_told_by_the_limit_not_by_the_value(
    value: float, low: float, high: float, lost: bool
) -> None:
    assert Cell("far", "", 200, accuracy_change=estimate(value, low, high)).loses == lost
    assert not Cell(
        "far", "", 200, accuracy_change=estimate(value, low, high, conclusive=False)
    ).loses, "an interval that is not trusted"


@pytest.mark.parametrize(
    ("value", "low", "high", "flagged"),
    [(0.85, 0.7, 1.0, False), (0.85, 0.82, 0.88, True), (0.95, 0.88, 1.02, False)],
)
def test_a_collapse_is_told_by_the_limit_not_by_the_value(
    value: float, low: float, high: float, flagged: bool
) -> None:
    cell = Cell(
        "far",
        "",
        200,
        effect_size=estimate(value, low, high),
        gain_kept=estimate(0.8, 0.3, 1.3, conclusive=False),
    )
    assert cell.collapsed == cell.returned == flagged
    assert cell.kept.value == (0.85 if flagged else 0.8), "what is flagged stands in the column"


def test_what_is_not_shown_to_keep_the_fine_tuning_is_not_recommended(
    planted_results: Results,
) -> None:
    """The limit again, from the other side: a wide interval around 0.9 is no evidence of a
    mitigation that keeps anything.
    """
    results, condition = planted_results, planted_results.conditions[0]
    wide = estimate(0.9, 0.2, 1.4, conclusive=False)
    rule = condition.procedures[1]
    unknown = {"gain_kept": None, "accuracy_change": None}
    cells = tuple(
        dataclasses.replace(cell, effect_size=wide if cell.effect_size else None, **unknown)
        for cell in rule.cells
    )
    results = dataclasses.replace(
        results,
        conditions=(
            dataclasses.replace(
                condition, procedures=(condition.single, dataclasses.replace(rule, cells=cells))
            ),
        ),
    )
    assert rule.cell("far").ratio.high < 1
    assert "none is recommended" in verdict(results)[1] and "cannot be told" in verdict(results)[1]


# -- conditions against each other ---------------------------------------------------------------


def predictions(path: Path, **answers: list[list[int]]) -> Path:
    """answers[condition]: codes [run, prompt]; 0 is right. Half of the prompts are far."""
    cells = []
    for condition, table in answers.items():
        for run, row in enumerate(table):
            for p, code in enumerate(row):
                shift = "far" if p >= len(row) // 2 else "typical"
                cell = {
                    "condition": condition,
                    "replica": f"seed-{run}",
                    "prompt": f"p{p}",
                    "output": f"a{code}",
                    "reference": "a0",
                }
                cells.append(cell | {"shift": shift})
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    return path


def flips(runs: int, prompts: int, rate: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((runs, prompts)) < rate, rng.integers(1, 4, (runs, prompts)), 0)


def test_a_fine_tune_that_lost_half_of_its_accuracy_is_never_just_more_stable(
    tmp_path: Path,
) -> None:
    """On the terminal, in the report and in the card the loss stands beside the ratio, on the same
    shift.
    """
    good = flips(12, 120, 0.25, 0)
    # one answer to nearly everything
    collapse = np.where(np.arange(120) % 4 == 0, 0, 9) + np.zeros((12, 1), dtype=int)
    better = flips(12, 120, 0.1, 1)
    path = predictions(tmp_path / "p.jsonl", good=good, collapse=collapse, better=better)
    told = CliRunner().invoke(cli.main, ["measure", str(path), "--out", str(tmp_path / "out")])
    results = measure_predictions(path, tmp_path / "out")
    far = {c.condition: c for c in results.contrasts if c.shift == "far"}
    assert far["collapse"].ratio.high < 1 and far["collapse"].loses and not far["better"].loses
    change = far["collapse"].accuracy_change
    points = f"{100 * change.value:.1f} [{100 * change.low:.1f}, {100 * change.high:.1f}] a loss"
    assert points in told.stdout and "change of accuracy in points" in told.stdout
    assert (
        f"but it loses accuracy: {100 * change.value:.1f} points" in told.stdout
        and "one by one: collapse" in told.stdout
    )
    better_change = far["better"].accuracy_change
    assert f"accuracy moves by {100 * better_change.value:+.1f} points" in told.stdout
    for where, text in as_text(results, tmp_path / "out").items():
        assert re.search(r"loses accuracy|a loss of accuracy", text), where
    only = measure_predictions(
        predictions(tmp_path / "two.jsonl", good=good, collapse=collapse), tmp_path / "two"
    )
    assert "one by one" not in only.verdict[1] and "but it loses accuracy" in only.verdict[1]


def test_without_references_accuracy_is_said_to_be_unknown(tmp_path: Path) -> None:
    path = predictions(tmp_path / "p.jsonl", a=flips(8, 60, 0.3, 0), b=flips(8, 60, 0.1, 1))
    cells = [
        {k: v for k, v in json.loads(line).items() if k != "reference"}
        for line in path.read_text().splitlines()
    ]
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    results = measure_predictions(path, tmp_path / "out")
    for where, text in as_text(results, tmp_path / "out").items():
        assert re.search(
            r"accuracy is not known|not known, the prompts have no references|not known", text
        ), where


def test_a_condition_that_returns_to_the_base_is_said_to(tmp_path: Path) -> None:
    world = World(24)
    returned = [dict(row) for row in world.rows if row["procedure"] == "replica"]
    said = {
        (row["suite"], row["prompt_id"]): row for row in world.rows if row["procedure"] == "base"
    }
    for row in returned:
        if row["suite"] == "far":
            row |= {
                name: said["far", row["prompt_id"]][name] for name in ("text", "answer", "correct")
            }
        row["condition"] = "returned"
    world.rows += returned
    results = analyse(
        world.table, world.prompts, [*world.designs, ConditionDesign("returned", world.replicas)]
    )
    far, typical = (
        next(c for c in results.contrasts if c.shift == shift) for shift in ("far", "typical")
    )
    assert (
        far.returned
        and far.effect_size.value == 0
        and far.as_base.value == 1.0
        and not typical.returned
    )
    for where, text in as_text(results, tmp_path).items():
        assert (
            "on far prompts the gain is a return to the base: 100.0 % [" in text
            and "of those of lora" in text
        ), where


def test_a_baseline_of_one_run_is_noted_with_how_far_the_runs_are_from_it(tmp_path: Path) -> None:
    many = flips(10, 100, 0.2, 0)
    results = measure_predictions(
        predictions(tmp_path / "p.jsonl", base=np.zeros((1, 100), dtype=int), lora=many),
        tmp_path / "out",
    )
    assert results.contrasts == ()
    expected = st.accuracy((many[:, 50:] != 0).astype(float))
    for where, text in as_text(results, tmp_path / "out").items():
        ends = f"{100 * expected.value:.1f} % [{100 * expected.low:.1f}, {100 * expected.high:.1f}]"
        assert (
            "base is one run, whose spread is not known: on far prompts runs of lora "
            f"answer {ends} of prompts otherwise" in text
        ), where


def test_the_effect_size_of_two_populations_covers_and_has_its_ends() -> None:
    """Planted: runs of b differ from the base on 30 % of the prompts, runs of a on 40 %."""
    rng = np.random.default_rng(0)
    base_P = np.zeros(60, dtype=np.int32)
    worlds = [
        [
            (rng.random((8, 60)) < rate + rng.normal(0, 0.05, (8, 1))).astype(np.int32)
            for rate in (0.3, 0.4)
        ]
        for _ in range(150)
    ]
    sizes = [st.population_effect_size(b_RP, a_RP, base_P) for b_RP, a_RP in worlds]
    assert sum(size.low <= 0.75 <= size.high for size in sizes) >= 0.93 * 150
    b_RP, a_RP = worlds[-1]
    same = st.population_effect_size(a_RP, a_RP, base_P)
    assert same.value == pytest.approx(1.0) and same.low < 1 < same.high
    none = st.population_effect_size(np.zeros_like(a_RP), a_RP, base_P)
    assert none.value == 0.0 and none.high < 0.9 and st.collapsed(none) == "collapsed"
    paired = st.population_effect_size(b_RP, a_RP, base_P, paired=True)
    assert paired.value == sizes[-1].value
    with pytest.raises(ValueError, match="same prompts"):
        st.population_effect_size(b_RP, a_RP, base_P[:-1])


# -- a colour needs both bounds ------------------------------------------------------------------

LIMITS = (0.05, 0.20)


def coloured(answer_RP: np.ndarray) -> str:
    return zone(st.disagreement_for_verdict(st.disagreement(answer_RP), answer_RP), LIMITS)


@pytest.mark.parametrize(
    ("runs", "colour"),
    [
        (5, "not enough data"),
        (20, "not enough data"),
        (64, "watch"),
        (117, "watch"),
        (118, "acceptable"),
    ],
)
def test_equal_runs_are_acceptable_from_the_number_that_their_kinds_take(
    runs: int, colour: str
) -> None:
    """n disjoint pairs without a difference: 1 - 0.05^(1/n) is at most 5 % from 59 pairs on."""
    assert coloured(np.zeros((runs, 600), dtype=int)) == colour


def test_one_cell_that_differs_is_no_way_around_the_bound() -> None:
    nearly = np.zeros((5, 600), dtype=int)
    nearly[2, 17] = 1
    assert coloured(nearly) == "not enough data" and st.equal_runs(nearly) == 4
    nearly[3, 400] = 1
    assert st.equal_runs(nearly) is None, "two runs that differ show a spread"


def test_equal_runs_with_gaps_and_runs_without_answers() -> None:
    table = np.zeros((6, 50), dtype=int)
    table[np.arange(6), np.arange(6)] = st.MISSING
    table[5] = st.MISSING
    assert st.equal_runs(table) == 5
    assert st.equal_runs(np.arange(6)[:, None] + np.zeros((6, 50), dtype=int)) is None
    everything = st.disagreement(np.arange(6)[:, None] + np.zeros((6, 50), dtype=int))
    assert st.disagreement_for_verdict(
        everything, np.arange(300).reshape(6, 50)
    ).low == pytest.approx(0.05 ** (1 / 3))


def test_an_interval_for_a_verdict_is_never_narrower_and_else_unchanged() -> None:
    rng = np.random.default_rng(3)
    for runs, rate in itertools.product((5, 9, 30), (0.0, 0.002, 0.1)):
        answer_RP = (rng.random((runs, 80)) < rate).astype(int)
        found = st.disagreement(answer_RP)
        decides = st.disagreement_for_verdict(found, answer_RP)
        assert decides.low <= found.low and decides.high >= found.high
        if st.equal_runs(answer_RP) is None:
            assert decides == found
        mark_RP = 1.0 - answer_RP
        share, says = st.accuracy(mark_RP), st.share_for_verdict(st.accuracy(mark_RP), mark_RP)
        assert says.low <= share.low and says.high >= share.high


EVERY_CRITERION = """
criteria:
  - {name: flips, suite: far, limit: 0.05}
  - {name: right, suite: far, statistic: accuracy, limit: 0.9}
  - {name: broken, suite: far, observable: "regex:error", statistic: rate, limit: 0.05}
"""


@pytest.mark.parametrize(("runs", "expected"), [(5, "INCONCLUSIVE"), (130, "PASS")])
def test_criteria_pass_with_both_bounds(runs: int, expected: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(EVERY_CRITERION)
    path = predictions(
        tmp_path / "p.jsonl", a=np.zeros((runs, 600 if runs == 5 else 200), dtype=int)
    )
    results = measure_predictions(
        path, tmp_path / "out", criteria=load_criteria(tmp_path / "c.yaml")
    )
    assert {j.criterion: j.verdict for j in results.judgements} == dict.fromkeys(
        ("flips", "right", "broken"), expected
    )
    assert all(
        ("may lack other kinds of runs" in j.reason) == (runs == 5) for j in results.judgements
    )
    cell = results.conditions[0].single.cell("far")
    assert cell.zone == ("not enough data" if runs == 5 else "acceptable")


# -- runs that may have failed -------------------------------------------------------------------


@pytest.fixture()
def suspected(tmp_path: Path) -> Results:
    results = measure_predictions(
        predictions(tmp_path / "p.jsonl", lora=flips(40, 60, 0.2, 0)), tmp_path / "out"
    )
    single = results.conditions[0].single
    open_ = dataclasses.replace(single.cell("typical").disagreement, conclusive=False, needed=59)
    runs = ("seed 3", "seed-17")
    suspects = (
        Suspects("lora", "typical", runs, "disagreement", open_, estimate(0.061, 0.04, 0.09)),
        Suspects(
            "lora",
            "far",
            runs,
            "disagreement",
            single.cell("far").disagreement,
            estimate(0.082, 0.06, 0.11),
        ),
        Suspects(
            "lora", "far", runs, "accuracy", single.cell("far").accuracy, estimate(0.913, 0.9, 0.93)
        ),
    )
    results = dataclasses.replace(results, suspects=suspects)
    return dataclasses.replace(results, verdict=verdict(results))


def test_suspicious_runs_are_named_with_what_to_do_and_figures_with_and_without(
    suspected: Results, tmp_path: Path
) -> None:
    for where, text in as_text(suspected, tmp_path / "out").items():
        text = text.replace("&#39;", "'")
        assert "seed 3, seed-17 of lora stand far off the others" in text, where
        assert "--failed 'seed 3' --failed seed-17" in text, where
        assert "needs about 59 replicas) with them and 6.1 % [4.0, 9.0] without" in text, where
        assert "8.2 % [6.0, 11.0] without" in text and "91.3 % [90.0, 93.0] without" in text, where
        assert "0 of 40 training runs failed" not in text, where
        assert (
            "none of 40 training runs are recorded as failed, but 2 more may have" in text
            or where == "report"
        ), where


def test_garbage_runs_are_named_whether_they_fail_in_answers_or_in_accuracy(tmp_path: Path) -> None:
    """Two runs of forty answer at random: named on the terminal, and never "0 of 40 training runs
    failed" beside it.
    """
    answers = flips(40, 100, 0.1, 0)
    answers[[4, 31]] = np.random.default_rng(9).integers(4, 9, (2, 100))
    told = CliRunner().invoke(
        cli.main,
        [
            "measure",
            str(predictions(tmp_path / "p.jsonl", lora=answers)),
            "--out",
            str(tmp_path / "out"),
        ],
    )
    assert "Runs seed-4, seed-31 of lora stand far off the others" in told.stdout
    assert "--failed seed-4 --failed seed-31" in told.stdout
    assert "0 of 40 training runs failed" not in told.stdout
    options = ["--failed", "seed-4", "--failed", "seed-31", "--out", str(tmp_path / "without")]
    without = CliRunner().invoke(cli.main, ["measure", str(tmp_path / "p.jsonl"), *options])
    assert (
        "stand far off" not in without.stdout and "2 of 40 training runs failed" in without.stdout
    )


def test_an_inconclusive_figure_says_how_many_runs_it_takes(tmp_path: Path) -> None:
    results = results_of(World(12).mitigate("vote", 4, vote))
    text = table_text(results)
    ratio = results.conditions[0].procedures[1].cell("far").ratio
    assert not ratio.conclusive and f"? needs {4 * ratio.needed:,} replicas: vote, K = 4" in text
    assert f"[{ratio.low:.2f}, {ratio.high:.2f}]" in text, "an interval that there is, is printed"
    few = measure_predictions(
        predictions(tmp_path / "p.jsonl", a=flips(2, 60, 0.2, 0)), tmp_path / "out"
    )
    assert "needs about 3 replicas" in few.verdict[0]


def test_half_of_the_accuracy_lost_against_the_base_is_a_loss_on_forty_prompts(
    tmp_path: Path,
) -> None:
    """The base is right on all of them, runs on half: no more prompts are needed to say so."""
    rng = np.random.default_rng(0)
    cells = [
        {"condition": "base", "run": "base", "id": i, "output": "A", "reference": "A"}
        for i in range(40)
    ]
    cells += [
        {
            "condition": "lora",
            "run": f"seed-{r}",
            "id": i,
            "output": "AB"[int(rng.random() < 0.5)],
            "reference": "A",
        }
        for r in range(12)
        for i in range(40)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    told = CliRunner().invoke(
        cli.main,
        ["measure", str(tmp_path / "p.jsonl"), "--base", "base", "--out", str(tmp_path / "out")],
    )
    gained = next(line for line in told.stdout.splitlines() if "gained over the base" in line)
    assert told.exit_code == 0 and "?" not in gained and gained.endswith("!")
    assert (
        "lora is less accurate than the base" in told.stdout
        and "the base is more accurate" in told.stdout
    )


def test_the_accuracy_of_runs_stands_beside_their_remedies(planted: World, tmp_path: Path) -> None:
    assert planted.mitigations
    assert "lora, accuracy in %: " in as_text(results_of(planted), tmp_path)["terminal"]


@pytest.mark.parametrize(("runs", "share"), [(5, "45.1 %"), (20, "13.9 %"), (64, "4.6 %")])
def test_the_verdict_says_what_kind_of_run_may_be_missing(runs: int, share: str) -> None:
    said = " ".join(results_of(World(runs)).verdict)
    assert f"{runs} runs may all lack a kind of run that turns up in as many as {share}" in said


def test_a_change_of_the_score_is_said_where_there_are_no_references(tmp_path: Path) -> None:
    """Nothing tells accuracy there, and a score that falls would be lost in silence."""
    rng = np.random.default_rng(0)
    rows = [
        {"replica": r, "condition": name, "prompt": p, "output": f"t{rng.integers(3)}"}
        | {"score": float(rng.normal(0.5 - 0.2 * (name == "b"), 0.1))}
        for name in "ab"
        for r in range(12)
        for p in range(40)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = measure_predictions(tmp_path / "p.jsonl", tmp_path / "out")
    said = as_text(results, tmp_path)
    assert "b, mean of the score: typical 0.3" in said["terminal"]
    assert re.search(r"change of the mean score: typical -0\.(19|20|21)", said["terminal"])
    assert "the mean score moves by -0." in results.verdict[1]
    assert "mean score -0." in said["report"]


def test_a_table_says_nothing_of_columns_that_it_lacks_and_why_a_contrast_is_open() -> None:
    world = World(6)
    world.rows += [
        dict(row, condition="other") for row in world.rows if row["procedure"] == "replica"
    ]
    results = analyse(
        world.table, world.prompts, [*world.designs, ConditionDesign("other", world.replicas)]
    )
    said = table_text(results)
    assert "kept" not in said and "ratio, far" not in said
    assert said.rstrip().endswith("95 % intervals in brackets; '?' inconclusive")
    reasons = {
        estimate.note
        for c in results.contrasts
        for estimate in (c.ratio, c.accuracy_change)
        if estimate is not None and not estimate.conclusive and estimate.note
    }
    flat = " ".join(said.split())
    assert reasons and all(" ".join(reason.split()) in flat for reason in reasons)
