"""Conversations reach the chat template whole: system, tools, history and every key of a turn, or
are refused in one line.
"""

import json
import os

import pytest
from helpers.chats import ASSISTANT, CHATML, SYSTEM, USER, bpe, learned, make

from toolkit.data import (
    DataError,
    encode_prompt,
    encode_reference,
    encode_rows,
    read_rows,
    read_suite,
    survey,
)

__all__ = ["bpe"]

WHOLE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson "
    "}}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.day "
    "}}){% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = {"type": "function", "function": {"name": "alarm", "arguments": {"day": "seven"}}}
TOOL = {"type": "function", "function": {"name": "alarm"}}


@pytest.fixture
def chat(bpe):
    tokenizer = make(bpe, "chat")
    tokenizer.chat_template = WHOLE
    return tokenizer


def same(row: dict, other: dict, tokenizer) -> None:
    first, second = (encode_rows([one], tokenizer, max_length=900)[0] for one in (row, other))
    assert (first.ids, first.loss_mask) == (second.ids, second.loss_mask)


def turns(*pairs: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_system_tools_and_history_are_turns_and_tools(chat):
    shown = turns(("user", "a"), ("assistant", "b"))
    told = {"messages": [{"role": "system", "content": "s"}, *shown], "tools": [TOOL]}
    sharegpt = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for tools in (
        [TOOL],
        json.dumps([TOOL]),
        [TOOL["function"]],
        json.dumps([TOOL["function"]]),
        [json.dumps(TOOL)],
    ):
        same({"conversations": sharegpt, "system": "s", "tools": tools}, told, chat)
        same({"messages": shown, "system": "s", "tools": tools}, told, chat)
        same({"instruction": "a", "output": "b", "system": "s", "tools": tools}, told, chat)
    prompt = {"prompt": shown[:1], "completion": shown[1:], "system": "s", "tools": [TOOL]}
    same(prompt, told, chat)
    history = {
        "instruction": "c",
        "input": "",
        "output": "d",
        "history": [["a", "b"]],
        "system": None,
    }
    same(history, {"messages": [*shown, *turns(("user", "c"), ("assistant", "d"))]}, chat)
    same(history | {"history": json.dumps([["a", "b"]])}, history, chat)
    (example,) = encode_rows([history], chat, max_length=400)
    # as LLaMA-Factory learns the answers of a history
    assert learned(example, chat) == "b<|im_end|>d<|im_end|>"


def test_the_template_sees_every_key_of_a_turn(chat):
    row = {"messages": [USER, {"role": "assistant", "content": "b", "reasoning_content": "hm"}]}
    (example,) = encode_rows([row], chat, max_length=400)
    assert learned(example, chat) == "<think>hm</think>b<|im_end|>"
    called = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "ok"},
            ASSISTANT,
        ]
    }
    (example,) = encode_rows([called], chat, max_length=400)
    assert learned(example, chat) == "alarm(seven)<|im_end|>alarm(seven)<|im_end|>"
    as_text = json.loads(json.dumps(called))
    as_text["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"day": "seven"}'
    same(as_text, called, chat)
    sharegpt = [
        {"from": "human", "value": USER["content"]},
        {"from": "function_call", "value": '{"name": "alarm", "arguments": {"day": "seven"}}'},
        {"from": "observation", "value": "ok"},
        {"from": "gpt", "value": ASSISTANT["content"]},
    ]
    same({"conversations": sharegpt}, called, chat)


def test_parts_that_are_text_are_a_text(chat):
    parts = [
        {"type": "text", "text": "wake me "},
        {"type": "text", "text": "at seven", "image_url": None},
    ]
    same(
        {"messages": [{"role": "user", "content": parts}, ASSISTANT]},
        {"messages": [USER, ASSISTANT]},
        chat,
    )


@pytest.mark.parametrize("key", ["weight", "train", "training"])
def test_a_turn_that_does_not_count_is_not_in_the_loss(chat, key):
    first, last = {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "d"}
    user = turns(("user", "c"))
    for a, b, expected in (
        (0, 1, "d<|im_end|>"),
        (1, 0, "b<|im_end|>"),
        (True, None, "b<|im_end|>d<|im_end|>"),
        (1.0, False, "b<|im_end|>"),
    ):
        row = {"messages": [USER, {**first, key: a}, *user, {**last, key: b}]}
        (example,) = encode_rows([row], chat, max_length=400)
        assert learned(example, chat) == expected
        assert (
            example.ids
            == encode_rows([{"messages": [USER, first, *user, last]}], chat, max_length=400)[0].ids
        )
    with pytest.raises(DataError, match="no turn of 'messages' counts in the loss"):
        encode_rows([{"messages": [USER, {**first, key: 0}]}], chat, max_length=400)


BAD = [
    (
        {"messages": [USER, ASSISTANT | {"weight": 0.5}]},
        r"turn 2: 'weight' must be 0 or 1 \(false or true\), not 0\.5",
    ),
    (
        {"messages": [USER | {"train": True}, ASSISTANT]},
        r"turn 1: 'train' asks to learn what the user says",
    ),
    (
        {"messages": [USER, ASSISTANT | {"train_detail": [1]}]},
        r"turn 2: 'train_detail': parts of a turn cannot be left out",
    ),
    (
        {"messages": [USER, ASSISTANT], "weight": 0.5},
        r"field 'weight' is 0\.5, and all rows weigh the same here",
    ),
    (
        {"prompt": "a", "completion": "b", "sample_weight": "2"},
        r"field 'sample_weight' is 2, and all rows",
    ),
    (
        {"prompt": "a", "completion": "b", "label": False},
        r"labelled as an answer that is not wanted",
    ),
    (
        {"prompt": "a", "completion": "b", "system": "s"},
        r"field 'system' is for conversations, and 'prompt' is plain text",
    ),
    (
        {"messages": [USER, ASSISTANT], "images": ["a.png"]},
        r"field 'images': training is on text alone",
    ),
    (
        {"messages": [USER | {"content": [{"type": "image_url"}]}, ASSISTANT]},
        r"turn 1: part 1 of 'content' is 'image_url'",
    ),
    (
        {"messages": [SYSTEM, USER, ASSISTANT], "system": "other"},
        r"has a field 'system' and a first turn of that role, which differ",
    ),
    ({"messages": [USER, ASSISTANT], "tools": "alarm"}, r"field 'tools' is text that is no JSON"),
    (
        {"messages": [USER, ASSISTANT], "tools": [{"type": "search"}]},
        r"field 'tools', tool 1: must be",
    ),
    (
        {"instruction": "a", "output": "b", "history": [["a"]]},
        r"field 'history', entry 1: must be \[question, answer\]",
    ),
    ({"instruction": "a", "output": float("nan")}, r"field 'output' must be text, not float"),
    (
        {
            "conversations": [
                {"from": "human", "value": "a", "role": "user"},
                {"from": "gpt", "value": "b"},
            ]
        },
        r"has 'from' and 'role'",
    ),
    (
        {"messages": [USER, ASSISTANT], "chat_template_kwargs": {"tokenize": True}},
        r"'tokenize' is not for a row to say",
    ),
]


@pytest.mark.parametrize(("row", "told"), BAD)
def test_what_training_does_not_do_is_refused_in_one_line(chat, tmp_path, row, told):
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=rf"t\.jsonl:1: .*{told}") as error:
        encode_rows(read_rows(str(tmp_path / "t.jsonl")), chat, max_length=400)
    assert "\n" not in str(error.value)


