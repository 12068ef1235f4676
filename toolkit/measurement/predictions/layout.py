"""Which column of a file has which role: told from the names of the columns, or named on the
shell.
"""

import fnmatch
import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.errors import FtkError
from toolkit.seeds import SOURCES
from toolkit.text.nearest import nearest

REFERENCES = (
    "reference",
    "expected",
    "__expected",
    "expected_output",
    "expected_answer",
    "target",
    "gold",
    "golden",
    "gold_answer",
    "label",
    "ground_truth",
    "groundtruth",
    "truth",
    "correct_answer",
    "reference_answer",
    "ideal",
)
NAMES = {
    "replica": ("replica", "run", "seed"),
    "prompt": ("prompt_id", "id", "prompt", "doc_id"),
    "output": ("output", "answer", "text", "prediction", "filtered_resps"),
    "words": ("prompt", "question"),
    "failed": ("failed", "status"),
    "base": ("base_answer", "base_output"),
}
"""Role -> the names that it goes by; the first that a file has counts."""

LARGEST, LARGEST_SCORE = 1e100, 1e15
"""of numbers: their squares, too, must be numbers, those of scores in single precision"""
SEED = "seed"
"""beside a column for the run: what a run has in common with its repetitions; by itself it names
the run
"""
FACTORS = (*SOURCES, SEED)
"""What a long file may say about a replica: the level, such as the seed, of each source that makes
it differ from others.
"""
SEEDS = {
    "init": "init",
    "data": "order",
    "order": "order",
    "shuffle": "order",
    "dropout": "dropout",
}
"""Word of the name of a seed -> the source that it is the seed of; of others, the seed itself."""

RUN_LABELS = (*FACTORS, "failed")
LABELS = ("words", "category", "shift", "cluster", "reference", "base")
"""What a file may say about a prompt. words: its text, where `prompt` stands beside an id; base:
what the base answers.
"""

OTHERS = ("condition", "suite", "score", "category", "shift", "cluster")
ROLES = (*NAMES, *OTHERS, "reference", *FACTORS)
"""All that can be named on the shell, as `--column role=NAME`."""

KNOWN = {name for names in NAMES.values() for name in names} | set(OTHERS) | set(REFERENCES)
REPLICA_COLUMN = re.compile(
    r"(?P<stem>|r|replica|run|seed|rep|trial|attempt|model|output|prediction|pred|response"
    r"|completion|generation)[ "
    r"_-]*\d+"
    r"|(?P<lettered>replica|run|seed)[ _-][a-z]",
    re.IGNORECASE,
)
INDEX_COLUMN = re.compile(r"(__index_level_\d+__|Unnamed: \d+)?")  # what pandas adds to a file
# `[openai:gpt] my prompt`, as promptfoo heads the answers of a provider
GRADED_COLUMN = re.compile(r"\[[^\]]+\] .*", re.DOTALL)
SHAPES = (
    "a long file has replica, prompt (or prompt_id, id) and output (or answer, text, prediction); "
    "a wide one prompt (or prompt_id, id) and a column for each replica, run_1, run_2, ...; "
    "name others with --column ROLE=NAME and --replica-columns NAMES"
)
LM_EVAL = (
    "a log of lm-eval is one run; put all in one file, with the run in every row: "
    "jq -c "
    "'{run: input_filename, id: .doc_id, output: .filtered_resps, reference: .target}' "
    "*/samples_TASK_*.jsonl > preds.jsonl"
)
PROMPTFOO = (
    "results of promptfoo, which mix answers and grades; make rows of its JSON or JSONL: "
    "jq -c '(.results.results[]? // .) | "
    '{run: "\\(.provider.id)/\\(.promptIdx)", id: .testIdx, output: .response.output, score}\' '
    "out.json > preds.jsonl"
)


class PredictionsError(FtkError, ValueError):
    """A file that cannot be read as predictions. The message is one line: the file, the line or
    row, the field and the fix.
    """


@dataclass(frozen=True)
class Asked:
    """What the user says about the columns. role: role -> column, "" for none; replicas: names,
    patterns or beginnings of the columns of a wide file.
    """

    role: Mapping[str, str] = field(default_factory=dict)
    replicas: Sequence[str] = ()


