"""The data layer: every format ends in tokens whose mask is exactly the completion, and bad input
in one clear line.
"""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.chats import ASSISTANT, SYSTEM, USER, learned, make
from rich.text import Text
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
)
from transformers import PreTrainedTokenizerFast

from toolkit.data import (
    DataError,
    check_rule,
    check_tokenizer,
    detect_format,
    encode_prompt,
    encode_rows,
    is_chat,
    parse_answer,
    parse_reference,
    read_rows,
    read_suite,
    render,
)

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

# Like Qwen3: an empty thought stands before the last reply only, and in the generation prompt
# when thinking is off.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ "
    "m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>"
    "\n\n{% endif %}{% endif %}"
)
COUNTING = (
    "{{ messages | length }} turns: {% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
)
REFUSING = "{{ raise_exception('roles must alternate') }}"

MORE = [
    {"role": "user", "content": "and at [bold]nine[/bold]?"},
    {"role": "assistant", "content": "alarm(nine) ✓"},
]
ROWS = {
    "text": {"text": "wake me at seven => alarm(seven)"},
    "prompt-completion": {"prompt": "wake me at seven =>", "completion": " alarm(seven)"},
    "messages": {"messages": [SYSTEM, USER, ASSISTANT]},
    "alpaca": {"instruction": "wake me at seven", "input": "tomorrow", "output": "alarm(seven)"},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": USER["content"]},
            {"from": "gpt", "value": ASSISTANT["content"]},
        ]
    },
}
TOKENIZERS = ("plain", "chat", "bos", "chat-bos", "closes-prompts")


def prompt_of(fmt: str):
    """The prompt that a suite has for the row of a format."""
    row = ROWS[fmt]
    return {
        "prompt-completion": row.get("prompt"),
        "messages": [SYSTEM, USER],
        "alpaca": [{"role": "user", "content": "wake me at seven\n\ntomorrow"}],
        "sharegpt": [USER],
    }[fmt]


# --- tokens and masks


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("fmt", [fmt for fmt in ROWS if fmt != "text"])
def test_the_loss_is_on_the_completion_and_evaluation_sees_the_prompt_of_training(
    bpe, kind, fmt, tmp_path
):
    tokenizer = make(bpe, kind)
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[fmt]))
    rows = read_rows(str(tmp_path / "train.jsonl"))
    assert detect_format(rows) == fmt
    (example,) = encode_rows(rows, tokenizer, max_length=200)
    completion = " alarm(seven)" if fmt == "prompt-completion" else "alarm(seven)"
    assert learned(example, tokenizer) == completion + tokenizer.eos_token
    assert example.loss_mask == [False] * example.n_prompt + [True] * (
        len(example.ids) - example.n_prompt
    )
    assert example.prompt_ids == encode_prompt(prompt_of(fmt), tokenizer)
    assert example.ids.count(tokenizer.bos_token_id) == (
        kind in ("bos", "chat-bos", "closes-prompts")
    )
    assert example.ids[example.n_prompt :].count(tokenizer.eos_token_id) == 1
    assert not example.truncated
    # The same row as a suite gives the same prompt and the completion as reference.
    (prompt,) = read_suite(str(tmp_path / "train.jsonl"), name="typical", chat=is_chat(rows))
    assert encode_prompt(prompt.prompt, tokenizer) == example.prompt_ids
    assert prompt.reference == completion


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_is_learned_whole(bpe, kind):
    tokenizer = make(bpe, kind)
    (example,) = encode_rows([ROWS["text"]], tokenizer, max_length=200)
    assert example.n_prompt == 0 and example.prompt_ids == []
    # nothing precedes position 0
    assert example.loss_mask == [False] + [True] * (len(example.ids) - 1)
    assert (
        example.ids[-1] == tokenizer.eos_token_id and example.ids.count(tokenizer.eos_token_id) == 1
    )
    assert tokenizer.decode(example.ids, skip_special_tokens=True) == ROWS["text"]["text"]


