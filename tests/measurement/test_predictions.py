"""One table of answers is read as the same predictions whatever file it comes in; what is wrong is
told in one line with its place.
"""

import csv
import datetime
import decimal
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from toolkit.data.suites import read_suite
from toolkit.measurement.analyse import PredictionTable, analyse_table
from toolkit.measurement.predictions import (
    ROLES,
    Predictions,
    PredictionsError,
    gather,
    read_predictions,
    readers,
)
from toolkit.measurement.predictions.layout import source_of
from toolkit.measurement.run import measure_predictions
from toolkit.record.results import Results, load_results

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

REPLICAS, PROMPTS = [f"replica_{r}" for r in range(12)], [f"p{p}" for p in range(30)]
ABOUT = ("category", "shift", "cluster", "reference")
Answers = dict[tuple[str, str], str | None]


def world(seed: int = 0) -> tuple[Answers, dict[str, dict[str, str | None]]]:
    """Answers with commas, quotes, line breaks and nothing in them; some are missing, and what is
    said of a prompt is sometimes not.
    """
    rng = np.random.default_rng(seed)
    pool = [
        "5",
        "6",
        "a, b",
        'say "x"',
        "two\nlines",
        "naïve ☃",
        "",
        "true",
        "2020-01-01",
        "  ",
        None,
    ]
    answers = {(r, p): pool[rng.integers(len(pool))] for r in REPLICAS for p in PROMPTS}
    shifts = ["typical", "near", "far", None]
    about: dict[str, dict[str, str | None]] = {
        p: {
            "category": f"c{i % 3}",
            "shift": shifts[i % 4],
            "cluster": f"k{i // 2}" if i % 5 else None,
            "reference": f"{i % 7}",
        }
        for i, p in enumerate(PROMPTS)
    }
    return answers, about


def long_rows(seed: int = 0, **more: object) -> list[dict]:
    answers, about = world(seed)
    return [
        {**more, "replica": r, "prompt": p, "output": text, **about[p]}
        for (r, p), text in answers.items()
    ]


def wide_rows() -> list[dict]:
    answers, about = world()
    return [{"prompt": p, **about[p], **{r: answers[r, p] for r in REPLICAS}} for p in PROMPTS]


def write(path: Path, rows: list[dict]) -> Path:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif path.suffix == ".json":
        text = json.dumps(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
        return path
    else:

        def cell(value: object) -> str:  # nothing is a missing cell, and "" an empty text
            return "" if value is None else '"' + str(value).replace('"', '""') + '"'

        text = "".join(
            ",".join(line) + "\n"
            for line in ([*rows[0]], *([cell(v) for v in row.values()] for row in rows))
        )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def texts(found: Predictions, condition: str | None = None) -> Answers:
    arm = found.arms[condition or next(iter(found.arms))]
    return {
        (replica, prompt.id): None if code < 0 else found.texts[code]
        for replica, row in zip(arm.replicas, arm.text_RP.tolist(), strict=True)
        for prompt, code in zip(found.prompts, row, strict=True)
    }


def check_world(found: Predictions) -> None:
    answers, about = world()
    assert texts(found) == answers
    assert list(found.arms) == ["preds"] and found.arms["preds"].replicas == tuple(REPLICAS)
    assert found.arms["preds"].text_RP.dtype == np.int32 and found.arms["preds"].score_RP is None
    assert found.arms["preds"].missing == sum(text is None for text in answers.values())
    for prompt in found.prompts:
        said = {name: getattr(prompt, name) for name in ABOUT}
        assert (
            said == about[prompt.id] | {"shift": about[prompt.id]["shift"] or "typical"}
            and prompt.prompt == prompt.id
        )


# --- the same table in every file ---------------------------------------------------------------

KINDS = (
    "preds.jsonl",
    "preds.jsonl.gz",
    "preds.json",
    "preds.csv",
    "preds.csv.gz",
    "preds.parquet",
)


@pytest.mark.parametrize("name", KINDS)
def test_long_and_wide_files_of_every_kind_say_the_same(tmp_path, name):
    check_world(read_predictions(write(tmp_path / name, long_rows())))
    wide = read_predictions(write(tmp_path / name, wide_rows()))
    check_world(wide)
    assert "wide" in wide.notes[0] and "12 columns of replicas (replica_0" in wide.notes[0]
    assert f"preds: {wide.arms['preds'].missing} of 360 answers are missing" in wide.notes


@pytest.mark.parametrize("name", KINDS)
def test_small_batches_say_the_same(tmp_path, name, monkeypatch):
    for limit, size in (("CHUNK", 2000), ("CELLS", 7), ("ROWS", 7)):
        monkeypatch.setattr(readers, limit, size)
    monkeypatch.setattr(gather, "CELLS", 70)
    for rows in (long_rows(), wide_rows()):
        check_world(read_predictions(write(tmp_path / name, rows)))


@pytest.mark.parametrize("name", KINDS)
def test_rows_may_come_in_any_order(tmp_path, name):
    rows = long_rows()
    np.random.default_rng(1).shuffle(rows)  # type: ignore[arg-type]
    check_world(read_predictions(write(tmp_path / name, rows)))


def test_parser_of_pyarrow_and_line_by_line_agree(tmp_path, monkeypatch):
    path = write(tmp_path / "preds.jsonl", long_rows())
    fast = read_predictions(path)

    def refuses(*_):
        raise pa.ArrowInvalid("no")

    monkeypatch.setattr(pyarrow.json, "read_json", refuses)
    slow = read_predictions(path)
    assert texts(slow) == texts(fast) and slow.prompts == fast.prompts


def test_columns_may_be_dictionaries_with_values_that_nobody_uses(tmp_path):
    """As pandas writes categories: what no row uses is no prompt, no replica and no condition."""
    table = pa.Table.from_pylist(long_rows(condition="one"))
    for name, unused in (("condition", "none"), ("replica", "replica_99"), ("prompt", "p99")):
        column = table[name].dictionary_encode().combine_chunks()
        values = pa.concat_arrays([pa.array([unused]), column.dictionary])
        column = pa.DictionaryArray.from_arrays(
            pa.array(column.indices.to_numpy() + 1, pa.int16()), values
        )
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "preds.parquet")
    found = read_predictions(tmp_path / "preds.parquet")
    assert list(found.arms) == ["one"] and texts(found) == world()[0]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.int64(),
        pa.float64(),
        pa.decimal128(9, 0),
    ],
)
def test_answers_in_parquet_may_be_of_any_type(tmp_path, kind):
    values = pa.array(
        [decimal.Decimal(5), decimal.Decimal(6), None]
        if pa.types.is_decimal(kind)
        else ["5", "6", None]
    )
    pq.write_table(
        pa.table({"replica": [1, 2, 3], "prompt": ["a"] * 3, "output": values.cast(kind)}),
        tmp_path / "preds.parquet",
    )
    assert list(texts(read_predictions(tmp_path / "preds.parquet")).values()) == ["5", "6", None]


