"""Rows to token ids with a loss mask, and prompts to the same ids that training used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from toolkit.data.formats import Fields, detect_format, place, split_row
from toolkit.data.rows import DataError
from toolkit.data.suites import Prompt
from toolkit.data.turns import Message

TEMPLATE_OPTIONS = {"enable_thinking": False}
"""Templates of reasoning models then put their empty thought into the prompt, where it is no part
of what is learned. Other templates ignore it.
"""

NOTHING: Mapping[str, Any] = MappingProxyType({})

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a turn under which templates look for what was thought before a reply."""

HEADINGS = {
    "system": "System",
    "developer": "System",
    "user": "Instruction",
    "assistant": "Response",
    "tool": "Tool",
}
"""A conversation without a chat template is plain text: `### Instruction:`, the text on its own
line, a blank line.
"""


@dataclass(frozen=True)
class Example:
    """One training row in tokens.

    loss_mask: True where predicting the token counts. Never at position 0, which nothing precedes:
    its sum is the number of terms of the loss.
    prompt, completion: the text of both, as rendered and before truncation. truncated: tokens were
    cut.
    """

    ids: list[int]
    loss_mask: list[bool]
    n_prompt: int
    prompt: str
    completion: str
    truncated: bool = False

    @property
    def prompt_ids(self) -> list[int]:
        """What evaluation feeds for the same prompt; all of it unless the row was truncated."""
        return self.ids[: self.n_prompt]


def encode_rows(
    rows: Sequence[Fields],
    tokenizer: Any,
    *,
    max_length: int,
    fmt: str = "auto",
    date: str | None = None,
) -> list[Example]:
    """One example per row, in order. `fmt` is one of FORMATS; `auto` detects it. date: the day
    (YYYY-MM-DD) that a chat template is told when it asks for today's; None: today.

    Prompt and completion are tokenised apart, because a token across their border would not be
    there at generation. An end-of-sequence token closes every completion. The loss is on the
    completion; in `messages`, `sharegpt` and `alpaca` on every assistant turn that does not say
    otherwise (`weight: 0`), in `text` on everything.

    Longer rows keep their completion: the prompt loses its beginning (not the begin-of-sequence
    token); a completion that is too long alone loses its end and leaves the prompt one token. Count
    them by `sum(e.truncated for e in examples)`.

    Raises DataError for a row that its format refuses, or a chat template that cannot be split into
    turns.
    """
    if max_length < 2:
        raise DataError(
            f"max_length: {max_length} leaves no room for a prompt and a completion; use 2 or more"
        )
    fmt = detect_format(rows) if fmt == "auto" else fmt
    given = {"date": date} if date else {}
    return [_encode_row(row, fmt, tokenizer, max_length, given) for row in rows]


def encode_prompt(prompt: Prompt | str | list[Message], tokenizer: Any) -> list[int]:
    """The ids of a prompt, exactly those of training: a string as plain text, messages through the
    chat template.

    Raises DataError when the template refuses the messages, or drops tools or tool calls, or when
    no token is left to start from.
    """
    text = prompt_text(prompt, tokenizer)
    messages, _ = _parts(prompt)
    ids = _prompt_ids(
        text, tokenizer, templated=not isinstance(messages, str) and has_template(tokenizer)
    )
    if not ids:
        raise DataError(f"prompt {text!r}: the tokenizer makes no token of it")
    return ids


def prompt_text(prompt: Prompt | str | list[Message], tokenizer: Any) -> str:
    """A prompt as the model reads it. Raises DataError as `encode_prompt`."""
    messages, given = _parts(prompt)
    if isinstance(messages, str):
        return messages
    where = f"prompt {prompt.id!r}" if isinstance(prompt, Prompt) else "prompt"
    _check_tools(messages, tokenizer, given, where)
    return render_messages(messages, tokenizer, reply=True, where=where, given=given)


def _parts(prompt: Prompt | str | list[Message]) -> tuple[str | list[Message], Mapping[str, Any]]:
    return (prompt.prompt, prompt.given) if isinstance(prompt, Prompt) else (prompt, NOTHING)


def encode_reference(
    prompt: Prompt | str | list[Message], reference: str, tokenizer: Any
) -> list[int]:
    """The ids that training would have put behind this prompt for this reply, end of sequence
    included.

    Raises DataError when the template refuses the messages, or writes the prompt differently once a
    reply follows.
    """
    messages, given = _parts(prompt)
    if isinstance(messages, str):
        text, chat = reference, False
    else:
        _, text = _split_text(
            [*messages, {"role": "assistant", "content": reference}], tokenizer, "reference", given
        )
        chat = True
    return _completion_ids(text, tokenizer, chat=chat)


