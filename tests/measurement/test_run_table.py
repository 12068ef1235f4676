"""Tables of one row a run: means, spreads and contrasts of metrics are those of the statistics, and
what is no such table is refused.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from toolkit import cli
from toolkit import statistics as st
from toolkit.measurement.predictions import PredictionsError, read_run_table
from toolkit.measurement.run_table import measure_run_table
from toolkit.record.results import load_run_metrics

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

SCORES = {
    "lora": np.random.default_rng(0).normal(0.5, 0.02, 40),
    "dora": np.random.default_rng(1).normal(0.6, 0.05, 35),
}


def rows(**more: object) -> list[dict]:
    return [
        {
            "run": f"{name}-{r}",
            "condition": name,
            "mcc": score,
            "perplexity": 10 * score,
            "note": "x",
            "seed": r,
            **more,
        }
        for name, scores in SCORES.items()
        for r, score in enumerate(scores.tolist())
    ]


def write(path: Path, cells: list[dict]) -> Path:
    if path.suffix == ".csv":
        lines = [
            list(cells[0]),
            *([("" if v is None else str(v)) for v in cell.values()] for cell in cells),
        ]
        path.write_text("".join(",".join(line) + "\n" for line in lines))
    else:
        path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    return path


def ftk(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def measured(path: Path, **options):
    table = read_run_table(path)
    assert table is not None
    return measure_run_table(table, path, path.parent / "out", **options)


CROSSED = [
    {"run": f"r{i}-{j}", "init": f"i{i}", "order": j, "f1": 0.8 + i / 50 + j / 90 + i * j / 999}
    for i in range(8)
    for j in range(8)
]


@pytest.mark.parametrize(
    "sources", [("init", "order"), ("seed",), ("data_seed", "order"), ("init", "order", "seed")]
)
def test_runs_that_share_a_seed_are_fewer_independent_runs(tmp_path, sources):
    """Of 8 x 8 runs 8 share nothing, whatever the columns of their seeds are called, in the table
    or beside it.
    """
    cells = []
    for row in CROSSED:
        level = {
            "init": row["init"],
            "order": row["order"],
            "seed": row["init"],
            "data_seed": row["init"],
        }
        cells.append(
            {"run": row["run"], **{name: level[name] for name in sources}, "f1": row["f1"]}
        )
    inside = measured(write(tmp_path / "runs.csv", cells))
    bare = write(tmp_path / "bare.csv", [{"run": c["run"], "f1": c["f1"]} for c in cells])
    table = write(
        tmp_path / "factors.csv", [{k: v for k, v in c.items() if k != "f1"} for c in cells]
    )
    (told,) = inside.metrics
    independent = st.independent_runs(
        {name: [str(c[name]) for c in cells] for name in sources}, len(cells)
    )
    assert len(told.runs) == 8 == len(independent) and told.runs == tuple(
        cells[row]["run"] for row in independent
    )
    assert told.sd.value == pytest.approx(np.std([cells[row]["f1"] for row in independent], ddof=1))
    assert any(
        "of 64 runs some share" in note and sources[0] in note and "8 of them" in note
        for note in inside.notes
    )
    beside = ftk("measure", bare, "--factors", table, "--json")
    assert json.loads(beside.stdout)["metrics"]["metrics"][0]["runs"] == list(told.runs)
    assert len(measured(bare, force=True).metrics[0].runs) == 64


@pytest.mark.parametrize("cells", [[1e308] * 6, [0.1, 0.2, -1e200]])
def test_numbers_whose_squares_are_none_are_refused(tmp_path, cells):
    path = write(tmp_path / "runs.csv", [{"run": n, "f1": x} for n, x in enumerate(cells)])
    with pytest.raises(
        PredictionsError, match=r"field 'f1' must be a finite number, not .* \(1e\+100 at most\)"
    ):
        read_run_table(path)


def test_pairs_that_cannot_be_are_told_and_a_doubt_has_its_reason(tmp_path):
    path = write(tmp_path / "runs.csv", rows()[:5] + rows()[-6:])
    told = ftk("measure", path, "--paired").stdout
    assert "dora and lora have fewer than two run names in common: no pairs" in told
    assert "no pairs" not in ftk("measure", path).stdout
    assert " ? 5 runs are too few" in told and "mcc, perplexity" in told


def test_a_seed_of_its_own_is_one_more_name_of_a_run_and_can_be_left_aside(tmp_path):
    own = write(
        tmp_path / "own.csv",
        [{"run": c["run"], "seed": n, "f1": c["f1"]} for n, c in enumerate(CROSSED)],
    )
    assert len(measured(own).metrics[0].runs) == 64
    shared = write(
        tmp_path / "shared.csv",
        [{"run": c["run"], "seed": c["init"], "f1": c["f1"]} for c in CROSSED],
    )
    found = measure_run_table(read_run_table(shared, {"seed": ""}), shared, tmp_path / "aside")
    assert len(found.metrics[0].runs) == 64
    with pytest.raises(PredictionsError, match="csv:5: field 'seed' is missing"):
        read_run_table(
            write(
                tmp_path / "holes.csv",
                [{"run": n, "seed": "" if n == 3 else n // 2, "f1": n} for n in range(8)],
            )
        )


@pytest.mark.parametrize("name", ["runs.csv", "runs.jsonl"])
def test_the_figures_are_those_of_the_statistics(tmp_path, name):
    found = measured(write(tmp_path / name, rows()))
    by_name = {(row.condition, row.metric): row for row in found.metrics}
    assert list(by_name) == [(c, m) for c in ("lora", "dora") for m in ("mcc", "perplexity")], (
        "a seed is no metric, and a note none"
    )
    lora, dora = SCORES["lora"], SCORES["dora"]
    row = by_name["lora", "mcc"]
    assert row.mean.value == pytest.approx(lora.mean()) and row.sd.value == pytest.approx(
        lora.std(ddof=1)
    )
    assert (row.lowest, row.highest) == pytest.approx((lora.min(), lora.max())) and row.runs[
        3
    ] == "lora-3"
    assert row.mean.conclusive and row.sd.low < 0.02 < row.sd.high
    contrast = found.contrasts[0]
    assert (
        contrast.mean_change.value == pytest.approx(dora.mean() - lora.mean())
        and contrast.mean_change.low > 0
    )
    assert contrast.sd_change.value == pytest.approx(st.sd_difference(dora, lora).value)
    assert contrast.variance_ratio.value == pytest.approx(st.variance_ratio(dora, lora).value)
    assert contrast.p_adjusted >= contrast.mean_change.p
    assert load_run_metrics(tmp_path / "out" / "metrics.json") == found
    assert any("note" in note and "seed" in note for note in found.notes)


def test_welch_and_pairs():
    """The textbook's figures: Welch's t, and t over differences."""
    from scipy import stats

    a, b = SCORES["lora"], SCORES["dora"]
    expected = stats.ttest_ind(b, a, equal_var=False)
    found = st.run_mean_change(b, a)
    assert found.p == pytest.approx(expected.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    pairs = st.run_mean_change(b, a[:35], paired=True)
    expected = stats.ttest_rel(b, a[:35])
    assert pairs.p == pytest.approx(expected.pvalue) and pairs.low == pytest.approx(
        expected.confidence_interval(0.95).low
    )
    mirrored = np.concatenate([a, 2 * a.mean() - a])
    mean = st.run_mean(mirrored)
    assert (mean.low, mean.high) == pytest.approx(
        stats.t.interval(0.95, 79, a.mean(), stats.sem(mirrored))
    )


def test_the_mean_of_skewed_numbers_is_drawn_out_to_the_side_of_the_far_ones():
    """Hall's (1992) limits where they are wider than t, whichever way the skew goes."""
    from scipy import stats

    x = np.random.default_rng(0).exponential(size=20)
    plain = stats.t.interval(0.95, 19, x.mean(), stats.sem(x))
    mean, other = st.run_mean(x), st.run_mean(-x)
    t, skewness = stats.t.ppf(0.975, 19), stats.skew(x, bias=False)
    hall = x.mean() + stats.sem(x) * (t + skewness * (1 + 2 * t**2) / (6 * np.sqrt(20)))
    assert (mean.low, mean.high) == pytest.approx((plain[0], hall))
    assert (other.low, other.high) == pytest.approx((-hall, -plain[0]))