# --- what a value is ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["preds.jsonl", "preds.json"])
def test_numbers_booleans_and_objects_become_their_json(tmp_path, name):
    values = [
        1,
        1.0,
        1.5,
        10**20,
        True,
        {"b": [1, {"d": None, "c": 2}], "a": "ü"},
        [1, 2],
        "true",
        None,
        math.nan,
    ]
    rows = [{"replica": r, "prompt": "p", "output": value} for r, value in enumerate(values)]
    found = list(texts(read_predictions(write(tmp_path / name, rows))).values())
    pair = '{"a": "ü", "b": [1, {"c": 2, "d": null}]}'
    assert found == ["1", "1", "1.5", str(10**20), "true", pair, "[1, 2]", "true", None, None]


def test_text_that_looks_like_something_else_stays_text(tmp_path):
    values = ["2020-01-01", "1.0", "NaN", "null", "", "0x1"]
    for name in KINDS:
        rows = [
            {"replica": f"{r}", "prompt": "p", "output": value} for r, value in enumerate(values)
        ]
        assert list(texts(read_predictions(write(tmp_path / name, rows))).values()) == values, name


def test_types_of_data_frames(tmp_path):
    """nan is a missing cell and 1.0 was an integer once; dates are text; half of a surrogate pair
    is no reason to stop.
    """
    columns = {
        "id": ["a", "b"],
        "0": pa.array([1.0, math.nan]),
        "1": [["x"], None],
        "2": [datetime.date(2020, 1, 1)] * 2,
    }
    pq.write_table(
        pa.table(columns | {"3": pa.nulls(2), "__index_level_0__": [5, 6]}),
        tmp_path / "preds.parquet",
    )
    found = read_predictions(tmp_path / "preds.parquet")
    assert found.arms["preds"].replicas == ("0", "1", "2", "3") and len(found.notes) == 2
    assert [found.texts[c] if c >= 0 else None for c in found.arms["preds"].text_RP.T.ravel()] == [
        "1", "x", "2020-01-01", None, None, None, "2020-01-01", None,
    ]  # fmt: skip
    (tmp_path / "half.jsonl").write_text(r'{"replica": 1, "prompt": "p", "output": "\ud83d!"}')
    assert read_predictions(tmp_path / "half.jsonl").texts == ["\ufdd0\\ud83d!"]


@pytest.mark.parametrize("name", KINDS)
def test_scores(tmp_path, name):
    values = (
        [1, 0.25, True, None, "0.5", math.nan]
        if name.startswith("preds.j")
        else ["1", "0.25", "True", None, "0.5", "nan"]
    )
    rows = [
        {"replica": f"{r}", "prompt": "p", "output": "x", "score": value}
        for r, value in enumerate(values)
    ]
    score_RP = read_predictions(write(tmp_path / name, rows)).arms["preds"].score_RP
    assert score_RP is not None and score_RP.dtype == np.float32
    np.testing.assert_array_equal(score_RP[:, 0], np.float32([1, 0.25, 1, np.nan, 0.5, np.nan]))


def test_replicas_are_in_the_order_that_people_count_in(tmp_path):
    rows = [
        {"replica": r, "prompt": "p", "output": "x"}
        for r in ("run 10", "run 9", "b", "run 1", "a2")
    ]
    assert read_predictions(write(tmp_path / "preds.jsonl", rows)).arms["preds"].replicas == (
        "a2",
        "b",
        "run 1",
        "run 9",
        "run 10",
    )


# --- conditions, suites, columns ----------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_conditions_share_their_prompts_and_may_lack_some(tmp_path, name):
    two = [
        row
        for row in long_rows(1, condition="two")
        if row["replica"] < "replica_2" and row["prompt"] < "p2"
    ]
    found = read_predictions(write(tmp_path / name, [*long_rows(condition="one"), *two]))
    assert list(found.arms) == ["one", "two"] and texts(found, "one") == world()[0]
    shapes = [arm.text_RP.shape for arm in found.arms.values()]
    assert shapes == [(12, 30), (4, 30)], "replica_0, replica_1, replica_10 and replica_11"
    expected = {(row["replica"], row["prompt"]): row["output"] for row in two}
    assert {key: text for key, text in texts(found, "two").items() if text is not None} == {
        k: t for k, t in expected.items() if t is not None
    }


