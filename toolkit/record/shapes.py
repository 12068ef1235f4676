"""What ftk reads again of the JSON files that it and others wrote, for `plain.read_record`: a file
that lacks it is told in one line.
"""

from typing import Any, NotRequired

from typing_extensions import TypedDict  # that of Python 3.11 tells pydantic too little


class Numerics(TypedDict):
    """What decides the bits of a sum: the processor and the accelerator."""

    cpu: str | None
    gpu: str | None


class Environment(TypedDict):
    """environment.json of a run."""

    ftk: NotRequired[str]
    python: str
    system: str
    cores: int | None
    versions: dict[str, str | None]
    numerics: Numerics


class Base(TypedDict):
    """base.json of a run."""

    parameters: NotRequired[int]
    sha256: NotRequired[str]


class Plan(TypedDict):
    """The shapes of a condition's training, as recorded."""

    steps: int
    micro_batch: int
    accumulation: int
    length: int


class Population(TypedDict):
    """population.json of a condition that was trained."""

    fingerprint: str
    plan: Plan


class Claimed(TypedDict):
    """population.json of any condition."""

    design: str


class Input(TypedDict):
    """An adapter that went into a merge."""

    path: str
    weight: float
    sha256: str


class Merge(TypedDict):
    """merge.json of a merged adapter or model."""

    method: str
    paper: str
    parameters: dict[str, Any]
    inputs: list[Input]
    versions: dict[str, Any]
    rank: NotRequired[int | None]
    energy: NotRequired[float | None]


class AdapterConfig(TypedDict):
    """adapter_config.json of LoRA: what any tool reads of it, as peft writes it."""

    base_model_name_or_path: NotRequired[str | None]
    revision: NotRequired[str | None]
    task_type: NotRequired[str | None]
    r: NotRequired[int | None]
    lora_alpha: NotRequired[float | None]
    lora_dropout: NotRequired[float | None]
    rank_pattern: NotRequired[dict[str, int] | None]
    alpha_pattern: NotRequired[dict[str, float] | None]
    target_modules: NotRequired[list[str] | str | None]
    exclude_modules: NotRequired[list[str] | str | None]
    modules_to_save: NotRequired[list[str] | None]
    target_parameters: NotRequired[list[str] | None]
    layers_to_transform: NotRequired[list[int] | int | None]
    bias: NotRequired[str | None]
    use_rslora: NotRequired[bool | None]
    use_dora: NotRequired[bool | None]
    lora_bias: NotRequired[bool | None]
    fan_in_fan_out: NotRequired[bool | None]
    inference_mode: NotRequired[bool | None]


class Full(TypedDict):
    """full.json of a fully fine-tuned model."""

    base: str
    revision: str | None


class Written(TypedDict):
    """`about` of what was measured."""

    ftk: str
    command: str


class Measured(TypedDict):
    """results.json, of any version."""

    version: int
    about: Written
    level: float
    conditions: list[Any]


class Metrics(TypedDict):
    """metrics.json, of any version."""

    version: int
    about: Written
    level: float
    metrics: list[Any]


class Forecast(TypedDict):
    """forecast.json, of any version."""

    stages: dict[str, dict[str, Any]]
    workers: int


class Figure(TypedDict):
    """The mean of a figure over pairs of runs, and the ends of its confidence sequence."""

    mean: float | None
    low: float | None
    high: float | None
    pairs: int


class Look(TypedDict):
    """What was decided after so many replicas, and on which figures."""

    replicas: int
    decision: str
    figures: dict[str, Figure]


class Stopping(TypedDict):
    """stopping.json of a condition whose number of replicas a rule decided."""

    level: float
    looks: list[Look]
