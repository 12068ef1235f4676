"""One way of training a replica, or a population that is there already."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from toolkit.recipe.fields import (
    MOST,
    Batch,
    Below1,
    Compile,
    Decay,
    Dtype,
    Epochs,
    Epsilon,
    Factor,
    LearningRate,
    Model,
    NonNegative,
    Norm,
    Points,
    Rank,
    Replicas,
    Rows,
    Share,
    Source,
    Steps,
    Width,
)
from toolkit.recipe.mitigations import Mitigation, Teacher


def trajectory(mitigation: Mitigation, condition: Condition) -> str | None:
    """What a condition must record for a merge along its training, and does not."""
    if mitigation.merge not in ("swa", "ema", "lawa"):
        return None
    saved = condition.snapshots is not None and condition.snapshots.save
    if (
        mitigation.merge == "lawa"
        and "lawa" in condition.averages
        and mitigation.parameters["last"] == condition.lawa_last
    ):
        return None
    if mitigation.merge == "lawa" or any(
        value is not None for value in mitigation.parameters.values()
    ):
        return None if saved else "`snapshots: {count: 8, save: true}`"
    if mitigation.merge in condition.averages or (mitigation.merge == "swa" and saved):
        return None
    return f"`snapshots: {{count: 8}}` and `averages: [{mitigation.merge}]`"


class Snapshots(Model):
    """Adapters recorded along the trajectory, at equal distances, the last one at the end of
    training.
    """

    count: Points = 8
    start: Share = 0.5
    """share of the training after which recording begins."""
    save: bool = False
    """keep every snapshot as an adapter folder beside the averages."""


class Lookahead(Model):
    """Slow weights that follow the optimiser: every k steps by a share alpha of the way, from where
    it then starts again.
    """

    k: Steps = 5
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5


class LaterKey:
    """Marks a key that was not there from the beginning: while it has its default it is not
    written, so that what an older recipe asks for keeps its fingerprint.
    """


class OwnKey:
    """Marks a key that a student does not take over from its teacher's condition."""


def marked(mark: type, *models: type[Model]) -> set[str]:
    """Names of the keys that carry a mark."""
    return {
        name for model in models for name, f in model.model_fields.items() if mark in f.metadata
    }


