"""The whole recipe: its parts, and the rules that several of them must keep together."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from toolkit.recipe.conditions import UNKNOWN, AnyCondition, Condition, Given, kind_of, trajectory
from toolkit.recipe.criteria import Criteria
from toolkit.recipe.fields import (
    Candidates,
    Compile,
    Dtype,
    Model,
    Replicas,
    Seed,
    Share,
    Source,
    Tokens,
    Width,
    answer_rule,
    at,
    day,
)
from toolkit.recipe.mitigations import Mitigation
from toolkit.text.nearest import nearest

SHIFTS = ("typical", "near", "far")
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAKEN = (
    *("outcomes", "base", "training", "checkpoints", "replicas", "merged", "votes"),
    *(
        "recipe.yaml",
        "forecast.json",
        "environment.json",
        "base.json",
        "population.json",
        "modules.json",
        "design.json",
    ),
    *("results.json", "claims.json", "report.html", "readme.md", "stopping.json", "mergekit.yaml"),
)
"""names that files and folders of a run have"""
DEVICE_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""what Windows keeps for itself"""
LONGEST_NAME = 100
"""characters: names of files are made of two of them, and have at most 255 bytes"""


def folder_name(name: str) -> str:
    """Why a name cannot be that of a folder in a run, on any disk; empty where it can."""
    if not FOLDER_NAME.fullmatch(name) or name.endswith("."):
        return "letters, digits, '.', '_' and '-', the first a letter or a digit, the last no '.'"
    if name.lower() in TAKEN or DEVICE_NAMES.fullmatch(name):
        return f"{name!r} is taken; take another name"
    return (
        f"{len(name)} characters, and {LONGEST_NAME} is the most"
        if len(name) > LONGEST_NAME
        else ""
    )


class Data(Model):
    """The training rows and the prompts for measurement."""

    train: str
    """`embedded` (or `embedded:10000`: as many rows), a .jsonl / .json / .csv / .tsv / .parquet /
    .arrow file, text also packed (.gz, .bz2, .xz, .zst), a folder of them (of splits the training
    split) or of `save_to_disk`, or a hub data set (`id` or `id:split`); not needed where no
    condition is trained.
    """
    suites: dict[str, str] = {}
    """name -> `embedded` (the newest version of that suite; `embedded@1`: the first), or a .jsonl /
    .csv / .parquet file of prompts.
    """
    format: Literal["auto", "text", "messages", "prompt-completion", "alpaca", "sharegpt"] = "auto"
    """of the training rows, or, where there are none, of those that given adapters saw: after
    `messages` and `sharegpt` a plain prompt of a suite is a user turn.
    """
    max_length: Tokens = 512
    """tokens of a training row; longer prompts lose their beginning."""
    date: Annotated[str, AfterValidator(day)] | None = None
    """YYYY-MM-DD: what a chat template is told that asks for today's date, so that a run reads the
    same on all its days; by default the day on which the run begins, which is written into its
    recipe.
    """


class Target(Model):
    """What must be known of a figure before training may stop: one of these."""

    half_width: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """its interval is this narrow to either side."""
    below: Share | None = None
    """its interval lies on one side of this limit, whichever it is."""
    above: Share | None = None
    """the same, asked the other way round."""

    @model_validator(mode="after")
    def _one(self) -> Target:
        if sum(value is not None for value in (self.half_width, self.below, self.above)) != 1:
            raise ValueError("a target is one of `half_width`, `below` and `above`")
        return self


class Sequential(Model):
    """As many replicas as it takes: training stops when the figures in `until` are known, by
    intervals that allow for the looking.
    """

    max: Annotated[int, Field(ge=2, le=100_000)]
    min: Annotated[Replicas, Field(ge=2)] = 16
    """replicas before the first look; this and `batch` are rounded up to whole stacks."""
    batch: Replicas = 32
    """replicas between two looks."""
    until: Annotated[dict[str, Target], Field(min_length=1)]
    """`disagreement.NAME` -> what must be known of it; NAME is a shift or a suite. All of them must
    be met.
    """

    @model_validator(mode="before")
    @classmethod
    def _first_look_within(cls, block: Any) -> Any:
        few = (
            isinstance(block, dict)
            and "min" not in block
            and type(block.get("max")) is int
            and 2 <= block["max"] < 16
        )
        return {**block, "min": block["max"]} if few else block

    @model_validator(mode="after")
    def _in_order(self) -> Sequential:
        if self.min > self.max:
            raise ValueError(f"'min' ({self.min}) should not be above 'max' ({self.max})")
        return self


def _form(replicas: Any) -> str:
    return "block" if isinstance(replicas, dict | Sequential) else "number"


