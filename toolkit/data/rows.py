"""Rows of any source. Every row remembers where it stands, so that a later error can name the file
and the line.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from toolkit.data.locate import PACKED, DataError, files_of, kind_of
from toolkit.record.files import home
from toolkit.record.plain import JsonError, parse
from toolkit.text.values import as_written

CELL = 2**31 - 1
"""characters of a CSV cell; Python's own limit is 131,072, less than a long document"""


class Row(dict[str, Any]):
    """The fields of one row; `where` is its place, such as `train.jsonl:3` or `train.parquet, row
    3` (from 1), in `file`.
    """

    def __init__(self, fields: dict[str, Any], where: str):
        super().__init__(fields)
        self.where = where
        self.file: Path | None = None


def read_rows(source: str, *, suite: bool = False) -> list[Row]:
    """All rows of `embedded`, of a file, of a folder (see `files_of`), or of a hub data set.

    `embedded:10000` is as many rows. What exists on disk is read from there; a hub data set is
    `id`, `id:split` or `id:config:split`, the split `train` by default. Blank lines of JSONL are
    skipped. suite: the rows are prompts for measurement, so no split of a folder is chosen for
    them.

    Raises DataError when the source is missing, empty or broken, or a text holds what is no
    character; the message names the file and the line.
    """
    path = home(source)
    kind, _, count = source.partition(":")
    if kind.startswith("embedded@"):
        raise DataError(
            f"{source}: suites have versions, the training rows have one; write "
            "`embedded`, or embedded:1000"
        )
    if kind == "embedded":
        rows = [
            Row(fields, f"{source}, row {n}")
            for n, fields in enumerate(_embedded(source, count), 1)
        ]
    elif path.is_dir():
        files, _ = files_of(path, READERS, suite=suite)
        rows = [row for file in files for row in _read_file(file)]
    elif path.is_file():
        rows = list(_read_file(path))
    elif kind_of(path) in READERS or source.startswith(("/", ".", "~")):
        raise DataError(
            f"{source}: no such file or folder; a relative path counts from the recipe's "
            "folder, then from the working directory"
        )
    else:
        rows = list(_read_hub(source))
    if not rows:
        raise DataError(f"{source}: no rows")
    for row in rows:
        for name, value in row.items():
            _check_text(value, name, row.where)
    return rows


def _check_text(value: Any, name: str, where: str) -> None:
    """Refuse text that no file and no tokenizer takes as it is."""
    if isinstance(value, str):
        if "\0" in value:
            raise DataError(
                f"{where}: field {name!r} holds a NUL character, which is no text; remove it"
            )
        if not value.isascii() and (half := HALF.search(value)):
            escape = f"\\u{ord(half[0]):04x}"
            raise DataError(
                f"{where}: field {name!r} holds half a character ({escape} without its "
                "other half); write it whole or remove it"
            )
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key, name, where)
            _check_text(inner, name, where)
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner, name, where)


HALF = re.compile("[\ud800-\udfff]")


def _embedded(source: str, count: str) -> list[dict[str, str]]:
    from toolkit.embedded import world

    if not count:
        return world.train_rows()
    rows = world.train_rows(int(count)) if count.isdigit() else []
    if not rows or len(rows) < int(count):
        raise DataError(
            f"{source}: `embedded` has {len(world.train_rows(10**9)):,} training rows; "
            "write how many, as in embedded:1000"
        )
    return rows


def _read_file(path: Path) -> Iterator[Row]:
    reader = READERS.get(kind_of(path))
    if reader is None:
        raise DataError(
            f"{path}: unknown kind of file; use one of {', '.join(SUFFIXES)}, the first "
            f"four also with {', '.join(PACKED)}"
        )
    try:
        for row in reader(path):
            row.file = path
            yield row
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except (EOFError, lzma.LZMAError, zlib.error):
        raise DataError(
            f"{path}: packed data that is broken or cut short; copy or download the file again"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or _one_line(error)}") from None


