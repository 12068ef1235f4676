"""Files of predictions in batches of rows: fast where nothing is wrong, and exact about the line
where something is.
"""

import csv
import functools
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.data.rows import READERS, DataError
from toolkit.data.turns import missing
from toolkit.measurement.predictions.layout import PROMPTFOO, Layout, PredictionsError
from toolkit.record.plain import JsonError, parse
from toolkit.text.values import as_written, marked, text

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".parquet")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
CHUNK = 1 << 25  # bytes of JSONL or CSV parsed at a time
CELLS = 1 << 22  # rows of a long Parquet file, or cells of a wide file, at a time
ROWS = 1 << 16  # rows of a JSON list at a time
KINDS = "kinds"
"""Beside a table of JSON, every value of which is text: the types that each column had."""


@dataclass(frozen=True)
class Batch:
    """Some rows of the file.

    first: number of the first one, from 0. Of JSON also row: the fields of one row, to tell null
    from nothing; and exact: the table with every value as text, where the types of the table's
    columns would change values.
    """

    first: int
    table: "pa.Table"
    row: Callable[[int], dict] | None = None
    exact: Callable[[], "pa.Table"] | None = None


IN_MEMORY = Path("predictions")
"""What predictions go by that no file holds, in messages and as a condition."""


def batches(
    path: Path, see: Callable[[list[str]], Layout], table: "pa.Table | None" = None
) -> Iterator[Batch]:
    """All rows in order; those of a wide Parquet file as often as it takes to read all columns,
    some columns at a time.

    see: the layout that columns of these names have. table: the rows, where they are in memory;
    `path` is what messages call it then.
    """
    import pyarrow as pa

    if table is not None:
        if len(set(table.column_names)) < table.num_columns:
            raise PredictionsError(f"{path}: two columns have the same name")
        for first in range(0, table.num_rows, CELLS):
            yield Batch(first, table.slice(first, CELLS))
        return
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}.get(kind(path))
    if reader is None and kind(path) != ".parquet":
        raise PredictionsError(f"{path}: unknown kind of file; use one of {', '.join(SUFFIXES)}")
    try:
        yield from reader(path) if reader else _parquet(path, see)
    except DataError as error:
        raise PredictionsError(str(error)) from None
    except (pa.ArrowException, OSError, EOFError) as error:
        raise PredictionsError(
            f"{path}: cannot be read: {' '.join(str(error).split())[:200]}"
        ) from None


def kind(path: Path) -> str:
    """Suffix of the file without .gz, or nothing where it is of no known kind."""
    return next(
        (suffix.removesuffix(".gz") for suffix in SUFFIXES if path.name.lower().endswith(suffix)),
        "",
    )


def stem(path: Path) -> str:
    """The name of a file without the ending that says its kind."""
    return path.name[: path.name.lower().rindex(kind(path))]


def place(path: Path, row: int) -> str:
    """Where row number `row`, from 0, stands. Reads the file anew: lines are counted only when an
    error must be told.
    """
    import pyarrow as pa

    numbers: Iterable[int] = ()
    if kind(path) == ".csv":
        numbers = (line for line, _ in itertools.islice(_records(path), 1, None))
    elif kind(path) == ".jsonl":
        numbers = (
            line
            for line, text in enumerate(io.BufferedReader(pa.input_stream(str(path))), 1)
            if text.strip()
        )
    line = next(itertools.islice(numbers, row, None), None)
    return f"{path}, row {row + 1}" if line is None else f"{path}:{line}"


# -- values --------------------------------------------------------------------------------------


def distinct(columns: Sequence["pa.ChunkedArray"]) -> tuple[np.ndarray, list[str | None]]:
    """Columns of one type, end to end, as indices into their distinct values as text; -1 or a value
    of None: missing.
    """
    import pyarrow as pa

    column = pa.chunked_array(
        [chunk for column in columns for chunk in column.chunks], columns[0].type
    )
    column = as_written(column)
    if pa.types.is_nested(column.type) or pa.types.is_null(column.type):
        column = pa.chunked_array(
            [pa.array([text(value) for value in column.to_pylist()], pa.string())]
        )
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    encoded = encoded.combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    indices = encoded.indices.fill_null(-1) if encoded.indices.null_count else encoded.indices
    values = encoded.dictionary.to_pylist()
    return indices.to_numpy(), values if pa.types.is_string(encoded.dictionary.type) else [
        text(value) for value in values
    ]


