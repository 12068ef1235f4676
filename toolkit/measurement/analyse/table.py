"""What runs answered, as arrays [run, prompt]: the one form that is measured, from outcomes or from
somebody's predictions.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from toolkit import statistics as st
from toolkit.measurement.meaning import code_answers, mark_answers
from toolkit.measurement.predictions import Predictions
from toolkit.record.results import ConditionDesign

if TYPE_CHECKING:
    import pyarrow


class PromptLike(Protocol):
    """A row of a suite. cluster: prompts made from one template are no independent sample;
    reference: the right answer.
    """

    @property
    def id(self) -> str:
        """Its name in the suite."""
        raise NotImplementedError

    @property
    def prompt(self) -> str | Sequence[Mapping[str, str]]:
        """The text, or the messages of a chat."""
        raise NotImplementedError

    @property
    def category(self) -> str:
        """What it is about."""
        raise NotImplementedError

    @property
    def shift(self) -> str:
        """How far it is from the training data."""
        raise NotImplementedError

    @property
    def cluster(self) -> str | None:
        """The template that it was made from; None for a prompt of its own."""
        raise NotImplementedError

    @property
    def reference(self) -> str | None:
        """The right answer, where it is known."""
        raise NotImplementedError


class Arm(NamedTuple):
    """Runs of one procedure. Codes are -1 where a run has no answer; correct_RP is 1, 0, and nan or
    -1 without a mark.
    """

    answer_RP: np.ndarray
    correct_RP: np.ndarray
    text_RP: np.ndarray
    score_RP: np.ndarray | None = None

    def on(self, index_P: np.ndarray) -> "Arm":
        """The prompts `at`; without a copy where they stand together."""
        if len(index_P) == self.answer_RP.shape[1]:
            return self
        place = together(index_P)
        return Arm(*(None if array is None else array[:, place] for array in self))  # type: ignore[arg-type]

    def on_runs(self, runs: slice) -> "Arm":
        """The same of these runs alone."""
        return Arm(*(None if array is None else array[runs] for array in self))  # type: ignore[arg-type]

    @property
    def marked(self) -> bool:
        """Whether an answer has a mark."""
        return marked(self.correct_RP)


def marked(correct_RP: np.ndarray) -> bool:
    """Whether any answer is marked right or wrong."""
    return bool(
        np.isfinite(correct_RP).any()
        if np.issubdtype(correct_RP.dtype, np.floating)
        else (correct_RP >= 0).any()
    )


def together(index_P: np.ndarray) -> slice | np.ndarray:
    """Ascending places as a slice where none is left out."""
    return (
        slice(int(index_P[0]), int(index_P[-1]) + 1)
        if len(index_P) and index_P[-1] - index_P[0] == len(index_P) - 1
        else index_P
    )


CATEGORIES = 200
"""categories, over all shifts, with figures of their own: each takes an interval for every
procedure
"""


class Table(ABC):
    """Prompts of all suites in one row, and the arms that answered them.

    answers, texts: what the codes of answer_RP and text_RP stand for. shifts, parts: positions of
    the prompts of a shift, and of a category of it, for the CATEGORIES with the most prompts;
    unlisted: how many more there are. cluster_P: prompts that are no independent sample share a
    number: those of one named cluster, and those of one text, white space apart; repeated: how many
    clusters fewer there are for equal texts. scored: what score_RP is.
    """

    scored = "score"

    def __init__(
        self, prompts: Mapping[str, Sequence[PromptLike]], answers: list[str], texts: list[str]
    ) -> None:
        self.prompts = [(suite, prompt) for suite, rows in prompts.items() for prompt in rows]
        self.answers, self.texts = answers, texts
        suite_P = np.array([suite for suite, _ in self.prompts])
        shift_P = np.array([prompt.shift for _, prompt in self.prompts])
        category_P = np.array([prompt.category for _, prompt in self.prompts])
        self.suites = {
            suite: np.flatnonzero(suite_P == suite) for suite in dict.fromkeys(suite_P.tolist())
        }
        self.shifts = {
            shift: np.flatnonzero(shift_P == shift) for shift in dict.fromkeys(shift_P.tolist())
        }
        counted = Counter(zip(shift_P.tolist(), category_P.tolist(), strict=True))
        listed = {place for place, _ in counted.most_common(CATEGORIES)}
        self.parts = {
            place: np.flatnonzero((shift_P == place[0]) & (category_P == place[1]))
            for place in counted
            if place in listed
        }
        self.unlisted = len(counted) - len(self.parts)
        named = [i if p.cluster is None else p.cluster for i, (_, p) in enumerate(self.prompts)]
        asked = [_asked(prompt.prompt) for _, prompt in self.prompts]
        self.cluster_P = _together(named, asked)
        self.repeated = len(set(named)) - len(set(self.cluster_P.tolist()))

    def run_names(self, design: ConditionDesign) -> tuple[str, ...]:
        """What the user calls the replicas of a condition, in their order."""
        return tuple(map(str, design.replicas))

    def failed_names(self, design: ConditionDesign) -> tuple[str, ...]:
        """What the user calls the runs of a condition that failed, as far as they have names."""
        return ()

    @abstractmethod
    def arm(self, condition: str, procedure: str, indexes: Sequence[int]) -> Arm | None:
        """Runs `indexes` of a procedure; None where there is nothing of it at all."""


def _asked(prompt: str | Sequence[Mapping[str, str]]) -> Hashable:
    """What is asked, white space apart."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    return tuple((turn.get("role"), _asked(str(turn.get("content")))) for turn in prompt)