def render_messages(
    messages: list[Message],
    tokenizer: Any,
    *,
    reply: bool,
    where: str = "prompt",
    given: Mapping[str, Any] = NOTHING,
) -> str:
    """A conversation as text, by the tokenizer's chat template or, without one, under plain
    headings.

    reply: end where the assistant's next turn begins. given: as in `Prompt`. Raises DataError when
    the template refuses the messages.
    """
    if not has_template(tokenizer):
        turns = [f"### {HEADINGS[message['role']]}:\n{message['content']}" for message in messages]
        return "\n\n".join([*turns, "### Response:\n"] if reply else turns)
    options = {key: value for key, value in given.items() if key != "date"}
    if "date" in given and asks_for_the_date(tokenizer):
        template = tokenizer.get_chat_template(tools=given.get("tools"))
        options["chat_template"] = _told(given["date"]) + template
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=reply, **{**TEMPLATE_OPTIONS, **options}
        )
    except (
        Exception
    ) as error:  # a template raises whatever its author chose: TemplateError, TypeError, ...
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: the chat template refuses these turns: {reason}") from None


def asks_for_the_date(tokenizer: Any) -> bool:
    """Whether the chat template writes today's date into what the model reads, which would then
    differ from day to day.
    """
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None))


@lru_cache
def _told(day: str) -> str:
    """The beginning of a template for which it is always the first minute of a day. No function
    passes into a template from outside.
    """
    now = datetime.fromisoformat(day)
    codes = [
        f"%{flag}{letter}"
        for letter in "aAbBcCdDeFgGhHIjklmMpPrRsStTuUVwWxXyYzZfn"
        for flag in ("", "-")
    ]
    replacements = (
        "".join(f" | replace('{code}', '{now.strftime(code)}')" for code in codes)
        .replace("\n", "\\n")
        .replace("\t", "\\t")
    )
    # The line end belongs to the tag: these templates drop the first one behind a tag.
    return (
        f"{{% macro strftime_now(form) %}}{{{{ form | replace('%%', '\\0'){replacements} | "
        f"replace('\\0', '%') }}}}{{% endmacro %}}\n"
    )


def _check_tools(
    messages: list[Message], tokenizer: Any, given: Mapping[str, Any], where: str
) -> None:
    """Refuse tools and tool calls that no token would come from."""
    checks = (
        [
            (
                "field 'tools'",
                messages,
                {key: value for key, value in given.items() if key != "tools"},
            )
        ]
        if given.get("tools")
        else []
    )
    for n, message in enumerate(messages):
        if message.get("tool_calls"):
            bare = {key: value for key, value in message.items() if key != "tool_calls"}
            checks.append(
                (
                    f"turn {n + 1}: its tool calls",
                    [*messages[:n], bare, *messages[n + 1 :]],
                    dict(given),
                )
            )
    for what, less, options in checks:
        if reads_the_same(messages, less, tokenizer, given, options, reply=False, where=where):
            raise DataError(
                f"{where}: {what} would reach no token: the base has "
                + (
                    "a chat template that leaves them out"
                    if has_template(tokenizer)
                    else "no chat template"
                )
                + "; take a base whose template writes tools, or write them as text"
            )


