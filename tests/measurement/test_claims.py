"""Claims held against a run: the verdict is the interval's, a claims file is read strictly, and
what is foretold of many runs happens.
"""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers.html_reader import Reader
from helpers.measured import folder_of
from helpers.outcomes_of import World

from toolkit import cli
from toolkit import statistics as st
from toolkit.measurement.analyse import analyse
from toolkit.measurement.claims import ORIGIN, claims_text, hold_claims, read_claims, verdict
from toolkit.model.adapters import WEIGHTS
from toolkit.recipe import RecipeError
from toolkit.record.population import Replica, replica_folder, sha256_file, write_text
from toolkit.record.results import Results, load_claims, save_results
from toolkit.report.html import render, write_report
from toolkit.statistics.intervals import TwoWay, share_interval
from toolkit.statistics.planning.power import Spread, replicas_for_range

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    return folder_of(world, tmp_path_factory.mktemp("run"))


def estimate(low: float | None, high: float | None, conclusive: bool = True) -> st.Estimate:
    return st.Estimate(0.1, low, high, 0.95, 50, 100, "test", conclusive)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.10, 0.25, "supported"),
        (0.12, 0.20, "supported"),
        (np.nextafter(0.10, 0), 0.25, "not resolvable"),
        (0.10, np.nextafter(0.25, 1), "not resolvable"),
        (0.02, 0.10, "not resolvable"),
        (0.02, np.nextafter(0.10, 0), "contradicted"),
        (0.25, 0.30, "not resolvable"),
        (np.nextafter(0.25, 1), 0.30, "contradicted"),
        (0.01, 0.90, "not resolvable"),
        (None, None, "not resolvable"),
    ],
)
def test_the_verdict_flips_exactly_at_the_edges_of_the_interval(low, high, expected):
    assert verdict(estimate(low, high), (0.10, 0.25)) == expected
    assert verdict(estimate(low, high, conclusive=False), (0.10, 0.25)) == "not resolvable"
    assert verdict(estimate(low, high), None) == "measured"


def test_agreement_is_judged_as_disagreement_is(run, world, tmp_path):
    """`agreement` within [1 - b, 1 - a] and `disagreement` within [a, b] are one claim."""
    far = next(row for row in hold_claims(run).outlook if (row.shift, row.category) == ("far", ""))
    edge = np.floor(64 * far.differ.value) / 64  # exact in binary
    rows = [
        {
            "name": f"{quantity}{i}",
            "says": "x",
            "about": {},
            "quantity": quantity,
            "prompts": "far",
            "range": list(ends),
        }
        for i, (a, b) in enumerate([(0.0, 0.125), (0.125, 0.5), (edge, 0.5), (0.75, 1.0)])
        for quantity, ends in (("disagreement", (a, b)), ("agreement", (1 - b, 1 - a)))
    ]
    (tmp_path / "claims.yaml").write_text(json.dumps({"claims": rows}))
    tested = hold_claims(run, tmp_path / "claims.yaml").tested
    assert [t.verdict for t in tested[::2]] == [t.verdict for t in tested[1::2]]
    assert [t.remark for t in tested[::2]] == [t.remark for t in tested[1::2]]
    assert {t.verdict for t in tested} == {"supported", "contradicted", "not resolvable"}


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.9), (0.0, 0.22), (0.21, 0.9), (0.0, 0.1)])
def test_the_replicas_that_it_would_take_are_the_fewest(low, high):
    """With them the interval lies on one side of every edge, with one fewer it does not; on the
    edge itself nothing helps.
    """
    spread = Spread(0.2, TwoWay(4e-3, 1e-6, 10, 2_000), 0.05)
    size = replicas_for_range(spread, low, high)

    def decided(replicas):
        ends = share_interval(0.2, spread.error_of(replicas), 0.95)
        return verdict(estimate(*ends), (low, high)) != "not resolvable"

    assert size.replicas is not None and decided(size.replicas) and not decided(size.replicas - 1)
    assert replicas_for_range(spread, 0.2, 0.9).replicas is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('quantity: "files"\n    epoch: 2', "unknown key 'epoch'"),
        ("quantity: files\n    about: {epoch: 2}", "did you mean 'epochs'?"),
        ("quantity: size", "'agreement', 'disagreement', 'files' or 'weights'"),
        ("quantity: agreement", "`prompts`"),
        ("quantity: agreement\n    prompts: far\n    range: [95, 98]", "98 % is 0.98"),
        (
            "quantity: agreement\n    prompts: far\n    range: [0.9, 0.1]",
            "lowest of `range` comes first",
        ),
        ("quantity: files\n    about: {condition: a, epochs: 2}", "not both"),
    ],
)
def test_a_claims_file_that_is_wrong_says_where(tmp_path, change, said):
    path = tmp_path / "mine.yaml"
    about = "" if "about:" in change else "    about: {}\n"
    path.write_text(f"# mine\nclaims:\n  - name: one\n    says: something\n{about}    {change}\n")
    with pytest.raises(RecipeError) as error:
        read_claims(path)
    message = str(error.value)
    assert said in message and "\n" not in message
    line = int(message.removeprefix(f"{path}:").partition(":")[0])
    assert 3 <= line <= 8


