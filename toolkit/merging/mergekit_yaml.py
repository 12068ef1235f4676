"""mergekit's YAML, the part that is about adapters: `merge_method`, `models` and `parameters`, read
and written.

mergekit merges `base+adapter` as full models; here the same request makes an adapter. What would
ask for something else (slices, modules, a weight for each layer, other methods) is refused in one
line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from toolkit.model.adapters import CONFIG, adapter_paths, read_adapter
from toolkit.recipe.document import Dumper
from toolkit.recipe.load import RecipeError, read_yaml, text_of
from toolkit.record import shapes
from toolkit.record.files import home
from toolkit.record.plain import read_record
from toolkit.text.nearest import Path_, nearest

NAME = "mergekit_config.yml"
OURS = {"linear": "mean", "task_arithmetic": "mean", "ties": "ties"}
"""mergekit's method -> ftk's"""
THEIRS = {"mean": "linear", "swa": "linear", "ema": "linear", "ties": "ties"}
"""ftk's method -> mergekit's of the adapters that went in"""
TOP = (
    "merge_method",
    "base_model",
    "models",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
ELSEWHERE = {
    "slices": "slices put layers of several models on top of each other",
    "modules": "modules merge the parts of a model apart",
    "tokenizer": "an adapter carries no tokenizer",
    "chat_template": "an adapter carries no chat template",
}
PARAMETERS = ("weight", "density", "normalize", "lambda", "int8_mask", "rescale")


@dataclass(frozen=True)
class Request:
    """What a file asks for, in ftk's words."""

    method: str
    adapters: list[Path]
    weights: list[float]
    base: str | None
    parameters: dict[str, Any]
    notes: list[str]


def read_request(path: Path) -> Request:
    """Read a mergekit file. Adapter paths count from its folder first, then from the working
    directory.

    Raises RecipeError in one line (file, line, field, fix), or AdapterError.
    """
    document, lines = read_yaml(
        text_of(path), str(path), "a mapping with `merge_method` and `models` is expected"
    )

    def wrong(place: Path_, text: str) -> RecipeError:
        line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), 1)
        return RecipeError(f"{path}:{line}: '{'.'.join(map(str, place))}': {text}")

    def check_keys(block: Mapping[str, Any], place: Path_, keys: Iterable[str]) -> None:
        for key in block:
            if key not in keys:
                where = f" in '{'.'.join(map(str, place))}'" if place else ""
                raise RecipeError(
                    f"{path}:{lines[(*place, key)]}: unknown key "
                    f"{key!r}{where}{nearest(str(key), list(keys))}"
                )

    check_keys(document, (), (*TOP, "slices", "modules"))
    for key, why in ELSEWHERE.items():
        if document.get(key) is not None:
            raise wrong(
                (key,), f"{why}: that takes mergekit itself; ftk reads `models` and `parameters`"
            )
    if document.get("tokenizer_source") not in (None, "base"):
        raise wrong(("tokenizer_source",), "an adapter carries no tokenizer; leave it out")
    method, of_all = document.get("merge_method"), document.get("base_model")
    if of_all is not None and not isinstance(of_all, str):
        raise wrong(("base_model",), f"should be the name or folder of a model (got {of_all!r})")
    if not isinstance(method, str) or method not in OURS:
        raise wrong(
            ("merge_method",),
            f"should be one of {', '.join(OURS)} (got {method!r}); others take mergekit itself",
        )
    models, shared = document.get("models"), document.get("parameters") or {}
    if not isinstance(models, list) or not models:
        raise wrong(("models",), "should be a list of `model: BASE+ADAPTER`")
    if not isinstance(shared, dict):
        raise wrong(("parameters",), "should be a block of keys")
    check_keys(shared, ("parameters",), PARAMETERS)

    adapters, weights, densities, bases = [], [], [], set()
    for i, entry in enumerate(models):
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
            raise wrong(("models", i), "should be a block with `model: BASE+ADAPTER`")
        check_keys(entry, ("models", i), ("model", "parameters"))
        own_settings = entry.get("parameters") or {}
        if not isinstance(own_settings, dict):
            raise wrong(("models", i, "parameters"), "should be a block of keys")
        check_keys(own_settings, ("models", i, "parameters"), ("weight", "density"))
        base, plus, adapter = entry["model"].partition("+")
        if not plus and base == of_all and method != "linear":
            continue  # its change is zero
        adapter_path = _adapter(adapter if plus else base, path.parent)
        if adapter_path is None:
            what = "is no folder with an adapter; ftk merges adapters, full models are mergekit's"
            raise wrong(("models", i, "model"), f"{adapter if plus else base!r} {what}")
        adapters.append(adapter_path)
        bases |= {base} if plus else set()
        settings = {"weight": 1.0, "density": 1.0, **shared, **own_settings}
        for name in ("weight", "density"):
            value = settings[name]
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
            ):
                position = (
                    ("models", i, "parameters", name)
                    if name in own_settings
                    else ("parameters", name)
                )
                raise wrong(position, f"should be one number for all layers (got {value!r})")
        weights.append(float(settings["weight"]))
        densities.append(float(settings["density"]))
    if not adapters:
        raise wrong(("models",), "holds no adapter")
    bases |= {of_all} if of_all else set()
    if len(bases) > 1:
        raise wrong(
            ("models",), f"adapters of one base are merged; here are {', '.join(sorted(bases))}"
        )

    normalised = shared.get("normalize", method != "task_arithmetic")
    if not normalised and (method == "ties" or not math.isclose(sum(weights), 1, abs_tol=1e-6)):
        raise wrong(
            ("parameters", "normalize"),
            f"weights are normalised here, and these sum to {sum(weights):g}; make them sum to 1",
        )
    if shared.get("lambda", 1) != 1 or shared.get("rescale"):
        raise wrong(
            ("parameters", "lambda" if shared.get("lambda", 1) != 1 else "rescale"),
            "the merged change is not scaled here; leave it out",
        )
    if len(set(densities)) > 1:
        raise wrong(("models",), "one density for all adapters is known here")
    if method != "ties" and set(densities) != {1.0}:
        raise wrong(("parameters", "density"), "belongs to `merge_method: ties`")
    unused = [key for key in ("dtype", "out_dtype") if document.get(key) not in (None, "float32")]
    notes = [
        f"{key} {document[key]} is not used: the adapter is written in float32" for key in unused
    ]
    parameters = {"density": densities[0]} if method == "ties" else {}
    return Request(OURS[str(method)], adapters, weights, next(iter(bases), None), parameters, notes)