def reads_the_same(
    messages: list[Message],
    less: list[Message],
    tokenizer: Any,
    given: Mapping[str, Any],
    fewer: Mapping[str, Any],
    *,
    reply: bool,
    where: str = "prompt",
) -> bool:
    """Whether a conversation reads the same with less in it."""
    whole = render_messages(messages, tokenizer, reply=reply, where=where, given=given)
    try:
        return whole == render_messages(less, tokenizer, reply=reply, where=where, given=fewer)
    except DataError:  # the template needs what was left out
        return False


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def _encode_row(
    row: Fields, fmt: str, tokenizer: Any, max_length: int, given: Mapping[str, Any]
) -> Example:
    pair = split_row(row, fmt)
    where = place(row)
    chat = not isinstance(pair.prompt, str)
    given = {**given, **pair.given}
    if isinstance(pair.prompt, str) or isinstance(pair.completion, str):
        prompt, completion = str(pair.prompt), str(pair.completion)
    else:
        _check_tools([*pair.prompt, pair.completion], tokenizer, given, where)
        prompt, completion = _split_text([*pair.prompt, pair.completion], tokenizer, where, given)
    if fmt == "text":
        prompt_ids, completion_ids = (
            [],
            _closed(_prompt_ids(completion, tokenizer, templated=False), tokenizer),
        )
    else:
        prompt_ids = _prompt_ids(prompt, tokenizer, templated=chat and has_template(tokenizer))
        completion_ids = _completion_ids(completion, tokenizer, chat=chat)
        if not prompt_ids:
            raise DataError(f"{where}: the tokenizer makes no token of the prompt {prompt!r}")

    mask = [False] * len(prompt_ids)
    if isinstance(pair.prompt, list):
        mask = _earlier_turns(
            pair.prompt, pair.learned, prompt, prompt_ids, tokenizer, where, given
        )
    last = pair.learned[-1] if chat else True
    ids, mask = prompt_ids + completion_ids, mask + [last] * len(completion_ids)

    excess = len(ids) - max_length
    n_prompt = len(prompt_ids)
    if excess > 0:
        cut = min(excess, max(n_prompt - 1, 0))
        kept = 1 if cut and prompt_ids[0] == tokenizer.bos_token_id else 0
        del ids[kept : kept + cut], mask[kept : kept + cut]
        n_prompt -= cut
        ids, mask = ids[:max_length], mask[:max_length]
    mask[:1] = [False]
    if not any(mask):
        cut = (
            f"; of {len(prompt_ids) + len(completion_ids)} tokens `data.max_length: "
            f"{max_length}` keeps none that counts"
        )
        raise DataError(
            f"{where}: no token to learn"
            + (cut if excess > 0 else "; the row needs two tokens or more")
        )
    return Example(ids, mask, n_prompt, prompt, completion, truncated=excess > 0)


def _prompt_ids(text: str, tokenizer: Any, *, templated: bool) -> list[int]:
    """Ids of a text that begins a sequence, with what the tokenizer puts in front: BOS once, and no
    EOS behind.

    A chat template writes its special tokens itself.
    """
    ids = list(tokenizer(text, add_special_tokens=not templated)["input_ids"])
    if not templated:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            del ids[0]
        if eos is not None and ids[-1:] == [eos] and not text.endswith(tokenizer.eos_token):
            del ids[-1]
    return ids


def _completion_ids(completion: str, tokenizer: Any, *, chat: bool) -> list[int]:
    ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return _closed(ids[: _turn_end(ids, tokenizer.eos_token_id)] if chat else ids, tokenizer)


def _closed(ids: list[int], tokenizer: Any) -> list[int]:
    """The ids with an end-of-sequence token behind, if there is none yet."""
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def _split_text(
    messages: list[Message], tokenizer: Any, where: str, given: Mapping[str, Any]
) -> tuple[str, str]:
    """The conversation up to the last reply, and that reply."""
    prompt = render_messages(messages[:-1], tokenizer, reply=True, where=where, given=given)
    whole = render_messages(messages, tokenizer, reply=False, where=where, given=given)
    if not whole.startswith(prompt):
        thought = next((key for key in THOUGHTS if messages[-1].get(key)), None)
        way = "use another chat template, or prompt-completion rows of plain text"
        if thought and not given.get("enable_thinking"):
            way = (
                f'for {thought!r} give rows and suites the field "chat_template_kwargs": '
                f'{{"enable_thinking": true}}'
            )
        raise DataError(
            f"{where}: the chat template writes the turns before a reply differently once "
            "the reply is there, so training "
            f"would not see the prompt of generation; {way}"
        )
    return prompt, whole[len(prompt) :]


def _earlier_turns(
    messages: list[Message],
    learned: Sequence[bool],
    prompt: str,
    ids: list[int],
    tokenizer: Any,
    where: str,
    given: Mapping[str, Any],
) -> list[bool]:
    """The mask of a prompt: True on the turns in it that are learned."""
    mask = [False] * len(ids)
    # A greeting by the assistant answers nothing: turn 0 is never learned.
    replies = [n for n in range(1, len(messages)) if learned[n]]
    if not replies:
        return mask
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            f"{where}: several assistant turns need a fast tokenizer; write one row per "
            "assistant turn"
        )
    encoded = tokenizer(
        prompt, add_special_tokens=not has_template(tokenizer), return_offsets_mapping=True
    )
    # _prompt_ids may have dropped a token at either end; the offsets of special tokens are empty
    # and match nothing.
    shift = next(n for n in range(3) if encoded["input_ids"][n : n + len(ids)] == ids)
    offsets = encoded["offset_mapping"][shift : shift + len(ids)]
    for n in replies:
        start, _ = _split_text(messages[: n + 1], tokenizer, where, given)
        end = render_messages(messages[: n + 1], tokenizer, reply=False, where=where, given=given)
        if not prompt.startswith(end):
            raise DataError(
                f"{where}: the chat template rewrites assistant turn {n + 1} once later "
                "turns follow, so it cannot be "
                "learned in place; write one prompt-completion row per assistant turn: "
                '{"prompt": [turns], "completion": [turn]}'
            )
        span = [
            i
            for i, (low, high) in enumerate(offsets)
            if low < high and low >= len(start) and high <= len(end)
        ]
        for i in span[: _turn_end([ids[i] for i in span], tokenizer.eos_token_id)]:
            mask[i] = True
    return mask


