"""Broken and hostile inputs for every command that reads a file.

`python tests/helpers/fuzz.py --inputs 2000 --seed 0` prints what was tried.

A case is a folder with files and a command line. A `Fleet` of processes that have loaded everything
once forks a child for each case, on a clock of the processor and under a ceiling of memory. Right
is an exit code from 0 to 3 with at most one line of error, no traceback (neither printed nor in a
file of the last handler), no markup that is alive in a report and no control sequence on the
terminal.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SECONDS = 20
"""of the processor, for one input"""
WALL = 120
"""seconds on the wall, where other processes have the processor"""
BYTES = 2 << 30
ALIVE = "<zz9"
"""begins markup that must never be alive"""

# -- values that hurt -----------------------------------------------------------------------------

TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "x\udfffy",
    "\u202eabc",
    "\x1b]0;owned\x07",
    "\x1b[2J",
    "a\rb\nc",
    f"{ALIVE} onload=alert(1)>",
    f'">{ALIVE}>',
    f"]]>{ALIVE}>",
    "$\\frac{$",
    "| a | b |",
    "results.json",
    "outcomes",
    "../up",
    "/etc/passwd",
    "~nosuchuser/x",
    "con",
    "a" * 300,
    "word " * 20_000,
    "9" * 5000,
    "1e999",
    "NaN",
    "-0",
    "regex:(a+)+$",
    "regex:(",
    "(x+x+)+y",
    "[[" * 30,
    "{{ 7 * 7 }}",
    "\ufeff",
    "ß" * 200,
    "\N{COMBINING ACUTE ACCENT}" * 500,
    "mergekit:ties",
    "json",
    "numeric:1e-3",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    10**9,
    10**18,
    10**40,
    10**400,
    2**63,
    -(2**63) - 1,
    0.5,
    -0.5,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
]
OTHERS = [None, True, False, [], {}, [[]], [None], {"": ""}, {"a": {"b": {}}}]


def deep(levels: int, kind: str) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value] if kind == "list" else {"k": value}
    return value


def any_value(rng: random.Random) -> Any:
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind < 7:
        return rng.choice(NUMBERS)
    if kind < 9:
        return rng.choice(OTHERS)
    return deep(rng.choice([5, 70, 400]), rng.choice(["list", "dict"]))


# -- mutations of structure, of text, of bytes, of files -----------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        if len(found) < 3000:
            found += places(item, (*path, key))
    return found


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one thing wrong somewhere."""
    value = json.loads(json.dumps(value))
    everywhere = places(value)
    if not everywhere or rng.random() < 0.02:
        return any_value(rng)
    *parents, last = rng.choice(everywhere)
    home = value
    for key in parents:
        home = home[key]
    how = rng.randrange(9)
    if how == 0:
        del home[last]
    elif how == 1 and isinstance(home, dict):
        home[rng.choice([str(last).upper(), f"{last}_", "", "__proto__", *TEXTS[:14]])] = home.pop(
            last
        )
    elif how == 2 and isinstance(home, list):
        home += [home[last]] * rng.choice([1, 2, 500])
    elif how == 3 and isinstance(home, dict):
        home[rng.choice(TEXTS)] = any_value(rng)
    elif how == 4 and isinstance(home[last], int | float):
        home[last] = rng.choice(
            [
                -home[last],
                home[last] * 10**9,
                home[last] + 1,
                home[last] - 1,
                str(home[last]),
                [home[last]],
            ]
        )
    elif how == 5 and isinstance(home[last], str):
        home[last] = rng.choice(
            [
                home[last][: len(home[last]) // 2],
                home[last] * 50,
                home[last].swapcase(),
                home[last] + rng.choice(TEXTS),
            ]
        )
    elif how == 6:
        home[last] = [home[last]] if rng.random() < 0.5 else {"x": home[last]}
    else:
        home[last] = any_value(rng)
    return value


def as_json(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value)
    if rng.random() < 0.05:  # a key twice
        text = text.replace("{", '{"k": 1, "k": 2, ', 1)
    return text.encode()


LAUGHS = "\n".join(
    [
        f"l0: &l0 [{', '.join('x' * 9)}]",
        *(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10)),
    ]
)
SNIPPETS = [
    "\n- ",
    "\n\t",
    ": ",
    "&a ",
    "*a",
    "<<: *a\n",
    "!!python/object/apply:os.system ['id']",
    "!!binary x",
    "!!int x",
    "!!timestamp 1",
    "--- ",
    "...\n",
    "%YAML 3.0\n",
    "? [a]\n: b\n",
    "'",
    '"\\uD800"',
    '"\\0"',
    "|\n",
    "[" * 3000,
    "{" * 300,
    "a: &a {b: *a}\n",
    LAUGHS + "\n",
    "0x1F",
    "1_000",
    "\x07",
    "\u2028",
]


