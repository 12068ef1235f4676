"""What the coverage study sweeps: for each statistic the worlds, and the settings at which they are
simulated.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import NamedTuple

from worlds import World, behaviour, contrast, core, planning, sources, unkind

Settings = Mapping[str, float | str | bool]


class Sweep(NamedTuple):
    """A statistic's worlds: `factory(**settings)` for each of the settings.

    most: samples of a cell of the full study at most; fewer where one takes long.
    border: of a contrast that carries no p (see `worlds.decides`).
    enough: sizes from which docs/statistics.md promises a conclusive figure: `runs`, or groups of
    k, and `clusters` of equal size; none for figures with rules of their own.
    """

    factory: Callable[..., World]
    settings: list[Settings]
    most: int = 1000
    border: float | None = None
    enough: Mapping[str, float] = {}


def grid(**axes) -> list[Settings]:
    """All combinations; an axis is a tuple of values."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def varied(middle: Iterable[Settings], changes: Iterable[Settings]) -> list[Settings]:
    """Each change on its own, at each setting of the middle."""
    return [{**settings, **change} for settings, change in product(middle, changes)]


N, PROMPTS, RUN = (5, 10, 30, 100, 1000), (50, 500, 5000), (0.0, 0.2, 0.7)
FLAWS = [{"run_sd": 1.0}, {"failed": 0.05}, {"garbage": 0.05}, {"per_cluster": 5}, {"missing": 0.1}]
SHIFTED = {"a": 18, "b": 2}  # prompts much alike, so that the run moves all of them
FEW = grid(replicas=(3, 4), prompts=(30, 100, 500), run_sd=(0.0, 0.7))
SUITE = grid(replicas=N, prompts=PROMPTS, run_sd=RUN) + varied(
    grid(replicas=(10, 30, 100), prompts=(500,), run_sd=(0.7,)), [*FLAWS, SHIFTED]
)
CONTRAST = (
    grid(replicas=N, prompts=PROMPTS, run_sd=RUN, k=(4,))
    + grid(replicas=N, prompts=(500,), run_sd=(0.7,), k=(2, 8))
    + varied(
        grid(replicas=(30, 100), prompts=(500,), run_sd=(0.7,), k=(4,)),
        [*FLAWS, {"how": "vote"}, {"mean": 3.0, "prompt_sd": 1.0}],
    )
)
SCORES = grid(replicas=N, draw=("normal", "t5", "failures")) + varied(
    grid(replicas=(30, 100), draw=("normal",)), [{"paired": True}, {"failed": 0.05}]
)
SMALL_SUITE = grid(replicas=(5, 10, 30, 100), prompts=(50, 500), run_sd=(0.0, 0.7)) + varied(
    [{"replicas": 30, "prompts": 500, "run_sd": 0.7}],
    [{"failed": 0.05}, {"garbage": 0.05}, {"per_cluster": 5}, {"missing": 0.1}],
)
QUIET_SUITE = [settings for settings in SMALL_SUITE if "garbage" not in settings]
TEXTS = grid(replicas=(5, 10, 30), prompts=(50,), run_sd=(0.0, 0.7))
FLOORS = grid(replicas=(128, 512), floor=(0.0, 0.05, 0.2))
SCALES = grid(replicas=(64, 256), prompts=(200,), run_sd=(0.0, 0.7))
MACHINES = grid(machines=(2,), seeds=(10, 30))
LOOKS = grid(replicas=(100, 1000), prompts=(500,), run_sd=(0.7,), look=("always", "narrow"))
ARMS = grid(replicas=(5, 10, 30, 100), prompts=(50, 500), run_sd=(0.0, 0.7)) + varied(
    [{"replicas": 30, "prompts": 500, "run_sd": 0.7}],
    [{"replicas_a": 100}, {"per_cluster": 5}, {"missing": 0.1}],
)
CUBES: list[Settings] = [
    dict(zip(sources.THREE, shape, strict=True)) for shape in ((4, 4, 4), (6, 6, 4), (8, 8, 8))
]
NONE, SMALL, LARGE = (
    {"main": 0.0, "pair": 0.0},
    {"main": 0.05, "pair": 0.02},
    {"main": 0.4, "pair": 0.15},
)
UNFILLED = varied([{"init": 5, "order": 5, "dropout": 5, "missing": 0.1}], [NONE, LARGE])
THREE_PARTS = ("init", "init x order", "residual")
GRIDS = [{"init": n, "order": n, "draw": draw} for n in (5, 8, 10) for draw in ("normal", "t5")]
FIT = ("floor", "exponent")

