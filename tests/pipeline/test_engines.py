"""Units of work: which stack holds which replica, and how much of the work is done."""

import os
import threading
import time

import pytest

from toolkit.pipeline.engines.local import LocalEngine, Shares
from toolkit.recipe.schedule import stacks_for


def test_stacks_are_whole_and_know_whom_they_hold():
    assert stacks_for([9, 0, 3, 8, 3], 4) == {0: (0, 3), 2: (8, 9)}
    assert stacks_for([], 4) == {}


def test_shares_add_up_and_end_at_exactly_one():
    shares = Shares(range(2, 9))
    for number, share in [
        (2, 0.1),
        (2, 0.3),
        (2, 0.2),
        (3, 0.7),
        (1, 1.0),
        (9, 1.0),
    ]:  # late; of an earlier list; of none
        shares.record(number, share)
    assert abs(shares.mean - (0.3 + 0.7) / 7) < 1e-12
    for number in shares.numbers:
        shares.record(number, 1.0)
        shares.record(number, 0.9)
    assert shares.mean == 1.0


def tells_late(seconds: float, progress) -> None:
    threading.Timer(0.3, progress, [1.0]).start()
    time.sleep(seconds)


def test_a_late_word_of_one_list_of_units_is_none_of_the_next():
    with LocalEngine(workers=1) as engine:
        list(engine.run(tells_late, [0.0]))
        told: list[float] = []
        list(engine.run(lasts, [1.0], told.append))
    assert len(told) > 2 and set(told[:-1]) == {0.0} and told[-1] == 1.0


def lasts(seconds: float, progress) -> None:
    time.sleep(seconds)


def environment_of_worker(_: int, progress) -> dict[str, str]:
    return dict(os.environ)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_workers_need_in_their_environment_is_not_left_in_the_callers(device, monkeypatch):
    """A program that the caller starts later, and torch in the caller, must find what the user has
    set.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = dict(os.environ)
    with pytest.raises(KeyboardInterrupt), LocalEngine(device, 1) as engine:
        assert os.environ["PYTHONSAFEPATH"] == "1" and (
            device == "cuda" or os.environ["OMP_NUM_THREADS"] == "1"
        )
        raise KeyboardInterrupt
    assert dict(os.environ) == before
    with LocalEngine("cpu", 1) as engine:
        [(_, found)] = engine.run(environment_of_worker, [0])
    assert found["PYTHONSAFEPATH"] == "1" and dict(os.environ) == before
