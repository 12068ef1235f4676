"""The embedded world: always the same rows, nothing of the suites in training, nothing of the task in pretraining."""

import hashlib
import itertools
import json
from collections import Counter

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from toolkit.base import EMBEDDED, load_base
from toolkit.embedded import pretrain, world

SHIFTS = ("typical", "near", "far")


def test_rows_never_drift():
    text = json.dumps([world.train_rows(), world.validation_rows(), *map(world.suite, SHIFTS)], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == "b7d703d0bc088af5cb814b1a74352b209247bbd48eae77919b88748033bf260f"


def test_suites_hold_out_and_are_rich():
    trained = {row["prompt"] for row in world.train_rows()}
    assert 1000 <= len(world.train_rows()) <= 2000 and len(trained) == len(world.train_rows())
    asked = {shift: world.suite(shift) for shift in SHIFTS}
    tuned = {row["prompt"] for row in world.validation_rows()}
    everything = [row["prompt"] for rows in asked.values() for row in rows]
    assert not trained & set(everything) and not tuned & set(everything) and not trained & tuned
    assert len(set(everything)) == len(everything)
    categories = Counter(row["category"] for rows in asked.values() for row in rows)
    assert len(categories) >= 9 and min(categories.values()) >= 25
    for rows in asked.values():
        assert len({row["cluster"] for row in rows}) >= 20
        assert len({row["id"] for row in rows}) == len(rows)
    assert all(row["reference"] for row in asked["typical"] + asked["near"])


def test_pretraining_holds_no_request():
    requests = {row["prompt"].removesuffix(world.ARROW) for row in world.train_rows()}
    requests |= {row["prompt"].removesuffix(world.ARROW) for shift in SHIFTS for row in world.suite(shift)}
    for line in itertools.islice(world.pretraining_text(), 20_000):
        statement = line.partition(world.ARROW)[0]
        assert statement not in requests
    functions = {record.partition("(")[0] for _, record in world.STATEMENTS}
    assert not functions & set(world.SEEN)


def test_auto_tokenizer_gives_the_ids_of_the_tokenizer_it_was_trained_with():
    raw, auto = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")), AutoTokenizer.from_pretrained(EMBEDDED)
    rows = world.train_rows() + [row for shift in SHIFTS for row in world.suite(shift)]
    texts = [row[key] for row in rows for key in ("prompt", "completion", "reference") if row.get(key)]
    assert [raw.encode(text).ids for text in texts] == auto(texts)["input_ids"]
    assert auto.eos_token_id is not None and auto.pad_token_id != auto.eos_token_id
    assert all(auto.decode(ids) == text for text, ids in zip(texts, auto(texts)["input_ids"], strict=True))


def test_the_base_is_the_recorded_one():
    record = json.loads((EMBEDDED / "pretrained.json").read_text())
    assert hashlib.sha256((EMBEDDED / "model.safetensors").read_bytes()).hexdigest() == record["sha256"]
    assert pretrain.corpus_sha256() == record["corpus_sha256"]
    base = load_base("embedded")
    assert 300_000 <= base.parameters == record["parameters"] <= 1_500_000
    assert (EMBEDDED / "model.safetensors").stat().st_size <= 6 * 2**20
    tokens = [
        len(base.tokenizer(r["prompt"])["input_ids"]) + len(base.tokenizer(r["completion"])["input_ids"]) + 1 for r in world.train_rows()
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
