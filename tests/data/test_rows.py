"""Rows from files and folders: read right whatever they are packed in, or refused in one line; no
split is mixed with another.
"""

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from toolkit.data import DataError, read_rows, read_suite, survey
from toolkit.data.formats import split_row
from toolkit.data.locate import files_of, split_of
from toolkit.data.rows import READERS
from toolkit.data.survey import aside
from toolkit.measurement.predictions import PredictionsError, read_predictions

ROWS = [{"prompt": f"call ben {i}", "completion": "call ann"} for i in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def streamed_zstd(path: Path, data: bytes) -> None:
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(data)


def texts(kind: str) -> str:
    separator = {".csv": ",", ".tsv": "\t"}.get(kind)
    if kind == ".json":
        return json.dumps(ROWS)
    return (
        LINES
        if separator is None
        else "\r\n".join(
            separator.join(row) for row in [ROWS[0].keys(), *(r.values() for r in ROWS)]
        )
    )


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
def test_text_files_are_read_whatever_they_are_packed_in(tmp_path, kind, packed):
    path = tmp_path / f"rows{kind}{packed}"
    if packed == ".zst":
        streamed_zstd(path, texts(kind).encode())
    else:
        path.write_bytes(PACK[packed](texts(kind).encode()))
    rows = read_rows(str(path))
    assert rows == ROWS and rows[0].where.startswith(str(path))


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_packed_data_that_is_damaged_is_one_line(tmp_path, packed, damage):
    path = tmp_path / f"rows.jsonl{packed}"
    streamed_zstd(path, LINES.encode()) if packed == ".zst" else path.write_bytes(
        PACK[packed](LINES.encode())
    )
    path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"no such thing at all")
    with pytest.raises(DataError, match=r"rows\.jsonl") as error:
        read_rows(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_of_both_kinds(tmp_path, stream):
    table = pyarrow.Table.from_pylist(ROWS)
    with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(
        str(tmp_path / "a.arrow"), table.schema
    ) as writer:
        writer.write_table(table)
    assert read_rows(str(tmp_path / "a.arrow")) == ROWS


def saved(folder: Path, rows: list[dict], parts: int = 1) -> None:
    """As `Dataset.save_to_disk` writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{parts:05d}.arrow" for i in range(parts)]
    for i, name in enumerate(names):
        table = pyarrow.Table.from_pylist(
            rows[i::parts]
            if parts == 1
            else rows[i * len(rows) // parts : (i + 1) * len(rows) // parts]
        )
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None})
    )
    (folder / "dataset_info.json").write_text("{}")


def test_folders_that_datasets_saved(tmp_path):
    saved(tmp_path / "one", ROWS, parts=2)
    (tmp_path / "one" / "cache-1234.arrow").write_bytes(b"of an earlier map")
    assert read_rows(str(tmp_path / "one")) == ROWS
    for name, rows in (("train", ROWS[:3]), ("test", ROWS[3:])):
        saved(tmp_path / "both" / name, rows)
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read_rows(str(tmp_path / "both")) == ROWS[:3]
    assert files_of(tmp_path / "both", READERS)[1] == [
        f"{tmp_path / 'both'}: read as its train split; left aside: test/"
    ]
    with pytest.raises(
        DataError,
        match=r"both: holds several data sets; name the one that is meant: .*both/test, "
        r".*both/train",
    ):
        read_suite(str(tmp_path / "both"), name="typical")
    assert len(read_suite(str(tmp_path / "both" / "test"), name="typical")) == 1
    (tmp_path / "one" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        DataError, match=r"data-00001-of-00002\.arrow: missing, though .*state\.json names it"
    ):
        read_rows(str(tmp_path / "one"))


def test_what_the_datasets_library_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "ds")
    assert read_rows(str(tmp_path / "ds")) == ROWS


# -- folders -------------------------------------------------------------------------------------


def fill(folder: Path, *names: str) -> Path:
    """A row in every file that tells which file it was."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = [{"text": name}]
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(row), path)
        elif ".jsonl" in name:
            line = (json.dumps(row[0]) + "\n").encode()
            path.write_bytes(gzip.compress(line) if name.endswith(".gz") else line)
        else:
            path.write_text("not rows")
    return folder


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["part-0.jsonl", "part-1.jsonl.gz"], ["part-0.jsonl", "part-1.jsonl.gz"]),
        (
            ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"],
            ["train-00000-of-00001.parquet"],
        ),
        (["train.jsonl", "dev.jsonl", "eval.jsonl"], ["train.jsonl"]),
        (["my.training.jsonl", "my_valid.jsonl"], ["my.training.jsonl"]),
        (["data/train-0.jsonl", "data/validation-0.jsonl", "README.md"], ["data/train-0.jsonl"]),
        (["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], ["train/a.jsonl", "train/b.jsonl"]),
        (["test.jsonl"], ["test.jsonl"]),
        (["train-1.jsonl", "train-2.jsonl"], ["train-1.jsonl", "train-2.jsonl"]),
        (["contest.jsonl", "latest.jsonl"], ["contest.jsonl", "latest.jsonl"]),
        (
            ["devices.jsonl", "phones.jsonl", "testimonials.jsonl"],
            ["devices.jsonl", "phones.jsonl", "testimonials.jsonl"],
        ),
        (["testset.jsonl", "trainset.jsonl"], ["trainset.jsonl"]),
        (["testData.jsonl", "trainData.jsonl"], ["trainData.jsonl"]),
        (["myHTMLTest.jsonl", "myHTMLTrain.jsonl"], ["myHTMLTrain.jsonl"]),
        (["held-out.jsonl", "train.jsonl"], ["train.jsonl"]),
        (["HeldOut1.jsonl", "TRAINSET.jsonl"], ["TRAINSET.jsonl"]),
        (["hold_out.jsonl", "train.jsonl"], ["train.jsonl"]),
        (["xtest.jsonl", "xtrain.jsonl", "xvalid.jsonl"], ["xtrain.jsonl"]),
        (["train.jsonl", "test/a.jsonl"], ["train.jsonl"]),
        (["train.jsonl", "train/a.jsonl"], ["train.jsonl", "train/a.jsonl"]),
    ],
)
def test_a_folder_is_its_training_split(tmp_path, names, read):
    fill(tmp_path, *names)
    assert [row["text"] for row in read_rows(str(tmp_path))] == read
    _, notes = files_of(tmp_path, READERS)
    aside = [name for name in names if name not in read and name != "README.md"]
    assert all(name in " ".join(notes) for name in aside) and bool(notes) == bool(aside)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["train.jsonl", "more.jsonl"], r"train\.jsonl names a split and more\.jsonl does not"),
        (["more.jsonl", "test.jsonl"], r"test\.jsonl names a split and more\.jsonl does not"),
        (["part.jsonl", "heldout.jsonl"], r"heldout\.jsonl names a split and part\.jsonl does not"),
        (
            ["mydata.jsonl", "testset.jsonl"],
            r"testset\.jsonl names a split and mydata\.jsonl does not",
        ),
        (
            ["mydata.jsonl", "train/a.jsonl"],
            r"train/a\.jsonl names a split and mydata\.jsonl does not",
        ),
        (
            ["dev.jsonl", "test.jsonl"],
            r"holds the splits test, validation; name the file that is meant, such as "
            r".*test\.jsonl",
        ),
    ],
)
def test_a_folder_in_which_it_is_open_what_is_meant_is_refused(tmp_path, names, told):
    with pytest.raises(DataError, match=told):
        read_rows(str(fill(tmp_path, *names)))


