"""The same run on a Ray cluster of two nodes, with a worker killed in the middle: the same bits as
on the local engine.
"""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers.units import always_die, refuse, report_and_die_once

from toolkit import pipeline
from toolkit.data import read_rows
from toolkit.pipeline.engines import LocalEngine, RayEngine, WorkerDied
from toolkit.pipeline.engines.ray import RayMissing
from toolkit.recipe import parse_recipe
from toolkit.record.population import read_population, sha256_file

ray = pytest.importorskip("ray", reason="the extra ftk[ray] is not installed")

RECIPE = """
base: embedded
data:
  train: {train}
  suites: {{typical: {typical}}}
replicas: 8
stack: 2
conditions:
  lora: {{epochs: 2, batch_size: 8, lr: 1e-2, dropout: 0.1, snapshots: {{count: 2, start: 0.5}},
      averages: [swa]}}
mitigations:
  - {{merge: mean, k: 2}}
  - {{ensemble: probabilities, k: 2}}
evaluation: {{max_new_tokens: 8, answer: embedded}}
"""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, as separate processes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    # the functions below are for the workers to import
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parents[1])}}
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error", runtime_env=here)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows in {
        "train": read_rows("embedded")[:24],
        "typical": read_rows("embedded")[24:30],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    return parse_recipe(
        RECIPE.format(train=folder / "train.jsonl", typical=folder / "typical.jsonl"), "test.yaml"
    )


def test_a_unit_whose_worker_is_killed_is_started_again(cluster, tmp_path):
    shares = []
    with RayEngine() as engine:
        found = dict(
            engine.run(report_and_die_once, [(str(tmp_path), n) for n in range(4)], shares.append)
        )
        assert {unit[1]: result for unit, result in found.items()} == {0: 0, 1: 10, 2: 20, 3: 30}
        assert len(list(tmp_path.glob("1-*"))) == 2  # killed once, run twice; the others once
        assert all(len(list(tmp_path.glob(f"{n}-*"))) == 1 for n in (0, 2, 3))
        assert shares[-1] == 1.0 and len(engine.machines) == 1
    assert ray.is_initialized()  # a cluster that was there before is not shut down


def test_errors_of_a_unit_arrive_as_they_were_raised(cluster):
    with RayEngine() as engine, pytest.raises(RayMissing, match="^one clear line$"):
        list(engine.run(refuse, [0]))


@pytest.mark.slow
def test_a_unit_that_always_dies_ends_in_one_line(cluster, tmp_path):
    with (
        RayEngine() as engine,
        pytest.raises(WorkerDied, match="Ray gave up on a unit of work") as error,
    ):
        list(engine.run(always_die, [str(tmp_path)]))
    assert "\n" not in str(error.value) and len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
def test_a_ray_that_does_not_start_is_told_in_one_line(cluster, monkeypatch, address):
    def init(**_):
        # Ray's, when a part of it dies
        raise Exception("The current node timed out during startup.\nThis could happen")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(WorkerDied, match="did not start.*timed out during startup") as error:
        RayEngine()
    assert (
        len(str(error.value).splitlines()) == 1
        and "finished replicas are kept" in str(error.value)
        and address in str(error.value)
    )


def test_a_run_with_a_killed_worker_has_the_bits_of_the_local_engine(cluster, recipe, tmp_path):
    pipeline.run(recipe, tmp_path / "local", workers=1)

    def kill_one():
        """The first Ray worker that trains, as soon as one replica is finished."""
        while not list(tmp_path.glob("ray/lora/replicas/*/replica.json")):
            time.sleep(0.01)
        for process in Path("/proc").glob("[0-9]*"):
            if b"ray::_run_unit" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                killed.append(process.name)
                return

    killed: list[str] = []
    killer = threading.Thread(target=kill_one)
    killer.start()
    pipeline.run(recipe, tmp_path / "ray", engine="ray")
    killer.join()
    assert killed

    def weights(run):
        return {
            str(path.relative_to(run)): sha256_file(path)
            for path in sorted(run.rglob("*.safetensors"))
        }

    assert weights(tmp_path / "ray") == weights(tmp_path / "local")
    assert len(read_population(tmp_path / "ray" / "lora")) == 8
    assert not list((tmp_path / "ray").rglob("*.tmp"))
    first, second = (
        json.loads((tmp_path / run / "results.json").read_text())["conditions"]
        for run in ("ray", "local")
    )
    for condition in (*first, *second):
        for procedure in condition["procedures"]:
            procedure["price"].pop("seconds")
    assert first == second


def test_the_local_engine_gives_the_same_results_and_order_does_not_matter(cluster, tmp_path):
    units = [(str(tmp_path), n) for n in (0, 2, 3)]
    with LocalEngine("cpu", 1) as local, RayEngine() as engine:
        assert dict(local.run(report_and_die_once, units)) == dict(
            engine.run(report_and_die_once, units)
        )
