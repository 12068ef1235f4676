"""A folder knows what it is: one small file says what ftk made there, and of what.

    ftk.json    {"kind": "run", "format": 1, "of": {...}}

It is written before anything else is. So a folder that is of another kind, was made of something
else, or belongs to somebody else is refused while all in it is as it was. Folders of versions that
wrote no such file are known by what is in their files, never by their
names: anybody calls a file results.json.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import FtkError
from toolkit.record import shapes
from toolkit.record.files import is_leftover, real, sha256_file, write_text
from toolkit.record.plain import read_json, read_record

MARKER = "ftk.json"
FORMAT = 1
RUN, EVALUATED, MEASURED, MERGED, MERGES = "run", "evaluated", "measured", "merged", "merges"
NAMED = {
    RUN: "a run",
    EVALUATED: "answers that `ftk evaluate` or `ftk gate` asked for",
    MEASURED: "results of `ftk measure`",
    MERGED: "a merge",
    MERGES: "merges of groups",
}
LOCK = ".lock"
TITLE = "how different are the replicas?"
"""ends the title of every report"""


class FolderError(FtkError, ValueError):
    """A folder or file that is not to be written to; one line with the reason and the way out."""


def claim(
    folder: Path, kind: str, of: Mapping[str, str] | None = None, *, force: bool = False
) -> None:
    """Make a folder one of `kind`, before anything else is written there. Raises FolderError as
    `check_claim`, and then writes nothing.
    """
    check_claim(folder, kind, of, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    text = marker_text(kind, of, (read_marker(folder) or {}).get("sha256"))
    if not (folder / MARKER).is_file() or (folder / MARKER).read_text(encoding="utf-8") != text:
        write_text(folder / MARKER, text)


def check_claim(
    folder: Path,
    kind: str,
    of: Mapping[str, str] | None = None,
    *,
    made_before: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Whether a folder is free, or one of `kind` already and made of the same thing. Writes
    nothing.

    of: what it is made of, by a few names; one that agrees is enough (a file that was moved has the
    same hash, one that has grown the same path). made_before: what it was made of, where the marker
    does not say it. force: take a folder that is not ftk's, or was made of something else of the
    same kind; never one of another kind. Raises FolderError in one line, and NotADirectoryError for
    a file.
    """
    if not folder.exists() or not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        return
    marker = read_marker(folder)
    kinds = [str(marker["kind"])] if marker else kinds_of(folder)
    if kinds and kind not in kinds:
        raise FolderError(
            f"{folder}: holds {NAMED.get(kinds[0], kinds[0])}, and this would be "
            f"{NAMED[kind]}; choose another --out"
        )
    if force:
        return
    if not kinds and (others := contents(folder)):
        raise FolderError(
            f"{folder}: is not empty ({others[0]}), and no folder that ftk made as "
            f"{NAMED[kind]}; choose another --out"
        )
    made_before = (marker["of"] if marker else None) or made_before
    or_force = "" if kind in (RUN, EVALUATED) else ", or --force"
    if of and made_before and not any(made_before.get(name) == value for name, value in of.items()):
        raise FolderError(
            f"{folder}: holds {NAMED[kind]} of something else ({_described(made_before)}); choose "
            f"another --out{or_force}"
        )


def kinds_of(folder: Path) -> list[str]:
    """What a folder without a marker may be, by what older versions left there."""
    if is_record(folder / "merge.json", shapes.Merge):
        return [MERGED]
    ledgers = [
        path
        for path in folder.glob("*/population.json")
        if is_record(path, shapes.Population | shapes.Claimed)
    ]
    if (
        ledgers
        or (folder / "recipe.yaml").is_file()
        and is_record(folder / "environment.json", shapes.Environment)
    ):
        return [RUN] if any(map(_trained, ledgers)) else [RUN, EVALUATED]
    if is_record(folder / "results.json", shapes.Measured) and is_report(folder / "report.html"):
        return [MEASURED]
    if contents(folder) == ["metrics.json"] and is_record(folder / "metrics.json", shapes.Metrics):
        return [MEASURED]
    if contents(folder) == ["forecast.json"] and is_record(
        folder / "forecast.json", shapes.Forecast
    ):
        return [RUN]
    return (
        [MERGES]
        if any(is_record(path, shapes.Merge) for path in folder.glob("g[0-9][0-9][0-9]/merge.json"))
        else []
    )


def is_record(path: Path, kind: Any) -> bool:
    """Whether a file holds a record that ftk wrote."""
    try:
        read_record(path, kind)
    except (OSError, ValueError):
        return False
    return True


