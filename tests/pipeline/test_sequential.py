"""Stopping when enough is known: the interval holds whenever one looks, and a killed run comes to
the same decision.
"""

import json
import re
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from helpers.processes import kill, started
from helpers.tiny import VOCABULARY, tiny_model
from scipy.optimize import brentq
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from worlds import simulate
from worlds.planning import LOOKS, anytime_world, mean_world

from toolkit import pipeline
from toolkit.measurement.replicas_needed import plan, plan_text
from toolkit.pipeline import sequential_training as until
from toolkit.recipe import RecipeError, dump_recipe, parse_recipe
from toolkit.record.population import Replica, read_population
from toolkit.statistics.planning import sequential
from toolkit.statistics.planning.sequential import (
    ConfidenceSequence,
    Stopping,
    confidence_sequence,
    pair_disagreement,
)

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

# -- the interval ---------------------------------------------------------------------------------


def log_capital(x_T: np.ndarray, m: float, level: float) -> tuple[float, float]:
    """The two gamblers' capital after x_T, as the paper writes it, one value at a time."""
    above = below = 0.0
    total, square = 0.5, 0.25
    for t, x in enumerate(x_T, 1):
        bet = np.sqrt(2 * np.log(2 / (1 - level)) / (square / t * t * np.log(t + 1)))
        above += np.log(1 + min(bet, sequential.LARGEST_BET / m) * (x - m))
        below += np.log(1 - min(bet, sequential.LARGEST_BET / (1 - m)) * (x - m))
        total += x
        square += (x - total / (t + 1)) ** 2
    return above, below


def test_the_ends_are_where_the_capital_crosses_its_limit():
    x_T = np.random.default_rng(0).beta(2, 14, 60)
    low_T, high_T = confidence_sequence(x_T, 0.9)
    limit, mean = np.log(2 / 0.1), x_T.mean()
    for t in (20, 40, 60):
        if log_capital(x_T[:t], 1e-6, 0.9)[0] > limit:
            low = brentq(lambda m, t=t: log_capital(x_T[:t], m, 0.9)[0] - limit, 1e-6, mean)
            assert low_T[t - 1] >= low - 2e-4  # the running intersection can only be narrower
        high = brentq(lambda m, t=t: log_capital(x_T[:t], m, 0.9)[1] - limit, mean, 1 - 1e-6)
        assert high_T[t - 1] <= high + 2e-4
    best = max(
        brentq(lambda m, t=t: log_capital(x_T[:t], m, 0.9)[0] - limit, 1e-6, mean)
        for t in range(30, 61)
    )
    assert low_T[-1] == pytest.approx(best, abs=2e-4) and low_T[-1] <= best  # outward


def test_widths_of_the_reference_simulation(monkeypatch):
    """Bets of at most a half, mean .10, sd .066: median widths .155, .060, .023 after 50, 150 and
    500 values.
    """
    monkeypatch.setattr(sequential, "LARGEST_BET", 0.5)
    rng = np.random.default_rng(1)
    size = 0.1 * 0.9 / 0.066**2 - 1
    ends = [confidence_sequence(rng.beta(0.1 * size, 0.9 * size, 500)) for _ in range(60)]
    median_T = np.median([high_T - low_T for low_T, high_T in ends], axis=0)
    assert median_T[[49, 149, 499]] == pytest.approx([0.155, 0.060, 0.023], rel=0.05)


@pytest.mark.parametrize(
    "x_T",
    [
        np.zeros(300),
        np.ones(300),
        np.full(300, 0.02),
        np.tile([0.0, 1.0], 150),
        np.random.default_rng(2).random(300),
    ],
)
def test_it_shrinks_holds_the_mean_and_never_closes(x_T):
    low_T, high_T = confidence_sequence(x_T)
    assert (np.diff(low_T) >= 0).all() and (np.diff(high_T) <= 0).all() and (high_T > low_T).all()
    assert (low_T >= 0).all() and (high_T <= 1).all()
    assert low_T[-1] <= x_T.mean() <= high_T[-1] and high_T[-1] - low_T[-1] < 0.25
    mirrored_low, mirrored_high = confidence_sequence(1 - x_T)
    assert mirrored_low == pytest.approx(1 - high_T, abs=1e-9) and mirrored_high == pytest.approx(
        1 - low_T, abs=1e-9
    )