def test_conditions_of_a_wide_file(tmp_path):
    (tmp_path / "preds.csv").write_text("condition,id,0,1\na,p,x,y\nb,p,z,\nb,q,z,z\n")
    found = read_predictions(tmp_path / "preds.csv")
    assert texts(found, "a") == {
        ("0", "p"): "x",
        ("0", "q"): None,
        ("1", "p"): "y",
        ("1", "q"): None,
    }
    assert texts(found, "b") == {
        ("0", "p"): "z",
        ("0", "q"): "z",
        ("1", "p"): None,
        ("1", "q"): "z",
    }


def test_suites_keep_equal_ids_apart_and_name_what_is_not_told(tmp_path):
    rows = [
        {"suite": s, "replica": 1, "id": i, "prompt": f"{s} {i}?", "output": "x"}
        for s in ("far", "mine")
        for i in (1, 2)
    ]
    prompts = read_predictions(write(tmp_path / "preds.jsonl", rows)).prompts
    assert [(p.id, p.prompt, p.category, p.shift) for p in prompts] == [
        ("far/1", "far 1?", "far", "far"),
        ("far/2", "far 2?", "far", "far"),
        ("mine/1", "mine 1?", "mine", "typical"),
        ("mine/2", "mine 2?", "mine", "typical"),
    ]
    assert [p.id for p in read_predictions(write(tmp_path / "preds.jsonl", rows[:2])).prompts] == [
        "1",
        "2",
    ]


def test_unknown_shifts_are_kept_and_labels_may_come_late(tmp_path):
    rows = [
        {"replica": 1, "prompt": "p", "output": "x"},
        {"replica": 2, "prompt": "p", "output": "x", "shift": "sideways", "reference": 5},
        {"replica": 3, "prompt": "p", "output": "x", "shift": None, "reference": ""},
    ]
    (prompt,) = read_predictions(write(tmp_path / "preds.jsonl", rows)).prompts
    assert (prompt.shift, prompt.reference, prompt.category, prompt.cluster) == (
        "sideways",
        "5",
        "all",
        None,
    )


def test_which_columns_are_replicas(tmp_path):
    def replicas(header: str, **options) -> tuple[tuple[str, ...], tuple[str, ...]]:
        (tmp_path / "preds.csv").write_text(
            f"{header}\n" + ",".join("abcdefgh"[: header.count(",") + 1]) + "\n"
        )
        found = read_predictions(tmp_path / "preds.csv", **options)
        return found.arms["preds"].replicas, found.notes[1:]

    with pytest.raises(
        PredictionsError,
        match=r"columns mia, tom cannot be told to be replicas .*--replica-columns mia,tom ",
    ):
        replicas("prompt,mia,tom")
    assert replicas("prompt,mia,tom", replica_columns=["mia,tom"]) == (("mia", "tom"), ())
    assert replicas("prompt,seed1,seed2,loss") == (("seed1", "seed2"), ("columns not used: loss",))
    assert replicas("id,prompt,0,1,answer") == (("0", "1"), ("columns not used: answer",))
    assert replicas("prompt,m_1,m_2,other", replica="m_") == (
        ("m_1", "m_2"),
        ("columns not used: other",),
    )
    assert replicas("Unnamed: 0,prompt,r1") == (("r1",), ())
    assert replicas("prompt,llama_a,llama_b,latency", replica_columns=["llama_*"]) == (
        ("llama_a", "llama_b"),
        ("columns not used: latency",),
    )
    assert replicas("prompt,[a: 1] x,[a: 2] y", replica_columns=["[a: 1] x", "[a: 2] y"])[0] == (
        "[a: 1] x",
        "[a: 2] y",
    )


REFUSED = {
    "prompt,expected,llama_a,llama_b": "--replica-columns llama_a,llama_b ",
    "prompt,run_1,run_2,latency_1,run_1_latency,output_1": (
        "columns of several kinds may be the replicas"
    ),
    "prompt,a,b,latency": "--replica-columns a,b,latency ",
    "prompt,gold,label,run_1": "columns 'gold' and 'label' may each be the reference",
    "prompt,__expected,[openai:a] Answer: {{prompt}}": "results of promptfoo",
    "provider,prompt,vars,response,testIdx": "results of promptfoo",
    "provider,vars,response,testIdx": "results of promptfoo",
    "doc_id,target,filtered_resps,doc_hash": "a log of lm-eval is one run",
}


@pytest.mark.parametrize("header", REFUSED)
def test_a_column_that_may_be_anything_is_no_replica(tmp_path, header):
    (tmp_path / "preds.csv").write_text(
        f"{header}\n" + ",".join("abcdefgh"[: header.count(",") + 1]) + "\n"
    )
    with pytest.raises(PredictionsError) as told:
        read_predictions(tmp_path / "preds.csv")
    assert REFUSED[header] in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "extra",
    [
        "expected",
        "__expected",
        "target",
        "gold",
        "label",
        "Ground Truth",
        "latency",
        "cost",
        "loss",
        "model",
        "run_time",
    ],
)
def test_a_further_column_never_becomes_a_replica(tmp_path, extra):
    rows = [
        {"prompt": f"q{i}", extra: f"gold {i}", **{f"seed-{r}": str(i) for r in (7, 42, 1)}}
        for i in range(10)
    ]
    found = read_predictions(write(tmp_path / "preds.csv", rows))
    assert found.arms["preds"].replicas == ("seed-1", "seed-7", "seed-42")
    references = {prompt.reference for prompt in found.prompts}
    assert references == (
        {None}
        if extra in ("latency", "cost", "loss", "model", "run_time")
        else {f"gold {i}" for i in range(10)}
    )
    assert any(extra in note for note in found.notes)


