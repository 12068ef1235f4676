"""Resume an interrupted stack: weights, moments, and the history of the steps so far.

Nothing else is needed for the same bits: batches and dropout masks are functions of (seed, step).
"""

from __future__ import annotations

import time
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from toolkit.record.files import replacing

SECONDS = 60.0
"""between two checkpoints; what takes less is cheaper to start again"""


class Checkpoint:
    """One file of one stack. `mark` names everything that decides its bits; a file with another
    mark is ignored.
    """

    def __init__(self, path: Path, mark: str, seconds: float = SECONDS):
        self.path, self.mark, self.seconds = path, mark, seconds
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None if there is no file, or it is broken or has another mark."""
        try:
            saved = torch.load(self.path, weights_only=True, mmap=False)
        except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError):
            return None
        return (
            saved["state"] if isinstance(saved, dict) and saved.get("mark") == self.mark else None
        )

    def save_when_due(self, state: dict[str, Any]) -> None:
        """Save if `seconds` have passed since the last checkpoint. Raises OSError when the disk
        refuses.
        """
        if time.monotonic() - self._last < self.seconds:
            return
        with replacing(self.path) as file:
            torch.save({"mark": self.mark, "state": state}, file)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Delete the file, once the replicas are written."""
        self.path.unlink(missing_ok=True)
