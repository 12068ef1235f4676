"""What is asked: one YAML file, read into strict models. An error names the file, the line, the field and the fix."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Source = Literal["init", "order", "dropout"]
MergeMethod = Literal["mean", "swa", "ema", "ties"]
EnsembleMethod = Literal["probabilities", "logits", "token-vote", "vote"]
SHIFTS = ("typical", "near", "far")


class RecipeError(ValueError):
    """A recipe that cannot be run as written. The message is one line for the user."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


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
    targets: Literal["all-linear"] | list[str] = "all-linear"
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

    @model_validator(mode="after")
    def _averages_need_snapshots(self) -> Condition:
        if self.averages and self.snapshots is None:
            raise ValueError("'averages' needs 'snapshots': add `snapshots: {count: 8}`")
        return self


class Mitigation(_Model):
    """A post-hoc procedure on K replicas: `{merge: mean, k: 8}` or `{ensemble: probabilities, k: 8}`."""

    merge: MergeMethod | None = None
    ensemble: EnsembleMethod | None = None
    k: Positive
    rank: Literal["full", "same"] | Positive | Annotated[str, Field(pattern=r"^energy=0?\.\d+$")] = "full"
    """rank of a merged adapter: exact, that of the inputs, a number, or the least that keeps a share of the energy."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """ties: share of the entries that is kept."""

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
        return "-".join([*parts, f"k{self.k}"])


class Evaluation(_Model):
    """How subjects answer, and what of a text is the answer."""

    max_new_tokens: Positive = 64
    top_k: Positive = 5
    """first-token candidates that are stored with their log-probabilities."""
    answer: Annotated[str, Field(pattern=r"^(text|first-line|embedded|regex:.+)$")] = "text"
    """`text` (the whole text), `first-line`, `regex:PATTERN` (first group), or `embedded` (the embedded task's parser)."""


class Recipe(_Model):
    """The whole question. Every default is written out in the run's `recipe.yaml`."""

    name: str = "recipe"
    base: str
    """`embedded`, a Hugging Face id (`id` or `id@revision`), or a folder."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """of the frozen base; adapters and optimiser are float32 or better."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: Data
    seed: Annotated[int, Field(ge=0)] = 0
    replicas: Annotated[int, Field(ge=2, le=100_000)] = 16
    vary: list[Source] = ["init", "order", "dropout"]
    stack: Annotated[int, Field(ge=1, le=4096)] | None = None
    """replicas trained together; default: chosen by the plan. It belongs to the bits of a replica."""
    conditions: Annotated[dict[str, Condition], Field(min_length=1)]
    mitigations: list[Mitigation] = []
    evaluation: Evaluation = Evaluation()
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """nominal coverage of the intervals."""

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        for kind, names in (("condition", self.conditions), ("suite", self.data.suites)):
            for name in names:
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in ("outcomes", "base"):
                    raise ValueError(f"{kind} {name!r} is a folder name: letters, digits, '.', '_' and '-' (not 'outcomes', 'base')")
        labels = [m.label for m in self.mitigations]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"mitigation {label!r} is listed twice")
        return self

    def replicas_of(self, condition: str) -> int:
        return self.conditions[condition].replicas or self.replicas

    def vary_of(self, condition: str) -> list[str]:
        own = self.conditions[condition].vary
        return list(self.vary if own is None else own)


# -- reading -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars: `3e-4` is a number, `no` and `12:30` are strings, dates are strings (yaml/pyyaml #173)."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))
_FLOAT = re.compile(r"^(?:[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    if re.fullmatch(r"[-+]?0\d+", text):
        raise yaml.MarkedYAMLError(problem=f"number {text!r} has a leading zero: write it without", problem_mark=node.start_mark)
    if node.tag.endswith(":int"):
        return int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)

Path_ = tuple[Any, ...]