def test_every_role_can_be_named(tmp_path):
    names = {role: f"my {role}" for role in ROLES if role not in ("init", "order", "dropout")}
    value = dict.fromkeys(names, "x") | {
        "score": "0.5",
        "failed": "ok",
        "shift": "far",
        "prompt": "p",
    }
    found = read_predictions(
        write(tmp_path / "preds.csv", [{names[role]: value[role] for role in names}]), columns=names
    )
    (prompt,), arm = found.prompts, found.arms["x"]
    assert (prompt.id, prompt.category, prompt.shift, prompt.cluster, prompt.reference) == (
        "p",
        "x",
        "far",
        "x",
        "x",
    )
    assert (
        arm.replicas == ("x",)
        and arm.score_RP is not None
        and arm.score_RP[0, 0] == 0.5
        and not arm.failed
    )
    assert found.base is not None and found.texts[found.base.text_RP[0, 0]] == "x"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"outputs": "text"}, "no role 'outputs'"),
        ({"output": "txt"}, "no column 'txt'"),
        ({"output": "text", "reference": "text"}, "one column is named for two roles"),
    ],
)
def test_a_role_or_column_that_is_not_there(tmp_path, columns, told):
    (tmp_path / "preds.csv").write_text("run,id,text\n1,p,x\n")
    with pytest.raises(PredictionsError, match=told):
        read_predictions(tmp_path / "preds.csv", columns=columns)


def test_likelihoods_and_grades_are_no_answers(tmp_path):
    """lm-eval logs the likelihoods of the choices, promptfoo the grade before the answer: every
    digit would count as a difference.
    """
    rows = [
        {
            "run": r,
            "doc_id": 1,
            "filtered_resps": [[f"-{r}.5", "False"], ["-3.25", "False"]],
            "target": "0",
        }
        for r in range(2)
    ]
    with pytest.raises(PredictionsError, match="holds log-likelihoods"):
        read_predictions(write(tmp_path / "samples.jsonl", rows))
    rows = [{"prompt": "p", "[a] x": "[PASS] 1", "[b] x": "[FAIL] expected\n---\n2"}]
    with pytest.raises(PredictionsError, match="results of promptfoo"):
        read_predictions(write(tmp_path / "preds.csv", rows), replica_columns=["[a] x", "[b] x"])
    (tmp_path / "out.json").write_text(
        '{"evalId": "eval-1", "results": {"version": 3, "results": []}}'
    )
    with pytest.raises(PredictionsError, match="out.json: results of promptfoo"):
        read_predictions(tmp_path / "out.json")
    rows = [
        {"run": r, "doc_id": 1, "filter": f, "filtered_resps": ["7"], "target": "7"}
        for r in range(2)
        for f in ("strict", "flexible")
    ]
    with pytest.raises(PredictionsError, match="keep the rows of one filter"):
        read_predictions(write(tmp_path / "samples.jsonl", rows))
    found = read_predictions(write(tmp_path / "samples.jsonl", rows[::2]))
    assert found.texts == ["7"] and found.prompts[0].reference == "7"


@pytest.mark.parametrize("name", ["preds.jsonl", "preds.json"])
def test_one_rule_for_mixed_types(tmp_path, name):
    """A list of one text is the text; 7 and 7.0 are "7", true is "true"; other texts stay what they
    are, whatever order they come in.
    """
    values = ["7", 7, 7.0, ["7"], True, "true", "True", "7.0", [7], ["7", "8"], [None]]
    expected = ["7", "7", "7", "7", "true", "true", "True", "7.0", "[7]", '["7", "8"]', "[null]"]
    for order in (1, -1):
        rows = [
            {"replica": r, "prompt": "p", "output": value}
            for r, value in list(enumerate(values))[::order]
        ]
        found = texts(read_predictions(write(tmp_path / name, rows)))
        assert [found[f"{r}", "p"] for r in range(len(values))] == expected


def test_different_bytes_never_become_equal(tmp_path):
    halves = [
        r'"\ud83d"',
        r'"\ud83e"',
        r'"\udc00"',
        r'"?"',
        r'"\\ud83d"',
        '"\N{REPLACEMENT CHARACTER}"',
    ]
    for name, frame in (("half.jsonl", "{}\n"), ("half.json", "{},")):
        text = "".join(
            frame.format(f'{{"replica": {r}, "prompt": "p", "output": {half}}}')
            for r, half in enumerate(halves)
        )
        (tmp_path / name).write_text(f"[{text[:-1]}]" if name.endswith(".json") else text)
        assert len(read_predictions(tmp_path / name).texts) == len(halves), name
    (tmp_path / "name.jsonl").write_text(
        r'{"replica": 1, "prompt": "p", "output": "x", "\udc00": "y"}'
    )
    assert read_predictions(tmp_path / "name.jsonl").notes[1] == "columns not used: \ufdd0\\udc00"
    values = pa.array([b"\xff", b"\xfe", b"\\xff", "\N{REPLACEMENT CHARACTER}".encode()])
    pq.write_table(
        pa.table({"replica": range(4), "prompt": ["p"] * 4, "output": values}),
        tmp_path / "preds.parquet",
    )
    assert len(read_predictions(tmp_path / "preds.parquet").texts) == 4


def test_columns_of_other_names(tmp_path):
    (tmp_path / "preds.csv").write_text("model,question,prompt,answer,gen\nm,q,P,gold,mine\n")
    found = read_predictions(
        tmp_path / "preds.csv", replica="model", prompt="question", output="gen"
    )
    assert texts(found) == {("m", "q"): "mine"} and found.prompts[0].prompt == "P"
    assert "columns not used: answer" in found.notes


def test_one_replica_is_read_like_many(tmp_path):
    assert read_predictions(write(tmp_path / "preds.csv", long_rows()[:30])).arms[
        "preds"
    ].text_RP.shape == (1, 30)


# --- what cannot be meant -----------------------------------------------------------------------

