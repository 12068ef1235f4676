"""Turn CLINC150 (data_full.json) into training rows and three suites for ftk. Standard library
only, deterministic.

python prepare.py path/to/data_full.json --out data --domains banking,travel
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

NONE = "none"  # the answer to an out-of-scope query
SUFFIX = (
    "\nintent:"  # ends a prompt; a completion starts with a space, so the token boundary is clean
)


def main(arguments: list[str] | None = None) -> None:
    """Write the training rows and the suites."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="data_full.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .jsonl files")
    parser.add_argument("--domains", default="", help="comma-separated; default: all")
    parser.add_argument(
        "--intents",
        type=Path,
        help="domains.json, {domain: [intents]}; default: beside data_full.json",
    )
    parser.add_argument("--prompts", type=int, default=0, help="test queries of each suite; 0: all")
    options = parser.parse_args(arguments)
    try:
        data = json.loads(options.data.read_text(encoding="utf-8"))
        domains = json.loads(
            (options.intents or options.data.with_name("domains.json")).read_text(encoding="utf-8")
        )
        files = prepare(
            data,
            domains,
            [name.strip() for name in options.domains.split(",") if name.strip()],
            options.prompts,
        )
    except FileNotFoundError as error:
        sys.exit(
            f"prepare.py: {error.filename}: no such file; "
            f"{Path(__file__).with_name('README.md')} says where to get it"
        )
    except (OSError, ValueError) as error:
        sys.exit(f"prepare.py: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (options.out / name).write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
        print(f"{options.out / name}: {len(rows)} rows")


def prepare(
    data: dict, domains: dict[str, list[str]], chosen: list[str], prompts: int = 0
) -> dict[str, list[dict]]:
    """File name -> rows, for the chosen domains (all, when none is named); `prompts` test queries
    of each suite, 0 for all.
    """
    missing = [
        key
        for split in ("train", "val", "test")
        for key in (split, f"oos_{split}")
        if key not in data
    ]
    if missing:
        raise ValueError(f"not CLINC150's data_full.json: it has no {missing[0]!r}")
    unknown = sorted(set(chosen) - set(domains))
    if unknown:
        raise ValueError(f"unknown domain {unknown[0]!r}; the domains are {', '.join(domains)}")
    domain_of = {
        words(intent): domain for domain in chosen or domains for intent in domains[domain]
    }
    # A few test and validation queries also stand in the training set, some with another intent:
    # they measure nothing.
    trained = {query for split in ("train", "oos_train") for query, _ in data[split]}

    def queries(split: str) -> list[tuple[int, str, str]]:
        """(position in the published file, query, intent) of the chosen domains."""
        rows = [
            (n, query, words(intent))
            for n, (query, intent) in enumerate(data[split])
            if words(intent) in domain_of
        ]
        return rows if split == "train" else [row for row in rows if row[1] not in trained]

    train = [(query, intent) for _, query, intent in queries("train")]
    train += [(query, NONE) for query, _ in data["oos_train"]]
    test = some(queries("test"), prompts)
    near = [(n, typo(query), intent) for n, query, intent in test]
    far = some(
        [(n, query) for n, (query, _) in enumerate(data["oos_test"]) if query not in trained],
        prompts,
    )
    return {
        "train.jsonl": [
            {"prompt": query + SUFFIX, "completion": completion(intent)} for query, intent in train
        ],
        "validation.jsonl": suite(
            "typical", "val", ((n, q, i, domain_of[i]) for n, q, i in queries("val"))
        ),
        "typical.jsonl": suite("typical", "test", ((n, q, i, domain_of[i]) for n, q, i in test)),
        "near.jsonl": suite(
            "near", "test", ((n, q, i, domain_of[i]) for n, q, i in near if q not in trained)
        ),
        "far.jsonl": suite("far", "oos_test", ((n, q, NONE, "out of scope") for n, q in far)),
    }


def some(rows: list, count: int) -> list:
    """So many rows (0: all), the same each time, in their order; the query is the second of a
    row.
    """
    drawn = sorted(rows, key=lambda row: hashlib.sha256(row[1].encode()).hexdigest())[
        : count or None
    ]
    return sorted(drawn)


def suite(shift: str, split: str, rows: Iterable[tuple[int, str, str, str]]) -> list[dict]:
    """Rows of a suite; a query and its misspelt twin share the cluster."""
    return [
        {
            "id": f"{shift}-{split}-{number}",
            "prompt": query + SUFFIX,
            "category": category,
            "shift": shift,
            "cluster": f"{split}-{number}",
            "reference": completion(intent),  # scored as text, so as training writes it
        }
        for number, query, intent, category in rows
    ]


def completion(intent: str) -> str:
    """What a model is trained to write behind a prompt."""
    return f" {intent}\n"


def words(intent: str) -> str:
    """`book_hotel` as `book hotel`: the words are in a base's vocabulary, the underscore often is
    not.
    """
    return intent.replace("_", " ")


def typo(query: str) -> str:
    """The query with two neighbouring letters inside one word swapped; place and word are drawn
    from its own hash.
    """
    places = [
        n
        for n in range(1, len(query) - 2)
        if query[n - 1 : n + 3].isalpha()
        and query[n] != query[n + 1]  # four letters: the ends of a word stay
    ]
    if not places:  # no word of four letters: double the last letter
        return query + query[-1:]
    return swap(query, places[int(hashlib.sha256(query.encode()).hexdigest(), 16) % len(places)])


def swap(text: str, n: int) -> str:
    """A text whose characters n and n + 1 have changed places."""
    return text[:n] + text[n + 1] + text[n] + text[n + 2 :]


if __name__ == "__main__":
    main()
