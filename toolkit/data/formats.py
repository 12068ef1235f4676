"""The five formats of training rows, each read as a prompt and its completion."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.data.rows import DataError

Fields = Mapping[str, Any]
"""A row: usually a `Row`; a plain dict of the caller's own works too, its errors then name no place."""

Message = dict[str, str]
"""One turn, {"role", "content"}."""

FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Name -> the columns that a row must have."""

SHAPES = (
    'text {"text"}; messages {"messages": [{"role", "content"}]}; prompt-completion {"prompt", "completion"}; '
    'alpaca {"instruction", "input", "output"}; sharegpt {"conversations": [{"from", "value"}]}'
)

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"} | {role: role for role in ROLES}


def detect_format(rows: Sequence[Fields]) -> str:
    """The one format of all rows, told from their columns.

    Raises DataError when a row fits none, several, or another format than the first row.
    """
    if not rows:
        raise DataError("no rows")
    formats = [_format_of(row) for row in rows]
    for row, fmt in zip(rows, formats, strict=True):
        if fmt != formats[0]:
            raise DataError(
                f"{place(row)}: this row is {fmt} (columns {', '.join(row)}), the first row ({place(rows[0])}) is "
                f"{formats[0]} (columns {', '.join(rows[0])}); one data set has one of the five formats: {SHAPES}"
            )
    return formats[0]


def _format_of(row: Fields) -> str:
    fits = [fmt for fmt, columns in FORMATS.items() if all(column in row for column in columns)]
    if len(fits) > 1:  # published alpaca files carry a ready-made `text` column beside their fields
        fits = [fmt for fmt in fits if fmt != "text"]
    if len(fits) == 1:
        return fits[0]
    problem = f"fit {' and '.join(fits)}: keep the columns of one" if fits else "are none of the five formats"
    raise DataError(f"{place(row)}: the columns {', '.join(row)} {problem}; the formats are {SHAPES}")


def split_row(row: Fields, fmt: str) -> tuple[str | list[Message], str | Message]:
    """(prompt, completion) of a training row: two strings, or the messages before the last assistant turn and that turn.

    The prompt of `text` is empty. Alpaca is a conversation of one user turn, its `input` below the instruction.
    Raises DataError when a field is missing, empty or of the wrong type.
    """
    for column in FORMATS[fmt]:
        if column not in row:
            raise DataError(f"{place(row)}: field {column!r} is missing; the format {fmt} needs {', '.join(FORMATS[fmt])}")
    if fmt == "text":
        return "", filled(row, "text")
    if fmt == "alpaca":
        return alpaca_prompt(row), {"role": "assistant", "content": filled(row, "output")}
    if fmt == "prompt-completion":
        return _split_prompt_completion(row)
    return _split_conversation(conversation(row, FORMATS[fmt][0]), FORMATS[fmt][0], place(row))


def is_chat(rows: Sequence[Fields], fmt: str = "auto") -> bool:
    """True where the prompts of training are conversations; then a plain prompt of a suite must become a user turn."""
    prompt, _ = split_row(rows[0], detect_format(rows) if fmt == "auto" else fmt)
    return not isinstance(prompt, str)


def alpaca_prompt(row: Fields) -> list[Message]:
    """The instruction and, below it, the `input` where there is one, as one user turn."""
    extra = row.get("input")
    if extra is not None and not isinstance(extra, str):
        raise DataError(f"{place(row)}: field 'input' must be text, not {type(extra).__name__}")
    instruction = filled(row, "instruction")
    return [{"role": "user", "content": f"{instruction}\n\n{extra}" if extra and extra.strip() else instruction}]


def conversation(row: Fields, column: str) -> list[Message]:
    """The turns in a column as [{"role", "content"}], read from either spelling of their keys.

    Raises DataError for an unknown role, a turn without text, or tool calls, which no field here can hold.
    """
    turns = row[column]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{place(row)}: field {column!r} must be a list of turns and not empty")
    role_key, text_key = ("from", "value") if column == "conversations" else ("role", "content")
    if column == "conversations" and isinstance(turns[0], dict) and "role" in turns[0]:
        role_key, text_key = "role", "content"  # sharegpt by the name of its column only
    roles = SHAREGPT_ROLES if column == "conversations" else {role: role for role in ROLES}
    messages = []
    for number, turn in enumerate(turns, 1):
        at = f"{place(row)}: field {column!r}, turn {number}"
        if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
            raise DataError(f'{at}: a turn is {{"{role_key}": ..., "{text_key}": ...}}')
        if turn[role_key] not in roles:
            raise DataError(f"{at}: unknown {role_key} {turn[role_key]!r}; use one of {', '.join(roles)}")
        if turn.get("tool_calls"):
            raise DataError(f"{at}: tool calls are not supported; write them as text into {text_key!r}")
        if not isinstance(turn[text_key], str):
            raise DataError(f"{at}: {text_key!r} must be text, not {type(turn[text_key]).__name__}")
        messages.append({"role": roles[turn[role_key]], "content": turn[text_key]})
    return messages


def filled(row: Fields, column: str) -> str:
    """The text of a field. Raises DataError when it is not text, or empty."""
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{place(row)}: field {column!r} must be text, not {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{place(row)}: field {column!r} is empty; fill it or drop the row")
    return value


def place(row: Fields) -> str:
    """Where a row stands; a plain dict, made by a caller in memory, has no place."""
    return getattr(row, "where", "a row in memory")


def _split_prompt_completion(row: Fields) -> tuple[str | list[Message], str | Message]:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not prompt.strip():
            raise DataError(f"{place(row)}: field 'prompt' is empty; rows without a prompt are {{\"text\": ...}}")
        return prompt, filled(row, "completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        if len(completion) != 1:
            raise DataError(f"{place(row)}: field 'completion' must be one assistant turn, found {len(completion)}")
        messages = conversation(row, "prompt") + conversation(row, "completion")
        return _split_conversation(messages, "completion", place(row))
    raise DataError(
        f"{place(row)}: 'prompt' and 'completion' must be two texts or two lists of turns, not {_kind(prompt)} and {_kind(completion)}"
    )


def _split_conversation(messages: list[Message], column: str, where: str) -> tuple[list[Message], Message]:
    *prompt, last = messages
    if last["role"] != "assistant":
        raise DataError(f"{where}: field {column!r} must end with an assistant turn, not {last['role']!r}")
    if not prompt:
        raise DataError(f"{where}: field {column!r} has no turn before the assistant's; add the user's turn")
    if not last["content"].strip():
        raise DataError(f"{where}: the last assistant turn of {column!r} is empty; fill it or drop the row")
    return prompt, last


def _kind(value: Any) -> str:
    return {str: "text", list: "a list"}.get(type(value), type(value).__name__)