def test_a_wide_gap_and_a_far_run_are_told(tmp_path):
    cells = rows()
    cells[4]["mcc"] = -1.0
    found = measured(write(tmp_path / "runs.csv", cells))
    row = found.metrics[0]
    assert row.suspects == ("lora-4",) and "stand far off" in row.mean.note and row.mean.low < 0.4
    # the interval holds: it is next to endless
    assert row.sd.high > 10 * row.sd.value and "stand far off" in row.sd.note
    without = measured(tmp_path / "runs.csv", failed=["lora-4"])
    assert (
        without.metrics[0].mean.conclusive
        and without.metrics[0].n_failed == 1
        and "lora-4" not in without.metrics[0].runs
    )
    shown = ftk("measure", tmp_path / "runs.csv", "--out", tmp_path / "shown")
    assert (
        shown.exit_code == 0
        and "far off the others: lora-4" in shown.stdout
        and "mean by +0.1" in shown.stdout
    )


def test_a_base_is_what_the_others_gain_over(tmp_path):
    cells = [*rows(), {**rows()[0], "run": "base", "condition": "base", "mcc": 0.1}]
    found = measured(write(tmp_path / "runs.csv", cells), base="base")
    assert {row.condition for row in found.metrics} == {"lora", "dora"}
    assert found.metrics[0].gain_over_base.value == pytest.approx(SCORES["lora"].mean() - 0.1)