def test_every_assistant_turn_is_learned_and_nothing_behind_its_end(bpe):
    for kind, expected in (
        ("chat", "alarm(seven)<|im_end|>alarm(nine) ✓<|im_end|>"),
        ("bos", "alarm(seven)alarm(nine) ✓</s>"),
    ):
        tokenizer = make(bpe, kind)
        (example,) = encode_rows(
            [{"messages": [SYSTEM, USER, ASSISTANT, *MORE]}], tokenizer, max_length=400
        )
        assert learned(example, tokenizer) == expected
        assert example.prompt_ids == encode_prompt([SYSTEM, USER, ASSISTANT, MORE[0]], tokenizer)


def test_message_lists_as_prompt_and_completion_learn_the_completion_only(bpe):
    tokenizer = make(bpe, "chat")
    row = {"prompt": [USER, ASSISTANT, MORE[0]], "completion": [MORE[1]]}
    (example,) = encode_rows([row], tokenizer, max_length=400)
    assert learned(example, tokenizer) == "alarm(nine) ✓<|im_end|>"
    assert (
        is_chat([row]) and not is_chat([ROWS["prompt-completion"]]) and not is_chat([ROWS["text"]])
    )


def test_an_assistants_greeting_is_not_learned(bpe):
    tokenizer = make(bpe, "chat")
    (example,) = encode_rows(
        [{"messages": [{"role": "assistant", "content": "hello"}, USER, ASSISTANT]}],
        tokenizer,
        max_length=400,
    )
    assert learned(example, tokenizer) == "alarm(seven)<|im_end|>"


def test_prompts_equal_those_of_apply_chat_template(bpe):
    tokenizer = make(bpe, "chat-bos")
    messages = [SYSTEM, USER, ASSISTANT, MORE[0]]
    expected = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert encode_prompt(messages, tokenizer) == expected


def test_without_a_template_a_conversation_stands_under_headings(bpe):
    (example,) = encode_rows([ROWS["messages"]], make(bpe), max_length=200)
    assert (
        example.prompt
        == "### System:\nyou are a clock\n\n### Instruction:\nwake me at seven\n\n### Response:\n"
    )
    assert example.completion == "alarm(seven)"


def test_an_empty_thought_belongs_to_the_prompt(bpe):
    tokenizer = make(bpe, "chat")
    tokenizer.chat_template = THINKING
    (example,) = encode_rows([ROWS["messages"]], tokenizer, max_length=200)
    assert learned(example, tokenizer) == "alarm(seven)<|im_end|>"
    assert example.prompt.endswith("</think>\n\n")
    row = {"prompt": [USER, ASSISTANT, MORE[0]], "completion": [MORE[1]]}
    assert encode_rows([row], tokenizer, max_length=400)[0].prompt_ids == encode_prompt(
        row["prompt"], tokenizer
    )


def test_an_end_token_that_the_template_does_not_write_is_added(bpe):
    tokenizer = make(bpe, "chat", eos_token="</s>")
    (example,) = encode_rows([ROWS["messages"]], tokenizer, max_length=200)
    assert learned(example, tokenizer) == "alarm(seven)<|im_end|>\n</s>"


def test_bos_and_eos_that_the_text_holds_are_not_doubled(bpe):
    tokenizer = make(bpe, "bos")
    (example,) = encode_rows(
        [{"prompt": "<s>wake", "completion": " alarm</s>"}], tokenizer, max_length=50
    )
    assert tokenizer.decode(example.ids) == "<s>wake alarm</s>"


def test_without_an_end_token_nothing_is_appended(bpe):
    tokenizer = make(bpe, eos_token=None)
    (example,) = encode_rows([ROWS["prompt-completion"]], tokenizer, max_length=50)
    assert learned(example, tokenizer) == " alarm(seven)"


@pytest.mark.parametrize("kind", ["plain", "bos"])
def test_a_long_prompt_loses_its_beginning(bpe, kind):
    tokenizer = make(bpe, kind)
    (whole,) = encode_rows([ROWS["prompt-completion"]], tokenizer, max_length=200)
    for length in range(2, len(whole.ids) + 2):
        (example,) = encode_rows([ROWS["prompt-completion"]], tokenizer, max_length=length)
        assert example.truncated == (length < len(whole.ids)) and len(example.ids) == min(
            length, len(whole.ids)
        )
        assert len(example.loss_mask) == len(example.ids) and not any(
            example.loss_mask[: example.n_prompt]
        )
        completion = whole.ids[whole.n_prompt :]
        kept = example.ids[example.n_prompt :]
        assert kept == completion[: len(kept)] and example.n_prompt >= 1
        if length > len(completion):
            assert kept == completion
        if kind == "bos":
            assert example.ids[0] == tokenizer.bos_token_id
        tail = example.ids[kind == "bos" : example.n_prompt]
        assert tail == whole.prompt_ids[len(whole.prompt_ids) - len(tail) :]


