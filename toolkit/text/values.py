"""Values of files as texts: one form for answers and for what they are held against."""

import codecs
import json
import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MARKED = "ftk-marked"
"""Half of a surrogate pair, or a byte that is no UTF-8, as `\\ud83d` or `\\xff` behind U+FDD0,
which no text holds.

So different answers stay different, and all can be written as UTF-8.
"""
MIDNIGHT = re.compile(r"(\d{4}-\d\d-\d\d) 00:00:00([+-]00:00)?")
WHOLE = 1e22  # up to here the digits of an integer are those that its number was written with


def _marked(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeDecodeError):
        return "".join(
            f"\ufdd0\\x{byte:02x}" for byte in error.object[error.start : error.end]
        ), error.end
    if isinstance(error, UnicodeEncodeError):
        return "".join(
            f"\ufdd0\\u{ord(sign):04x}" for sign in error.object[error.start : error.end]
        ).encode(), error.end
    raise error


codecs.register_error(MARKED, _marked)


def marked(text: str) -> str:
    """A text whose characters that cannot be encoded are marked."""
    return text.encode(errors=MARKED).decode()


def text(value: Any) -> str | None:
    """A value as a user would have written it; what is no text as its JSON, and a list of one text
    as that text.

    So "7", 7, 7.0, 7.00 of a decimal column and ["7"] are equal, true is "true", and a day is
    2024-01-31, be it a date or its midnight; the text "7.0" and [7] are not. nan is how data frames
    write a missing cell, None; the text "nan" is an answer.
    """
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (bool, int, list, dict)):
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=text)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < WHOLE else repr(value)
    if isinstance(value, Decimal) and value.is_finite():
        return text(int(value)) if value == value.to_integral_value() else f"{value.normalize():f}"
    if isinstance(value, bytes):
        return value.decode(errors=MARKED)
    day = MIDNIGHT.fullmatch(written := str(value))
    return day[1] if day else written


def as_written(column: "pa.ChunkedArray") -> "pa.ChunkedArray":
    """A column of numbers of 16 or 32 bits as the shortest numbers that they stand for: 0.1, not
    0.10000000149; any other as it is.
    """
    import numpy as np
    import pyarrow as pa

    if pa.types.is_float32(column.type):
        return column.cast(pa.string()).cast(pa.float64())
    if pa.types.is_float16(column.type):
        values = [None if v is None else float(str(np.float16(v))) for v in column.to_pylist()]
        return pa.chunked_array([pa.array(values, pa.float64())])
    return column
