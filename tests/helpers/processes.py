"""Processes that need not load the libraries: a server that has loaded them forks each one."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

context_of = multiprocessing.get_context
# elsewhere the libraries do not bear a fork
loaded = context_of("forkserver") if sys.platform == "linux" else None
if loaded is not None:
    loaded.set_forkserver_preload(["toolkit.pipeline"])


def context(method: str | None = None) -> BaseContext:
    """What `multiprocessing.get_context` gives, with forks of the server in place of spawned
    processes.
    """
    return loaded if method == "spawn" and loaded is not None else context_of(method)


def _alone(function: Callable, arguments: tuple, options: dict) -> None:
    os.setsid()  # a group of its own, which a test can kill as a whole
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if loaded is not None:
        multiprocessing.get_context = lambda method=None: context_of(
            "fork" if method == "spawn" else method
        )
    function(*arguments, **options)


def started(function: Callable, *arguments: object, **options: object) -> BaseProcess:
    """A process in a session of its own that calls the function; its own workers are forks of
    it.
    """
    process = (loaded or context_of("spawn")).Process(
        target=_alone, args=(function, arguments, options)
    )
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    """Kill a process and its workers, which hold what it had locked until they are gone."""
    assert process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    ended(process.pid)


def ended(session: int) -> None:
    """Wait until no process of a session runs: one that is listed as ended holds nothing."""
    deadline = time.monotonic() + 60
    listing = ["ps", "-o", "stat=", "-s", str(session)]
    while not all(
        state.startswith("Z")
        for state in subprocess.run(listing, capture_output=True, text=True).stdout.split()
    ):
        assert time.monotonic() < deadline, "something of it runs on"
        time.sleep(0.05)


def ran(code: str, *arguments: object) -> int:
    """The exit code of a program with these arguments."""
    process = started(_program, code, ["-c", *map(str, arguments)])
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _program(code: str, argv: list[str]) -> None:
    sys.argv = argv
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