def _together(*groupings: Sequence[Hashable]) -> np.ndarray:
    """A number for each thing, by first appearance: the same for all that are in one group of a
    grouping, or in a chain of groups.
    """
    places: dict[Hashable, int] = {}
    group_N = np.array(
        [
            places.setdefault((kind, group), len(places))
            for kind, groups in enumerate(groupings)
            for group in groups
        ],
        dtype=np.int64,
    )
    n = len(groupings[0])
    thing_N = np.tile(np.arange(n), len(groupings))
    size = n + len(places)
    links = coo_array((np.ones(len(thing_N)), (thing_N, n + group_N)), shape=(size, size))
    return connected_components(links, directed=False)[1][:n].astype(np.int64)


class OutcomeTable(Table):
    """Outcomes in any order, cells may be missing; rows of other prompts, procedures or runs are
    left out.

    Raises ValueError for two rows of one cell, since nothing says which one counts.
    """

    scored = "log-probability of the reference"

    def __init__(
        self, outcomes: "pyarrow.Table", prompts: Mapping[str, Sequence[PromptLike]]
    ) -> None:
        self.answer_N, answers = _codes(outcomes, "answer")
        self.text_N, texts = _codes(outcomes, "text")
        super().__init__(prompts, answers, texts)
        suite_N, suites = _codes(outcomes, "suite")
        id_N, ids = _codes(outcomes, "prompt_id")
        column = {(suite, prompt.id): i for i, (suite, prompt) in enumerate(self.prompts)}
        if len(column) < len(self.prompts):
            raise ValueError("two prompts of one suite have the same id")
        table = np.array(
            [[column.get((suite, id), -1) for id in ids] for suite in suites], dtype=np.int64
        ).reshape(len(suites), len(ids))
        self.prompt_N = table[suite_N, id_N]
        self.condition_N, self.conditions = _codes(outcomes, "condition")
        self.procedure_N, self.procedures = _codes(outcomes, "procedure")
        self.index_N = outcomes["index"].to_numpy()
        self.correct_N = outcomes["correct"].cast("float32").to_numpy()  # null becomes nan
        scored = "reference_logprob" in outcomes.column_names
        self.score_N = outcomes["reference_logprob"].cast("float32").to_numpy() if scored else None

    def arm(self, condition: str, procedure: str, indexes: Sequence[int]) -> Arm | None:
        """The runs with these indexes, in this order, without those that have no row; None without
        any.
        """
        if condition not in self.conditions or procedure not in self.procedures:
            return None
        shape = len(indexes), len(self.prompts)
        row_of = np.full(max(int(self.index_N.max(initial=0)), *indexes, 0) + 1, -1)
        row_of[np.asarray(indexes, dtype=np.int64)] = np.arange(len(indexes))
        wanted_N = (self.condition_N == self.conditions.index(condition)) & (
            self.procedure_N == self.procedures.index(procedure)
        )
        wanted_N &= (self.prompt_N >= 0) & (self.index_N >= 0)
        wanted = np.flatnonzero(wanted_N)
        wanted = wanted[row_of[self.index_N[wanted]] >= 0]
        cells = row_of[self.index_N[wanted]], self.prompt_N[wanted]
        filled = np.zeros(shape, dtype=bool)
        filled[cells] = True
        if filled.sum() < len(wanted):
            raise ValueError(
                f"outcomes of {condition or 'the base'}, {procedure}: two rows for the "
                "same run and prompt"
            )

        def spread(value_N: np.ndarray, missing: float) -> np.ndarray:
            value_RP = np.full(shape, missing, dtype=value_N.dtype)
            value_RP[cells] = value_N[wanted]
            return value_RP

        if not len(wanted):
            return None
        score_RP = None if self.score_N is None else spread(self.score_N, np.nan)
        codes = (
            spread(self.answer_N, st.MISSING),
            spread(self.correct_N, np.nan),
            spread(self.text_N, st.MISSING),
        )
        return Arm(*codes, score_RP)


