"""The commands: exit codes, one line for every mistake, JSON on stdout alone, and a stop that loses
nothing.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from helpers.processes import ended
from rich.progress import Progress

from toolkit import cli
from toolkit.cli import terminal
from toolkit.data import read_rows

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

RECIPE = """
base: {base}
data:
  train: {train}
  suites: {{typical: {suite}}}
replicas: {replicas}
stack: 4
conditions:
  lora: {{epochs: {epochs}, batch_size: 8, lr: 5e-3{condition}}}
evaluation: {{max_new_tokens: 4}}
{more}
"""
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "pyarrow", "scipy", "peft", "mergekit")


def write_recipe(path: Path, **changes: object) -> Path:
    values = {
        "base": "embedded",
        "train": "train.jsonl",
        "suite": "suite.jsonl",
        "replicas": 4,
        "epochs": 1,
        "condition": "",
        "more": "",
    }
    path.write_text(RECIPE.format(**values | changes))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    lines = [json.dumps(dict(row)) + "\n" for row in read_rows("embedded")[:16]]
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "suite.jsonl").write_text("".join(lines[:3]))
    (folder / "broken.jsonl").write_text(lines[0] + '{"prompt": \n')
    (folder / "long.jsonl").write_text(
        json.dumps({"prompt": "wake me at seven " * 64, "completion": " none()"}) + "\n"
    )
    (folder / "empty.jsonl").write_text("")
    (folder / "a-file").write_text("")
    (folder / "a-folder").mkdir()
    write_recipe(folder / "good.yaml")
    return folder


@pytest.fixture(autouse=True)
def here(work, monkeypatch):
    monkeypatch.chdir(work)


@pytest.fixture(scope="module")
def trained(work):
    """A run with trained replicas, and the answer of the command that made it."""
    result = CliRunner().invoke(
        cli.main,
        [
            "train-replicas",
            str(work / "good.yaml"),
            "--out",
            str(work / "run"),
            "--workers",
            "1",
            "--json",
        ],
    )
    assert result.exit_code == cli.DONE, result.output
    return work / "run", result


def ftk(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )


def assert_one_line(result: Result, told: str, code: int = cli.BAD_INPUT) -> None:
    assert result.exit_code == code and result.stdout == "", result.output
    assert (
        result.stderr.startswith("ftk: ")
        and result.stderr.count("\n") == 1
        and told in result.stderr
    ), result.stderr


# -- before anything is loaded -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["check", "bad.yaml"], 2),
        (["run", "bad.yaml"], 2),
        (["init", "x"], 0),
    ],
)
def test_help_and_wrong_recipes_load_nothing_heavy(arguments, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("base: x\nepoch: 3\n")
    start = time.monotonic()
    found = python(
        f"import sys; from toolkit.cli import main\ntry: main({arguments!r})\n"
        f"except SystemExit as stop: print([stop.code, *(set({HEAVY!r}) & set(sys.modules))])"
    )
    assert found.stdout.splitlines()[-1] == f"[{code}]"
    assert time.monotonic() - start < 5  # a fifth of a second on an idle machine


@pytest.mark.parametrize("command", cli.main.commands)
def test_every_command_has_help_and_json(command):
    result = ftk(command, "--help")
    assert result.exit_code == 0 and "--json" in result.stdout
    # the list of commands is readable
    assert not cli.main.commands[command].get_short_help_str(62).endswith("...")


def test_init_writes_a_recipe_that_check_accepts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads(ftk("init", "v1.5", "--json").stdout) == {"recipe": "v1.5.yaml"}
    assert_one_line(ftk("init", "v1.5"), "is there already")
    assert ftk("init", "v1.5", "--force").exit_code == 0
    result = ftk("check", "v1.5.yaml", "--no-probe")
    assert result.exit_code == 0 and result.stderr == ""
    # two rows, and what the brackets mean
    assert result.stdout.count("⟦") == result.stdout.count("⟧") == 3
    for part in (
        "1,120 rows",
        "typical (192 prompts)",
        "24 replicas in 3 stacks of 8",
        "140 steps of 16 rows",
    ):
        assert part in result.stdout


def test_check_tells_what_a_probe_took():
    result = ftk("check", "good.yaml", "--workers", 1)
    assert result.exit_code == 0 and result.stderr == ""
    assert "memory of a worker" in result.stdout and "ms a step" in result.stdout
    assert "memory of a worker" not in ftk("check", "good.yaml", "--no-probe").stdout


def test_check_and_doctor_print_one_json_object():
    found = json.loads(ftk("check", "good.yaml", "--no-probe", "--json").stdout)
    assert found["data"]["rows"] == 16 and found["conditions"]["lora"]["plan"]["steps"] == 2
    found = json.loads(ftk("doctor", "--json").stdout)
    assert found["versions"]["torch"] and found["numerics"]["torch"] in ftk("doctor").stdout


# -- options -------------------------------------------------------------------------------------

SINGLE = [
    (name, option)
    for name, command in cli.main.commands.items()
    for option in command.params
    if isinstance(option, click.Option) and not option.multiple
]


@pytest.mark.parametrize(
    ("command", "option"), SINGLE, ids=lambda one: one if isinstance(one, str) else one.name
)
def test_an_option_that_is_taken_once_is_not_given_twice(command, option, monkeypatch):
    monkeypatch.setattr(
        cli.main.commands[command], "invoke", lambda ctx: pytest.fail("it went to work")
    )
    values = [] if option.is_flag else ["1"]
    for spelling in option.opts:
        twice = [option.opts[0], *values, spelling, *values]
        assert_one_line(
            ftk(command, "a", *twice),
            f"{option.opts[0]} stands 2 times, and is used once; keep one",
        )
        assert_one_line(ftk(command, *twice, "a"), f"{option.opts[0]} stands 2 times")


def test_an_option_that_may_be_repeated_is_taken_as_often_as_it_is_given(monkeypatch):
    from toolkit.pipeline.given import inspect_given

    asked = []
    monkeypatch.setattr(
        inspect_given, "basins", lambda sources, *, prompts, **_: asked.append(prompts) or []
    )
    assert (
        ftk("basin", "a", "--prompts", "embedded:typical", "--prompts=embedded:far").exit_code
        == cli.DONE
    )
    assert asked == [("embedded:typical", "embedded:far")]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["evaluate", "a", "--promts", "b"],
            "No such option '--promts'. (Did you mean one of: '--groups', '--out', '--prompts'?)",
        ),
        (
            ["run", "a", "--replicas", "few"],
            "Invalid value for '--replicas': 'few' is not a valid integer range",
        ),
        (["evaluate"], "Missing argument 'SUBJECTS...'"),
        (["measur"], "No such command 'measur'"),
        (["gate", "a", "--save"], "Option '--save' requires an argument"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, told):
    assert_one_line(ftk(*arguments), told)


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": "missing.jsonl"}, "missing.jsonl: no such file"),
        ({"train": "broken.jsonl"}, "broken.jsonl:2: broken JSON"),
        ({"train": "empty.jsonl"}, "empty.jsonl: no rows"),
        ({"suite": "empty.jsonl"}, "empty.jsonl: no rows"),
        ({"suite": "missing.csv"}, "missing.csv: no such file"),
        ({"base": "./nowhere"}, "base './nowhere': no such folder"),
        (
            {"condition": ", targets: [nope]"},
            "target 'nope' matches no module; linear layers of this base: down_proj",
        ),
        (
            {"suite": "long.jsonl"},
            ": 258 tokens and an answer of up to 4 are more than the 256 that base "
            "'embedded' takes",
        ),
        ({"train": "long.jsonl"}, "data.max_length: a training row has 2"),
        (
            {"condition": ", epoch: 2"},
            "wrong.yaml:9: unknown key 'epoch' in 'conditions.lora'; did you mean 'epochs'?",
        ),
    ],
)
def test_check_tells_a_wrong_recipe_in_one_line(changes, told, work):
    assert_one_line(ftk("check", write_recipe(work / "wrong.yaml", **changes), "--no-probe"), told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("check missing.yaml", "missing.yaml: no such file; `ftk init`"),
        ("run missing.yaml", "missing.yaml: no such file; `ftk init`"),
        ("train-replicas good.yaml -c nope", "no condition 'nope' in the recipe; there are: lora"),
        *[
            (f"train-replicas good.yaml --only {only}", "write replicas as 3,17 or 0-7")
            for only in ("x", "5-3", "1,,2", "1-", "999999")
        ],
        ("report a-folder", "a-folder: no results.json; `ftk run RECIPE --out a-folder`"),
        ("merge a-folder --method mean", "a-folder: no adapter_config.json"),
        ("merge nowhere --method mean", "nowhere: no such folder"),
        ("merge run --method slerp", "unknown merge method 'slerp'; did you mean 'multislerp'?"),
        (
            "merge run --method mean --density 0.5 --out m",
            "unknown parameter 'density' of merge method mean",
        ),
        (
            "merge run --method mean --rank bogus --out m",
            "rank 'bogus' is unknown; use full, same, a number, or energy=0.99",
        ),
        ("merge run --method mean --all --groups 2", "--groups and --all exclude each other"),
        ("merge run --method mean --groups 5", "4 adapters are fewer than a group of 5"),
        ("merge run --method swa", "no adapters in snapshots/"),
        ("merge dora --method mean", "DoRA"),
        ("evaluate run/lora/replicas/00000", "--prompts SUITE says what to ask"),
        ("evaluate run/lora/replicas/00000 --prompts missing.jsonl", "missing.jsonl: no such file"),
        (
            "evaluate run --answer bogus",
            "answer: unknown rule 'bogus'; use one of text, first-line",
        ),
        ("train-replicas other.yaml --out run", "run/lora: holds replicas of another recipe"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, told, trained, work):
    write_recipe(work / "other.yaml", more="seed: 1")
    shutil.copytree(trained[0] / "lora/replicas/00000", work / "dora", dirs_exist_ok=True)
    config = work / "dora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    assert_one_line(ftk(*arguments.split()), told)


def test_a_folder_that_cannot_be_written_fails():
    assert_one_line(ftk("train-replicas", "good.yaml", "--out", "a-file"), "a-file", cli.FAILED)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the disk is full: free some"),
        (errno.EDQUOT, "your quota"),
        (errno.EROFS, "the disk is read-only: make it writable"),
    ],
)
def test_a_disk_that_refuses_is_told_with_its_way_out(number, told, capsys):
    with pytest.raises(SystemExit) as stop, terminal.errors():
        raise OSError(number, os.strerror(number), "run/lora/replicas/00003")
    line = capsys.readouterr().err
    assert (
        stop.value.code == cli.FAILED
        and line.startswith(f"ftk: run/lora/replicas/00003: {told}")
        and line.count("\n") == 1
    )
    assert "run again; finished work is kept" in line


def test_without_network_an_unknown_base_is_told_at_once(work):
    path = write_recipe(work / "hub.yaml", base="no/such-model")
    found = python(
        f"from toolkit.cli import main; main(['check', {str(path)!r}])",
        HF_ENDPOINT="https://hub.invalid",
    )
    assert found.returncode == cli.BAD_INPUT and found.stdout == ""
    assert found.stderr.startswith("ftk: base 'no/such-model'") and found.stderr.count("\n") == 1


# -- work ----------------------------------------------------------------------------------------


def test_json_is_alone_on_stdout(trained):
    run, result = trained
    found = json.loads(result.stdout)
    assert found["conditions"]["lora"] == {
        "folder": str(run / "lora/replicas"),
        "replicas": 4,
        "failed": [],
    }
    assert "train lora: 4/4" in result.stderr
    result = ftk("merge", run, "--method", "mean", "--groups", 2, "--out", "merged", "--json")
    assert [one["k"] for one in json.loads(result.stdout)["merged"]] == [2, 2]
    result = ftk(
        "evaluate", run, "--prompts", "suite.jsonl", "--out", "asked", "--workers", 1, "--json"
    )
    assert json.loads(result.stdout)["out"] == "asked" and result.exit_code == 0
    assert json.loads(ftk("report", "asked", "--json").stdout) == {"report": "asked/report.html"}


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(work):
    write_recipe(work / "long.yaml", replicas=12, epochs=12)
    arguments = ["train-replicas", "long.yaml", "--out", "stopped", "--workers", "1"]
    command = [sys.executable, "-m", "toolkit.cli", *arguments]
    # jobs in the background of a shell do not hear of it
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command, start_new_session=True, preexec_fn=heard, cwd=work, **streams
    )
    deadline = time.monotonic() + 120
    while not list(work.glob("stopped/lora/replicas/0*/replica.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stdout == "" and "Traceback" not in stderr
    assert (
        stderr.splitlines()[-1]
        == f"ftk: stopped; finished work is kept. Go on with: ftk {' '.join(arguments)}"
    )
    ended(process.pid)
    stamps = {
        path: path.stat().st_mtime_ns for path in work.glob("stopped/lora/replicas/0*/replica.json")
    }
    assert 0 < len(stamps) < 12
    assert ftk(*arguments).stdout == "lora: 12 replicas in stopped/lora/replicas\n"
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_bar_ends_with_its_block(monkeypatch):
    started: list[Progress] = []
    monkeypatch.setattr(Progress, "start", lambda bar: (started.append(bar), bar.live.start()))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with pytest.raises(KeyboardInterrupt), terminal.console() as console:
        console.progress("train", 4)(0.5)
        assert started[0].live.is_started
        raise KeyboardInterrupt
    assert not started[0].live.is_started


NUMBERS = [
    pytest.param(name, option, id=f"{name} {option.opts[0]}")
    for name, command in cli.main.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
    and isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
]


@pytest.mark.parametrize(("command", "option"), NUMBERS)
def test_every_number_of_a_command_has_a_least_and_a_largest_value(command, option):
    assert isinstance(option.type, click.IntRange | terminal.Between) and None not in (
        option.type.min,
        option.type.max,
    )
    impossible = ["nan", "inf", "-inf", "-1", "1e300", str(10**30), "1e-300", "x"]
    for value in impossible:
        result = CliRunner().invoke(cli.main, [command, option.opts[0], value])
        assert result.exit_code == cli.BAD_INPUT and result.stderr.count("\n") == 1
        assert f"{option.opts[0]}'" in result.stderr


@pytest.mark.parametrize(
    "ends",
    [
        ("--guess", "1e-6"),
        ("--guess", "0.999999"),
        ("--half-width", "1e-6"),
        ("--ratio", "1e-6"),
        ("--ratio", "0.999999"),
    ]
    + [
        ("--power", "1e-6"),
        ("--power", "0.999999"),
        ("--k", "100000"),
        ("--prompts", "10000000"),
        ("--replicas", "100000"),
    ],
)
def test_a_plan_takes_the_ends_of_every_range(ends):
    given = ["plan", *(() if ends[0] == "--guess" else ("--guess", "1e-6")), *ends]
    result = CliRunner().invoke(cli.main, given)
    assert result.exit_code == cli.DONE and not {"nan", "inf"} & set(
        result.stdout.replace(",", " ").split()
    )
