"""The gate: false alarms as stated, real changes found, and nothing said where nothing can be."""

import json
from dataclasses import replace

import numpy as np
import pytest

from toolkit.measurement.gate.limits import (
    MIN_BASELINE,
    Limits,
    Verdict,
    judge,
    learn,
    load_limits,
    save_limits,
)

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

TEXTS = ["right", "wrong", "worse", "odd"]
PER = 100  # prompts of each shift


class Process:
    """A way of training: a difficulty for every prompt, and runs that differ by `run_sd` on the
    logit of every answer.
    """

    def __init__(self, seed: int, per: int = PER, run_sd: float = 0.4) -> None:
        rng = np.random.default_rng(seed)
        self.difficulty_P = rng.normal(0, 2, 3 * per) + np.repeat([2.5, 1.0, 0.0], per)
        self.run_sd = run_sd
        self.shifts = ["typical"] * per + ["near"] * per + ["far"] * per
        self.ids = [f"p{i}" for i in range(3 * per)]

    def runs(self, rng: np.random.Generator, n: int, change: float = 0.0) -> dict:
        """n runs, their quality changed by that many standard deviations of runs."""
        quality_R1 = self.run_sd * (rng.standard_normal((n, 1)) + change)
        correct_RP = rng.random((n, len(self.ids))) < 1 / (
            1 + np.exp(-self.difficulty_P - quality_R1)
        )
        wrong_RP = 1 + (rng.random(correct_RP.shape) ** 2 * 3).astype(int)
        logprob_R = 0.3 * quality_R1[:, 0] + 0.1 * rng.standard_normal(n) - 1
        return {
            "answer": np.where(correct_RP, 0, wrong_RP),
            "correct": correct_RP.astype(float),
            "extra": {"logprob": logprob_R},
        }

    def learn(self, rng: np.random.Generator, n: int, **settings) -> Limits:
        baseline = self.runs(rng, n)
        return learn(
            baseline["answer"],
            TEXTS,
            baseline["correct"],
            self.shifts,
            self.ids,
            extra=baseline["extra"],
            **settings,
        )

    def judge(self, limits: Limits, new: dict) -> Verdict:
        return judge(limits, new["answer"], TEXTS, new["correct"], self.ids, extra=new["extra"])


@pytest.fixture(scope="module")
def process() -> Process:
    return Process(0)


@pytest.fixture(scope="module")
def limits(process) -> Limits:
    return process.learn(np.random.default_rng(1), 60)


def failing(verdicts: list[Verdict]) -> float:
    return sum(v.status == "fail" for v in verdicts) / len(verdicts)


def verdicts(
    baselines: int,
    per_baseline: int,
    n: int,
    *,
    runs=1,
    change=0.0,
    other=False,
    alpha=0.05,
    per=PER,
    run_sd=0.4,
) -> list[Verdict]:
    found = []
    for seed in range(baselines):
        rng = np.random.default_rng(seed)
        process = Process(seed, per, run_sd)
        limits = process.learn(rng, n, alpha=alpha)
        source = Process(1000 + seed, per, run_sd) if other else process
        found += [
            process.judge(limits, source.runs(rng, runs, change)) for _ in range(per_baseline)
        ]
    return found


# --- false alarms and power ---------------------------------------------------------------------


@pytest.mark.parametrize(("n", "runs"), [(30, 1), (100, 1), (60, 4)])
def test_runs_of_the_same_process_fail_as_often_as_stated(n, runs):
    assert 0.02 <= failing(verdicts(12, 30, n, runs=runs)) <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "per", "run_sd"), [(30, 50, 0.0), (30, 300, 0.4), (200, 50, 0.4), (60, 300, 0.8)]
)
def test_false_alarms_of_three_sigma_are_within_a_factor_of_three(n, per, run_sd):
    rate = failing(verdicts(60, 100, n, alpha=0.0027, per=per, run_sd=run_sd))
    assert rate <= 3 * 0.0027


def test_a_change_of_five_standard_deviations_is_found_in_one_run():
    assert failing(verdicts(8, 5, 60, change=-5, alpha=0.0027)) >= 0.7