class PredictionTable(Table):
    """Somebody's predictions: one arm a condition. rule: when two outputs mean the same (see
    `toolkit.measurement.meaning`).

    A replica's number is the place of its name among those of all conditions, so the same name has
    the same number everywhere.
    """

    def __init__(self, predictions: Predictions, rule: str) -> None:
        arms = predictions.arms
        base = predictions.base
        tables = [arm.text_RP for arm in (*arms.values(), *([base] if base else []))]
        # codes of all conditions must mean the same
        text_RP = tables[0] if len(tables) == 1 else np.concatenate(tables)
        answer_RP, answers = code_answers(text_RP, predictions.texts, rule)
        correct_RP = mark_answers(
            text_RP, predictions.texts, [prompt.reference for prompt in predictions.prompts], rule
        )
        super().__init__({"predictions": predictions.prompts}, answers, predictions.texts)
        ends = np.cumsum([0, *(len(table) for table in tables)])
        self.predictions = predictions
        self.coded = {
            name: Arm(answer_RP[start:end], correct_RP[start:end], arm.text_RP, arm.score_RP)
            for (name, arm), start, end in zip(arms.items(), ends[:-1], ends[1:], strict=False)
        }
        self.base = (
            Arm(answer_RP[ends[-2] :], correct_RP[ends[-2] :], base.text_RP, base.score_RP)
            if base
            else None
        )
        everybody = dict.fromkeys(
            name for arm in predictions.arms.values() for name in arm.replicas
        )
        self.number = {name: number for number, name in enumerate(everybody)}

    def designs(self, conditions: Sequence[str]) -> list[ConditionDesign]:
        """Replicas of each condition that share no level of a factor; those that answered nothing,
        or are said to have failed, count as failed.
        """
        independent = []
        for condition in conditions:
            arm = self.predictions.arms[condition]
            alive_R = np.array(  # row by row: a table may fill the memory
                [
                    bool((text_P >= 0).any()) and name not in arm.failed
                    for name, text_P in zip(arm.replicas, arm.text_RP, strict=True)
                ]
            )
            alive = np.flatnonzero(alive_R)
            replicas = [self.number[arm.replicas[row]] for row in alive]
            factors = {
                name: np.unique(levels, return_inverse=True)[1][alive].tolist()
                for name, levels in arm.factors.items()
            }
            independent.append(
                ConditionDesign(
                    condition, replicas, int((~alive_R).sum()), factors=factors
                ).independent()
            )
        return independent

    def run_names(self, design: ConditionDesign) -> tuple[str, ...]:
        """The names of the runs of a design, as in the file."""
        names = list(self.number)
        return tuple(names[number] for number in design.replicas)

    def failed_names(self, design: ConditionDesign) -> tuple[str, ...]:
        """The names of the runs that are in no figure of a design."""
        alive = set(design.everyone or design.replicas)
        return tuple(
            name
            for name in self.predictions.arms[design.name].replicas
            if self.number[name] not in alive
        )

    def arm(self, condition: str, procedure: str, indexes: Sequence[int]) -> Arm | None:
        """The base, or the runs with these numbers, in this order; None where there are none."""
        if procedure == "base":
            return self.base
        tabled = self.predictions.arms.get(condition)
        if tabled is None or procedure != "replica":
            return None
        row_of = {self.number[name]: row for row, name in enumerate(tabled.replicas)}
        rows = [row_of[index] for index in indexes]
        arm = self.coded[condition]
        if rows == list(range(len(tabled.replicas))):  # no copy: a table may fill the memory
            return arm
        return Arm(*(None if array is None else array[rows] for array in arm))  # type: ignore[arg-type]


def _codes(outcomes: "pyarrow.Table", column: str) -> tuple[np.ndarray, list[str]]:
    """A text column as integer codes (null = -1) and what they stand for; codes follow the text,
    not the order of rows.
    """
    encoded = outcomes[column].combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    order = sorted(range(len(texts)), key=texts.__getitem__)
    rank = np.empty(len(texts) + 1, dtype=np.int32)
    rank[order], rank[-1] = np.arange(len(texts)), -1
    return rank[encoded.indices.fill_null(-1).to_numpy()], [texts[i] for i in order]
