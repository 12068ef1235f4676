"""`ftk gate` from the shell: limits that were saved mean what they meant; no option is dropped."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.measured import _fresh, answers, folder_of, ftk, one_line, rows, write
from helpers.outcomes_of import World

from toolkit import cli

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart


def spelled(answer_RP: np.ndarray, condition: str | None = None, seed: int = 0, **more) -> list:
    """The same answers as `rows`, in any spelling, beside a number that is nearly the same, and a
    score.
    """
    rng = np.random.default_rng(seed)
    return [
        cell
        | {
            "output": f"{rng.choice(['Answer', 'answer'])} {cell['output'][-1]}"
            f"{rng.choice(['', '.', '.01', '.02'])}",
            "score": float(rng.normal()),
        }
        for cell in rows(answer_RP, condition, **more)
    ]


@pytest.mark.parametrize("rule", ["exact", "normalised", "numeric", "numeric:0.015", "regex:\\d"])
@pytest.mark.parametrize("runs", [1, 3])
def test_saved_limits_judge_as_the_baseline_does_that_they_were_learned_on(tmp_path, rule, runs):
    """Whatever decides what a number means is in the file, and holds for the candidate."""
    baseline = write(tmp_path / "baseline.jsonl", spelled(answers(replicas=32)))
    fresh = np.repeat(_fresh(0.3), runs, axis=0)
    candidate = write(tmp_path / "candidate.jsonl", spelled(fresh, seed=1))
    limits = tmp_path / "limits.json"
    at_once = ftk(
        *("gate", baseline, "--same", rule, "--candidate", candidate, "--save", limits, "--json")
    )
    later = ftk("gate", limits, "--candidate", candidate, "--json")
    assert (later.stdout, later.exit_code) == (at_once.stdout, at_once.exit_code)
    assert json.loads(later.stdout)["status"] == "pass"
    also = ftk("gate", limits, "--same", rule, "--candidate", candidate, "--json")
    assert also.stdout == later.stdout
    other = ftk("gate", limits, "--same", "json", "--candidate", candidate)
    one_line(other, "limits.json", "rule", repr(rule), "'json'")


def test_what_else_a_candidate_has_changes_no_number(tmp_path):
    """More prompts, other shifts, another order: neither accuracy nor score is of other prompts."""
    limits = tmp_path / "limits.json"
    baseline = write(tmp_path / "b.jsonl", spelled(answers(replicas=32)))
    assert ftk("gate", baseline, "--same", "numeric:0.1", "--save", limits).exit_code == cli.DONE
    cells = spelled(_fresh(0.3), seed=1)
    extra = [{**cell, "prompt": f"new {cell['prompt']}", "score": 99.0} for cell in cells]
    moved = [{**cell, "shift": "near"} for cell in reversed([*cells, *extra])]
    found = [
        json.loads(ftk("gate", limits, "--json", "--candidate", write(tmp_path / n, c)).stdout)
        for n, c in (("c.jsonl", cells), ("d.jsonl", [*cells, *extra]), ("e.jsonl", moved))
    ]
    assert found[0]["rows"] == found[1]["rows"] == found[2]["rows"] and len(found[0]["rows"]) == 6


def test_a_candidate_that_was_asked_or_marked_otherwise_is_one_line(tmp_path):
    limits = tmp_path / "limits.json"

    def told(cells: list[dict]) -> list[dict]:
        return [{**cell, "id": cell["prompt"], "prompt": f"say {cell['prompt']}"} for cell in cells]

    baseline = write(tmp_path / "baseline.jsonl", told(rows(answers(replicas=32))))
    assert ftk("gate", baseline, "--save", limits).exit_code == cli.DONE
    cells = told(rows(_fresh(0.3)))
    for field, value, what in (("prompt", "other", "text"), ("reference", "other", "reference")):
        wrong = [c | {field: value} if c["id"] == "p7" else c for c in cells]
        for source in (limits, baseline):
            one_line(
                ftk("gate", source, "--candidate", write(tmp_path / "c.jsonl", wrong)),
                f"c.jsonl: prompt 'p7' has another {what}",
            )
    bare = [{**c, "prompt": c["id"]} for c in cells]  # ids alone say nothing of the text
    assert "PASS" in ftk("gate", limits, "--candidate", write(tmp_path / "bare.jsonl", bare)).stdout


def test_limits_of_version_1_are_read_and_take_a_rule(tmp_path):
    baseline = write(tmp_path / "baseline.jsonl", spelled(answers(replicas=32)))
    candidate = write(tmp_path / "candidate.jsonl", spelled(_fresh(0.3), seed=1))
    limits, old = tmp_path / "limits.json", tmp_path / "old.json"
    now = ftk(
        *("gate", baseline, "--same", "numeric", "--save", limits, "--candidate", candidate)
    ).stdout
    data = json.loads(limits.read_text())
    digest = [[prompt["id"], prompt["shift"]] for prompt in data["prompts"]]
    data["prompts_sha256"] = hashlib.sha256(json.dumps(digest).encode()).hexdigest()
    del data["sha256"], data["terms"], data["n_failed"]
    for prompt in data["prompts"]:
        del prompt["asked"], prompt["reference"], prompt["scored"]
    old.write_text(json.dumps(data | {"version": 1}))
    assert ftk("gate", old, "--same", "numeric", "--candidate", candidate).stdout == now
    unsaid = ftk("gate", old, "--candidate", candidate)
    assert "limits of an older ftk do not say" in unsaid.stdout and "'exact'" in unsaid.stdout
    again = tmp_path / "again.json"
    assert ftk("gate", old, "--same", "numeric", "--save", again).exit_code == cli.DONE
    assert ftk("gate", again, "--candidate", candidate).stdout == now


def test_limits_are_never_written_over_what_they_are_made_of(tmp_path):
    baseline = write(tmp_path / "baseline.jsonl", rows(answers(replicas=32)))
    candidate = write(tmp_path / "candidate.jsonl", rows(_fresh(0.3)))
    for path in (baseline, candidate):
        was = path.read_bytes()
        one_line(
            ftk("gate", baseline, "--candidate", candidate, "--save", path, "--force"),
            "is read here",
        )
        assert path.read_bytes() == was


def test_adapters_that_would_answer_otherwise_are_refused_before_they_do(tmp_path):
    (tmp_path / "run").mkdir()
    run = folder_of(World(32, per_category=5, seed=3), tmp_path / "run")
    assert ftk("gate", run, "--save", tmp_path / "limits.json").exit_code == cli.DONE
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((run / "recipe.yaml").read_text() + "evaluation: {max_new_tokens: 6}\n")
    (tmp_path / "adapter").mkdir()
    one_line(
        ftk(
            *("gate", tmp_path / "limits.json", "--candidate", tmp_path / "adapter"),
            *("--recipe", recipe),
        ),
        "recipe.yaml: max_new_tokens is 6 there, and 64",
    )


MODES = {
    "learned": ["baseline.jsonl", "--save", "new.json"],
    "saved again": ["limits.json", "--save", "new.json"],
    "at once": ["baseline.jsonl", "--candidate", "candidate.jsonl"],
    "at once and saved": [
        "baseline.jsonl",
        "--candidate",
        "two.jsonl",
        "--condition",
        "one",
        "--save",
        "new.json",
    ],
    "later": ["limits.json", "--candidate", "candidate.jsonl"],
    "a run learned": ["run", "--save", "new.json"],
    "a run": ["run", "--candidate", "run"],
    "a run by limits": ["run.json", "--candidate", "run"],
    "a file by a run": ["run", "--candidate", "run.jsonl"],
}
OPTIONS = [
    ["--condition", "nobody"],
    ["--recipe", "recipe.yaml"],
    ["--same", "normalised"],
    ["--same", "nonsense"],
    ["--alpha", "0.3"],
    ["--column", "output=other"],
    ["--replica-columns", "run_*"],
    ["--workers", "2"],
    ["--force"],
]


@pytest.mark.parametrize("mode", MODES)
def test_no_option_of_the_gate_is_dropped(mode, tmp_path, monkeypatch):
    """In every mode each is refused in one line, or changes what comes out."""
    monkeypatch.chdir(tmp_path)
    for name, answer_RP, n in (
        ("baseline", answers(replicas=32), 0),
        ("candidate", _fresh(0.3), 1),
    ):
        cells = [c | {"other": c["reference"]} for c in spelled(answer_RP, "one", seed=n)]
        write(Path(f"{name}.jsonl"), cells)
    write(Path("two.jsonl"), [*cells, *({**c, "condition": "two"} for c in cells)])
    assert ftk("gate", "baseline.jsonl", "--save", "limits.json").exit_code == cli.DONE
    Path("recipe.yaml").write_text("base: embedded\n")
    if "run" in mode:
        Path("run").mkdir()
        world = World(32, per_category=10, seed=3)
        folder_of(world, Path("run"))
        assert ftk("gate", "run", "--save", "run.json").exit_code == cli.DONE
        said = [(suite, p.id, p.reference) for suite, p in world.flat]
        cells = [{"run": 1, "suite": s, "id": i, "output": o, "reference": o} for s, i, o in said]
        write(Path("run.jsonl"), [c | {"other": "no"} for c in cells])

    def outcome(*more: str) -> tuple:
        new = Path("new.json")
        new.unlink(missing_ok=True)
        result = ftk("gate", *MODES[mode], *more)
        if result.exit_code == cli.BAD_INPUT:
            one_line(result)
            return ("refused", result.stderr)
        return result.exit_code, result.stdout, new.exists() and new.read_text()

    bare = outcome()
    for option in OPTIONS:
        found = outcome(*option)
        assert found != bare or option == ["--force"] and "--save" in MODES[mode], (mode, option)
