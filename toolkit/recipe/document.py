"""YAML as a recipe needs it: the scalars of YAML 1.2, and the line of every key."""

from __future__ import annotations

import re

import yaml

from toolkit.recipe.words import Path_


class Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars: `3e-4` is a number, `no` and `12:30` are strings, dates are strings (yaml/pyyaml #173)."""


Loader.yaml_implicit_resolvers = {}
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))
_FLOAT = re.compile(r"^(?:[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    if re.fullmatch(r"[-+]?0\d+", text):
        raise yaml.MarkedYAMLError(problem=f"number {text!r} has a leading zero: write it without", problem_mark=node.start_mark)
    try:
        return int(text) if node.tag.endswith(":int") else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # the user's own tag: `!!int x`
        raise yaml.MarkedYAMLError(problem=f"{text!r} is no number", problem_mark=node.start_mark) from None


Loader.add_constructor("tag:yaml.org,2002:int", _number)
Loader.add_constructor("tag:yaml.org,2002:float", _number)


class Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than text."""


for _first, _resolvers in Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def lines_of(node: yaml.Node | None, path: Path_ = ()) -> dict[Path_, int]:
    """Line of every key and item, by its path in the document. Keys are text as written; one that stands twice is an error."""
    lines = {path: node.start_mark.line + 1} if node is not None else {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a word, not a list or a block", problem_mark=key.start_mark)
            key.tag = "tag:yaml.org,2002:str"
            at = (*path, key.value)
            if at in lines:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands on line {lines[at]} already", problem_mark=key.start_mark)
            lines |= lines_of(value, at)
            lines[at] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines |= lines_of(item, (*path, i))
    return lines
