"""The charts of a report: plain values in, one SVG string out.

Deterministic (no date, salted ids), self-contained (text stays text, in the reader's own
sans-serif), and readable without colour: every series has its own marker. Axes of shares start at
0; intervals are always drawn.
"""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.record.words import percent
from toolkit.text import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito: safe for colour-blind readers
COLOURS = (
    "#1b1b1b",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#7f6a00",
    "#56b4e9",
)
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
GREY = "#767676"
INCH = 96.0  # CSS pixels
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ftk",
    "text.parse_math": False,  # a name may hold $
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
}


class Dot(NamedTuple):
    """A value with its interval, as shares or ratios; None = not known."""

    value: float | None
    low: float | None
    high: float | None


def by_category(panels: Mapping[str, Mapping[str, Mapping[str, Dot]]]) -> str:
    """Disagreement of each procedure on each category. panels: shift -> category with its number of
    prompts -> procedure -> Dot.
    """

    def draw(figure: "Figure") -> None:
        names = list(
            dict.fromkeys(
                name for rows in panels.values() for dots in rows.values() for name in dots
            )
        )
        axes = figure.subplots(
            len(panels),
            1,
            sharex=True,
            squeeze=False,
            height_ratios=[len(rows) + 0.4 for rows in panels.values()],
        )[:, 0]
        for ax, (shift, rows) in zip(axes, panels.items(), strict=True):
            for i, name in enumerate(names):
                offset = (i - (len(names) - 1) / 2) * 0.22
                points = [
                    (row + offset, dots[name])
                    for row, dots in enumerate(rows.values())
                    if name in dots
                ]
                _dots(ax, points, i, name, horizontal=True)
            _title(ax, shift)
            _rows(ax, list(rows))
        axes[0].set_xlim(left=0)
        axes[-1].xaxis.set_major_formatter(_percent)
        axes[-1].set_xlabel("share of prompts on which two independent runs answer differently")
        _legend(figure, axes[0], len(names))

    n_rows = sum(len(rows) for rows in panels.values())
    return _svg(
        draw,
        900,
        80 + 34 * n_rows + 44 * len(panels),
        "Disagreement by category of prompt, with intervals",
    )


