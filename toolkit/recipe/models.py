"""What is asked: strict models of a recipe. Every default and every rule that a value or several of them must keep stands here."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from toolkit.recipe.words import Path_, nearest

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Source = Literal["init", "order", "dropout"]
MergeMethod = Literal["mean", "swa", "ema", "ties"]
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


class Data(_Model):
    """The training rows and the prompts for measurement."""

    train: str
    """`embedded`, a .jsonl / .json / .csv / .parquet file, a folder of them, or a hub data set (`id` or `id:split`)."""
    suites: dict[str, str] = {}
    """name -> `embedded`, or a .jsonl / .csv / .parquet file of prompts."""
    format: Literal["auto", "text", "messages", "prompt-completion", "alpaca", "sharegpt"] = "auto"
    max_length: Positive = 512
    """tokens of a training row; longer prompts lose their beginning."""


class Snapshots(_Model):
    """Adapters recorded along the trajectory, at equal distances, the last one at the end of training."""

    count: Positive = 8
    start: Share = 0.5
    """share of the training after which recording begins."""
    save: bool = False
    """keep every snapshot as an adapter folder beside the averages."""


class Condition(_Model):
    """One way of training one replica."""

    method: Literal["lora"] = "lora"
    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """LoRA scale is alpha / rank (alpha / sqrt(rank) with rslora); default 2 * rank."""
    rslora: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2
    batch_size: Positive = 16
    gradient_accumulation: Positive = 1
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: NonNegative = 0.03
    """below 1 a share of all steps, otherwise a number of steps."""
    clip: NonNegative = 1.0
    """largest gradient norm of one replica; 0 is off."""
    weight_decay: NonNegative = 0.0
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    eps: Annotated[float, Field(gt=0)] = 1e-8
    snapshots: Snapshots | None = None
    averages: list[Literal["swa", "ema"]] = []
    """running averages of the snapshots, each written as an adapter of its own; needs `snapshots`."""
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
    """A post-hoc procedure on K replicas: `{merge: mean, k: 8}` or `{ensemble: probabilities, k: 8}`."""

    merge: MergeMethod | None = None
    ensemble: EnsembleMethod | None = None
    k: Positive
    rank: Annotated[int | str, BeforeValidator(_merge_rank)] = "full"
    """rank of a merged adapter: exact, that of the inputs, a number, or the least that keeps a share of the energy."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """ties: share of the entries that is kept."""
    weights: Annotated[str, AfterValidator(_weights)] | None = None
    """of the members of an ensemble: `accuracy:SUITE` (each by its accuracy there), or `confidence` in its answer (vote and mbr)."""
    similarity: Similarity | None = None
    """mbr: what makes two answers alike: the same text, few edits, or common character n-grams (chrf needs `ftk[chrf]`)."""
    threshold: NonNegative | None = None
    """gated: nats by which every token of the first member's answer must lead the next best, for it to answer alone."""

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
        if self.density is not None and self.merge != "ties":
            raise ValueError("'density' belongs to `merge: ties`")
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
        parts = [self.method]
        if self.density is not None:
            parts.append(f"density{self.density:g}")
        if self.rank != "full":
            parts.append(f"rank-{self.rank}".replace("=", "-"))
        if self.threshold is not None:
            parts.append(f"threshold{self.threshold:g}")
        parts += [part.replace(":", "-") for part in (self.similarity, self.weights) if part]
        return "-".join([*parts, f"k{self.k}"])


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
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """of the frozen base; adapters and optimiser are float32 or better."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: Data
    seed: Annotated[int, Field(ge=0)] = 0
    replicas: Annotated[
        Annotated[int, Field(ge=2, le=100_000), Tag("number")] | Annotated[Sequential, Tag("block")], Discriminator(_form)
    ] = 16
    """a number, or `{max: 1000, until: {disagreement.far: {half_width: 0.02}}}`."""
    vary: list[Source] = ["init", "order", "dropout"]
    stack: Annotated[int, Field(ge=1, le=4096)] | None = None
    """replicas trained together; default: chosen by the plan. It belongs to the bits of a replica."""
    conditions: Annotated[dict[str, Condition], Field(min_length=1)]
    mitigations: list[Mitigation] = []
    evaluation: Evaluation = Evaluation()

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
            for name, condition in self.conditions.items():
                saved = mitigation.merge == "swa" and condition.snapshots and condition.snapshots.save
                if mitigation.merge in ("swa", "ema") and mitigation.merge not in condition.averages and not saved:
                    raise _at(
                        ("mitigations", i), f"add `snapshots: {{count: 8}}` and `averages: [{mitigation.merge}]` to condition {name!r}"
                    )
        return self

    def replicas_of(self, condition: str) -> int:
        """The number of replicas, or the largest there can be."""
        own = self.conditions[condition]
        if own.crossed:
            return math.prod(own.crossed.values()) * own.repeats
        return own.replicas or (self.replicas.max if isinstance(self.replicas, Sequential) else self.replicas)

    def until_of(self, condition: str) -> Sequential | None:
        """The rule by which its training stops; None for a number given beforehand."""
        rule, own = self.replicas, self.conditions[condition]
        return rule if isinstance(rule, Sequential) and own.replicas is None and not own.crossed else None

    def vary_of(self, condition: str) -> list[str]:
        own = self.conditions[condition].vary
        return list(self.vary if own is None else own)