def _lines(node: yaml.Node | None, path: Path_ = ()) -> dict[Path_, int]:
    """Line of every key and item, by its path in the document; a key that stands twice is an error."""
    lines = {path: node.start_mark.line + 1} if node is not None else {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            at = (*path, key.value)
            if at in lines:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands on line {lines[at]} already", problem_mark=key.start_mark)
            lines |= _lines(value, at)
            lines[at] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines |= _lines(item, (*path, i))
    return lines


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _fields_at(model: type[BaseModel], path: Path_) -> list[str]:
    """Field names of the model that a path leads to, following dicts and lists of models."""
    current: Any = model
    for step in path:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[step].annotation if step in current.model_fields else None
            models = [a for a in get_args(current) if isinstance(a, type) and issubclass(a, BaseModel)]
            is_collection = getattr(current, "__origin__", None) in (dict, list)
            current = current if is_collection or not models else models[0]
        else:
            models = [a for a in get_args(current) if isinstance(a, type) and issubclass(a, BaseModel)]
            current = models[0] if models else None
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _explain(error: ValidationError, lines: dict[Path_, int], file: str) -> str:
    """The first error as `file:line: what is wrong and how to mend it`, and the number of the others."""
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")  # a typo explains a missing key
    first = errors[0]
    path = tuple(first["loc"])
    known = path
    while known and known not in lines:  # a missing key, or a branch of a union: the line of its parent
        known = known[:-1]
    where = f"{file}:{lines.get(known, 1)}"
    field = ".".join(map(str, known if first["type"] != "missing" else path))
    if first["type"] == "extra_forbidden":
        parent, key = path[:-1], str(path[-1])
        inside = f" in '{'.'.join(map(str, parent))}'" if parent else ""
        message = f"unknown key {key!r}{inside}{_nearest(key, _fields_at(Recipe, parent))}"
    elif first["type"] == "missing":
        message = f"missing key '{field}'"
    else:
        text = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], dict | BaseModel) else f" (got {first['input']!r})"
        message = f"'{field}': {text}{shown}" if field else text
    others = len(errors) - 1
    return f"{where}: {message}" + (f" (and {others} more)" if others and first["type"] != "literal_error" else "")


def _inherit(conditions: Any, lines: dict[Path_, int], file: str) -> Any:
    """Replace `from: OTHER` by the keys of OTHER, its own keys winning."""
    if not isinstance(conditions, dict):
        return conditions

    def resolve(name: str, seen: tuple[str, ...]) -> Any:
        block = conditions[name]
        if not isinstance(block, dict) or "from" not in block:
            return block
        parent = block["from"]
        where = f"{file}:{lines.get(('conditions', name, 'from'), 1)}"
        if parent not in conditions:
            raise RecipeError(f"{where}: 'from: {parent}' names no condition{_nearest(str(parent), list(conditions))}")
        if parent in seen:
            raise RecipeError(f"{where}: 'from: {parent}' leads back to itself")
        inherited = resolve(parent, (*seen, name))
        own = {key: value for key, value in block.items() if key != "from"}
        return {**inherited, **own} if isinstance(inherited, dict) else block

    return {name: resolve(name, (name,)) for name in conditions}


def _locate(value: str, folder: Path) -> str:
    """A relative path in a recipe counts from the recipe's folder first, then from the working directory."""
    if value.partition(":")[0] == "embedded":  # a word of the recipe, also where a folder of that name is near
        return value
    beside = folder / value
    return str(beside.resolve()) if not Path(value).is_absolute() and beside.exists() else value


def parse_recipe(text: str, file: str = "recipe.yaml") -> Recipe:
    """Read a recipe from YAML text; paths are left as written.

    Raises RecipeError with one line: file, line, field and the fix.
    """
    try:
        lines = _lines(yaml.compose(text, Loader=_Loader))
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{file}:{mark.line + 1 if mark else 1}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{file}:1: a recipe is a mapping with `base`, `data` and `conditions`; `ftk init` writes one")
    if "conditions" in document:
        document["conditions"] = _inherit(document["conditions"], lines, file)
    document.setdefault("name", Path(file).stem)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(_explain(error, lines, file)) from None


def load_recipe(path: Path | str) -> Recipe:
    """Read a recipe file, with every path made absolute where it exists beside the recipe.

    Raises RecipeError with one line: file, line, field and the fix.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file; `ftk init` writes a starter recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    recipe = parse_recipe(text, str(path))
    data = recipe.data.model_copy(
        update={
            "train": _locate(recipe.data.train, path.parent),
            "suites": {name: _locate(source, path.parent) for name, source in recipe.data.suites.items()},
        }
    )
    return recipe.model_copy(update={"data": data, "base": _locate(recipe.base, path.parent)})


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; `parse_recipe` reads it back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=120)