def test_a_suite_takes_no_split_of_itself(tmp_path):
    with pytest.raises(
        DataError,
        match=r"holds the splits test, train; name the file that is meant, such as .*test\.jsonl",
    ):
        read_suite(str(fill(tmp_path, "train.jsonl", "test.jsonl")), name="typical")


def test_what_a_folder_holds_and_is_not_read_is_named(tmp_path):
    fill(tmp_path, "a.jsonl", "b.xlsx", "README.md", "notes.txt", ".hidden", "old/c.jsonl")
    files, notes = files_of(tmp_path, READERS)
    assert [path.name for path in files] == ["a.jsonl"]
    assert notes == [
        f"{tmp_path}: left aside, for files that lie nearer are read: old/",
        f"{tmp_path}: skipped, for they are no rows that can be read: b.xlsx, notes.txt",
    ]
    assert split_of("train-test.jsonl") is None


def notes_of(folder: Path) -> list[str]:
    return [note for note in survey(str(folder), "auto", {}, {}, [], None) if str(folder) in note]


def test_the_files_that_are_read_together_are_named_with_their_rows(tmp_path):
    pairs = [{"prompt": f"do {i}", "completion": "red"} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    assert notes_of(tmp_path) == []
    (tmp_path / "more.jsonl").write_text(json.dumps({"prompt": "go", "completion": "blue"}) + "\n")
    assert notes_of(tmp_path) == [
        f"{tmp_path}: read together: data.jsonl (8 rows), more.jsonl (1 rows)"
    ]
    (tmp_path / "data.csv").write_text(
        "id,prompt,completion\n" + "".join(f"{i},do {i},red\n" for i in range(6))
    )
    assert notes_of(tmp_path) == [
        f"{tmp_path}: read together: data.csv (6 rows), data.jsonl (8 rows), more.jsonl (1 rows)",
        f"{tmp_path}: 6 of 15 rows stand in two files, such as data.csv and data.jsonl, "
        "and count twice; take one of the files out",
    ]


@pytest.mark.parametrize("column", ["label", "kto_tag", "train", "chosen", "weight"])
@pytest.mark.parametrize("no", [False, 0, 0.0, "False", "FALSE", "false ", "0", "0.0", "no", "No"])
def test_answers_that_are_not_wanted_are_refused_in_any_spelling(column, no):
    with pytest.raises(DataError, match=f"field '{column}' is {no}"):
        split_row({"prompt": "a", "completion": "b", column: no}, "prompt-completion")
    split_row(
        {"prompt": "a", "completion": "b", column: {"no": "yes", "0": "1"}.get(str(no), True)},
        "prompt-completion",
    )
    with pytest.raises(DataError, match="not wanted"):
        split_row(
            {
                "prompt": "a",
                "completion": "b",
                "rejected": {"No": "Yes", "0": "1"}.get(str(no), True),
            },
            "prompt-completion",
        )


# -- text ----------------------------------------------------------------------------------------


def test_a_csv_cell_may_be_a_whole_document(tmp_path):
    long = "play " * 300_000
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion"], [long, "stop"]])
    assert read_rows(str(tmp_path / "a.csv")) == [{"prompt": long, "completion": "stop"}]


NO_TEXT = {
    "half.jsonl": (
        b'{"text": "a"}\n{"text": "a \\ud83d b"}\n',
        r"half\.jsonl:2: field 'text' holds half a character \(\\ud83d",
    ),
    "raw.jsonl": (b'{"text": "\xed\xa0\xbd"}\n', r"raw\.jsonl:1: not UTF-8"),
    "deep.json": (
        b'[{"messages": [{"role": "user", "content": "\\udc00"}]}]',
        r"deep\.json, row 1: field 'messages' holds half",
    ),
    "nul.jsonl": (b'{"text": "a\\u0000b"}\n', r"nul\.jsonl:1: field 'text' holds a NUL"),
    "nul.csv": (b"text,more\nlonger,a\nlo\x00nger,b\n", r"nul\.csv:3: field 'text' holds a NUL"),
    "wide.jsonl": (
        '{"text": "a"}\n'.encode("utf-16"),
        r"wide\.jsonl: not UTF-8 but UTF-16 or UTF-32",
    ),
    "wide.csv": ("text\na\n".encode("utf-16-le"), r"wide\.csv: not UTF-8 but UTF-16 or UTF-32"),
    "twice.jsonl": (
        b'{"text": "a", "text": "b"}\n',
        r"twice\.jsonl:1: key 'text' stands twice in one object",
    ),
    "inner.json": (
        b'[{"messages": [{"role": "user", "content": "a", "content": "b"}]}]',
        r"inner\.json: key 'content' stands twice",
    ),
    "depth.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n", r"depth\.jsonl:1: nested too deeply"),
    "digits.jsonl": (
        b'{"text": ' + b"9" * 5_000 + b"}\n",
        r"digits\.jsonl:1: a whole number of 5,000 digits",
    ),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_what_is_no_text_is_refused_with_its_place(tmp_path, name):
    content, told = NO_TEXT[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(error.value) and str(error.value).isascii()


def test_marks_and_line_ends_of_other_systems(tmp_path):
    line = b'{"text": "\xc3\xa9"}'
    # two files in one
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + line + b"\r\n" + b"\xef\xbb\xbf" + line + b"\r\n"
    )
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[" + line + b"]")
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\r\n\xc3\xa9\r\n")
    for name, count in (("a.jsonl", 2), ("a.json", 1), ("a.csv", 1)):
        assert read_rows(str(tmp_path / name)) == [{"text": "é"}] * count


def test_columns_of_a_parquet_file_do_not_hide_each_other(tmp_path):
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column 'text' stands twice"):
        read_rows(str(tmp_path / "a.parquet"))


def test_nulls_that_parquet_fills_in_are_no_keys(tmp_path):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0, "name": "x"},
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"messages": turns, "tools": None}]), tmp_path / "a.parquet"
    )
    assert read_rows(str(tmp_path / "a.parquet")) == [{"messages": turns, "tools": None}]


