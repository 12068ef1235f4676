"""Conversations in a row: turns and tools, whole, as a chat template takes them."""

from collections.abc import Mapping
from typing import Any

from toolkit.data.locate import DataError
from toolkit.record.plain import parse

Message = dict[str, Any]
"""One turn: {"role", "content"} and whatever else the row gives it, such as `tool_calls`; the chat
template sees all of it.
"""

Turn = tuple[Message, bool]
"""A message, and whether it counts in the loss where an assistant speaks it."""

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
}
SHAREGPT_ROLES |= {role: role for role in ROLES}

IN_LOSS = ("weight", "train", "training")
"""Keys of a turn that say whether it counts in the loss, as OpenAI (`weight: 0`) and axolotl write
it; no template sees them.
"""

WITHIN = ("train_detail", "training_detail")
"""Keys that choose parts of a turn."""


def missing(value: Any) -> bool:
    """Null, or NaN, which is how data frames write a missing cell."""
    return value is None or isinstance(value, float) and value != value


def unpacked(row: Mapping[str, Any], column: str, where: str) -> Any:
    """A field that is a list or an object, also where a table keeps it as JSON text. None where
    there is nothing.
    """
    value = row.get(column)
    if missing(value) or isinstance(value, str) and not value.strip():
        return None
    return _from_json(value, f"{where}: field {column!r}")


def read_turns(row: Mapping[str, Any], column: str, where: str) -> list[Turn]:
    """The turns in a column, read from either spelling of their keys, with all their other keys but
    those of the loss.

    Parts of a content that are text become one text; arguments of a tool call that are JSON text
    become an object. Raises DataError for an unknown role, a turn without text or tool calls, parts
    that are no text, or a weight between 0 and 1.
    """
    turns = row[column]
    if isinstance(turns, str) and turns.lstrip()[:1] == "[":
        turns = _from_json(turns, f"{where}: field {column!r}")
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: field {column!r} must be a list of turns and not empty")
    keys = ("from", "value") if column == "conversations" else ("role", "content")
    if column == "conversations" and isinstance(turns[0], dict) and "from" not in turns[0]:
        keys = ("role", "content")  # sharegpt by the name of its column only
    roles = SHAREGPT_ROLES if column == "conversations" else {role: role for role in ROLES}
    return [
        _turn(turn, keys, roles, f"{where}: field {column!r}, turn {number}")
        for number, turn in enumerate(turns, 1)
    ]


def _turn(turn: Any, keys: tuple[str, str], roles: Mapping[str, str], where: str) -> Turn:
    role_key, text_key = keys
    if (
        not isinstance(turn, dict)
        or role_key not in turn
        or not (text_key in turn or turn.get("tool_calls"))
    ):
        raise DataError(f'{where}: a turn is {{"{role_key}": ..., "{text_key}": ...}}')
    role = turn[role_key]
    if not isinstance(role, str) or role not in roles:
        raise DataError(f"{where}: unknown {role_key} {role!r}; use one of {', '.join(roles)}")
    extra = {key: value for key, value in turn.items() if key not in keys and not missing(value)}
    if both := {"role", "content"} & set(extra):
        raise DataError(f"{where}: has {role_key!r} and {sorted(both)[0]!r}; use one spelling")
    counts = _in_loss(extra, roles[role], where)
    if calls := extra.pop("tool_calls", None):
        extra["tool_calls"] = read_calls(calls, where)
    content = turn.get(text_key)
    if role == "function_call":
        extra["tool_calls"] = read_calls(content, where)
        content = None
    if missing(content) and "tool_calls" in extra:
        content = ""
    return {"role": roles[role], "content": _text(content, text_key, where), **extra}, counts


def _in_loss(extra: dict[str, Any], role: str, where: str) -> bool:
    """Whether a turn counts in the loss; takes the keys that say so out of `extra`."""
    if within := [key for key in WITHIN if key in extra]:
        raise DataError(
            f"{where}: {within[0]!r}: parts of a turn cannot be left out of the loss; split "
            "the turn or drop the key"
        )
    flags = {key: extra.pop(key) for key in IN_LOSS if key in extra}
    for key, value in flags.items():
        if value not in (0, 1):  # True and False among them
            raise DataError(f"{where}: {key!r} must be 0 or 1 (false or true), not {value!r}")
        if value and role != "assistant" and key != "weight":
            raise DataError(
                f"{where}: {key!r} asks to learn what the {role} says; assistant turns alone "
                "are learned, drop the key"
            )
    return all(flags.values())


def _text(content: Any, key: str, where: str) -> str:
    if isinstance(content, str):
        return content
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(part, dict) and "type" in part for part in content)
    ):
        raise DataError(f"{where}: {key!r} must be text, not {type(content).__name__}")
    for number, part in enumerate(content, 1):
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            raise DataError(
                f"{where}: part {number} of {key!r} is {part['type']!r}; training is on text alone"
            )
    return "".join(part["text"] for part in content)


def read_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls as {"type": "function", "function": {"name", "arguments"}}, the arguments an
    object. Raises DataError.
    """
    calls = _from_json(calls, f"{where}: tool calls")
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise DataError(f"{where}: tool calls must be a list, not {type(calls).__name__}")
    plain_calls = []
    for number, call in enumerate(calls, 1):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f'{where}: tool call {number} must be {{"type": "function", "function": '
                f'{{"name", "arguments"}}}}'
            )
        arguments = _from_json(
            function.get("arguments") or {}, f"{where}: tool call {number}: 'arguments'"
        )
        if not isinstance(arguments, dict):
            raise DataError(
                f"{where}: tool call {number}: 'arguments' must be an object, not "
                f"{type(arguments).__name__}"
            )
        named = {
            key: value
            for key, value in function.items()
            if function is not call or key in ("name", "arguments")
        }
        around = {key: value for key, value in call.items() if key not in ("function", *named)}
        plain_calls.append(
            {"type": "function", **around, "function": {**named, "arguments": arguments}}
        )
    return plain_calls


def read_tools(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The tools of a row as {"type": "function", "function": {...}}; a bare function is wrapped so.
    Raises DataError.
    """
    tools = unpacked(row, "tools", where) or []
    if not isinstance(tools, list):
        raise DataError(
            f"{where}: field 'tools' must be a list of functions, not {type(tools).__name__}"
        )
    plain_tools = []
    for number, tool in enumerate(tools, 1):
        tool = _from_json(tool, f"{where}: field 'tools', tool {number}")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f'{where}: field \'tools\', tool {number}: must be {{"type": "function", '
                f'"function": {{"name", ...}}}}'
            )
        if isinstance(function.get("parameters"), str):
            place = f"{where}: field 'tools', tool {number}: 'parameters'"
            function = {**function, "parameters": _from_json(function["parameters"], place)}
        around = (
            {key: value for key, value in tool.items() if key != "function"}
            if "function" in tool
            else {}
        )
        bare = {key: value for key, value in function.items() if key != "type"}
        plain_tools.append({"type": "function", **around, "function": bare})
    return plain_tools


def _from_json(value: Any, where: str) -> Any:
    """A value, read where it is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is text that is no JSON: {' '.join(str(error).split())[:100]}"
        ) from None