class Training(Model):
    """What every way of training a replica has."""

    rows: Annotated[Rows | None, LaterKey] = None
    """of the training data: the first of a shuffle that is the same for all conditions; default:
    all.
    """
    epochs: Epochs = 2
    batch_size: Batch = 16
    gradient_accumulation: Batch = 1
    lr: LearningRate = 2e-4
    """default: 2e-4, of `method: full` 2e-5."""
    layer_lr_decay: Annotated[float, Field(gt=0, le=1), LaterKey] = 1.0
    """learning rate of a block as a share of that of the block above it."""
    schedule: Literal["linear", "cosine", "constant", "cyclic"] = "linear"
    """cyclic: down and up again between two snapshots."""
    cycle_floor: Annotated[Share, LaterKey] = 0.01
    """lowest learning rate of a cycle, as a share of `lr`."""
    warmup: NonNegative = 0.03
    """below 1 a share of all steps, otherwise a number of steps."""
    clip: Norm = 1.0
    """largest gradient norm of one replica; 0 is off."""
    weight_decay: Decay = 0.0
    """towards the base: of adapters, their factors towards 0; of `method: full`, all weights
    towards those of the base.
    """
    lookahead: Annotated[Lookahead | None, LaterKey] = None
    label_smoothing: Annotated[Below1, LaterKey] = 0.0
    betas: Annotated[list[Below1], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    eps: Epsilon = 1e-8
    snapshots: Annotated[Snapshots | None, OwnKey] = None
    averages: Annotated[list[Literal["swa", "ema", "lawa"]], OwnKey] = []
    """running averages of the snapshots, each written as an adapter (of `method: full` a model) of
    its own; needs `snapshots`.
    """
    lawa_last: Annotated[Points, LaterKey, OwnKey] = 5
    """number of snapshots, the latest ones."""
    ema_decay: Annotated[float, Field(gt=0, lt=1), OwnKey] = 0.7
    """weight of the past at each snapshot."""
    replicas: Annotated[Replicas | None, OwnKey] = None
    """default: the recipe's."""
    vary: Annotated[list[Source] | None, OwnKey] = None
    """default: the recipe's."""
    crossed: Annotated[dict[Source, Annotated[Replicas, Field(ge=2)]], OwnKey] = {}
    """levels of each source: `{init: 8, order: 8}` trains all 64 combinations; sources that are not
    named are held.
    """
    repeats: Annotated[Replicas, OwnKey] = 1
    """of every combination, with the same seeds: what differs then is the numerics."""
    dtype: Annotated[Dtype | None, LaterKey] = None
    """of the base while this condition trains; default: the recipe's, in which all answer."""
    stack: Annotated[Width | None, LaterKey] = None
    """replicas trained together; default: the recipe's, or chosen by the plan."""
    threads: Annotated[int, Field(ge=1, le=256), LaterKey] = 1
    """of a worker while this condition trains, on a CPU."""
    perturb: Annotated[Literal["bit"] | None, LaterKey] = None
    """bit: the last bit of one initial weight is flipped, in every replica another one."""

    @model_validator(mode="after")
    def _crossed_says_how_many(self) -> Self:
        if self.crossed and (self.replicas is not None or self.vary is not None):
            raise ValueError(
                "a crossed design says itself what varies and how many replicas there "
                "are: leave 'replicas' and 'vary' out"
            )
        if self.repeats > 1 and not self.crossed:
            raise ValueError(
                "'repeats' belongs to a crossed design: add `crossed: {init: 8, order: 8}`"
            )
        if math.prod(self.crossed.values()) * self.repeats > MOST:
            raise ValueError(
                f"a crossed design of {math.prod(self.crossed.values()) * self.repeats:,} "
                f"replicas; {MOST:,} is the most"
            )
        return self

    @model_validator(mode="after")
    def _averages_need_snapshots(self) -> Self:
        if self.averages and self.snapshots is None:
            raise ValueError("'averages' needs 'snapshots': add `snapshots: {count: 8}`")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.schedule == "cyclic" and self.snapshots is None:
            raise ValueError(
                "`schedule: cyclic` has its cycles between snapshots: add `snapshots: {count: 8}`"
            )
        if self.schedule != "cyclic" and self.cycle_floor != 0.01:
            raise ValueError("'cycle_floor' belongs to `schedule: cyclic`")
        if "lawa" not in self.averages and self.lawa_last != 5:
            raise ValueError("'lawa_last' belongs to `averages: [lawa]`")
        if self.snapshots and "lawa" in self.averages and self.lawa_last > self.snapshots.count:
            raise ValueError(
                f"'lawa_last' ({self.lawa_last}) is more than the {self.snapshots.count} "
                "snapshots that there are"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_later_keys(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later, fields = marked(LaterKey, type(self)), type(self).model_fields
        idle = {key for key in later if getattr(self, key) == fields[key].get_default()}
        return {key: value for key, value in write(self).items() if key not in idle}


class AdapterCondition(Training):
    """What the training of adapters has."""

    rank: Rank = 8
    alpha: Factor | None = None
    """LoRA scale is alpha / rank (alpha / sqrt(rank) with rslora); default 2 * rank."""
    rslora: bool = False
    dropout: Below1 = 0.0
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    init: Annotated[Literal["kaiming", "gaussian", "orthogonal"], LaterKey] = "kaiming"
    """how adapters begin, in PEFT's words; always without any change of the base."""
    freeze: Annotated[list[Literal["A"]], LaterKey] = []
    """`[A]`: only B is trained. With `vary` without init all replicas have the same A."""
    lr_ratio_B: Annotated[Factor, LaterKey] = 1.0
    """learning rate of B as a multiple of that of A."""
    compile: Annotated[Compile | None, LaterKey] = None
    """default: the recipe's."""

    @model_validator(mode="after")
    def _adapters_fit(self) -> Self:
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(
                f"`init: orthogonal` takes halves of the rank, and {self.rank} is odd; "
                "take an even `rank`"
            )
        if self.freeze and self.lr_ratio_B != 1:
            raise ValueError(
                "'lr_ratio_B' compares B with A, and `freeze: [A]` holds A: set `lr` alone"
            )
        return self

    @property
    def scale(self) -> float:
        """alpha / rank, or alpha / sqrt(rank) with rank stabilisation (arXiv:2312.03732)."""
        return self.lora_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def lora_alpha(self) -> float:
        """alpha, or its default."""
        return self.alpha or 2 * self.rank

    @property
    def adapter_rank(self) -> int | None:
        """Rank of the adapters that are trained."""
        return self.rank


class _OnLabels:
    """What is trained on the labels alone has no teacher, in the words of those that have one."""

    teacher: ClassVar[None] = None
    students: ClassVar[int] = 1
    temperature: ClassVar[float] = 1.0
    mix: ClassVar[float] = 1.0

    def group_of(self, replica: int) -> int:
        """The teacher group that a replica learns from: there are no groups."""
        return 0


class LoraCondition(_OnLabels, AdapterCondition):
    """Adapters, trained on the labels."""

    method: Annotated[Literal["lora"], OwnKey] = "lora"

    @field_validator("method", mode="before")
    @classmethod
    def _all_methods_are_named(cls, method: Any) -> Any:
        if method == "lora":
            return method
        raise PydanticCustomError("literal_error", "Input should be 'lora', 'full' or 'distill'")


class DistilledCondition(AdapterCondition):
    """Adapters, trained on what a teacher says of the training rows; what is not said is as in the
    teacher's condition.
    """

    method: Annotated[Literal["distill"], OwnKey] = "distill"
    teacher: Annotated[Teacher, OwnKey]
    students: Annotated[Replicas, OwnKey] = 1
    """per fresh teacher group; 2 or more part the variance between teacher groups from that between
    students of one group.
    """
    temperature: Annotated[Factor, OwnKey] = 1.0
    """of the teacher's and the student's distribution in the loss."""
    mix: Annotated[Share, OwnKey] = 1.0
    """share of the loss that is the teacher's; the rest is cross-entropy on the labels."""

    @model_validator(mode="after")
    def _students_fit(self) -> Self:
        if self.teacher.groups == "fixed" and self.students > 1:
            raise ValueError(
                "'students' is per fresh teacher group; of a fixed one `replicas` says "
                "how many there are"
            )
        if self.teacher.groups == "fresh" and self.crossed:
            raise ValueError(
                "a crossed design of students needs `groups: fixed`: every fresh group "
                "would be a source of its own"
            )
        return self

    def group_of(self, replica: int) -> int:
        """The teacher group that a replica learns from."""
        return replica // self.students if self.teacher.groups == "fresh" else 0


class FullCondition(_OnLabels, Training):
    """All weights of the base, trained on the labels."""

    dropout: ClassVar[float] = 0.0
    targets: ClassVar[Literal["all-linear"]] = "all-linear"
    compile: ClassVar[None] = None
    method: Annotated[Literal["full"], OwnKey] = "full"
    lr: LearningRate = 2e-5
    """all weights move at once: a tenth of that of adapters."""

    @model_validator(mode="after")
    def _levels_differ(self) -> Self:
        if idle := {"init", "dropout"} & {*self.crossed}:
            named = " and ".join(sorted(idle))
            raise ValueError(
                "`method: full` starts from the base and has no dropout: all levels of "
                f"{named} are alike"
            )
        return self

    @property
    def adapter_rank(self) -> None:
        """There are no adapters."""
        return None


Condition = LoraCondition | DistilledCondition | FullCondition
"""one way of training a replica"""
METHODS: dict[str, type[Condition]] = {
    get_args(model.model_fields["method"].annotation)[0]: model for model in get_args(Condition)
}
ADAPTER_KEYS = AdapterCondition.model_fields.keys() - Training.model_fields.keys()
"""keys that `method: full` has not"""
DISTILLATION_KEYS = DistilledCondition.model_fields.keys() - LoraCondition.model_fields.keys()
"""keys of `method: distill` alone"""
OWN_KEYS = marked(OwnKey, *METHODS.values())
"""keys that a student does not take over from its teacher's condition"""
UNKNOWN = ("rank", "epochs", "batch_size", "lr")
"""keys that a student of adapters that are given must say itself: nobody knows how those were
trained
"""


def _of_its_method(block: Any) -> Any:
    """The block without keys of other methods that say what is so by default; ValueError where they
    say something else.
    """
    method = block.get("method", "lora") if isinstance(block, dict) else None
    if not isinstance(method, str) or method not in METHODS:
        return block
    model = METHODS[method]
    if ("teacher" in block and block["teacher"] is not None) != (model is DistilledCondition):
        raise ValueError(
            "`method: distill` goes with `teacher: "
            "{condition: NAME, ensemble: probabilities, k: 8}`"
        )
    foreign = (ADAPTER_KEYS | DISTILLATION_KEYS) - model.model_fields.keys()
    for key in [key for key in block if key in foreign]:
        default = None if key == "teacher" else DistilledCondition.model_fields[key].get_default()
        if block[key] == default:
            continue
        raise ValueError(
            f"{key!r} is about adapters, and `method: full` has none; leave it out"
            if key in ADAPTER_KEYS
            else "'students', 'temperature' and 'mix' belong to `method: distill`"
        )
    return {key: value for key, value in block.items() if key not in foreign}


class Given(Model):
    """A population that is there already: adapters that peft, TRL, axolotl, unsloth, LLaMA-Factory
    or ftk trained. Nothing is trained.
    """

    adapters: Annotated[
        list[str],
        Field(min_length=1),
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ]
    """folders of adapters, folders of such folders, or patterns (`runs/seed-*`); relative paths
    count from the recipe's folder.
    """


def kind_of(condition: Any) -> str:
    """The branch of `AnyCondition` that a block, or a condition, belongs to."""
    if isinstance(condition, Given):
        return "given"
    if not isinstance(condition, dict):
        return str(getattr(condition, "method", "lora"))
    method = condition.get("method", "lora")
    known = isinstance(method, str) and method in METHODS
    return "given" if "adapters" in condition else method if known else "lora"


AnyCondition = Annotated[
    Annotated[LoraCondition, Tag("lora")]
    | Annotated[DistilledCondition, Tag("distill")]
    | Annotated[FullCondition, Tag("full")]
    | Annotated[Given, Tag("given")],
    Discriminator(kind_of),
    BeforeValidator(_of_its_method),
]
"""trained by this run, or given as adapters"""
