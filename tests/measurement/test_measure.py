"""Anybody's predictions, measured from the shell to the report: the figures are those of the
statistics, and what cannot be is one line.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.measured import PROMPTS, REPLICAS, _fresh, answers, ftk, one_line, rows, write

from toolkit import cli
from toolkit import statistics as st
from toolkit.measurement.gate.limits import MIN_BASELINE
from toolkit.measurement.run import measure_predictions
from toolkit.recipe import load_criteria
from toolkit.record.results import load_results

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart


def figures(estimate: st.Estimate) -> tuple:
    """All of it, with numbers to rounding: prompts are taken in another order."""
    numbers = (
        None if x is None else round(x, 10) for x in (estimate.value, estimate.low, estimate.high)
    )
    return (
        *numbers,
        estimate.n_replicas,
        estimate.n_prompts,
        estimate.method,
        estimate.conclusive,
        estimate.note,
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("predictions") / "preds.jsonl", rows(answers()))


def test_the_figures_are_those_of_the_statistics(file, tmp_path):
    results = measure_predictions(file, tmp_path)
    answer_RP = answers()
    single = results.conditions[0].single
    for shift, at in (("typical", slice(None, PROMPTS // 2)), ("far", slice(PROMPTS // 2, None))):
        cell = single.cell(shift)
        assert cell and cell.accuracy
        assert figures(cell.disagreement) == figures(st.disagreement(answer_RP[:, at]))
        assert figures(cell.accuracy) == figures(
            st.accuracy((answer_RP[:, at] == 0).astype(np.int8))
        )
        assert figures(cell.metrics[0].estimate) == figures(st.fleiss_kappa(answer_RP[:, at]))
    hard = np.arange(0, PROMPTS // 2, 2)
    assert figures(single.cell("typical", "hard").disagreement) == figures(
        st.disagreement(answer_RP[:, hard])
    )
    assert (
        load_results(tmp_path / "results.json") == results
        and (tmp_path / "report.html").stat().st_size > 5000
    )


def test_long_and_wide_and_all_kinds_of_files_agree(file, tmp_path):
    cells = rows(answers())
    with (tmp_path / "long.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, cells[0])
        writer.writeheader()
        writer.writerows(cells)
    wide: dict[str, dict] = {}
    for cell in cells:
        about = {key: cell[key] for key in ("prompt", "reference", "category", "shift")}
        wide.setdefault(cell["prompt"], about)[f"replica_{cell['replica'][5:]}"] = cell["output"]
    write(tmp_path / "wide.jsonl", list(wide.values()))
    found = [
        measure_predictions(path, tmp_path / path.name[:4])
        for path in (file, tmp_path / "long.csv", tmp_path / "wide.jsonl")
    ]
    cells_of = [
        [cell.disagreement for cell in results.conditions[0].single.cells] for results in found
    ]
    assert cells_of[0] == cells_of[1] == cells_of[2]


def test_same_meaning_is_a_plug(tmp_path):
    spelt = [
        cell | {"output": cell["output"].upper() + "." if n * 7919 % 1009 % 3 else cell["output"]}
        for n, cell in enumerate(rows(answers()))
    ]
    path = write(tmp_path / "spelt.jsonl", spelt)
    exact, normalised = (
        measure_predictions(path, tmp_path / rule, same=rule) for rule in ("exact", "normalised")
    )
    plain = measure_predictions(
        write(tmp_path / "plain.jsonl", rows(answers())), tmp_path / "plain"
    )
    far = [results.conditions[0].single.cell("far") for results in (exact, normalised, plain)]
    assert far[1].disagreement == far[2].disagreement and far[1].accuracy == far[2].accuracy
    assert far[0].disagreement.value > far[2].disagreement.value


def test_conditions_are_held_against_the_first(tmp_path):
    cells = rows(answers(0), "before") + rows(answers(1, spread=0.05), "after")
    path = write(tmp_path / "two.jsonl", cells)
    results = measure_predictions(path, tmp_path / "out")
    contrast = next(c for c in results.contrasts if c.shift == "far")
    at = slice(PROMPTS // 2, None)
    pair = answers(1, spread=0.05)[:, at], answers(0)[:, at]
    assert (contrast.condition, contrast.baseline, contrast.paired) == ("after", "before", False)
    assert (
        contrast.ratio.value == pytest.approx(st.population_ratio(*pair).value)
        and contrast.ratio.high < 1
    )
    assert contrast.p_adjusted >= contrast.ratio.p
    turned = measure_predictions(
        path, tmp_path / "turned", baseline="after", paired=True
    ).contrasts[0]
    assert (turned.condition, turned.paired) == ("before", True) and turned.ratio.value > 1


def test_prompts_on_which_two_conditions_differ(tmp_path):
    """Three of 60 prompts are planted; all others differ by chance alone."""
    before, after = answers(1, 0.1), answers(2, 0.1)
    after[:, [4, 41]] = np.arange(REPLICAS)[:, None] % 3
    before[:, 50] = np.arange(REPLICAS) % 2
    path = write(tmp_path / "two.jsonl", rows(before, "before") + rows(after, "after"))
    results = measure_predictions(path, tmp_path / "out")
    differ, right = results.by_prompt
    assert [(c.condition, c.baseline, c.figure, c.tested) for c in (differ, right)] == [
        ("after", "before", figure, PROMPTS) for figure in ("disagreement", "accuracy")
    ]
    for c in (differ, right):
        assert (
            {u.id for u in c.prompts[:3]} == {"p4", "p41", "p50"}
            and c.clear == 3
            and len(c.prompts) <= 10
        )
        assert [u.p for u in c.prompts] == sorted(u.p for u in c.prompts) and all(
            u.p <= u.p_adjusted for u in c.prompts
        )
        assert all(u.p_adjusted < 0.05 for u in c.prompts[:3]) and all(
            u.p_adjusted >= 0.05 for u in c.prompts[3:]
        )
    p50 = next(u for u in differ.prompts if u.id == "p50")
    assert (
        p50.baseline == pytest.approx(20 * 20 / (20 * 39))
        and p50.condition < 0.3
        and p50.shift == "far"
    )
    assert load_results(tmp_path / "out" / "results.json") == results
    assert (
        "disagreement by prompt: 3 of 60 prompts differ"
        in ftk("measure", path, "--out", tmp_path / "out").stdout
    )
    assert "prompt by prompt: disagreement" in (tmp_path / "out" / "report.html").read_text()


# -- the base, failed runs, scores and single runs -----------------------------------------------


def test_the_base_is_a_reference_and_no_population(tmp_path):
    """What is kept of the fine-tuning, and what it gained, are those of the statistics; a column
    says the same as a condition.
    """
    lora, less, base_P = (
        answers(0)[:12],
        answers(1, spread=0.1)[:10].copy(),
        np.random.default_rng(3).integers(0, 2, PROMPTS),
    )
    less[:, ::2] = base_P[::2]  # half of the prompts fall back to the base
    cells = rows(lora, "lora") + rows(less, "less")
    path = write(tmp_path / "p.jsonl", cells + rows(base_P[None], "base"))
    results = measure_predictions(path, tmp_path / "out", base="base")
    assert [c.name for c in results.conditions] == ["lora", "less"] and results.base is not None
    at = slice(PROMPTS // 2, None)
    right, wrong = (lora[:, at] == 0).astype(float), (less[:, at] == 0).astype(float)
    base_mark = (base_P[at] == 0).astype(float)
    assert results.base.cell("far").accuracy.value == pytest.approx(base_mark.mean())
    contrast = next(c for c in results.contrasts if c.shift == "far")
    kept = (less[:, at] != base_P[at]).mean() / (lora[:, at] != base_P[at]).mean()
    assert (
        contrast.effect_size.value == pytest.approx(kept)
        and contrast.effect_size.low < kept < contrast.effect_size.high < 0.9
    )
    gained = (wrong - base_mark).mean() / (right - base_mark).mean()
    assert contrast.gain_kept.value == pytest.approx(gained)
    gain = {m.name: m.estimate for m in results.conditions[0].single.cell("far").metrics}[
        "accuracy gained over the base"
    ]
    assert (
        gain.value == pytest.approx((right - base_mark).mean())
        and gain.low < gain.value < gain.high
    )
    column = [cell | {"base_answer": f"answer {base_P[int(cell['prompt'][1:])]}"} for cell in cells]
    again = measure_predictions(write(tmp_path / "c.jsonl", column), tmp_path / "column")
    assert again.contrasts == results.contrasts and again.base == results.base
    assert [c.procedures for c in again.conditions] == [c.procedures for c in results.conditions]


def test_a_base_that_is_no_model_is_refused(tmp_path):
    path = write(tmp_path / "p.jsonl", rows(answers(0)[:3], "lora") + rows(answers(1)[:2], "base"))
    one_line(
        ftk("measure", path, "--base", "base"),
        "the base 'base' has 2 rows for a prompt",
        "keep one run of it",
    )
    one_line(
        ftk("measure", path, "--base", "bas"),
        "no condition 'bas' for the base",
        "did you mean 'base'?",
    )
    path = write(tmp_path / "one.jsonl", rows(answers(0)[:1], "base"))
    one_line(ftk("measure", path, "--base", "base"), "'base' is the only condition")


def test_failed_runs_are_named_by_the_users_names(tmp_path):
    """As an option or a column, long or wide: the figures are those of a file without these
    runs.
    """
    cells = rows(answers(0)[:12], "lora")
    without = [cell for cell in cells if cell["replica"] != "seed-7"]
    plain = measure_predictions(
        write(tmp_path / "without.jsonl", without), tmp_path / "a"
    ).conditions[0]
    path = write(tmp_path / "p.jsonl", cells)
    named = measure_predictions(path, tmp_path / "b", failed=["seed-7"])
    told = [
        cell | {"status": "crashed" if cell["replica"] == "seed-7" else "finished"}
        for cell in cells
    ]
    column = measure_predictions(write(tmp_path / "told.jsonl", told), tmp_path / "c")
    wide: dict[str, dict] = {}
    for cell in cells:
        about = {key: cell[key] for key in ("prompt", "reference", "category", "shift")}
        wide.setdefault(cell["prompt"], about)[cell["replica"]] = cell["output"]
    broad = measure_predictions(
        write(tmp_path / "wide.jsonl", list(wide.values())), tmp_path / "d", failed=["seed-7"]
    )
    for results in (named, column, broad):
        condition = results.conditions[0]
        assert [c.disagreement for c in condition.single.cells] == [
            c.disagreement for c in plain.single.cells
        ]
        assert (condition.n_replicas, condition.n_failed, condition.failed) == (
            11,
            1,
            ("seed-7",),
        ) and "seed-7" not in condition.runs
        assert len(condition.runs) == 11 and any(
            "counted as failed" in note and "seed-7" in note for note in results.notes
        )
    one_line(
        ftk("measure", path, "--failed", "seed-77"),
        "--failed seed-77: no run has this name",
        "did you mean 'seed-7'?",
    )
    both = write(tmp_path / "both.jsonl", cells + rows(answers(1)[:12], "dora"))
    one_line(
        ftk("measure", both, "--failed", "seed-7"),
        "runs of lora, dora have this name",
        "write lora/seed-7",
    )
    assert measure_predictions(both, tmp_path / "e", failed=["dora/seed-7"]).conditions[
        1
    ].failed == ("seed-7",)
    odd = write(tmp_path / "odd.jsonl", [cell | {"status": "200"} for cell in cells])
    one_line(ftk("measure", odd), "field 'status' of replica 'seed-0' is '200'", "--column failed=")
    assert ftk("measure", odd, "--column", "failed=", "--out", tmp_path / "f").exit_code == 0
    everyone = [word for r in range(12) for word in ("--failed", f"seed-{r}")]
    one_line(ftk("measure", path, *everyone), "all 12 runs of lora have failed")


def test_runs_that_stand_off_are_told_by_name_with_figures_without_them(tmp_path):
    garbage = answers(0)[:20].copy()
    garbage[[4, 11]] = 3
    cells = rows(garbage)
    for cell in cells:
        cell["replica"] = (
            "wild run " + cell["replica"]
            if cell["replica"] in ("seed-4", "seed-11")
            else cell["replica"]
        )
    results = measure_predictions(write(tmp_path / "p.jsonl", cells), tmp_path / "out")
    assert {s.what for s in results.suspects} == {"disagreement", "accuracy"}
    at, kept = slice(PROMPTS // 2, None), np.setdiff1d(np.arange(20), [4, 11])
    for suspect in results.suspects:
        assert (
            suspect.runs == ("wild run seed-4", "wild run seed-11")
            and "accuracy" in suspect.seen_in
        )
        if (suspect.what, suspect.shift) == ("disagreement", "far"):
            assert suspect.figure_with.value == pytest.approx(st.disagreement(garbage[:, at]).value)
            assert suspect.figure_without.value == pytest.approx(
                st.disagreement(garbage[kept][:, at]).value
            )
    assert load_results(tmp_path / "out" / "results.json") == results
    assert not measure_predictions(
        write(tmp_path / "q.jsonl", rows(answers(0)[:20])), tmp_path / "none"
    ).suspects


def test_means_of_scores_and_their_change(tmp_path):
    rng = np.random.default_rng(0)
    score = {
        name: rng.normal(size=(1, PROMPTS)) + rng.normal(size=(12, 1)) / 4 + shift
        for name, shift in (("a", 0), ("b", 3))
    }
    cells = [
        cell | {"score": float(score[name].ravel()[n])}
        for name in score
        for n, cell in enumerate(rows(answers(0)[:12], name))
    ]
    results = measure_predictions(write(tmp_path / "p.jsonl", cells), tmp_path / "out")
    at = slice(PROMPTS // 2, None)
    mean = {m.name: m.estimate for m in results.conditions[1].single.cell("far").metrics}[
        "score: mean"
    ]
    assert (
        mean.value == pytest.approx(score["b"][:, at].mean(), rel=1e-6)
        and mean.low < mean.value < mean.high
    )
    change = next(c for c in results.contrasts if c.shift == "far").score_change
    assert change.value == pytest.approx(
        score["b"][:, at].mean() - score["a"][:, at].mean(), rel=1e-5
    )
    assert change.conclusive and 2 < change.low < change.value < change.high < 4
    assert change.value == pytest.approx(
        st.population_score_change(score["b"][:, at], score["a"][:, at]).value, rel=1e-5
    )


def test_a_baseline_of_one_run_is_said_with_the_distance_of_the_others(tmp_path):
    alone, many = answers(0)[:1], answers(1)[:6]
    path = write(tmp_path / "p.jsonl", rows(alone, "alone") + rows(many, "many"))
    results = measure_predictions(path, tmp_path / "out")
    assert not results.contrasts
    far = next(d for d in results.distances if d.shift == "far")
    at = slice(PROMPTS // 2, None)
    assert far.single == "alone" and far.differs.value == pytest.approx(
        (many[:, at] != alone[:, at]).mean()
    )
    assert far.accuracy_change.value == pytest.approx(
        (many[:, at] == 0).mean() - (alone[:, at] == 0).mean()
    )
    assert [share for _, share in far.runs] == pytest.approx(
        (many[:, at] != alone[:, at]).mean(axis=1).tolist()
    )
    assert [name for name, _ in far.runs] == [f"seed-{r}" for r in range(6)]
    assert sum("alone is one run" in note for note in results.notes) == 2
    assert "note: alone is one run" in ftk("measure", path, "--out", tmp_path / "out").stdout
    turned = measure_predictions(path, tmp_path / "turned", baseline="many")
    assert next(
        d for d in turned.distances if d.shift == "far"
    ).accuracy_change.value == pytest.approx(-far.accuracy_change.value)
    assert load_results(tmp_path / "turned" / "results.json") == turned


def test_columns_are_named_on_the_shell(tmp_path):
    """A table under names of its own gives the figures of the same one under the usual names."""
    cells = rows(answers(0)[:8])
    names = {
        "replica": "model",
        "prompt": "question",
        "output": "gen",
        "reference": "right",
        "category": "topic",
        "shift": "split",
    }
    renamed = write(
        tmp_path / "own.jsonl",
        [{names[key]: value for key, value in cell.items()} for cell in cells],
    )
    options = [word for role, name in names.items() for word in ("--column", f"{role}={name}")]
    assert ftk("measure", renamed, *options, "--out", tmp_path / "own").exit_code == 0
    usual = measure_predictions(write(tmp_path / "usual.jsonl", cells), tmp_path / "usual")
    assert (
        load_results(tmp_path / "own" / "results.json").conditions[0].procedures
        == usual.conditions[0].procedures
    )
    one_line(ftk("measure", renamed, "--column", "output"), "write ROLE=NAME")
    one_line(
        ftk("measure", renamed, "--column", "output=a", "--column", "output=b"),
        "--column output= is given twice",
    )


def test_a_list_of_one_text_is_the_text(tmp_path):
    plain = [
        {"run": f"s{s}", "id": i, "reference": str(i), "output": str(i + (s == 3 and i % 4 == 0))}
        for s in range(4)
        for i in range(40)
    ]
    listed = [row | {"output": [row["output"]]} for row in plain]
    found = [
        measure_predictions(write(tmp_path / f"{n}.jsonl", cells), tmp_path / str(n))
        for n, cells in enumerate((plain, listed))
    ]
    assert found[0].conditions[0].procedures == found[1].conditions[0].procedures
    assert found[1].conditions[0].single.cells[0].accuracy.value == pytest.approx(150 / 160)


def test_the_gate_names_its_columns_and_how_many_runs_it_needs(tmp_path):
    cells = rows(answers(0, replicas=32))
    own = [
        {"gen" if key == "output" else key: value for key, value in cell.items()} for cell in cells
    ]
    limits = [tmp_path / "usual.json", tmp_path / "own.json"]
    assert (
        ftk("gate", write(tmp_path / "usual.jsonl", cells), "--save", limits[0]).exit_code
        == cli.DONE
    )
    renamed = write(tmp_path / "own.jsonl", own)
    assert ftk("gate", renamed, "--save", limits[1], "--column", "output=gen").exit_code == cli.DONE
    assert limits[0].read_text() == limits[1].read_text()
    one_line(
        ftk("gate", limits[0], "--save", limits[1], "--column", "output=gen"),
        "are for files of predictions",
    )
    assert f"at least {MIN_BASELINE} runs" in " ".join(ftk("gate", "--help").stdout.split())


# -- crossed designs -----------------------------------------------------------------------------


def crossed_rows(levels: dict[str, np.ndarray]) -> tuple[np.ndarray, list[dict]]:
    """Answers of runs that differ by init (much) and by what is left (little); the rows carry the
    levels.
    """
    rng = np.random.default_rng(2)
    init_R = levels["init"]
    say_IP = np.where(
        rng.random((init_R.max() + 1, PROMPTS)) < 0.3,
        rng.integers(1, 4, (init_R.max() + 1, PROMPTS)),
        0,
    )
    answer_RP = np.where(
        rng.random((len(init_R), PROMPTS)) < 0.1,
        rng.integers(1, 4, (len(init_R), PROMPTS)),
        say_IP[init_R],
    )
    cells = rows(answer_RP)
    for i, cell in enumerate(cells):
        cell |= {name: f"seed {level_R[i // PROMPTS]}" for name, level_R in levels.items()} | {
            "score": float(answer_RP.ravel()[i])
        }
    return answer_RP, cells


def grid(*sizes: int) -> dict[str, np.ndarray]:
    return dict(
        zip(("init", "order", "dropout"), (x.ravel() for x in np.indices(sizes)), strict=False)
    )


@pytest.mark.parametrize("sizes", [(6, 7), (5, 3, 2)], ids=["two sources", "three sources"])
def test_predictions_of_a_crossed_design_are_taken_apart(tmp_path, sizes):
    levels = grid(*sizes)
    answer_RP, cells = crossed_rows(levels)
    results = measure_predictions(write(tmp_path / "crossed.jsonl", cells), tmp_path / "out")
    found = {(s.shift, s.figure): s for s in results.conditions[0].sources}
    far = slice(PROMPTS // 2, None)
    answers = st.behaviour_components(answer_RP[:, far], levels)
    assert {n: figures(e) for n, e in found["far", "disagreement"].parts.items()} == {
        n: figures(e) for n, e in answers.parts.items()
    }
    for figure, score_R in (
        ("accuracy", (answer_RP[:, far] == 0).mean(axis=1)),
        ("score", answer_RP[:, far].mean(axis=1)),
    ):
        parts = st.crossed(score_R, levels).parts
        assert {n: e.value for n, e in found["far", figure].parts.items()} == pytest.approx(
            {n: e.value for n, e in parts.items()}
        )
        # runs share seeds: they are not so many draws of it
        fresh = found["far", figure].precision["intermediate precision"]
        assert fresh.high == pytest.approx(found["far", figure].total.high ** 0.5)
    assert (
        found["far", "disagreement"].parts["init"].low
        > found["far", "disagreement"].parts["order"].high
    )
    assert load_results(tmp_path / "out" / "results.json") == results
    shown = ftk("measure", tmp_path / "crossed.jsonl", "--out", tmp_path / "out")
    assert "what each source adds to the disagreement in %: init" in shown.stdout
    html = (tmp_path / "out" / "report.html").read_text()
    assert "What makes runs differ" in html and "variance of the mean score" in html


def test_cells_that_are_not_full_and_repeats(tmp_path):
    """A run that is missing goes to REML; runs of one cell are repeats and show the numerics."""
    twice = {name: np.tile(x, 2) for name, x in grid(6, 6).items()}
    _, cells = crossed_rows(twice)
    cells = [cell for cell in cells if cell["replica"] != "seed-17"]
    found = {
        s.figure: s
        for s in measure_predictions(write(tmp_path / "c.jsonl", cells), tmp_path / "c")
        .conditions[0]
        .sources
    }
    assert (
        list(found["disagreement"].parts)
        == list(found["accuracy"].parts)
        == ["init", "order", "init x order", "residual"]
    )
    assert (
        "REML" in found["accuracy"].parts["init"].method
        and "repeatability" in found["accuracy"].precision
    )


def test_a_table_of_factors_is_as_good_as_columns(tmp_path):
    levels = grid(6, 7)
    _, cells = crossed_rows(levels)
    own = (
        measure_predictions(write(tmp_path / "own.jsonl", cells), tmp_path / "own")
        .conditions[0]
        .sources
    )
    wide: dict[str, dict] = {}
    for cell in cells:
        about = {key: cell[key] for key in ("prompt", "reference", "category", "shift")}
        wide.setdefault(cell["prompt"], about)[cell["replica"]] = cell["output"]
    path = write(tmp_path / "own-wide.jsonl", list(wide.values()))
    told = "".join(
        f"seed-{r},{i},{o}\n" for r, (i, o) in enumerate(zip(*levels.values(), strict=True))
    )
    (tmp_path / "factors.csv").write_text("replica,init,order\n" + told + "seed-99,1,1\n")
    results = measure_predictions(path, tmp_path / "wide", factors=tmp_path / "factors.csv")
    assert results.conditions[0].sources == tuple(s for s in own if s.figure != "score")
    assert "factors.csv: 1 of its replicas have no predictions" in results.notes


@pytest.mark.parametrize(
    ("levels", "told"),
    [
        (
            {"init": np.arange(20), "order": np.arange(20)},
            "every replica has init and order of its own: what each source adds is not",
        ),
        (
            {"init": np.arange(20) // 4, "order": np.arange(20) // 4},
            "no two replicas are just same init or same order",
        ),
        ({"init": np.zeros(20, dtype=int)}, "all replicas have the same init"),
    ],
    ids=["own", "together", "constant"],
)
def test_sources_that_do_not_cross_are_one_note(tmp_path, levels, told):
    _, cells = crossed_rows(levels)
    results = measure_predictions(write(tmp_path / "c.jsonl", cells), tmp_path / "c")
    assert results.conditions[0].sources == () and sum(told in note for note in results.notes) == 1
    assert told in (tmp_path / "c" / "report.html").read_text()


def test_one_source_that_some_replicas_share(tmp_path):
    """Eight inits with five runs each, all else different in every run: the init, and the rest."""
    levels = {"init": np.repeat(np.arange(8), 5), "order": np.arange(40)}
    _, cells = crossed_rows(levels)
    results = measure_predictions(write(tmp_path / "c.jsonl", cells), tmp_path / "c")
    found = {s.figure: s for s in results.conditions[0].sources}
    assert (
        list(found["disagreement"].parts) == list(found["accuracy"].parts) == ["init", "residual"]
    )
    assert (
        found["disagreement"].parts["init"].low > 0
        and "repeatability" not in found["accuracy"].precision
    )
    assert any(
        "every replica has order of its own: a part of the residual" in note
        for note in results.notes
    )


def test_factors_that_cannot_be_are_one_line(tmp_path):
    levels = grid(3, 3)
    _, cells = crossed_rows(levels)
    path = write(
        tmp_path / "clash.jsonl", [*cells[:70], cells[70] | {"init": "seed 9"}, *cells[71:]]
    )
    one_line(
        ftk("measure", path),
        "clash.jsonl:71",
        "field 'init'",
        "replica 'seed-1'",
        "'seed 9'",
        "only one",
    )
    path = write(
        tmp_path / "half.jsonl",
        [
            *cells[: 2 * PROMPTS],
            *({k: v for k, v in c.items() if k != "init"} for c in cells[2 * PROMPTS :]),
        ],
    )
    one_line(ftk("measure", path), "half.jsonl", "'init' of replica 'seed-2'")
    plain = write(tmp_path / "plain.jsonl", rows(answers(replicas=3)))
    for text, told in (
        ("replica,init\nseed-0,1\nseed-1,1\n", ["f.csv", "no row for replica 'seed-2'"]),
        ("replica,init\nseed-0,1\nseed-0,2\n", ["f.csv:3", "'seed-0'", "f.csv:2"]),
        ("replica,init\nseed-0,1\nseed-1,\nseed-2,1\n", ["f.csv:3", "'init' is missing"]),
        ("name,init\nseed-0,1\n", ["f.csv", "no column for the replica"]),
        ("replica\nseed-0\n", ["f.csv", "no column for a source"]),
        ("", ["f.csv", "no rows"]),
    ):
        (tmp_path / "f.csv").write_text(text)
        one_line(ftk("measure", plain, "--factors", tmp_path / "f.csv"), *told)
    one_line(ftk("measure", plain, "--factors", tmp_path / "none.csv"), "none.csv: no such file")
    (tmp_path / "f.csv").write_text("replica,init\n" + "".join(f"seed-{r},{r}\n" for r in range(9)))
    one_line(
        ftk("measure", write(tmp_path / "own.jsonl", cells), "--factors", tmp_path / "f.csv"),
        "f.csv",
        "'init' themselves",
    )


CRITERIA = """
thresholds: {acceptable: 0.02, critical: 0.10, categories: {easy: {acceptable: 0.9,
    critical: 0.95}}}
