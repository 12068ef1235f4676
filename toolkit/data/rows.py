"""Rows of any source. Every row remembers where it stands, so that a later error can name the file and the line."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from toolkit.files import home
from toolkit.plain import JsonError, parse


class DataError(ValueError):
    """Data that cannot be used as it is. The message is one line: the file, the line or row, the field and the fix."""


class Row(dict[str, Any]):
    """The fields of one row; `where` is its place, such as `train.jsonl:3` or `train.parquet, row 3` (from 1)."""

    def __init__(self, fields: dict[str, Any], where: str):
        super().__init__(fields)
        self.where = where


def read_rows(source: str) -> list[Row]:
    """All rows of `embedded`, of a file, of the files of a folder (sorted, not recursive), or of a hub data set.

    `embedded:10000` is as many rows. What exists on disk is read from there; a hub data set is `id`, `id:split` or
    `id:config:split`, the split `train` by default. Blank lines of JSONL are skipped.

    Raises DataError when the source is missing, empty or broken; the message names the file and the line.
    """
    path = home(source)
    kind, _, count = source.partition(":")
    if kind == "embedded":
        rows = [Row(fields, f"{source}, row {n}") for n, fields in enumerate(_embedded(source, count), 1)]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS and file.is_file())
        if not files:
            raise DataError(f"{source}: no {', '.join(SUFFIXES)} file in this folder")
        rows = [row for file in files for row in _read_file(file)]
    elif path.is_file():
        rows = list(_read_file(path))
    elif path.suffix.lower() in READERS or source.startswith(("/", ".", "~")):
        raise DataError(
            f"{source}: no such file or folder; a relative path counts from the recipe's folder, then from the working directory"
        )
    else:
        rows = list(_read_hub(source))
    if not rows:
        raise DataError(f"{source}: no rows")
    return rows


def _embedded(source: str, count: str) -> list[dict[str, str]]:
    from toolkit.embedded import world

    if not count:
        return world.train_rows()
    found = world.train_rows(int(count)) if count.isdigit() else []
    if not found or len(found) < int(count):
        raise DataError(f"{source}: `embedded` has {len(world.train_rows(10**9)):,} training rows; write how many, as in embedded:1000")
    return found


def _read_file(path: Path) -> Iterator[Row]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file; use one of {', '.join(SUFFIXES)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a row is an object with named fields, not {json.dumps(value)[:40]}")
    return Row(value, where)


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Bytes, because their lines end at \n only: text lines would also end at a lone \r, and no line could be named
    # when it is not UTF-8.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                value = parse(line, any_number=True)
            except JsonError as error:
                raise DataError(f"{where}: broken JSON at column {error.colno}: {error.msg}") from None
            yield _object(value, where)


def _read_json(path: Path) -> Iterator[Row]:
    try:
        value = parse(path.read_bytes(), any_number=True)
    except JsonError as error:
        if error.msg == "Extra data":  # many .json files on the hub hold one object per line
            yield from _read_jsonl(path)
            return
        raise DataError(f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}") from None
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise DataError(f'{path}: expected a list of objects, or {{"data": [...]}}')
    for number, item in enumerate(value, 1):
        yield _object(item, f"{path}, row {number}")


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise DataError(f"{path}:1: column {repeated[0]!r} stands twice")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(f"{where}: {len(cells)} fields, the header has {len(header)}; quote fields that hold commas")
                yield Row({name: _cell(name, cell, where) for name, cell in zip(header, cells, strict=True)}, where)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: broken CSV: {error}") from None


def _cell(name: str, cell: str, where: str) -> Any:
    """A cell is text; a conversation in a cell is JSON."""
    if name not in ("messages", "conversations"):
        return cell
    try:
        return parse(cell, any_number=True)
    except JsonError as error:
        raise DataError(f"{where}: field {name!r} must be a JSON list: {error.msg}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file: {_one_line(error)}") from None
    for number, fields in enumerate(table.to_pylist(), 1):
        yield Row(fields, f"{path}, row {number}")


def _read_hub(source: str) -> Iterator[Row]:
    name, *rest = source.split(":")
    if not name or len(rest) > 2:
        raise DataError(f"{source}: no such file; a hub data set is `id`, `id:split` or `id:config:split`")
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: no such file, and a hub data set needs `pip install datasets`") from None
    try:
        what = {"name": rest[0] if len(rest) == 2 else None, "split": rest[-1] if rest else "train"}
        loaded: Any = datasets.load_dataset(name, **what, trust_remote_code=False)
    except Exception as error:  # the hub client raises a dozen unrelated types for "offline", "unknown", "no such split"
        raise DataError(f"{source}: neither a file here nor a hub data set that can be loaded: {_one_line(error)}") from None
    for number, fields in enumerate(loaded, 1):
        yield Row(fields, f"{source}, row {number}")


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split())[:200]} ({type(error).__name__})"


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(READERS)