def is_report(path: Path) -> bool:
    """Whether ftk wrote this report."""
    return path.is_file() and TITLE in path.read_text(encoding="utf-8", errors="replace")


def _trained(ledger: Path) -> bool:
    """Whether replicas were trained here; those that were given are links."""
    return read_json(ledger).get("design") != "given"


def is_run(folder: Path) -> bool:
    """Whether this is a run, or what was evaluated as one."""
    marker = read_marker(folder)
    return (folder / "recipe.yaml").is_file() and (
        marker["kind"] in (RUN, EVALUATED) if marker else RUN in kinds_of(folder)
    )


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What a folder says that it is; None where it says nothing. Raises FolderError in one line for
    what cannot be read.
    """
    path = folder / MARKER
    try:
        marker = read_json(path)
        kind, version, of = marker["kind"], marker["format"], marker["of"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise FolderError(
            f"{path}: does not say what the folder is; delete this file, and ftk goes by the others"
        ) from None
    if (
        not isinstance(version, int)
        or version > FORMAT
        or not isinstance(kind, str)
        or kind not in NAMED
        or not isinstance(of, dict)
    ):
        raise FolderError(
            f"{path}: a newer ftk wrote it (format {version}, kind {kind}); update ftk, "
            "or choose another --out"
        )
    return marker


def marker_text(
    kind: str, of: Mapping[str, str] | None = None, sha256: Mapping[str, str] | None = None
) -> str:
    """ftk.json. sha256: of the files of a folder that is written once, and whole."""
    more = {} if sha256 is None else {"sha256": dict(sha256)}
    return (
        json.dumps(
            {"kind": kind, "format": FORMAT, "of": dict(of or {}), **more}, indent=2, sort_keys=True
        )
        + "\n"
    )


def seal(folder: Path, *names: str) -> None:
    """Write down what is in files of a run, from which its figures are made."""
    marker = read_marker(folder)
    if marker and marker["kind"] in (RUN, EVALUATED):
        digests = marker.get("sha256", {}) | {name: sha256_file(folder / name) for name in names}
        write_text(folder / MARKER, marker_text(marker["kind"], marker["of"], digests))


def check_sealed(folder: Path) -> None:
    """Refuse a run in which a file is not what was written; runs of older versions do not say it.
    Raises FolderError in one line.
    """
    marker = read_marker(folder)
    if not marker or marker["kind"] not in (RUN, EVALUATED):
        return
    for name, digest in marker.get("sha256", {}).items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            what = "has been changed since it was written" if path.exists() else "is missing"
            raise FolderError(f"{path}: {what}; take that back, or {again(path)}")


def is_sealed(folder: Path, name: str) -> bool:
    """Whether a file of a run is known to be what was written."""
    digest = (read_marker(folder) or {}).get("sha256", {}).get(name)
    return digest is not None and sha256_file(folder / name) == digest


def again(path: Path) -> str:
    """The command by which a file of a run is made again."""
    run = next((folder for folder in path.parents if (folder / "recipe.yaml").is_file()), None)
    command = (
        shlex.join(["ftk", "run", str(run / "recipe.yaml"), "--out", str(run)])
        if run
        else "ftk run"
    )
    return f"`{command}` writes it anew"


def is_whole(folder: Path) -> bool | None:
    """Whether the files of a folder are those that its marker names; None where it names none."""
    marker = read_marker(folder)
    if marker is None or "sha256" not in marker:
        return None
    try:
        return all(
            sha256_file(folder / name) == digest for name, digest in marker["sha256"].items()
        )
    except OSError:
        return False


def contents(folder: Path) -> list[str]:
    """Names in a folder, but for those that a claim which was killed leaves there."""
    return sorted(
        path.name for path in folder.iterdir() if path.name != LOCK and not is_leftover(path.name)
    )


def made_of(path: Path) -> dict[str, str]:
    """What a file is known by, to claim a folder for what is made of it: where it is, and what is
    in it.
    """
    return {
        "source": str(path.absolute()),
        **({"sha256": sha256_file(path)} if path.is_file() else {}),
    }


def check_outputs(outputs: Iterable[Path], inputs: Sequence[Path]) -> None:
    """Refuse to write a file that is read. Raises FolderError in one line."""
    read = {real(path): path for path in inputs}
    for path in outputs:
        if real(path) in read:
            raise FolderError(
                f"{read[real(path)]}: is read here and would be written over; choose "
                "another name to write to"
            )


def _described(of: Mapping[str, str]) -> str:
    return (
        ", ".join(f"{name} {_cut(value)}" for name, value in sorted(of.items()) if name != "sha256")
        or "another input"
    )


def _cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
