"""What is asked: strict models of a recipe. Every default and every rule that a value or several of them must keep stands here."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from toolkit.recipe.merges import MERGEKIT, MERGES, PARAMETERS, check_method, merge_parameters
from toolkit.recipe.words import Path_, nearest

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Source = Literal["init", "order", "dropout"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Compile = Literal["auto", "always", "never"]
Width = Annotated[int, Field(ge=1, le=4096)]
MergeMethod = Annotated[str, AfterValidator(check_method)]
EnsembleMethod = Literal["probabilities", "logits", "token-vote", "median", "gated", "vote", "mbr"]
Similarity = Literal["exact", "edit", "chrf"]
SHIFTS = ("typical", "near", "far")
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAKEN = ("outcomes", "base")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _merge_rank(rank: Any) -> Any:
    share = float(rank[7:]) if isinstance(rank, str) and re.fullmatch(r"energy=\d*\.?\d+", rank) else 0
    if rank in ("full", "same") or type(rank) is int and rank >= 1 or 0 < share <= 1:
        return rank
    raise ValueError("should be full, same, a number from 1, or energy=0.99 (a share above 0, at most 1)")


def _answer_rule(rule: str) -> str:
    if rule in ("text", "first-line", "embedded"):
        return rule
    if not rule.startswith("regex:") or rule == "regex:":
        raise ValueError("should be text, first-line, embedded or regex:PATTERN")
    try:
        re.compile(rule.removeprefix("regex:"))
    except re.error as error:
        raise ValueError(f"the pattern is broken: {error}") from None
    return rule


def _weights(weights: str) -> str:
    kind, _, suite = weights.partition(":")
    if weights == "confidence" or kind == "accuracy" and suite:
        return weights
    raise ValueError("should be confidence, or accuracy:SUITE")


def _observable(observable: str) -> str:
    kinds = ("answer", "text", "correct", "exact", "normalised", "first-line", "numeric", "json", "embedding")
    kind, _, argument = observable.partition(":")
    if kind == "regex" and argument:
        return _answer_rule(observable)
    if kind not in kinds or (argument and kind not in ("numeric", "embedding")):
        raise ValueError(f"should be one of {', '.join(kinds)}, or regex:PATTERN")
    return observable


def _at(path: Path_, text: str) -> PydanticCustomError:
    """An error of several keys, told at the one to change."""
    return PydanticCustomError("recipe", "{text}", {"text": text, "path": path})


def _trajectory(mitigation: Mitigation, condition: Condition) -> str | None:
    """What a condition must record for a merge along its training, and does not."""
    if mitigation.merge not in ("swa", "ema", "lawa"):
        return None
    saved = condition.snapshots is not None and condition.snapshots.save
    if mitigation.merge == "lawa" and "lawa" in condition.averages and mitigation.parameters["last"] == condition.lawa_last:
        return None
    if mitigation.merge == "lawa" or any(value is not None for value in mitigation.parameters.values()):
        return None if saved else "`snapshots: {count: 8, save: true}`"
    if mitigation.merge in condition.averages or (mitigation.merge == "swa" and saved):
        return None
    return f"`snapshots: {{count: 8}}` and `averages: [{mitigation.merge}]`"


class Data(_Model):
    """The training rows and the prompts for measurement."""

    train: str
    """`embedded` (or `embedded:10000`: as many rows), a .jsonl / .json / .csv / .parquet file, a folder of them, or a hub data set (`id` or
    `id:split`); not needed where no condition is trained."""
    suites: dict[str, str] = {}
    """name -> `embedded`, or a .jsonl / .csv / .parquet file of prompts."""
    format: Literal["auto", "text", "messages", "prompt-completion", "alpaca", "sharegpt"] = "auto"
    """of the training rows, or, where there are none, of those that given adapters saw: after `messages` and `sharegpt` a plain prompt of
    a suite is a user turn."""
    max_length: Positive = 512
    """tokens of a training row; longer prompts lose their beginning."""


class Snapshots(_Model):
    """Adapters recorded along the trajectory, at equal distances, the last one at the end of training."""

    count: Positive = 8
    start: Share = 0.5
    """share of the training after which recording begins."""
    save: bool = False
    """keep every snapshot as an adapter folder beside the averages."""


class Lookahead(_Model):
    """Slow weights that follow the optimiser: every k steps by a share alpha of the way, from where it then starts again."""

    k: Positive = 5
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5


class Condition(_Model):
    """One way of training one replica. docs/training.md says what each key is for."""

    method: Literal["lora", "full", "distill"] = "lora"
    """lora: adapters, on the labels. full: all weights of the base, on the labels. distill: adapters, on what a teacher says of the
    training rows; what is not said is as in the teacher's condition."""
    teacher: Teacher | None = None
    students: Positive = 1
    """per fresh teacher group; 2 or more part the variance between teacher groups from that between students of one group."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """of the teacher's and the student's distribution in the loss."""
    mix: Share = 1.0
    """share of the loss that is the teacher's; the rest is cross-entropy on the labels."""
    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """LoRA scale is alpha / rank (alpha / sqrt(rank) with rslora); default 2 * rank."""
    rslora: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    init: Literal["kaiming", "gaussian", "orthogonal"] = "kaiming"
    """how adapters begin, in PEFT's words; always without any change of the base."""
    freeze: list[Literal["A"]] = []
    """`[A]`: only B is trained. With `vary` without init all replicas have the same A."""
    rows: Positive | None = None
    """of the training data: the first of a shuffle that is the same for all conditions; default: all."""
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2
    batch_size: Positive = 16
    gradient_accumulation: Positive = 1
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-4
    """default: 2e-4, of `method: full` 2e-5."""
    lr_ratio_B: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """learning rate of B as a multiple of that of A."""
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """learning rate of a block as a share of that of the block above it."""
    schedule: Literal["linear", "cosine", "constant", "cyclic"] = "linear"
    """cyclic: down and up again between two snapshots."""
    cycle_floor: Share = 0.01
    """lowest learning rate of a cycle, as a share of `lr`."""
    warmup: NonNegative = 0.03
    """below 1 a share of all steps, otherwise a number of steps."""
    clip: NonNegative = 1.0
    """largest gradient norm of one replica; 0 is off."""
    weight_decay: NonNegative = 0.0
    """towards the base: of adapters, their factors towards 0; of `method: full`, all weights towards those of the base."""
    lookahead: Lookahead | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    eps: Annotated[float, Field(gt=0)] = 1e-8
    snapshots: Snapshots | None = None
    averages: list[Literal["swa", "ema", "lawa"]] = []
    """running averages of the snapshots, each written as an adapter (of `method: full` a model) of its own; needs `snapshots`."""
    lawa_last: Positive = 5
    """number of snapshots, the latest ones."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """weight of the past at each snapshot."""
    replicas: Positive | None = None
    """default: the recipe's."""
    vary: list[Source] | None = None
    """default: the recipe's."""
    crossed: dict[Source, Annotated[int, Field(ge=2)]] = {}
    """levels of each source: `{init: 8, order: 8}` trains all 64 combinations; sources that are not named are held."""
    repeats: Positive = 1
    """of every combination, with the same seeds: what differs then is the numerics."""
    dtype: Dtype | None = None
    """of the base while this condition trains; default: the recipe's, in which all answer."""
    stack: Width | None = None
    """replicas trained together; default: the recipe's, or chosen by the plan."""
    compile: Compile | None = None
    """default: the recipe's."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """of a worker while this condition trains, on a CPU."""
    perturb: Literal["bit"] | None = None
    """bit: the last bit of one initial weight is flipped, in every replica another one."""

    @model_validator(mode="before")
    @classmethod
    def _full_learns_slower(cls, block: Any) -> Any:
        full = isinstance(block, dict) and block.get("method") == "full"
        return {"lr": FULL_LR, **block} if full else block

    @model_validator(mode="after")
    def _crossed_says_how_many(self) -> Condition:
        if self.crossed and (self.replicas is not None or self.vary is not None):
            raise ValueError("a crossed design says itself what varies and how many replicas there are: leave 'replicas' and 'vary' out")
        if self.repeats > 1 and not self.crossed:
            raise ValueError("'repeats' belongs to a crossed design: add `crossed: {init: 8, order: 8}`")
        return self

    @model_validator(mode="after")
    def _averages_need_snapshots(self) -> Condition:
        if self.averages and self.snapshots is None:
            raise ValueError("'averages' needs 'snapshots': add `snapshots: {count: 8}`")
        return self

    @model_validator(mode="after")
    def _controls_fit(self) -> Condition:
        if self.schedule == "cyclic" and self.snapshots is None:
            raise ValueError("`schedule: cyclic` has its cycles between snapshots: add `snapshots: {count: 8}`")
        if self.schedule != "cyclic" and self.cycle_floor != 0.01:
            raise ValueError("'cycle_floor' belongs to `schedule: cyclic`")
        if "lawa" not in self.averages and self.lawa_last != 5:
            raise ValueError("'lawa_last' belongs to `averages: [lawa]`")
        if self.snapshots and "lawa" in self.averages and self.lawa_last > self.snapshots.count:
            raise ValueError(f"'lawa_last' ({self.lawa_last}) is more than the {self.snapshots.count} snapshots that there are")
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"`init: orthogonal` takes halves of the rank, and {self.rank} is odd; take an even `rank`")
        if self.freeze and self.lr_ratio_B != 1:
            raise ValueError("'lr_ratio_B' compares B with A, and `freeze: [A]` holds A: set `lr` alone")
        return self

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> Condition:
        if self.method != "full":
            return self
        fields = type(self).model_fields
        if foreign := [key for key in OF_ADAPTERS if getattr(self, key) != fields[key].get_default()]:
            raise ValueError(f"{foreign[0]!r} is about adapters, and `method: full` has none; leave it out")
        if idle := {"init", "dropout"} & {*self.crossed}:
            named = " and ".join(sorted(idle))
            raise ValueError(f"`method: full` starts from the base and has no dropout: all levels of {named} are alike")
        return self

    @model_validator(mode="after")
    def _distilled_from_somebody(self) -> Condition:
        if (self.method == "distill") != (self.teacher is not None):
            raise ValueError("`method: distill` goes with `teacher: {condition: NAME, ensemble: probabilities, k: 8}`")
        if self.teacher is None and (self.students, self.temperature, self.mix) != (1, 1.0, 1.0):
            raise ValueError("'students', 'temperature' and 'mix' belong to `method: distill`")
        if self.teacher and self.teacher.groups == "fixed" and self.students > 1:
            raise ValueError("'students' is per fresh teacher group; of a fixed one `replicas` says how many there are")
        if self.teacher and self.teacher.groups == "fresh" and self.crossed:
            raise ValueError("a crossed design of students needs `groups: fixed`: every fresh group would be a source of its own")
        return self

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Also without younger keys that are not used: what an older recipe asks for keeps its fingerprint."""
        fields = type(self).model_fields
        out = {key for key in YOUNGER if getattr(self, key) == fields[key].get_default()}
        out |= {*(() if self.teacher else DISTILLATION), *(OF_ADAPTERS if self.method == "full" else ())}
        return {key: value for key, value in write(self).items() if key not in out}

    @property
    def adapter_rank(self) -> int | None:
        """Rank of the adapters that are trained; None where there are none."""
        return None if self.method == "full" else self.rank

    def group_of(self, replica: int) -> int:
        """The teacher group that a distilled replica learns from."""
        return replica // self.students if self.teacher and self.teacher.groups == "fresh" else 0


