"""The workloads for a GPU, run small on a CPU: the same code, gates included. `pytest -m slow
tests/project/test_benchmarks.py`.
"""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit import environment
from toolkit.recipe import schedule


@pytest.fixture
def train(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("train")
    small = module.Shape(32, 2, 48, 1100, 4, 2, 24, rank=4, kv_heads=2)
    monkeypatch.setattr(
        module,
        "SHAPES",
        {
            "G-A": small,
            "G-B": replace(small, rows=1, tokens=16),
            "G-C": replace(small, completion=0.25),
        },
    )
    monkeypatch.setattr(schedule, "CPU_LOGITS", 20_000)  # as with a large vocabulary
    yield module
    sys.modules.pop("train")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["G-A", "G-B", "G-C"])
def test_gates_hold_and_every_side_runs(train, name):
    environment.make_deterministic("cpu")
    found = train.measure(name, 1, False, "cpu")
    assert found["tokens_of_a_piece"] > 0 and not found["did_not_run"]
    assert all(one["bits"] and one["isolated"] for one in found["gates"].values())
    assert found["ratio_to_faster_loop"] > 0


@pytest.mark.slow
def test_the_campaign_survives_its_kills(train, tmp_path):
    found = train.campaign(tmp_path, replicas=128, kills=2)
    assert found["verified"] and found["kills"] == 2