def test_where_no_two_runs_differ_more_prompts_decide_not_more_replicas(tmp_path):
    """Zero disagreement on 40 prompts is no 99.9 % agreement: the bound over prompts says how many
    it takes, about 3,000.
    """
    folder = folder_of(World(8, per_category=20, flips=0.0), tmp_path)
    rows = {row.name: row for row in hold_claims(folder).tested}
    assert (
        rows["lora-typical"].estimate.value == 1
        and rows["lora-typical"].verdict == "not resolvable"
    )
    claim = {
        "name": "a",
        "says": "b",
        "about": {},
        "quantity": "agreement",
        "prompts": "typical",
        "range": [0.999, 1],
    }
    (tmp_path / "c.yaml").write_text(json.dumps({"claims": [claim]}))
    (row,) = hold_claims(folder, tmp_path / "c.yaml").tested
    assert row.verdict == "not resolvable" and row.remark.startswith(
        "would take about 2,995 independent prompts (there are 40)"
    )


def test_where_no_two_runs_differ_many_prompts_do_not_make_up_for_few_runs(tmp_path):
    """Among 20 equal runs may lack one in ten that differs on every prompt, whatever the number of
    prompts.
    """
    folder = folder_of(World(20, per_category=100, flips=0.0), tmp_path)
    claim = {
        "name": "a",
        "says": "b",
        "about": {},
        "quantity": "disagreement",
        "prompts": "all",
        "range": [0.01, 0.03],
    }
    (tmp_path / "c.yaml").write_text(json.dumps({"claims": [claim]}))
    (row,) = hold_claims(folder, tmp_path / "c.yaml").tested
    assert row.estimate.high < 0.01 < row.alone.high and row.verdict == "not resolvable"
    assert row.remark == "would take about 598 replicas (there are 20) with the same outcome on all"


def test_an_unknown_key_is_told_at_its_own_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "claims:\n  - name: one\n    says: something\n    about: {}\n    quantity: "
        "files\n    claimd: 2\n"
    )
    with pytest.raises(RecipeError, match=rf"^{path}:6: unknown key 'claimd'"):
        read_claims(path)


def test_claims_of_a_run(run, world):
    found = hold_claims(run)
    rows = {row.name: row for row in found.tested}
    assert set(rows) == {claim.name for claim in read_claims(ORIGIN)}
    assert (
        rows["full-typical"].verdict == "not in this run"
        and rows["fixed"].verdict == "not in this run"
    )
    far = rows["lora-rare"]
    assert (
        far.condition == "lora"
        and far.estimate
        and far.estimate.n_replicas == 60
        and far.verdict != "not in this run"
    )
    assert rows["files"].estimate is None and "not in the folder" in rows["files"].remark, (
        "the replicas were not kept"
    )
    assert load_claims(run / "claims.json") == found
    text = claims_text(found)
    assert (
        text.isascii()
        and max(map(len, text.splitlines())) <= 120
        and far.says in text
        and "10,000 runs of lora" in text
    )


def test_of_its_own_prompts_a_suite_knows_more_than_of_others(run):
    for row in hold_claims(run).tested:
        if row.estimate:
            assert row.alone and row.alone.value == row.estimate.value and row.alone_verdict
            assert row.estimate.low < row.alone.low < row.alone.high < row.estimate.high