def test_missing_numbers_are_said(tmp_path):
    cells = rows()
    cells[0]["mcc"], cells[1]["mcc"] = None, None
    found = measured(write(tmp_path / "runs.jsonl", cells))
    assert (
        "lora, mcc: 2 of 40 runs have no number, and its figures are of the others" in found.notes
    )
    assert found.metrics[0].mean.value == pytest.approx(SCORES["lora"][2:].mean())


def test_a_setting_is_no_figure_of_runs(tmp_path):
    found = measured(write(tmp_path / "runs.jsonl", rows(lr=0.001)))
    assert {row.metric for row in found.metrics} == {"mcc", "perplexity"}
    assert any(
        "lr is the same in all runs" in note and "0.001 (lora)" in note for note in found.notes
    )
    alone = [{"run": r, "accuracy": 0.3} for r in range(20)]
    (tmp_path / "b").mkdir()
    found = measured(write(tmp_path / "b" / "alone.jsonl", alone))
    assert [(row.metric, row.sd.value) for row in found.metrics] == [("accuracy", 0.0)]


def test_predictions_are_no_table_of_runs(tmp_path):
    long = [{"run": r, "id": p, "output": "x", "score": 0.5} for r in range(3) for p in range(4)]
    assert read_run_table(write(tmp_path / "long.jsonl", long)) is None
    assert (
        read_run_table(
            write(tmp_path / "wide.csv", [{"prompt": p, "run_1": 1, "run_2": 1} for p in range(4)])
        )
        is None
    )
    mixed = [{"run": r, "question": f"q{p}", "f1": 0.5} for r in range(3) for p in range(4)]
    with pytest.raises(
        PredictionsError,
        match=r"mixed.csv:3: run '0' stands at .*mixed.csv:2 already; a row is a run here",
    ):
        read_run_table(write(tmp_path / "mixed.csv", mixed))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mcc": "n/a"}, "runs.csv:2: field 'mcc' must be a finite number, not 'n/a'"),
        ({"mcc": "inf"}, "field 'mcc' must be a finite number"),
        ({"run": ""}, "field 'run' is missing"),
        ({"condition": ""}, "field 'condition' is missing"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, changed, told):
    cells = rows()
    cells[0] |= changed
    result = ftk("measure", write(tmp_path / "runs.csv", cells), "--out", tmp_path / "out")
    assert (
        result.exit_code == cli.BAD_INPUT
        and told in result.stderr
        and len(result.stderr.strip().splitlines()) == 1
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--failed", "lora-99"], "no run has it; did you mean 'lora-9'?"),
        (["--base", "lora"], "the base 'lora' has 40 runs"),
        (["--baseline", "lor"], "no condition 'lor'; did you mean 'lora'?"),
        (["--same", "numeric"], "--same is for predictions"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, told):
    result = ftk(
        "measure", write(tmp_path / "runs.csv", rows()), "--out", tmp_path / "out", *options
    )
    assert (
        result.exit_code == cli.BAD_INPUT
        and told in result.stderr
        and len(result.stderr.strip().splitlines()) == 1
    )


@pytest.mark.slow
def test_coverage():
    """Means, spreads and changes of metrics, and of scores over runs and prompts, cover what they
    say.
    """
    rng, hits, n = np.random.default_rng(0), np.zeros(5), 2000
    for _ in range(n):
        prompt_P = rng.normal(size=(1, 60))
        a_RP = prompt_P + rng.normal(size=(12, 1)) / 2 + rng.normal(size=(12, 60))
        b_RP = (
            0.7
            + prompt_P
            + 0.3 * rng.normal(size=(1, 60))
            + rng.normal(size=(10, 1)) / 2
            + rng.normal(size=(10, 60))
        )
        x, y = rng.normal(3, 2, 12), rng.normal(0, 1, 15)
        found = (
            st.score_mean(a_RP),
            st.population_score_change(b_RP, a_RP),
            st.run_mean(x),
            st.run_sd(x),
            st.run_mean_change(y, x),
        )
        hits += [
            e.low <= truth <= e.high
            for e, truth in zip(found, (0.0, 0.7, 3.0, 2.0, -3.0), strict=True)
        ]
    assert (hits / n > 0.92).all() and (hits / n < 0.985).all(), hits / n
