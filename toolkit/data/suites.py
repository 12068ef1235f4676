"""Suites: the prompts on which subjects are measured."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from toolkit.data.formats import (
    FORMATS,
    Fields,
    alpaca_prompt,
    check_plain,
    conversation,
    filled,
    given_of,
    place,
    unused_columns,
    with_system,
)
from toolkit.data.rows import DataError, Row, read_rows
from toolkit.data.turns import Message, Turn
from toolkit.embedded import NEWEST, suite_of
from toolkit.text.values import text

SHIFTS = ("typical", "near", "far")
"""How far a prompt is from the training data."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a suite.

    prompt: plain text, or messages for the chat template. given: what the template gets beside
    them: `tools`, options of the row, and `date`, the day that it is told (YYYY-MM-DD).
    cluster: prompts that are not independent of each other (paraphrases of one question) share it.
    reference: the correct text, where there is one.
    """

    id: str
    prompt: str | list[Message]
    category: str
    shift: str
    cluster: str
    reference: str | None
    given: dict[str, Any] = field(default_factory=dict, hash=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without `given` where there is nothing."""
        return {key: value for key, value in asdict(self).items() if key != "given" or value}


OWN = ("id", "prompt", "category", "shift", "cluster", "reference")
"""The columns of a row of a suite; one that is a training row has the columns of its format,
too.
"""


def read_suite(
    source: str, *, name: str, chat: bool = False, date: str | None = None
) -> list[Prompt]:
    """The prompts of a suite: a file, folder or hub data set as in `read_rows`, or
    `embedded:typical|near|far`, the newest version of the embedded suites (`embedded@1:far`: the
    first).

    A row has `prompt` and may have `id`, `category`, `shift`, `cluster` and `reference`. Training
    rows work too: the completion, the last assistant turn or the `output` is the reference.
    Defaults: an id from the position and the content, the suite's name as category, and as shift
    where it is one (else typical), the id as cluster.

    name: of the suite in the recipe; plain `embedded` is the embedded suite of this name.
    chat: training saw conversations (`is_chat`), so a prompt that is plain text becomes one user
    turn.
    date: the day that a chat template is told; None: today.

    Raises DataError for an empty suite or prompt, an id that stands twice, or an unknown shift.
    """
    embedded = suite_of(source)
    rows = _embedded(source, *embedded, name) if embedded else read_rows(source, suite=True)

    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for position, row in enumerate(rows):
        prompt = _prompt(row, position, name, chat, date)
        if prompt.id in seen:
            raise DataError(
                f"{place(row)}: field 'id': {prompt.id!r} stands at {seen[prompt.id]} "
                "already; ids are unique"
            )
        seen[prompt.id] = place(row)
        prompts.append(prompt)
    return prompts


def _embedded(source: str, version: str | None, shift: str | None, name: str) -> list[Row]:
    from toolkit.embedded import prompts

    shift, version = shift or name, str(NEWEST) if version is None else version
    if shift not in SHIFTS:
        raise DataError(
            f"{source}: no embedded suite {shift!r}; use one of "
            f"{', '.join(f'embedded:{s}' for s in SHIFTS)}"
        )
    if version not in map(str, prompts.VERSIONS):
        versions = ", ".join(f"embedded@{v}" for v in prompts.VERSIONS)
        raise DataError(
            f"{source}: no version {version!r} of the embedded suites; use one of {versions}"
        )
    return [
        Row(fields, f"{source}, row {n}")
        for n, fields in enumerate(prompts.suite(shift, int(version)), 1)
    ]


def unused_in_suite(rows: Sequence[Fields]) -> dict[str, int]:
    """Columns of a suite that nothing reads -> rows that have something in them."""
    formats = [
        fmt.used for name, fmt in FORMATS.items() if fmt.columns[0] in rows[0] and name != "text"
    ]
    return unused_columns(rows, [*OWN, *(formats[0] if formats else ())])


def _prompt(row: Fields, position: int, name: str, chat: bool, date: str | None) -> Prompt:
    prompt, reference = _question(row)
    given = {}
    if isinstance(prompt, str) and chat:
        prompt = [
            message
            for message, _ in with_system(row, [({"role": "user", "content": prompt}, False)])
        ]
    if isinstance(prompt, str):
        check_plain(row)
    else:
        given = given_of(row)
    asked = [prompt, given] if given else prompt
    content = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    row_id = _label(row, "id") or f"{position:05d}-{content}"
    shift = _label(row, "shift") or (name if name in SHIFTS else "typical")
    if shift not in SHIFTS:
        raise DataError(
            f"{place(row)}: field 'shift': unknown {shift!r}; use one of {', '.join(SHIFTS)}"
        )
    return Prompt(
        id=row_id,
        prompt=prompt,
        category=_label(row, "category") or name,
        shift=shift,
        cluster=_label(row, "cluster") or row_id,
        reference=_label(row, "reference") or reference,
        given={**given, "date": date} if date and isinstance(prompt, list) else given,
    )


def _question(row: Fields) -> tuple[str | list[Message], str | None]:
    """The prompt of a row, and the completion where the row is one of training."""
    if "prompt" in row:
        if not isinstance(row["prompt"], list):
            return filled(row, "prompt"), _label(row, "completion")
        turns = conversation(row, "prompt")
        answer = conversation(row, "completion")[-1:] if row.get("completion") else []
    elif "messages" in row or "conversations" in row:
        turns = conversation(row, "messages" if "messages" in row else "conversations")
        answer = [turns.pop()] if turns[-1][0]["role"] == "assistant" else []
    elif "instruction" in row:
        return [message for message, _ in alpaca_prompt(row)], _label(row, "output")
    else:
        raise DataError(
            f"{place(row)}: field 'prompt' is missing (columns {', '.join(row)}); a row "
            "of a suite has 'prompt', or is a "
            "messages, sharegpt, prompt-completion or alpaca row"
        )
    messages = [message for message, _ in turns]
    if not messages or messages[-1]["role"] == "assistant":
        raise DataError(f"{place(row)}: the prompt must end with a turn that the assistant answers")
    if not messages[-1]["content"].strip():
        raise DataError(f"{place(row)}: the last turn of the prompt is empty")
    return messages, _reply(row, answer)


def _reply(row: Fields, answer: list[Turn]) -> str | None:
    """What the last assistant turn says, as far as an answer can be held against it: text."""
    if not answer:
        return None
    message = answer[0][0]
    if message.get("tool_calls") and _label(row, "reference") is None:
        raise DataError(
            f"{place(row)}: the assistant answers with a tool call, not with text; write "
            "the expected text as 'reference'"
        )
    return message["content"]


def _label(row: Fields, column: str) -> str | None:
    """A field as text, numbers and dates included; None where it is missing or empty."""
    value: Any = row.get(column)
    if not isinstance(value, (dict, list, bytes)):
        return word if (word := text(value)) and word.strip() else None
    raise DataError(f"{place(row)}: field {column!r} must be text, not {type(value).__name__}")
