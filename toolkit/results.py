"""What a run found: one versioned JSON of small frozen records, the only thing that a report reads."""

import json
import math
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path

from toolkit.statistics import EFFECT_KEPT, AccuracySpread, Estimate

VERSION = 1
SHIFTS = ("typical", "near", "far")


@dataclass(frozen=True)
class Price:
    """What one run of a procedure costs: trainings, models that answer each prompt, rank of the adapter.

    `seconds`: measured for its trainings, of one core (CPU) or of the device.
    """

    training_runs: int = 1
    inference_streams: int = 1
    rank: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class MitigationDesign:
    """A mitigation on disjoint groups of K replicas: members[g] are the replica indexes behind group g.

    label: names the rows of the outcomes, `mean-k8`. title: the method in words, without K. kind: `merge` or `ensemble`.
    """

    label: str
    title: str
    kind: str
    k: int
    members: Sequence[Sequence[int]]
    price: Price


@dataclass(frozen=True)
class ConditionDesign:
    """One way of training: the replicas that succeeded (by index), how many failed, and what was built from them."""

    name: str
    replicas: Sequence[int]
    failed: int = 0
    mitigations: Sequence[MitigationDesign] = ()
    price: Price = Price()


@dataclass(frozen=True)
class Cell:
    """One procedure on one shift, or on one category of it (category "" = all). None = nothing to measure it with.

    ratio, disagreement_change (negative = more stable), accuracy_change and effect_size compare a mitigation with the single
    replicas of its condition; on a category only the first two of them are kept.
    scores: accuracy of each replica or group, in index order.
    """

    shift: str
    category: str
    n_prompts: int
    disagreement: Estimate | None = None
    ratio: Estimate | None = None
    disagreement_change: Estimate | None = None
    accuracy: Estimate | None = None
    accuracy_change: Estimate | None = None
    effect_size: Estimate | None = None
    accuracy_spread: AccuracySpread | None = None
    scores: tuple[float | None, ...] = ()

    @property
    def collapsed(self) -> bool:
        """The effect size is flagged: part of the fine-tuning may have been given back."""
        effect = self.effect_size
        return effect is not None and effect.value is not None and effect.value < EFFECT_KEPT


@dataclass(frozen=True)
class Procedure:
    """A way to obtain a model, run n_runs times independently (replicas, or disjoint groups of k). kind: base, replica, merge, ensemble."""

    label: str
    title: str
    kind: str
    k: int
    n_runs: int
    price: Price
    cells: tuple[Cell, ...]

    @property
    def family(self) -> str:
        """The label without K: `ties-k2` and `ties-k8` are one family."""
        return self.label.rpartition("-k")[0] or self.label

    def cell(self, shift: str, category: str = "") -> Cell | None:
        return next((c for c in self.cells if c.shift == shift and c.category == category), None)


@dataclass(frozen=True)
class UnstablePrompt:
    """A prompt on which the replicas disagree most. answers: (text, replicas that gave it), most frequent first."""

    suite: str
    id: str
    prompt: str
    category: str
    shift: str
    reference: str | None
    base_answer: str | None
    disagreement: float
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ConditionResult:
    name: str
    n_replicas: int
    n_failed: int
    failure_rate: Estimate
    procedures: tuple[Procedure, ...]
    unstable: tuple[UnstablePrompt, ...]

    @property
    def single(self) -> Procedure:
        return self.procedures[0]


@dataclass(frozen=True)
class SuiteCount:
    """How many prompts of one category a suite holds."""

    suite: str
    shift: str
    category: str
    n_prompts: int


@dataclass(frozen=True)
class About:
    """Where the numbers come from; the caller knows, the analysis does not."""

    ftk: str = ""
    recipe: str = ""
    base: str = ""
    parameters: int | None = None
    environment: dict[str, str] | None = None
    command: str = ""


@dataclass(frozen=True)
class Results:
    about: About
    level: float
    suites: tuple[SuiteCount, ...]
    base: Procedure | None
    conditions: tuple[ConditionResult, ...]
    verdict: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def shifts(self) -> list[str]:
        """The shifts that the suites hold: typical, near, far, then others by name."""
        return sorted({s.shift for s in self.suites}, key=lambda s: (SHIFTS.index(s) if s in SHIFTS else len(SHIFTS), s))


# -- numbers in words --------------------------------------------------------------------------------------------------


def number(value: float | None, unit: str = "", signed: bool = False) -> str:
    """`12.3` for a share with unit "%", `0.62` for a ratio: one form everywhere, so that tables and sentences agree."""
    if value is None or not math.isfinite(value):
        return "n/a"
    text = f"{100 * value:+.1f}" if unit == "%" else f"{value:+.2f}"
    text = text if signed else text.removeprefix("+")
    return text[1:] if text in ("-0.0", "-0.00", "+0.0", "+0.00") else text


def interval(estimate: Estimate, unit: str = "", signed: bool = False) -> str:
    """`[10.1, 14.9]`, or nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{number(estimate.low, unit, signed)}, {number(estimate.high, unit, signed)}]"


def remedy(estimate: Estimate, k: int = 1) -> str:
    """`inconclusive; needs about 96 replicas`: a run of the procedure is a group of k replicas."""
    needed = f"; needs about {estimate.needed * k:,} replicas" if estimate.needed else ""
    return f"inconclusive{needed}"


# -- the file ----------------------------------------------------------------------------------------------------------


def save_results(path: Path | str, results: Results) -> None:
    """Write results.json: beside, fsynced, renamed, so that a reader never sees half a file."""
    path = Path(path)
    text = json.dumps(_plain({"version": VERSION, **asdict(results)}), indent=1, ensure_ascii=False, allow_nan=False)
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(staging, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def load_results(path: Path | str) -> Results:
    """Read results.json. ValueError where it is of another version or not a result at all."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    version = data.pop("version", None) if isinstance(data, dict) else None
    if version != VERSION:
        raise ValueError(f"{path}: results of version {version}; this ftk reads version {VERSION}: measure the outcomes again")
    try:
        return _build(Results, data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a complete results file ({error})") from None


def _plain(value: typing.Any) -> typing.Any:
    """numpy scalars as Python's; a number that is none (nan, inf) as null, which every JSON reader knows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _build(kind: typing.Any, data: typing.Any) -> typing.Any:
    """JSON back to records, guided by the type hints."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if data is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = {f.name for f in fields(kind)}
        return kind(**{name: _build(hints[name], value) for name, value in data.items() if name in known})  # type: ignore[operator]
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        inner = [inner[0]] * len(data) if inner[-1] is Ellipsis else inner
        return tuple(_build(of, value) for of, value in zip(inner, data, strict=True))
    return data
