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


def _turn(turn: Any, keys: tuple[str, str], roles: Mapping[str, str], at: str) -> Turn:
    role_key, text_key = keys
    if (
        not isinstance(turn, dict)
        or role_key not in turn
        or not (text_key in turn or turn.get("tool_calls"))
    ):
        raise DataError(f'{at}: a turn is {{"{role_key}": ..., "{text_key}": ...}}')
    said = turn[role_key]
    if not isinstance(said, str) or said not in roles:
        raise DataError(f"{at}: unknown {role_key} {said!r}; use one of {', '.join(roles)}")
    more = {key: value for key, value in turn.items() if key not in keys and not missing(value)}
    if both := {"role", "content"} & set(more):
        raise DataError(f"{at}: has {role_key!r} and {sorted(both)[0]!r}; use one spelling")
    counts = _in_loss(more, roles[said], at)
    if calls := more.pop("tool_calls", None):
        more["tool_calls"] = read_calls(calls, at)
    content = turn.get(text_key)
    if said == "function_call":
        more["tool_calls"] = read_calls(content, at)
        content = None
    if missing(content) and "tool_calls" in more:
        content = ""
    return {"role": roles[said], "content": _text(content, text_key, at), **more}, counts


def _in_loss(more: dict[str, Any], role: str, at: str) -> bool:
    """Whether a turn counts in the loss; takes the keys that say so out of `more`."""
    if within := [key for key in WITHIN if key in more]:
        raise DataError(
            f"{at}: {within[0]!r}: parts of a turn cannot be left out of the loss; split "
            "the turn or drop the key"
        )
    said = {key: more.pop(key) for key in IN_LOSS if key in more}
    for key, value in said.items():
        if value not in (0, 1):  # True and False among them
            raise DataError(f"{at}: {key!r} must be 0 or 1 (false or true), not {value!r}")
        if value and role != "assistant" and key != "weight":
            raise DataError(
                f"{at}: {key!r} asks to learn what the {role} says; assistant turns alone "
                "are learned, drop the key"
            )
    return all(said.values())


def _text(content: Any, key: str, at: str) -> str:
    if isinstance(content, str):
        return content
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(part, dict) and "type" in part for part in content)
    ):
        raise DataError(f"{at}: {key!r} must be text, not {type(content).__name__}")
    for number, part in enumerate(content, 1):
        if part["type"] != "text" or not isinstance(part.get("text"), str):
            raise DataError(
                f"{at}: part {number} of {key!r} is {part['type']!r}; training is on text alone"
            )
    return "".join(part["text"] for part in content)


def read_calls(calls: Any, at: str) -> list[dict[str, Any]]:
    """Tool calls as {"type": "function", "function": {"name", "arguments"}}, the arguments an
    object. Raises DataError.
    """
    calls = _from_json(calls, f"{at}: tool calls")
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise DataError(f"{at}: tool calls must be a list, not {type(calls).__name__}")
    found = []
    for number, call in enumerate(calls, 1):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f'{at}: tool call {number} must be {{"type": "function", "function": '
                f'{{"name", "arguments"}}}}'
            )
        arguments = _from_json(
            function.get("arguments") or {}, f"{at}: tool call {number}: 'arguments'"
        )
        if not isinstance(arguments, dict):
            raise DataError(
                f"{at}: tool call {number}: 'arguments' must be an object, not "
                f"{type(arguments).__name__}"
            )
        own = {
            key: value
            for key, value in function.items()
            if function is not call or key in ("name", "arguments")
        }
        around = {key: value for key, value in call.items() if key not in ("function", *own)}
        found.append({"type": "function", **around, "function": {**own, "arguments": arguments}})
    return found


def read_tools(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The tools of a row as {"type": "function", "function": {...}}; a bare function is wrapped so.
    Raises DataError.
    """
    tools = unpacked(row, "tools", where) or []
    if not isinstance(tools, list):
        raise DataError(
            f"{where}: field 'tools' must be a list of functions, not {type(tools).__name__}"
        )
    found = []
    for number, tool in enumerate(tools, 1):
        tool = _from_json(tool, f"{where}: field 'tools', tool {number}")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f'{where}: field \'tools\', tool {number}: must be {{"type": "function", '
                f'"function": {{"name", ...}}}}'
            )
        if isinstance(function.get("parameters"), str):
            at = f"{where}: field 'tools', tool {number}: 'parameters'"
            function = {**function, "parameters": _from_json(function["parameters"], at)}
        around = (
            {key: value for key, value in tool.items() if key != "function"}
            if "function" in tool
            else {}
        )
        bare = {key: value for key, value in function.items() if key != "type"}
        found.append({"type": "function", **around, "function": bare})
    return found


def _from_json(value: Any, at: str) -> Any:
    """A value, read where it is JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{at} is text that is no JSON: {' '.join(str(error).split())[:100]}"
        ) from None
