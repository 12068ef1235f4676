"""One Ray task for each unit, on however many machines share the run folder. Ray is an extra: `pip
install 'ftk[ray]'`.

A task that a dying worker or machine took along is started again. That it may then run twice does
no harm: what a unit writes depends on nothing but the unit, and finished files are renamed into
place, so whoever comes second writes the same bytes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from toolkit import environment
from toolkit.errors import FtkError
from toolkit.pipeline.engines.local import Progress, Shares, WorkerDied

Unit = TypeVar("Unit")
Done = TypeVar("Done")

RETRIES = 5
"""of a unit whose worker or machine died; a unit that is too large for every machine should not run
for ever
"""
GO_ON = "finished replicas are kept, run again to go on"


class RayMissing(FtkError, RuntimeError):
    """Ray is asked for and not installed."""


class RayEngine:
    """Ray tasks for the length of a `with` block, on the cluster that RAY_ADDRESS names or else on
    this machine alone.

    Every task claims one core, or one GPU when the device is `cuda`. All machines see the run
    folder, the data and a local base under the same paths. `machines` collects the processors that
    did the work: different ones may round differently. Raises RayMissing, and WorkerDied when Ray
    does not start.
    """

    def __init__(self, device: str = "cpu", workers: int | None = None):
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise RayMissing(
                "--engine ray needs Ray, which is not installed: pip install 'ftk[ray]'"
            ) from None
        self._ray, self._device = ray, device
        self._ours = not ray.is_initialized()
        if self._ours:
            address = os.environ.get("RAY_ADDRESS")
            alone = (
                {}
                if address
                else {"num_cpus": workers or environment.cores(), "include_dashboard": False}
            )
            try:
                with chdir(
                    os.sep
                    # Ray's workers import modules from where it is started: not from the user's
                    # folder
                ):
                    ray.init(log_to_driver=False, logging_level=logging.ERROR, **alone)
            except (
                Exception
            ) as error:  # Ray raises no narrower one when a part of it dies while it starts
                where = f" at RAY_ADDRESS={address}" if address else ""
                raise WorkerDied(
                    f"Ray did not start{where} ({_first_line(error)}); {GO_ON}"
                ) from None
        # ray gives the methods of a handle the types of plain functions
        self._ticks: Any = ray.remote(num_cpus=0)(_Ticks).remote()
        self._given = 0  # units, in all lists so far
        self.machines: set[str] = set()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ray.shutdown()

    def run(
        self,
        function: Callable[[Unit, Progress], Done],
        units: Sequence[Unit],
        on_progress: Callable[[float], None] | None = None,
    ) -> Iterator[tuple[Unit, Done]]:
        """Yield (unit, result) as units finish, in no fixed order. `on_progress` gets the finished
        share of all units, 0 to 1.

        An exception in a unit is raised here; what other units finished is on disk. Raises
        WorkerDied when a unit took its worker along more than RETRIES times.
        """
        ray = self._ray
        claim = {"num_cpus": 1, "num_gpus": 0 if self._device == "cpu" else 1}
        task = ray.remote(
            max_retries=RETRIES,
            runtime_env={"env_vars": environment.variables_of_libraries(self._device)},
            **claim,
        )(_run_unit)
        shares = Shares(range(self._given, self._given + len(units)))
        self._given += len(units)
        numbered = zip(shares.numbers, units, strict=True)
        given = {
            task.remote(function, n, unit, self._ticks, self._device, str(Path.cwd())): (n, unit)
            for n, unit in numbered
        }
        waiting = list(given)
        try:
            while waiting:
                finished, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
                for number, share in ray.get(self._ticks.drain.remote()):
                    shares.record(number, share)
                for reference in sorted(finished, key=lambda done: given[done][0]):
                    number, unit = given[reference]
                    result, machine = ray.get(reference)
                    self.machines.add(machine)
                    shares.record(number, 1.0)
                    yield unit, result
                if on_progress:
                    on_progress(shares.mean)
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            if not isinstance(cause, ray.exceptions.RayError):
                raise cause from None
            raise WorkerDied(
                f"Ray gave up on a unit of work ({_first_line(cause)}); {GO_ON}"
            ) from None
        finally:
            for reference in waiting:  # interrupted, or another unit failed
                ray.cancel(reference, force=True)


def _first_line(error: BaseException) -> str:
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )


class _Ticks:
    """An actor that collects the finished shares of units until the driver asks for them."""

    def __init__(self) -> None:
        self._shares: dict[int, float] = {}

    def record(self, number: int, share: float) -> None:
        self._shares[number] = share

    def drain(self) -> list[tuple[int, float]]:
        shares, self._shares = list(self._shares.items()), {}
        return shares


def _run_unit(
    function: Callable[..., Any], number: int, unit: Any, ticks: Any, device: str, folder: str
) -> tuple[Any, str]:
    os.chdir(folder)  # paths in a unit may be relative to where ftk was started
    _prepare(device)
    result = function(unit, lambda share: ticks.record.remote(number, share))
    return result, environment.cpu_model()


@cache
def _prepare(device: str) -> None:
    """Once for every worker process."""
    environment.make_deterministic(device)