def broken_text(data: bytes, rng: random.Random) -> bytes:
    """Text with something in it, cut, doubled or without a part."""
    text = data.decode(errors="replace")
    at, until = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    how = rng.randrange(5)
    if how == 0:
        text = text[:at] + rng.choice(SNIPPETS) + text[at:]
    elif how == 1:
        text = text[:at] + text[until:]
    elif how == 2:
        lines = text.split("\n")
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
        text = "\n".join(lines)
    elif how == 3:
        text = text[:at] + rng.choice(TEXTS) + text[until:]
    else:
        text = text.replace(
            *rng.choice(
                [
                    (":", ""),
                    ("\n", "\r"),
                    ('"', ""),
                    (",", ";"),
                    ("}", ""),
                    ("1", "1e400"),
                    ("-", "–"),
                ]
            )
        )
    return text.encode(errors="surrogatepass")


def broken_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return rng.choice(
        [
            b"",
            b"\n",
            data[:at],
            b"\xef\xbb\xbf" + data,
            data.decode(errors="replace").encode("utf-16"),
            data.decode(errors="replace").encode("latin-1", errors="replace"),
            data + data,
            data[:at]
            + bytes(rng.randrange(256) for _ in range(rng.choice([1, 8, 100])))
            + data[at:],
            bytes(rng.randrange(256) for _ in range(200)),
            data[:at] + b"\0" * 16 + data[at:],
            data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
            if at < len(data)
            else b"\0",
            b"\x1f\x8b" + data,
            b"PK\x03\x04" + data,
        ]
    )


def broken_file(path: Path, rng: random.Random) -> None:
    """Something else than the file in its place."""
    target = path.with_name(f"{path.name}-itself")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    how = rng.randrange(6)
    if how == 0:
        path.mkdir()
    elif how == 1:
        path.symlink_to(path.name)
    elif how == 2:
        path.symlink_to("nowhere")
    elif how == 3:
        path.symlink_to("/dev/null")
    elif how == 4:
        path.mkdir()
        target.mkdir(exist_ok=True)
        (path / "child").symlink_to(target)


