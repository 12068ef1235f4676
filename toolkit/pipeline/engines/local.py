"""One worker process per core on a CPU, one at a time on a GPU. No scheduler: the standard
library's pool.

Measured on CPU: one process per core with one thread each is far faster than one process with many
threads, and it takes the number of threads out of the numerics.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from toolkit import environment
from toolkit.errors import FAILED, FtkError
from toolkit.text import escape

Unit = TypeVar("Unit")
Done = TypeVar("Done")
Progress = Callable[[float], None]
"""called with the finished share of the unit at work"""

_ticks: Any = None  # a worker's queue to the parent


class WorkerDied(FtkError, RuntimeError):
    """A worker process was killed, most often for want of memory."""

    exit_code = FAILED


class Shares:
    """Finished shares of units, and their mean without adding all of them up again for each of
    thousands of units.

    numbers: those of the units. An engine never gives a number twice: a late tick of an earlier
    list must not count for this one.
    """

    def __init__(self, numbers: range):
        self.numbers = numbers
        self._shares, self._begun, self._finished = dict.fromkeys(numbers, 0.0), 0.0, 0

    def record(self, number: int, share: float) -> None:
        """Take a unit's finished share; one below what is known is late, and ignored."""
        if number not in self._shares or share <= self._shares[number]:  # a late tick
            return
        self._begun += (share if share < 1 else 0.0) - self._shares[number]
        self._finished += share >= 1
        self._shares[number] = min(share, 1.0)

    @property
    def mean(self) -> float:
        """The finished share of all units together, 0 to 1."""
        units = len(self._shares)
        return 1.0 if self._finished == units else (self._finished + self._begun) / units


def _start_worker(ticks: Any, device: str) -> None:
    global _ticks
    _ticks = ticks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    escape.in_logs()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    environment.make_deterministic(device)


def _end_with_parent() -> None:
    """A parent that was killed tells nobody: without this its workers would train on, unseen,
    beside those of the resumed run.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _run_unit(function: Callable[..., Any], number: int, unit: Any) -> Any:
    return function(unit, lambda share: _ticks.put((number, share)))


class LocalEngine:
    """Worker processes of this machine, alive for the length of a `with` block, so that each loads
    the base once.

    Every worker is started the same way, also when there is one: where a unit runs must not change
    a bit.
    """

    def __init__(self, device: str = "cpu", workers: int | None = None):
        # open until the end: a pool starts its workers when it needs them
        self._variables = ExitStack()
        self._variables.enter_context(environment.of_workers(device))
        self.workers = workers or (environment.cores() if device == "cpu" else 1)
        self.machines = {environment.cpu_model()}
        context = multiprocessing.get_context("spawn")
        self._ticks = context.Queue()
        self._given = 0  # units, in all lists so far
        self._pool = ProcessPoolExecutor(
            self.workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(self._ticks, device),
        )

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # interrupted: the pool has no public way to stop a unit that runs
            for worker in list((self._pool._processes or {}).values()):
                worker.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._variables.close()

    def run(
        self,
        function: Callable[[Unit, Progress], Done],
        units: Sequence[Unit],
        on_progress: Callable[[float], None] | None = None,
    ) -> Iterator[tuple[Unit, Done]]:
        """Yield (unit, result) as units finish, in no fixed order. `on_progress` gets the finished
        share of all units, 0 to 1.

        An exception in a unit is raised here; what other units finished is on disk. Raises
        WorkerDied when a process was killed.
        """
        shares = Shares(range(self._given, self._given + len(units)))
        self._given += len(units)
        # waiting for a set of futures would look at all of them every time
        finished: SimpleQueue[Future] = SimpleQueue()
        given: dict[Future, tuple[int, Unit]] = {}
        try:
            for number, unit in zip(shares.numbers, units, strict=True):
                future = self._pool.submit(_run_unit, function, number, unit)
                given[future] = number, unit
                future.add_done_callback(finished.put)
            waiting = len(units)
            while waiting:
                for number, share in _drain(self._ticks):
                    shares.record(number, share)
                for future in _drain(finished, first_within=0.2):
                    waiting -= 1
                    number, unit = given[future]
                    shares.record(number, 1.0)
                    yield unit, future.result()
                if on_progress:
                    on_progress(shares.mean)
        except BrokenProcessPool:
            raise WorkerDied(
                "a worker process was killed, most often for want of memory: set a "
                "smaller `stack` or fewer --workers and run again; "
                "finished replicas are kept"
            ) from None


def _drain(queue: Any, first_within: float = 0.0) -> Iterator[Any]:
    """What is in a queue now, after waiting so many seconds for it."""
    try:
        yield queue.get(timeout=first_within)
        while True:
            yield queue.get_nowait()
    except Empty:
        return