def test_values_come_one_by_one_and_missing_ones_pass():
    x_T = np.random.default_rng(3).beta(1, 9, 80)
    whole = confidence_sequence(x_T)
    holes = np.insert(x_T, [0, 10, 10, 80], np.nan)
    found = confidence_sequence(holes)
    seen = np.isfinite(holes)
    assert np.array_equal(np.array(found)[:, seen], np.array(whole)) and (
        found[0][0],
        found[1][0],
    ) == (0.0, 1.0)
    sequence = ConfidenceSequence()
    assert sequence.estimate(50).value is None and not sequence.estimate(50).conclusive
    for x in holes:
        sequence.add(float(x))
    estimate = sequence.estimate(50)
    assert (
        (sequence.count, sequence.missing) == (80, 4)
        and estimate.n_replicas == 160
        and "these prompts only" in estimate.method
    )
    assert (estimate.value, estimate.low, estimate.high) == (
        pytest.approx(x_T.mean()),
        whole[0][-1],
        whole[1][-1],
    )
    assert len(confidence_sequence(np.array([]))[0]) == 0


def test_values_without_one_mean_are_told():
    sequence = ConfidenceSequence()
    for x in [0.0] * 400 + [1.0] * 400:
        sequence.add(x)
    assert (
        np.isnan(sequence.low)
        and not sequence.estimate(9).conclusive
        and sequence.to_dict()["low"] is None
    )
    decision = Stopping({"disagreement.far": {"half_width": 0.4}}).decide(
        {"disagreement.far": sequence}
    )
    assert not decision.stop and "one mean" in decision.reason
    with pytest.raises(ValueError, match="from 0 to 1"):
        sequence.add(1.5)
    with pytest.raises(ValueError, match="one row"):
        confidence_sequence(np.zeros((2, 2)))


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(("mean", "sd"), [(0.02, 0.01), (0.1, 0.066), (0.4, None)])
def test_it_holds_whenever_one_looks(mean, sd, look):
    tally = simulate(mean_world(mean, sd, 200, look), 60, seed=4)
    assert tally.coverage >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    ("mean", "sd"), [(0.02, 0.01), (0.1, 0.066), (0.4, 0.1), (0.02, None), (0.1, None), (0.4, None)]
)
def test_it_holds_whenever_one_looks_in_long_runs(mean, sd, look):
    assert simulate(mean_world(mean, sd, 600, look), 400, seed=5).coverage >= 0.945


@pytest.mark.slow
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    "world",
    [
        {"run_sd": 0.0},
        {"run_sd": 0.7},
        {"run_sd": 0.7, "a": 18, "b": 2},
        {"run_sd": 0.7, "failed": 0.05},
    ],
)
def test_it_holds_for_populations(world, look):
    assert simulate(anytime_world(300, 200, look=look, **world), 300, seed=6).coverage >= 0.95


def test_an_interval_for_a_fixed_number_does_not():
    """Why all this: stop as soon as a t interval leaves the truth outside, and it will, in far more
    than one run of twenty.
    """
    rng = np.random.default_rng(7)
    n_T = np.arange(10, 201)
    t_T = scipy.stats.t.ppf(0.975, n_T - 1)
    wrong = 0
    for _ in range(200):
        x_T = rng.beta(2, 18, 200)
        mean_T, square_T = np.cumsum(x_T)[9:] / n_T, np.cumsum(x_T**2)[9:]
        sd_T = np.sqrt((square_T - n_T * mean_T**2) / (n_T - 1))
        wrong += bool((np.abs(mean_T - 0.1) > t_T * sd_T / np.sqrt(n_T)).any())
    assert wrong / 200 > 0.2


# -- pairs ---------------------------------------------------------------------------------------


