"""The cells of a file, gathered batch by batch as codes, and laid out as tables [replicas, prompts]
in the end.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.data import SHIFTS
from toolkit.data.rows import keys_aside
from toolkit.measurement.predictions.layout import (
    LABELS,
    LARGEST_SCORE,
    PROMPTFOO,
    ROLES,
    SHAPES,
    Asked,
    Layout,
    PredictionsError,
    different,
    layout_of,
    listed,
    maybe_sources,
)
from toolkit.measurement.predictions.readers import (
    CELLS,
    Batch,
    distinct,
    keeps_values,
    place,
    stem,
    untexted,
)
from toolkit.seeds import SOURCES
from toolkit.statistics import MISSING, shared_sources
from toolkit.text.values import text as in_words

if TYPE_CHECKING:
    import pyarrow as pa

UNSEEN = -2  # a cell that no row has claimed
FAILED = frozenset("true 1 yes failed failure fail crashed crash error killed diverged nan".split())
FINISHED = frozenset(
    "false 0 no ok finished success succeeded successful complete completed done passed".split()
)
# log-likelihoods of choices as lm-eval logs them: [["-1.5", "False"], ["-2.25", "False"]]
LIKELIHOODS = re.compile(r'\[{1,2}"?-?\d[\d.e+-]*"?, "?(true|false)"?\]', re.IGNORECASE)
DECIMAL = re.compile(r"-?\d+\.\d+")
GRADES = ("[PASS]", "[FAIL]", "[ERROR]")


@dataclass(frozen=True)
class PredictedPrompt:
    """A prompt, as far as the file tells.

    id: with the suite before it (`suite/id`) where the file has several suites. prompt: its text,
    where that stands beside the id, else the id. category: by default the suite, or `all`. shift:
    by default the suite where it is called like one, or typical.
    """

    id: str
    prompt: str
    category: str
    shift: str
    cluster: str | None
    reference: str | None


@dataclass(frozen=True)
class Arm:
    """The replicas of one condition. text_RP: int32 codes into `Predictions.texts`, -1 missing;
    score_RP: float32, nan missing.

    factors: for each source that the file names, such as `init`, the level of every replica.
    failed: replicas of this arm that the user, or a column of the file, says have failed.
    """

    replicas: tuple[str, ...]
    text_RP: np.ndarray
    score_RP: np.ndarray | None
    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()

    @property
    def missing(self) -> int:
        """Cells without an answer."""
        return sum(int(np.count_nonzero(text_P < 0)) for text_P in self.text_RP)


@dataclass(frozen=True)
class Predictions:
    """arms: condition -> its replicas, all on the same prompts; notes: how the file was understood,
    a sentence each.

    base: what the base model answers, one row, where the file says so.
    """

    prompts: tuple[PredictedPrompt, ...]
    arms: dict[str, Arm]
    texts: list[str]
    notes: tuple[str, ...]
    base: Arm | None = None


class Codes(dict[Any, int]):
    """Values, numbered in order of first appearance."""

    def of(self, value: Any) -> int:
        """The number of a value, a new one for a new value; MISSING for None."""
        return MISSING if value is None else self.setdefault(value, len(self))

    def codes_of(self, index_N: np.ndarray, values: Iterable[Any]) -> np.ndarray:
        """Codes of values[index]; an index of -1 and a value of None are missing."""
        values = list(values)
        codes = list(map(self.get, values))
        if None in codes:
            codes = list(map(self.of, values))
        code_V = np.array([*codes, MISSING], dtype=np.int32)
        if np.array_equal(code_V[:-1], np.arange(len(code_V) - 1)):  # as in the batches before
            return index_N
        return code_V.take(index_N)

    def codes_of_pairs(self, first: "Indexed", second: "Indexed") -> np.ndarray:
        """Codes of (value of one, value of two)."""
        (one_N, ones), (two_N, twos) = first, second
        pair_N = two_N if len(ones) == 1 else one_N.astype(np.int64) * len(twos) + two_N
        seen = np.zeros(len(ones) * len(twos), dtype=bool)
        seen[pair_N] = True
        return self.codes_of(
            pair_N,
            (
                pair if there else None
                for pair, there in zip(itertools.product(ones, twos), seen, strict=True)
            ),
        )


Indexed = tuple[np.ndarray, list[str]]
"""Indices into a list of values."""


@dataclass(frozen=True)
class Part:
    """Codes of the cells of one batch, narrow; cell k stands in row first + k % rows. run: of
    (condition, replica).
    """

    first: int
    rows: int
    run_N: np.ndarray
    prompt_N: np.ndarray
    text_N: np.ndarray
    score_N: np.ndarray | None = None


def narrow(code_N: np.ndarray) -> np.ndarray:
    """In as few bytes as the codes need: a constant in none."""
    low, high = (int(code_N.min()), int(code_N.max())) if len(code_N) else (0, 0)
    code_N = code_N.astype(np.int16 if high < 1 << 15 else np.int32, copy=False)
    return (
        np.broadcast_to(code_N[0].copy(), code_N.shape) if len(code_N) and low == high else code_N
    )


@dataclass
class Cells:
    """What a file says, while it is read. asked: what the user says about its columns."""

    path: Path
    asked: Asked = Asked()
    layout: Layout = Layout({}, (), ())
    names: dict[str, None] = field(default_factory=dict)
    runs: Codes = field(default_factory=Codes)  # of (condition, replica)
    prompts: Codes = field(default_factory=Codes)  # of (suite, id)
    texts: Codes = field(default_factory=Codes)
    labels: dict[str, Codes] = field(default_factory=lambda: defaultdict(Codes))
    # the code of each label by prompt, of each source by run
    label_codes: dict[str, np.ndarray] = field(
        default_factory=lambda: defaultdict(lambda: np.empty(0, dtype=np.int32))
    )
    untexted: set[tuple[str, str]] = field(default_factory=set)  # (kind, column)
    varied: set[str] = field(default_factory=set)  # unused columns that differ within a run
    parts: list[Part] = field(default_factory=list)

    def see(self, names: list[str], row: int | None = None) -> Layout:
        """The layout, told again when row number `row` brings new columns; without a number the
        columns are those of the file.
        """
        if not set(names) <= set(self.names):
            before, self.names = self.layout, self.names | dict.fromkeys(names)

            def where() -> str:
                return str(self.path) if row is None else place(self.path, row)

            self.layout = layout_of(self.names, self.asked, where)
            if before.role and bool(before.replicas) != bool(self.layout.replicas):
                raise PredictionsError(
                    f"{where()}: the columns are others than before ({listed(names)}); {SHAPES}"
                )
        return self.layout

    def add(self, batch: Batch) -> None:
        """Take in the rows of one batch."""
        table, names = batch.table, batch.table.column_names
        layout, rows = self.see(names, batch.first if batch.row else None), table.num_rows
        if not rows:
            return
        if batch.exact:
            plain = {layout.role.get("score"), *layout.unused}
            if not all(
                name in plain or keeps_values(column.type)
                for name, column in zip(names, table.columns, strict=True)
            ):
                table = batch.exact()
        self.untexted |= untexted(table)
        prompt_N = self.prompts.codes_of_pairs(
            self._key(batch, table, "suite"), self._key(batch, table, "prompt")
        )
        self._label(batch, table, LABELS, prompt_N, self.prompts, "prompt")
        condition_N, conditions = self._key(batch, table, "condition")
        if not layout.replicas:
            run_N = self.runs.codes_of_pairs(
                (condition_N, conditions), self._key(batch, table, "replica")
            )
            parts = (*layout.sources, "failed")
            self._label(batch, table, parts, run_N, self.runs, "replica")
            self._watch(batch, table, run_N)
            codes = narrow(run_N), narrow(prompt_N), narrow(self._text(batch, table))
            self.parts.append(Part(batch.first, rows, *codes, self._score(batch, table)))
            return
        there = set(names)
        columns = [name for name in layout.replicas if name in there]
        for _, alike in itertools.groupby(columns, key=lambda name: str(table[name].type)):
            while some := list(itertools.islice(alike, max(1, CELLS // rows))):
                replica_N = np.repeat(np.arange(len(some)), rows)
                run_N = self.runs.codes_of_pairs(
                    (np.tile(condition_N, len(some)), conditions), (replica_N, some)
                )
                text_N = self.texts.codes_of(*distinct([table[name] for name in some]))
                codes = narrow(run_N), narrow(np.tile(prompt_N, len(some))), narrow(text_N)
                self.parts.append(Part(batch.first, rows, *codes))

    def _key(self, batch: Batch, table: "pa.Table", part: str) -> Indexed:
        """A column that every row needs; one empty value where the file has no such column."""
        name = self.layout.role.get(part)
        if name is None:
            return np.broadcast_to(np.int32(0), table.num_rows), [""]
        if name not in table.column_names:
            raise self._error(batch, 0, name, " is missing; every row needs it")
        index_N, values = distinct([table[name]])
        if part in ("prompt", "replica"):
            values = [value if value and value.strip() else None for value in values]
        if index_N.min() < 0 or None in values:
            missing_N = np.array([value is None for value in values] + [True]).take(index_N)
            if missing_N.any():
                raise self._error(
                    batch, missing_N.argmax(), name, " is missing; every row needs it"
                )
        return index_N, [value or "" for value in values]

    def _text(self, batch: Batch, table: "pa.Table") -> np.ndarray:
        """Of JSON a null is a missing answer, and a row that lacks the field a mistake."""
        name = self.layout.role["output"]
        if name in table.column_names and LIKELIHOODS.match(in_words(table[name][0].as_py()) or ""):
            says = (
                " holds log-likelihoods, which differ in every run; write the choice instead: "
                "in jq, "
            )
            choice = "(.filtered_resps | map(.[0] | tonumber) | index(max))"
            raise self._error(batch, 0, name, says + choice)
        text_N = (
            self.texts.codes_of(*distinct([table[name]]))
            if name in table.column_names
            else np.full(table.num_rows, MISSING)
        )
        for row in np.flatnonzero(text_N < 0).tolist() if batch.row else ():
            if batch.row and name not in batch.row(row):
                raise self._error(
                    batch, row, name, " is missing; write null where there is no answer"
                )
        return text_N

    def _score(self, batch: Batch, table: "pa.Table") -> np.ndarray | None:
        name = self.layout.role.get("score")
        if name is None or name not in table.column_names:
            return None
        index_N, values = distinct([table[name]])

        def number(value: str | None) -> float:
            word = (value or "nan").strip().lower() or "nan"
            try:
                score = float({"true": 1, "false": 0}.get(word, word))
            except ValueError:
                return math.inf
            return math.inf if abs(score) > LARGEST_SCORE else score

        score_N = np.array([*map(number, values), math.nan], dtype=np.float32).take(index_N)
        if np.isinf(score_N).any():
            row = int(np.isinf(score_N).argmax())
            raise self._error(
                batch,
                row,
                name,
                f" must be a finite number, not {str(values[index_N[row]])[:40]!r} "
                f"({LARGEST_SCORE:g} at most)",
            )
        return score_N

    def _label(
        self,
        batch: Batch,
        table: "pa.Table",
        parts: Iterable[str],
        owner_N: np.ndarray,
        owners: Codes,
        kind: str,
    ) -> None:
        """What is said about the prompts, or about the replicas: the same on all rows that say it.
        owner_N: of which row.
        """
        for part in parts:
            name = self.layout.role.get(part)
            clash, label_N = self._tell(table, part, name, owner_N, owners)
            if len(clash):
                codes, label_O = self.labels[part], self.label_codes[part]
                row, words = clash[0], list(codes)
                here, other = (
                    repr(words[code][:40]) for code in (label_N[row], label_O[owner_N[row]])
                )
                owner = list(owners)[owner_N[row]]
                whose = _id(owner) if kind == "prompt" else owner[1]
                says = (
                    f": {kind} {whose!r} has {here} here and {other} on another row; it can "
                    "have only one"
                )
                if part in self.layout.sources:
                    says += f", or {self.layout.left_aside(part)}"
                elif part in ROLES:
                    says += f", or --column {part}= leaves the column aside"
                raise self._error(batch, row, name, says)

    def _tell(
        self, table: "pa.Table", part: str, name: str | None, owner_N: np.ndarray, owners: Codes
    ) -> tuple[np.ndarray, np.ndarray]:
        """Takes in what a column says about each owner; the rows that say something else than a row
        before, and the codes of all rows.
        """
        if len(self.label_codes[part]) < len(owners):
            new_O = np.full(len(owners) - len(self.label_codes[part]), MISSING, dtype=np.int32)
            self.label_codes[part] = np.append(self.label_codes[part], new_O)
        codes, label_O = self.labels[part], self.label_codes[part]
        if name not in table.column_names:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
        index_N, values = distinct([table[name]])
        label_N = codes.codes_of(
            index_N, (value if value and value.strip() else None for value in values)
        )
        # few: what is new, and what is not said
        contradicted = np.flatnonzero(label_O.take(owner_N) != label_N)
        contradicted = contradicted[label_N[contradicted] >= 0]
        # the first row that says it comes last, and so counts
        new = contradicted[label_O[owner_N[contradicted]] == MISSING][::-1]
        label_O[owner_N[new]] = label_N[new]
        return contradicted[label_O[owner_N[contradicted]] != label_N[contradicted]], label_N

    def _error(self, batch: Batch, row: Any, name: object, says: str) -> PredictionsError:
        return PredictionsError(f"{place(self.path, batch.first + int(row))}: field {name!r}{says}")

    # -- the whole --------------------------------------------------------------------------------

    def predictions(self) -> Predictions:
        """All that was read, as tables [R, P] by condition. Raises PredictionsError."""
        if not self.parts:
            raise PredictionsError(f"{self.path}: no rows")
        arms: dict[str, list[tuple[str, int]]] = {}  # condition -> its replicas, each with its code
        for code, (condition, replica) in enumerate(self.runs):
            arms.setdefault(condition, []).append((replica, code))
        in_order = {
            condition: sorted(runs, key=lambda run: _natural(run[0]))
            for condition, runs in arms.items()
        }
        row_of = np.empty(len(self.runs), dtype=np.int64)
        row_of[[code for runs in in_order.values() for _, code in runs]] = np.arange(len(self.runs))
        text_RP = np.full((len(self.runs), len(self.prompts)), UNSEEN, dtype=np.int32)
        scored = any(part.score_N is not None for part in self.parts)
        score_RP = np.full(text_RP.shape if scored else (len(text_RP), 0), np.nan, dtype=np.float32)
        for part in self.parts:
            position = self._at(part, row_of)
            text_RP.ravel()[position] = part.text_N
            if part.score_N is not None:
                score_RP.ravel()[position] = part.score_N
        if sum(np.count_nonzero(text_P > UNSEEN) for text_P in text_RP) < sum(
            len(part.text_N) for part in self.parts
        ):
            raise self._twice(row_of)
        np.maximum(text_RP, MISSING, out=text_RP)
        self._spell(text_RP)

        arm_of, start = {}, 0
        for condition, runs in in_order.items():
            rows = slice(start, start := start + len(runs))
            name = condition if "condition" in self.layout.role else stem(self.path)
            score = score_RP[rows] if np.isfinite(score_RP[rows]).any() else None
            says = self._factors(name, runs), self._failed(runs)
            arm_of[name] = Arm(tuple(replica for replica, _ in runs), text_RP[rows], score, *says)
        base = self._base()
        if self.texts and all(text.startswith(GRADES) for text in self.texts):
            raise PredictionsError(
                f"{self.path}: every answer begins with {GRADES[0]} or {GRADES[1]}: {PROMPTFOO}"
            )
        return Predictions(
            tuple(self._prompts()), arm_of, list(self.texts), tuple(self._notes(arm_of)), base
        )

    def _spelling(self) -> Callable[[str], str]:
        """How texts are written that are held against values of another type: true, True and the
        value of a boolean column are one answer, and 7.0 is the number 7 where answers are numbers.
        """
        role = self.layout.role
        answers = {role.get("output"), *self.layout.replicas}
        held = {role[part] for part in ("reference", "base") if part in role}
        booleans = held and any(("boolean", name) in self.untexted for name in answers | held)
        numbers = held and any(("number", name) in self.untexted for name in answers)

        def spelled(word: str) -> str:
            if booleans and word.lower() in ("true", "false"):
                return word.lower()
            if numbers and DECIMAL.fullmatch(word):
                return word.rstrip("0").rstrip(".")
            return word

        return spelled

    def _words(self, part: str) -> list[str | None]:
        """What the codes of a label stand for, None the last."""
        if part not in ("reference", "base"):
            return [*self.labels[part], None]
        return [*map(self._spelling(), self.labels[part]), None]

    def _spell(self, text_RP: np.ndarray) -> None:
        """Answers in one spelling, in place."""
        texts, spelled = Codes(), self._spelling()
        code_T = np.array([*(texts.of(spelled(word)) for word in self.texts), MISSING], np.int32)
        if len(texts) < len(self.texts):
            for text_P in text_RP:
                text_P[:] = code_T[text_P]
        self.texts = texts

    def _base(self) -> Arm | None:
        """What the base answers, where a column says so for every prompt."""
        if "base" not in self.layout.role:
            return None
        words = self._words("base")
        text_P = np.array(
            [self.texts.of(words[code]) for code in self.label_codes["base"]], dtype=np.int32
        )
        return Arm(("base",), text_P[None], None)

    def _failed(self, runs: list[tuple[str, int]]) -> frozenset[str]:
        """Replicas that a column says have failed."""
        name, failed_O = self.layout.role.get("failed"), self.label_codes["failed"]
        words = [*self.labels["failed"], None]
        says = {
            replica: (words[failed_O[code]] or "").strip().lower()
            for replica, code in runs
            if len(failed_O)
        }
        for replica, word in says.items():
            if word and word not in FAILED | FINISHED:
                cure = (
                    "write true or false, failed or finished, or leave the column aside with "
                    "--column failed="
                )
                raise PredictionsError(
                    f"{self.path}: field {name!r} of replica {replica!r} is {word[:40]!r}; {cure}"
                )
        return frozenset(replica for replica, word in says.items() if word in FAILED)

    def _factors(self, condition: str, runs: list[tuple[str, int]]) -> dict[str, tuple[str, ...]]:
        """The level of every run in each factor that the condition has."""
        factors = {}
        for factor in self.layout.sources:
            level = self._levels(factor, runs)
            if level and factor not in SOURCES and len(set(level.values())) == len(runs):
                continue  # it is one more name of the run
            lacking = next((replica for replica, _ in runs if replica not in level), None)
            if level and lacking is not None:
                raise PredictionsError(
                    f"{self.path}: field {self.layout.role[factor]!r} of replica {lacking!r} "
                    f"({condition}) is missing; others have one "
                    f"({self.layout.left_aside(factor)})"
                )
            if level:
                factors[factor] = tuple(level.values())
        return different(factors)

    def _levels(self, part: str, runs: list[tuple[str, int]]) -> dict[str, str]:
        """What a column says about runs, of those about which it says something."""
        words, label_O = [*self.labels[part]], self.label_codes[part]
        return {
            replica: words[label_O[code]]
            for replica, code in runs
            if code < len(label_O) and label_O[code] >= 0
        }

    def _watch(self, batch: Batch, table: "pa.Table", run_N: np.ndarray) -> None:
        """Which unused columns say one thing about a run on all its rows, as a source would."""
        from pyarrow.types import is_nested

        for name in self.layout.unused:
            if name in self.varied or name not in table.column_names:
                continue
            if is_nested(table[name].type):
                self.varied.add(name)
            elif len(self._tell(table, name, name, run_N, self.runs)[0]):
                self.varied.add(name)
                del self.labels[name], self.label_codes[name]

    def _maybe_sources(self) -> list[str]:
        """Unused columns in which some runs of a condition, and not all, share a level."""
        arms: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for code, (condition, replica) in enumerate(self.runs):
            arms[condition].append((replica, code))

        def shared(name: str) -> bool:
            levels = [[*self._levels(name, runs).values()] for runs in arms.values()]
            return any(shared_sources({name: level}, len(level)) for level in levels if level)

        return [n for n in self.layout.unused if n not in self.varied and shared(n)]

    def _at(self, part: Part, row_of: np.ndarray) -> np.ndarray:
        return row_of.take(part.run_N) * len(self.prompts) + part.prompt_N

    def _prompts(self) -> Iterator[PredictedPrompt]:
        several = len({suite for suite, _ in self.prompts}) > 1
        words = {part: self._words(part) for part in LABELS}
        for code, (suite, id) in enumerate(self.prompts):
            says = {part: words[part][self.label_codes[part][code]] for part in LABELS}
            shift = _shift(says["shift"] or "") or (
                _shift(suite) if _shift(suite) in SHIFTS else SHIFTS[0]
            )
            about = says["category"] or suite or "all", shift, says["cluster"], says["reference"]
            name = _id((suite, id)) if several else id
            asked = says["words"] or (id if self.layout.asks_by_text else name)
            yield PredictedPrompt(name, asked, *about)

    def _notes(self, arms: Mapping[str, Arm]) -> Iterator[str]:
        role, columns = self.layout.role, self.layout.replicas
        if columns:
            yield (
                f"read as wide, a row for each prompt: prompt = {role['prompt']}, "
                f"{len(columns)} columns of replicas ({listed(columns)})"
            )
        else:
            yield (
                f"read as long, a row for each answer: replica = {role['replica']}, "
                f"prompt = {role['prompt']}, answer = {role['output']}"
            )
        for part in ("reference", "base", "failed"):
            if role.get(part, part) != part:
                yield f"{part}: column {role[part]}"
        yield from keys_aside(self.path)
        if self.layout.unused:
            yield f"columns not used: {listed(self.layout.unused)}"
        if shared := self._maybe_sources():
            yield maybe_sources(shared)
        for condition, arm in arms.items():
            if arm.missing:
                yield f"{condition}: {arm.missing} of {arm.text_RP.size} answers are missing"

    def _first_claimed_again(self, row_of: np.ndarray) -> tuple[Part, int]:
        """The first answer whose cell has one already: its part, and its place there."""
        claimed = np.zeros(len(self.runs) * len(self.prompts), dtype=bool)
        for part in self.parts:
            at_N = self._at(part, row_of)
            again_N = np.ones(len(at_N), dtype=bool)
            again_N[np.unique(at_N, return_index=True)[1]] = False
            again_N |= claimed[at_N]
            claimed[at_N] = True
            if again_N.any():
                return part, int(again_N.argmax())
        raise AssertionError("every cell is claimed once")

    def _twice(self, row_of: np.ndarray) -> PredictionsError:
        """Names the two rows that claim one cell. Slow, and needed only when there are some."""
        part, k = self._first_claimed_again(row_of)
        cell = self._at(part, row_of)[k]
        rows = [
            p.first + int(j) % p.rows
            for p in self.parts
            for j in np.flatnonzero(self._at(p, row_of) == cell)
        ]
        (condition, replica), prompt = (
            list(self.runs)[part.run_N[k]],
            _id(list(self.prompts)[part.prompt_N[k]]),
        )
        whose = f"replica {replica!r}" + (f" of condition {condition!r}" if condition else "")
        here, before = (place(self.path, row) for row in (rows[1], rows[0]))
        filters = "; keep the rows of one filter" if "filter" in self.names else ""
        return PredictionsError(
            f"{here}: {whose} has an answer to prompt {prompt!r} already, at {before}; "
            f"keep one of the two{filters}"
        )


def _shift(name: str) -> str:
    """A known shift, however it is written; else the name."""
    word = name.strip().lower()
    return word if word in SHIFTS else name


def _id(prompt: tuple[str, str]) -> str:
    return "/".join(prompt) if prompt[0] else prompt[1]


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts replica_2 before replica_10: numbers by their length first, for a name may
    have thousands of digits.
    """
    pieces = re.split(r"(\d+)", name)
    return [
        (len(piece.lstrip("0")), piece.lstrip("0")) if piece.isdecimal() else (-1, piece)
        for piece in pieces
    ]
