"""No option is dropped: in every mode of a command each is refused in one line, or changes what
comes out.
"""

import json
from pathlib import Path

import pytest
from helpers.measured import answers, folder_of, ftk, one_line, rows, write
from helpers.outcomes_of import World

from toolkit import cli
from toolkit.record.folders import RUN, claim

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

SOURCES = {
    "predictions": ["one.jsonl"],
    "predictions of several conditions": ["two.jsonl"],
    "a table of runs": ["runs.csv"],
    "a table of runs of several conditions": ["runs2.csv"],
    "a run": ["run"],
}
OF_MEASURE = [
    ["--same", "normalised"],
    ["--same", "exact"],
    ["--criteria", "criteria.yaml"],
    ["--baseline", "b"],
    ["--baseline", "nobody"],
    ["--paired"],
    ["--factors", "factors.csv"],
    ["--base", "b"],
    ["--failed", "seed-1"],
    ["--column", "output=other"],
    ["--replica-columns", "x*"],
    ["--force"],
    ["--out", "elsewhere"],
]
USUAL = {"--same exact", "--force"}
"""what changes nothing where it is used: what is done anyway, and what may be written over"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "criteria.yaml").write_text("level: 0.9\n")
    runs = [f"seed-{r}" for r in range(16)]
    levels = "".join(f"{name},{r // 2}\n" for r, name in enumerate(runs))
    (folder / "factors.csv").write_text("replica,init\n" + levels)
    cells = [
        c | {"output": c["output"].replace("a", "aA"[p % 7 == 0]), "other": c["reference"]}
        for p, c in enumerate(rows(answers(replicas=16)))
    ]
    write(folder / "one.jsonl", cells)
    more = [c | {"other": c["reference"]} for c in rows(answers(1, replicas=16), "b")]
    write(folder / "two.jsonl", [*({**c, "condition": "a"} for c in cells), *more])
    numbers = [(name, r % 5 / 10 + r / 100, r % 3) for r, name in enumerate(runs)]
    table = "".join(f"{n},{x},{y}\n" for n, x, y in numbers)
    (folder / "runs.csv").write_text("run,f1,em\n" + table)
    both = "".join(f"{c},{n},{x + (c == 'b')},{y}\n" for c in "ab" for n, x, y in numbers)
    (folder / "runs2.csv").write_text("condition,run,f1,em\n" + both)
    claim(folder / "run", RUN, {"name": "recipe"})
    folder_of(World(16, per_category=5, seed=3), folder / "run")
    return folder


@pytest.mark.parametrize("mode", SOURCES)
def test_no_option_of_measure_is_dropped(mode, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(sources)

    def outcome(*more: str) -> tuple:
        to = () if "--out" in more or mode == "a run" else ("--out", str(tmp_path / "out"))
        result = ftk("measure", *SOURCES[mode], *to, *more, "--json")
        if result.exit_code == cli.BAD_INPUT:
            one_line(result)
            return (result.exit_code,)
        assert result.exit_code == cli.DONE, result.output
        found = json.loads(result.stdout)
        for measured in (found.get("results", {}), found.get("metrics", {})):
            measured.pop("about", None)
            measured.pop("command", None)
        return result.exit_code, found

    if mode == "a run":  # a run that was really made has an environment, which is of no matter here
        monkeypatch.setattr("toolkit.measurement.run.about_run", lambda *_: None)
    bare = outcome()
    dropped = [" ".join(option) for option in OF_MEASURE if outcome(*option) == bare]
    assert set(dropped) <= USUAL - ({"--same exact", "--force"} if mode == "a run" else set())


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["plan", "run", "--prompts", "500"], "--prompts"),
        (["plan", "run", "--replicas", "16"], "--replicas"),
        (["evaluate", "run", "--answer", "first-line"], "--answer"),
        (["evaluate", "run", "--max-new-tokens", "9"], "--max-new-tokens"),
        (["evaluate", "run", "-k", "2"], "--ensemble"),
        (["merge", "run", "--method", "mean", "--score", "accuracy"], "--score"),
        (["merge", "run", "--method", "mean", "--strict"], "--guard"),
        (["merge", "--config", "runs.csv", "--base", "embedded"], "--base"),
        (["merge", "--config", "runs.csv", "--score", "logprob"], "--score"),
        (["merge", "--config", "runs.csv", "--buffer", "8"], "--buffer"),
        (["merge", "--config", "runs.csv", "--all", "--strict"], "--all, --strict"),
        (["merge", "--config", "runs.csv", "--prompts", "x"], "--prompts"),
        (["merge", "run", "--config", "runs.csv"], "sources"),
    ],
)
def test_what_would_have_no_effect_is_refused(command, told, sources, monkeypatch):
    monkeypatch.chdir(sources)
    one_line(ftk(*command), told)


@pytest.mark.parametrize("source", [["run"], ["--guess", "0.1"]])
@pytest.mark.parametrize(
    "option", [["--k", "4"], ["--half-width", "0.03"], ["--ratio", "0.6"], ["--power", "0.9"]]
)
def test_no_option_of_plan_is_dropped(source, option, sources, monkeypatch):
    monkeypatch.chdir(sources)
    bare = ftk("plan", *source, "--json")
    assert bare.exit_code == cli.DONE, bare.output
    found = json.loads(ftk("plan", *source, *option, "--json").stdout)
    assert found["conditions"] != json.loads(bare.stdout)["conditions"]
