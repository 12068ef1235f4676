"""Writes the generated blocks of the Markdown pages: tables, counts and terminal output.

A block stands between `<!-- block: NAME -->` and `<!-- end block -->`, and is made here from a
committed results file or from the code. Blocks of ```console hold commands and what they print;
those of the pages in CONSOLE are run one after the other in a folder of their own.

python benchmarks/pages.py              # writes every block anew
python benchmarks/pages.py --console    # also runs the commands and writes what they print
"""

import argparse
import ast
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tables
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from scipy.stats import spearmanr

from toolkit.cli.schema import FILES, schema_of
from toolkit.recipe import DistilledCondition, Recipe
from toolkit.recipe.conditions import OwnKey
from toolkit.recipe.merge_methods import MERGE_METHODS
from toolkit.record.plain import from_plain
from toolkit.record.results import load_claims, load_results
from toolkit.report.sweeps import joined
from toolkit.report.terminal import table_text
from toolkit.statistics import Estimate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
BLOCK = re.compile(r"<!-- block: ([\w., -]+) -->\n(.*?)<!-- end block -->", re.S)
CONSOLE = ("docs/tutorials/predictions.md", "docs/tutorials/adapters.md", "docs/tutorials/model.md")
"""pages of which the commands are run; the first needs no model"""
SESSION = re.compile(r"```console\n(.*?)```", re.S)


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


# -- results -------------------------------------------------------------------------------------


def terminal(name: str) -> str:
    """The table of a run, as the terminal shows it."""
    return f"```text\n{table_text(load_results(RESULTS / f'{name}.json'))}\n```"


def verdict(name: str) -> str:
    return "\n".join(f"- {sentence}" for sentence in load_results(RESULTS / f"{name}.json").verdict)


def shown(estimate: dict | None, unit: str = "") -> str:
    """An estimate of a results file, as in every table."""
    return tables.cell_of(None if estimate is None else from_plain(Estimate, estimate), unit)


