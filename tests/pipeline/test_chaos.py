"""Runs that are killed again and again, at moments that nobody chose, end in the same bits: `pytest
-m slow tests/pipeline/test_chaos.py`.

`kill -9` strikes the driver, one of its workers, or all of them; the command is started again at
once, while what the dead left behind may still be dying. Half of the moments are while files come
into being, half anywhere, the start of the processes included.
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
from helpers.tiny import tiny_base

import toolkit
from toolkit.data import read_rows
from toolkit.record.population import read_population, sha256_file

KILLS = 50
REPLICAS = 64
RECIPE = """
base: {base}
data:
  train: {train}
  suites: {{typical: {suite}}}
replicas: 64
stack: 4
conditions:
  lora: {{rank: 4, epochs: 3, batch_size: 4, lr: 1e-2, dropout: 0.1, snapshots: {{count: 2,
      start: 0.5, save: true}}, averages: [swa]}}
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
    for name, rows in {
        "train": read_rows("embedded")[:24],
        "suite": read_rows("embedded")[24:34],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    base = tiny_base(folder / "base")
    path = folder / "recipe.yaml"
    path.write_text(
        RECIPE.format(base=base, train=folder / "train.jsonl", suite=folder / "suite.jsonl")
    )
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
    command = [
        sys.executable,
        "-m",
        "toolkit.cli",
        "run",
        str(recipe),
        "--out",
        str(out),
        "--engine",
        engine,
        "--workers",
        "2",
    ]
    # the workers of Ray inherit it: they need not have ftk installed
    source = str(Path(toolkit.__file__).parent.parent)
    surroundings = {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=surroundings
    )


def family(driver: int) -> dict[int, str]:
    """The driver and all living processes that descend from it, with their command lines; Ray's
    have sessions of their own.
    """
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
    return sorted(
        pid for pid, command in family(driver).items() if pid != driver and mark in command
    )


def kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


class Victim:
    """A run that is started whenever it is not at work, until it is over."""

    def __init__(self, recipe: Path, out: Path, engine: str, rng: random.Random):
        self.recipe, self.out, self.engine, self.rng = recipe, out, engine, rng
        self.process: subprocess.Popen | None = None

    def at_work(self) -> bool:
        """Start it where it has ended; False where it is over."""
        fresh = self.process is None
        if self.process is not None and self.process.poll() is not None:
            said = self.process.communicate()[1]
            if self.process.returncode == 0:
                return False
            expected = {
                "local": "a worker process was killed",
                "ray": "finished replicas are kept",
            }[self.engine]
            assert (
                self.process.returncode == 1
                and expected in said.splitlines()[-1]
                and "Traceback" not in said.splitlines()[-1]
            ), said
            fresh = True
        if fresh:
            self.process = start(self.recipe, self.out, self.engine)
        self.fresh = fresh
        return True

    def strike(self) -> str | None:
        """Wait for a random moment and kill a part of it; what was killed, or None where it had
        ended before.
        """
        assert self.process is not None
        victim = self.rng.choice(["driver", "worker", "everything"])
        moment, later = (
            self.rng.choice(["files", "any time"]),
            self.rng.choice([0.0, self.rng.uniform(0, 0.3)]),
        )
        # a start takes some ten seconds
        wait = self.rng.uniform(0.1, 15.0) if self.fresh else self.rng.uniform(0.0, 2.0)
        before, more = files(self.out), self.rng.randrange(1, 15)
        until = time.monotonic() + (wait if moment == "any time" else 300)
        while (
            time.monotonic() < until
            and self.process.poll() is None
            and (moment == "any time" or files(self.out) < before + more)
        ):
            time.sleep(0.01)
        time.sleep(later)
        if self.process.poll() is not None:
            return None
        if victim == "worker" and (found := workers(self.process.pid, self.engine)):
            kill([self.rng.choice(found)])  # a pool that has lost a worker gives up; Ray goes on
            return "worker"
        kill([self.process.pid] if victim == "driver" else [*family(self.process.pid)])
        self.process.communicate(timeout=120)
        self.process = None
        return "driver" if victim == "driver" else "everything"


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
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(
    recipe, undisturbed, tmp_path, engine
):
    if engine == "ray":
        pytest.importorskip("ray", reason="the extra ftk[ray] is not installed")
    rng, struck = random.Random(f"chaos {engine}"), []
    while (
        len(struck) < KILLS
    ):  # a fast machine is through with one run before it was struck so often
        before, out = len(struck), tmp_path / f"run-{len(struck)}"
        victim = Victim(recipe, out, engine, rng)
        while len(struck) < KILLS and victim.at_work():
            if what := victim.strike():
                struck.append(what)
                print(
                    f"kill {len(struck)}: {what}, {len(read_population(out / 'lora'))} "
                    f"replicas, {files(out)} files",
                    flush=True,
                )
        if victim.process is not None:  # a worker was the last
            victim.process.communicate(timeout=1200)
        process = start(recipe, out, engine)
        _, said = process.communicate(timeout=1200)
        assert process.returncode == 0, said
        assert len(struck) > before, "a run was over before anything was killed"
        same(out, undisturbed)
    assert {"driver", "worker", "everything"} <= set(struck) and len(struck) == KILLS, struck


def same(out: Path, undisturbed: Path) -> None:
    assert contents(out) == contents(undisturbed)
    population = read_population(out / "lora")
    assert sorted(population) == list(range(REPLICAS)) and {
        one.status for one in population.values()
    } == {"ok"}
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    conditions = [
        json.loads((run / "results.json").read_text())["conditions"] for run in (out, undisturbed)
    ]
    for procedure in (
        p for condition in conditions for one in condition for p in one["procedures"]
    ):
        procedure["price"].pop("seconds")
    assert conditions[0] == conditions[1]