def test_a_change_of_three_standard_deviations_is_found_in_five_runs():
    """One run of it is on the border of what 3-sigma limits show; a handful is not."""
    assert failing(verdicts(8, 5, 60, change=-3, alpha=0.0027, runs=5)) >= 0.9
    assert failing(verdicts(8, 5, 60, change=-3, alpha=0.0027)) >= 0.1


def test_another_base_is_found_though_it_is_as_accurate():
    """The same spread of difficulties on other prompts: only what the panel answers gives it
    away.
    """
    found = verdicts(8, 3, 60, other=True, alpha=0.0027)
    assert failing(found) >= 0.95
    assert any("disagreement" in reason for v in found for reason in v.reasons)


# --- what a new run is compared with ------------------------------------------------------------


def test_baseline_runs_are_compared_with_the_others():
    """Center of the disagreement = mean log-odds of each run's share of differing OTHER runs, by
    brute force.
    """
    rng = np.random.default_rng(0)
    answer = rng.integers(0, 3, (6, 20))
    limits = learn(answer, TEXTS, np.full((6, 20), np.nan), ["far"] * 20, list(map(str, range(20))))
    differ = [
        np.mean([(answer[r] != answer[s]).mean() for s in range(6) if s != r]) * 20
        for r in range(6)
    ]
    (metric,) = limits.metrics
    assert metric.name == "disagreement, far" and metric.prompts == 20
    assert metric.center == pytest.approx(np.mean([np.log((d + 2) / (20 - d + 2)) for d in differ]))


def test_a_new_run_is_exchangeable_with_the_baseline(process, limits):
    """Its disagreement with the panel has the baseline's mean: neither is compared with itself."""
    rng = np.random.default_rng(5)
    rows = [row for _ in range(300) for row in process.judge(limits, process.runs(rng, 1)).rows]
    for name in ("disagreement, typical", "disagreement, far", "accuracy, near"):
        z = np.array([row.z for row in rows if row.metric == name])
        # the baseline's own mean of 60 is off by .13 sd
        assert abs(z.mean()) < 0.4 and 0.7 < z.std() < 1.4


def test_answers_of_the_panel_are_kept_modal_first(process, limits):
    assert all(sum(prompt.answers.values()) == 60 for prompt in limits.prompts)
    assert all(
        list(p.answers.values()) == sorted(p.answers.values(), reverse=True) for p in limits.prompts
    )


def test_codes_and_order_of_prompts_do_not_matter(process, limits):
    rng = np.random.default_rng(2)
    new = process.runs(rng, 3)
    expected = process.judge(limits, new)
    order = rng.permutation(len(process.ids))
    renamed = np.array([3, 1, 0, 2])  # code -> new code
    texts = [TEXTS[list(renamed).index(code)] for code in range(4)]
    shuffled = judge(
        limits,
        renamed[new["answer"][:, order]],
        texts,
        new["correct"][:, order],
        [process.ids[p] for p in order],
        extra=new["extra"],
    )
    assert shuffled == expected


def test_an_answer_that_nobody_gave_differs_from_everybody(process, limits):
    new = process.runs(np.random.default_rng(3), 1)
    strange = judge(
        limits,
        np.zeros_like(new["answer"]),
        ["gibberish"],
        new["correct"],
        process.ids,
        extra=new["extra"],
    )
    assert strange.status == "fail"
    assert {row.value for row in strange.rows if row.metric.startswith("disagreement")} == {1.0}


# --- limits and rows ----------------------------------------------------------------------------


def test_rows_are_in_the_metrics_own_unit(process, limits):
    new = process.runs(np.random.default_rng(4), 1)
    rows = {row.metric: row for row in process.judge(limits, new).rows}
    assert list(rows) == [
        *(
            f"{kind}, {shift}"
            for shift in ("typical", "near", "far")
            for kind in ("accuracy", "disagreement")
        ),
        "logprob",
    ]
    assert rows["accuracy, near"].value == pytest.approx(new["correct"][0, PER : 2 * PER].mean())
    assert rows["logprob"].value == pytest.approx(new["extra"]["logprob"][0])
    for metric in limits.metrics:
        row = rows[metric.name]
        # one run alone is judged by what limits.json shows
        assert (row.low, row.high) == pytest.approx((metric.low, metric.high))
        assert metric.low < metric.content_low < metric.content_high < metric.high
    sigma_z = {m.name: m.sigma_z for m in limits.metrics}
    assert sigma_z["logprob"] is None and 0.8 < sigma_z["accuracy, far"] < 3


