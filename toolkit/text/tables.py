"""Tables of cells: one list of rows, the first of which is the head, as lines of a terminal, as
Markdown or as HTML. A row of one cell is a line across the table: a heading, or a remark.

Cells are texts of users and models, too: each way out escapes them by its own rule.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from html import escape as quoted

from toolkit.text import escape

Rows = Sequence[Sequence[object]]
LONGEST = 60
"""characters of a cell on the terminal; the last of a row may have more"""
_SPACE = "\N{BRAILLE PATTERN BLANK}"


def plain(rows: Rows, *, right: Collection[int] = (), gap: int = 2, indent: int = 1) -> list[str]:
    """Aligned lines, as wide as their longest cells on every terminal, without colours or rules.

    right: columns, from 0, that are aligned at their end, with `gap` spaces before them; before
    other columns there are two. What stands across the table keeps an indent of its own.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    full = [[*map(_cut, row[:-1]), escape.line(row[-1])] for row in rows if len(row) > 1]
    grid = Table.grid()
    for column in range(max(map(len, full), default=0)):
        grid.add_column(justify="right" if column in right else "left", no_wrap=True)
    for row in full:
        before = [0, *(gap if column in right else 2 for column in range(1, len(row)))]
        # rich drops spaces at the end of a cell, which may stand for a mark that others have
        cells = (" " * n + cell for n, cell in zip(before, row, strict=True))
        grid.add_row(*(Text(cell.replace(" ", _SPACE)) for cell in cells))
    page = io.StringIO()
    Console(file=page, width=10_000, color_system=None, force_jupyter=False).print(grid)
    aligned = iter(page.getvalue().replace(_SPACE, " ").split("\n"))
    return [
        (" " * indent + next(aligned) if len(row) > 1 else escape.line(row[0])).rstrip()
        for row in rows
    ]


def _cut(cell: object) -> str:
    text = escape.line(cell)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def markdown(rows: Rows) -> list[str]:
    """Lines of a table. Cells are escaped, but for those that are `escape.Markdown`."""
    head, *body = ["| " + " | ".join(map(escape.markdown, row)) + " |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *body]


def html(rows: Rows) -> str:
    """A `<table>`, with every cell escaped."""
    head, *body = [[quoted(escape.seen(str(cell))) for cell in row] for row in rows]
    lines = [f"<table>\n<thead><tr>{_marked('th', head)}</tr></thead>\n<tbody>"]
    for row in body:
        across = f'<th colspan="{len(head)}">{row[0]}</th>'
        lines.append(f"<tr>{across if len(row) == 1 else _marked('td', row)}</tr>")
    return "\n".join([*lines, "</tbody>\n</table>"])


def _marked(tag: str, cells: Sequence[str]) -> str:
    return "".join(f"<{tag}>{cell}</{tag}>" for cell in cells)