def right_answers(name: str, labels: tuple[str, ...]) -> str:
    """Per cent of right answers of some procedures, on every shift."""
    lines = ["| procedure | typical | near | far |", "|---|---|---|---|"]
    for procedure in read(name)["conditions"][0]["procedures"]:
        if procedure["label"] in labels:
            on = {cell["shift"]: cell for cell in procedure["cells"] if not cell["category"]}
            title = procedure["title"]
            title += f", K = {procedure['k']}" if procedure["kind"] != "replica" else ""
            cells = [shown(on[shift]["accuracy"], "%") for shift in ("typical", "near", "far")]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def distillation() -> str:
    lines = [
        "| procedure | answers by | typical, % | near, % | far, % | ratio, far | trainings "
        "| seconds of a core |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for procedure in read("distill")["conditions"][0]["procedures"]:
        on = {cell["shift"]: cell for cell in procedure["cells"] if not cell["category"]}
        price, k = procedure["price"], procedure["k"]
        streams = round(price["inference_streams"])
        differ = [shown(on[shift]["disagreement"], "%") for shift in ("typical", "near", "far")]
        title = procedure["title"] + (f", K = {k}" if procedure["kind"] != "replica" else "")
        lines.append(
            f"| {title} | {streams} {'model' if streams == 1 else 'models'} "
            f"| {' | '.join(differ)} | {shown(on['far']['ratio'])} "
            f"| {price['training_runs']} | {price['seconds']:.1f} |"
        )
    return "\n".join(lines)


def embedded_base() -> str:
    lines = [
        "| base | learning rate | shift | exact match, % (lowest to highest) | disagreement, % |",
        "|---|---|---|---|---|",
    ]
    found = read("embedded_base")
    for base, title in (("pretrained", "pretrained"), ("random_init", "random init")):
        for shift in ("typical", "near", "far"):
            cell = found[base][shift]
            each = [100 * share for share in cell["exact_match_by_replica"]]
            lines.append(
                f"| {title} | {found[base]['learning_rate']} | {shift} "
                f"| {100 * cell['exact_match_median']:.1f} ({min(each):.1f} to {max(each):.1f}) "
                f"| {shown(cell['disagreement'], '%')} |"
            )
    return "\n".join(lines)


def trainings() -> str:
    """How many trainings the studies of docs/claims.md took, and how many failed."""
    studies = {
        "embedded base, the claims": "claims/results.json",
        "CLINC150": "claims-clinc150/results.json",
        "SCAN": "claims-scan/results.json",
        "the controls": "controls/*.json",
        "what it depends on": "dependence.json",
    }
    lines = ["| study | trainings | failed |", "|---|---|---|"]
    for title, pattern in studies.items():
        conditions = [
            condition
            for path in RESULTS.glob(pattern)
            for condition in json.loads(path.read_text())["conditions"]
        ]
        n, failed = (sum(c[key] for c in conditions) for key in ("n_replicas", "n_failed"))
        lines.append(f"| {title} | {n:,} | {failed:,} |")
    return "\n".join(lines)


def scan_losses() -> str:
    """Accuracy of single runs on SCAN, and how it goes with their own training loss.

    Spearman's correlation with its 95 % interval on Fisher's scale (Bonett and Wright,
    Psychometrika 2000).
    """
    kept = RESULTS / "claims-scan"
    rows = [line.split(",") for line in (kept / "weights.csv").read_text().splitlines()]
    condition_at, loss_at = rows[0].index("condition"), rows[0].index("loss")
    lines = [
        "| condition | runs | worst, % | best, % | below 30 % | of these, among the highest losses "
        "| rank correlation of loss and accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for condition in read("claims-scan/results")["conditions"]:
        name = condition["name"]
        if name == "everything-fixed":
            continue
        [scores] = [
            cell["scores"]
            for cell in condition["procedures"][0]["cells"]
            if (cell["shift"], cell["category"]) == ("typical", "")
        ]
        right = np.array(scores)
        loss = np.array([float(row[loss_at]) for row in rows[1:] if row[condition_at] == name])
        r = spearmanr(loss, right).statistic  # pyright: ignore[reportAttributeAccessIssue]
        margin = 1.96 * np.sqrt((1 + r**2 / 2) / (len(right) - 3))
        low, high = np.tanh(np.arctanh(r) + margin * np.array([-1, 1]))
        late = set(np.flatnonzero(right < 0.3))
        highest = late & set(np.argsort(loss)[len(loss) - len(late) :])
        lines.append(
            f"| {name} | {len(right)} | {100 * right.min():.0f} | {100 * right.max():.0f} "
            f"| {len(late)} | {len(highest)} | {r:.2f} ({low:.2f} to {high:.2f}) |"
        )
    return "\n".join(lines)


def forecasts() -> str:
    """What `ftk check` predicted, against what was then taken."""
    lines = [
        "| recipe | wall time | memory of a worker | disk |",
        "|---|---|---|---|",
    ]
    for title, name in (("demo", "check-demo"), ("CLINC150, 32 replicas", "check-clinc150")):
        ratio = read(name)["took_over_predicted"]
        figures = (f"{ratio[key]:.2f}" for key in ("seconds", "worker_bytes", "disk_bytes"))
        lines.append(f"| {title} | {' | '.join(figures)} |")
    return "\n".join(lines)


def head() -> str:
    found = read("head")
    lines = [
        "| dtype | GiB, whole | GiB, in pieces | time, whole over pieces |",
        "|---|---|---|---|",
    ]
    for dtype, ways in found["medians"].items():
        lines.append(
            f"| {dtype} | {ways['whole']['peak_gib']:.1f} | {ways['pieces']['peak_gib']:.1f} "
            f"| {found['ratio'][dtype]['seconds']:.2f} |"
        )
    return "\n".join(lines)


def vmap() -> str:
    works = read("train-vmap")["workloads"]
    names = ("C1", "C2", "embedded")
    rows = {
        "vmap over peft, times as long": [
            f"{works[n]['ratios']['vmap over peft'][works[n]['chosen']]:.1f}" for n in names
        ]
    } | {
        f"seconds of a fresh process: {label}": [
            f"{works[n]['seconds_of_a_fresh_process'][label]:.0f}" for n in names
        ]
        for label in works["C1"]["seconds_of_a_fresh_process"]
    }
    lines = [f"| | {' | '.join(names)} |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(row)} |" for name, row in rows.items()])


def coverage_study() -> types.ModuleType:
    if found := sys.modules.get("coverage_study_of_docs"):
        return found
    spec = importlib.util.spec_from_file_location(
        "coverage_study_of_docs", ROOT / "benchmarks/coverage.py"
    )
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CLASSES = {
    "ok": "93 to 97 %, or not distinguishable from that",
    "conservative": "more: the interval is wider than it needs to be",
    "guarded": "less, but the figure says INCONCLUSIVE there, or has no interval",
    "unseen": "less: the sample lacks a kind of run that exists, and nothing in it can show that",
    "FAIL": "less, and the figure is called conclusive all the same",
    "SILENT": "enough, but the figure is often called inconclusive where its interval decides",
}


def coverage_counts() -> str:
    """How many cells of the coverage study are of each class."""
    cells = read("coverage")["cells"]
    many = sum(row["repetitions"] >= 200 for row in cells)
    lines = [f"| class | cells of {len(cells):,} | the interval covers |", "|---|---|---|"]
    for kind in coverage_study().CLASSES:
        n = sum(row["class"] == kind for row in cells)
        lines.append(f"| {kind} | {n:,} | {CLASSES[kind]} |")
    return "\n".join(
        [*lines, "", f"{many:,} of the {len(cells):,} cells have 200 samples or more."]
    )


def coverage_cells() -> str:
    return coverage_study().markdown(read("coverage")["cells"])


def controls() -> str:
    return tables.conditions_table(
        joined([load_results(path) for path in sorted((RESULTS / "controls").glob("*.json"))])
    )


def claims_of(study: str) -> Callable[[], str]:
    return lambda: tables.claims_table(load_claims(RESULTS / study / "claims.json"))


def matrix_of(study: str) -> Callable[[], str]:
    return lambda: tables.matrix(load_claims(RESULTS / study / "claims.json"))


# -- the keys of a recipe ------------------------------------------------------------------------


def recipe_keys() -> str:
    """Every model of a recipe with its keys, defaults and meanings, from the code."""
    return "\n\n".join(section(model) for model in models_of(Recipe))


def models_of(root: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a model is made of, itself first, in the order in which keys name them."""
    found, waiting = [], [root]
    while waiting:
        model = waiting.pop(0)
        if model not in found:
            if (parent := parent_of(model)) and parent not in found:
                found.append(parent)
            found.append(model)
            waiting += [
                part for field in model.model_fields.values() for part in parts(field.annotation)
            ]
    return found


def parts(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inside in typing.get_args(annotation):
        yield from parts(inside)


def parent_of(model: type[BaseModel]) -> type[BaseModel] | None:
    """The model whose keys this one has, too."""
    parents = (parent for parent in model.__mro__[1:] if issubclass(parent, BaseModel))
    return next((parent for parent in parents if parent.model_fields), None)


def section(model: type[BaseModel]) -> str:
    meanings, parent = meanings_of(model), parent_of(model)
    inherited = parent.model_fields if parent else {}
    besides = (
        f" All keys of [{parent.__name__}](#{parent.__name__.lower()}), and:" if parent else ""
    )
    lines = [
        f"## {model.__name__}",
        "",
        wrapped((model.__doc__ or "") + besides),
        "",
        "| key | values | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in model.model_fields.items():
        if name in inherited and inherited[name].default == field.default:
            continue
        default: Any = field.default
        if field.default_factory is not None:
            default = field.default_factory()  # type: ignore[call-arg]
        shown = "required" if default is PydanticUndefined else f"`{plain(default)}`"
        meaning = (field.description or meanings.get(name, "")).replace("|", "\\|")
        if OwnKey in field.metadata and model is not DistilledCondition:
            meaning = f"{meaning} Students do not take it over.".strip()
        lines.append(f"| `{name}` | {values(field.annotation)} | {shown} | {meaning} |")
    return "\n".join(lines)


def wrapped(text: str) -> str:
    """A paragraph in lines of 100 columns, which do not break inside code."""
    words = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    return textwrap.fill(words, 100).replace("\0", " ")


def plain(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{}"
    return json.dumps(value) if not isinstance(value, str) else value


def values(annotation: Any) -> str:
    """What a key takes, in the words of YAML."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return values(inside[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(values(part) for part in inside if part is not type(None)))
    if origin is list:
        return f"list of {values(inside[0])}"
    if origin is dict:
        return f"{values(inside[0])} to {values(inside[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(
        annotation, str(getattr(annotation, "__name__", annotation))
    )


def meanings_of(model: type[BaseModel]) -> dict[str, str]:
    """The strings under the fields of a model, in its source; those of its parents too."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        [body] = [
            node.body
            for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body
            if isinstance(node, ast.ClassDef)
        ]
        for field, text in zip(body, body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


def merge_parameters() -> str:
    """The parameters of every merge method, from the code."""
    lines = ["| method | parameter | default | values | meaning |", "|---|---|---|---|---|"]
    for method, row in MERGE_METHODS.items():
        for name, parameter in row.parameters.items():
            default = "chosen" if parameter.default is None else f"`{parameter.default}`"
            lines.append(
                f"| `{method}` | `{name}` | {default} | {parameter.kind.words} "
                f"| {parameter.meaning} |"
            )
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "terminal of the demo": lambda: terminal("demo"),
    "verdict of the demo": lambda: verdict("demo"),
    "table of the demo": lambda: tables.table(read("demo")),
    "table of methods": lambda: tables.table(read("methods")),
    "table of clinc150-methods": lambda: tables.table(read("clinc150-methods")),
    "right answers of clinc150-methods": lambda: right_answers(
        "clinc150-methods",
        ("replica", "mean-k4", "mean-k16", "karcher-k4", "shrink-k4", "ties-density0.5-k4")
        + ("probabilities-k4", "probabilities-k16", "vote-k4", "vote-k16"),
    ),
    "terminal of clinc150-embedded": lambda: terminal("clinc150-embedded"),
    "right answers of clinc150-embedded": lambda: right_answers(
        "clinc150-embedded",
        ("replica", "mean-k4", "swa-k4", "ties-density0.5-k4", "probabilities-k4", "vote-k4"),
    ),
    "distillation": distillation,
    "the embedded base": embedded_base,
    "trainings": trainings,
    "claims": claims_of("claims"),
    "matrix": matrix_of("claims"),
    "claims, clinc150": claims_of("claims-clinc150"),
    "matrix, clinc150": matrix_of("claims-clinc150"),
    "claims, scan": claims_of("claims-scan"),
    "matrix, scan": matrix_of("claims-scan"),
    "losses, scan": scan_losses,
    "controls": controls,
    "merge": lambda: tables.merge_table(read("merge")),
    "train": lambda: tables.train_table(read("train")),
    "scale": lambda: tables.scale_table(read("scale")),
    "forecasts": forecasts,
    "head": head,
    "vmap": vmap,
    "coverage counts": coverage_counts,
    "coverage cells": coverage_cells,
    "recipe keys": recipe_keys,
    "merge parameters": merge_parameters,
}


def with_blocks(text: str) -> str:
    """A page with every block made anew."""

    def block(match: re.Match) -> str:
        name = match[1]
        return f"<!-- block: {name} -->\n\n{BLOCKS[name]()}\n\n<!-- end block -->"

    return BLOCK.sub(block, text)


def pages() -> list[Path]:
    return [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]


# -- commands and what they print ----------------------------------------------------------------


def sessions(text: str) -> list[list[tuple[str, str]]]:
    """The console blocks of a page: commands, each with what it prints."""
    return [
        [
            (command.strip(), output)
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)
        ]
        for block in SESSION.findall(text)
    ]


def printed(command: str, folder: Path) -> str:
    """What a command prints on stdout, in a folder; `ftk` and `cat` only."""
    ftk = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": ftk, "COLUMNS": "100"},
    )
    if done.returncode not in (0, 3):
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.replace(f"{folder.resolve()}/", "").replace(f"{ROOT}/", "")


def with_output(text: str, folder: Path) -> str:
    """A page with what its commands print today; `...` stands for lines that a page leaves out."""

    def block(match: re.Match) -> str:
        lines = []
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", match[1], re.M):
            lines += [f"$ {command}\n", shortened(printed(command, folder), output)]
        return f"```console\n{''.join(lines)}```"

    return SESSION.sub(block, text)


def as_in_tutorials(text: str) -> str:
    """A page that shows commands of the tutorials, with what they print there."""
    known = {
        command: output
        for page in CONSOLE
        for session in sessions((ROOT / page).read_text(encoding="utf-8"))
        for command, output in session
    }

    def block(match: re.Match) -> str:
        [session] = sessions(match[0])
        lines = [f"$ {command}\n{shortened(known[command], shown)}" for command, shown in session]
        return f"```console\n{''.join(lines)}```"

    return SESSION.sub(block, text)


def shortened(output: str, shown: str) -> str:
    """The first lines, as many as a page shows before its `...`; all where it has none."""
    kept = shown.splitlines()
    if "..." not in kept:
        return output
    return "\n".join([*output.splitlines()[: kept.index("...")], "..."]) + "\n"


def prepare(folder: Path) -> None:
    """The files that the tutorials begin with."""
    for path in (ROOT / "docs/examples").iterdir():
        shutil.copy(path, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--console",
        nargs="*",
        metavar="PAGE",
        help="also run the commands of these tutorials (all of them, if none is named)",
    )
    options = parser.parse_args()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = with_blocks(text)
        if options.console is not None and str(page.relative_to(ROOT)) in (
            options.console or CONSOLE
        ):
            with tempfile.TemporaryDirectory() as folder:
                prepare(Path(folder))
                new = with_output(new, Path(folder))
        if page.name == "README.md":
            new = as_in_tutorials(new)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(page.relative_to(ROOT))
    for file in FILES:
        path = ROOT / "docs" / "schemas" / f"{file}.schema.json"
        new = json.dumps(schema_of(file), indent=1) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != new:
            path.parent.mkdir(exist_ok=True)
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