def accuracies(panels: Mapping[str, tuple[Sequence[float], float | None, int]]) -> str:
    """How many replicas reach which accuracy. panels: shift -> (accuracy of each replica, of the
    base, prompts behind each).
    """

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (shift, (scores, base, n_prompts)) in zip(axes, panels.items(), strict=True):
            # whole prompts per bar: no comb from rounding
            step = max(1, round(0.01 * n_prompts)) / n_prompts
            counts: dict[int, int] = {}
            for score in scores:
                counts[round(score / step)] = counts.get(round(score / step), 0) + 1
            ax.bar(
                [bar * step for bar in counts],
                list(counts.values()),
                width=step * 0.86,
                color=COLOURS[1],
            )
            if base is not None:
                ax.axvline(base, color=COLOURS[2], linestyle=(0, (4, 2)), linewidth=1.6)
                side = "right" if base > 0.5 else "left"
                ax.annotate(
                    "base",
                    (base, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(-5 if base > 0.5 else 5, -3),
                    textcoords="offset points",
                    color=COLOURS[2],
                    ha=side,
                    va="top",
                )
            _title(ax, f"{shift} ({len(scores)} replicas, {n_prompts} prompts)")
            ax.set_ylim(0, max(counts.values(), default=1) * 1.15)
            ax.yaxis.get_major_locator().set_params(integer=True, nbins=3)
        axes[0].set_xlim(-0.01, 1.01)
        axes[-1].xaxis.set_major_formatter(_percent)
        axes[-1].set_xlabel("accuracy of one replica")
        figure.supylabel("replicas", fontsize=9, color="#333333")

    return _svg(
        draw,
        900,
        60 + 110 * len(panels),
        "Distribution of accuracies over replicas; dashed line: the base model",
    )


def against_k(panels: Mapping[str, tuple[Dot, Mapping[str, Mapping[int, Dot]]]]) -> str:
    """Disagreement between runs that use K replicas each, log-log, beside 1/K. panels: shift ->
    (one replica, method -> K -> Dot).
    """

    def draw(figure: "Figure") -> None:
        methods = list(dict.fromkeys(name for _, curves in panels.values() for name in curves))
        ks = sorted(
            {1} | {k for _, curves in panels.values() for curve in curves.values() for k in curve}
        )
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for ax, (shift, (single, curves)) in zip(axes, panels.items(), strict=True):
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            if single.value:
                ax.plot(
                    ks,
                    [single.value / k for k in ks],
                    color=GREY,
                    linestyle=":",
                    linewidth=1.5,
                    label=_series("1/K"),
                    zorder=1,
                )
            _dots(ax, [(1, single)], 0, "single replica", horizontal=False)
            for i, name in enumerate(methods, start=1):
                spread = 2 ** (0.09 * (i - (len(methods) + 1) / 2))  # side by side at the same K
                _dots(
                    ax,
                    [(k * spread, dot) for k, dot in sorted(curves.get(name, {}).items())],
                    i,
                    name,
                    horizontal=False,
                    line=True,
                )
            _title(ax, shift)
            ax.set_xticks(ks, [str(k) for k in ks])
            ax.minorticks_off()
            ax.set_xlim(ks[0] / 1.35, ks[-1] * 1.35)
            ax.grid(axis="y")
            ax.set_xlabel("K, replicas per run")
        low, high = _log_limits(panels)
        axes[0].set_ylim(low, high)
        axes[0].set_yticks(
            ticks := [
                t
                for t in (m * 10.0**e for e in range(-6, 1) for m in (1, 2, 5))
                if low <= t <= high
            ]
        )
        axes[0].set_yticklabels([percent(t) for t in ticks])
        axes[0].set_ylabel("disagreement")
        _legend(figure, axes[0], len(methods) + 2)

    return _svg(draw, 900, 330, "Disagreement against K on logarithmic axes, beside the line 1/K")


Curve = tuple[Sequence[float], Sequence[float], Sequence[float | None], Sequence[float | None]]


def survival(curves: Mapping[str, Curve]) -> str:
    """Share of pairs of runs whose texts are still equal after t tokens. curves: shift -> (t,
    share, low, high), steps at each t.
    """

    def draw(figure: "Figure") -> None:
        ax = figure.subplots()
        for i, (shift, (token, share, low, high)) in enumerate(curves.items()):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            lows, highs = (
                [0.0 if x is None else x for x in low],
                [1.0 if x is None else x for x in high],
            )
            ax.fill_between(
                [0, *token],
                [1, *lows],
                [1, *highs],
                step="post",
                color=colour,
                alpha=0.13,
                linewidth=0,
            )
            ax.step([0, *token], [1, *share], where="post", color=colour, linewidth=1.4)
            ax.plot(
                [0, *token],
                [1, *share],
                linestyle="none",
                marker=marker,
                markersize=3.5,
                color=colour,
                label=_series(shift),
            )
        ax.set_ylim(0, 1.02)
        ax.set_xlim(left=0)
        ax.yaxis.set_major_formatter(_percent)
        ax.set_xlabel("tokens (words and signs) from the start of the text")
        ax.set_ylabel("pairs still equal")
        ax.grid(axis="y")
        _legend(figure, ax, len(curves))

    return _svg(
        draw,
        900,
        280,
        "Share of pairs of runs whose texts are still equal after so many tokens, with intervals",
    )


def against_setting(panels: Mapping[str, Mapping[str, Sequence[tuple[float, Dot, int]]]]) -> str:
    """Disagreement against a setting of the training. panels: setting -> shift -> (its value, Dot,
    replicas) in ascending order.
    """

    def draw(figure: "Figure") -> None:
        columns = min(len(panels), 2)
        grid = list(
            figure.subplots(-(-len(panels) // columns), columns, sharey=True, squeeze=False).flat
        )
        for ax, (setting, lines) in zip(grid, panels.items(), strict=False):
            runs = {level: n for points in lines.values() for level, _, n in points}
            wide = min(runs) > 0 and max(runs) / min(runs) >= 5
            for i, (shift, points) in enumerate(lines.items()):
                # intervals at the same value stand side by side
                apart = (i - (len(lines) - 1) / 2) * 0.03
                places = [
                    x * (1 + 2 * apart) if wide else x + apart * (max(runs) - min(runs))
                    for x, _, _ in points
                ]
                _dots(
                    ax,
                    [(x, dot) for x, (_, dot, _) in zip(places, points, strict=True)],
                    i + 1,
                    shift,
                    horizontal=False,
                    line=True,
                    log=False,
                )
            if wide:
                ax.set_xscale("log")
                ax.minorticks_off()
            ax.set_xticks(list(runs), [f"{level:g}\nN = {n:,}" for level, n in runs.items()])
            _title(ax, setting)
            ax.grid(axis="y")
        for ax in grid[len(panels) :]:
            ax.set_visible(False)
        first = grid[0]
        first.set_ylim(bottom=0)
        first.yaxis.set_major_formatter(_percent)
        figure.supylabel("disagreement of two runs", fontsize=9, color="#333333")
        _legend(figure, first, 7)

    return _svg(
        draw,
        900,
        60 + 230 * -(-len(panels) // 2),
        "Disagreement against settings of the training, with intervals",
    )


def by_source(panels: Mapping[str, Mapping[str, Mapping[str, Dot]]]) -> str:
    """Parts of the disagreement of two fresh runs by their source. panels: crossed design -> source
    -> shift -> Dot.
    """

    def draw(figure: "Figure") -> None:
        heights = [len(rows) + 0.4 for rows in panels.values()]
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[
            :, 0
        ]
        shifts = list(
            dict.fromkeys(
                shift for rows in panels.values() for dots in rows.values() for shift in dots
            )
        )
        for ax, (design, rows) in zip(axes, panels.items(), strict=True):
            ax.axvline(0, color=GREY, linewidth=1, zorder=1)
            for i, shift in enumerate(shifts):
                offset = (i - (len(shifts) - 1) / 2) * 0.22
                points = [
                    (row + offset, dots[shift])
                    for row, dots in enumerate(rows.values())
                    if shift in dots
                ]
                _dots(ax, points, i + 1, shift, horizontal=True)
            _title(ax, design)
            _rows(ax, list(rows))
        axes[-1].xaxis.set_major_formatter(_percent)
        axes[-1].set_xlabel(
            "part of the share of prompts on which two fresh runs differ; about nothing "
            "may fall below 0"
        )
        _legend(figure, axes[0], len(shifts))

    n_rows = sum(len(rows) for rows in panels.values())
    return _svg(
        draw,
        900,
        80 + 34 * n_rows + 44 * len(panels),
        "Disagreement taken apart by source of randomness, with intervals",
    )


def against_baseline(rows: Mapping[str, tuple[Dot, str]], baseline: str, shift: str) -> str:
    """Ratio of the disagreement of conditions to that of the baseline, in the order given. rows:
    condition -> (Dot, N and price).
    """

    def draw(figure: "Figure") -> None:
        ax = figure.subplots()
        ax.axvline(1, color=GREY, linestyle=":", linewidth=1.5, zorder=1)
        _dots(
            ax,
            [(row, dot) for row, (dot, _) in enumerate(rows.values())],
            1,
            "ratio",
            horizontal=True,
        )
        _rows(ax, list(rows))
        ax.set_xlim(
            left=0,
            right=1.05 * max([1.2, *(dot.high or dot.value or 0 for dot, _ in rows.values())]),
        )
        for row, (_, note) in enumerate(rows.values()):
            beside = {
                "xycoords": ("axes fraction", "data"),
                "xytext": (6, 0),
                "textcoords": "offset points",
                "va": "center",
            }
            ax.annotate(escape.line(note), (1, row), **beside, color=GREY)
        ax.set_xlabel(
            f"disagreement on {escape.line(shift)} prompts, relative to "
            f"{escape.line(baseline)}; below 1 is steadier"
        )

    return _svg(
        draw,
        900,
        70 + 26 * len(rows),
        f"Conditions by their ratio of disagreement to {baseline}, with intervals",
    )


# -- shared --------------------------------------------------------------------------------------


def _title(ax: "Axes", text: str) -> None:
    ax.set_title(escape.line(text))


def _rows(ax: "Axes", names: Sequence[str]) -> None:
    """One row a name, the first on top."""
    ax.set_yticks(range(len(names)), [escape.line(name) for name in names])
    ax.set_ylim(len(names) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")


def _series(name: str) -> str:
    """The label of a series: never empty nor with `_` at its front, which would keep it from the
    legend. `_legend` takes the head off.
    """
    return f"series {escape.line(name)}"


def _dots(
    ax: "Axes",
    points: Sequence[tuple[float, Dot]],
    series: int,
    name: str,
    *,
    horizontal: bool,
    line: bool = False,
    log: bool | None = None,
) -> None:
    """Values with their intervals; a value of 0 on a log axis is drawn as its upper bound, hollow.
    log: the values', if upright.
    """
    colour, marker = COLOURS[series % len(COLOURS)], MARKERS[series % len(MARKERS)]
    logarithmic = not horizontal if log is None else log
    drawn = [
        (place, dot, float(dot.high or 0.0) if logarithmic and not dot.value else dot.value)
        for place, dot in points
        if dot.value is not None
    ]
    drawn = [
        (place, dot, value)
        for place, dot, value in drawn
        if value is not None and (value > 0 or not logarithmic)
    ]
    for place, dot, _ in drawn:
        if dot.low is not None and dot.high is not None:
            low = max(dot.low, 1e-9) if logarithmic else dot.low
            # all the way down would shout louder than the values
            low = dot.high / 2 if logarithmic and not dot.value else low
            ax.plot(
                *([low, dot.high], [place, place])
                if horizontal
                else ([place, place], [low, dot.high]),
                color=colour,
                linewidth=1.3,
                zorder=2,
            )
    full = [(place, value) for place, dot, value in drawn if dot.value or not logarithmic]
    bound = [(place, value) for place, dot, value in drawn if not dot.value and logarithmic]
    for at_value, filled in ((full, True), (bound, False)):
        xs, ys = [p[0] for p in at_value], [p[1] for p in at_value]
        if horizontal:
            xs, ys = ys, xs
        style = "-" if line and filled else "none"
        face, label = (colour, _series(name)) if filled else ("white", None)
        ax.plot(
            xs,
            ys,
            marker=marker,
            markersize=5.5,
            linestyle=style,
            linewidth=0.9,
            color=colour,
            markerfacecolor=face,
            label=label,
            zorder=3,
        )


def _log_limits(
    panels: Mapping[str, tuple[Dot, Mapping[str, Mapping[int, Dot]]]],
) -> tuple[float, float]:
    """Room for all values and upper ends; a lower end that reaches for 0 does not stretch a log
    axis for ever.
    """
    dots = [
        dot
        for single, curves in panels.values()
        for dot in (single, *(d for c in curves.values() for d in c.values()))
    ]
    values = [v for dot in dots if (v := dot.value or dot.high)] or [1.0]
    lows, highs = [dot.low for dot in dots if dot.low], [dot.high for dot in dots if dot.high]
    return max(min(values + lows) / 1.3, min(values) / 6), min(max(values + highs) * 1.3, 1.05)


def _legend(figure: "Figure", ax: "Axes", columns: int) -> None:
    handles, labels = ax.get_legend_handles_labels()
    names = [label.removeprefix(_series("")) for label in labels]
    figure.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=min(columns, 7),
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.8,
    )


def _percent(value: float, _position: float | None = None) -> str:
    return percent(value)


def _svg(draw, width: float, height: float, description: str) -> str:
    """Run a drawing function on a fresh figure of width x height CSS pixels. No pyplot: nothing
    global is left behind.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        # of signs that the font has not, which the reader's font draws
        warnings.simplefilter("ignore", UserWarning)
        matplotlib.rcdefaults()  # and not what a matplotlibrc in the working directory says
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width / INCH, height / INCH), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(["Date", "Creator", "Format", "Type"]),
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML head: it names an external DTD
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'width="[^"]*pt" height="[^"]*pt"|height="[^"]*pt" width="[^"]*pt"', "", svg, count=1
    )
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape.markup(description)}"', 1)