criteria:
  - {name: not too different, suite: far, limit: 0.9}
  - {name: nearly equal, suite: far, limit: 0.01}
  - {name: who can tell, suite: far, limit: VALUE}
  - {name: right, suite: typical, statistic: accuracy, limit: 0.5, aggregation: worst}
  - {name: no bad run, suite: typical, statistic: tail, below: 0.2, limit: 0.1}
  - {name: says three, suite: far, observable: "regex:answer 3", statistic: rate, limit: 0.5}
"""


def test_criteria_and_the_matrix(file, tmp_path):
    value = st.disagreement(answers()[:, PROMPTS // 2 :]).value
    (tmp_path / "criteria.yaml").write_text(CRITERIA.replace("VALUE", f"{value:.4f}"))
    results = measure_predictions(
        file, tmp_path / "out", criteria=load_criteria(tmp_path / "criteria.yaml")
    )
    verdicts = {j.criterion: j.verdict for j in results.judgements}
    assert list(verdicts.values()) == ["PASS", "FAIL", "INCONCLUSIVE", "PASS", "PASS", "PASS"]
    one_sided = next(j for j in results.judgements if j.criterion == "not too different").estimate
    # 95 % at each end
    assert figures(one_sided) == figures(st.disagreement(answers()[:, PROMPTS // 2 :], level=0.9))
    single = results.conditions[0].single
    assert single.cell("far").zone == "critical" and single.cell("far", "easy").zone == "acceptable"
    html = (tmp_path / "out" / "report.html").read_text()
    assert (
        "Your criteria" in html
        and 'class="zone critical"' in html
        and 'class="zone acceptable"' in html
    )


def test_a_limit_that_few_prompts_cannot_show_is_never_passed(tmp_path):
    """Nothing seen on 30 prompts is compatible with 5 %: no PASS at 1 %, whatever the number of
    replicas; nor with 50 replicas at 10 %.
    """
    path = write(tmp_path / "same.jsonl", rows(np.zeros((50, PROMPTS), dtype=int)))
    (tmp_path / "c.yaml").write_text(
        "criteria: [{name: never, suite: far, limit: 0.01}, "
        "{name: seldom, suite: far, limit: 0.12}]"
    )
    results = measure_predictions(
        path, tmp_path / "out", criteria=load_criteria(tmp_path / "c.yaml")
    )
    assert [j.verdict for j in results.judgements] == ["INCONCLUSIVE", "PASS"]
    assert results.conditions[0].single.cell("far").zone == "watch"


def test_from_the_shell(file, tmp_path):
    result = ftk("measure", file, "--out", tmp_path / "out", "--json")
    found = json.loads(result.stdout)
    assert (
        result.exit_code == cli.DONE and found["results"]["conditions"][0]["n_replicas"] == REPLICAS
    )
    shown = ftk("measure", file, "--out", tmp_path / "out")
    assert "40 replicas" in shown.stdout and "report: " in shown.stdout


def test_no_torch(file, tmp_path):
    code = (
        f"import sys; from toolkit.cli import main\ntry: main(['measure', {str(file)!r}, "
        f"'--out', {str(tmp_path)!r}])\n"
    )
    code += "except SystemExit: pass\n"
    code += "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        .stdout.strip()
        .endswith("[]")
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda cells: cells + [cells[3]], ["preds.jsonl", "p3", "seed-0"]),
        (
            lambda cells: [{k: v for k, v in cells[0].items() if k != "output"}, *cells[1:]],
            ["preds.jsonl:1", "output"],
        ),
        (lambda cells: [], ["preds.jsonl"]),
        (
            lambda cells: [cells[0], cells[0] | {"replica": "seed-9", "reference": "other"}],
            ["preds.jsonl:2", "reference"],
        ),
    ],
    ids=["twice", "no output", "empty", "two references"],
)
def test_bad_files_are_one_line(tmp_path, change, told):
    path = write(tmp_path / "preds.jsonl", change(rows(answers(replicas=2))))
    one_line(ftk("measure", path), *told)


def test_other_bad_input_is_one_line(file, tmp_path):
    one_line(ftk("measure", tmp_path / "none.jsonl"), "no such file")
    one_line(ftk("measure", file, "--same", "nonsense"), "nonsense")
    one_line(ftk("measure", file, "--baseline", "x"), "no condition 'x'")
    one_line(ftk("measure", tmp_path), "no outcomes")
    (tmp_path / "c.yaml").write_text("criteria: [{name: a, suite: nowhere, limit: 0.1}]")
    one_line(ftk("measure", file, "--criteria", tmp_path / "c.yaml"), "nowhere", "typical")
    (tmp_path / "c.yaml").write_text("criterias: []")
    one_line(ftk("measure", file, "--criteria", tmp_path / "c.yaml"), "c.yaml:1", "criteria")


def test_little_data_gives_no_made_up_interval(tmp_path):
    """One replica, one prompt in a category, scores that are nan, answers that are all equal."""
    alone = measure_predictions(
        write(tmp_path / "one.jsonl", rows(answers(replicas=1))), tmp_path / "one"
    )
    assert not alone.conditions[0].single.cell("far").disagreement.conclusive
    cells = [
        cell | {"score": float("nan"), "category": "odd" if cell["prompt"] == "p0" else "usual"}
        for cell in rows(answers())
    ]
    odd = (
        measure_predictions(write(tmp_path / "odd.jsonl", cells), tmp_path / "odd")
        .conditions[0]
        .single.cell("typical", "odd")
    )
    assert (
        odd
        and odd.n_prompts == 1
        and not odd.disagreement.conclusive
        and odd.zone == "not enough data"
    )


def loss(tmp_path, shares: tuple[float, ...], base: bool = True) -> Path:
    """A base that is always right, and conditions whose runs are right that often."""
    rng, found = (
        np.random.default_rng(0),
        rows(np.zeros((1, 3 * PROMPTS), int), "untuned") if base else [],
    )
    for number, share in enumerate(shares):
        right_P = rng.random(3 * PROMPTS) < share
        found += rows(
            np.where(rng.random((12, 3 * PROMPTS)) < 0.02, 3, np.where(right_P, 0, 1)),
            f"lora-{number}",
        )
    return write(tmp_path / "loss.jsonl", found)


@pytest.mark.parametrize("conditions", [1, 2])
def test_what_a_fine_tune_lost_against_its_base_is_told_everywhere(tmp_path, conditions):
    """Stable runs that are worse than the base are no success, whether a condition or a column has
    the base's answers.
    """
    path = loss(tmp_path, (0.4, 0.9)[:conditions])
    cells = [json.loads(line) for line in path.read_text().splitlines()]
    column = write(
        tmp_path / "column.jsonl",
        [{**c, "base_answer": "answer 0"} for c in cells if c["condition"] != "untuned"],
    )
    for arguments in ((path, "--base", "untuned"), (column,)):
        done = ftk("measure", *arguments, "--out", tmp_path / "out", "--force")
        single = load_results(tmp_path / "out" / "results.json").conditions[0].single.cell("far")
        gained = (
            f"far {100 * single.gained.value:.1f} [{100 * single.gained.low:.1f}, "
            f"{100 * single.gained.high:.1f}]!"
        )
        told = " ".join(done.stdout.split())
        assert "base model, accuracy in %: typical 100.0" in told and gained in told
        assert f"lora-0, accuracy in %: typical {100 * load_share(tmp_path, 'typical'):.1f}" in told
        assert "lora-0, answers equal to the base's in %: typical" in told
        assert "Right answers: lora-0 is less accurate than the base: on typical prompts" in told
        report = (tmp_path / "out" / "report.html").read_text()
        assert (
            "lora-0 is less accurate than the base" in report
            and "on far prompts the base is more accurate" in report
        )


def load_share(tmp_path: Path, shift: str) -> float | None:
    return (
        load_results(tmp_path / "out" / "results.json")
        .conditions[0]
        .single.cell(shift)
        .accuracy.value
    )


def test_accuracy_is_told_wherever_there_are_references(tmp_path):
    """Also of one condition, and of a condition of a single run, which may be the base."""
    alone = ftk("measure", loss(tmp_path, (0.4,), base=False), "--out", tmp_path / "out").stdout
    assert (
        f"lora-0, accuracy in %: typical {100 * load_share(tmp_path, 'typical'):.1f} [" in alone
        and "gained over" not in alone
    )
    lone = " ".join(
        ftk("measure", loss(tmp_path, (0.4,)), "--out", tmp_path / "out").stdout.split()
    )
    assert (
        "untuned, accuracy in %: typical 100.0? [" in lone
        and "lora-0, accuracy in %: typical" in lone
    )
    assert (
        "lora-0 against untuned: it loses accuracy: -" in lone
        and "--base untuned" in lone
        and "--baseline NAME" in lone
    )
    assert "on typical prompts 100.0 %" in lone
    bare = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    bare = write(
        tmp_path / "bare.jsonl", [{k: v for k, v in c.items() if k != "reference"} for c in bare]
    )
    assert "accuracy in %" not in ftk("measure", bare).stdout


def test_missing_cells_are_counted_and_a_silent_replica_has_failed(tmp_path):
    cells = [cell for n, cell in enumerate(rows(answers())) if n % 7]
    cells += [{"replica": "silent", "prompt": "p1", "output": None}]
    results = measure_predictions(write(tmp_path / "holes.jsonl", cells), tmp_path / "out")
    condition = results.conditions[0]
    assert (condition.n_replicas, condition.n_failed) == (
        REPLICAS,
        1,
    ) and condition.failure_rate.value == pytest.approx(1 / 41)
    assert any("missing" in note for note in results.notes)
    answer_RP = answers()
    answer_RP.ravel()[::7] = -1
    assert condition.single.cell("far").disagreement.value == pytest.approx(
        st.disagreement(answer_RP[:, PROMPTS // 2 :]).value
    )


def test_shifts_of_ones_own_names_stand_in_the_order_of_the_file(tmp_path):
    """Not by the alphabet, which made `hans` home and `mnli` the farthest; known shifts are known
    in capitals, too.
    """
    told = {"typical": "mnli", "far": "hans"}
    cells = [{**cell, "shift": told[cell["shift"]]} for cell in rows(answers(replicas=6))]
    results = measure_predictions(write(tmp_path / "own.jsonl", cells), tmp_path / "own")
    assert results.shifts == ["mnli", "hans"]
    assert (
        "shifts, in the order of the file: mnli, hans; mnli is taken as home, hans as the farthest"
        in results.notes
    )
    cells = [{**cell, "shift": cell["shift"].upper()} for cell in rows(answers(replicas=6))]
    results = measure_predictions(
        write(tmp_path / "capitals.jsonl", cells[::-1]), tmp_path / "capitals"
    )
    assert results.shifts == ["typical", "far"] and not any(
        "shifts" in note for note in results.notes
    )


def test_columns_of_the_terminal_never_run_together(tmp_path):
    """With long names of shifts and wide intervals."""
    cells = [
        {**cell, "shift": f"{cell['shift']} of a rather long name"}
        for cell in rows(answers(replicas=3, spread=0.9))
    ]
    lines = ftk("measure", write(tmp_path / "long.jsonl", cells)).stdout.splitlines()
    titles, row = (
        [part.strip() for part in line.split("  ") if part.strip()] for line in lines[1:3]
    )
    assert titles[2:4] == ["typical of a rather long name", "far of a rather long name"]
    assert len(row) == 4 and all(
        figure.count("[") == 1 and figure.endswith("]") for figure in row[2:]
    )


def test_scores_without_answers_are_pointed_to_a_table_of_runs(tmp_path):
    cells = [{"replica": 0, "prompt": 1, "score": 1.0}]
    one_line(
        ftk("measure", write(tmp_path / "s.jsonl", cells)),
        "no column for the output",
        "mean of each run's scores",
    )
    big = [{"replica": r, "prompt": 1, "output": "a", "score": 1e300} for r in range(2)]
    one_line(
        ftk("measure", write(tmp_path / "b.jsonl", big)),
        "field 'score' must be a finite number",
        "1e+15 at most",
    )


def test_pairs_that_cannot_be_are_told(tmp_path):
    other = [
        {**cell, "replica": "x" + cell["replica"]} for cell in rows(answers(1, replicas=4), "b")
    ]
    path = write(tmp_path / "two.jsonl", rows(answers(replicas=4), "a") + other)
    assert "b and a have fewer than two run names in common" in " ".join(
        ftk("measure", path, "--paired").stdout.split()
    )


def test_answers_of_the_base_to_some_prompts_are_told(tmp_path):
    cells = [
        {**cell, "base_answer": "answer 1" if int(cell["prompt"][1:]) < 12 else None}
        for cell in rows(answers(replicas=6))
    ]
    results = measure_predictions(write(tmp_path / "some.jsonl", cells), tmp_path / "some")
    assert (
        "the base's answers are missing for 48 of 60 prompts; what is said of it is of the others"
        in results.notes
    )
    cells = rows(answers(replicas=6), "lora") + rows(answers(1, replicas=1), "untuned")[:40]
    results = measure_predictions(
        write(tmp_path / "part.jsonl", cells), tmp_path / "part", base="untuned"
    )
    assert any("base's answers are missing for 20 of 60 prompts" in note for note in results.notes)


def test_thresholds_of_a_category_that_is_not_there_are_refused(file, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "thresholds: {categories: {zzz: {acceptable: 0.1, critical: 0.2}}}"
    )
    one_line(
        ftk("measure", file, "--criteria", tmp_path / "c.yaml", "--out", tmp_path / "out"),
        "no prompt has the category 'zzz'",
        "easy, hard",
    )
    assert not (tmp_path / "out").exists()


def test_a_seed_beside_the_run_is_a_source_where_runs_share_it(tmp_path):
    """Six seeds with five repetitions are six independent runs; a seed of its own in every run is
    one more name of it.
    """
    answer_RP = np.repeat(answers(replicas=6), 5, axis=0)
    cells = [
        {**cell, "seed": int(cell["replica"].removeprefix("seed-")) // 5}
        for cell in rows(answer_RP)
    ]
    shared = measure_predictions(write(tmp_path / "shared.jsonl", cells), tmp_path / "shared")
    as_init = [{("init" if k == "seed" else k): v for k, v in cell.items()} for cell in cells]
    same = measure_predictions(write(tmp_path / "init.jsonl", as_init), tmp_path / "init")
    (a,), (b,) = shared.conditions, same.conditions
    assert a.n_replicas == b.n_replicas == 6
    assert shared.verdict[0].endswith(
        "(30 runs, of which 6 share no seed); 95 % intervals in brackets."
    )
    assert "0 of 30 training runs failed" in shared.verdict[2]
    assert a.single.cell("far").disagreement.value == pytest.approx(
        b.single.cell("far").disagreement.value
    )
    own = [{**cell, "seed": cell["replica"]} for cell in rows(answers(replicas=6))]
    found = measure_predictions(write(tmp_path / "own.jsonl", own), tmp_path / "own")
    assert found.conditions[0].n_replicas == 6 and not any(
        "seed" in note for note in found.notes[1:]
    )


# -- the gate ------------------------------------------------------------------------------------


def test_the_gate_passes_the_same_process_and_stops_another(file, tmp_path):
    same = write(tmp_path / "same.jsonl", rows(_fresh(spread=0.3)))
    other = write(tmp_path / "other.jsonl", rows(_fresh(spread=1.0)))
    assert ftk("gate", file, "--candidate", same).exit_code == cli.DONE
    stopped = ftk("gate", file, "--candidate", other)
    assert (
        stopped.exit_code == cli.GATE_SAID_NO
        and "FAIL" in stopped.stdout
        and "OUTSIDE" in stopped.stdout
    )
    assert ftk("gate", file, "--save", tmp_path / "limits.json").exit_code == cli.DONE
    # without the population
    again = ftk("gate", tmp_path / "limits.json", "--candidate", other, "--json")
    assert again.exit_code == cli.GATE_SAID_NO and json.loads(again.stdout)["status"] == "fail"
    assert (tmp_path / "limits.json").stat().st_size < 100_000


def test_a_gate_without_enough_to_go_by_is_inconclusive(file, tmp_path):
    few = write(tmp_path / "few.jsonl", rows(answers(replicas=6)))
    candidate = write(tmp_path / "candidate.jsonl", rows(_fresh(0.3)))
    result = ftk("gate", few, "--candidate", candidate)
    assert result.exit_code == cli.DONE and "INCONCLUSIVE" in result.stdout
    half = write(tmp_path / "half.jsonl", rows(_fresh(0.3))[: PROMPTS // 2])
    assert "30 of 60 prompts are missing" in ftk("gate", file, "--candidate", half).stdout


def test_the_gate_judges_the_condition_that_is_named_and_says_what_it_left_out(file, tmp_path):
    """A broken run is not passed because another condition stands before it in the file."""
    good, broken = rows(_fresh(0.3), "good"), rows(_fresh(1.0), "lora")
    baseline = write(tmp_path / "baseline.jsonl", rows(answers(), "lora"))
    for cells in (good + broken, broken + good):
        both = write(tmp_path / "both.jsonl", cells)
        one_line(
            ftk("gate", baseline, "--candidate", both), "both.jsonl", "--condition", "good", "lora"
        )
        one_line(ftk("gate", both, "--save", tmp_path / "no.json"), "both.jsonl", "--condition")
        judged = ftk("gate", baseline, "--candidate", both, "--condition", "lora")
        assert (
            judged.exit_code == cli.GATE_SAID_NO
            and "judged: 1 run of lora (seed-0)" in judged.stdout
        )
        assert "not judged: other conditions of both.jsonl (good)" in judged.stdout
        one_line(
            ftk("gate", baseline, "--candidate", both, "--condition", "typo"), "no condition 'typo'"
        )
    alone = write(tmp_path / "alone.jsonl", good)  # of one condition, whatever it is called
    assert (
        "judged: 1 run of good (seed-0)"
        in ftk("gate", baseline, "--candidate", alone, "--condition", "lora").stdout
    )


def test_failed_runs_of_a_candidate_are_told_and_all_others_are_judged(file, tmp_path):
    """Also those that share a seed with each other: every run is judged by itself."""
    finished, crashed = (
        ({**cell, "failed": False, "init": 1} for cell in rows(_fresh(0.3))),
        rows(_fresh(1.0), failed=True, init=1),
    )
    more = [{**cell, "replica": "again", "failed": False, "init": 1} for cell in rows(_fresh(0.3))]
    crashed = [{**cell, "replica": "crashed"} for cell in crashed]
    one_line(
        ftk("gate", file, "--candidate", write(tmp_path / "lost.jsonl", crashed)),
        "lost.jsonl",
        "all runs of lost have failed",
    )
    mixed = ftk(
        "gate", file, "--candidate", write(tmp_path / "mixed.jsonl", [*finished, *crashed, *more])
    )
    assert (
        "judged: 2 runs of mixed (again, seed-0)" in mixed.stdout
        and "not judged: 1 failed run (crashed)" in mixed.stdout
    )


def test_what_the_gate_cannot_read_is_one_line(file, tmp_path):
    one_line(ftk("gate", file), "--candidate")
    one_line(ftk("gate", file, "--candidate", tmp_path / "nothing"), "no such file")
    one_line(ftk("gate", tmp_path, "--candidate", file), "no outcomes")
    (tmp_path / "limits.json").write_text('{"version": 99}')
    one_line(ftk("gate", tmp_path / "limits.json", "--candidate", file), "version 99")