def test_more_runs_tell_more_of_these_prompts_but_hardly_of_others():
    rng = np.random.default_rng(0)
    answer_RP = (rng.random((180, 20)) < rng.beta(0.5, 0.5, 20)).astype(int)

    def width(runs: int, fresh: bool) -> float:
        found = st.disagreement(answer_RP[:runs], fresh_prompts=fresh)
        assert found.low is not None and found.high is not None
        return found.high - found.low

    assert width(180, False) < width(20, False) / 2 and width(180, True) > width(20, True) / 2
    same = st.disagreement(np.zeros((20, 5), dtype=int), fresh_prompts=False)
    # ten pairs that might have differed
    assert (same.low, same.high) == (
        0.0,
        pytest.approx(1 - 0.05 ** (1 / 10)),
    ) and same.conclusive


def test_what_is_kept_of_a_study_counts_every_answer(run, world):
    from study import answers

    rows = list(answers(run))
    prompts = sum(len(asked) for asked in world.prompts.values())
    assert sum(count for *_, count in rows) == 60 * prompts and {
        condition for _, _, condition, _, _ in rows
    } == {"lora"}
    first = [row for row in rows if row[:2] == rows[0][:2]]
    assert [count for *_, count in first] == sorted((count for *_, count in first), reverse=True)


def test_what_is_kept_counts_runs_that_answer_alike(tmp_path):
    from study import alike

    same, other = World(6, per_category=4, flips=0.0), World(6, per_category=4)
    hashes = set()
    for world, answers in ((same, 1), (other, len(set(map(tuple, other.answers.values()))))):
        (tmp_path / str(answers)).mkdir()
        found = alike(folder_of(world, tmp_path / str(answers)))["lora"]
        assert (found["replicas"], found["answers"]) == (6, answers)
        hashes.add(found["answers_sha256"])
    assert answers > 1 and len(hashes) == 2


def test_a_run_is_held_against_the_files_of_a_kept_study(tmp_path):
    from study import as_csv, repeated, weights

    condition = tmp_path / "run/lora"
    for i in range(6):
        folder = replica_folder(condition, i)
        folder.mkdir(parents=True)
        (folder / WEIGHTS).write_bytes(bytes([i]))
        record = Replica(i, "ok", {}, 1, 0.5, sha256={WEIGHTS: sha256_file(folder / WEIGHTS)})
        write_text(folder / "replica.json", record.to_json())
    write_text(condition / "population.json", "{}")
    (condition / "training").mkdir()
    for first in (
        0,
        3,
    ):  # of the last tenth of 20 steps the mean is the replica's number; the sixth became infinite
        steps = [
            (first + i, step, first + i + (step - 18.5 if step > 17 else 9))
            for i in range(3)
            for step in range(20)
        ]
        steps = [
            (i, step, float("inf") if (i, step) == (5, 19) else loss) for i, step, loss in steps
        ]
        table = pa.table(
            dict(zip(("replica", "step", "loss"), zip(*steps, strict=True), strict=True))
        )
        pq.write_table(table, condition / f"training/steps-{first:05}.parquet")
    rows = list(weights(condition.parent))
    assert len({row[2] for row in rows}) == 6
    assert [row[3] for row in rows] == ["0.0000", "1.0000", "2.0000", "3.0000", "4.0000", ""]
    (tmp_path / "weights.csv").write_bytes(as_csv("condition replica sha256 loss", iter(rows)))
    assert repeated(condition.parent, tmp_path) == {"lora": (6, 6)}
    other = [row[:3] for row in rows]  # as studies were kept without losses
    # a bit; a failure; a condition
    other = [
        *other[:3],
        [*rows[3][:2], "another"],
        [*rows[4][:2], ""],
        ["elsewhere", *other[5][1:]],
    ]
    (tmp_path / "weights.csv").write_bytes(as_csv("condition replica sha256", iter(other)))
    assert repeated(condition.parent, tmp_path) == {"lora": (3, 4)}


def test_a_study_is_kept_of_one_finished_measurement_alone(world, tmp_path, capsys):
    from study import main

    (tmp_path / "run").mkdir()
    run = folder_of(world, tmp_path / "run")
    out, claims = tmp_path / "kept", run / "claims.json"
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(out)])
    assert f"{tmp_path}: no results.json there; `ftk run" in capsys.readouterr().err
    hold_claims(run)
    (run / "results.json").write_text('{"about": {"base": "embedded"}}')
    save_results(claims, replace(load_claims(claims), design="of more replicas"))
    with pytest.raises(SystemExit):
        main([str(run), "--out", str(out)])
    assert (
        f"{claims}: of an earlier measurement of this run; `ftk claims" in capsys.readouterr().err
        and not out.exists()
    )