def test_nan_is_a_missing_cell(chat):
    row = {
        "instruction": "a",
        "input": float("nan"),
        "output": "b",
        "system": float("nan"),
        "history": float("nan"),
    }
    same(row, {"instruction": "a", "output": "b"}, chat)


@pytest.mark.parametrize("kind", ["plain", "chat"])
@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [USER, ASSISTANT], "tools": [TOOL]}, "field 'tools' would reach no token"),
        (
            {"messages": [USER, {"role": "assistant", "content": "b", "tool_calls": [CALL]}]},
            "turn 2: its tool calls would reach no token",
        ),
    ],
)
def test_tools_that_the_base_cannot_write_are_refused(bpe, kind, row, told):
    tokenizer = make(bpe, kind)
    with pytest.raises(DataError, match=told):
        encode_rows([row], tokenizer, max_length=400)


def test_a_suite_gives_the_template_what_training_gives_it(chat, tmp_path):
    asked = [{"role": "user", "content": "a", "name": "x"}]
    row = {
        "messages": [*asked, ASSISTANT],
        "system": "s",
        "tools": [TOOL],
        "chat_template_kwargs": {"style": "short"},
    }
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n")
    chat.chat_template = WHOLE.replace("{{ m.content }}", "{{ m.name }}{{ style }}{{ m.content }}")
    (prompt,) = read_suite(str(tmp_path / "s.jsonl"), name="typical", chat=True)
    (example,) = encode_rows([row], chat, max_length=400)
    assert encode_prompt(prompt, chat) == example.prompt_ids
    assert encode_reference(prompt, prompt.reference or "", chat) == example.ids[example.n_prompt :]
    assert prompt.to_dict()["given"] == {"style": "short", "tools": [TOOL]}
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a", "system": "s", "tools": [TOOL]}))
    (plain,) = read_suite(str(tmp_path / "p.jsonl"), name="typical", chat=True)
    assert plain.prompt == turns(("system", "s"), ("user", "a")) and plain.given == {
        "tools": [TOOL]
    }
    with pytest.raises(
        DataError, match="'system' is for conversations, and 'prompt' is plain text"
    ):
        read_suite(str(tmp_path / "p.jsonl"), name="typical")


