"""One way of training a replica, or a population that is there already."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

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


class Condition(Model):
    """One way of training one replica. docs/training.md says what each key is for."""

    method: Literal["lora", "full", "distill"] = "lora"
    """lora: adapters, on the labels. full: all weights of the base, on the labels. distill:
    adapters, on what a teacher says of the training rows; what is not said is as in the teacher's
    condition.
    """
    teacher: Teacher | None = None
    students: Replicas = 1
    """per fresh teacher group; 2 or more part the variance between teacher groups from that between
    students of one group.
    """
    temperature: Factor = 1.0
    """of the teacher's and the student's distribution in the loss."""
    mix: Share = 1.0
    """share of the loss that is the teacher's; the rest is cross-entropy on the labels."""
    rank: Rank = 8
    alpha: Factor | None = None
    """LoRA scale is alpha / rank (alpha / sqrt(rank) with rslora); default 2 * rank."""
    rslora: bool = False
    dropout: Below1 = 0.0
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    init: Literal["kaiming", "gaussian", "orthogonal"] = "kaiming"
    """how adapters begin, in PEFT's words; always without any change of the base."""
    freeze: list[Literal["A"]] = []
    """`[A]`: only B is trained. With `vary` without init all replicas have the same A."""
    rows: Rows | None = None
    """of the training data: the first of a shuffle that is the same for all conditions; default:
    all.
    """
    epochs: Epochs = 2
    batch_size: Batch = 16
    gradient_accumulation: Batch = 1
    lr: LearningRate = 2e-4
    """default: 2e-4, of `method: full` 2e-5."""
    lr_ratio_B: Factor = 1.0
    """learning rate of B as a multiple of that of A."""
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """learning rate of a block as a share of that of the block above it."""
    schedule: Literal["linear", "cosine", "constant", "cyclic"] = "linear"
    """cyclic: down and up again between two snapshots."""
    cycle_floor: Share = 0.01
    """lowest learning rate of a cycle, as a share of `lr`."""
    warmup: NonNegative = 0.03
    """below 1 a share of all steps, otherwise a number of steps."""
    clip: Norm = 1.0
    """largest gradient norm of one replica; 0 is off."""
    weight_decay: Decay = 0.0
    """towards the base: of adapters, their factors towards 0; of `method: full`, all weights
    towards those of the base.
    """
    lookahead: Lookahead | None = None
    label_smoothing: Below1 = 0.0
    betas: Annotated[list[Below1], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    eps: Epsilon = 1e-8
    snapshots: Snapshots | None = None
    averages: list[Literal["swa", "ema", "lawa"]] = []
    """running averages of the snapshots, each written as an adapter (of `method: full` a model) of
    its own; needs `snapshots`.
    """
    lawa_last: Points = 5
    """number of snapshots, the latest ones."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """weight of the past at each snapshot."""
    replicas: Replicas | None = None
    """default: the recipe's."""
    vary: list[Source] | None = None
    """default: the recipe's."""
    crossed: dict[Source, Annotated[Replicas, Field(ge=2)]] = {}
    """levels of each source: `{init: 8, order: 8}` trains all 64 combinations; sources that are not
    named are held.
    """
    repeats: Replicas = 1
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
            raise ValueError(
                "a crossed design says itself what varies and how many replicas there "
                "are: leave 'replicas' and 'vary' out"
            )
        if self.repeats > 1 and not self.crossed:
            raise ValueError(
                "'repeats' belongs to a crossed design: add `crossed: {init: 8, order: 8}`"
            )
        return self

    @model_validator(mode="after")
    def _crossed_can_be_trained(self) -> Condition:
        if math.prod(self.crossed.values()) * self.repeats > MOST:
            raise ValueError(
                f"a crossed design of {math.prod(self.crossed.values()) * self.repeats:,} "
                f"replicas; {MOST:,} is the most"
            )
        return self

    @model_validator(mode="after")
    def _averages_need_snapshots(self) -> Condition:
        if self.averages and self.snapshots is None:
            raise ValueError("'averages' needs 'snapshots': add `snapshots: {count: 8}`")
        return self

    @model_validator(mode="after")
    def _controls_fit(self) -> Condition:
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

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> Condition:
        if self.method != "full":
            return self
        fields = type(self).model_fields
        if foreign := [
            key for key in OF_ADAPTERS if getattr(self, key) != fields[key].get_default()
        ]:
            raise ValueError(
                f"{foreign[0]!r} is about adapters, and `method: full` has none; leave it out"
            )
        if idle := {"init", "dropout"} & {*self.crossed}:
            named = " and ".join(sorted(idle))
            raise ValueError(
                "`method: full` starts from the base and has no dropout: all levels of "
                f"{named} are alike"
            )
        return self

    @model_validator(mode="after")
    def _distilled_from_somebody(self) -> Condition:
        if (self.method == "distill") != (self.teacher is not None):
            raise ValueError(
                "`method: distill` goes with `teacher: "
                "{condition: NAME, ensemble: probabilities, k: 8}`"
            )
        if self.teacher is None and (self.students, self.temperature, self.mix) != (1, 1.0, 1.0):
            raise ValueError("'students', 'temperature' and 'mix' belong to `method: distill`")
        if self.teacher and self.teacher.groups == "fixed" and self.students > 1:
            raise ValueError(
                "'students' is per fresh teacher group; of a fixed one `replicas` says "
                "how many there are"
            )
        if self.teacher and self.teacher.groups == "fresh" and self.crossed:
            raise ValueError(
                "a crossed design of students needs `groups: fixed`: every fresh group "
                "would be a source of its own"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Also without younger keys that are not used: what an older recipe asks for keeps its
        fingerprint.
        """
        fields = type(self).model_fields
        out = {key for key in YOUNGER if getattr(self, key) == fields[key].get_default()}
        out |= {
            *(() if self.teacher else DISTILLATION),
            *(OF_ADAPTERS if self.method == "full" else ()),
        }
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
OF_ADAPTERS = (
    "rank",
    "alpha",
    "rslora",
    "dropout",
    "targets",
    "init",
    "freeze",
    "lr_ratio_B",
    "compile",
)
"""keys of a condition that trains adapters"""
YOUNGER = (
    *(
        "init",
        "freeze",
        "lr_ratio_B",
        "layer_lr_decay",
        "cycle_floor",
        "lookahead",
        "label_smoothing",
        "lawa_last",
    ),
    *("rows", "dtype", "stack", "compile", "threads", "perturb"),
)
"""keys of a condition that were not there from the beginning"""
FULL_LR = 2e-5
"""default of `method: full`, where all weights move at once: a tenth of that of adapters"""
OWN = (
    *DISTILLATION,
    "method",
    "replicas",
    "vary",
    "crossed",
    "repeats",
    "snapshots",
    "averages",
    "ema_decay",
    "lawa_last",
)
"""keys that a student does not take over from its teacher's condition"""
UNKNOWN = ("rank", "epochs", "batch_size", "lr")
"""keys that a student of adapters that are given must say itself: nobody knows how those were
trained
"""


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
    given = "adapters" in condition if isinstance(condition, dict) else isinstance(condition, Given)
    return "given" if given else "trained"


AnyCondition = Annotated[
    Annotated[Condition, Tag("trained")] | Annotated[Given, Tag("given")], Discriminator(kind_of)
]
"""trained by this run, or given as adapters"""