def test_pairs_are_disjoint_in_order_and_pass_over_failed_replicas():
    rng = np.random.default_rng(8)
    answer_RP = rng.integers(0, 3, (9, 40))
    answer_RP[rng.random(answer_RP.shape) < 0.2] = -1
    answer_RP[2] = -1
    alive = [0, 1, 3, 4, 5, 6, 7, 8]
    expected = []
    for one, other in zip(alive[::2], alive[1::2], strict=True):
        both = (answer_RP[one] >= 0) & (answer_RP[other] >= 0)
        expected.append(np.mean(answer_RP[one][both] != answer_RP[other][both]))
    assert pair_disagreement(answer_RP) == pytest.approx(expected)
    # the last one waits for a partner
    assert pair_disagreement(answer_RP[:8]) == pytest.approx(expected[:3])
    assert len(pair_disagreement(answer_RP[:1])) == 0 and len(pair_disagreement(answer_RP[:0])) == 0
    assert np.isnan(pair_disagreement(np.array([[1, -1], [-1, 1]]))).all()


# -- the rule ------------------------------------------------------------------------------------


def known(low: float, high: float) -> ConfidenceSequence:
    sequence = ConfidenceSequence()
    sequence.low, sequence.high = low, high
    return sequence


@pytest.mark.parametrize(
    ("target", "ends", "stop", "told"),
    [
        (
            {"half_width": 0.05},
            (0.1, 0.2),
            True,
            "known to +- 0.0500 [0.1000, 0.2000], at most 0.05",
        ),
        (
            {"half_width": 0.05},
            (0.1, 0.21),
            False,
            "known to +- 0.0550 [0.1000, 0.2100], more than 0.05",
        ),
        ({"below": 0.2}, (0.1, 0.19), True, "lies below 0.2"),
        ({"below": 0.2}, (0.21, 0.4), True, "lies above 0.2, so it is not below"),
        ({"above": 0.2}, (0.21, 0.4), True, "lies above 0.2"),
        ({"above": 0.2}, (0.1, 0.15), True, "lies below 0.2, so it is not above"),
        ({"below": 0.2}, (0.1, 0.3), False, "may lie on either side of 0.2"),
    ],
)
def test_a_target_is_met_or_not(target, ends, stop, told):
    decision = Stopping({"disagreement.far": target}).decide({"disagreement.far": known(*ends)})
    assert (
        decision.stop == stop
        and told in decision.reason
        and decision.reason.startswith("disagreement.far")
    )


def test_all_targets_must_be_met_and_those_that_are_not_are_named():
    rule = Stopping({"disagreement.far": {"half_width": 0.1}, "disagreement.near": {"below": 0.1}})
    decision = rule.decide(
        {"disagreement.far": known(0.1, 0.2), "disagreement.near": known(0.05, 0.2)}
    )
    assert (
        not decision.stop
        and decision.reason == "disagreement.near [0.0500, 0.2000] may lie on either side of 0.1"
    )
    assert rule.decide(
        {"disagreement.far": known(0.1, 0.2), "disagreement.near": known(0.05, 0.09)}
    ).stop
    with pytest.raises(ValueError, match="half_width, below or above"):
        Stopping({"x": {"width": 1.0}}).decide({"x": known(0, 1)})


# -- in a recipe ---------------------------------------------------------------------------------

HEAD = (
    "base: embedded\ndata: "
    "{train: embedded, suites: {typical: embedded, odd: embedded}}\nconditions: "
    "{lora: {}, few: {replicas: 4}}\n"
)
TARGET = "until: {disagreement.far: {half_width: 0.01}}"


