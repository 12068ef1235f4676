"""Input that nobody means well with: limits hold, and what cannot be is one line before anything
starts.
"""

import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import cli, pipeline
from toolkit.cli import last
from toolkit.measurement.meaning.forms import json_form, normalised, number
from toolkit.measurement.run import Design, read_prompts
from toolkit.model.base import load_base
from toolkit.pipeline.checks.with_base import check_all
from toolkit.recipe import RecipeError, load_recipe, parse_recipe
from toolkit.record.plain import DEEPEST, JsonError, from_plain, parse, read_record, to_plain
from toolkit.record.population import Replica
from toolkit.record.results import ConditionDesign, MitigationDesign, Price
from toolkit.text.patterns import Pattern, PatternError, compiled, on_the_clock

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**200), 10**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)

# -- one reader for JSON --------------------------------------------------------------------------


@settings(derandomize=True, max_examples=100)
@given(JSON)
def test_what_json_writes_is_read_back(value):
    assert parse(json.dumps(value)) == parse(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "levels"),
        ("[" * 100_000, "levels"),
        ('{"a":' * 500 + "1" + "}" * 500, "levels"),
        ("9" * 5000, "5,000 digits"),
        ("-" + "9" * 301, "digits"),
        ("NaN", "no JSON number"),
        ("1e999", "beyond"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("{", "Expecting property name"),
        (b"\xff\xfe[\x001\x00]\x00", "not UTF-8"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_refused(text, told):
    with pytest.raises(JsonError, match=re.escape(told)):
        parse(text)


def test_json_up_to_the_limits_is_read(tmp_path):
    assert (
        parse("[" * DEEPEST + "]" * DEEPEST)
        and parse(b"\xef\xbb\xbf1") == 1
        and parse("9" * 300) == int("9" * 300)
    )
    assert parse("[NaN, Infinity]", any_number=True)[1] == float("inf")


DESIGN = Design(
    ("outcomes/a.parquet",),
    (
        ConditionDesign(
            "lora", (0, 1), 0, (MitigationDesign("m", "m", "merge", 2, ((0, 1),), Price()),)
        ),
    ),
    "ftk",
)


def test_a_record_comes_back_equal():
    again = from_plain(Design, parse(json.dumps(to_plain(DESIGN))))
    assert again == DESIGN and to_plain(again) == to_plain(DESIGN)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda plain: plain | {"shards": "outcomes"}, "shards should be a list (got 'outcomes')"),
        (lambda plain: plain | {"shards": [1]}, "shards.0 should be text (got 1)"),
        (lambda plain: plain | {"command": None}, "command should be text (got None)"),
        (lambda plain: {"shards": []}, "is missing"),
        (lambda plain: [plain], "should be an object"),
        (
            lambda plain: plain | {"conditions": [plain["conditions"][0] | {"failed": True}]},
            "conditions.0.failed should be a whole number",
        ),
        (
            lambda plain: plain | {"conditions": [plain["conditions"][0] | {"failed": 2**63}]},
            "conditions.0.failed should be a whole number",
        ),
        (
            lambda plain: plain | {"conditions": [plain["conditions"][0] | {"failed": 0.5}]},
            "conditions.0.failed should be a whole number",
        ),
    ],
)
def test_a_field_of_another_type_is_told(change, told, tmp_path):
    path = tmp_path / "design.json"
    path.write_text(json.dumps(change(to_plain(DESIGN))))
    with pytest.raises(JsonError, match=re.escape(told)) as raised:
        read_record(path, Design, "write it again")
    assert str(raised.value).startswith(f"{path}: ") and str(raised.value).endswith(
        "; write it again"
    )


def test_json_is_read_in_one_place():
    package = Path(cli.__file__).parent.parent
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"json\.loads?\(|JSONDecoder\(", path.read_text())
    }
    # a canonical form of answers keeps numbers as written; the others read what they wrote in the
    # same breath
    assert readers == {
        "record/plain.py",
        "measurement/meaning/forms.py",
        "measurement/predictions/readers.py",
        "pipeline/merge_groups.py",
        "embedded/pretrain.py",
    }