def test_a_long_text_loses_its_end_and_long_turns_keep_mask_and_ids_together(bpe):
    (text,) = encode_rows([ROWS["text"]], make(bpe), max_length=4)
    assert text.truncated and text.ids == encode_prompt(ROWS["text"]["text"], make(bpe))[:4]
    tokenizer = make(bpe, "chat-bos")
    row = {"messages": [USER, ASSISTANT, *MORE]}
    (whole,) = encode_rows([row], tokenizer, max_length=400)
    (cut,) = encode_rows([row], tokenizer, max_length=len(whole.ids) - 5)
    assert (
        cut.ids == whole.ids[:1] + whole.ids[6:]
        and cut.loss_mask == whole.loss_mask[:1] + whole.loss_mask[6:]
    )


def test_random_conversations_keep_prompt_and_completion(bpe):
    hypothesis = pytest.importorskip("hypothesis")
    text = hypothesis.strategies.text(min_size=1).filter(str.strip)

    @hypothesis.settings(max_examples=100, deadline=None)
    @hypothesis.given(prompt=text, completion=text)
    def law(prompt, completion):
        for kind in ("bos", "chat"):
            tokenizer = make(bpe, kind)
            (example,) = encode_rows(
                [{"prompt": prompt, "completion": completion}], tokenizer, max_length=10_000
            )
            assert example.prompt_ids == encode_prompt(prompt, tokenizer)
            assert learned(example, tokenizer) == completion + tokenizer.eos_token
            render(example, tokenizer)

    law()


# --- for the eye


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_render_shows_the_mask_and_escapes_markup(bpe, kind):
    tokenizer = make(bpe, kind)
    row = {"prompt": "say [bold]é[/bold]\n", "completion": " 漢 [red]\\"}
    (example,) = encode_rows([row], tokenizer, max_length=200)
    plain = render(example, tokenizer)
    assert (
        plain.replace("|", "")
        .replace("↵", "")
        .startswith(tokenizer.decode(example.prompt_ids) + "⟦")
    )
    assert "漢" in plain and "\N{REPLACEMENT CHARACTER}" not in plain and plain.count("⟦") == 1
    assert Text.from_markup(render(example, tokenizer, markup=True)).plain == plain


def test_render_turn_by_turn(bpe):
    tokenizer = make(bpe, "chat")
    (example,) = encode_rows([{"messages": [USER, ASSISTANT, *MORE]}], tokenizer, max_length=400)
    plain = render(example, tokenizer)
    assert plain.count("⟦") == 2 and plain.endswith("<|im_end|>⟧")
    assert Text.from_markup(render(example, tokenizer, markup=True)).plain == plain


# --- sources


def write(path: Path, rows: list[dict]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8-sig")
    elif path.suffix == ".json":
        path.write_text(json.dumps({"data": rows} if "data" in path.stem else rows, indent=1))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                for row in rows
            )
    return str(path)


@pytest.mark.parametrize("fmt", ROWS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "data.json", "a.csv", "a.parquet"])
def test_every_format_comes_back_from_every_kind_of_file(tmp_path, name, fmt):
    rows = [ROWS[fmt]] * 3
    read = read_rows(write(tmp_path / name, rows))
    assert read == rows and detect_format(read) == fmt
    last = {".jsonl": ":5", ".csv": ":4"}.get(Path(name).suffix, ", row 3")
    assert read[-1].where == f"{tmp_path / name}{last}"


def test_cells_and_lines_keep_their_text(tmp_path):
    hard = {"prompt": 'a "quoted", comma\nnext line\u2028still', "completion": "007"}
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert read_rows(write(tmp_path / name, [hard])) == [hard]