def write(path: Path, data: bytes) -> None:
    """A new file: what was there may be a link to what other cases read."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def break_json(path: Path, rng: random.Random) -> None:
    """One mutation of any kind of a JSON file that is whole."""
    data = path.read_bytes()
    how = rng.random()
    if how < 0.7:
        write(path, as_json(mutated(json.loads(data), rng), rng))
    else:
        break_any(path, data, rng)


def break_any(path: Path, data: bytes, rng: random.Random) -> None:
    how = rng.randrange(5)
    if how < 2:
        write(path, broken_text(data, rng))
    elif how < 4:
        write(path, broken_bytes(data, rng))
    else:
        broken_file(path, rng)


# -- what is whole -------------------------------------------------------------------------------

ROWS = [
    {"prompt": f"count to {i}", "completion": f" {' '.join(map(str, range(i)))}"}
    for i in range(1, 9)
]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": f"{i}?"},
            {"role": "assistant", "content": f"{i}!"},
        ]
    }
    for i in range(6)
]
ALPACA = [{"instruction": f"add {i}", "input": f"{i} 1", "output": f"{i + 1}"} for i in range(6)]
SUITE = [
    {
        "id": f"p{i}",
        "prompt": f"count to {i}",
        "reference": f"{i}",
        "category": "even" if i % 2 == 0 else "odd",
        "shift": "typical",
        "cluster": f"c{i // 2}",
    }
    for i in range(1, 7)
]
RECIPE: dict[str, Any] = {
    "name": "fuzz",
    "base": "embedded",
    "data": {
        "train": "train.jsonl",
        "suites": {"typical": "suite.jsonl"},
        "format": "auto",
        "max_length": 64,
    },
    "seed": 1,
    "replicas": 4,
    "vary": ["init", "order"],
    "stack": 4,
    "conditions": {
        "lora": {
            "epochs": 1,
            "rank": 2,
            "batch_size": 4,
            "lr": 0.005,
            "snapshots": {"count": 2, "save": True},
            "averages": ["swa"],
        },
        "half": {"from": "lora", "lr": 0.001, "targets": ["q_proj"]},
    },
    "mitigations": [
        {"merge": "mean", "k": 2},
        {"merge": "ties", "k": 2, "density": 0.5},
        {"ensemble": "vote", "k": 2},
    ],
    "evaluation": {
        "max_new_tokens": 2,
        "answer": "text",
        "top_k": 3,
        "choices": ["1", "2"],
        "token_scores": True,
    },
    "criteria": [
        {
            "name": "steady",
            "suite": "typical",
            "category": "odd",
            "statistic": "disagreement",
            "limit": 0.1,
        }
    ],
    "thresholds": {"acceptable": 0.05, "critical": 0.2, "categories": {"odd": {"critical": 0.5}}},
    "level": 0.95,
}
CRITERIA = {key: RECIPE[key] for key in ("criteria", "thresholds", "level")}
CLAIMS = {
    "claims": [
        {
            "name": "one",
            "says": "few differ",
            "about": {"method": "lora", "epochs": [1, 2]},
            "quantity": "disagreement",
            "prompts": "typical",
            "range": [0.1, 0.2],
        },
        {
            "name": "two",
            "says": "files differ",
            "about": {"condition": "lora"},
            "quantity": "files",
        },
    ]
}
MERGEKIT = {
    "merge_method": "ties",
    "models": [
        {"model": f"base+lora/replicas/0000{i}", "parameters": {"weight": 1.0, "density": 0.5}}
        for i in range(2)
    ],
    "parameters": {"normalize": True},
    "dtype": "float32",
}


def predictions(runs: int) -> list[dict[str, Any]]:
    draw = random.Random(5)
    return [
        {
            "replica": r,
            "prompt": p["id"],
            "output": f"answer {p['reference'] if draw.random() < 0.7 else draw.randrange(3)}",
            **{k: p[k] for k in ("reference", "category", "cluster")},
            "condition": c,
            "score": round(draw.random(), 3),
        }
        for c in ("a", "b")
        for r in range(runs)
        for p in SUITE
    ]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    names = list(rows[0])
    return (
        "\n".join(
            [",".join(names), *(",".join(f'"{row[name]}"' for name in names) for row in rows)]
        ).encode()
        + b"\n"
    )


def template(folder: Path) -> Path:
    """A run, limits and predictions that are whole, made once. Raises RuntimeError where ftk cannot
    make them.
    """
    if (folder / "limits.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_bytes(lines(ROWS))
    (folder / "suite.jsonl").write_bytes(lines(SUITE))
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    (folder / "preds.jsonl").write_bytes(lines(predictions(31)))
    from click.testing import CliRunner

    from toolkit import cli

    for arguments in (
        ["run", "recipe.yaml", "--out", "run", "--workers", "1"],
        ["claims", "run"],
        ["gate", "preds.jsonl", "--condition", "a", "--save", "limits.json"],
    ):
        with chdir(folder):
            done = CliRunner().invoke(cli.main, arguments)
        if done.exit_code:
            raise RuntimeError(f"ftk {' '.join(arguments)}: {done.stderr}")
    return folder


# -- cases: folder and random numbers in, command line out ---------------------------------------

Case = Callable[[Path, Path, random.Random], list[str]]


def yaml_case(document: Any, path: Path, rng: random.Random) -> None:
    """Mutations of a document, as JSON (which is YAML), as YAML, or as bytes."""
    import yaml

    if rng.random() < 0.7:
        for _ in range(rng.choice([1, 1, 2])):
            document = mutated(document, rng)
        path.write_bytes(as_json(document, rng))
        return
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    break_any(path, path.read_bytes(), rng)


def recipe_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    for name in ("train.jsonl", "suite.jsonl"):
        os.link(whole / name, folder / name)
    yaml_case(RECIPE, folder / "recipe.yaml", rng)
    return ["check", "recipe.yaml", "--no-probe", *rng.choice([[], ["--json"]])]


def rows_of(rows: list[dict[str, Any]], path: Path, rng: random.Random) -> Path:
    """A table with something wrong, in any of the formats."""
    kind = rng.choice(["jsonl", "jsonl", "json", "csv", "parquet"])
    path = path.with_suffix(f".{kind}")
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        flat = rows
        if rng.random() < 0.9:
            changed = mutated(rows, rng) if rng.random() < 0.5 else rows
            flat = (
                [row for row in changed if isinstance(row, dict)]
                if isinstance(changed, list)
                else []
            )
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), path)
        except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
            write(path, broken_bytes(path.read_bytes(), rng))
    elif kind == "csv":
        path.write_bytes(csv_of(rows))
        break_any(path, path.read_bytes(), rng)
    elif rng.random() < 0.7:
        changed = mutated(rows, rng)
        path.write_bytes(
            lines(changed)
            if kind == "jsonl" and isinstance(changed, list)
            else as_json(changed, rng)
        )
    else:
        path.write_bytes(lines(rows))
        break_any(path, path.read_bytes(), rng)
    return path


def train_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    os.link(whole / "suite.jsonl", folder / "suite.jsonl")
    path = rows_of(
        rng.choice([ROWS, CHAT, ALPACA, [{"text": f"text {i}"} for i in range(5)]]),
        folder / "train",
        rng,
    )
    (folder / "recipe.yaml").write_text(
        json.dumps(RECIPE | {"data": RECIPE["data"] | {"train": path.name}})
    )
    return ["check", "recipe.yaml", "--no-probe"]


def suite_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    os.link(whole / "train.jsonl", folder / "train.jsonl")
    path = rows_of(SUITE, folder / "suite", rng)
    (folder / "recipe.yaml").write_text(
        json.dumps(RECIPE | {"data": RECIPE["data"] | {"suites": {"typical": path.name}}})
    )
    return ["check", "recipe.yaml", "--no-probe"]


RULES = [
    "exact",
    "text",
    "normalised",
    "numeric",
    "numeric:0.1",
    "json",
    "first-line",
    "regex:(\\d+)",
    "regex:(a+)+$",
    "regex:(.*,)*x",
    "regex:(",
    "embedding",
    "bogus",
    "numeric:x",
    "regex:",
]
DIVERGED = [
    "[" * 20_000,
    "{" * 5000 + "}" * 5000,
    "9" * 50_000,
    "!" * 30_000,
    "1," * 20_000,
    "a" * 30_000,
    '{"a":' * 3000,
    "\u00e9\u0301" * 5000,
    "1e999999",
    "- " * 20_000,
]


def predictions_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    rows = predictions(rng.choice([1, 2, 5]))
    if rng.random() < 0.2:
        rows[rng.randrange(len(rows))]["output"] = rng.choice(DIVERGED)
        (folder / "preds.jsonl").write_bytes(lines(rows))
        path = folder / "preds.jsonl"
    elif rng.random() < 0.1:
        many = [
            {
                "replica": r,
                "prompt": f"p{i}",
                "output": str((i * r) % 3),
                "reference": "1",
                "category": f"c{i}",
            }
            for i in range(1500)
            for r in range(2)
        ]
        path = folder / "preds.jsonl"
        path.write_bytes(lines(many))
    else:
        path = rows_of(rows, folder / "preds", rng)
    more = rng.choice(
        [
            [],
            ["--same", rng.choice(RULES)],
            ["--baseline", rng.choice(["b", "", "\x1b[2J"])],
            ["--paired"],
            ["--json"],
        ]
    )
    return ["measure", path.name, "--out", "out", *more]


def factors_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    (folder / "preds.jsonl").write_bytes(
        lines([{k: v for k, v in row.items() if k != "condition"} for row in predictions(4)[:24]])
    )
    path = rows_of(
        [{"replica": r, "init": r // 2, "order": r % 2} for r in range(4)], folder / "factors", rng
    )
    return ["measure", "preds.jsonl", "--out", "out", "--factors", path.name]


def criteria_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    (folder / "preds.jsonl").write_bytes(lines(predictions(3)))
    yaml_case(CRITERIA, folder / "criteria.yaml", rng)
    return ["measure", "preds.jsonl", "--out", "out", "--criteria", "criteria.yaml"]


def link_run(whole: Path, folder: Path) -> Path:
    shutil.copytree(whole / "run", folder / "run", copy_function=os.link, symlinks=True)
    return folder / "run"


def broken_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header lies."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    how = rng.randrange(4)
    if how == 0:
        return struct.pack("<Q", rng.choice([0, 7, size + 1, 2**40, 2**63])) + data[8:]
    text = as_json(mutated(header, rng), rng) if how < 3 else b"[" * 5000
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def adapter_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    for r in range(2):
        shutil.copytree(
            whole / "run" / "lora" / "replicas" / f"0000{r}",
            folder / f"r{r}",
            copy_function=os.link,
        )
    config, weights = (
        folder / "r0" / "adapter_config.json",
        folder / "r0" / "adapter_model.safetensors",
    )
    how = rng.randrange(6)
    if how < 2:
        break_json(config, rng)
    elif how == 2:
        known = json.loads(config.read_bytes())
        pattern = rng.choice(
            [
                "(a+)+$",
                "(.*)*x",
                "(" * 500,
                "model.(layers|x)*.*.(.*)*",
                "q_proj",
                "",
                "[",
                "a{99999}",
            ]
        )
        known[rng.choice(["alpha_pattern", "rank_pattern"])] = {
            pattern: rng.choice([2, 4, "x", 1e400, -1, None])
        }
        if rng.random() < 0.3:
            known["target_modules"] = pattern
        write(config, json.dumps(known).encode())
    elif how < 5:
        write(
            weights,
            broken_header(weights.read_bytes(), rng)
            if rng.random() < 0.7
            else broken_bytes(weights.read_bytes(), rng),
        )
    else:
        broken_file(rng.choice([config, weights]), rng)
    return rng.choice(
        [
            ["check-adapter", "r0"],
            [
                "merge",
                "r0",
                "r1",
                "--method",
                rng.choice(["mean", "ties", "karcher"]),
                "--out",
                "merged",
            ],
            ["modules", "r0", "r1"],
        ]
    )


MERGED = "lora/merged/mean-k2/g000"
OF_OUTCOMES = ["design.json", "recipe.yaml", "environment.json", "base.json", "outcomes"]
RUN_COMMANDS: list[tuple[list[str], list[str]]] = [
    (["measure", "run"], OF_OUTCOMES),
    (["report", "run"], ["results.json", "claims.json"]),
    (["plan", "run"], ["design.json", "recipe.yaml", "outcomes", "results.json"]),
    (["plan", "run/results.json"], ["results.json"]),
    (
        ["claims", "run"],
        [*OF_OUTCOMES, "results.json", "lora/population.json", "lora/replicas/00000/replica.json"],
    ),
    (["card", "run"], ["results.json"]),
    (
        ["card", f"run/{MERGED}"],
        [f"{MERGED}/merge.json", "results.json", f"{MERGED}/adapter_config.json"],
    ),
    (["gate", "run", "--save", "l.json"], OF_OUTCOMES),
    (
        ["modules", "run/lora"],
        [
            "lora/replicas/00000/replica.json",
            "lora/replicas/00000/adapter_config.json",
            "lora/population.json",
        ],
    ),
    (["measure", "run", "run2"], [*OF_OUTCOMES, "lora/replicas/00000/replica.json"]),
    (
        ["train-replicas", "run/recipe.yaml", "--out", "run", "--workers", "1"],
        ["recipe.yaml", "lora/population.json"],
    ),
]
"""a command, and the files of a run that it reads"""


def run_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    run = link_run(whole, folder)
    for name in ("train.jsonl", "suite.jsonl"):
        os.link(whole / name, folder / name)
    command, read = rng.choice(RUN_COMMANDS)
    if "run2" in command:
        shutil.copytree(whole / "run", folder / "run2", copy_function=os.link, symlinks=True)
    path = run / rng.choice(read)
    if not path.is_dir():
        if path.suffix == ".yaml":
            break_any(path, path.read_bytes(), rng)
        else:
            break_json(path, rng)
    else:
        shard = rng.choice(sorted(run.glob("outcomes/**/*.parquet")))
        break_any(shard, shard.read_bytes(), rng)
    return command


def limits_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    for name in ("limits.json", "preds.jsonl"):
        os.link(whole / name, folder / name)
    break_json(folder / "limits.json", rng)
    return ["gate", "limits.json", "--candidate", "preds.jsonl", "--condition", "a"]


def claims_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    link_run(whole, folder)
    yaml_case(CLAIMS, folder / "claims.yaml", rng)
    return ["claims", "run", "--claims", "claims.yaml"]


def mergekit_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    for r in range(2):
        shutil.copytree(
            whole / "run" / "lora" / "replicas" / f"0000{r}",
            folder / "lora" / "replicas" / f"0000{r}",
            copy_function=os.link,
        )
    yaml_case(MERGEKIT, folder / "merge.yaml", rng)
    return [
        "merge",
        "--config",
        "merge.yaml",
        "--out",
        "merged",
        *rng.choice([[], ["--rank", rng.choice(["same", "1e9", "-1", "energy=2", "9" * 30])]]),
    ]


def shell_case(folder: Path, whole: Path, rng: random.Random) -> list[str]:
    """Whole files, and words on the command line that are not."""
    os.link(whole / "preds.jsonl", folder / "preds.jsonl")
    link_run(whole, folder)
    word = rng.choice(
        [
            text
            for text in TEXTS
            if "\0" not in text
            and len(text) < 400
            and "\ud800" not in text
            and "\udfff" not in text
        ]
    )
    return rng.choice(
        [
            ["measure", word],
            ["measure", "preds.jsonl", "--out", "out", "--same", word],
            ["gate", "preds.jsonl", "--condition", word, "--save", "l.json"],
            ["plan", "--guess", word],
            ["merge", "run/lora", "--method", word, "--out", "m"],
            ["merge", "run/lora", "--method", "ties", "--set", f"density={word}", "--out", "m"],
            ["merge", "run/lora", "--method", "mean", "--rank", word, "--out", "m"],
            ["report", word],
            ["verify", word],
            ["card", word],
            ["check", word],
            ["evaluate", "run/lora", "--answer", word, "--prompts", "nowhere.jsonl"],
            [word],
            ["run", f"--{word}"],
        ]
    )


KINDS: dict[str, tuple[Case, int]] = {
    "recipes": (recipe_case, 5),
    "training rows": (train_case, 3),
    "suites": (suite_case, 2),
    "predictions": (predictions_case, 5),
    "factors": (factors_case, 1),
    "criteria": (criteria_case, 1),
    "adapters": (adapter_case, 4),
    "run folders": (run_case, 5),
    "limits": (limits_case, 2),
    "claims": (claims_case, 1),
    "mergekit": (mergekit_case, 1),
    "command lines": (shell_case, 2),
}
"""name -> how a case is made, and how often beside the others"""


# -- one process that has loaded everything, and a child of it for each case ---------------------


@dataclass(frozen=True)
class Answer:
    """What a case came to. code: negative where a signal ended it."""

    code: int
    seconds: float
    bytes: int
    stdout: str
    stderr: str
    faults: tuple[str, ...]


def serve() -> None:
    """Read cases as lines of JSON, answer with lines of JSON; the child that runs one dies with
    it.
    """
    import matplotlib

    matplotlib.use("Agg")
    import torch

    torch.set_num_threads(1)
    import pyarrow
    import pyarrow.json

    from toolkit import cli
    from toolkit.measurement import run as measure  # noqa: F401
    from toolkit.measurement.claims import hold_claims  # noqa: F401
    from toolkit.model.base import load_base
    from toolkit.report import charts

    load_base("embedded", "float32", "cpu")
    pyarrow.array(["what it loads at the first use"])
    charts._svg(lambda figure: figure.subplots().set_title("fonts"), 100, 100, "a chart")
    # a child that looks for garbage need not look at, and copy, all that is loaded here
    gc.freeze()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        folder = Path(asked["folder"])
        child = os.fork()
        if not child:
            _work(cli.main, folder, asked["arguments"])
        start, usage, status = time.monotonic(), None, 0
        while True:
            found, status, usage = os.wait4(child, os.WNOHANG)
            if found:
                break
            if time.monotonic() - start > WALL:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
        code = os.waitstatus_to_exitcode(status)
        print(
            json.dumps(
                {
                    "code": code,
                    "seconds": usage.ru_utime + usage.ru_stime,
                    "bytes": usage.ru_maxrss * 1024,
                }
            ),
            flush=True,
        )


def _work(main: Any, folder: Path, arguments: list[str]) -> None:
    """In the child: the command in its folder, its output in files; never returns."""
    code = 99
    try:
        os.chdir(folder)
        for number, name in ((1, ".stdout"), (2, ".stderr")):
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115
        tempfile.tempdir = str(folder)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + BYTES, mapped + BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["ftk", *arguments]
        main(args=arguments, prog_name="ftk")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)


class Server:
    """A process that runs cases one after the other."""

    def __init__(self) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout and "ready" in self.process.stdout.readline()

    def ask(self, folder: Path, arguments: list[str]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"folder": str(folder), "arguments": arguments}) + "\n")
        self.process.stdin.flush()

    def answer(self, folder: Path) -> Answer:
        assert self.process.stdout
        told = json.loads(self.process.stdout.readline())
        return _judged(folder, told)

    def run(self, folder: Path, arguments: list[str]) -> Answer:
        self.ask(folder, arguments)
        return self.answer(folder)

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        self.process.wait()


def _judged(folder: Path, told: dict[str, Any]) -> Answer:
    out, err = (
        (folder / name).read_bytes() if (folder / name).is_file() else b""
        for name in (".stdout", ".stderr")
    )
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    faults = []
    if told["code"] not in (0, 1, 2, 3):
        faults.append(f"exit code {told['code']}")
    if "Traceback" in stderr or any(folder.glob("ftk-error-*")):
        faults.append("traceback")
    if (
        sum(line.startswith("ftk: ") for line in stderr.splitlines()) > 1
        or told["code"] in (1, 2)
        and len(stderr.splitlines()) != 1
    ):
        faults.append(f"{len(stderr.splitlines())} lines of error")
    if told["seconds"] > SECONDS:
        faults.append("slow")
    if told["bytes"] > BYTES:
        faults.append("memory")
    if any(
        ALIVE in path.read_text(errors="replace")
        for path in folder.glob("**/report.html")
        if path.is_file()
    ):
        faults.append("markup")
    if any(ord(sign) < 32 and sign not in "\n\t" for sign in stdout + stderr):
        faults.append("control sequence")
    return Answer(told["code"], told["seconds"], told["bytes"], stdout, stderr, tuple(faults))


def made(kind: str, folder: Path, whole: Path, rng: random.Random) -> list[str]:
    """The files of a case in a new folder; its command line."""
    folder.mkdir(parents=True)
    return KINDS[kind][0](folder, whole, rng)


# -- the command ---------------------------------------------------------------------------------


@dataclass
class Tried:
    """All answers of a kind."""

    inputs: int = 0
    slowest: float = 0.0
    peak_bytes: int = 0
    faults: int = 0


def campaign(
    inputs: int,
    seed: int,
    *,
    servers: int = 2,
    only: str | None = None,
    keep: Path | None = None,
    whole: Path | None = None,
) -> dict[str, Any]:
    """Try so many inputs; each depends on the seed and its number alone."""
    kinds = [
        name for name, (_, often) in KINDS.items() for _ in range(often) if only in (None, name)
    ]
    tried: dict[str, Tried] = defaultdict(Tried)
    codes: dict[str, Counter[int]] = defaultdict(Counter)
    wrong: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        whole = template(whole or Path(scratch) / "whole")
        fleet = [Server() for _ in range(servers)]
        busy: dict[int, tuple[int, str, Path, list[str]]] = {}

        def finish(at: int) -> None:
            number, kind, folder, arguments = busy.pop(at)
            answer = fleet[at].answer(folder)
            found = tried[kind]
            found.inputs += 1
            found.slowest, found.peak_bytes = (
                max(found.slowest, answer.seconds),
                max(found.peak_bytes, answer.bytes),
            )
            codes[kind][answer.code] += 1
            if answer.faults:
                found.faults += 1
                wrong.append(
                    {
                        "input": number,
                        "kind": kind,
                        "arguments": arguments,
                        "faults": answer.faults,
                        "stderr": answer.stderr[-600:],
                    }
                )
                print(
                    f"{number} {kind} {arguments}: {', '.join(answer.faults)}: "
                    f"{answer.stderr.strip()[-200:]!r}",
                    file=sys.stderr,
                    flush=True,
                )
                if keep:
                    shutil.copytree(folder, keep / str(number), symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

        for number in range(inputs):
            rng = random.Random(f"{seed}-{number}")
            kind = rng.choice(kinds)
            folder = Path(scratch) / str(number)
            arguments = made(kind, folder, whole, rng)
            at = next((i for i in range(servers) if i not in busy), None)
            if at is None:
                ready, _, _ = select.select([fleet[i].process.stdout for i in busy], [], [])
                at = next(i for i in busy if fleet[i].process.stdout is ready[0])
                finish(at)
            fleet[at].ask(folder, arguments)
            busy[at] = number, kind, folder, arguments
        for at in list(busy):
            finish(at)
        for server in fleet:
            server.close()
    return {
        "inputs": inputs,
        "seed": seed,
        "kinds": {
            kind: asdict(tried[kind]) | {"codes": dict(sorted(codes[kind].items()))}
            for kind in sorted(tried)
        },
        "slowest_seconds": max((t.slowest for t in tried.values()), default=0.0),
        "peak_bytes": max((t.peak_bytes for t in tried.values()), default=0),
        "faults": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--only", choices=[*KINDS])
    parser.add_argument("--keep", type=Path, help="folder that keeps the inputs with faults")
    parser.add_argument(
        "--whole", type=Path, help="folder that keeps the run that inputs are made from"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve()
        return
    found = campaign(
        asked.inputs,
        asked.seed,
        servers=asked.servers,
        only=asked.only,
        keep=asked.keep,
        whole=asked.whole and asked.whole.resolve(),
    )
    print(f"{'kind':<15}{'inputs':>7}  {'exit codes':<32}{'slowest':>8}{'peak':>10}{'faults':>8}")
    for kind, row in found["kinds"].items():
        told = ", ".join(f"{code}: {count}" for code, count in row["codes"].items())
        print(
            f"{kind:<15}{row['inputs']:>7}  {told:<32}{row['slowest']:>6.1f} "
            f"s{row['peak_bytes'] / 2**20:>6.0f} MiB{row['faults']:>8}"
        )
    print(json.dumps(found))
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