# Worlds that are not kind: each flaw alone, at 10, 30 and 64 runs on 50 to 300 prompts.
UNEQUAL: list[Settings] = [
    {"prompts": 120, "clusters": 30, "sizes": "rank"},
    {"prompts": 300, "clusters": 50, "sizes": "rank"},
    {"prompts": 100, "clusters": 12, "sizes": "dominant"},
    {"prompts": 300, "clusters": 30, "sizes": "dominant"},
    {"prompts": 60, "clusters": 12, "sizes": "equal"},
]
STRANGE: list[Settings] = [
    {"kinds": 0.2},
    {"kinds": 0.2, "templates": 0.3, "clusters": 15, "prompts": 75},
    {"kinds": 0.2, "templates": 0.3, "clusters": 30, "prompts": 150},
    {
        "kinds": 0.2,
        "templates": 0.5,
        "drop": 8.0,
    },  # on half of the prompts the other kind is nearly always wrong
    {"kinds": 0.5, "templates": 0.5, "drop": 8.0},
    {"garbage": 0.05},
    {"difficulty": "heavy"},
    {"answers": 5},
    {"answers": 5, "kinds": 0.2, "clusters": 30, "sizes": "rank", "prompts": 120},
]
UNKIND = varied(grid(replicas=(10, 30, 64), prompts=(150,)), [*UNEQUAL, *STRANGE]) + varied(
    grid(replicas=(10, 30), prompts=(50, 300)), [{"kinds": 0.2}, {"difficulty": "heavy"}]
)
MARKED: list[Settings] = varied(grid(replicas=(10, 30, 64), prompts=(150,)), [{"failed": 0.05}])
TWO_ANSWERS = [settings for settings in UNKIND if "answers" not in settings]
VOTES = [
    {**settings, "replicas": max(16, int(settings["replicas"])), "k": 4} for settings in TWO_ANSWERS
]
DESIGNS = grid(design=("8x8", "25x5", "5x20", "10/4", "6x6r2"), prompts=(50, 300)) + varied(
    grid(design=("8x8",), prompts=(150,)), [{"main": 1.0, "own": 0.0}, {"main": 0.0, "own": 1.0}]
)

# From these sizes on docs/statistics.md promises figures; contrasts also need the clusters that
# make them up, some of those asked.
MEANS, SPREADS, CONTRASTS = {"runs": 3, "clusters": 10}, {"runs": 15}, {"runs": 3, "clusters": 30}
RUN_TABLES = varied(
    grid(replicas=(10, 15, 30, 64, 100)),
    [
        {"draw": "normal"},
        {"draw": "t5"},
        {"draw": "exponential"},
        {"kinds": 0.2},
        {"garbage": 0.05},
    ],
)

BASES = varied(
    grid(replicas=(5, 10, 30), prompts=(30, 60, 200)),
    [
        {"base": 0.95, "mean": 0.0, "prompt_sd": 1.0},
        {"base": 0.6, "mean": 1.0, "prompt_sd": 1.5},
        {"base": 0.97, "mean": 4.0, "prompt_sd": 1.0},
        {"base": 0.99, "mean": 3.0, "prompt_sd": 1.0},
    ],
)

RETURNING = varied(
    grid(groups=(5, 20), prompts=(60, 150, 300), returning=(0.003, 0.01, 0.03, 0.1)),
    [{"often": 0.3}, {"per_cluster": 5}],
)