def test_thoughts_need_a_template_that_is_told_to_think(chat):
    chat.chat_template = CHATML.replace(
        "assistant\n{% endif %}",
        "assistant\n{% if not enable_thinking %}<think></think>{% endif %}{% endif %}",
    )
    chat.chat_template = chat.chat_template.replace(
        "{{ m['content'] }}",
        "{% if m.role == 'assistant' %}<think>{{ m.reasoning_content "
        "}}</think>{% endif %}{{ m['content'] }}",
    )
    row = {"messages": [USER, ASSISTANT | {"reasoning_content": "hm"}]}
    with pytest.raises(
        DataError,
        match=r"'reasoning_content' give rows and suites the field .*\"enable_thinking\": true",
    ):
        encode_rows([row], chat, max_length=400)
    (example,) = encode_rows(
        [row | {"chat_template_kwargs": {"enable_thinking": True}}], chat, max_length=400
    )
    assert learned(example, chat).startswith("<think>hm</think>")


# -- the date ------------------------------------------------------------------------------------


def test_a_template_is_told_the_day_of_the_run(chat, tmp_path):
    chat.chat_template = "Today {{ strftime_now('%d %b %Y %H') }}. " + WHOLE
    row = {"messages": [USER, ASSISTANT]}
    (example,) = encode_rows([row], chat, max_length=400, date="2024-07-26")
    assert example.prompt.startswith("Today 26 Jul 2024 00. ")
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = read_suite(str(tmp_path / "s.jsonl"), name="typical", date="2024-07-26")
    assert encode_prompt(prompt, chat) == example.prompt_ids
    chat.chat_template = (
        "\n{% macro m() %}{{ strftime_now('%-d %e %B %A %Y-%m-%d %H:%M:%S %j 100%% %y') "
        "}}{% endmacro %}{{ m() }}|" + WHOLE
    )
    (example,) = encode_rows([row], chat, max_length=400, date="2024-07-06")
    assert example.prompt.startswith(
        "\n6  6 July Saturday 2024-07-06 00:00:00 188 100% 24|<|im_start|>user"
    )
    (plain,) = encode_rows(
        [{"prompt": "a", "completion": "b"}], chat, max_length=400, date="2024-07-26"
    )
    assert plain.prompt == "a"


# -- what is not used ----------------------------------------------------------------------------


def surveyed(
    tmp_path, rows: list[dict], asked: list[dict], tokenizer, length: int = 400
) -> list[str]:
    train, suite = tmp_path / "train.jsonl", tmp_path / "suite.jsonl"
    for path, content in ((train, rows), (suite, asked)):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    prompts = {"typical": read_suite(str(suite), name="typical", chat="messages" in rows[0])}
    examples = encode_rows(read_rows(str(train)), tokenizer, max_length=length)
    return survey(str(train), "auto", {"typical": str(suite)}, prompts, examples, tokenizer)


def test_columns_and_keys_that_nothing_reads_are_named(chat, tmp_path):
    turn = {"role": "assistant", "content": "b", "timestamp": 3, "reasoning_content": "hm"}
    rows = [
        {"messages": [USER, turn], "id": 1, "source": "web", "note": None},
        {"messages": [USER, ASSISTANT], "id": 2},
    ]
    notes = surveyed(tmp_path, rows, [{"prompt": "other", "difficulty": 3}], chat)
    assert notes == [
        "training rows: columns that are not used: id, source (in 1 of 2 rows)",
        "training rows: keys of turns that reach no token, for the base has no use for "
        "them: timestamp (in 1 of 2 rows)",
        "suite typical: columns that are not used: difficulty",
    ]
    asked = [
        {
            "messages": [USER | {"name": "x", "weight": 1}],
            "chat_template_kwargs": {"enable_thinking": True, "mood": "calm"},
        }
    ]
    chat.chat_template = WHOLE.replace(
        "assistant\n{% endif %}",
        "assistant\n{% if not enable_thinking %}<think>{% endif %}{% endif %}",
    )
    (note,) = surveyed(tmp_path, [{"text": "a text"}], asked, chat)
    assert (
        note == "suite typical: keys of turns that reach no token, for the base has no use for "
        "them: name, mood"
    )