class Evaluation(Model):
    """How subjects answer, and what of a text is the answer."""

    max_new_tokens: Tokens = 64
    stop: Annotated[str, Field(min_length=1)] | None = None
    """an answer ends before this text, such as a new line: for bases that never learnt to end by
    themselves.
    """
    top_k: Candidates = 5
    """first-token candidates that are stored with their log-probabilities."""
    answer: Annotated[str, AfterValidator(answer_rule)] = "text"
    """`text` (the whole text), `first-line`, `regex:PATTERN` (first group), or `embedded` (the
    embedded task's parser).
    """
    token_scores: bool = False
    """store what every subject thinks of each token of the reference, and of `choices`: any
    ensemble can be scored from them later.
    """
    choices: list[str] = []
    """fixed continuations of every prompt, scored token by token."""

    @model_validator(mode="after")
    def _choices_are_scored(self) -> Evaluation:
        if self.choices and not self.token_scores:
            raise ValueError("'choices' are scored token by token: add `token_scores: true`")
        return self


class Recipe(Criteria):
    """The whole question. Every default is written out in the run's `recipe.yaml`."""

    name: str = "recipe"
    base: str
    """`embedded`, a Hugging Face id (`id` or `id@revision`), or a folder."""
    dtype: Literal["auto"] | Dtype = "auto"
    """of the frozen base; adapters and optimiser are float32 or better. auto: bfloat16 where this
    machine multiplies it several times faster and the base is 128 wide or more, otherwise float32;
    what it was is written into the run's recipe.
    """
    compile: Compile = "auto"
    """decoder layers as compiled code in training; auto: on a CPU with a C++ compiler, where a
    stack has work enough to pay for it.
    """
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: Data
    seed: Seed = 0
    replicas: Annotated[
        Annotated[int, Field(ge=2, le=100_000), Tag("number")]
        | Annotated[Sequential, Tag("block")],
        Discriminator(_form),
    ] = 16
    """a number, or `{max: 1000, until: {disagreement.far: {half_width: 0.02}}}`."""
    vary: list[Source] = ["init", "order", "dropout"]
    stack: Width | None = None
    """replicas trained together; default: chosen by the plan. It belongs to the bits of a
    replica.
    """
    conditions: Annotated[dict[str, AnyCondition], Field(min_length=1)]
    mitigations: list[Mitigation] = []
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _rows_are_for_training(cls, recipe: Any) -> Any:
        conditions, data = (
            (recipe.get(key) for key in ("conditions", "data"))
            if isinstance(recipe, dict)
            else (None, None)
        )
        given = (
            isinstance(conditions, dict)
            and conditions
            and all(kind_of(condition) == "given" for condition in conditions.values())
        )
        return (
            {**recipe, "data": {"train": "", **data}}
            if given and isinstance(data, dict)
            else recipe
        )

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for kind, path, names in (
            ("condition", ("conditions",), self.conditions),
            ("suite", ("data", "suites"), self.data.suites),
        ):
            taken: dict[str, str] = {}
            for name in names:
                if wrong := folder_name(name):
                    raise at((*path, name), f"a {kind} names a folder: {wrong}")
                if (other := taken.setdefault(name.lower(), name)) != name:
                    raise at(
                        (*path, name),
                        f"is {other!r} but for capitals: some disks would keep both in one folder",
                    )
        for i, criterion in enumerate(self.criteria):
            if criterion.suite not in (*self.data.suites, *SHIFTS):
                raise at(
                    ("criteria", i, "suite"),
                    f"names no suite{nearest(criterion.suite, [*self.data.suites])}",
                )
        for figure in self.replicas.until if isinstance(self.replicas, Sequential) else ():
            known = [f"disagreement.{name}" for name in dict.fromkeys([*self.data.suites, *SHIFTS])]
            if figure not in known:
                raise at(
                    ("replicas", "until", figure),
                    f"names no suite or shift{nearest(figure, known)}",
                )
        labels: list[str] = []
        for i, mitigation in enumerate(self.mitigations):
            if len(mitigation.label) > LONGEST_NAME:
                raise at(
                    ("mitigations", i),
                    f"its name, {mitigation.label[:30]}..., has {len(mitigation.label)} "
                    f"characters, {LONGEST_NAME} at most",
                )
            if mitigation.label in labels:
                raise at(("mitigations", i), f"{mitigation.label} is listed twice")
            labels.append(mitigation.label)
            suite = (mitigation.weights or "").partition(":")[2]
            if suite and suite not in self.data.suites:
                raise at(
                    ("mitigations", i, "weights"),
                    f"names no suite{nearest(suite, [*self.data.suites])}",
                )
            for (
                name,
                condition,
            ) in self.trained.items():  # of adapters that are given, the folders decide
                if not condition.teacher and (needed := trajectory(mitigation, condition)):
                    raise at(("mitigations", i), f"add {needed} to condition {name!r}")
            if mitigation.merge == "greedy_soup":
                raise at(
                    ("mitigations", i),
                    "greedy_soup needs prompts of its own: `ftk merge --method "
                    "greedy_soup --prompts SUITE`",
                )
        return self

    @model_validator(mode="after")
    def _full_fits(self) -> Recipe:
        for name in (
            name for name, condition in self.trained.items() if condition.method == "full"
        ):
            vary = self.vary_of(name)
            if vary and "order" not in vary and not self.trained[name].crossed:
                text = (
                    "`method: full` starts from the base and has no dropout: vary `order`, or "
                    "nothing at all with `vary: []`"
                )
                raise at(("conditions", name), text)
            for i, mitigation in enumerate(self.mitigations):
                if mitigation.rank != "full":
                    raise at(
                        ("mitigations", i, "rank"),
                        f"models as in condition {name!r} are merged whole: a rank is for adapters",
                    )
        return self

    @property
    def trained(self) -> dict[str, Condition]:
        """The conditions that are trained."""
        return {name: c for name, c in self.conditions.items() if isinstance(c, Condition)}

    @property
    def given(self) -> dict[str, Given]:
        """The conditions whose adapters are there already."""
        return {name: c for name, c in self.conditions.items() if isinstance(c, Given)}

    @model_validator(mode="after")
    def _teachers_are_there(self) -> Recipe:
        for name, student in self.trained.items():
            teacher = student.teacher
            if teacher is None:
                continue
            path = ("conditions", name, "teacher")
            if teacher.condition not in self.conditions or teacher.condition == name:
                others = [other for other, c in self.trained.items() if c.teacher is None]
                raise at(
                    (*path, "condition"),
                    f"names no other condition{nearest(teacher.condition, others)}",
                )
            taught_by = self.conditions[teacher.condition]
            if isinstance(taught_by, Given):
                unsaid = [
                    key
                    for key in (*UNKNOWN, *([] if student.crossed else ["replicas"]))
                    if key not in student.model_fields_set
                ]
                if unsaid:
                    raise at(
                        path,
                        f"{teacher.condition!r} is given as adapters, which do not say "
                        f"how students train: give {', '.join(unsaid)}",
                    )
                continue
            if taught_by.method == "full":
                raise at(
                    (*path, "condition"),
                    f"{teacher.condition!r} trains all weights; students learn from a "
                    "condition of adapters",
                )
            if taught_by.teacher:
                raise at(
                    (*path, "condition"),
                    f"{teacher.condition!r} is distilled itself; name the condition that "
                    "it learns from",
                )
            if taught_by.crossed:
                raise at(
                    (*path, "condition"),
                    f"{teacher.condition!r} is a crossed design: no groups of it are independent",
                )
            if needed := trajectory(teacher, taught_by):
                raise at((*path, "merge"), f"add {needed} to condition {teacher.condition!r}")
            there = self.replicas_of(teacher.condition)
            groups = there // teacher.k
            if groups < (2 if teacher.groups == "fresh" else 1):
                raise at(
                    (*path, "k"),
                    f"{there} replicas of {teacher.condition!r} make {groups} groups of "
                    f"{teacher.k}; two are needed",
                )
            if (
                teacher.groups == "fixed"
                and student.replicas is None
                and not student.crossed
                and isinstance(self.replicas, Sequential)
            ):
                raise at(
                    path,
                    "add `replicas: 16`: a rule that stops the training is not for "
                    "students of one group",
                )
            asked = student.replicas or 0
            if teacher.groups == "fresh" and asked > student.students * groups:
                needed = math.ceil(asked / student.students)
                raise at(
                    ("conditions", name, "replicas"),
                    f"{asked} students need {needed} groups of {teacher.k}, "
                    f"{needed * teacher.k} replicas of {teacher.condition!r}; "
                    f"there are {there}",
                )
        return self

    @property
    def training_order(self) -> list[str]:
        """Names of the conditions, teachers first."""
        return sorted(
            self.conditions,
            key=lambda name: name in self.trained and self.trained[name].teacher is not None,
        )

    def mitigations_of(self, condition: str) -> list[Mitigation]:
        """What is done with its replicas. A distilled one is a mitigation itself, and is measured
        beside those of its teachers.
        """
        return (
            []
            if condition in self.trained and self.trained[condition].teacher
            else self.mitigations
        )

    def replicas_of(self, condition: str) -> int:
        """The number of replicas of a condition that is trained, or the largest there can be; of
        students with fresh teachers as many as those allow.
        """
        settings = self.trained[condition]
        if settings.crossed:
            return math.prod(settings.crossed.values()) * settings.repeats
        if settings.teacher and settings.teacher.groups == "fresh" and settings.replicas is None:
            return settings.students * (
                self.replicas_of(settings.teacher.condition) // settings.teacher.k
            )
        return settings.replicas or (
            self.replicas.max if isinstance(self.replicas, Sequential) else self.replicas
        )

    def until_of(self, condition: str) -> Sequential | None:
        """The rule by which its training stops; None for a number given beforehand, and for
        adapters that are there.
        """
        rule, settings = self.replicas, self.trained.get(condition)
        counted = (
            settings is None
            or settings.replicas is not None
            or settings.crossed
            or settings.teacher
        )
        return rule if isinstance(rule, Sequential) and not counted else None

    def vary_of(self, condition: str) -> list[str]:
        """What differs between replicas of a condition."""
        vary = self.trained[condition].vary
        return list(self.vary if vary is None else vary)