def test_a_replica_with_a_record_of_another_type_is_not_complete(tmp_path):
    from toolkit.record.population import RECORD, read_replica

    (tmp_path / RECORD).write_text(Replica(0, "ok", {}, 1, 0.5).to_json())
    assert read_replica(tmp_path) is not None
    for wrong in (
        '{"replica": "0"}',
        "[]",
        "[" * 5000,
        '{"replica": 0, "status": "ok", "seeds": [], "steps": 1, "final_loss": 0.5}',
    ):
        (tmp_path / RECORD).write_text(wrong)
        assert read_replica(tmp_path) is None


# -- patterns ------------------------------------------------------------------------------------

ENDLESS = r"(x*)(x*)(x*)(x*)(x*)(x*)(x*)(x*)\1\2\3\4!"
PIECES = [
    "a",
    "b",
    r"\d",
    r"\s",
    "[ab]",
    "[^a]",
    "(a|b)",
    "(?:ab)",
    "a*",
    "b+",
    "a?",
    "a{2}",
    "a{1,2}",
    ".",
    "^",
    "$",
    r"\b",
    "{",
    "}",
    "{e}",
    "x_{i}",
    r"\{",
    "[{]",
]


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join),
    st.text(st.sampled_from("ab1 {}eix_"), max_size=12),
)
def test_patterns_mean_what_they_mean_to_python(pattern, text):
    expected = re.search(pattern, text)
    found = Pattern(pattern).search(text)
    assert (found and (found.span(), found.groups())) == (
        expected and (expected.span(), expected.groups())
    )


@pytest.mark.parametrize(
    "pattern",
    ["(", "[", "(?P<a>x)(?P<a>y)", "a" * 1001, "(" * 500 + ")" * 500, "(?<=a*)b", "*", r"\p{L}"],
)
def test_a_broken_pattern_is_told(pattern):
    with pytest.raises(PatternError, match="the pattern"):
        Pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (ENDLESS, "x" * 60 + "z!"),
        (r"(?:(\w+,?)+)+\Z", "y" * 60 + "!"),
        ("(x+x+)+y", "x" * 60 + "zy"),
        ("(a|aa)+$", "a" * 60 + "b"),
        ("(.*)*(.*)*;x", "y" * 60 + ";"),
    ],
)
def test_a_pattern_that_never_ends_is_stopped(pattern, text):
    start = time.process_time()
    try:
        assert Pattern(pattern).search(text) is None
    except PatternError as error:
        assert "takes more than" in str(error)
    assert time.process_time() - start < 5


def test_texts_that_take_a_pattern_too_long_together_are_stopped(monkeypatch):
    slow = Pattern("(x+x+)+y")
    monkeypatch.setattr("toolkit.text.patterns.ALLOWANCE", 0.0)
    monkeypatch.setattr("toolkit.text.patterns.EACH", 0.0)
    with pytest.raises(PatternError, match="s for 1 texts"):
        slow.search("xx")
    assert compiled("a") is compiled("a")


def test_a_pattern_that_did_not_end_is_not_tried_again():
    endless = Pattern(ENDLESS)
    start = time.process_time()
    for _ in range(20):
        with pytest.raises(PatternError, match="takes more than"):
            endless.match("x" * 60 + "z!")
    assert time.process_time() - start < 5


def test_patterns_of_an_adapter_are_on_the_clock_in_peft():
    import peft.tuners.tuners_utils as theirs
    from peft import LoraConfig

    config = LoraConfig(target_modules=ENDLESS)
    with on_the_clock("peft"), pytest.raises(PatternError):
        theirs.check_target_module_exists(config, "x" * 60 + "z!")
    assert theirs.re is re
    with on_the_clock("peft"):
        assert theirs.check_target_module_exists(
            LoraConfig(target_modules=r".*\.q_proj"), "layers.0.q_proj"
        )
        assert not theirs.check_target_module_exists(
            LoraConfig(target_modules=r".*\.q_proj"), "layers.0.q_proj_2"
        )