def _open(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked. Raises DataError for UTF-16 and UTF-32, which spreadsheets
    save as "Unicode text".
    """
    file = UNPACK.get(path.suffix.lower(), _plain)(path)
    start = file.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        file.close()
        raise DataError(f"{path}: not UTF-8 but UTF-16 or UTF-32; save the file as UTF-8")
    file.seek(0)
    return file


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _gzip(path: Path) -> IO[bytes]:
    return io.BufferedReader(gzip.open(path))


def _zstd(path: Path) -> IO[bytes]:
    import pyarrow

    with pyarrow.input_stream(str(path), compression="zstd") as stream:
        return io.BytesIO(stream.read())


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: a row is an object with named fields, not {json.dumps(value)[:40]}"
        )
    return Row(value, where)


def _parse(text: bytes | str, where: str) -> Any:
    """JSON; what is none by its grammar is a JsonError, what is beyond a limit a DataError."""
    try:
        return parse(text, any_number=True)
    except JsonError as error:
        if error.grammar:
            raise
        raise DataError(f"{where}: {error}; mend the row") from None


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Bytes, because their lines end at \n only: text lines would also end at a lone \r, and no line
    # could be named when it is not UTF-8.
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                value = _parse(line, where)
            except JsonError as error:
                raise DataError(
                    f"{where}: broken JSON at column {error.colno}: {error.msg}"
                ) from None
            yield _object(value, where)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def keys_aside(path: Path) -> list[str]:
    """A note on what stands beside the rows of a JSON file, {"data": [...], "version": 2}; nothing
    of any other file.
    """
    if kind_of(path) != ".json":
        return []
    with _open(path) as file:
        text = file.read()
    if not text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return []
    try:
        value = _parse(text, str(path))
    except JsonError:  # one object per line
        return []
    keys = [key for key in value if key != "data"]
    return [f"{path}: keys beside the rows that are not read: {', '.join(keys)}"] if keys else []


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        text = file.read()
    try:
        value = _parse(text, str(path))
    except JsonError as error:
        if error.msg == "Extra data":  # many .json files on the hub hold one object per line
            yield from _read_jsonl(path)
            return
        raise DataError(
            f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}"
        ) from None
    if isinstance(value, dict):
        tables = [key for key, inner in value.items() if _is_table(inner)]
        if "data" in tables and len(tables) > 1:
            named = " and ".join(json.dumps(key) for key in tables[:3])
            raise DataError(
                f"{path}: keys {named} hold rows; write each as a file of its own, a list of "
                "objects"
            )
        value = value.get("data")
    if not isinstance(value, list):
        raise DataError(f'{path}: expected a list of objects, or {{"data": [...]}}')
    for number, item in enumerate(value, 1):
        yield _object(item, f"{path}, row {number}")


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(CELL)
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    with _open(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            _check_columns(header, f"{path}:1")
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{where}: {len(cells)} fields, the header has {len(header)}; "
                        "quote fields that hold commas"
                    )
                yield Row(
                    {
                        name: _cell(name, cell, where)
                        for name, cell in zip(header, cells, strict=True)
                    },
                    where,
                )
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: broken CSV: {error}") from None


def _check_columns(names: list[str], where: str) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{where}: column {repeated[0]!r} stands twice")


def _cell(name: str, cell: str, where: str) -> Any:
    """A cell is text; a conversation in a cell is JSON."""
    if name not in ("messages", "conversations"):
        return cell
    try:
        return _parse(cell, where)
    except JsonError as error:
        raise DataError(f"{where}: field {name!r} must be a JSON list: {error.msg}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, str(path))
            table = file.read()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file: {_one_line(error)}") from None
    yield from _table_rows(table, path)


def _read_arrow(path: Path) -> Iterator[Row]:
    """Arrow as `datasets` writes it: a stream, or a file."""
    import pyarrow

    try:
        with path.open("rb") as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            table = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(file).read_all()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not an Arrow file: {_one_line(error)}") from None
    _check_columns(table.schema.names, str(path))
    yield from _table_rows(table, path)


def _table_rows(table: Any, path: Path) -> Iterator[Row]:
    columns = dict(zip(table.column_names, map(as_written, table.columns), strict=True))
    for number, fields in enumerate(table.from_pydict(columns).to_pylist(), 1):
        yield Row(
            {name: _as_written(value) for name, value in fields.items()}, f"{path}, row {number}"
        )


def _as_written(value: Any) -> Any:
    """A nested value without the keys that columns of records fill up with null: their rows never
    had them.
    """
    if isinstance(value, dict):
        return {key: _as_written(inner) for key, inner in value.items() if inner is not None}
    return [_as_written(inner) for inner in value] if isinstance(value, list) else value


def _read_hub(source: str) -> Iterator[Row]:
    name, *parts = source.split(":")
    if not name or len(parts) > 2:
        raise DataError(
            f"{source}: no such file; a hub data set is `id`, `id:split` or `id:config:split`"
        )
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{source}: no such file, and a hub data set needs `pip install datasets`"
        ) from None
    try:
        what = {
            "name": parts[0] if len(parts) == 2 else None,
            "split": parts[-1] if parts else "train",
        }
        loaded: Any = datasets.load_dataset(name, **what, trust_remote_code=False)
    except Exception as error:
        # the hub client raises a dozen unrelated types for "offline", "unknown", "no such split"
        raise DataError(
            f"{source}: neither a file here nor a hub data set that can be loaded: "
            f"{_one_line(error)}"
        ) from None
    for number, fields in enumerate(loaded, 1):
        yield Row(
            {key: _as_written(value) for key, value in fields.items()}, f"{source}, row {number}"
        )


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split())[:200]} ({type(error).__name__})"


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
SUFFIXES = tuple(READERS)
UNPACK: dict[str, Callable[[Path], IO[bytes]]] = dict(
    zip(PACKED, (_gzip, bz2.BZ2File, lzma.LZMAFile, _zstd), strict=True)
)