def _turn_end(ids: list[int], eos: int | None) -> int:
    """Length of an assistant turn through its first EOS: templates write a line break behind it,
    never generated.
    """
    return ids.index(eos) + 1 if eos is not None and eos in ids else len(ids)


def render(example: Example, tokenizer: Any, *, markup: bool = False) -> str:
    """An example token by token for the eye: tokens parted by `|`, those in the loss inside `⟦ ⟧`,
    line ends as `↵`.

    markup: the same as rich markup, loss in bold green; the user's text is escaped.
    """
    pieces: list[tuple[str, bool]] = []
    shown = ""
    for end, counts in enumerate(example.loss_mask, 1):
        text = tokenizer.decode(
            example.ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if (
            text.endswith("\N{REPLACEMENT CHARACTER}")
            and end < len(example.ids)
            and example.loss_mask[end] == counts
        ):
            continue  # the token is part of a character that a later token completes
        pieces.append((text[len(shown) :].replace("\n", "↵\n"), counts))
        shown = text

    parts = []
    for start in _runs([counts for _, counts in pieces]):
        text, counts = "|".join(text for text, _ in pieces[start]), pieces[start][0][1]
        text = f"⟦{text}⟧" if counts else text
        if markup:
            from rich.markup import escape

            text = f"[bold green]{escape(text)}[/]" if counts else f"[dim]{escape(text)}[/]"
        parts.append(text)
    return "".join(parts)


def _runs(flags: Sequence[bool]) -> list[slice]:
    """Slices of equal neighbours."""
    borders = [0, *(n for n in range(1, len(flags)) if flags[n] != flags[n - 1]), len(flags)]
    return [slice(low, high) for low, high in zip(borders, borders[1:], strict=False) if low < high]


def check_tokenizer(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """What is unusual about a tokenizer on these texts, one warning a line; an empty list when
    nothing is.

    The first is the one that ruins runs in silence: AutoTokenizer builds the class that the model
    type names and may replace parts of the tokenizer, whose ids then differ from those that the
    model was trained on.
    """
    warnings = []
    file = _tokenizer_file(getattr(tokenizer, "name_or_path", "") or "")
    if file is not None:
        from tokenizers import Tokenizer

        raw = Tokenizer.from_file(str(file))
        raw.no_truncation()
        raw.no_padding()
        differ = [
            t
            for t in texts
            if raw.encode(t, add_special_tokens=False).ids != _plain_ids(t, tokenizer)
        ]
        if differ:
            warnings.append(
                f"{len(differ)} of {len(texts)} texts get other ids from "
                f"{type(tokenizer).__name__} than from "
                f"tokenizer.json, first {differ[0][:60]!r}: the model may never have seen "
                "these ids; correct "
                "'tokenizer_class' in tokenizer_config.json (TokenizersBackend takes "
                "tokenizer.json as it is)"
            )
    unknown = getattr(tokenizer, "unk_token_id", None)
    # Many tokenizers declare <unk> and never produce it; only texts tell.
    lost = [t for t in texts if unknown is not None and unknown in _plain_ids(t, tokenizer)]
    if lost:
        warnings.append(
            f"{len(lost)} of {len(texts)} texts hold characters that the tokenizer does "
            f"not know, first {lost[0][:60]!r}"
        )
    if tokenizer.eos_token_id is None:
        warnings.append(
            "no end-of-sequence token: answers end only at max_new_tokens; set eos_token "
            "in tokenizer_config.json"
        )
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        warnings.append(
            "padding and end of sequence are one token; ftk masks padding by position, "
            "other tools may not"
        )
    return warnings


def _plain_ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _tokenizer_file(name: str) -> Path | None:
    """The tokenizer.json of a folder or of a hub model already downloaded."""
    if (Path(name) / "tokenizer.json").is_file():
        return Path(name) / "tokenizer.json"
    if not name or Path(name).exists():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "tokenizer.json")
    except HFValidationError:  # a name that is no hub id
        return None
    return Path(cached) if isinstance(cached, str) else None