def test_what_is_kept_names_no_place_and_no_text_of_a_prompt():
    from study import elsewhere, without_texts

    data = {
        "train": "/home/me/data/train.jsonl",
        "suites": {"far": "/home/me/data/far.jsonl", "near": "embedded"},
    }
    kept = elsewhere({"base": "/home/me/model", "data": data, "seed": 0})
    assert kept == {
        "base": "model",
        "data": {
            "train": "data/train.jsonl",
            "suites": {"far": "data/far.jsonl", "near": "embedded@1"},
        },  # it names no version
        "seed": 0,
    }
    assert elsewhere({"base": "Qwen/Qwen2.5-0.5B", "data": data})["base"] == "Qwen/Qwen2.5-0.5B"
    told = {"unstable": [{"id": "a", "prompt": "a secret", "answers": [["yes", 3]]}]}
    assert without_texts(told) == {"unstable": [{"id": "a", "prompt": "", "answers": [["yes", 3]]}]}


def test_the_report_shows_claims_of_the_same_outcomes_only(run, world, results):
    found = hold_claims(run)
    save_results(run / "results.json", results)
    assert "Claims, put to the test" in write_report(run).read_text()
    save_results(run / "claims.json", replace(found, design="of another day"))
    assert "Claims, put to the test" not in write_report(run).read_text()
    reader = Reader()
    reader.feed(render(results, found))
    assert reader.open == []


@pytest.fixture(scope="module")
def results() -> Results:
    few = World(6, per_category=4)
    return analyse(few.table, few.prompts, few.designs)