def test_a_rule_in_a_recipe():
    recipe = parse_recipe(HEAD + "replicas: {max: 10000, " + TARGET + "}")
    assert recipe.replicas_of("lora") == 10000 and recipe.replicas_of("few") == 4
    rule = recipe.until_of("lora")
    assert (rule.min, rule.batch, rule.until["disagreement.far"].half_width) == (
        16,
        32,
        0.01,
    ) and recipe.until_of("few") is None
    assert parse_recipe(dump_recipe(recipe)) == recipe
    small = parse_recipe(HEAD + "replicas: {max: 8, " + TARGET + "}")
    assert small.until_of("lora").min == 8 and parse_recipe(dump_recipe(small)) == small
    number = parse_recipe(HEAD + "replicas: 64")
    assert (
        number.replicas_of("lora") == 64
        and number.until_of("lora") is None
        and parse_recipe(dump_recipe(number)) == number
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("replicas: 1", "4: 'replicas': should be greater than or equal to 2 (got 1)"),
        ("replicas: x", "4: 'replicas': should be a whole number (got 'x')"),
        ("replicas: {max: 9}", "4: missing key 'replicas.until'"),
        (
            "replicas:\n  maxx: 9\n  " + TARGET,
            "5: unknown key 'maxx' in 'replicas'; did you mean 'max'?",
        ),
        ("replicas: {max: 9, until: {}}", "4: 'replicas.until': should be 1 or more entries"),
        (
            "replicas: {max: 9, min: 10, " + TARGET + "}",
            "4: 'replicas': 'min' (10) should not be above 'max' (9)",
        ),
        (
            "replicas:\n  max: 9\n  until:\n    disagreement.od: {below: 0.1}",
            "7: 'replicas.until.disagreement.od': names no suite or shift; did you mean "
            "'disagreement.odd'?",
        ),
        (
            "replicas: {max: 9, until: {accuracy: {below: 0.1}}}",
            "4: 'replicas.until.accuracy': names no suite or shift; known: disagreement.far",
        ),
        (
            "replicas:\n  max: 9\n  until:\n    disagreement.odd: {half_with: 0.1}",
            "7: unknown key 'half_with' in 'replicas.until.disagreement.odd'; did you "
            "mean 'half_width'?",
        ),
        (
            "replicas: {max: 9, until: {disagreement.odd: {below: 0.1, above: 0.2}}}",
            "4: 'replicas.until.disagreement.odd': a target is one of",
        ),
        (
            "replicas: {max: 9, until: {disagreement.odd: {below: 2}}}",
            "4: 'replicas.until.disagreement.odd.below': should be less than or equal",
        ),
        (
            "replicas: {max: 9, until: {disagreement.odd: 0.1}}",
            "4: 'replicas.until.disagreement.odd': should be a block of keys (got 0.1)",
        ),
    ],
)
def test_rules_that_cannot_be(text, told):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(HEAD + text, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml:{told}")


def test_looks_are_at_whole_stacks():
    rule = parse_recipe(HEAD + "replicas: {max: 50, min: 10, batch: 9, " + TARGET + "}").until_of(
        "lora"
    )
    assert until.look_points(rule, 4) == [12, 24, 36, 48, 50]
    assert until.look_points(rule, 64) == [50]
    assert until.look_points(rule, 1) == [10, 19, 28, 37, 46, 50]


# -- in a run ------------------------------------------------------------------------------------

WORDS = [f"w{i}" for i in range(VOCABULARY - 1)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A tiny random base that learns to answer a word with a word; replicas differ in most answers
    to prompts that it never saw.
    """
    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(
        models.WordLevel(
            {"</s>": 0, **{word: i for i, word in enumerate(WORDS, 1)}}, unk_token="w0"
        )
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(
        folder / "base"
    )
    tiny_model("llama").save_pretrained(folder / "base")

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / name

    train = write(
        "train.jsonl", [{"prompt": f"{WORDS[i]} ", "completion": WORDS[i + 20]} for i in range(16)]
    )
    typical = write(
        "typical.jsonl", [{"prompt": f"{WORDS[i]} ", "reference": WORDS[i + 20]} for i in range(8)]
    )
    far = write("far.jsonl", [{"prompt": f"{WORDS[i]} {WORDS[i + 7]} "} for i in range(40, 50)])
    return parse_recipe(
        f"""
base: {folder / "base"}
data: {{train: {train}, suites: {{typical: {typical}, far: {far}}}}}
replicas: {{max: 120, min: 6, batch: 12, until: {{disagreement.far: {{half_width: 0.15}},
    disagreement.typical: {{above: 0.001}}}}}}
stack: 4
conditions:
  lora: {{epochs: 2, batch_size: 8, lr: 3e-2, rank: 2}}
mitigations: [{{ensemble: vote, k: 4}}]
evaluation: {{max_new_tokens: 3}}
""",
        "tiny.yaml",
    )


@pytest.fixture(scope="module")
def stopped(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "a"
    notes: list[str] = []
    results = pipeline.run(recipe, folder, workers=1, console=pipeline.Console(note=notes.append))
    return folder, results, notes


def answers_of(folder, suite="far"):
    """replica -> prompt -> answer"""
    found: dict[int, dict[str, str]] = {}
    for path in (folder / "outcomes" / suite).glob("lora-replica-*"):
        for row in pq.read_table(path).to_pylist():
            found.setdefault(row["index"], {})[row["prompt_id"]] = row["answer"]
    return found


def stopping(folder):
    return json.loads((folder / "lora" / "stopping.json").read_text())


def test_a_run_stops_when_it_knows_enough(stopped, recipe):
    folder, results, notes = stopped
    found = stopping(folder)
    looks = found["looks"]
    assert [look["replicas"] for look in looks] == [8, 20, 32, 44, 56, 68, 80, 92, 104, 116, 120][
        : len(looks)
    ] and 1 < len(looks) < 11
    assert [look["decision"] for look in looks] == ["continue"] * (len(looks) - 1) + ["stop"]
    last = looks[-1]
    assert (
        sorted(read_population(folder / "lora")) == list(range(last["replicas"]))
        and results.conditions[0].n_replicas == last["replicas"]
    )
    assert found["rule"] == {
        "max": 120,
        "min": 6,
        "batch": 12,
        "until": {
            "disagreement.far": {"half_width": 0.15},
            "disagreement.typical": {"above": 0.001},
        },
    }
    notes = [note for note in notes if note.startswith("lora: ")]
    assert len(notes) == len(looks) and notes[-1].startswith(
        f"lora: {last['replicas']} replicas, stop: disagreement.far is known to"
    )
    note = next(note for note in results.notes if "was decided by a rule" in note)
    far = last["figures"]["disagreement.far"]
    assert f"[{100 * far['low']:.1f}, {100 * far['high']:.1f}] from {far['pairs']} pairs" in note
    assert note in (folder / "report.html").read_text()


def test_the_decision_is_that_of_the_pairs_in_index_order(stopped):
    folder, _, _ = stopped
    said = answers_of(folder)
    for look in stopping(folder)["looks"]:
        pairs = look["replicas"] // 8 * 4  # whole shards
        x_T = [
            np.mean([said[2 * j][p] != said[2 * j + 1][p] for p in said[0]]) for j in range(pairs)
        ]
        low_T, high_T = confidence_sequence(np.array(x_T))
        found = look["figures"]["disagreement.far"]
        assert found["pairs"] == pairs and (found["low"], found["high"]) == (low_T[-1], high_T[-1])
        assert found["mean"] == pytest.approx(np.mean(x_T))


def test_nothing_is_answered_twice(stopped):
    folder, _, _ = stopped
    for suite in ("typical", "far"):
        seen = [
            (row["procedure"], row["index"], row["prompt_id"])
            for path in (folder / "outcomes" / suite).glob("*.parquet")
            for row in pq.read_table(path).to_pylist()
        ]
        assert len(seen) == len(set(seen))


def test_a_run_that_has_stopped_trains_no_more(stopped, recipe):
    folder, _, _ = stopped
    before = {
        path: path.stat().st_mtime_ns
        for path in [*folder.glob("lora/replicas/*/replica.json"), *folder.glob("outcomes/*/*")]
    }
    decided = stopping(folder)
    with pipeline.open_run(recipe, folder, workers=1) as job:
        population = pipeline.train(job, "lora")
    assert stopping(folder) == decided and len(population) == decided["looks"][-1]["replicas"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(before) == {
        *folder.glob("lora/replicas/*/replica.json"),
        *folder.glob("outcomes/*/*"),
    }


def test_a_killed_run_comes_to_the_same_decision(stopped, recipe, tmp_path):
    folder = tmp_path / "b"
    process = started(pipeline.run, recipe, folder, workers=1)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("lora/replicas/*/replica.json"))) < 10:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    kill(process)
    with pipeline.open_run(recipe, folder, workers=1) as job:
        pipeline.train(job, "lora")
    assert stopping(folder) == stopping(stopped[0])
    same = [
        {r: record.sha256 for r, record in read_population(run / "lora").items()}
        for run in (folder, stopped[0])
    ]
    assert same[0] == same[1]


def test_failed_replicas_are_passed_over_and_counted(recipe, stopped, tmp_path):
    """Replicas 1 and 2 failed: the pairs are (0, 3), (4, 5), ..."""
    folder = tmp_path / "c"
    shutil.copytree(stopped[0], folder)
    for r in (1, 2):
        path = folder / "lora" / "replicas" / f"{r:05d}" / "replica.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"status": "failed", "sha256": {}})
        )
    short = recipe.model_copy(update={"replicas": recipe.replicas.model_copy(update={"max": 20})})
    with pipeline.open_run(short, folder, workers=1) as job:
        pipeline.train(job, "lora")
    first, last = stopping(folder)["looks"]
    # no shard is full
    assert (first["replicas"], first["failed"], first["figures"]["disagreement.far"]["pairs"]) == (
        8,
        2,
        0,
    )
    assert (
        last["replicas"],
        last["failed"],
        last["decision"],
        last["figures"]["disagreement.far"]["pairs"],
    ) == (20, 2, "max", 9)
    said = answers_of(stopped[0])
    alive = [r for r in range(20) if r not in (1, 2)]
    x_T = [
        np.mean([said[i][p] != said[j][p] for p in said[i]])
        for i, j in zip(alive[::2], alive[1::2], strict=True)
    ]
    assert last["figures"]["disagreement.far"]["mean"] == pytest.approx(np.mean(x_T))


def test_a_condition_that_only_fails_does_not_go_on_for_ever(recipe, tmp_path, monkeypatch):
    def all_fail(job, name, asked, plan, mark, population, **_):
        population |= {r: Replica(r, "failed", {}, plan.steps, None, 1) for r in asked}

    monkeypatch.setattr(pipeline.populations, "train_missing", all_fail)
    with pipeline.open_run(recipe, tmp_path / "d", workers=1) as job:
        assert len(pipeline.train(job, "lora")) == 8
    (look,) = stopping(tmp_path / "d")["looks"]
    assert (look["decision"], look["reason"], look["failed"]) == ("stop", "no replica succeeded", 8)


def test_a_number_given_by_hand_goes_before_the_rule(recipe, stopped):
    before = (stopped[0] / "lora" / "stopping.json").stat().st_mtime_ns
    with pipeline.open_run(recipe, stopped[0], workers=1) as job:
        pipeline.train(job, "lora", replicas=4)
    assert (stopped[0] / "lora" / "stopping.json").stat().st_mtime_ns == before  # nobody looked


def test_a_target_about_no_prompts_is_refused_before_training(recipe, tmp_path):
    rule = recipe.replicas.model_copy(
        update={"until": {"disagreement.near": next(iter(recipe.replicas.until.values()))}}
    )
    with (
        pytest.raises(
            RecipeError,
            match="disagreement.near: no suite has near prompts; there are: typical, far",
        ),
        pipeline.open_run(recipe.model_copy(update={"replicas": rule}), tmp_path / "f"),
    ):
        pass


def test_a_plan_from_the_run(stopped):
    folder, results, _ = stopped
    found = plan(folder)
    (condition,) = found.conditions
    shifts = {shift.shift: shift for shift in condition.shifts}
    printed = results.conditions[0].single.cell("far").disagreement
    assert (
        shifts["far"].half_width == pytest.approx((printed.high - printed.low) / 2)
        and not shifts["far"].guessed
    )
    assert (
        shifts["far"].comparisons[0].label == "vote-k4" and not shifts["far"].comparisons[0].assumed
    )
    assert (
        condition.seconds == results.conditions[0].single.price.seconds and condition.bytes > 1000
    )
    json.dumps(found.to_dict(), allow_nan=False)
    assert re.search(
        r"a replica takes [\d.]+ s of a core or device .* and [\d.]+ MiB on disk", plan_text(found)
    )