# -- YAML ----------------------------------------------------------------------------------------

LAUGHS = "\n".join(
    [
        f"l0: &l0 [{', '.join('x' * 10)}]",
        *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)),
    ]
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "keys and items, aliases written out"),
        ("a: &a [*a]", "contains itself"),
        ("[" * 5000, "blocks inside each other"),
        ("a: " + "9" * 5000, "5,000 digits"),
        ('a: "\\uD800"', "half of a pair"),
        ('"a\\0b": 1', "null character"),
        ("a: !!bool x", "neither true nor false"),
        ("a: !!timestamp x", "could not determine a constructor"),
        ("a: !!set {x}", "could not determine a constructor"),
    ],
)
def test_yaml_that_is_refused(text, told):
    start = time.process_time()
    with pytest.raises(RecipeError, match=re.escape(told)) as raised:
        parse_recipe(text, "r.yaml")
    assert str(raised.value).startswith("r.yaml:") and time.process_time() - start < 10


def test_a_file_larger_than_a_recipe_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("#" * (1 << 21))
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="larger than 1 MiB"):
        load_recipe("/dev/zero")


# -- ceilings and names --------------------------------------------------------------------------

RECIPE = """base: embedded
data: {train: embedded:64, suites: {typical: embedded}}
replicas: 4
stack: 4
conditions: {lora: {epochs: 1, rank: 2, batch_size: 8}}
"""


@pytest.mark.parametrize(
    "key",
    [
        "rank",
        "epochs",
        "batch_size",
        "gradient_accumulation",
        "rows",
        "replicas",
        "repeats",
        "lawa_last",
    ],
)
def test_numbers_of_a_condition_have_a_ceiling(key):
    with pytest.raises(RecipeError, match=f"'conditions.lora.{key}': should be at most .*: "):
        parse_recipe(
            RECIPE.replace(
                "{lora: {epochs: 1, rank: 2, batch_size: 8}}", f"{{lora: {{{key}: 1000000000000}}}}"
            )
        )


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            "mitigations: [{merge: mean, k: 1000000000}]",
            "'mitigations.0.k': should be at most 100,000",
        ),
        (
            "mitigations: [{merge: mean, k: 2, rank: 1000000000}]",
            "'mitigations.0.rank': should be at most 65,536",
        ),
        (
            "mitigations: [{merge: dare, k: 2, seed: 99999999999999999999}]",
            "seed 99999999999999999999 is impossible",
        ),
        ("evaluation: {max_new_tokens: 100000000000}", "should be at most 10,000,000"),
        ("evaluation: {answer: 'regex:('}", "the pattern is broken"),
        ("seed: 99999999999999999999", "'seed': should be at most"),
        ("criteria: [{name: %s, suite: typical, limit: 0.1}]" % ("x" * 201), "200 characters"),
    ],
)
def test_other_numbers_have_a_ceiling(more, told):
    with pytest.raises(RecipeError, match=re.escape(told) if "characters" not in told else "."):
        parse_recipe(RECIPE + more)


def test_a_crossed_design_has_a_ceiling():
    with pytest.raises(RecipeError, match="a crossed design of 1,000,000 replicas"):
        parse_recipe(RECIPE.replace("epochs: 1,", "crossed: {init: 1000, order: 1000},"))


@pytest.mark.parametrize(
    "name",
    [
        "results.json",
        "Results.JSON",
        "outcomes",
        "training",
        "con",
        "LPT1.x",
        "a.",
        "..",
        ".a",
        "a/b",
        "x" * 101,
        "report.html",
        "votes",
        "",
    ],
)
def test_names_that_cannot_be_folders(name):
    for text in (RECIPE.replace("lora:", f'"{name}":'), RECIPE.replace("typical:", f'"{name}":')):
        with pytest.raises(RecipeError, match="names a folder"):
            parse_recipe(text)


