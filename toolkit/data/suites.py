"""Suites: the prompts on which subjects are measured."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from toolkit.data.formats import Fields, Message, alpaca_prompt, conversation, filled, place
from toolkit.data.rows import DataError, Row, read_rows
from toolkit.embedded import NEWEST, suite_of

SHIFTS = ("typical", "near", "far")
"""How far a prompt is from the training data."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of a suite.

    prompt: plain text, or messages for the chat template.
    cluster: prompts that are not independent of each other (paraphrases of one question) share it.
    reference: the correct text, where there is one.
    """

    id: str
    prompt: str | list[Message]
    category: str
    shift: str
    cluster: str
    reference: str | None


def read_suite(source: str, *, name: str, chat: bool = False) -> list[Prompt]:
    """The prompts of a suite: a file, folder or hub data set as in `read_rows`, or `embedded:typical|near|far`, the newest
    version of the embedded suites (`embedded@1:far`: the first).

    A row has `prompt` and may have `id`, `category`, `shift`, `cluster` and `reference`. Training rows work too: the
    completion, the last assistant turn or the `output` is the reference. Defaults: an id from the position and the
    content, the suite's name as category, and as shift where it is one (else typical), the id as cluster.

    name: of the suite in the recipe; plain `embedded` is the embedded suite of this name.
    chat: training saw conversations (`is_chat`), so a prompt that is plain text becomes one user turn.

    Raises DataError for an empty suite or prompt, an id that stands twice, or an unknown shift.
    """
    embedded = suite_of(source)
    rows = _embedded(source, *embedded, name) if embedded else read_rows(source)

    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for position, row in enumerate(rows):
        prompt = _prompt(row, position, name, chat)
        if prompt.id in seen:
            raise DataError(f"{place(row)}: field 'id': {prompt.id!r} stands at {seen[prompt.id]} already; ids are unique")
        seen[prompt.id] = place(row)
        prompts.append(prompt)
    return prompts


def _embedded(source: str, version: str | None, shift: str | None, name: str) -> list[Row]:
    from toolkit.embedded import suites

    shift, version = shift or name, str(NEWEST) if version is None else version
    if shift not in SHIFTS:
        raise DataError(f"{source}: no embedded suite {shift!r}; use one of {', '.join(f'embedded:{s}' for s in SHIFTS)}")
    if version not in map(str, suites.VERSIONS):
        known = ", ".join(f"embedded@{v}" for v in suites.VERSIONS)
        raise DataError(f"{source}: no version {version!r} of the embedded suites; use one of {known}")
    return [Row(fields, f"{source}, row {n}") for n, fields in enumerate(suites.suite(shift, int(version)), 1)]


def _prompt(row: Fields, position: int, name: str, chat: bool) -> Prompt:
    prompt, reference = _question(row)
    if chat and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    content = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()[:8]
    row_id = _label(row, "id") or f"{position:05d}-{content}"
    shift = _label(row, "shift") or (name if name in SHIFTS else "typical")
    if shift not in SHIFTS:
        raise DataError(f"{place(row)}: field 'shift': unknown {shift!r}; use one of {', '.join(SHIFTS)}")
    return Prompt(
        id=row_id,
        prompt=prompt,
        category=_label(row, "category") or name,
        shift=shift,
        cluster=_label(row, "cluster") or row_id,
        reference=_label(row, "reference") or reference,
    )


def _question(row: Fields) -> tuple[str | list[Message], str | None]:
    """The prompt of a row, and the completion where the row is one of training."""
    if "prompt" in row:
        completion = row.get("completion")
        if isinstance(row["prompt"], list):
            messages = conversation(row, "prompt")
            reply = conversation(row, "completion")[-1]["content"] if completion else None
        else:
            return filled(row, "prompt"), _label(row, "completion")
    elif "messages" in row or "conversations" in row:
        messages, reply = conversation(row, "messages" if "messages" in row else "conversations"), None
        if messages[-1]["role"] == "assistant":
            reply = messages.pop()["content"]
    elif "instruction" in row:
        return alpaca_prompt(row), _label(row, "output")
    else:
        raise DataError(
            f"{place(row)}: field 'prompt' is missing (columns {', '.join(row)}); a row of a suite has 'prompt', or is a "
            "messages, sharegpt, prompt-completion or alpaca row"
        )
    if not messages or messages[-1]["role"] == "assistant":
        raise DataError(f"{place(row)}: the prompt must end with a turn that the assistant answers")
    if not messages[-1]["content"].strip():
        raise DataError(f"{place(row)}: the last turn of the prompt is empty")
    return messages, reply


def _label(row: Fields, column: str) -> str | None:
    """A field as text, numbers included; None where it is missing or empty."""
    value: Any = row.get(column)
    if value is None or value != value:  # NaN is how data frames write a missing cell
        return None
    if isinstance(value, (bool, int, float, str)):
        return str(value) if str(value).strip() else None
    raise DataError(f"{place(row)}: field {column!r} must be text, not {type(value).__name__}")
