"""The embedded world: always the same rows and suites, nothing of the suites in training, nothing
of the task in pretraining.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from toolkit.embedded import NEWEST, pretrain, sentences, world
from toolkit.embedded.prompts import VERSIONS
from toolkit.embedded.prompts import suite as made
from toolkit.model.base import EMBEDDED, load_base

SHIFTS = ("typical", "near", "far")

# Of the rows as JSON. They never change: figures that were published are of them, and runs go on
# with them.
TRAINING = "17adfd107183d5676ca89c54f98da10a84ccd5fdd13727762f646a123a7a41ad"
ALL_TRAINING = "401a5a7b14fb7609a28cb03ab503c3c33bd1e8d7a127230af8b9f4128374deae"
SUITES = {
    1: "94d513fe478c7208002779462b8353c47669029d5fb7c4a53a33bc0a35a26178",
    2: "943414241fb5ee9527a9e7bbd33f97b8a84fbdca27cd615106bb9784871272c2",
}


def sha256_of(rows):
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def suite(shift: str, version: int) -> list[dict[str, Any]]:
    return [dict(row) for row in made(shift, version)]


def everything(version: int) -> list[dict[str, Any]]:
    return [row for shift in SHIFTS for row in suite(shift, version)]


def test_training_rows_never_drift():
    assert sha256_of([world.train_rows(), world.validation_rows()]) == TRAINING
    assert sha256_of(world.train_rows(10**9)) == ALL_TRAINING


@pytest.mark.parametrize("version", VERSIONS)
def test_suites_never_drift(version):
    assert sha256_of([suite(shift, version) for shift in SHIFTS]) == SUITES[version]


def test_every_version_is_pinned_and_the_newest_has_a_name():
    assert [*VERSIONS] == [*SUITES] and max(VERSIONS) == NEWEST


def test_no_prompt_is_trained_on_tuned_on_or_asked_twice():
    """Not even by the largest training set, and not in two versions."""
    trained = {row["prompt"] for row in world.train_rows(10**9)}
    assert 1000 <= len(world.train_rows()) <= 2000 and len(
        {row["prompt"] for row in world.train_rows()}
    ) == len(world.train_rows())
    tuned = {row["prompt"] for row in world.validation_rows()}
    asked = [row["prompt"] for version in VERSIONS for row in everything(version)]
    assert len(set(asked)) == len(asked)
    assert not trained & set(asked) and not tuned & set(asked) and not trained & tuned
    ids = [row["id"] for version in VERSIONS for row in everything(version)]
    # answers to one version are never taken for answers to the other
    assert len(set(ids)) == len(ids)


def test_every_typo_of_the_second_version_is_one():
    slips = [row for row in everything(2) if row["category"] == "typo"]
    assert not any(answers(row["prompt"].removesuffix(world.ARROW)) for row in slips)


def clusters_of(rows):
    found = {}
    for row in rows:
        found.setdefault(row["category"], Counter())[row["cluster"]] += 1
    return found


def test_the_first_version_is_rich():
    found = clusters_of(everything(1))
    assert len(found) >= 9 and min(sum(prompts.values()) for prompts in found.values()) >= 25
    assert all(len({row["cluster"] for row in suite(shift, 1)}) >= 20 for shift in SHIFTS)


def test_the_second_version_has_clusters_enough_to_decide():
    found = clusters_of(everything(2))
    assert [
        (category, sum(prompts.values()), len(prompts)) for category, prompts in found.items()
    ] == [
        *[("one-slot", 27, 27), ("more-slots", 165, 165)],
        *[("paraphrase", 42, 42), ("reordered", 39, 39), ("typo", 36, 36)],
        *[("unseen-name", 40, 10), ("unseen-number", 36, 12), ("longer", 40, 20)],
        *[("unseen-intent", 30, 30), ("out-of-scope", 30, 30), ("ambiguous", 29, 29)],
        *[("negation", 36, 18), ("two-requests", 36, 18), ("correction", 36, 18)],
    ]
    clusters = {shift: Counter(row["cluster"] for row in suite(shift, 2)) for shift in SHIFTS}
    assert {shift: len(prompts) for shift, prompts in clusters.items()} == {
        "typical": 192,
        "near": 159,
        "far": 143,
    }
    for shift, prompts in clusters.items():  # the effective number, as prompts are spread
        assert sum(prompts.values()) ** 2 / sum(n**2 for n in prompts.values()) >= 110, shift
    assert len(everything(2)) <= len(everything(1))  # it takes no longer to answer


def test_clusters_of_the_second_version_are_what_was_drawn_by_itself():
    """Typical: a request; every sentence of training is asked. Unseen: the name or number. All
    others: a sentence or frame of their own.
    """
    read_as = {
        intent_template: pattern(intent_template[1]) for intent_template in tables((world, "SEEN"))
    }
    asked = Counter()
    for row in suite("typical", 2):
        request = row["prompt"].removesuffix(world.ARROW)
        assert row["cluster"] == request
        asked[
            next(template for (_, template), words in read_as.items() if words.fullmatch(request))
        ] += 1
    assert {*asked} == {template for _, template in read_as} and max(asked.values()) <= 6
    for row in suite("near", 2):
        if row["category"].startswith("unseen"):
            assert re.search(rf"\b{row['cluster']}\b", row["prompt"]) and row["cluster"] in (
                *world.UNSEEN_NAMES,
                *world.UNSEEN_NUMBERS,
            )
    found = clusters_of(everything(2))
    for name in (*world.UNSEEN_NAMES, *world.UNSEEN_NUMBERS):  # and they meet different sentences
        asked = [row["prompt"] for row in suite("near", 2) if row["cluster"] == name]
        assert len({re.sub(name, "", prompt) for prompt in asked}) == len(asked) >= 3
    for category in (
        "paraphrase",
        "reordered",
        "typo",
        "unseen-intent",
        "out-of-scope",
        "ambiguous",
    ):
        assert set(found[category].values()) == {1}
    for category in ("longer", "negation", "two-requests", "correction"):
        assert set(found[category].values()) == {2}


def tables(*names):
    return [
        (intent, template)
        for module, name in names
        for intent, of in getattr(module, name).items()
        for template in of
    ]


def test_templates_of_the_second_version_are_different_sentences():
    seen = tables((world, "SEEN"))
    new = tables(
        *((sentences, name) for name in ("PARAPHRASES", "REORDERED")),
        (world, "PARAPHRASES"),
        (world, "REORDERED"),
    )
    far = [
        t
        for module in (world, sentences)
        for name in ("UNKNOWN_INTENTS", "AMBIGUOUS", "OUT_OF_SCOPE")
        for t in getattr(module, name)
    ]
    written = [template for _, template in (*seen, *new)] + far
    assert len(set(written)) == len(written)
    for name in ("LONGER", "NEGATIONS", "TWO_REQUESTS", "CORRECTIONS"):
        frames = (*getattr(world, name), *getattr(sentences, name))
        assert len(set(frames)) == len(frames)
        assert {frame.count("{}") for frame in frames} == {
            2 if name in ("TWO_REQUESTS", "CORRECTIONS") else 1
        }


@pytest.mark.parametrize("version", VERSIONS)
def test_references_are_right_by_the_facts_of_the_world(version):
    """Read without the code that makes them: a request is matched with the sentences of the world,
    and gives its call.
    """
    for row in everything(version):
        request, reference = row["prompt"].removesuffix(world.ARROW), row["reference"]
        if row["category"] == "ambiguous":
            assert reference is None
        elif row["shift"] == "far" and row["category"] in (
            "unseen-intent",
            "out-of-scope",
            "negation",
        ):
            assert reference == " none()"
            # the task has no call for it
            assert row["category"] == "negation" or answers(request) <= {"none()"}
        elif row["category"] == "typo":
            assert reference.strip() in {
                found for words in mended(request, row["cluster"]) for found in answers(words)
            }
        elif row["category"] in ("longer", "two-requests", "correction"):
            inner = inside(row["cluster"], request)
            calls = [
                ";".join(found) if row["category"] == "two-requests" else found[-1]
                for parts in inner
                for found in read(parts)
            ]
            assert reference.strip() in calls, row
        else:
            assert answers(request) == {reference.strip()}, row


SLOT = {
    name: "|".join(
        sorted(map(re.escape, {*values, *world.UNSEEN.get(name, ())}), key=len, reverse=True)
    )
    for name, values in world.ARGUMENTS.items()
}
TASK = tables(
    (world, "SEEN"),
    *((module, name) for module in (world, sentences) for name in ("PARAPHRASES", "REORDERED")),
)


def pattern(template):
    parts = re.split(r"\{(\w+)\}", template)
    slots = [
        f"(?P<{word}>{'(?:on )?' * (word == 'day')}(?:{SLOT[word]}))" if i % 2 else re.escape(word)
        for i, word in enumerate(parts)
    ]
    return re.compile("".join(slots))


PATTERNS = [(intent, pattern(template)) for intent, template in TASK]


def answers(request):
    """All calls that the sentences of the task give a request."""
    found = set()
    for intent, asked in PATTERNS:
        if match := asked.fullmatch(request):
            values = {
                slot: value.removeprefix("on ") if slot == "day" else value
                for slot, value in match.groupdict().items()
            }
            given = [
                f"{slot}={values[slot]}"
                for slot in world.ARGUMENTS
                if slot in values and intent != "none"
            ]
            found.add(f"{intent}({','.join(given)})")
    return found


def inside(frame, request):
    """The requests in a frame, in all ways to part them."""
    before, *rest = frame.split("{}")
    return [
        parts
        for cut in range(len(request) + 1)
        for parts in (
            [
                request[len(before) : cut],
                request[cut + len(rest[0]) : len(request) - len(rest[-1])] if rest[1:] else "",
            ],
        )
        if frame.format(*(parts if rest[1:] else parts[:1])) == request
    ]


def read(parts):
    """Every way to answer the requests one after the other."""
    return list(itertools.product(*(answers(part) for part in parts if part)))


def mended(request, template):
    """A request with a word of its template put right, whichever it was."""
    words = request.split()
    fixed = [word for word in template.split() if "{" not in word]
    return [
        " ".join([*words[:i], word, *words[i + 1 :]]) for i in range(len(words)) for word in fixed
    ]


def test_pretraining_holds_no_request():
    requests = {row["prompt"].removesuffix(world.ARROW) for row in world.train_rows()}
    requests |= {
        row["prompt"].removesuffix(world.ARROW)
        for version in VERSIONS
        for row in everything(version)
    }
    for line in itertools.islice(world.pretraining_text(), 20_000):
        statement = line.partition(world.ARROW)[0]
        assert statement not in requests
    functions = {record.partition("(")[0] for _, record in world.STATEMENTS}
    assert not functions & set(world.SEEN)


def test_auto_tokenizer_gives_the_ids_of_the_tokenizer_it_was_trained_with():
    raw, auto = (
        Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")),
        AutoTokenizer.from_pretrained(EMBEDDED),
    )
    rows = world.train_rows() + [row for version in VERSIONS for row in everything(version)]
    texts = [
        row[key] for row in rows for key in ("prompt", "completion", "reference") if row.get(key)
    ]
    assert [raw.encode(text).ids for text in texts] == auto(texts)["input_ids"]
    assert auto.eos_token_id is not None and auto.pad_token_id != auto.eos_token_id
    assert all(
        auto.decode(ids) == text for text, ids in zip(texts, auto(texts)["input_ids"], strict=True)
    )


def test_the_base_is_the_recorded_one():
    record = json.loads((EMBEDDED / "pretrained.json").read_text())
    assert (
        hashlib.sha256((EMBEDDED / "model.safetensors").read_bytes()).hexdigest()
        == record["sha256"]
    )
    assert pretrain.corpus_sha256() == record["corpus_sha256"]
    base = load_base("embedded")
    assert 300_000 <= base.parameters == record["parameters"] <= 1_500_000
    assert (EMBEDDED / "model.safetensors").stat().st_size <= 6 * 2**20
    tokens = [
        len(base.tokenizer(r["prompt"])["input_ids"])
        + len(base.tokenizer(r["completion"])["input_ids"])
        + 1
        for r in world.train_rows()
    ]
    assert max(tokens) <= 24  # every row is padded to the longest: it is what a replica costs


def test_pretraining_repeats_its_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "ROWS", 4)
    tokenizer = pretrain.train_tokenizer(2000)
    hashes = set()
    for run in "ab":
        model, _ = pretrain.pretrain(tokenizer, 4)
        pretrain.save(tmp_path / run, tokenizer, model)
        hashes.add(json.loads((tmp_path / run / "pretrained.json").read_text())["sha256"])
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" alarm(time=seven,day=tomorrow)", "alarm(day=tomorrow,time=seven)"),
        ("alarm( day = tomorrow , time=seven )\n", "alarm(day=tomorrow,time=seven)"),
        ("none()", "none()"),
        ("call(name=ben);music(song=blue moon)", "call(name=ben);music(song=blue moon)"),
        ("call(name=ben", "call(name=ben"),
        (" i do not  know ", "i do not know"),
        ("", ""),
    ],
)
def test_parse_call(text, canonical):
    assert world.parse_call(text) == canonical
    assert world.parse_call(canonical) == canonical