def test_several_runs_have_a_row_for_their_drift(process, limits):
    found = process.judge(limits, process.runs(np.random.default_rng(4), 4))
    assert (
        sum(row.test == "drift" for row in found.rows) == len(limits.metrics) and len(found.t2) == 4
    )
    assert len([row for row in found.rows if row.test == "run"]) == 4 * len(limits.metrics)


def test_more_metrics_than_runs_are_judged_one_by_one():
    rng = np.random.default_rng(0)
    process = Process(0, 30)
    baseline = process.runs(rng, 30)
    extra = {f"m{i}": rng.normal(size=30) for i in range(30)}
    limits = learn(
        baseline["answer"], TEXTS, baseline["correct"], process.shifts, process.ids, extra=extra
    )
    assert limits.covariance == ()
    new = process.runs(rng, 1)
    found = judge(
        limits,
        new["answer"],
        TEXTS,
        new["correct"],
        process.ids,
        extra={name: [0.0] for name in extra},
    )
    assert found.status == "pass" and found.t2 == () and found.t2_limit is None
    off = judge(
        limits,
        new["answer"],
        TEXTS,
        new["correct"],
        process.ids,
        extra={name: [9.0 * (name == "m7")] for name in extra},
    )
    assert off.status == "fail" and [row.metric for row in off.rows if row.outside] == ["m7"]


# --- inconclusive -------------------------------------------------------------------------------


def test_few_baseline_runs_are_inconclusive(process):
    found = process.judge(
        process.learn(np.random.default_rng(0), MIN_BASELINE - 1),
        process.runs(np.random.default_rng(1), 1),
    )
    assert found.status == "inconclusive" and f"limits need {MIN_BASELINE}" in found.reasons[0]


def test_missing_prompts_answers_and_extras_are_counted(process, limits):
    new = process.runs(np.random.default_rng(1), 2)
    answer, correct = new["answer"][:, 5:], new["correct"][:, 5:].copy()
    answer[1, :3] = -1
    correct[0, 10:17] = np.nan
    found = judge(limits, answer, TEXTS, correct, process.ids[5:])
    assert found.status == "inconclusive" and found.rows == ()
    assert found.reasons == (
        "5 of 300 prompts are missing",
        "3 of 300 prompts lack an answer",
        "7 of 300 prompts lack a mark",
        "no value of logprob",
    )


def test_prompts_that_the_baseline_does_not_know_are_left_out(process, limits):
    new = process.runs(np.random.default_rng(1), 1)
    more = judge(
        limits,
        np.hstack([new["answer"], [[0]]]),
        TEXTS,
        np.hstack([new["correct"], [[1]]]),
        [*process.ids, "new"],
        extra=new["extra"],
    )
    assert more == replace(
        process.judge(limits, new), notes=("left out: 1 prompt that the baseline does not have",)
    )


def test_incomplete_baseline_runs_are_left_out_and_counted(process):
    rng = np.random.default_rng(0)
    baseline = process.runs(rng, 40)
    whole = learn(
        baseline["answer"][:35], TEXTS, baseline["correct"][:35], process.shifts, process.ids
    )
    baseline["answer"][36, 7] = baseline["answer"][38] = -1
    baseline["correct"][[35, 37, 39], 3] = np.nan
    limits = learn(baseline["answer"], TEXTS, baseline["correct"], process.shifts, process.ids)
    assert limits == replace(whole, n_incomplete=5)
    assert (
        "5 baseline runs"
        in judge(limits, baseline["answer"][:1], TEXTS, baseline["correct"][:1], process.ids).notes[
            0
        ]
    )


