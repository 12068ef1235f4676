"""Files that are whole or not there: written beside, synced, renamed; and hashed once for as long
as they stay as they are.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path) -> Iterator[IO[Any]]:
    """A binary file to write for the length of a block: at its end it is on the disk and has its
    name, or nothing has changed.

    Raises OSError that names `path`, which a full disk does not do by itself.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    except OSError as error:
        raise naming(path, error) from None
    finally:
        with suppress(OSError):  # not there, or the disk is read-only
            staging.unlink()


def naming(path: Path, error: Exception) -> OSError:
    """The same error about `path`: what failed there is often a file beside it, or has no name;
    safetensors hides the number in a text.
    """
    match = re.search(r"os error (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(match[1]) if match else 0)
    return (
        OSError(number, os.strerror(number), str(path)) if number else OSError(f"{path}: {error}")
    )


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not there."""
    with replacing(path) as file:
        file.write(text.encode())


OWN = (
    r"(ftk|environment|base|population|stopping|replica|merge|full|forecast|design|prompts|results|metrics|modules|claims|config)\.json"
    r"|(recipe|mergekit_config)\.ya?ml|report\.html|README\.md|[A-Za-z0-9._-]+\.parquet|stack-\d+\.pt"
    r"|\d{5}|s\d{3}|g\d{3}|swa|ema|lawa-last\d+"
)
"""files and folders of a run that are written beside and renamed"""
_LEFTOVER = re.compile(rf"\.({OWN})\.(\d+|[0-9a-f]{{8}}(\.old)?)\.tmp")


def is_leftover(name: str) -> bool:
    """Whether a file or folder was being written by ftk when it was killed; by its name, which
    nobody else gives.
    """
    return _LEFTOVER.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Delete the half-written files and folders of writers that were killed, in a folder of ours.
    Nobody else may be writing there.
    """
    for path in list(folder.rglob(".*.tmp")):
        if is_leftover(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sync(path: Path) -> None:
    """Have a file or folder on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def home(path: str | Path) -> Path:
    """A path with `~` written out; `~name` of nobody here stays as it is, and is then not there."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def real(path: Path) -> Path:
    """Where a path leads, links followed. One in a loop of links leads nowhere, and stays: opening
    it says so.
    """
    return Path(os.path.realpath(path))


def no_folder(name: str) -> bool:
    """Whether a name can only be that of a folder, and none is there."""
    return (name.startswith((".", "/", "~")) or name.count("/") > 1) and not home(name).is_dir()


def sha256_file(path: Path) -> str:
    """Hex digest of a file. It is read again only when its inode, size or times have changed: a
    population may be terabytes.
    """
    status = path.stat()
    stamp = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    if (
        time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < 10**9
    ):  # it may change again within the tick of the clock
        return _sha256.__wrapped__(path, stamp)
    return _sha256(path, stamp)


@lru_cache(maxsize=1 << 17)  # about 50 MB: 10,000 replicas with their averages and snapshots
def _sha256(path: Path, stamp: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
