"""Broken and hostile inputs: an exit code from 0 to 3, one line of error, no traceback, no hang, no
markup that is alive.
"""

import os
import shutil

import pytest
from helpers import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INPUTS = 200


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fuzz.template(tmp_path_factory.mktemp("fuzz") / "whole")


@pytest.fixture(scope="module")
def server():
    process = fuzz.Server()
    yield process
    process.close()


KINDS = [name for name, (_, often) in fuzz.KINDS.items() for _ in range(often)]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("inputs")


@settings(
    derandomize=True,
    max_examples=INPUTS,
    deadline=None,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(kind=st.sampled_from(KINDS), rng=st.randoms(use_true_random=True))
def test_what_is_broken_is_one_line(kind, rng, whole, server, scratch):
    folder = scratch / "input"
    shutil.rmtree(folder, ignore_errors=True)
    arguments = fuzz.made(kind, folder, whole, rng)
    answer = server.run(folder, arguments)
    assert not answer.faults, (
        f"ftk {' '.join(arguments)}: {', '.join(answer.faults)}: {answer.stderr[-2000:]}"
    )


@pytest.mark.slow
def test_two_thousand_inputs():
    found = fuzz.campaign(2000, seed=0, servers=os.cpu_count() or 2)
    assert found["inputs"] == 2000 and found["faults"] == []


def test_an_input_depends_on_the_seed_alone(tmp_path, whole):
    import random

    made = [
        fuzz.made("predictions", tmp_path / name, whole, random.Random("0-1"))
        for name in ("a", "b")
    ]
    assert made[0] == made[1]
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("a", "b")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("code", "stderr", "fault"),
    [
        (0, "", ()),
        (2, "ftk: no\n", ()),
        (2, "ftk: no\nftk: no\n", ("2 lines of error",)),
        (-9, "", ("exit code -9",)),
        (1, "Traceback (most\n", ("traceback",)),
    ],
)
def test_a_fault_is_seen(code, stderr, fault, tmp_path):
    (tmp_path / ".stderr").write_text(stderr)
    assert fuzz._judged(tmp_path, {"code": code, "seconds": 1.0, "bytes": 0}).faults == fault