def test_a_folder_is_its_files_in_order(tmp_path):
    write(tmp_path / "b.csv", [{"text": "three"}])
    write(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    (tmp_path / "README.md").write_text("not data")
    assert [row["text"] for row in read_rows(str(tmp_path))] == ["one", "two", "three"]


def test_a_json_file_may_hold_lines(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert [row.where.rpartition(":")[2] for row in read_rows(str(tmp_path / "a.json"))] == [
        "1",
        "2",
    ]


def test_a_hub_data_set_takes_configuration_and_split(monkeypatch):
    calls = []

    class Hub:
        @staticmethod
        def load_dataset(path, name=None, split=None, trust_remote_code=None):
            assert trust_remote_code is False
            calls.append((path, name, split))
            return [{"text": "one"}]

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    assert read_rows("owner/set")[0].where == "owner/set, row 1"
    read_rows("owner/set:test")
    read_rows("owner/set:main:test")
    assert calls == [
        ("owner/set", None, "train"),
        ("owner/set", None, "test"),
        ("owner/set", "main", "test"),
    ]


def test_a_hub_data_set_that_cannot_be_had_is_one_line(monkeypatch):
    class Hub:
        @staticmethod
        def load_dataset(path, name=None, split=None, trust_remote_code=None):
            raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    with pytest.raises(
        DataError,
        match=r"^owner/set: neither a file here .*: Couldn't reach the Hub \(ConnectionError\)$",
    ):
        read_rows("owner/set")
    monkeypatch.setitem(sys.modules, "datasets", None)  # not installed
    with pytest.raises(DataError, match="pip install datasets"):
        read_rows("owner/set")


def test_alpaca_with_a_ready_made_text_column_is_alpaca():
    assert detect_format([ROWS["alpaca"] | {"text": "..."}]) == "alpaca"


BAD_FILES = {
    "broken.jsonl": (
        b'{"text": "a"}\n\n{"text": \n',
        r"broken\.jsonl:3: broken JSON at column \d+",
    ),
    "list.jsonl": (
        b'{"text": "a"}\n["b"]\n',
        r"list\.jsonl:2: a row is an object with named fields",
    ),
    "latin.jsonl": (
        '{"text": "a"}\n{"text": "é"}\n'.encode("latin-1"),
        r"latin\.jsonl:2: not UTF-8",
    ),
    "empty.jsonl": (b"\n \n", r"empty\.jsonl: no rows"),
    "broken.json": (b'[{"text": "a"},\n{"text" "b"}]', r"broken\.json:2: broken JSON"),
    "object.json": (b'{"rows": []}', r'object\.json: expected a list of objects, or \{"data"'),
    "numbers.json": (b"[1]", r"numbers\.json, row 1: a row is an object"),
    "wide.csv": (b"prompt,completion\na,b\na,b,c\n", r"wide\.csv:3: 3 fields, the header has 2"),
    "quote.csv": (b'text\n"a" b\n', r"quote\.csv:2: broken CSV"),
    "twice.csv": (b"text,text\na,b\n", r"twice\.csv:1: column 'text' stands twice"),
    "turns.csv": (b"messages\nhello\n", r"turns\.csv:2: field 'messages' must be a JSON list"),
    "latin.csv": ("text\né\n".encode("latin-1"), r"latin\.csv: not UTF-8"),
    "header.csv": (b"text\n", r"header\.csv: no rows"),
    "not.parquet": (b"hello", r"not\.parquet: not a Parquet file"),
    "data.xlsx": (
        b"hello",
        r"data\.xlsx: unknown kind of file; use one of \.jsonl, \.json, \.csv, \.tsv, "
        r"\.parquet, \.arrow",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_broken_file_names_the_line(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_rows(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl: no such file or folder"):
        read_rows("missing.jsonl")
    with pytest.raises(
        DataError, match=r"\.jsonl, \.json, \.csv, \.tsv, \.parquet, \.arrow file in this folder"
    ):
        read_rows(str(tmp_path))


def turns(*pairs: tuple[str, object]) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


BAD_ROWS = [
    (
        {"question": "a", "answer": "b"},
        r"columns question, answer are none of the five formats.*text.*messages.*alpaca.*sharegpt",
    ),
    (ROWS["alpaca"] | ROWS["messages"], r"fit messages and alpaca: keep the columns of one"),
    ({"text": " "}, r"field 'text' is empty"),
    ({"text": None}, r"field 'text' must be text, not NoneType"),
    ({"prompt": "a", "completion": "\n"}, r"field 'completion' is empty; fill it or drop the row"),
    ({"prompt": "", "completion": "b"}, r"field 'prompt' is empty; rows without a prompt"),
    (
        {"prompt": "a", "completion": [ASSISTANT]},
        r"two texts or two lists of turns, not text and a list",
    ),
    (
        {"prompt": [USER], "completion": [ASSISTANT, ASSISTANT]},
        r"'completion' must be one assistant turn, found 2",
    ),
    (
        {"prompt": [USER], "completion": [USER]},
        r"'completion' must end with an assistant turn, not 'user'",
    ),
    ({"instruction": "a", "output": ""}, r"field 'output' is empty"),
    ({"instruction": "a", "input": 3, "output": "b"}, r"field 'input' must be text, not int"),
    ({"messages": []}, r"field 'messages' must be a list of turns"),
    ({"messages": "hello"}, r"field 'messages' must be a list of turns"),
    (turns(("user", "a")), r"'messages' must end with an assistant turn, not 'user'"),
    (turns(("assistant", "a")), r"'messages' has no turn before the assistant's"),
    (turns(("user", "a"), ("assistant", "")), r"last assistant turn of 'messages' is empty"),
    (turns(("human", "a"), ("assistant", "b")), r"turn 1: unknown role 'human'; use one of system"),
    (turns(("user", ["a"]), ("assistant", "b")), r"turn 1: 'content' must be text, not list"),
    ({"messages": [USER, ASSISTANT | {"tool_calls": [1]}]}, r"turn 2: tool call 1 must be"),
    ({"messages": [USER, "hello"]}, r'turn 2: a turn is \{"role": \.\.\., "content": \.\.\.\}'),
    (
        {"conversations": [{"from": "robot", "value": "a"}]},
        r"unknown from 'robot'; use one of human, gpt",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_a_bad_row_names_line_field_and_fix(bpe, tmp_path, row, message):
    path = tmp_path / "train.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(DataError, match=rf"train\.jsonl:2: .*{message}") as error:
        encode_rows(read_rows(str(path)), make(bpe), max_length=50)
    assert "\n" not in str(error.value)


def test_mixed_formats_name_both_rows(bpe, tmp_path):
    rows = read_rows(write(tmp_path / "a.jsonl", [ROWS["text"], ROWS["alpaca"]]))
    with pytest.raises(
        DataError, match=r"a\.jsonl:3: this row is alpaca .*the first row \(.*a\.jsonl:1\) is text"
    ):
        detect_format(rows)
    with pytest.raises(
        DataError, match=r"a\.jsonl:3: field 'text' is missing; the format text needs text"
    ):
        encode_rows(rows, make(bpe), max_length=9, fmt="text")


def test_templates_that_break_the_prefix_are_refused(bpe):
    tokenizer = make(bpe, "chat")
    cases = [
        (COUNTING, [USER, ASSISTANT], "writes the turns before a reply differently"),
        (
            REFUSING,
            [USER, ASSISTANT],
            "the chat template refuses these turns: roles must alternate",
        ),
        (
            THINKING,
            [USER, ASSISTANT, *MORE],
            "rewrites assistant turn 2 once later turns follow.*one prompt-completion row per",
        ),
    ]
    for template, messages, message in cases:
        tokenizer.chat_template = template
        with pytest.raises(DataError, match=message):
            encode_rows([{"messages": messages}], tokenizer, max_length=100)


def test_rows_and_prompts_without_a_token_are_refused(bpe):
    silent = make(bpe, eos_token=None)
    silent.backend_tokenizer.normalizer = normalizers.Replace("q", "")
    with pytest.raises(DataError, match="makes no token of the prompt 'q'"):
        encode_rows([{"prompt": "q", "completion": "a"}], silent, max_length=9)
    with pytest.raises(DataError, match="makes no token of it"):
        encode_prompt("q", silent)
    with pytest.raises(DataError, match="no token to learn"):
        encode_rows([{"text": "x"}], silent, max_length=9)
    with pytest.raises(DataError, match="max_length: 1 leaves no room"):
        encode_rows([ROWS["text"]], silent, max_length=1)
    with pytest.raises(DataError, match="no rows"):
        detect_format([])


# --- suites


def test_a_suite_row_has_its_fields_and_defaults(tmp_path):
    full = {
        "id": "7",
        "prompt": "a =>",
        "category": "c",
        "shift": "far",
        "cluster": "k",
        "reference": "r",
    }
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        (prompt,) = read_suite(write(tmp_path / name, [full]), name="mine")
        assert prompt.to_dict() == full
    path = write(tmp_path / "b.jsonl", [{"prompt": "a", "reference": 42}, {"prompt": "a", "id": 3}])
    first, second = read_suite(path, name="near")
    assert (first.category, first.shift, first.cluster, first.reference) == (
        "near",
        "near",
        first.id,
        "42",
    )
    assert (second.id, second.cluster, second.reference) == ("3", "3", None)
    assert read_suite(path, name="mine")[0].shift == "typical"
    assert read_suite(path, name="mine", chat=True)[0].prompt == [{"role": "user", "content": "a"}]


def test_generated_ids_depend_on_position_and_content(tmp_path):
    one = read_suite(
        write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}]), name="x"
    )
    two = read_suite(
        write(tmp_path / "b.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "b"}]), name="x"
    )
    assert len({prompt.id for prompt in one}) == 3
    assert [p.id == q.id for p, q in zip(one, two, strict=True)] == [True, False, True]


def test_empty_cells_are_missing_fields(tmp_path):
    (tmp_path / "a.csv").write_text("id,prompt,category,shift,cluster,reference\n,a,,,, \n")
    (prompt,) = read_suite(str(tmp_path / "a.csv"), name="far")
    assert (prompt.category, prompt.shift, prompt.cluster, prompt.reference) == (
        "far",
        "far",
        prompt.id,
        None,
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["a"], "reference": [float("nan")]}), tmp_path / "a.parquet"
    )
    assert read_suite(str(tmp_path / "a.parquet"), name="far")[0].reference is None


def test_training_rows_are_prompts_with_a_reference(tmp_path):
    rows = [
        {"messages": [USER]},
        {"messages": [USER, ASSISTANT]},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [SYSTEM, USER]},
        {"instruction": "a", "input": "b"},
        {"conversations": [{"from": "human", "value": "a"}]},
    ]
    prompts = read_suite(write(tmp_path / "a.jsonl", rows), name="x")
    assert [p.reference for p in prompts] == [
        None,
        "alarm(seven)",
        "alarm(seven)",
        None,
        None,
        None,
    ]
    assert [p.prompt for p in prompts] == [
        *([USER], [USER], [USER], [SYSTEM, USER]),
        *([{"role": "user", "content": "a\n\nb"}], [{"role": "user", "content": "a"}]),
    ]


BAD_SUITES = [
    (
        [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}],
        r"suite\.jsonl:3: field 'id': 'x' stands at .*suite\.jsonl:1 already",
    ),
    (
        [{"prompt": "a", "shift": "very far"}],
        r"suite\.jsonl:1: field 'shift': unknown 'very far'; use one of typical, near, far",
    ),
    ([{"prompt": "  "}], r"suite\.jsonl:1: field 'prompt' is empty"),
    ([{"prompt": None}], r"suite\.jsonl:1: field 'prompt' must be text"),
    ([{"text": "a"}], r"suite\.jsonl:1: field 'prompt' is missing \(columns text\)"),
    (
        [{"prompt": "a", "reference": ["b"]}],
        r"suite\.jsonl:1: field 'reference' must be text, not list",
    ),
    (
        [{"messages": [ASSISTANT]}],
        r"suite\.jsonl:1: the prompt must end with a turn that the assistant answers",
    ),
    ([turns(("user", " "))], r"suite\.jsonl:1: the last turn of the prompt is empty"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_SUITES)
def test_a_bad_suite_names_the_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_suite(write(tmp_path / "suite.jsonl", rows), name="mine")


def test_empty_and_unknown_suites(tmp_path):
    (tmp_path / "suite.jsonl").write_text("")
    with pytest.raises(DataError, match=r"suite\.jsonl: no rows"):
        read_suite(str(tmp_path / "suite.jsonl"), name="mine")
    for source, name in (("embedded", "mine"), ("embedded:mine", "far")):
        with pytest.raises(
            DataError,
            match="no embedded suite 'mine'; use one of embedded:typical, embedded:near, "
            "embedded:far",
        ):
            read_suite(source, name=name)


def test_the_embedded_world():
    rows = read_rows("embedded")
    assert detect_format(rows) == "prompt-completion" and rows[0].where == "embedded, row 1"
    trained = {row["prompt"] for row in rows}
    for shift in ("typical", "near", "far"):
        suite = read_suite(f"embedded:{shift}", name="any")
        assert suite == read_suite("embedded", name=shift)
        assert {prompt.shift for prompt in suite} == {shift}
        assert not trained & {str(prompt.prompt) for prompt in suite}


# --- answers


@pytest.mark.parametrize(
    ("rule", "text", "answer"),
    [
        ("text", "  a \n\t b ", "a b"),
        ("first-line", "\n \n a  b \n c", "a b"),
        ("first-line", " ", ""),
        (r"regex:#### (-?\d+)", "so\n#### 72\n#### 73", "72"),
        (r"regex:\d+ +km", "about 12  km", "12 km"),
        (r"regex:(yes)|no", "no", ""),
        (r"regex:#### (\d+)", "seventy two", ""),
        ("embedded", " alarm( time=seven,day=today )", "alarm(day=today,time=seven)"),
    ],
)
def test_parse_answer(rule, text, answer):
    assert parse_answer(text, rule) == answer


def test_a_reference_is_a_text_or_the_bare_answer():
    rule = r"regex:#### (\d+)"
    assert (
        parse_reference("so #### 72", rule)
        == parse_reference("72", rule)
        == parse_reference(" 72 ", "text")
        == "72"
    )
    assert parse_reference(None, rule) is None
    # no answer is never correct
    assert parse_answer("no number", rule) != parse_reference("no number", rule)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("regex:(", "'regex:\\(': the pattern is broken"),
        ("json", "unknown rule 'json'; use one of text, first-line"),
    ],
)
def test_bad_rules(rule, message):
    with pytest.raises(DataError, match=message):
        check_rule(rule)


# --- tokenizers


def test_a_tokenizer_that_differs_from_its_file_is_reported(bpe, tmp_path):
    from transformers import AutoTokenizer

    wrong = Tokenizer.from_str(bpe.to_str())
    wrong.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), wrong.pre_tokenizer]
    )
    wrong.normalizer = normalizers.Lowercase()
    PreTrainedTokenizerFast(
        tokenizer_object=wrong, eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(tmp_path)
    texts = ["Wake me", "wake me"]
    assert check_tokenizer(AutoTokenizer.from_pretrained(tmp_path), texts) == []
    # The trap: the model type names a class, which puts its own normaliser and pre-tokeniser in
    # place of the file's.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("tokenizer_class")
    settings.pop("backend", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (warning,) = check_tokenizer(AutoTokenizer.from_pretrained(tmp_path), texts)
    assert warning.startswith(
        "1 of 2 texts get other ids from Qwen2Tokenizer than from tokenizer.json, first 'Wake me'"
    )


def test_end_padding_and_unknown_tokens_are_noted(bpe):
    assert check_tokenizer(make(bpe), ["wake"]) == []
    assert "no end-of-sequence token" in check_tokenizer(make(bpe, eos_token=None), ["wake"])[0]
    assert "one token" in check_tokenizer(make(bpe, pad_token="</s>"), ["wake"])[0]
    words = Tokenizer(models.WordLevel({"wake": 0, "<unk>": 1, "</s>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert check_tokenizer(tokenizer, ["wake", "sleep"]) == [
        "1 of 2 texts hold characters that the tokenizer does not know, first 'sleep'"
    ]


# --- the CLINC150 recipe


@pytest.fixture(scope="module")
def clinc():
    path = Path(__file__).parents[2] / "recipes" / "intents-clinc150" / "prepare.py"
    spec = importlib.util.spec_from_file_location("prepare_clinc150", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAKE_CLINC = {
    "train": [
        ["freeze my account", "freeze_account"],
        ["book a flight", "flight"],
        ["tell me a joke", "joke"],
    ],
    "val": [["freeze it please", "freeze_account"], ["book a flight", "flight"]],
    "test": [
        ["please freeze everything", "freeze_account"],
        ["tell me a joke", "freeze_account"],
        ["fly me home", "flight"],
        ["hi", "joke"],
    ],
    "oos_train": [["why is the sky blue", "oos"]],
    "oos_val": [],
    "oos_test": [["how tall is it", "oos"]],
}


def test_clinc150_becomes_training_rows_and_suites(clinc, bpe, tmp_path, capsys):
    (tmp_path / "data_full.json").write_text(json.dumps(FAKE_CLINC))
    (tmp_path / "domains.json").write_text(
        json.dumps({"banking": ["freeze_account"], "travel": ["flight"], "talk": ["joke"]})
    )
    out = tmp_path / "out"
    clinc.main(
        [str(tmp_path / "data_full.json"), "--out", str(out), "--domains", "banking, travel"]
    )
    assert f"{out / 'train.jsonl'}: 3 rows" in capsys.readouterr().out
    rows = read_rows(str(out / "train.jsonl"))
    assert [(row["prompt"], row["completion"]) for row in rows] == [
        ("freeze my account\nintent:", " freeze account\n"),
        ("book a flight\nintent:", " flight\n"),
        ("why is the sky blue\nintent:", " none\n"),
    ]
    assert len(encode_rows(rows, make(bpe), max_length=100)) == 3
    suites = {
        name: read_suite(str(out / f"{name}.jsonl"), name=name)
        for name in ("validation", "typical", "near", "far")
    }
    # the other one is a training query
    assert [p.prompt for p in suites["validation"]] == ["freeze it please\nintent:"]
    assert [p.id for p in suites["typical"]] == ["typical-test-0", "typical-test-2"]
    assert [p.category for p in suites["typical"]] == ["banking", "travel"]
    # as in training
    assert [(p.shift, p.reference, p.category) for p in suites["far"]] == [
        ("far", " none\n", "out of scope")
    ]
    for typical, near in zip(suites["typical"], suites["near"], strict=True):
        assert near.prompt != typical.prompt and sorted(str(near.prompt)) == sorted(
            str(typical.prompt)
        )
        assert (near.shift, near.cluster, near.reference) == (
            "near",
            typical.cluster,
            typical.reference,
        )
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    clinc.main([str(tmp_path / "data_full.json"), "--out", str(out), "--domains", "banking,travel"])
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    clinc.main(
        [
            str(tmp_path / "data_full.json"),
            "--out",
            str(out),
            "--domains",
            "banking,travel",
            "--prompts",
            "1",
        ]
    )
    one = {name: read_suite(str(out / f"{name}.jsonl"), name=name) for name in suites}
    assert one["typical"][0] in suites["typical"] and [len(one[name]) for name in suites] == [
        1,
        1,
        1,
        1,
    ]
    # the same queries, and the rows as they were
    assert one["near"][0].cluster == one["typical"][0].cluster
    assert (out / "train.jsonl").read_bytes() == before["train.jsonl"]


def test_clinc150_refuses_what_it_does_not_know(clinc, tmp_path):
    (tmp_path / "data_full.json").write_text(json.dumps(FAKE_CLINC))
    (tmp_path / "domains.json").write_text(json.dumps({"banking": ["freeze_account"]}))
    (tmp_path / "other.json").write_text("{}")
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="unknown domain 'sports'; the domains are banking"):
        clinc.main([str(tmp_path / "data_full.json"), *out, "--domains", "sports"])
    with pytest.raises(SystemExit, match="no 'train'"):
        clinc.main([str(tmp_path / "other.json"), *out])
    with pytest.raises(
        SystemExit, match=r"missing.json: no such file; .*README.md says where to get it"
    ):
        clinc.main([str(tmp_path / "missing.json"), *out])


def test_a_typo_keeps_the_ends_of_words(clinc):
    for query in ("what's the exchange rate", "set an alarm for seven", "ok"):
        assert clinc.typo(query) != query
        assert [word[0] + word[-1] for word in clinc.typo(query).split()] == [
            word[0] + word[-1] for word in query.split()
        ]