def _adapter(text: str, folder: Path) -> Path | None:
    for path in (folder / home(text), Path(text)):
        if (path / CONFIG).is_file():
            return adapter_paths(path)[0]
    return None


def config_of(merged: Path) -> str | None:
    """The YAML with which mergekit makes the same merge as a full model; None where it cannot say
    it.
    """
    record = read_record(merged / "merge.json", shapes.Merge)
    if not (merged / CONFIG).is_file():  # a merge of whole models
        return None
    base = read_record(merged / CONFIG, shapes.AdapterConfig).get("base_model_name_or_path")
    method = THEIRS.get(record["method"])
    paths = [str(Path(source["path"]).absolute()) for source in record["inputs"]]
    # mergekit would change a tied head, too
    embeds = any(module.embedding for module in read_adapter(merged).modules.values())
    if (
        method is None
        or not base
        or embeds
        or any(mark in text for text in (base, *paths) for mark in "+@")
    ):
        return None
    density = {"density": record["parameters"]["density"]} if method == "ties" else {}
    document = {
        "merge_method": method,
        **({"base_model": base} if method == "ties" else {}),
        "models": [
            {"model": f"{base}+{path}", "parameters": {"weight": source["weight"], **density}}
            for path, source in zip(paths, record["inputs"], strict=True)
        ],
        "parameters": {"normalize": True},
        "dtype": "float32",
    }
    kept = (
        ""
        if record["energy"] > 1 - 1e-9
        else f"; ftk cut it to rank {record['rank']} and kept {100 * record['energy']:.2f} % "
        "of the energy"
    )
    return f"# the same merge as a full model: mergekit-yaml {NAME} OUT{kept}\n" + yaml.dump(
        document, Dumper=Dumper, sort_keys=False, width=1000
    )