@dataclass(frozen=True)
class Layout:
    """role: role -> column; replicas: the columns of a wide file, none for a long one; unused:
    columns that say nothing; sources: the roles of the columns that are sources of variation.
    """

    role: Mapping[str, str]
    replicas: tuple[str, ...]
    unused: tuple[str, ...]
    sources: tuple[str, ...] = ()

    @property
    def asks_by_text(self) -> bool:
        """Whether what names a prompt is its text, not an id, which other suites may have, too."""
        return self.role.get("prompt") in NAMES["words"]

    def left_aside(self, source: str) -> str:
        """How the user leaves a source aside."""
        return f"--column {source if source in FACTORS else source_of(source)}= leaves it aside"

    @property
    def columns(self) -> list[str]:
        """The columns that are read, those of replicas apart."""
        return list(dict.fromkeys(self.role.values()))


def source_of(name: str) -> str | None:
    """Which of FACTORS a column is by its name, in predictions and in tables of runs: `order` for
    order, data_seed and shuffleSeed; None for a column that names no source.
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    if name in FACTORS:
        return name
    if not {"seed", "seeds"} & set(words) and words != ["random", "state"]:
        return None
    return next((SEEDS[word] for word in words if word in SEEDS), SEED)


def different(levels: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Sources -> the level of every run, without a plain seed that says what another says.

    Init and order that go together stay two: which of them makes runs differ is not known.
    """
    first_with: dict[tuple[int, ...], str] = {}
    kept = []
    for name in sorted(levels, key=lambda name: source_of(name) in (SEED, None)):
        number: dict[str, int] = {}
        level_R = tuple(number.setdefault(of, len(number)) for of in levels[name])
        if first_with.setdefault(level_R, name) == name or source_of(name) in SOURCES:
            kept.append(name)
    return {name: levels[name] for name in levels if name in kept}


def maybe_sources(names: Sequence[str]) -> str:
    """A note on columns that are not used, of which runs share values."""
    return (
        f"runs share values of {listed(names)}: where that is something they were trained with, "
        f"such as a seed, they are not independent; name it, --column {command('seed', names[0])}"
    )


def layout_of(names: Iterable[str], asked: Asked, where: Callable[[], str]) -> Layout:
    """asked: what the user says about the columns; where: begins an error.

    A column of a wide file is a replica only where its name tells: a common stem and a number
    (`run_1`, `seed-42`, `0`), or the user.
    """
    names = list(names)

    def error(problem: str, cure: str = SHAPES) -> PredictionsError:
        return PredictionsError(f"{where()}: {problem} (columns {listed(names)}); {cure}")

    begin = asked.role.get("replica")
    if begin and begin not in names and any(name.startswith(begin) for name in names):
        roles = {part: name for part, name in asked.role.items() if part != "replica"}
        asked = Asked(roles, (*asked.replicas, f"{glob.escape(begin)}*"))
    if unknown := next((role for role in asked.role if role not in ROLES), None):
        raise error(f"no role {unknown!r}", f"--column takes {', '.join(ROLES)}")
    if absent := next((name for name in asked.role.values() if name and name not in names), None):
        raise error(f"no column {absent!r}", f"{nearest(absent, names).removeprefix('; ')}")
    taken = {name: part for part, name in asked.role.items() if name}
    if len(taken) < sum(map(bool, asked.role.values())):
        raise error("one column is named for two roles", "name another column for one of them")
    role = {part: name for name, part in taken.items()}
    for part in (*OTHERS, *NAMES):
        if part not in asked.role:
            free = [name for name in names if name not in taken and name not in role.values()]
            usual = next((name for name in NAMES.get(part, (part,)) if name in free), None)
            role |= {part: usual} if usual else {}
    if "reference" not in asked.role:
        role |= _reference(names, taken, error)
    if "replica" not in role and not asked.replicas:
        if {"provider", "vars", "response"} <= set(names):
            raise error("no column for the replica", PROMPTFOO)
        if "filtered_resps" in names:
            raise error("no column for the replica", LM_EVAL)
    if "prompt" not in role:
        raise error("no column for the prompt")
    if asked.replicas and "replica" not in asked.role:
        role.pop("replica", None)
    if "replica" in role:
        if asked.replicas:
            raise error(
                "--column replica=NAME is for long files, --replica-columns for wide ones",
                "give one of the two",
            )
        if "output" not in role:
            scores = (
                "scores without answers are measured as a table of one row a run: write the "
                "mean of each run's scores, and no prompt"
            )
            raise error("no column for the output", scores if "score" in role else SHAPES)
        replicas = []
        free = [n for n in names if n not in role.values() and n not in asked.role]
        seeds = [n for n in free if (source := source_of(n)) and asked.role.get(source) != ""]
        sources = [*(name for name in FACTORS if name in role), *seeds]
        role |= {name: name for name in seeds}
    else:
        sources = []
        for part in ("output", "score", *RUN_LABELS):
            if part in asked.role and asked.role[part]:
                raise error(f"--column {part}= is for long files: a row of a wide one is a prompt")
            role.pop(part, None)
        replicas = _replicas(names, role, asked, error)
    used = {*role.values(), *replicas}
    return Layout(
        role,
        tuple(replicas),
        tuple(n for n in names if n not in used and not INDEX_COLUMN.fullmatch(n)),
        tuple(sources),
    )


