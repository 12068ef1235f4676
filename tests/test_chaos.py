"""A run that is killed again and again, at moments that nobody chose, ends in the same bits: `pytest -m slow tests/test_chaos.py`.

`kill -9` strikes the driver, one of its workers, or all of them; the command is started again at once, while what the dead left behind may
still be dying. Half of the moments are while files come into being, half anywhere, the start of the processes included.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import tiny_base

import toolkit
from toolkit.data import read_rows
from toolkit.population import read_population, sha256_file

KILLS = {"local": 50, "ray": 50}
REPLICAS = 64
RECIPE = """
base: {base}
data:
  train: {train}
  suites: {{typical: {suite}}}
replicas: 64
stack: 4
conditions:
  lora: {{rank: 4, epochs: 3, batch_size: 4, lr: 1e-2, dropout: 0.1, snapshots: {{count: 2, start: 0.5, save: true}}, averages: [swa]}}
mitigations:
  - {{merge: mean, k: 2}}
  - {{merge: swa, k: 4}}
  - {{ensemble: probabilities, k: 2}}
  - {{ensemble: vote, k: 4}}
evaluation: {{max_new_tokens: 6, token_scores: true}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    for name, rows in {"train": read_rows("embedded")[:24], "suite": read_rows("embedded")[24:34]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    base = tiny_base(folder / "base")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(base=base, train=folder / "train.jsonl", suite=folder / "suite.jsonl"))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(recipe, folder, "local")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return folder


def start(recipe: Path, out: Path, engine: str) -> subprocess.Popen:
    """`ftk run`."""
    command = [sys.executable, "-m", "toolkit.cli", "run", str(recipe), "--out", str(out), "--engine", engine, "--workers", "2"]
    source = str(Path(toolkit.__file__).parent.parent)  # the workers of Ray inherit it: they need not have ftk installed
    surroundings = {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=surroundings)


def family(driver: int) -> dict[int, str]:
    """The driver and all living processes that descend from it, with their command lines; Ray's have sessions of their own."""
    parents, commands = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(process.name)] = int(parent)
                commands[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended meanwhile
            continue
    found, new = set(), {driver} & set(parents)
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new} - found
    return {pid: commands[pid] for pid in found}


def workers(driver: int, engine: str) -> list[int]:
    mark = "spawn_main" if engine == "local" else "ray::"
    return sorted(pid for pid, command in family(driver).items() if pid != driver and mark in command)


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def strike(recipe: Path, out: Path, engine: str, rng: random.Random, usual_start: float) -> str:
    """Start the run, kill a part of it at a random moment; what was killed, or "nothing" where the run was over before."""
    victim = rng.choice(["driver", "worker", "everything"])
    moment, later = rng.choice(["files", "any time"]), rng.choice([0.0, rng.uniform(0, 0.3)])
    process = start(recipe, out, engine)
    before, more = files(out), rng.randrange(1, 30)
    until = time.monotonic() + (rng.uniform(0.1, 1.5) * usual_start if moment == "any time" else 300)
    while time.monotonic() < until and process.poll() is None and (moment == "any time" or files(out) < before + more):
        time.sleep(0.01)
    time.sleep(later)
    if process.poll() is not None:
        assert process.returncode == 0, process.communicate()[1]
        return "nothing"
    if victim == "worker" and (found := workers(process.pid, engine)):
        kill([rng.choice(found)])
    else:
        kill([process.pid] if victim == "driver" else [*family(process.pid)])
        process.communicate(timeout=120)
        return "driver" if victim == "driver" else "everything"
    _, said = process.communicate(timeout=300)
    if (
        engine == "local" and process.returncode != 0
    ):  # a pool that has lost a worker says so in one line; at the very end it may not notice
        assert process.returncode == 1 and "a worker process was killed" in said.splitlines()[-1] and "Traceback" not in said, said
    elif process.returncode != 0:  # Ray starts the task again, unless the dead worker held its own bookkeeping
        assert process.returncode == 1 and "finished replicas are kept" in said.splitlines()[-1], said
    return "worker"


def contents(run: Path) -> dict[str, object]:
    """Everything that a run is: weights by hash, answers row by row, everything else by name."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            found[name] = sha256_file(path)
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pylist()
        elif path.is_file():
            found[name] = "there"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", KILLS)
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(recipe, undisturbed, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="the extra ftk[ray] is not installed")
    rng, out, struck = random.Random(f"chaos {engine}"), tmp_path / "run", []
    usual_start = 10.0
    while len(struck) < KILLS[engine] and (what := strike(recipe, out, engine, rng, usual_start)) != "nothing":
        struck.append(what)
        print(f"kill {len(struck)}: {what}, {len(read_population(out / 'lora'))} replicas, {files(out)} files", flush=True)
    process = start(recipe, out, engine)
    _, said = process.communicate(timeout=1200)
    assert process.returncode == 0, said
    assert {"driver", "worker", "everything"} <= set(struck) and len(struck) == KILLS[engine], struck
    assert contents(out) == contents(undisturbed)
    population = read_population(out / "lora")
    assert sorted(population) == list(range(REPLICAS)) and {one.status for one in population.values()} == {"ok"}
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    conditions = [json.loads((run / "results.json").read_text())["conditions"] for run in (out, undisturbed)]
    for procedure in (p for condition in conditions for one in condition for p in one["procedures"]):
        procedure["price"].pop("seconds")
    assert conditions[0] == conditions[1]