DISTILLATION = ("teacher", "students", "temperature", "mix")
"""keys of a condition with `method: distill`"""
OF_ADAPTERS = ("rank", "alpha", "rslora", "dropout", "targets", "init", "freeze", "lr_ratio_B", "compile")
"""keys of a condition that trains adapters"""
YOUNGER = (
    *("init", "freeze", "lr_ratio_B", "layer_lr_decay", "cycle_floor", "lookahead", "label_smoothing", "lawa_last"),
    *("rows", "dtype", "stack", "compile", "threads", "perturb"),
)
"""keys of a condition that were not there from the beginning"""
FULL_LR = 2e-5
"""default of `method: full`, where all weights move at once: a tenth of that of adapters"""
OWN = (*DISTILLATION, "method", "replicas", "vary", "crossed", "repeats", "snapshots", "averages", "ema_decay", "lawa_last")
"""keys that a student does not take over from its teacher's condition"""
UNKNOWN = ("rank", "epochs", "batch_size", "lr")
"""keys that a student of adapters that are given must say itself: nobody knows how those were trained"""


class Given(_Model):
    """A population that is there already: adapters that peft, TRL, axolotl, unsloth, LLaMA-Factory or ftk trained. Nothing is trained."""

    adapters: Annotated[list[str], Field(min_length=1), BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    """folders of adapters, folders of such folders, or patterns (`runs/seed-*`); relative paths count from the recipe's folder."""


def _kind(condition: Any) -> str:
    given = "adapters" in condition if isinstance(condition, dict) else isinstance(condition, Given)
    return "given" if given else "trained"


AnyCondition = Annotated[Annotated[Condition, Tag("trained")] | Annotated[Given, Tag("given")], Discriminator(_kind)]
"""trained by this run, or given as adapters"""


class Target(_Model):
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


class Sequential(_Model):
    """As many replicas as it takes: training stops when the figures in `until` are known, by intervals that allow for the looking."""

    max: Annotated[int, Field(ge=2, le=100_000)]
    min: Annotated[int, Field(ge=2)] = 16
    """replicas before the first look; this and `batch` are rounded up to whole stacks."""
    batch: Positive = 32
    """replicas between two looks."""
    until: Annotated[dict[str, Target], Field(min_length=1)]
    """`disagreement.NAME` -> what must be known of it; NAME is a shift or a suite. All of them must be met."""

    @model_validator(mode="before")
    @classmethod
    def _first_look_within(cls, block: Any) -> Any:
        few = isinstance(block, dict) and "min" not in block and type(block.get("max")) is int and 2 <= block["max"] < 16
        return {**block, "min": block["max"]} if few else block

    @model_validator(mode="after")
    def _in_order(self) -> Sequential:
        if self.min > self.max:
            raise ValueError(f"'min' ({self.min}) should not be above 'max' ({self.max})")
        return self


def _form(replicas: Any) -> str:
    return "block" if isinstance(replicas, dict | Sequential) else "number"


class Mitigation(_Model):
    """A post-hoc procedure on K replicas: `{merge: ties, k: 8, density: 0.5}` or `{ensemble: probabilities, k: 8}`."""

    merge: MergeMethod | None = None
    ensemble: EnsembleMethod | None = None
    k: Positive
    rank: Annotated[int | str, BeforeValidator(_merge_rank)] = "full"
    """rank of a merged adapter: exact, that of the inputs, a number, or the least that keeps a share of the energy."""
    parameters: Annotated[dict[str, bool | int | float | str | None], Field(validate_default=True)] = {}
    """of the merge method, by the names that `merges.py` has; in a recipe they stand beside `k`."""
    weights: Annotated[str, AfterValidator(_weights)] | None = None
    """of the members of an ensemble: `accuracy:SUITE` (each by its accuracy there), or `confidence` in its answer (vote and mbr)."""
    similarity: Similarity | None = None
    """mbr: what makes two answers alike: the same text, few edits, or common character n-grams (chrf needs `ftk[chrf]`)."""
    threshold: NonNegative | None = None
    """gated: nats by which every token of the first member's answer must lead the next best, for it to answer alone."""

    @model_validator(mode="before")
    @classmethod
    def _parameters_stand_beside_k(cls, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        foreign = str(block.get("merge")).startswith(MERGEKIT)
        own = {key: value for key, value in block.items() if key in PARAMETERS or foreign and key not in cls.model_fields}
        rest = {key: value for key, value in block.items() if key not in own}
        return {**rest, "parameters": {**block.get("parameters", {}), **own}} if own else block

    @model_serializer(mode="wrap")
    def _as_written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = plain(self)
        return fields | fields.pop("parameters")

    @field_validator("parameters")
    @classmethod
    def _of_the_method(cls, parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "merge" not in info.data:  # it is wrong itself
            return parameters
        method = info.data["merge"]
        for name in parameters:
            homes = ", ".join(f"`merge: {home}`" for home, known in MERGES.items() if name in known)
            if homes and name not in MERGES.get(method, parameters if method else ()):
                raise ValueError(f"{name!r} belongs to {homes}")
        return merge_parameters(method, parameters) if method else {}

    @model_validator(mode="after")
    def _of_its_ensemble(self) -> Mitigation:
        for key, method, needs in (("similarity", "mbr", "exact, edit or chrf"), ("threshold", "gated", "nats, such as 1.0")):
            if (getattr(self, key) is not None) != (self.ensemble == method):
                raise ValueError(f"`ensemble: {method}` goes with `{key}`: {needs}")
        weighted = {"accuracy": ("probabilities", "logits", "token-vote", "vote", "mbr"), "confidence": ("vote", "mbr")}
        if self.weights and self.ensemble not in weighted[self.weights.partition(":")[0]]:
            known = ", ".join(weighted[self.weights.partition(":")[0]])
            raise ValueError(f"`weights: {self.weights}` belongs to an ensemble by {known}")
        return self

    @model_validator(mode="after")
    def _one_kind(self) -> Mitigation:
        if (self.merge is None) == (self.ensemble is None):
            raise ValueError("a mitigation is either `merge: METHOD` or `ensemble: METHOD`, with `k`")
        if self.ensemble and self.rank != "full":
            raise ValueError("'rank' belongs to a merge")
        if self.ensemble and self.k < 2:
            raise ValueError("an ensemble has k of 2 or more")
        return self

    @property
    def method(self) -> str:
        return self.merge or self.ensemble or ""

    @property
    def label(self) -> str:
        """Name of the folder and of the row, unique within a recipe: `ties-density0.2-k8`."""
        parts = [self.method, *(f"{name}{value}" for name, value in self._shown())]
        if self.rank != "full":
            parts.append(f"rank-{self.rank}")
        parts += [part for part in (self.similarity, self.weights) if part]
        return re.sub(r"[^A-Za-z0-9._-]", "-", "-".join([*parts, f"k{self.k}"]))

    @property
    def title(self) -> str:
        """The method in words, without K: `ties, density 0.2`."""
        rank = [] if self.rank == "full" else [f"rank {self.rank}"]
        chosen = [part for part in (self.similarity, self.weights) if part]
        return ", ".join([self.method, *(f"{name} {value}" for name, value in self._shown()), *rank, *chosen])

    def _shown(self) -> list[tuple[str, str]]:
        given = {name: value for name, value in ({"threshold": self.threshold} | self.parameters).items() if value is not None}
        return [(name, f"{value:.12g}" if type(value) is float else str(value)) for name, value in given.items()]


class Teacher(Mitigation):
    """Whom a distilled replica learns from: K replicas of another condition, trained or given, as an ensemble or merged."""

    condition: str
    groups: Literal["fresh", "fixed"] = "fresh"
    """fresh: disjoint groups of K, so that a student is a run of the whole procedure. fixed: all students share the first group, and
    differ by their own seeds alone."""

    @model_validator(mode="after")
    def _has_a_distribution(self) -> Teacher:
        if self.ensemble not in (None, "probabilities", "logits"):
            raise ValueError(f"'ensemble: {self.ensemble}' has no probabilities to learn from; take probabilities, logits, or a merge")
        known = ("ensemble", "k", "condition", "groups")
        other = [name for name, f in type(self).model_fields.items() if name not in known and getattr(self, name) != f.default]
        if self.ensemble and other:
            raise ValueError(f"{other[0]!r} is not for an ensemble that teaches; leave it out")
        return self


Condition.model_rebuild()  # its teacher is defined here


class Evaluation(_Model):
    """How subjects answer, and what of a text is the answer."""

    max_new_tokens: Positive = 64
    top_k: Positive = 5
    """first-token candidates that are stored with their log-probabilities."""
    answer: Annotated[str, AfterValidator(_answer_rule)] = "text"
    """`text` (the whole text), `first-line`, `regex:PATTERN` (first group), or `embedded` (the embedded task's parser)."""
    token_scores: bool = False
    """store what every subject thinks of each token of the reference, and of `choices`: any ensemble can be scored from them later."""
    choices: list[str] = []
    """fixed continuations of every prompt, scored token by token."""

    @model_validator(mode="after")
    def _choices_are_scored(self) -> Evaluation:
        if self.choices and not self.token_scores:
            raise ValueError("'choices' are scored token by token: add `token_scores: true`")
        return self


class Zone(_Model):
    """Disagreement up to `acceptable` is no matter, above `critical` it is one; shares of prompts."""

    acceptable: Share = 0.05
    critical: Share = 0.20

    @model_validator(mode="after")
    def _in_order(self) -> Zone:
        if self.acceptable > self.critical:
            raise ValueError(f"'acceptable' ({self.acceptable:g}) should not be above 'critical' ({self.critical:g})")
        return self


class Thresholds(Zone):
    """Where the matrix of the report changes its colour."""

    categories: dict[str, Zone] = {}
    """a category of prompts with limits of its own"""


class Criterion(_Model):
    """What the user will not accept, decided by a one-sided confidence limit: PASS, FAIL or INCONCLUSIVE."""

    name: str
    suite: str
    """name of a suite, or a shift"""
    category: str | None = None
    """only the prompts of this category"""
    observable: Annotated[str, AfterValidator(_observable)] = "answer"
    """what is looked at: `answer`, `text`, `correct`, or a rule of meaning: normalised, numeric, json, regex:PATTERN, ..."""
    statistic: Literal["disagreement", "rate", "accuracy", "accuracy-sd", "tail"] = "disagreement"
    """disagreement: share of prompts on which two runs differ. rate: share of answers that hold the pattern (`correct`: that are wrong).
    accuracy: at least the limit. accuracy-sd: its standard deviation between runs. tail: share of runs with an accuracy `below`."""
    below: Share | None = None
    limit: Share
    aggregation: Literal["mean", "worst"] = "mean"
    """worst: every category of the suite must hold by itself"""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    consequence: Literal["watch", "critical"] = "critical"
    """how grave a FAIL is"""

    @model_validator(mode="after")
    def _fits(self) -> Criterion:
        if (self.statistic == "tail") != (self.below is not None):
            raise ValueError("`statistic: tail` goes with `below`: the accuracy under which a run counts")
        if self.statistic == "rate" and not (self.observable == "correct" or self.observable.startswith("regex:")):
            raise ValueError("`statistic: rate` goes with `observable: correct` or `observable: regex:PATTERN`")
        if self.statistic in ("accuracy", "accuracy-sd", "tail") and self.observable != "answer":
            raise ValueError(f"`statistic: {self.statistic}` is about right answers: leave `observable` out")
        return self

    @property
    def at_most(self) -> bool:
        return self.statistic != "accuracy"


class Criteria(_Model):
    """What is demanded of the answers: a part of a recipe, or a file of its own for `ftk measure`."""

    criteria: list[Criterion] = []
    """the user's own limits, each with a verdict for every procedure"""
    thresholds: Thresholds = Thresholds()
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """nominal coverage of the intervals"""

    @model_validator(mode="after")
    def _names_differ(self) -> Criteria:
        names: list[str] = []
        for i, criterion in enumerate(self.criteria):
            if criterion.name in names:
                raise _at(("criteria", i), f"{criterion.name!r} is listed twice")
            names.append(criterion.name)
        return self


class Recipe(Criteria):
    """The whole question. Every default is written out in the run's `recipe.yaml`."""

    name: str = "recipe"
    base: str
    """`embedded`, a Hugging Face id (`id` or `id@revision`), or a folder."""
    dtype: Literal["auto"] | Dtype = "auto"
    """of the frozen base; adapters and optimiser are float32 or better. auto: bfloat16 where this machine multiplies it several times
    faster and the base is 128 wide or more, otherwise float32; what it was is written into the run's recipe."""
    compile: Compile = "auto"
    """decoder layers as compiled code in training; auto: on a CPU with a C++ compiler, where a stack has work enough to pay for it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: Data
    seed: Annotated[int, Field(ge=0)] = 0
    replicas: Annotated[
        Annotated[int, Field(ge=2, le=100_000), Tag("number")] | Annotated[Sequential, Tag("block")], Discriminator(_form)
    ] = 16
    """a number, or `{max: 1000, until: {disagreement.far: {half_width: 0.02}}}`."""
    vary: list[Source] = ["init", "order", "dropout"]
    stack: Width | None = None
    """replicas trained together; default: chosen by the plan. It belongs to the bits of a replica."""
    conditions: Annotated[dict[str, AnyCondition], Field(min_length=1)]
    mitigations: list[Mitigation] = []
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _rows_are_for_training(cls, recipe: Any) -> Any:
        conditions, data = (recipe.get(key) for key in ("conditions", "data")) if isinstance(recipe, dict) else (None, None)
        given = isinstance(conditions, dict) and conditions and all(_kind(condition) == "given" for condition in conditions.values())
        return {**recipe, "data": {"train": "", **data}} if given and isinstance(data, dict) else recipe

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for kind, path, names in (("condition", ("conditions",), self.conditions), ("suite", ("data", "suites"), self.data.suites)):
            for name in names:
                if not FOLDER_NAME.fullmatch(name) or name in TAKEN:
                    raise _at((*path, name), f"a {kind} names a folder: letters, digits, '.', '_' and '-', not {' or '.join(TAKEN)}")
        for i, criterion in enumerate(self.criteria):
            if criterion.suite not in (*self.data.suites, *SHIFTS):
                raise _at(("criteria", i, "suite"), f"names no suite{nearest(criterion.suite, [*self.data.suites])}")
        for figure in self.replicas.until if isinstance(self.replicas, Sequential) else ():
            known = [f"disagreement.{name}" for name in dict.fromkeys([*self.data.suites, *SHIFTS])]
            if figure not in known:
                raise _at(("replicas", "until", figure), f"names no suite or shift{nearest(figure, known)}")
        labels: list[str] = []
        for i, mitigation in enumerate(self.mitigations):
            if mitigation.label in labels:
                raise _at(("mitigations", i), f"{mitigation.label} is listed twice")
            labels.append(mitigation.label)
            suite = (mitigation.weights or "").partition(":")[2]
            if suite and suite not in self.data.suites:
                raise _at(("mitigations", i, "weights"), f"names no suite{nearest(suite, [*self.data.suites])}")
            for name, condition in self.trained.items():  # of adapters that are given, the folders decide
                if not condition.teacher and (needed := _trajectory(mitigation, condition)):
                    raise _at(("mitigations", i), f"add {needed} to condition {name!r}")
            if mitigation.merge == "greedy_soup":
                raise _at(("mitigations", i), "greedy_soup needs prompts of its own: `ftk merge --method greedy_soup --prompts SUITE`")
        return self

    @model_validator(mode="after")
    def _full_fits(self) -> Recipe:
        for name in (name for name, own in self.trained.items() if own.method == "full"):
            vary = self.vary_of(name)
            if vary and "order" not in vary and not self.trained[name].crossed:
                text = "`method: full` starts from the base and has no dropout: vary `order`, or nothing at all with `vary: []`"
                raise _at(("conditions", name), text)
            for i, mitigation in enumerate(self.mitigations):
                if mitigation.rank != "full":
                    raise _at(("mitigations", i, "rank"), f"models as in condition {name!r} are merged whole: a rank is for adapters")
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
        for name, own in self.trained.items():
            teacher = own.teacher
            if teacher is None:
                continue
            path = ("conditions", name, "teacher")
            if teacher.condition not in self.conditions or teacher.condition == name:
                others = [other for other, c in self.trained.items() if c.teacher is None]
                raise _at((*path, "condition"), f"names no other condition{nearest(teacher.condition, others)}")
            taught_by = self.conditions[teacher.condition]
            if isinstance(taught_by, Given):
                unsaid = [key for key in (*UNKNOWN, *([] if own.crossed else ["replicas"])) if key not in own.model_fields_set]
                if unsaid:
                    raise _at(
                        path, f"{teacher.condition!r} is given as adapters, which do not say how students train: give {', '.join(unsaid)}"
                    )
                continue
            if taught_by.method == "full":
                raise _at((*path, "condition"), f"{teacher.condition!r} trains all weights; students learn from a condition of adapters")
            if taught_by.teacher:
                raise _at((*path, "condition"), f"{teacher.condition!r} is distilled itself; name the condition that it learns from")
            if taught_by.crossed:
                raise _at((*path, "condition"), f"{teacher.condition!r} is a crossed design: no groups of it are independent")
            if needed := _trajectory(teacher, taught_by):
                raise _at((*path, "merge"), f"add {needed} to condition {teacher.condition!r}")
            there = self.replicas_of(teacher.condition)
            groups = there // teacher.k
            if groups < (2 if teacher.groups == "fresh" else 1):
                raise _at((*path, "k"), f"{there} replicas of {teacher.condition!r} make {groups} groups of {teacher.k}; two are needed")
            if teacher.groups == "fixed" and own.replicas is None and not own.crossed and isinstance(self.replicas, Sequential):
                raise _at(path, "add `replicas: 16`: a rule that stops the training is not for students of one group")
            asked = own.replicas or 0
            if teacher.groups == "fresh" and asked > own.students * groups:
                needed = math.ceil(asked / own.students)
                raise _at(
                    ("conditions", name, "replicas"),
                    f"{asked} students need {needed} groups of {teacher.k}, {needed * teacher.k} replicas of {teacher.condition!r}; "
                    f"there are {there}",
                )
        return self

    @property
    def training_order(self) -> list[str]:
        """Names of the conditions, teachers first."""
        return sorted(self.conditions, key=lambda name: name in self.trained and self.trained[name].teacher is not None)

    def mitigations_of(self, condition: str) -> list[Mitigation]:
        """What is done with its replicas. A distilled one is a mitigation itself, and is measured beside those of its teachers."""
        return [] if condition in self.trained and self.trained[condition].teacher else self.mitigations

    def replicas_of(self, condition: str) -> int:
        """The number of replicas of a condition that is trained, or the largest there can be; of students with fresh teachers as many as
        those allow."""
        own = self.trained[condition]
        if own.crossed:
            return math.prod(own.crossed.values()) * own.repeats
        if own.teacher and own.teacher.groups == "fresh" and own.replicas is None:
            return own.students * (self.replicas_of(own.teacher.condition) // own.teacher.k)
        return own.replicas or (self.replicas.max if isinstance(self.replicas, Sequential) else self.replicas)

    def until_of(self, condition: str) -> Sequential | None:
        """The rule by which its training stops; None for a number given beforehand, and for adapters that are there."""
        rule, own = self.replicas, self.trained.get(condition)
        counted = own is None or own.replicas is not None or own.crossed or own.teacher
        return rule if isinstance(rule, Sequential) and not counted else None

    def vary_of(self, condition: str) -> list[str]:
        own = self.trained[condition].vary
        return list(self.vary if own is None else own)
