"""Turn SCAN into training rows and two suites for ftk. Standard library only, deterministic.

python prepare.py path/to/scan --out data
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

FILES = tuple(
    f"tasks_{part}_{split}.txt"
    for part in ("train", "test")
    for split in ("simple", "addprim_jump", "length")
)
SUFFIX = (
    "\nactions:"  # ends a prompt; a completion starts with a space, so the token boundary is clean
)
WORDS = {"I_TURN_LEFT": "left", "I_TURN_RIGHT": "right"} | {
    f"I_{verb.upper()}": verb for verb in ("walk", "look", "run", "jump")
}
LETTERS = {
    "I_TURN_LEFT": "l",
    "I_TURN_RIGHT": "r",
    "I_WALK": "w",
    "I_LOOK": "o",
    "I_RUN": "n",
    "I_JUMP": "j",
}

Pair = tuple[str, str]  # command, actions


def main(arguments: list[str] | None = None) -> None:
    """Write the training rows and the suites."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "scan", type=Path, help="folder of tasks_train_simple.txt and the other five files"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the .jsonl files")
    parser.add_argument("--train", type=int, default=0, help="training rows; default: all")
    parser.add_argument("--prompts", type=int, default=400, help="prompts of each suite; 0: all")
    parser.add_argument(
        "--actions",
        type=int,
        default=0,
        help="most actions of a row and of a typical prompt; default: any number",
    )
    parser.add_argument(
        "--letters", action="store_true", help="one letter an action instead of a word"
    )
    options = parser.parse_args(arguments)
    try:
        splits = {name: read(options.scan / name) for name in FILES}
    except FileNotFoundError as error:
        sys.exit(
            f"prepare.py: {error.filename}: no such file; "
            f"{Path(__file__).with_name('README.md')} says where to get it"
        )
    except (OSError, ValueError) as error:
        sys.exit(f"prepare.py: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    spelling = LETTERS if options.letters else WORDS
    for name, rows in prepare(
        splits, options.train, options.prompts, options.actions, spelling
    ).items():
        (options.out / name).write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        print(f"{options.out / name}: {len(rows)} rows")


def read(path: Path) -> list[Pair]:
    """The lines `IN: jump twice OUT: I_JUMP I_JUMP` of a published file."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"IN: (.+) OUT: (.+)", line.strip())
        unknown = set(match[2].split()) - WORDS.keys() if match else {line}
        if not match or unknown:
            raise ValueError(f"{path}:{number}: not a line of SCAN: {line[:60]!r}")
        pairs.append((match[1], match[2]))
    return pairs


def prepare(
    splits: dict[str, list[Pair]], train: int, prompts: int, actions: int, spelling: dict[str, str]
) -> dict[str, list[dict]]:
    """File name -> rows. A command that is far by either compositional split is in neither the
    training rows nor the other suites.
    """
    jump, length = (dict(splits[f"tasks_test_{split}.txt"]) for split in ("addprim_jump", "length"))

    def near(pairs: list[Pair]) -> list[Pair]:
        return [
            (c, a)
            for c, a in pairs
            if c not in jump and c not in length and (not actions or len(a.split()) <= actions)
        ]

    known, held_out = near(splits["tasks_train_simple.txt"]), near(splits["tasks_test_simple.txt"])
    rows = shuffled(known)
    words = [row for row in splits["tasks_train_addprim_jump.txt"] if row == ("jump", "I_JUMP")][
        :1
    ]  # the one row that says what jump is
    rows = [*words, *(row for row in rows if row not in words)][: train or None]
    far = [("jump", pair) for pair in some(jump.items(), prompts // 2)]
    far += [
        ("length", pair)
        for pair in some(
            ((c, a) for c, a in length.items() if c not in jump), prompts - prompts // 2
        )
    ]
    typical = [("simple", pair) for pair in some(held_out, 2 * prompts)]
    return {
        "train.jsonl": [
            {"prompt": command + SUFFIX, "completion": completion(said, spelling)}
            for command, said in shuffled(rows)
        ],
        "validation.jsonl": suite(
            "typical", typical[prompts:] if prompts else typical[::2], spelling
        ),
        "typical.jsonl": suite(
            "typical", typical[:prompts] if prompts else typical[1::2], spelling
        ),
        "far.jsonl": suite("far", far, spelling),
    }


def shuffled(pairs: Iterable[Pair]) -> list[Pair]:
    """The same order each time, and on every machine."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())


def some(pairs: Iterable[Pair], count: int) -> list[Pair]:
    """So many pairs, drawn by the digest of their commands; 0 is all of them."""
    return shuffled(pairs)[: count or None]


def suite(shift: str, rows: Sequence[tuple[str, Pair]], spelling: dict[str, str]) -> list[dict]:
    """Rows of a suite; commands that differ in verbs and sides alone share a cluster."""
    return [
        {
            "id": f"{shift}-{category}-{number}",
            "prompt": command + SUFFIX,
            "category": category,
            "shift": shift,
            "cluster": template(command),
            "reference": completion(actions, spelling),
        }
        for number, (category, (command, actions)) in enumerate(rows)
    ]


def completion(actions: str, spelling: dict[str, str]) -> str:
    """Plain words (or letters) that any base knows, one an action, on a line of their own;
    `published` reads them back.
    """
    return " " + " ".join(spelling[action] for action in actions.split()) + "\n"


def published(completion: str) -> str:
    """The actions in the words of SCAN."""
    name = {word: action for spelling in (WORDS, LETTERS) for action, word in spelling.items()}
    return " ".join(name[word] for word in completion.split())


def template(command: str) -> str:
    """`jump around left twice` and `walk around right twice` are one template."""
    return re.sub(r"\b(left|right)\b", "SIDE", re.sub(r"\b(walk|look|run|jump)\b", "VERB", command))


if __name__ == "__main__":
    main()
