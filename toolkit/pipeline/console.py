"""How work speaks to the outside, without a terminal: a leaf that imports nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Console:
    """How a stage speaks to the outside: notes, and progress of counted work. The default is
    silent.

    note: takes a line. progress: takes a title and a count, and returns what takes the finished
    share, 0 to 1. seconds: wall time by stage, filled while work is done.

    Example:
        >>> import logging, toolkit
        >>> console = toolkit.Console(note=logging.getLogger("ftk").info)
        >>> results = toolkit.run("recipe.yaml", "runs/first", console=console)
        >>> "measure" in console.seconds
        True
    """

    note: Callable[[str], None] = lambda text: None
    progress: Callable[[str, int], Callable[[float], None]] = lambda title, count: (
        lambda share: None
    )
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of a block to that of the stage `name`."""
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