def test_prompts_without_a_reference_count_in_the_disagreement_only(process):
    baseline = process.runs(np.random.default_rng(0), 30)
    baseline["correct"][:, : PER + 10] = np.nan
    limits = learn(baseline["answer"], TEXTS, baseline["correct"], process.shifts, process.ids)
    assert {m.name: m.prompts for m in limits.metrics} == {
        "disagreement, typical": PER,
        "accuracy, near": PER - 10,
        "disagreement, near": PER,
        "accuracy, far": PER,
        "disagreement, far": PER,
    }


def test_an_identical_baseline_is_inconclusive_whatever_comes():
    same, ids = np.zeros((30, 20), dtype=int), list(map(str, range(20)))
    limits = learn(same, TEXTS, np.ones((30, 20)), ["far"] * 20, ids)
    assert all(metric.low is None for metric in limits.metrics) and limits.covariance == ()
    for answer, correct in ((same[:1], np.ones((1, 20))), (same[:1] + 1, np.zeros((1, 20)))):
        found = judge(limits, answer, TEXTS, correct, ids)
        assert found.status == "inconclusive" and "equal in every metric" in found.reasons[-1]


def test_a_metric_that_never_varied_and_now_does_is_not_passed(process):
    rng = np.random.default_rng(0)
    baseline, new = process.runs(rng, 40), process.runs(rng, 1)
    baseline["answer"][:, :PER], baseline["correct"][:, :PER] = 0, 1
    new["answer"][:, :PER], new["correct"][:, :PER] = 0, 1
    limits = learn(baseline["answer"], TEXTS, baseline["correct"], process.shifts, process.ids)
    assert judge(limits, new["answer"], TEXTS, new["correct"], process.ids).status == "pass"
    new["answer"][0, 0], new["correct"][0, 0] = 1, 0
    found = judge(limits, new["answer"], TEXTS, new["correct"], process.ids)
    assert found.status == "inconclusive"
    assert (
        found.reasons[0]
        == "accuracy, typical: 0.99, and 1 in all baseline runs: what never varied has no limits"
    )


# --- the file -----------------------------------------------------------------------------------


def test_limits_survive_the_file(process, limits, tmp_path):
    path = tmp_path / "folder" / "limits.json"
    save_limits(path, limits)
    assert load_limits(path) == limits and list(path.parent.iterdir()) == [path]
    new = process.runs(np.random.default_rng(6), 2)
    assert process.judge(load_limits(path), new) == process.judge(limits, new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"version": 0}, "version 0"),
        (lambda data: {name: x for name, x in data.items() if name != "metrics"}, "metrics"),
        (lambda data: data | {"surprise": 1}, "surprise"),
        (lambda data: data | {"prompts": data["prompts"][1:]}, "prompts"),
        (lambda data: data | {"alpha": 0.5}, "edited"),
        (lambda data: data | {"version": 1}, "sha256"),
        (lambda data: {name: x for name, x in data.items() if name != "terms"}, "edited"),
        (lambda data: data | {"covariance": [[10**30] * 7] * 7}, "edited"),
        (lambda data: [data], "no limits"),
    ],
)
def test_other_files_are_refused(limits, tmp_path, change, message):
    path = tmp_path / "limits.json"
    save_limits(path, limits)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        load_limits(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="no limits of the gate"):
        load_limits(path)


@pytest.mark.parametrize(
    "broken",
    [
        {"texts": TEXTS[:1]},
        {"shift_P": ["far"]},
        {"prompt_id_P": ["a"] * 300},
        {"extra": {"loss": [1.0]}},
        {"answer_RP": np.zeros((1, 300), dtype=int), "correct_RP": np.zeros((1, 300))},
        {"alpha": 2.0},
    ],
)
def test_impossible_baselines_are_errors(process, broken):
    baseline = process.runs(np.random.default_rng(0), 3)
    arguments = {"answer_RP": baseline["answer"], "texts": TEXTS, "correct_RP": baseline["correct"]}
    arguments |= {"shift_P": process.shifts, "prompt_id_P": process.ids} | broken
    with pytest.raises(ValueError):
        learn(**arguments)