PAIRS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def test_what_stands_beside_the_rows_of_a_json_file_is_told_and_other_rows_are_refused(tmp_path):
    path, note = tmp_path / "d.json", "keys beside the rows that are not read: system, version"
    path.write_text(json.dumps({"system": "Be terse.", "data": PAIRS, "version": 2}))
    assert len(read_rows(str(path))) == 2
    for source in (path, tmp_path):
        assert [n for n in aside(str(source)) if n.endswith(note)] == [f"{path}: {note}"]
    for plain in (PAIRS, {"data": PAIRS}):
        path.write_text(json.dumps(plain))
        assert not aside(str(path))
    path.write_text("\n".join(map(json.dumps, PAIRS)))
    assert not aside(str(path)) and len(read_rows(str(path))) == 2
    path.write_text(json.dumps({"data": PAIRS, "validation": PAIRS[:1], "system": "Be terse."}))
    with pytest.raises(DataError, match='d.json: keys "data" and "validation" hold rows; write'):
        read_rows(str(path))


def test_predictions_tell_and_refuse_the_same(tmp_path):
    rows = [{"run": r, "id": q, "output": "A"} for r in range(3) for q in range(2)]
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"data": rows, "model": "m"}))
    assert any(n.endswith("not read: model") for n in read_predictions(path).notes)
    path.write_text(json.dumps({"data": rows, "results": rows}))
    with pytest.raises(PredictionsError, match='keys "data" and "results" hold rows'):
        read_predictions(path)
