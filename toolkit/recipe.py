"""What is asked: one YAML file, read into strict models. An error names the file, the line, the field and the fix."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Source = Literal["init", "order", "dropout"]
MergeMethod = Literal["mean", "swa", "ema", "ties"]
EnsembleMethod = Literal["probabilities", "logits", "token-vote", "vote"]
SHIFTS = ("typical", "near", "far")
EMBEDDED = "embedded"
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAKEN = ("outcomes", "base")


class RecipeError(ValueError):
    """A recipe that cannot be run as written. The message is one line for the user."""


Path_ = tuple[Any, ...]
"""Keys and positions that lead to a place in a document."""


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
    rank: Annotated[int | str, BeforeValidator(_merge_rank)] = "full"
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
    answer: Annotated[str, AfterValidator(_answer_rule)] = "text"
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
    def _fits_together(self) -> Recipe:
        for kind, path, names in (("condition", ("conditions",), self.conditions), ("suite", ("data", "suites"), self.data.suites)):
            for name in names:
                if not FOLDER_NAME.fullmatch(name) or name in TAKEN:
                    raise _at((*path, name), f"a {kind} names a folder: letters, digits, '.', '_' and '-', not {' or '.join(TAKEN)}")
        labels: list[str] = []
        for i, mitigation in enumerate(self.mitigations):
            if mitigation.label in labels:
                raise _at(("mitigations", i), f"{mitigation.label} is listed twice")
            labels.append(mitigation.label)
            for name, condition in self.conditions.items():
                saved = mitigation.merge == "swa" and condition.snapshots and condition.snapshots.save
                if mitigation.merge in ("swa", "ema") and mitigation.merge not in condition.averages and not saved:
                    raise _at(
                        ("mitigations", i), f"add `snapshots: {{count: 8}}` and `averages: [{mitigation.merge}]` to condition {name!r}"
                    )
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
    try:
        return int(text) if node.tag.endswith(":int") else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # the user's own tag: `!!int x`
        raise yaml.MarkedYAMLError(problem=f"{text!r} is no number", problem_mark=node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than text."""


for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def _lines(node: yaml.Node | None, path: Path_ = ()) -> dict[Path_, int]:
    """Line of every key and item, by its path in the document. Keys are text as written; one that stands twice is an error."""
    lines = {path: node.start_mark.line + 1} if node is not None else {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a word, not a list or a block", problem_mark=key.start_mark)
            key.tag = "tag:yaml.org,2002:str"
            at = (*path, key.value)
            if at in lines:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands on line {lines[at]} already", problem_mark=key.start_mark)
            lines |= _lines(value, at)
            lines[at] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines |= _lines(item, (*path, i))
    return lines


BLOCKS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "data": Data,
    "conditions.NAME": Condition,
    "conditions.NAME.snapshots": Snapshots,
    "mitigations": Mitigation,
    "evaluation": Evaluation,
}
OTHER_NAMES = {
    "learning_rate": "lr",
    "r": "rank",
    "lora_r": "rank",
    "target_modules": "targets",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "clip",
    "max_seq_length": "max_length",
    "<<": "from",
}
"""what other tools call a field"""


def _nearest(word: str, known: list[str]) -> str:
    near = [OTHER_NAMES[word]] if OTHER_NAMES.get(word) in known else difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def _fields_at(path: Path_) -> list[str]:
    """Keys of the block that a path leads to."""
    steps = ["NAME" if i == 1 and path[0] == "conditions" else step for i, step in enumerate(path) if not isinstance(step, int)]
    model = BLOCKS[".".join(steps)]
    return [*model.model_fields, *(["from"] if model is Condition else [])]


def _unknown_key(path: Path_) -> str:
    *parent, key = path
    inside = f" in '{'.'.join(map(str, parent))}'" if parent else ""
    homes = [home for home, model in BLOCKS.items() if key in model.model_fields]
    known = _fields_at(tuple(parent))
    belongs = f"; it belongs in '{homes[0]}'" if homes and homes[0] else "; it belongs at the top level" if homes else ""
    return f"unknown key {key!r}{inside}{belongs or _nearest(key, known)}"


EXPECTED = {
    "model_type": "a block of keys",
    "dict_type": "a block of keys",
    "list_type": "a list",
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "too_short": "{min_length} or more entries",
    "too_long": "{max_length} entries or fewer",
}


def _wrong_value(errors: list[ErrorDetails]) -> str:
    """What a value should be; the branches of a union in one sentence."""
    texts = [EXPECTED[e["type"]].format(**e.get("ctx", {})) if e["type"] in EXPECTED else e["msg"] for e in errors]
    if errors[0]["type"] in ("value_error", "recipe"):
        text = texts[0].removeprefix("Value error, ")
    else:
        text = "should be " + " or ".join(dict.fromkeys(text.removeprefix("Input should be ") for text in texts))
    value = errors[0]["input"]
    return text + ("" if isinstance(value, dict | BaseModel) else " (got nothing)" if value is None else f" (got {value!r})")


def _explain(error: ValidationError, lines: dict[Path_, int], file: str) -> str:
    """The first error as `file:line: what is wrong and how to mend it`, and the number of the others."""
    found: dict[Path_, list[ErrorDetails]] = {}
    for e in error.errors():
        path = tuple(e.get("ctx", {}).get("path", e["loc"]))
        if path[:1] == ("conditions",) and len(path) > 2 and path[:3] not in lines:
            continue  # inherited: told where it stands
        place: Path_ = ()
        for step in path:  # branches of a union are steps that the document does not have
            place = (*place, step) if (*place, step) in lines else place
        found.setdefault((*place, *path[-1:]) if e["type"] == "missing" else place, []).append(e)
    place = min(found, key=lambda p: found[p][0]["type"] != "extra_forbidden")  # a typo explains a missing key
    place = max((p for p in found if p[: len(place)] == place), key=len)  # the part of a value that is wrong, rather than all of it
    errors, field = found[place], ".".join(map(str, place))
    if errors[0]["type"] == "extra_forbidden":
        message = _unknown_key(place)
    elif errors[0]["type"] == "missing":
        message = f"missing key '{field}'"
    else:
        message = f"'{field}': {_wrong_value(errors)}" if field else _wrong_value(errors)
    others = sum(p != place[: len(p)] for p in found)
    line = lines.get(place) or lines.get(place[:-1], 1)
    return f"{file}:{line}: {message}" + (f" (and {others} more)" if others else "")


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
        if not isinstance(parent, str) or parent not in conditions:
            raise RecipeError(f"{where}: 'from: {parent}' names no condition{_nearest(str(parent), list(conditions))}")
        if parent in seen:
            raise RecipeError(f"{where}: 'from: {parent}' leads back to itself")
        inherited = resolve(parent, (*seen, name))
        own = {key: value for key, value in block.items() if key != "from"}
        return {**inherited, **own} if isinstance(inherited, dict) else own

    return {name: resolve(name, (name,)) for name in conditions}


def _locate(value: str, folder: Path) -> str:
    """A relative path in a recipe counts from the recipe's folder first, then from the working directory. Names stay as they are."""
    if value == EMBEDDED:
        return value
    path = Path(value).expanduser()
    return next((str(p.resolve()) for p in (folder / path, path) if p.exists()), value)


def parse_recipe(text: str, file: str = "recipe.yaml") -> Recipe:
    """Read a recipe from YAML text; paths are left as written.

    Raises RecipeError with one line: file, line, field and the fix.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = _lines(node)
        document = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{file}:{mark.line + 1 if mark else 1}: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RecipeError(f"{file}: a block contains itself (an alias `*x` inside its anchor `&x`)") from None
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
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
