"""The data layer: rows from files, their format, tokens with a loss mask, measurement suites,
answers. No torch.

read_rows -> detect_format -> encode_rows -> Example        what training sees read_suite -> Prompt
-> encode_prompt                       what evaluation sees: the same prompt, the same ids
parse_answer, parse_reference                               what of a generated text counts survey
what of all that is not used, or not as one may think
"""

from toolkit.data.encode import (
    Example,
    asks_for_the_date,
    check_tokenizer,
    encode_prompt,
    encode_reference,
    encode_rows,
    render,
)
from toolkit.data.extract import check_rule, parse_answer, parse_reference
from toolkit.data.formats import FORMATS, detect_format, is_chat
from toolkit.data.rows import SUFFIXES, DataError, Row, read_rows
from toolkit.data.suites import SHIFTS, Prompt, read_suite
from toolkit.data.survey import known_prompts, survey
from toolkit.data.turns import Message

__all__ = [
    "FORMATS",
    "SHIFTS",
    "SUFFIXES",
    "DataError",
    "Example",
    "Message",
    "Prompt",
    "Row",
    "asks_for_the_date",
    "check_rule",
    "check_tokenizer",
    "detect_format",
    "encode_prompt",
    "encode_reference",
    "encode_rows",
    "is_chat",
    "known_prompts",
    "parse_answer",
    "parse_reference",
    "read_rows",
    "read_suite",
    "render",
    "survey",
]