def test_the_command(run, tmp_path):
    done = CliRunner().invoke(cli.main, ["claims", str(run), "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["claims"]["runs"] == 10_000
    assert CliRunner().invoke(cli.main, ["claims", str(tmp_path)]).exit_code == cli.BAD_INPUT
    (tmp_path / "c.yaml").write_text("claims: []\n")
    done = CliRunner().invoke(cli.main, ["claims", str(run), "--claims", str(tmp_path / "c.yaml")])
    assert done.exit_code == cli.BAD_INPUT and f"{tmp_path / 'c.yaml'}:1:" in done.output


# -- many runs -----------------------------------------------------------------------------------


def many(n: int, share_PV: np.ndarray, seed: int) -> np.ndarray:
    """Answers of n runs, [n, P]: run by run from the shares of a prompt."""
    rng = np.random.default_rng(seed)
    return (rng.random((n, len(share_PV), 1)) > np.cumsum(share_PV, axis=1)).sum(axis=2)


def test_what_is_foretold_of_10000_runs_happens():
    """From 400 runs: how many of 10,000 are off the majority, how many answers a prompt gets, what
    nearly all of them reach.
    """
    rng = np.random.default_rng(1)
    # no answer is rarer than one run in fifty
    share_PV = 0.02 + 0.9 * rng.dirichlet([20, 2, 1, 1, 1], size=60)
    few_RP, all_RP = many(400, share_PV, 2), many(10_000, share_PV, 3)
    off = st.deviation(few_RP)
    counts_P = np.stack([(all_RP == v).sum(axis=0) for v in range(5)]).max(axis=0)
    assert 10_000 * off.low < (10_000 - counts_P).mean() < 10_000 * off.high
    assert abs(off.value - (1 - counts_P / 10_000).mean()) < 0.01
    distinct = st.distinct_answers(few_RP, 10_000)
    seen = np.mean([len(np.unique(column)) for column in all_RP.T])
    assert (
        distinct.value == pytest.approx(seen, abs=0.01)
        and not distinct.conclusive
        and distinct.needed == 5_000
    )
    floor = st.accuracy_floor((few_RP == 0).mean(axis=1))
    assert floor.content == 0.99 and np.mean((all_RP == 0).mean(axis=1) >= floor.low) >= 0.99


def test_answers_that_no_run_hints_at_are_not_foretold():
    """Where rare answers abound, 200 runs say too little, never too much, of what 10,000 give;
    5,000 runs say nearly all.
    """
    share_PV = np.random.default_rng(1).dirichlet([20, 2, 0.5, 0.2, 0.1], size=40)
    all_RP = many(10_000, share_PV, 3)
    seen = np.mean([len(np.unique(column)) for column in all_RP.T])
    assert st.distinct_answers(all_RP[:200], 10_000).value < seen
    assert st.distinct_answers(all_RP[:5_000], 10_000).value == pytest.approx(seen, rel=0.05)


def test_fewer_runs_than_there_are_is_a_count_over_all_subsets():
    """Rarefaction to n equals the mean over every subset of n runs, and one run gives one
    answer.
    """
    answer_RP = np.array([[0, 1], [0, 2], [1, 2], [0, 3], [4, 2]])
    from itertools import combinations

    exact = np.mean(
        [
            len(np.unique(answer_RP[list(rows), p]))
            for p in range(2)
            for rows in combinations(range(5), 3)
        ]
    )
    assert st.distinct_answers(answer_RP, 3).value == pytest.approx(exact)
    assert st.distinct_answers(answer_RP, 1).value == pytest.approx(1)
    assert st.distinct_answers(answer_RP, 5).value == pytest.approx(3)


def test_a_run_is_held_against_the_others_alone():
    """Of two runs that differ each is off the other; of three that all differ each is off whatever
    the others' majority is.
    """
    assert st.deviation(np.array([[0], [1]])).value == 1.0
    assert st.deviation(np.array([[0], [0], [1]])).value == pytest.approx(1 / 3)
    assert st.deviation(np.array([[0], [1], [2]])).value == 1.0
    assert st.deviation(np.zeros((30, 20), dtype=int)).value == 0.0


def test_a_floor_below_which_few_runs_fall_needs_runs():
    scores = np.linspace(0.5, 0.9, 58)
    assert st.accuracy_floor(scores).low is None and st.accuracy_floor(scores).needed == 59
    assert st.accuracy_floor(np.linspace(0.5, 0.9, 59)).low == 0.5


# -- weights and categories ----------------------------------------------------------------------


def test_files_are_counted_in_disjoint_pairs():
    assert st.files_differ(["a"] * 200).value == 0 and st.files_differ(
        ["a"] * 200
    ).high == pytest.approx(0.0362, abs=1e-3)
    every = st.files_differ([str(i) for i in range(200)])
    assert every.value == 1 and every.high == 1 and every.note == "200 different files of 200"


@pytest.mark.parametrize(("runs", "prompts"), [(40, 36), (200, 40)])
def test_categories_that_know_nothing_of_each_other_show_no_trade(runs, prompts):
    """95 % intervals of a correlation cover 0, and that of `together` covers 1; a plain trade is
    seen.
    """
    rng = np.random.default_rng(runs)
    pairs, together = [], []
    for _ in range(120):
        chance_RC = 1 / (1 + np.exp(-2 - rng.normal(0, 0.7, (runs, 3))))
        found = st.tradeoff(rng.binomial(prompts, chance_RC) / prompts, [prompts] * 3)
        pairs += [found.correlation_CC[a][b] for a, b in ((0, 1), (0, 2), (1, 2))]
        together.append(found.together)
    assert 0.92 <= np.mean([e.low <= 0 <= e.high for e in pairs]) <= 0.98
    assert 0.89 <= np.mean([e.low <= 1 <= e.high for e in together]) <= 0.99


def test_a_trade_is_seen():
    rng = np.random.default_rng(0)
    shift_R = rng.normal(0, 0.1, 60)
    scores = np.stack([0.6 + shift_R, 0.6 - shift_R], axis=1) + rng.normal(0, 0.03, (60, 2))
    found = st.tradeoff(scores, [40, 40])
    assert (
        found.correlation_CC[0][1].high < -0.7
        and found.together.high < 0.5
        and found.correlation_CC[0][0] is None
    )


def test_a_few_runs_that_differ_decide_nothing():
    """One run in forty fails in both categories: a correlation of 1, and no claim; also no p-value
    to be adjusted.
    """
    scores = np.where(np.arange(200)[:, None] % 40 == 0, 0.5, 1.0) * np.ones((1, 2))
    found = st.tradeoff(scores + 1e-3 * (np.arange(200)[:, None] == 1), [12, 12]).correlation_CC[0][
        1
    ]
    assert (
        found.value > 0.99
        and not found.conclusive
        and found.p is None
        and "a few runs decide" in found.note
    )
