"""The five formats of training rows, each read as a prompt and its completion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from toolkit.data.rows import DataError
from toolkit.data.turns import Message, Turn, missing, read_tools, read_turns, unpacked

Fields = Mapping[str, Any]
"""A row: usually a `Row`; a plain dict of the caller's own works too, its errors then name no
place.
"""

CHAT = ("system", "tools", "chat_template_kwargs")
"""Columns that conversations may have beside their turns."""

WEIGHTS = ("weight", "sample_weight", "example_weight", "loss_weight")
UNWANTED = {
    "train": 0,
    "training": 0,
    "label": 0,
    "kto_tag": 0,
    "chosen": 0,
    "desirable": 0,
    "rejected": 1,
    "undesirable": 1,
}
"""Column -> the yes (1) or no (0), in any spelling, that says not to learn a row"""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")

YES, NO = ("true", "yes", "y", "t", "on"), ("false", "no", "n", "f", "off")


@dataclass(frozen=True)
class Pair:
    """A training row as a prompt and its completion: two texts, or the turns before the last
    assistant turn and that turn.

    learned: of every turn, the completion last, whether it counts in the loss. given: what the chat
    template gets beside the turns.
    """

    prompt: str | list[Message]
    completion: str | Message
    learned: tuple[bool, ...] = ()
    given: dict[str, Any] = field(default_factory=dict)


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
                f"{place(row)}: this row is {fmt} (columns {', '.join(row)}), the first "
                f"row ({place(rows[0])}) is "
                f"{formats[0]} (columns {', '.join(rows[0])}); one data set has one of "
                f"the five formats: {shapes()}"
            )
    return formats[0]


def _format_of(row: Fields) -> str:
    fits = [name for name, fmt in FORMATS.items() if all(column in row for column in fmt.columns)]
    if len(fits) > 1:  # published alpaca files carry a ready-made `text` column beside their fields
        fits = [fmt for fmt in fits if fmt != "text"]
    if len(fits) == 1:
        return fits[0]
    problem = (
        f"fit {' and '.join(fits)}: keep the columns of one"
        if fits
        else "are none of the five formats"
    )
    raise DataError(
        f"{place(row)}: the columns {', '.join(row)} {problem}; the formats are {shapes()}"
    )


def unused_columns(rows: Sequence[Fields], used: Sequence[str]) -> dict[str, int]:
    """Columns that are not among the used ones -> rows that have something in them."""
    counts: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if name not in used and not missing(value):
                counts[name] = counts.get(name, 0) + 1
    return counts


def split_row(row: Fields, fmt: str) -> Pair:
    """A training row as prompt and completion. The prompt of `text` is empty.

    Alpaca is a conversation: `system`, the pairs of `history`, whose replies are learned too, and a
    user turn with `input` below the instruction. Turns are learned where an assistant speaks,
    unless the turn says otherwise; of prompt-completion rows the completion alone.

    Raises DataError when a field is missing, empty or of the wrong type, or asks for what training
    does not do.
    """
    columns = FORMATS[fmt].columns
    for column in columns:
        if column not in row:
            raise DataError(
                f"{place(row)}: field {column!r} is missing; the format {fmt} needs "
                f"{', '.join(columns)}"
            )
    _check_whole(row)
    return FORMATS[fmt].split(row)


def is_chat(rows: Sequence[Fields], fmt: str = "auto") -> bool:
    """True where the prompts of training are conversations; then a plain prompt of a suite must
    become a user turn.
    """
    return not isinstance(
        split_row(rows[0], detect_format(rows) if fmt == "auto" else fmt).prompt, str
    )


def alpaca_prompt(row: Fields) -> list[Turn]:
    """System text, earlier questions with their answers, and the instruction with the `input`,
    where there is one, below it.
    """
    instruction, extra = filled(row, "instruction"), _optional(row, "input")
    history = unpacked(row, "history", place(row))
    if not isinstance(history, list | tuple | None):
        raise DataError(
            f"{place(row)}: field 'history' must be a list of [question, answer], not "
            f"{_kind(history)}"
        )
    turns: list[Turn] = []
    for number, pair in enumerate(history or [], 1):
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            raise DataError(
                f"{place(row)}: field 'history', entry {number}: must be [question, "
                "answer], two texts"
            )
        turns += [
            ({"role": "user", "content": pair[0]}, False),
            ({"role": "assistant", "content": pair[1]}, True),
        ]
    question = f"{instruction}\n\n{extra}" if extra else instruction
    return with_system(row, [*turns, ({"role": "user", "content": question}, False)])


def conversation(row: Fields, column: str) -> list[Turn]:
    """The turns in a column, whole, behind the row's `system` text where there is one. Raises
    DataError as `read_turns`.
    """
    return with_system(row, read_turns(row, column, place(row)))


def with_system(row: Fields, turns: list[Turn]) -> list[Turn]:
    """Turns behind the row's `system` text. Raises DataError where they begin with a system turn of
    their own.
    """
    system = _optional(row, "system")
    if not system or turns[0][0] == {"role": "system", "content": system}:
        return turns
    if turns[0][0]["role"] in ("system", "developer"):
        raise DataError(
            f"{place(row)}: has a field 'system' and a first turn of that role, which "
            "differ; keep one of the two"
        )
    return [({"role": "system", "content": system}, False), *turns]


def given_of(row: Fields) -> dict[str, Any]:
    """What the chat template gets beside the turns of a row: `tools`, and the row's
    `chat_template_kwargs`.
    """
    tools = read_tools(row, place(row))
    options = unpacked(row, "chat_template_kwargs", place(row)) or {}
    if not isinstance(options, dict):
        raise DataError(
            f"{place(row)}: field 'chat_template_kwargs' must be an object, not {_kind(options)}"
        )
    if reserved := sorted(
        {"messages", "conversation", "tools", "date", "add_generation_prompt", "tokenize"}
        & set(options)
    ):
        raise DataError(
            f"{place(row)}: field 'chat_template_kwargs': {reserved[0]!r} is not for a "
            "row to say; leave it out"
        )
    return {**options, **({"tools": tools} if tools else {})}


def _check_whole(row: Fields) -> None:
    """Refuse what says how to learn from a row, and is not done: to leave it out would be another
    training.
    """
    for name in WEIGHTS:
        if name in row and (weight := _number(row[name])) is not None and weight != 1:
            raise DataError(
                f"{place(row)}: field {name!r} is {row[name]}, and all rows weigh the "
                "same here; repeat the row or drop it, or rename "
                "the column if it is no weight"
            )
    for name, unwanted in UNWANTED.items():
        if name in row and _number(row[name]) == unwanted:
            raise DataError(
                f"{place(row)}: field {name!r} is {row[name]}: this is labelled as an "
                "answer that is not wanted, and every row is learned "
                "here; drop the row, or rename the column if it says something else"
            )
    if media := [
        name for name in MEDIA if name in row and not missing(row[name]) and row[name] != []
    ]:
        raise DataError(
            f"{place(row)}: field {media[0]!r}: training is on text alone; drop the "
            "column or the row"
        )


def _number(value: Any) -> float | None:
    """A weight, or a yes or no, as a number; None where it is something else."""
    try:
        word = value.strip().lower() if isinstance(value, str) else ""
        number = 1.0 if word in YES else 0.0 if word in NO else float(value)
    except (TypeError, ValueError):
        return None
    return number if number == number else None


def _optional(row: Fields, column: str) -> str:
    """The text of a field that may be missing or empty, and is "" then."""
    value = row.get(column)
    if missing(value):
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place(row)}: field {column!r} must be text, not {_kind(value)}")
    return value if value.strip() else ""


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


def _split_prompt_completion(row: Fields) -> Pair:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        if not prompt.strip():
            raise DataError(
                f"{place(row)}: field 'prompt' is empty; rows without a prompt are "
                f'{{"text": ...}}'
            )
        check_plain(row)
        return Pair(prompt, filled(row, "completion"))
    if isinstance(prompt, list) and isinstance(completion, list):
        if len(completion) != 1:
            raise DataError(
                f"{place(row)}: field 'completion' must be one assistant turn, found "
                f"{len(completion)}"
            )
        before = [(message, False) for message, _ in conversation(row, "prompt")]
        return _split_conversation(
            row, before + read_turns(row, "completion", place(row)), "completion"
        )
    raise DataError(
        f"{place(row)}: 'prompt' and 'completion' must be two texts or two lists of "
        f"turns, not {_kind(prompt)} and {_kind(completion)}"
    )


def check_plain(row: Fields) -> None:
    """Refuse what a chat template would need, beside a prompt that is plain text."""
    for name in CHAT:
        if name in row and not missing(row[name]) and row[name] not in ("", [], {}):
            raise DataError(
                f"{place(row)}: field {name!r} is for conversations, and 'prompt' is "
                "plain text; write it into the prompt"
            )


def _split_conversation(row: Fields, turns: list[Turn], column: str) -> Pair:
    where = place(row)
    *prompt, last = (message for message, _ in turns)
    if last["role"] != "assistant":
        raise DataError(
            f"{where}: field {column!r} must end with an assistant turn, not {last['role']!r}"
        )
    if not prompt:
        raise DataError(
            f"{where}: field {column!r} has no turn before the assistant's; add the user's turn"
        )
    if not last["content"].strip() and not last.get("tool_calls"):
        raise DataError(
            f"{where}: the last assistant turn of {column!r} is empty; fill it or drop the row"
        )
    learned = tuple(counts and message["role"] == "assistant" for message, counts in turns)
    if not any(learned[1:]):
        raise DataError(
            f"{where}: no turn of {column!r} counts in the loss, so there is nothing to "
            "learn; drop the row"
        )
    return Pair(prompt, last, learned, given_of(row))


def _kind(value: Any) -> str:
    return {str: "text", list: "a list"}.get(type(value), type(value).__name__)


def _split_text(row: Fields) -> Pair:
    return Pair("", filled(row, "text"))


def _split_messages(row: Fields) -> Pair:
    return _split_conversation(row, conversation(row, "messages"), "messages")


def _split_sharegpt(row: Fields) -> Pair:
    return _split_conversation(row, conversation(row, "conversations"), "conversations")


def _split_alpaca(row: Fields) -> Pair:
    answer: Turn = {"role": "assistant", "content": filled(row, "output")}, True
    return _split_conversation(row, [*alpaca_prompt(row), answer], "output")


class Format(NamedTuple):
    """One format of training rows.

    columns: those that a row must have, by which it is told. optional: those that are read, too;
    `unused_columns` names all others. shape: a row in short. split: a row that has the columns ->
    its prompt and completion; raises DataError in one line.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    shape: str
    split: Callable[[Fields], Pair]

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read, the first of `columns` first."""
        return *self.columns, *self.optional


FORMATS: dict[str, Format] = {
    "text": Format(("text",), (), '{"text"}', _split_text),
    "messages": Format(("messages",), CHAT, '{"messages": [{"role", "content"}]}', _split_messages),
    "prompt-completion": Format(
        ("prompt", "completion"), CHAT, '{"prompt", "completion"}', _split_prompt_completion
    ),
    "alpaca": Format(
        ("instruction", "output"),
        ("input", "history", *CHAT),
        '{"instruction", "input", "output"}',
        _split_alpaca,
    ),
    "sharegpt": Format(
        ("conversations",), CHAT, '{"conversations": [{"from", "value"}]}', _split_sharegpt
    ),
}
"""A new format of rows is one row of this table and its `split`."""


def shapes() -> str:
    """All formats in one line, for messages."""
    return "; ".join(f"{name} {fmt.shape}" for name, fmt in FORMATS.items())
