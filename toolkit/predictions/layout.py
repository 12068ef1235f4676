"""Which column of a file has which role: told from the names of the columns."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from toolkit.seeds import SOURCES

NAMES = {
    "replica": ("replica", "run", "seed"),
    "prompt": ("prompt_id", "id", "prompt"),
    "output": ("output", "answer", "text", "prediction"),
}
"""Role -> the names that it goes by; the first that a file has counts."""

LABELS = ("words", "category", "shift", "cluster", "reference")
"""What a file may say about a prompt. words: its text, where `prompt` stands beside an id."""

FACTORS = SOURCES
"""What a long file may say about a replica: the level, such as the seed, of each source that makes it differ from others."""

OTHERS = ("condition", "suite", "score", "category", "shift", "cluster", "reference")
KNOWN = {name for names in NAMES.values() for name in names} | set(OTHERS)
REPLICA_COLUMN = re.compile(r"replica[ _-].*|((replica|run|seed)[ _-]?)?\d+.*", re.IGNORECASE)
INDEX_COLUMN = re.compile(r"(__index_level_\d+__|Unnamed: \d+)?")  # what pandas adds to a file
SHAPES = (
    "a long file has replica, prompt (or prompt_id, id) and output (or answer, text, prediction); "
    "a wide one prompt (or prompt_id, id) and one column for each replica"
)


class PredictionsError(ValueError):
    """A file that cannot be read as predictions. The message is one line: the file, the line or row, the field and the fix."""


@dataclass(frozen=True)
class Layout:
    """role: role -> column; replicas: the columns of a wide file, none for a long one; unused: columns that are not read."""

    role: Mapping[str, str]
    replicas: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """The columns that are read, those of replicas apart."""
        return list(dict.fromkeys(self.role.values()))


def layout_of(names: Iterable[str], given: Mapping[str, str | None], where: Callable[[], str]) -> Layout:
    """given: columns that the user named, by role; where: begins an error."""
    names = list(names)

    def error(problem: str) -> PredictionsError:
        return PredictionsError(f"{where()}: {problem} (columns {listed(names)}); {SHAPES}")

    role = {name: name for name in OTHERS if name in names}
    for part, column in given.items():
        usual = next((name for name in NAMES[part] if name in names), None)
        begins = part == "replica" and column and any(name.startswith(column) for name in names)
        if column and column not in names and not begins:
            raise error(f"no column {column!r}")
        found = (column if column in names else None) if column else usual
        if found:
            role[part] = found
    if "prompt" not in role:
        raise error("no column for the prompt")
    if "prompt" in names and "prompt" not in role.values():
        role["words"] = "prompt"
    if "replica" in role:
        if "output" not in role:
            raise error("no column for the output")
        replicas = []
        role |= {name: name for name in FACTORS if name in names and name not in role.values()}
    else:
        role.pop("output", None)
        role.pop("score", None)
        free = [name for name in names if name not in KNOWN | set(role.values()) and not INDEX_COLUMN.fullmatch(name)]
        begin = given["replica"]
        replicas = [name for name in free if (name.startswith(begin) if begin else REPLICA_COLUMN.fullmatch(name))] or free
        if not replicas:
            raise error("no column for the replica")
    used = {*role.values(), *replicas}
    return Layout(role, tuple(replicas), tuple(n for n in names if n not in used and not INDEX_COLUMN.fullmatch(n)))


def listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names if len(names) < 9 else [*names[:4], "...", names[-1]]) or "none"