def test_names_that_differ_in_capitals_alone():
    with pytest.raises(RecipeError, match="is 'LoRA' but for capitals"):
        parse_recipe(RECIPE.replace("{lora:", "{LoRA: {}, lora:"))


# -- one list of checks --------------------------------------------------------------------------

CHECKED = [
    ("rank: 2", "rank: 5000", "conditions.lora.rank: the widest layer"),
    ("rank: 2", "rank: 2, rows: 100", "conditions.lora.rows: there are 64 training rows, not 100"),
    ("rank: 2", "rank: 2, targets: [nothing]", "conditions.lora.targets"),
    (
        "replicas: 4",
        "replicas: 4\nmitigations: [{merge: mean, k: 8}]",
        "mitigation mean-k8: takes 8 replicas",
    ),
    (
        "replicas: 4",
        "replicas: 4\nmitigations: [{merge: della, k: 2, density: 0.1, epsilon: 0.5}]",
        "mitigation della",
    ),
    (
        "replicas: 4",
        "replicas: 4\nmitigations: [{merge: 'mergekit:nothing', k: 2}]",
        "unknown merge method",
    ),
    (
        "replicas: 4",
        "replicas: 4\nmitigations: [{merge: lawa, last: 50, k: 2}]",
        "fewer than the last 50",
    ),
    (
        "replicas: 4",
        "replicas: 4\ncriteria: [{name: x, suite: typical, category: nothing, limit: 0.1}]",
        "criterion 'x': no category 'nothing'",
    ),
    (
        "replicas: 4",
        "replicas: 4\ncriteria: [{name: x, suite: far, limit: 0.1}]",
        "criterion 'x': no prompts in 'far'",
    ),
    (
        "replicas: 4",
        "replicas: 4\ncriteria: [{name: x, suite: typical, observable: 'numeric:abc', limit: 0.1}]",
        "needs a number",
    ),
    (
        "replicas: 4",
        "replicas: 4\ncriteria: "
        "[{name: x, suite: typical, observable: 'embedding:nowhere', limit: 0.1}]",
        "no folder 'nowhere'",
    ),
    (
        "replicas: 4",
        "replicas: 4\nthresholds: {categories: {nothing: {critical: 0.5}}}",
        "no prompt has the category 'nothing'",
    ),
    (
        "replicas: 4",
        "replicas: 4\nevaluation: {token_scores: true, choices: ['']}",
        "makes no token",
    ),
    (
        "replicas: 4",
        "replicas: {max: 8, until: {disagreement.far: {half_width: 0.1}}}",
        "no suite has far prompts",
    ),
]