def keeps_values(column: "pa.DataType") -> bool:
    """Whether a column of JSON that was given this type still says what the file does: 1 and 1.0,
    or a date, would not.
    """
    import pyarrow as pa

    return any(
        same(column)
        for same in (pa.types.is_string, pa.types.is_int64, pa.types.is_boolean, pa.types.is_null)
    )


# -- kinds of files ------------------------------------------------------------------------------


def _parquet(path: Path, see: Callable[[list[str]], Layout]) -> Iterator[Batch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    of_text = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_dictionary,
    )
    dictionaries = [column.name for column in schema if any(of(column.type) for of in of_text)]
    if len(set(schema.names)) < len(schema.names):
        raise PredictionsError(f"{path}: two columns have the same name")
    with pq.ParquetFile(path, read_dictionary=dictionaries) as file:
        rows = file.metadata.num_rows
        layout = see(schema.names)
        if layout.replicas and rows:
            size = max(1, CELLS // rows)
            for start in range(0, len(layout.replicas), size):
                table = file.read([*layout.columns, *layout.replicas[start : start + size]])
                yield Batch(0, table.replace_schema_metadata())  # which is the file's word
            return
        first, columns = 0, [*layout.columns, *_short(file.metadata, layout.unused)]
        for batch in file.iter_batches(CELLS, columns=columns):
            yield Batch(first, pa.Table.from_batches([batch]).replace_schema_metadata())
            first += batch.num_rows


def _short(metadata: Any, names: Iterable[str]) -> list[str]:
    """Those of the columns that take few bytes a row, as what is said of runs does."""
    size: dict[str, int] = dict.fromkeys(names, 0)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema in size:
                size[column.path_in_schema] += column.total_uncompressed_size
    return [name for name, total in size.items() if 0 < total < 64 * max(metadata.num_rows, 1e4)]


def _csv(path: Path) -> Iterator[Batch]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    delimiter = _delimiter(path)
    _, header = next(_records(path), (0, []))
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise PredictionsError(f"{path}:1: column {repeated[0]!r} stands twice")
    if not header:
        return
    read = arrow_csv.ReadOptions(block_size=CHUNK)
    parse = arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    first = 0
    try:
        for batch in arrow_csv.open_csv(pa.input_stream(str(path)), read, parse, convert):
            yield Batch(first, pa.Table.from_batches([batch]))
            first += batch.num_rows
    except pa.ArrowInvalid:
        for line, record in _records(path):
            if len(record) != len(header):
                cure = f"quote fields that hold {DELIMITERS[delimiter]} or line breaks"
                raise PredictionsError(
                    f"{path}:{line}: {len(record)} fields, the header has {len(header)}; {cure}"
                ) from None
        raise
    if (
        _quotes(path) % 2
    ):  # an open quote swallows the rest of the file; only the slow reader notices
        for _ in _records(path):
            pass


def _delimiter(path: Path) -> str:
    """What stands between the fields: a comma where the header has one, else a semicolon or a tab,
    as other spreadsheets write them.
    """
    import pyarrow as pa

    with pa.input_stream(str(path)) as stream:
        header = stream.read(CHUNK).lstrip().partition(b"\n")[0]
    return next((delimiter for delimiter in DELIMITERS if delimiter.encode() in header), ",")


def _quotes(path: Path) -> int:
    import pyarrow as pa

    with pa.input_stream(str(path)) as stream:
        return sum(chunk.count(b'"') for chunk in iter(lambda: stream.read(CHUNK), b""))


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records of a CSV file, slowly, each with the number of its last line; blank lines are
    none.
    """
    import pyarrow as pa

    csv.field_size_limit(1 << 30)
    text = io.TextIOWrapper(pa.input_stream(str(path)), encoding="utf-8-sig", newline="")
    reader, line = csv.reader(text, delimiter=_delimiter(path), strict=True), 0
    try:
        for record in reader:
            line = reader.line_num
            if record:
                yield line, record
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise PredictionsError(
                f"{path}:{line + 1}: broken CSV: a quote that opens in this row is never closed"
            ) from None
        raise PredictionsError(f"{path}:{reader.line_num}: broken CSV: {error}") from None
    except UnicodeDecodeError:
        lines = io.BufferedReader(pa.input_stream(str(path)))
        line = next(
            number
            for number, line in enumerate(lines, 1)
            if line.decode(errors="replace").encode() != line
        )
        raise PredictionsError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None


def _json(path: Path) -> Iterator[Batch]:
    rows = _rows(path)
    for first in itertools.count(0, ROWS):
        some = list(itertools.islice(rows, ROWS))
        if not some:
            return
        yield Batch(first, table_of_rows(some), some.__getitem__)


def _rows(path: Path) -> Iterator[dict]:
    try:
        yield from map(_with_names, READERS[".json"](path))
    except DataError:
        with path.open("rb") as file:
            if b'"evalId"' in file.read(1 << 12):
                raise PredictionsError(f"{path}: {PROMPTFOO}") from None
        raise


def _jsonl(path: Path) -> Iterator[Batch]:
    import pyarrow as pa

    first, incomplete = 0, b""
    with pa.input_stream(str(path)) as stream:
        while read := stream.read(CHUNK):
            chunk, _, incomplete = (incomplete + read).rpartition(b"\n")
            if chunk.strip():
                batch = _lines(path, chunk, first)
                first += batch.table.num_rows
                yield batch
    if incomplete.strip():
        yield _lines(path, incomplete, first)


def _lines(path: Path, chunk: bytes, first: int) -> Batch:
    """Lines of JSONL, by the parser of pyarrow where it takes them as they are meant, else one by
    one.
    """
    import pyarrow as pa
    from pyarrow import json as arrow_json

    @functools.cache
    def lines() -> list[bytes]:
        return [line for line in chunk.split(b"\n") if line.strip()]

    def row(number: int) -> dict[str, Any]:
        return _fields(path, lines()[number], first + number)

    def exact() -> "pa.Table":
        return table_of_rows([row(number) for number in range(len(lines()))])

    start = _fields(path, chunk.lstrip().partition(b"\n")[0], first)
    # "2020-01-01" is no date
    strings = pa.schema(
        [(name, pa.string()) for name, value in start.items() if isinstance(value, str)]
    )
    try:
        chunk.decode()
        options = (
            arrow_json.ReadOptions(block_size=1 << 22),
            arrow_json.ParseOptions(explicit_schema=strings),
        )
        table = arrow_json.read_json(pa.BufferReader(chunk), *options)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        table = None
    if table is None or table.num_rows not in (chunk.count(b"\n") + 1, len(lines())):
        table = exact()
    return Batch(first, table, row, exact)


def _fields(path: Path, line: bytes, row: int) -> dict[str, Any]:
    try:
        fields = parse(line, any_number=True)
    except JsonError as error:
        raise PredictionsError(f"{place(path, row)}: {error.reason}") from None
    if not isinstance(fields, dict):
        raise PredictionsError(
            f"{place(path, row)}: a row is an object with named fields, not "
            f"{json.dumps(fields)[:40]}"
        )
    return _with_names(fields)


def _with_names(fields: dict[str, Any]) -> dict[str, Any]:
    """The same fields, under names that can be written."""
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return {marked(name): value for name, value in fields.items()}
    return fields


def table_of_rows(rows: Sequence[dict]) -> "pa.Table":
    """Rows of JSON, every value as text."""
    import pyarrow as pa

    def column(name: str) -> "pa.Array":
        values = [text(row.get(name)) for row in rows]
        try:
            return pa.array(values, pa.string())
        except (
            UnicodeEncodeError
        ):  # half of a surrogate pair, which JSON can write and UTF-8 cannot
            return pa.array([value and marked(value) for value in values], pa.string())

    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    kinds = {
        name: sorted({type(v).__name__ for row in rows if not missing(v := row.get(name))})
        for name in names
    }
    return pa.table({name: column(name) for name in names}, metadata={KINDS: json.dumps(kinds)})


def untexted(table: "pa.Table") -> set[tuple[str, str]]:
    """(kind, column) of the columns that hold numbers or booleans, not only as text."""
    from pyarrow.types import is_boolean, is_decimal, is_floating, is_integer

    kinds = json.loads((table.schema.metadata or {}).get(KINDS.encode(), "{}"))
    columns = set()
    for column in table.schema:
        of, kind = {*kinds.get(column.name, ())}, column.type
        if is_boolean(kind) or "bool" in of:
            columns.add(("boolean", column.name))
        if is_integer(kind) or is_floating(kind) or is_decimal(kind) or of & {"int", "float"}:
            columns.add(("number", column.name))
    return columns