SWEEPS: dict[str, Sweep] = {
    "disagreement": Sweep(core.disagreement_world, [*SUITE, *FEW], enough=MEANS),
    "disagreement.these_prompts": Sweep(core.these_prompts_world, SUITE),
    "accuracy": Sweep(core.accuracy_world, [*SUITE, *FEW], enough=MEANS),
    "accuracy_spread.sd": Sweep(partial(core.spread_world, "sd"), SUITE, enough=SPREADS),
    "accuracy_spread.excess": Sweep(partial(core.spread_world, "excess"), SUITE),
    "accuracy_spread.distribution_variance": Sweep(
        partial(core.spread_world, "distribution_variance"), SUITE
    ),
    "disagreement_ratio": Sweep(partial(core.contrast_world, "ratio"), CONTRAST, enough=CONTRASTS),
    "disagreement_difference": Sweep(
        partial(core.contrast_world, "difference"), CONTRAST, enough=CONTRASTS
    ),
    "accuracy_change": Sweep(partial(core.contrast_world, "change"), CONTRAST),
    "effect_size": Sweep(partial(core.contrast_world, "kept"), CONTRAST, border=0.9),
    "accuracy_effect_size": Sweep(
        partial(core.contrast_world, "accuracy kept"), CONTRAST, border=0.9
    ),
    **{
        f"returning.{figure}": Sweep(
            partial(core.returning_world, figure), RETURNING, border=border
        )
        for figure, border in (("change", 0.0), ("kept", 0.9), ("accuracy kept", 0.9))
    },
    "variance_ratio": Sweep(core.variance_world, SCORES),
    "failure_rate": Sweep(core.failure_world, grid(replicas=N, rate=(0.01, 0.05, 0.2))),
    "base accuracy": Sweep(
        core.base_world,
        grid(prompts=PROMPTS, per_cluster=(1, 5)) + grid(prompts=PROMPTS, a=(0.5,), b=(0.005,)),
    ),
    "fleiss_kappa": Sweep(behaviour.kappa_world, SMALL_SUITE),
    "total_agreement of 3": Sweep(behaviour.total_agreement_world, SMALL_SUITE),
    "ambiguity of 3": Sweep(behaviour.ambiguity_world, QUIET_SUITE),
    "negative_flips": Sweep(behaviour.negative_flips_world, QUIET_SUITE),
    "score_sd.sd": Sweep(partial(behaviour.score_sd_world, field="sd"), SMALL_SUITE),
    "score_sd.within_prompt_sd": Sweep(
        partial(behaviour.score_sd_world, field="within_prompt_sd"), SMALL_SUITE
    ),
    "icc A,1": Sweep(behaviour.icc_world, QUIET_SUITE),
    "log_loss variance": Sweep(behaviour.decomposition_world, SMALL_SUITE),
    "brier variance": Sweep(
        partial(behaviour.decomposition_world, field="brier.variance"), SMALL_SUITE
    ),
    "total_variation": Sweep(behaviour.distribution_world, SMALL_SUITE),
    "population_jsd": Sweep(
        partial(behaviour.distribution_world, figure="population_jsd"), SMALL_SUITE
    ),
    "flip_calibration": Sweep(
        behaviour.flip_world, grid(replicas=(10, 30), prompts=(50, 500), run_sd=(0.0, 0.7))
    ),
    "first_divergence, S(10)": Sweep(behaviour.text_world, TEXTS),
    "first_divergence, median": Sweep(partial(behaviour.text_world, figure="median"), TEXTS),
    "edit_distance": Sweep(partial(behaviour.text_world, figure="edit_distance"), TEXTS),
    "population_ratio": Sweep(partial(contrast.population_world, "ratio"), ARMS, enough=CONTRASTS),
    "population_difference": Sweep(
        partial(contrast.population_world, "difference"), ARMS, enough=CONTRASTS
    ),
    "population_accuracy_change": Sweep(partial(contrast.population_world, "change"), ARMS),
    **{
        f"by_prompt.{figure}": Sweep(
            partial(contrast.no_change_world, figure),
            grid(replicas=(10, 30, 100), prompts=(50, 500), run_sd=(0.0, 0.7))
            + [{"replicas": 30, "prompts": 500, "paired": True}],
            most=400,
        )
        for figure in ("accuracy", "disagreement")
    },
    "sd_difference": Sweep(
        partial(contrast.spread_change_world, "difference"),
        grid(replicas=(30, 100, 1000), draw=("normal", "t5")),
    ),
    "distribution_variance_change": Sweep(
        contrast.distribution_change_world, grid(replicas=(30, 100), prompts=(200, 1000))
    ),
    "relative_spread": Sweep(
        contrast.relative_spread_world, grid(replicas=(10, 30, 100, 1000), draw=("normal", "t5"))
    ),
    "subset_variance": Sweep(
        contrast.subset_world, grid(replicas=(10, 30, 100, 1000), draw=("normal", "t5"))
    ),
    "partition_variance": Sweep(
        partial(contrast.partition_world, "square"), grid(replicas=(20, 60), k=(4,))
    ),
    **{
        f"fit_floor.{field}": Sweep(
            partial(contrast.floor_world, field), grid(replicas=(128, 512), floor=(0.0, 0.05, 0.2))
        )
        for field in FIT
    },
    **{
        f"fit_disagreement.{field}": Sweep(partial(contrast.scaling_world, field), SCALES)
        for field in FIT
    },
    **{
        f"crossed.{part}": Sweep(
            partial(sources.crossed_world, part),
            GRIDS + varied([{"init": 8, "order": 8}], [{"missing": 0.2}]),
        )
        for part in ("init", "residual", "total")
    },
    **{
        f"crossed of three.{part}": Sweep(
            partial(sources.three_way_world, part),
            varied(CUBES, [NONE, SMALL, LARGE, {**LARGE, "draw": "t5"}]),
        )
        for part in (*THREE_PARTS, "total")
    },
    **{
        f"REML of three.{part}": Sweep(partial(sources.three_way_world, part), UNFILLED, most=100)
        for part in (*THREE_PARTS, "total")
    },
    "nested.between": Sweep(
        partial(sources.nested_world, "between"),
        grid(groups=(5, 10, 30), size=(4,), unequal=(False, True)),
    ),
    "iso_5725.repeatability": Sweep(partial(sources.precision_world, "repeatability"), MACHINES),
    "iso_5725.intermediate_precision": Sweep(
        partial(sources.precision_world, "intermediate_precision"),
        grid(machines=(2,), seeds=(10, 30)),
    ),
    **{
        f"behaviour_components.{part}": Sweep(
            partial(sources.answers_world, part), grid(init=(5, 8), order=(5, 8), prompts=(50, 500))
        )
        for part in ("init", "residual")
    },
    **{
        f"behaviour_components of three.{part}": Sweep(
            partial(sources.three_way_answers_world, part),
            varied(CUBES, [{"prompts": 50, **effect} for effect in (NONE, SMALL, LARGE)])
            + varied(CUBES[1:2], [{"prompts": 500, **LARGE}]),
            most=150,
        )
        for part in (*THREE_PARTS, "fresh")
    },
    "accuracy_gain": Sweep(unkind.gain_world, BASES),
    **{
        f"unkind.{figure}": Sweep(
            partial(unkind.unkind_world, figure), UNKIND + MARKED, enough=enough
        )
        for figure, enough in (
            ("disagreement", MEANS),
            ("accuracy", MEANS),
            ("sd", SPREADS),
            ("distribution_variance", SPREADS),
        )
    },
    "unkind.zone": Sweep(partial(unkind.unkind_world, "zone"), UNKIND + MARKED, border=1.0),
    "unkind.kappa": Sweep(
        unkind.unkind_kappa_world, [s for s in TWO_ANSWERS if "garbage" not in s]
    ),
    **{
        f"unkind.population_{figure}": Sweep(
            partial(unkind.unkind_contrast_world, figure), UNKIND, enough=CONTRASTS
        )
        for figure in ("ratio", "difference", "change")
    },
    **{
        f"unkind.vote_{figure}": Sweep(
            partial(unkind.unkind_vote_world, figure), VOTES, enough=CONTRASTS
        )
        for figure in ("ratio", "difference", "change")
    },
    "unkind.vote_kept": Sweep(partial(unkind.unkind_vote_world, "kept"), VOTES, border=0.9),
    **{
        f"design.{figure}": Sweep(partial(unkind.design_world, figure), DESIGNS, enough=MEANS)
        for figure in ("disagreement", "accuracy", "sd")
    },
    **{
        f"run_table.{figure}": Sweep(
            partial(unkind.run_table_world, figure), RUN_TABLES, most=4000, enough=SPREADS
        )
        for figure in ("mean", "sd", "change")
    },
    "confidence_sequence": Sweep(
        planning.anytime_world,
        grid(replicas=(100, 1000), prompts=(500,), run_sd=(0.7,), look=("always", "narrow")),
    ),
}
"""Add a statistic here: its world's factory, and the settings to sweep. `replicas`, `prompts` and
`run_sd` steer what a cell costs and whether it is in the quick study; the names are otherwise the
factory's own.
"""