@pytest.mark.parametrize(("old", "new", "told"), CHECKED)
def test_what_would_fail_later_is_told_first(old, new, told, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "train", lambda *_, **__: pytest.fail("training began"))
    text = RECIPE.replace(old, new)
    if "lawa" in new:
        text = text.replace("rank: 2", "rank: 2, snapshots: {count: 50, save: true}")
    (tmp_path / "r.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "r.yaml")
    with pytest.raises((RecipeError, pipeline.RunError), match=re.escape(told)) as raised:
        check_all(recipe, load_base("embedded", "float32", "cpu"), read_prompts(recipe), "cpu")
    assert "\n" not in str(raised.value)


def test_check_and_run_ask_the_same_list(tmp_path, monkeypatch):
    asked = []
    (tmp_path / "r.yaml").write_text(RECIPE)

    def stop(*arguments, **_):
        asked.append(arguments)
        raise pipeline.RunError("the list")

    monkeypatch.setattr("toolkit.pipeline.checks.with_base.check_all", stop)
    monkeypatch.setattr("toolkit.pipeline.opening.check_all", stop)
    for command in (
        ["check"],
        ["run", "--out", str(tmp_path / "run")],
        ["train-replicas", "--out", str(tmp_path / "run")],
    ):
        result = CliRunner().invoke(cli.main, [command[0], str(tmp_path / "r.yaml"), *command[1:]])
        assert result.exit_code == cli.BAD_INPUT and result.stderr == "ftk: the list\n"
    assert len(asked) == 3 and not (tmp_path / "run").exists()


def test_the_home_of_nobody_is_a_file_that_is_not_there(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.replace("embedded:64", "~nosuchuser/rows.jsonl"))
    result = CliRunner().invoke(cli.main, ["check", str(tmp_path / "r.yaml")])
    assert (
        result.exit_code == cli.BAD_INPUT
        and "no such file or folder" in result.stderr
        and result.stderr.count("\n") == 1
    )


# -- the last handler ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("by\nzero"),
        RecursionError("too deep"),
        MemoryError(),
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"),
        KeyError("k"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_a_file(error, tmp_path, monkeypatch):
    @click.command()
    def surprise():
        raise error

    monkeypatch.setitem(cli.main.commands, "surprise", surprise)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = CliRunner().invoke(cli.main, ["surprise"])
    assert (
        result.exit_code == cli.FAILED
        and result.stderr.startswith("ftk: ")
        and result.stderr.count("\n") == 1
    )
    (path,) = tmp_path.glob(f"{last.PREFIX}*")
    assert (
        str(path) in result.stderr
        and type(error).__name__ in path.read_text()
        and "in surprise" in path.read_text()
    )


def test_a_command_line_that_is_wrong_is_one_line():
    for arguments in (
        ["nothing"],
        ["run"],
        ["run", "--nothing"],
        ["plan", "--guess", "7"],
        ["gate", "x", "--alpha", "a\nb"],
    ):
        result = CliRunner().invoke(cli.main, arguments)
        assert (
            result.exit_code == cli.BAD_INPUT
            and result.stderr.count("\n") == 1
            and result.stderr.startswith("ftk: ")
        ), result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_takes_any_text(encoding, tmp_path):
    rows = [
        {"replica": r, "prompt": f"p{i}", "output": str(r), "condition": "zażółć \u2603"}
        for r in range(3)
        for i in range(3)
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", "measure", "p.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.glob("*/report.html"))


# -- texts of a model that diverged --------------------------------------------------------------


@pytest.mark.parametrize("form", [json_form, normalised, number])
@pytest.mark.parametrize(
    "piece",
    ["[", "{", '{"a":', "[1,{", "!", "\u0301\u0323", "9", "1,", "[NaN,", "-", "1e", "1,111"],
)
def test_a_form_takes_linear_time(form, piece):
    start = time.process_time()
    form("a" + piece * (100_000 // len(piece)))
    assert time.process_time() - start < 5


def test_the_first_json_in_a_text_is_still_found():
    assert json_form('x [1, {"b": 2, "a": 1} y') == '{"a": 1, "b": 2}'
    assert json_form("{" * 500 + " [1]") == "[1]"


@pytest.mark.parametrize(
    "command",
    [
        ["measure"],
        ["gate", "--candidate", "loop.csv"],
        ["check"],
        ["merge", "--method", "mean", "--out", "m"],
        ["check-adapter"],
    ],
)
def test_a_loop_of_links_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    result = CliRunner().invoke(cli.main, [*command[:1], "loop.csv", *command[1:]])
    assert (
        result.exit_code == 2
        and len(result.output.splitlines()) == 1
        and "loop.csv" in result.output
    ), result.output


def test_a_text_that_is_too_long_is_no_warning_of_a_library():
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Keep()
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        tokenizer = load_base("embedded", "float32", "cpu").tokenizer
        assert len(tokenizer("call ben " * 500)["input_ids"]) > tokenizer.model_max_length
    finally:
        logger.removeHandler(handler)
    assert not records