def test_nothing_is_said_where_all_is_used(chat, tmp_path):
    assert (
        surveyed(
            tmp_path,
            [{"messages": [USER, ASSISTANT], "tools": [TOOL]}],
            [{"prompt": "other", "reference": "x"}],
            chat,
        )
        == []
    )


def test_prompts_that_are_training_rows_are_counted_by_shift(chat, tmp_path):
    asked = [
        {"prompt": USER["content"]},
        {"prompt": f"  {USER['content']}", "shift": "far"},
        {"prompt": "other", "shift": "far"},
        {"prompt": "more", "shift": "near"},
    ]
    said = (
        "prompts that are training rows, too: 1 of 1 typical, 1 of 2 far; they measure what "
        "was learned by heart"
    )
    assert surveyed(tmp_path, [{"messages": [USER, ASSISTANT]}], asked, chat) == [said]
    plain = [{"prompt": USER["content"], "completion": " b"}]
    assert surveyed(tmp_path, plain, asked, chat) == [said]
    assert surveyed(tmp_path, [{"text": f"{USER['content']} => b"}], asked, chat) == [said]


def test_rows_that_are_cut_and_greetings_are_counted(chat, tmp_path):
    long = {"messages": [{"role": "user", "content": "play " * 50}, ASSISTANT]}
    greeting = {"messages": [{"role": "assistant", "content": "hello"}, USER, ASSISTANT]}
    notes = surveyed(
        tmp_path,
        [long, greeting, {"messages": [USER, ASSISTANT]}],
        [{"prompt": "other"}],
        chat,
        length=80,
    )
    assert notes == [
        "first turns of an assistant, which answer nothing and are not learned: 1 of 3 rows",
        "1 of 3 training rows are longer than `data.max_length` and were cut to it",
    ]


def test_a_run_keeps_the_day_on_which_it_began(chat, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from toolkit.pipeline import opening
    from toolkit.recipe import dump_recipe, parse_recipe

    text = (
        "base: embedded\ndtype: float32\ndata: "
        "{train: embedded, suites: {far: embedded}}\nconditions: {lora: {}}\n"
    )
    recipe = parse_recipe(text)
    # the embedded base has no template that asks
    assert opening.resolve_auto(recipe, "cpu", tmp_path).data.date is None
    chat.chat_template = "{{ strftime_now('%Y') }}" + WHOLE
    monkeypatch.setattr(opening, "load_base", lambda *_: SimpleNamespace(tokenizer=chat))
    first = opening.resolve_auto(recipe, "cpu", tmp_path)
    assert first.data.date == opening.date.today().isoformat()
    then = first.model_copy(update={"data": first.data.model_copy(update={"date": "2024-07-26"})})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(then))
    assert opening.resolve_auto(recipe, "cpu", tmp_path).data.date == "2024-07-26"
    # what the recipe says itself wins
    assert opening.resolve_auto(first, "cpu", tmp_path).data.date == first.data.date
    # A run from before dates were written goes on as on the day of its first replica.
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    record = tmp_path / "lora" / "replicas" / "00000" / "replica.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    os.utime(record, (1_700_000_000, 1_700_000_000))
    assert (
        opening.resolve_auto(recipe, "cpu", tmp_path).data.date
        == opening.date.fromtimestamp(1_700_000_000).isoformat()
    )


@pytest.mark.parametrize("day", ["tomorrow", "20240726", "2024-02-30"])
def test_a_date_that_is_none_is_refused(day):
    from toolkit.recipe import RecipeError, parse_recipe

    with pytest.raises(RecipeError, match=r"'data\.date': should be a day as YYYY-MM-DD"):
        parse_recipe(
            f"base: embedded\ndata: {{train: embedded, date: '{day}'}}\nconditions: "
            f"{{lora: {{}}}}\n"
        )
