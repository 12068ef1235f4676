"""SCAN is prepared without loss, and nothing far is trained on. The lines are of the published
form; the data are not part of ftk.
"""

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("prepare_scan", ROOT / "recipes/scan/prepare.py")
assert spec and spec.loader
scan = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scan)

VERBS = {verb: f"I_{verb.upper()}" for verb in ("walk", "look", "run", "jump")}


def pairs() -> list[tuple[str, str]]:
    found = []
    for verb, action in VERBS.items():
        for times, n in (("", 1), (" twice", 2), (" thrice", 3)):
            found.append((verb + times, " ".join([action] * n)))
            for side in ("left", "right"):
                found.append(
                    (f"{verb} {side}{times}", " ".join([f"I_TURN_{side.upper()} {action}"] * n))
                )
    return found


@pytest.fixture
def folder(tmp_path):
    everything = pairs()
    far = {
        "addprim_jump": [p for p in everything if p[0].startswith("jump ")],
        "length": [p for p in everything if len(p[1].split()) > 4],
        "simple": everything[::5],
    }
    for split, test in far.items():
        for part, rows in (("test", test), ("train", [p for p in everything if p not in test])):
            text = "".join(f"IN: {command} OUT: {actions}\n" for command, actions in rows)
            (tmp_path / f"tasks_{part}_{split}.txt").write_text(text)
    return tmp_path


def test_nothing_far_is_trained_on_and_every_reference_reads_back(folder, tmp_path, capsys):
    scan.main([str(folder), "--out", str(tmp_path / "data"), "--prompts", "0"])
    files = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "data").glob("*.jsonl")
    }
    actions = dict(pairs())
    trained = {row["prompt"].removesuffix(scan.SUFFIX): row["completion"] for row in files["train"]}
    asked = {
        name: {row["prompt"].removesuffix(scan.SUFFIX): row for row in files[name]}
        for name in ("typical", "far", "validation")
    }
    assert "jump" in trained and not any(command.startswith("jump ") for command in trained)
    assert max(len(actions[command].split()) for command in trained) <= 4
    assert all(not trained.keys() & suite.keys() for suite in asked.values())
    assert {row["category"] for row in files["far"]} == {"jump", "length"}
    for command, completion in [
        *trained.items(),
        *((c, row["reference"]) for suite in asked.values() for c, row in suite.items()),
    ]:
        assert scan.published(completion) == actions[command]
    again = {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*.jsonl")}
    scan.main([str(folder), "--out", str(tmp_path / "data"), "--prompts", "0"])
    assert again == {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*.jsonl")}


def test_letters_and_fewer_actions(folder, tmp_path, capsys):
    scan.main(
        [
            str(folder),
            "--out",
            str(tmp_path / "data"),
            "--prompts",
            "0",
            "--letters",
            "--actions",
            "3",
        ]
    )
    files = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (tmp_path / "data").glob("*.jsonl")
    }
    said = [row["completion"] for row in files["train"]]
    assert max(len(completion.split()) for completion in said) == 3 and all(
        len(word) == 1 for one in said for word in one.split()
    )
    # far is as far as before
    assert {row["category"] for row in files["far"]} == {
        "jump",
        "length",
    }
    actions = dict(pairs())
    for row in (*files["far"], *files["typical"]):
        assert scan.published(row["reference"]) == actions[row["prompt"].removesuffix(scan.SUFFIX)]


def test_a_file_that_is_not_scan_is_told_by_its_line(folder, capsys):
    with (folder / "tasks_test_length.txt").open("a") as file:
        file.write("walk => I_WALK\n")
    with pytest.raises(SystemExit, match=r"tasks_test_length.txt:\d+: not a line of SCAN"):
        scan.main([str(folder), "--out", str(folder / "data")])


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(
        SystemExit, match=r"tasks_\w+.txt: no such file; .*README.md says where to get it"
    ):
        scan.main([str(tmp_path), "--out", str(tmp_path / "data")])
