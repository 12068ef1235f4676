"""What of the data does not do what its author may think: said in `ftk check`, and when a run
begins.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.data.encode import Example, prompt_text, reads_the_same
from toolkit.data.formats import FORMATS, Fields, detect_format, split_row, unused_columns
from toolkit.data.locate import files_of
from toolkit.data.rows import READERS, Row, keys_aside, read_rows
from toolkit.data.suites import SHIFTS, Prompt, unused_in_suite
from toolkit.data.turns import Message, missing
from toolkit.embedded import suite_of
from toolkit.record.files import home

SHOWN = 12
"""names in a note"""


def survey(
    train: str,
    fmt: str,
    suites: Mapping[str, str],
    prompts: Mapping[str, Sequence[Prompt]],
    examples: Sequence[Example],
    tokenizer: Any,
) -> list[str]:
    """Notes, one line each; none where everything that is there is used.

    train, suites: sources as in a recipe. prompts: of each suite, as read. examples: the training
    rows in tokens. Named are files of a folder that are not read, columns and turn keys that reach
    no token, rows that were cut, and suite prompts that are training rows.
    """
    notes = []
    if train:
        rows = read_rows(train)
        fmt = detect_format(rows) if fmt == "auto" else fmt
        notes += aside(train) + _together(train, rows, FORMATS[fmt].used)
        notes += _unused("training rows", unused_columns(rows, FORMATS[fmt].used), len(rows))
        notes += _unused_keys("training rows", _conversations(rows, fmt), len(rows), tokenizer)
        notes += _greetings(rows, fmt)
        if cut := sum(example.truncated for example in examples):
            notes.append(
                f"{cut:,} of {len(examples):,} training rows are longer than "
                "`data.max_length` and were cut to it"
            )
    for name, source in suites.items():
        if not suite_of(source):
            rows = read_rows(source, suite=True)
            notes += aside(source, suite=True) + _together(source, rows)
            notes += _unused(f"suite {name}", unused_in_suite(rows), len(rows))
            asked = [
                (prompt.prompt, prompt.given)
                for prompt in prompts.get(name, ())
                if isinstance(prompt.prompt, list)
            ]
            notes += _unused_keys(f"suite {name}", asked, len(rows), tokenizer)
    return [*notes, *known_prompts(prompts, examples, tokenizer)]


def aside(source: str, *, suite: bool = False) -> list[str]:
    """What of a folder, or of a JSON file, is not read; nothing of any other source."""
    path = home(source)
    if path.is_file():
        return keys_aside(path)
    files, notes = files_of(path, READERS, suite=suite) if path.is_dir() else ([], [])
    return [*notes, *(note for file in files for note in keys_aside(file))]


def _together(source: str, rows: Sequence[Row], used: Sequence[str] = ()) -> list[str]:
    """The files of a folder that are read as one, with their rows, and rows that stand in two of
    them; nothing of one file.

    used: the columns by which rows are the same; all of them without.
    """
    of = Counter(row.file for row in rows if row.file)
    if len(of) < 2:
        return []
    folder = home(source)
    listed = [f"{file.relative_to(folder)} ({count:,} rows)" for file, count in of.items()]
    if len(listed) > SHOWN:
        listed[SHOWN:] = [f"{len(listed) - SHOWN} more ({sum([*of.values()][SHOWN:]):,} rows)"]
    notes = [f"{folder}: read together: {', '.join(listed)}"]
    files: dict[tuple[tuple[str, str], ...], dict[Path, None]] = {}
    again = 0
    for row in rows:
        if row.file:
            content = tuple(
                sorted(
                    (name, str(value))
                    for name, value in row.items()
                    if not missing(value) and (not used or name in used)
                )
            )
            holders = files.setdefault(content, {})
            again += bool(holders.keys() - {row.file})
            holders[row.file] = None
    if again:
        first, second, *_ = next(holders for holders in files.values() if len(holders) > 1)
        notes.append(
            f"{folder}: {again:,} of {len(rows):,} rows stand in two files, such as "
            f"{first.relative_to(folder)} and "
            f"{second.relative_to(folder)}, and count twice; take one of the files out"
        )
    return notes


def known_prompts(
    prompts: Mapping[str, Sequence[Prompt]], examples: Iterable[Example], tokenizer: Any
) -> list[str]:
    """How many prompts of each shift are prompts of training rows too, or begin a text that is
    learned whole.

    Two prompts are equal when the model reads the same text, white space aside.
    """
    trained, whole = set(), []
    for example in examples:
        if example.prompt:
            trained.add(_normal(example.prompt))
        else:
            whole.append(_normal(example.completion))
    whole.sort()
    asked: dict[str, list[bool]] = {}
    for suite in prompts.values():
        for prompt in suite:
            text = _normal(prompt_text(prompt, tokenizer))
            position = bisect_left(whole, text)
            seen = text in trained or position < len(whole) and whole[position].startswith(text)
            asked.setdefault(prompt.shift, []).append(seen)
    counts = [
        f"{sum(asked[shift]):,} of {len(asked[shift]):,} {shift}"
        for shift in SHIFTS
        if any(asked.get(shift, ()))
    ]
    return (
        [
            f"prompts that are training rows, too: {', '.join(counts)}; they measure what "
            "was learned by heart"
        ]
        if counts
        else []
    )


def _conversations(
    rows: Sequence[Fields], fmt: str
) -> Iterator[tuple[list[Message], dict[str, Any]]]:
    """The turns of every row that has some, and what the template gets beside them."""
    for row in rows:
        pair = split_row(row, fmt)
        if isinstance(pair.prompt, list) and not isinstance(pair.completion, str):
            yield [*pair.prompt, pair.completion], pair.given


def _unused_keys(
    of: str,
    conversations: Iterable[tuple[list[Message], Mapping[str, Any]]],
    rows: int,
    tokenizer: Any,
) -> list[str]:
    """A note on keys of turns, and on options for the template, without which every conversation
    would read the same.
    """
    counts: dict[str, int] = {}
    used: set[str] = set()
    for turns, given in conversations:
        keys = [
            key for turn in turns for key in turn if key not in ("role", "content", "tool_calls")
        ]
        for key in dict.fromkeys(
            [*keys, *(name for name in given if name not in ("tools", "date"))]
        ):
            counts[key] = counts.get(key, 0) + 1
            if key not in used and _is_read(key, turns, given, tokenizer):
                used.add(key)
    idle = {key: count for key, count in counts.items() if key not in used}
    return (
        [
            f"{of}: keys of turns that reach no token, for the base has no use for them: "
            f"{_listed(idle, rows)}"
        ]
        if idle
        else []
    )


def _is_read(key: str, turns: list[Message], given: Mapping[str, Any], tokenizer: Any) -> bool:
    """Whether the conversation, or the prompt of its last turn, reads otherwise without a key."""
    less = [{name: value for name, value in turn.items() if name != key} for turn in turns]
    fewer = {name: value for name, value in given.items() if name != key}
    if not reads_the_same(turns, less, tokenizer, given, fewer, reply=False):
        return True
    end = len(turns) - (turns[-1]["role"] == "assistant")
    return end > 0 and not reads_the_same(
        turns[:end], less[:end], tokenizer, given, fewer, reply=True
    )


def _greetings(rows: Sequence[Fields], fmt: str) -> list[str]:
    """Turns of an assistant that speaks first: nothing is asked, so nothing is learned."""
    if fmt not in ("messages", "sharegpt"):
        return []
    pairs = (split_row(row, fmt) for row in rows)
    first = sum(
        isinstance(pair.prompt, list) and pair.prompt[0]["role"] == "assistant" for pair in pairs
    )
    return (
        [
            "first turns of an assistant, which answer nothing and are not learned: "
            f"{first:,} of {len(rows):,} rows"
        ]
        if first
        else []
    )


def _unused(of: str, counts: Mapping[str, int], rows: int) -> list[str]:
    return [f"{of}: columns that are not used: {_listed(counts, rows)}"] if counts else []


def _listed(counts: Mapping[str, int], rows: int) -> str:
    names = [
        name if count == rows else f"{name} (in {count:,} of {rows:,} rows)"
        for name, count in counts.items()
    ]
    return ", ".join(names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )


def _normal(text: str) -> str:
    return " ".join(text.split())