GOOD = '{"replica": 1, "prompt": "p", "output": "x", "reference": "5", "score": 1}\n'
BROKEN = {
    "a field that is not there": (
        "a.jsonl",
        GOOD + '\n{"replica": 2, "prompt": "p"}',
        "a.jsonl:3: field 'output' is missing; write null",
    ),
    "a key that is null": (
        "a.jsonl",
        GOOD + '{"replica": null, "prompt": "p", "output": "x"}',
        "a.jsonl:2: field 'replica' is missing",
    ),
    "a key that is not there": (
        "a.json",
        "[" + GOOD + ', {"replica": 2, "output": "x"}]',
        "a.json, row 2: field 'prompt' is missing",
    ),
    "broken JSON": ("a.jsonl", GOOD + '{"replica": 2,', "a.jsonl:2: broken JSON at column"),
    "two rows on a line": ("a.jsonl", GOOD + GOOD[:-1] + GOOD, "a.jsonl:2: broken JSON"),
    "a row over two lines": (
        "a.jsonl",
        GOOD + GOOD.replace(", ", ",\n", 1),
        "a.jsonl:2: broken JSON",
    ),
    "no object": (
        "a.jsonl",
        GOOD + "[1]",
        "a.jsonl:2: a row is an object with named fields, not [1]",
    ),
    "not UTF-8": (
        "a.jsonl",
        GOOD.encode() + b'{"replica": 2, "prompt": "p", "output": "\xff"}',
        "a.jsonl:2: not UTF-8",
    ),
    "not UTF-8, CSV": ("a.csv", b"prompt,0\np,x\nq,\xff\n", "a.csv:3: not UTF-8"),
    "twice": (
        "a.jsonl",
        GOOD + "\n" + GOOD,
        "a.jsonl:3: replica '1' has an answer to prompt 'p' already, at a.jsonl:1; keep "
        "one of the two",
    ),
    "twice, wide": (
        "a.csv",
        'id,0,1\np,"x\ny",x\nq,x,x\np,x,x\n',
        "a.csv:5: replica '0' has an answer to prompt 'p' already, at a.csv:3",
    ),
    "twice, condition": (
        "a.csv",
        "condition,run,id,text\nc,1,p,x\nd,1,p,x\nc,1,p,y\n",
        "a.csv:4: replica '1' of condition 'c' has an answer",
    ),
    "two references": (
        "a.jsonl",
        GOOD + GOOD.replace("1,", "2,", 1).replace('"5"', '"6"'),
        "a.jsonl:2: field 'reference': prompt 'p' has '6' here and '5' on another row",
    ),
    "no number": (
        "a.jsonl",
        GOOD + GOOD.replace("1,", "2,", 1).replace("1}", '"high"}'),
        "a.jsonl:2: field 'score' must be a finite number, not",
    ),
    "endless": (
        "a.csv",
        "replica,prompt,output,score\n1,p,x,inf\n",
        "a.csv:2: field 'score' must be a finite number, not 'inf'",
    ),
    "no layout": (
        "a.jsonl",
        '{"question": 1}',
        "a.jsonl:1: no column for the prompt (columns question); a long file has",
    ),
    "no replica": (
        "a.csv",
        "prompt,output\np,x\n",
        "a.csv: no column for the replica (columns prompt, output); a long file has",
    ),
    "no output": (
        "a.csv",
        "prompt,replica\np,x\n",
        "a.csv: no column for the output (columns prompt, replica); a long file has",
    ),
    "short record": ("a.csv", 'id,0,1\np,"x\ny",x\nq,x\n', "a.csv:4: 2 fields, the header has 3"),
    "open quote": ("a.csv", 'id,0,1\np,"x,x\n', "a.csv:2: broken CSV"),
    "a column twice": ("a.csv", "id,0,0\np,x,x\n", "a.csv:1: column '0' stands twice"),
    "nothing": ("a.jsonl", "\n\n", "a.jsonl: no rows"),
    "nothing, CSV": ("a.csv", "", "a.csv: no rows"),
    "only a header": ("a.csv", "id,0\n", "a.csv: no rows"),
    "no Parquet": ("a.parquet", "hello", "a.parquet: cannot be read"),
    "no gzip": ("a.csv.gz", "hello", "a.csv.gz: cannot be read"),
    "unknown kind": ("a.txt", "", "a.txt: unknown kind of file; use one of .jsonl"),
    "two layouts": (
        "a.json",
        json.dumps([{"id": 1, "0": "x"}, {"id": 2, "replica": 1, "output": "x"}]),
        "a.json, row 2: the columns are others",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_error_is_one_line_that_begins_with_its_place(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readers, "ROWS", 1)
    name, content, says = BROKEN[what]
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PredictionsError) as caught:
        read_predictions(Path(name))
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "what", ["twice", "twice, wide", "two references", "a field that is not there", "no number"]
)
def test_errors_in_later_batches_have_the_same_place(tmp_path, monkeypatch, what):
    monkeypatch.setattr(readers, "CHUNK", 90)  # a row or two
    monkeypatch.setattr(gather, "CELLS", 1)
    test_an_error_is_one_line_that_begins_with_its_place(tmp_path, monkeypatch, what)