def _reference(
    names: Sequence[str], taken: Mapping[str, str], error: Callable[..., PredictionsError]
) -> dict[str, str]:
    """The column of right answers by any of its usual names, of which `reference` goes first."""
    if "reference" in names and "reference" not in taken:
        return {"reference": "reference"}
    usual = [
        name
        for name in names
        if re.sub(r"[ -]", "_", name.strip().lower()) in REFERENCES and name not in taken
    ]
    if len(usual) > 1:
        which = " and ".join(map(repr, usual[:3]))
        raise error(
            f"columns {which} may each be the reference",
            f"say which: --column {command('reference', usual[0])}",
        )
    return {"reference": usual[0]} if usual else {}


def _replicas(
    names: Sequence[str],
    role: Mapping[str, str],
    asked: Asked,
    error: Callable[..., PredictionsError],
) -> list[str]:
    """The columns of the replicas of a wide file."""
    free = [
        name for name in names if name not in role.values() and not INDEX_COLUMN.fullmatch(name)
    ]
    if asked.replicas:
        return _named(names, free, asked.replicas, error)
    free = [name for name in free if name not in KNOWN]
    if graded := [name for name in free if GRADED_COLUMN.fullmatch(name)]:
        raise error(f"column {graded[0]!r} cannot be told to be a replica", PROMPTFOO)
    stems: dict[str, list[str]] = {}
    for name in free:
        if match := REPLICA_COLUMN.fullmatch(name.strip()):
            stems.setdefault((match["stem"] or match["lettered"] or "").lower(), []).append(name)
    if len(stems) == 1:
        return next(iter(stems.values()))
    if not free:
        raise error("no column for the replica")
    several = (
        "columns of several kinds may be the replicas"
        if stems
        else f"columns {listed(free)} cannot be told to be replicas"
    )
    example = ",".join(free[:3]) + (",..." if len(free) > 3 else "")
    raise error(
        several,
        f"name those of the replicas, --replica-columns {_quoted(example)} (or a pattern, "
        "'llama_*'), "
        "and others as --column reference=NAME; what is named neither way is not read",
    )


def _named(
    names: Sequence[str],
    free: Sequence[str],
    wanted: Sequence[str],
    error: Callable[..., PredictionsError],
) -> list[str]:
    """The columns that the user named: by their names, by patterns, or by what several begin with;
    with commas between.
    """
    chosen: dict[str, None] = {}
    for entry in wanted:
        for piece in (
            [entry]
            if entry in names
            else [piece.strip() for piece in entry.split(",") if piece.strip()]
        ):
            hits = (
                [piece]
                if piece in names
                else [name for name in free if fnmatch.fnmatchcase(name, piece)]
            )
            if not hits:
                raise error(
                    f"no column {piece!r} for a replica",
                    nearest(piece, list(free)).removeprefix("; "),
                )
            if lost := next((name for name in hits if name not in free), None):
                raise error(
                    f"column {lost!r} has another role already", "leave it out of --replica-columns"
                )
            chosen |= dict.fromkeys(hits)
    return [name for name in names if name in chosen]


def command(role: str, name: str) -> str:
    """A role of a column as the command line takes it, quoted for a shell."""
    return _quoted(f"{role}={name}")


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w.,=-]+", word) else "'" + word.replace("'", "'\\''") + "'"


def listed(names: Iterable[str]) -> str:
    """Names in a line; of nine or more the first four and the last."""
    names = list(names)
    return ", ".join(names if len(names) < 9 else [*names[:4], "...", names[-1]]) or "none"
