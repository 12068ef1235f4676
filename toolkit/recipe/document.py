"""YAML as a recipe needs it: the scalars of YAML 1.2, and the line of every key."""

from __future__ import annotations

import re

import yaml

from toolkit.text.nearest import Path_

UNWRITABLE = re.compile("[\0\ud800-\udfff]")
DEEPEST = 20
"""blocks and lists inside each other"""
ENTRIES = 50_000
"""keys and items of a document, each alias counted with all that it stands for"""


class Loader(yaml.SafeLoader):
    """YAML 1.2 core scalars: `3e-4` is a number, `no` and `12:30` are strings, dates are strings
    (yaml/pyyaml #173).
    """

    depth = entries = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node. Raises MarkedYAMLError for a document that is too large or too deep."""
        self.depth, self.entries = self.depth + 1, self.entries + 1
        if self.entries > ENTRIES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {ENTRIES:,} keys and items",
                problem_mark=self.peek_event().start_mark,
            )
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"more than {DEEPEST} blocks inside each other",
                problem_mark=self.peek_event().start_mark,
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


Loader.yaml_implicit_resolvers = {}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789")
)
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.\d+|\d+(?:\.\d*)?)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node)
    if re.fullmatch(r"[-+]?0\d+", text):
        raise yaml.MarkedYAMLError(
            problem=f"number {text[:30]!r} has a leading zero: write it without",
            problem_mark=node.start_mark,
        )
    if len(text) > 300:
        raise yaml.MarkedYAMLError(
            problem=f"a number of {len(text):,} digits", problem_mark=node.start_mark
        )
    try:
        return (
            int(text)
            if node.tag.endswith(":int")
            else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        )
    except ValueError:  # the user's own tag: `!!int x`
        raise yaml.MarkedYAMLError(
            problem=f"{text!r} is no number", problem_mark=node.start_mark
        ) from None


def _truth(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    text = loader.construct_scalar(node)
    if text.lower() not in ("true", "false"):  # the user's own tag: `!!bool x`
        raise yaml.MarkedYAMLError(
            problem=f"{text[:30]!r} is neither true nor false", problem_mark=node.start_mark
        )
    return text.lower() == "true"


_PLAIN = [f"tag:yaml.org,2002:{name}" for name in ("null", "str", "seq", "map")]
Loader.yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _PLAIN}
Loader.add_constructor(None, yaml.SafeLoader.yaml_constructors[None])
Loader.add_constructor("tag:yaml.org,2002:bool", _truth)
Loader.add_constructor("tag:yaml.org,2002:int", _number)
Loader.add_constructor("tag:yaml.org,2002:float", _number)


class Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than text."""


for _first, _resolvers in Loader.yaml_implicit_resolvers.items():
    for _tag, _pattern in _resolvers:
        Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def lines_of(node: yaml.Node | None, path: Path_ = ()) -> dict[Path_, int]:
    """Line of every key and item, by its path in the document. Keys are text as written; one that
    stands twice is an error.

    So are aliases that contain themselves, or make a document large out of a small file.
    """
    lines = {path: node.start_mark.line + 1} if node is not None else {}
    if isinstance(node, yaml.ScalarNode) and (strange := UNWRITABLE.search(node.value)):
        problem = f"{strange[0]!a} is no text: a null character, or half of a pair (surrogate)"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if node is not None and len(path) > DEEPEST:
        problem = (
            "a block contains itself (an alias `*x` inside its anchor `&x`), or is deeper "
            "than any that is read"
        )
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key is a word, not a list or a block", problem_mark=key.start_mark
                )
            key.tag = "tag:yaml.org,2002:str"
            lines_of(key)
            at = (*path, key.value)
            if at in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands on line {lines[at]} already",
                    problem_mark=key.start_mark,
                )
            lines |= lines_of(value, at)
            lines[at] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines |= lines_of(item, (*path, i))
    if node is not None and len(lines) > ENTRIES:
        raise yaml.MarkedYAMLError(
            problem=f"more than {ENTRIES:,} keys and items, aliases written out",
            problem_mark=node.start_mark,
        )
    return lines