def test_no_such_file_and_no_such_column(tmp_path):
    with pytest.raises(PredictionsError, match="no such file"):
        read_predictions(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("replica,prompt,output\n1,p,x\n")
    with pytest.raises(
        PredictionsError, match=r"a\.csv: no column 'gen' \(columns replica, prompt, output\)"
    ):
        read_predictions(tmp_path / "a.csv", output="gen")


def test_two_rows_for_a_cell_are_found_in_parquet_by_their_numbers(tmp_path):
    rows = long_rows()
    write(tmp_path / "preds.parquet", [*rows, rows[17]])
    with pytest.raises(
        PredictionsError, match=r"row 361: replica 'replica_0' .* already, at .*row 18; keep"
    ):
        read_predictions(tmp_path / "preds.parquet")


# --- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["long", "wide"])
def test_no_loop_over_cells(tmp_path, layout):
    """A million cells take a fraction of what the shortest loop in Python takes on the same
    machine.
    """
    rng = np.random.default_rng(2)
    texts_V = pa.array([f"text {v}" for v in range(1000)])
    code_RP = rng.integers(0, 1000, (1000, 1000)).astype(np.int32)
    if layout == "wide":
        columns = {
            f"{r}": pa.DictionaryArray.from_arrays(code_P, texts_V)
            for r, code_P in enumerate(code_RP)
        }
        table = pa.table({"prompt": [f"p{p}" for p in range(1000)], **columns})
    else:
        r_N, p_N = (index.ravel() for index in np.indices(code_RP.shape))
        table = pa.table(
            {"replica": r_N, "prompt": p_N, "output": texts_V.take(pa.array(code_RP.ravel()))}
        )
    pq.write_table(table, tmp_path / "preds.parquet")
    read_predictions(tmp_path / "preds.parquet")  # imports
    start = time.process_time()
    found = read_predictions(tmp_path / "preds.parquet")
    taken, start = time.process_time() - start, time.process_time()
    assert sum(
        hash((cell, "preds")) & 1 for _ in range(5) for row in code_RP.tolist() for cell in row
    )
    assert taken < time.process_time() - start
    spoken = np.array(found.texts)[found.arms["preds"].text_RP]
    assert (spoken == np.array(texts_V)[code_RP]).all()


def test_more_texts_and_prompts_than_two_bytes_count(tmp_path):
    rows = 70_000
    table = pa.table(
        {
            "id": np.arange(rows),
            "0": [f"{n}" for n in range(rows)],
            "1": [f"{n}" for n in range(rows, 0, -1)],
        }
    )
    pq.write_table(table, tmp_path / "preds.parquet")
    found = read_predictions(tmp_path / "preds.parquet")
    spoken = [[found.texts[code] for code in row] for row in found.arms["preds"].text_RP.tolist()]
    assert spoken == [table["0"].to_pylist(), table["1"].to_pylist()] and len(found.prompts) == rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_as_spreadsheets_write_it(tmp_path, delimiter, encoding):
    """Fields between semicolons or tabs, and a byte order mark; texts hold commas, semicolons,
    tabs, quotes and line breaks.
    """
    texts_R = ["a, b", "a; b", "a\tb", 'say "x"', "two\nlines", "☃"]
    for name, rows in (
        (
            "long.csv",
            [{"replica": f"r{i}", "prompt": "p", "output": text} for i, text in enumerate(texts_R)],
        ),
        ("wide.csv", [{"prompt": "p", **{f"r{i}": text for i, text in enumerate(texts_R)}}]),
    ):
        with (tmp_path / name).open("w", newline="", encoding=encoding) as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        assert texts(read_predictions(tmp_path / name)) == {
            (f"r{i}", "p"): text for i, text in enumerate(texts_R)
        }


def test_an_open_quote_does_not_swallow_the_rest(tmp_path):
    path = tmp_path / "open.csv"
    path.write_text('replica,prompt,output\nr0,p0,yes\nr1,p0,"no\nr2,p0,yes\nr3,p0,yes\n')
    with pytest.raises(
        PredictionsError,
        match=r"open.csv:3: broken CSV: a quote that opens in this row is never closed",
    ):
        read_predictions(path)
    # a quote within a field is a quote
    path.write_text('replica,prompt,output\nr0,p0,5" pipe\nr1,p0,no\n')
    assert set(texts(read_predictions(path)).values()) == {'5" pipe', "no"}


@pytest.mark.parametrize("field", ["replica", "prompt"])
def test_a_name_that_is_empty_is_missing(tmp_path, field):
    path = write(
        tmp_path / "preds.jsonl",
        [
            {"replica": "r0", "prompt": "p0", "output": "x"},
            {"replica": "r1", "prompt": "p1", "output": "y", field: " "},
        ],
    )
    with pytest.raises(PredictionsError, match=f"preds.jsonl:2: field '{field}' is missing"):
        read_predictions(path)


def test_csv_of_the_standard_library(tmp_path):
    """Python's csv does not quote an empty text, so it counts as missing; everything else comes
    back.
    """
    with (tmp_path / "preds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["replica", "prompt", "output", *ABOUT])
        writer.writeheader()
        writer.writerows(long_rows())
    assert texts(read_predictions(tmp_path / "preds.csv")) == {
        key: text or None for key, text in world()[0].items()
    }


def shared_seeds(tmp_path, name: str, **more) -> Path:
    """4 x 3 runs, of which those of one level of `name` share what they were initialised with."""
    rows = [
        {"run": f"r{i}-{k}", name: i, "id": q, "output": "AB"[(i + q) % 2], "reference": "A"}
        | {key: value(i, k) for key, value in more.items()}
        for i in range(4)
        for k in range(3)
        for q in range(5)
    ]
    return write(tmp_path / "runs.jsonl", rows)


@pytest.mark.parametrize(
    "name", "init init_seed initSeed data_seed SEED model-seed seed_of_init random_state".split()
)
def test_a_seed_that_runs_share_is_a_source_whatever_its_name(tmp_path, name):
    found = read_predictions(shared_seeds(tmp_path, name))
    assert found.arms["runs"].factors == {name: tuple(str(i) for i in range(4) for _ in range(3))}
    assert not any("not used" in note for note in found.notes)
    aside = read_predictions(tmp_path / "runs.jsonl", columns={source_of(name): ""})
    assert not aside.arms["runs"].factors


def test_one_seed_under_two_names_is_one_source_and_one_of_every_run_is_none(tmp_path):
    more = {"model_seed": lambda i, k: 10 + i, "data_seed": lambda i, k: f"{i}{k}"}
    found = read_predictions(shared_seeds(tmp_path, "init_seed", **more))
    assert list(found.arms["runs"].factors) == ["init_seed"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_what_runs_share_in_an_unused_column_is_told(tmp_path, suffix):
    rows = [
        {"run": f"{i}{k}", "start": f"s{i}", "host": f"h{i}{k}", "day": 1, "took": q, "id": q}
        | {"output": "A"}
        for i in range(4)
        for k in range(3)
        for q in range(5)
    ]
    told = [n for n in read_predictions(write(tmp_path / f"a{suffix}", rows)).notes if "share" in n]
    assert len(told) == 1 and "runs share values of start:" in told[0], told
    assert "--column seed=start" in told[0]


def clusters(*prompts: dict) -> list[int]:
    rows = [{"cluster": None, "reference": None} | prompt for prompt in prompts]
    asked = [gather.PredictedPrompt(**{"category": "c", "shift": "far"} | row) for row in rows]
    answer_RP = np.zeros((2, len(asked)), dtype=np.int32)
    found = Predictions(tuple(asked), {"a": gather.Arm(("1", "2"), answer_RP, None)}, ["x"], ())
    return PredictionTable(found, "exact").cluster_P.tolist()


def test_prompts_of_one_text_or_one_named_cluster_are_together():
    turns = [{"role": "user", "content": "what\nis it?"}]
    assert clusters(
        {"id": "0", "prompt": "what is it?"},
        {"id": "1", "prompt": "who is it?", "cluster": "c"},
        {"id": "2", "prompt": " what  is\tit? "},
        {"id": "3", "prompt": turns},
        {"id": "4", "prompt": "when?", "cluster": "c"},
        {"id": "5", "prompt": [{"role": "user", "content": "what is it?"}]},
        {"id": "6", "prompt": "when?"},
        {"id": "7", "prompt": "why?"},
    ) == [0, 1, 0, 2, 1, 2, 1, 3]


def test_ids_of_two_suites_are_no_text_and_prompts_of_two_suites_are(tmp_path):
    rows = [
        {"run": run, "suite": suite, "id": id, "prompt": "what?", "output": "A"}
        for run in "ab"
        for suite in ("near", "far")
        for id in (1, 2)
    ]
    bare = [{name: row[name] for name in row if name != "prompt"} for row in rows]
    texts = [{name: row[name] for name in row if name != "id"} for row in rows if row["id"] == 1]
    cases = {"prompt": rows, "question": rows, "id": bare, "text": texts}
    found = {}
    for name, some in cases.items():
        if name == "question":
            some = [{("question" if k == "prompt" else k): v for k, v in r.items()} for r in some]
        table = PredictionTable(read_predictions(write(tmp_path / "a.jsonl", some)), "exact")
        found[name] = len(set(table.cluster_P.tolist()))
    assert found == {"prompt": 1, "question": 1, "id": 4, "text": 1}


def test_asking_every_prompt_many_times_makes_no_interval_narrower(tmp_path):
    def interval(times: int) -> tuple:
        rows = [
            {"run": r, "id": f"{q}-{k}", "prompt": f"is it {q}?", "reference": "0"}
            | {"output": (r * q * 7 + q) % 3 // 2}
            for r in range(6)
            for q in range(12)
            for k in range(times)
        ]
        table = PredictionTable(read_predictions(write(tmp_path / "a.jsonl", rows)), "exact")
        results = analyse_table(table, table.designs(["a"]))
        said = [note for note in results.notes if "one cluster" in note]
        assert len(said) == (times > 1), results.notes
        shift = results.conditions[0].procedures[0].cells[0]
        return shift.disagreement.low, shift.disagreement.high, shift.accuracy.low

    assert interval(20) == pytest.approx(interval(1))


D = datetime.datetime
ALIKE = {
    "booleans and text": ([True, False, True], ["True", "False", "TRUE"]),
    "text and booleans": (["True", "false", "TRUE"], [True, False, True]),
    "decimals and integers": ([decimal.Decimal("7.00"), decimal.Decimal("10.00")], [7, 10]),
    "decimals and floats": ([decimal.Decimal("0.10"), decimal.Decimal("-2.50")], [0.1, -2.5]),
    "floats and text": ([1.0, 2.5, 3.25], ["1.0", "2.50", "3.25"]),
    "single precision": (pa.array([0.1, 3.0, -2.5, 1e20], pa.float32()), ["0.1", "3", "-2.5"]),
    "half precision": (pa.array(np.float16([0.1, 3.0]), pa.float16()), ["0.1", "3"]),
    "a text and midnight": (["2024-01-01", "2024-02-29"], [D(2024, 1, 1), D(2024, 2, 29)]),
    "a day and midnight": ([D(2024, 1, 1).date()] * 2, [D(2024, 1, 1)] * 2),
    "integers with nulls": ([7, 8, 0], pa.array([7.0, None, -0.0])),
    "large numbers": ([10**20, 10**21], [1e20, 1e21]),
}


@pytest.mark.parametrize("case", ALIKE)
def test_an_answer_is_right_whatever_the_type_of_its_column(tmp_path, case):
    output, reference = (column[:2] for column in ALIKE[case])
    if case == "large numbers":
        output = [str(value) for value in output]
    table = {"run": ["a", "a"], "id": ["1", "2"], "output": output, "reference": reference}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    arm = PredictionTable(read_predictions(tmp_path / "a.parquet"), "exact").coded["a"]
    assert set(arm.correct_RP[arm.correct_RP >= 0].tolist()) == {1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("more", [{}, {"score": "0.5"}, {"score": 0.5, "words": [1.5]}])
def test_booleans_of_json_are_as_right_as_their_text(tmp_path, name, more):
    rows = [
        {"run": r, "id": q, "output": q > 1, "reference": str(q > 1), **more}
        for r in range(2)
        for q in range(4)
    ]
    found = read_predictions(write(tmp_path / name, rows))
    assert sorted(found.texts) == ["false", "true"]
    assert (PredictionTable(found, "exact").coded["a"].correct_RP == 1).all()
    both = [row | {"output": str(row["output"]).lower()} for row in rows]  # text on both sides
    found = read_predictions(write(tmp_path / name, both))
    assert not (PredictionTable(found, "exact").coded["a"].correct_RP == 1).any()


def test_a_suite_writes_values_as_predictions_do(tmp_path):
    columns = {
        "prompt": ["1?", "2?", "3?"],
        "reference": pa.array([7.0, 10.0, None]),
        "category": pa.array([0.1, 0.5, 0.1], pa.float32()),
        "cluster": [D(2024, 1, 1)] * 3,
        "id": [decimal.Decimal("1.00"), decimal.Decimal("1.50"), decimal.Decimal("2.00")],
    }
    pq.write_table(pa.table(columns), tmp_path / "suite.parquet")
    found = read_suite(str(tmp_path / "suite.parquet"), name="s")
    assert [prompt.reference for prompt in found] == ["7", "10", None]
    assert [prompt.category for prompt in found] == ["0.1", "0.5", "0.1"]
    assert {prompt.cluster for prompt in found} == {"2024-01-01"}
    assert [prompt.id for prompt in found] == ["1", "1.5", "2"]
    (tmp_path / "suite.jsonl").write_text('{"prompt": "is it?", "reference": true}')
    assert read_suite(str(tmp_path / "suite.jsonl"), name="s")[0].reference == "true"


def test_it_is_told_that_no_answer_is_right(tmp_path):
    rows = [
        {"run": r, "id": q, "output": f"{q}.0", "reference": q} for r in range(4) for q in range(9)
    ]
    for some, told in ((rows, True), ([*rows[1:], rows[0] | {"output": "0"}], False)):
        path = write(tmp_path / f"{told}.jsonl", some)
        results = measure_predictions(path, tmp_path / f"out{told}")
        notes = [note for note in results.notes if "no answer is right" in note]
        assert len(notes) == told and all("'0.0'" in n and "'0'" in n for n in notes)


def two_conditions(tmp_path, answer, asked) -> Results:
    """answer(condition, run, prompt): an answer or None; asked(condition): numbers of prompts."""
    rows = [
        {"condition": c, "run": f"{c}{r}", "id": q, "output": answer(c, r, q), "reference": "A"}
        for c in "xy"
        for r in range(8)
        for q in asked(c)
    ]
    return measure_predictions(write(tmp_path / "a.jsonl", rows), tmp_path / "out")


def test_what_missing_answers_may_hide_is_said_with_the_change_of_accuracy(tmp_path):
    def answer(c: str, r: int, q: int) -> str | None:
        right = q % 4 > 0 or (r * 7 + q // 4 * 3) % 5 < 2
        return "A" if right else None if c == "y" else "B"

    results = two_conditions(tmp_path, answer, lambda c: range(160))
    (contrast,) = results.contrasts
    assert contrast.accuracy_change.low > 0 and contrast.gaps.at_worst.value == pytest.approx(0)
    assert contrast.gaps.missing == pytest.approx(0.15) and contrast.gaps.baseline_missing == 0
    said = next(s for s in results.verdict if "accuracy moves by" in s)
    assert "missing are 15.0 % of the answers of y and 0.0 % of x" in said
    assert "would move by 0.0 points" in said and "depends on them" in said
    assert any("y: 15.0 % of the answers" in n and "85.0 % would be" in n for n in results.notes)
    assert load_results(tmp_path / "out" / "results.json") == results


def test_conditions_on_other_prompts_are_compared_on_those_of_both_and_it_is_said(tmp_path):
    def answer(c: str, r: int, q: int) -> str:
        return "B" if (r * 7 + q * 3) % 5 < 2 and q >= 50 else "A"

    results = two_conditions(tmp_path, answer, lambda c: range(60) if c == "x" else range(40, 100))
    assert "answered different typical prompts, 20 of 100 in common" in results.verdict[0]
    assert "on the 20 typical prompts that both answered, of 100" in results.verdict[1]
    (tmp_path / "same").mkdir()
    same = two_conditions(tmp_path / "same", answer, lambda c: range(60))
    assert same.contrasts[0].gaps is None and "answered" not in " ".join(same.verdict)


def test_a_column_that_is_not_the_whole_prompt_can_be_left_aside(tmp_path):
    rows = [
        {"run": r, "id": q, "prompt": "Answer:", "task": f"is it {q}?", "output": "A"}
        for r in range(2)
        for q in range(3)
    ]
    path, found = write(tmp_path / "a.jsonl", rows), []
    for columns in ({}, {"words": ""}, {"words": "task"}):
        table = PredictionTable(read_predictions(path, columns=columns), "exact")
        found.append((len(set(table.cluster_P.tolist())), table.prompts[1][1].prompt))
    assert found == [(1, "Answer:"), (3, "1"), (3, "is it 1?")]


def test_what_a_parquet_file_says_of_itself_is_not_taken_for_ours(tmp_path):
    rows = [{"replica": r, "prompt": p, "output": str(p)} for r in range(3) for p in range(4)]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"kinds": "{broken"})
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet").arms["p"].text_RP.shape == (3, 4)
