"""Train until enough is known: at fixed numbers of replicas the new ones answer, and an
anytime-valid rule decides.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.data import Prompt
from toolkit.measurement.analyse import OutcomeTable
from toolkit.recipe import RecipeError, Sequential
from toolkit.record import shapes
from toolkit.record.outcomes import MEASURED, read_outcomes
from toolkit.record.plain import read_record
from toolkit.record.population import write_text
from toolkit.record.words import number, percent
from toolkit.statistics.planning.sequential import (
    ANYTIME,
    ConfidenceSequence,
    Decision,
    Stopping,
    pair_disagreement,
)

Suites = dict[str, list[Prompt]]
TrainUpTo = Callable[[int], Sequence[int]]
"""Trains replicas 0 to n-1 and says which of them succeeded, in index order."""
ShardsOf = Callable[[Sequence[int], Suites], Sequence[Path]]
"""Lets these replicas answer these prompts, and says where the outcomes lie."""


@dataclass(frozen=True)
class Looks:
    """The schedule of looks. folder: of the condition; stack: replicas trained together;
    width: replicas in a full shard.
    """

    folder: Path
    rule: Sequential
    suites: Suites
    level: float
    stack: int
    width: int


def train_until(
    looks: Looks, train_up_to: TrainUpTo, shards_of: ShardsOf, note: Callable[[str], None]
) -> None:
    """Train whole stacks and let them answer, until the rule is met or its `max` is reached;
    stopping.json tells every look.

    What is decided depends on the outcomes in index order at fixed looks and on nothing else. So a
    run that was killed comes to the same decision, and one that has stopped finds all its looks
    answered and trains no more.
    """
    rule, folder = looks.rule, looks.folder
    targets = {
        figure: target.model_dump(exclude_none=True) for figure, target in rule.until.items()
    }
    prompts = {
        suite: rows
        for figure in targets
        for suite, rows in asked_about(figure, looks.suites).items()
    }
    sequences = {figure: ConfidenceSequence(looks.level) for figure in targets}
    taken: list[dict[str, Any]] = []
    answered = 0
    for replicas in look_points(rule, looks.stack):
        alive = train_up_to(replicas)
        last = replicas == rule.max
        # a shard that is not full would be answered again when more replicas fill it
        ready = len(alive) if last else len(alive) - len(alive) % looks.width
        if fresh := alive[answered:ready]:
            _watch(folder.name, fresh, shards_of(fresh, prompts), prompts, sequences)
        answered = ready
        decision = (
            Stopping(targets).decide(sequences) if alive else Decision(True, "no replica succeeded")
        )
        verdict = "stop" if decision.stop else "max" if last else "continue"
        figures = {figure: sequence.to_dict() for figure, sequence in sequences.items()}
        failed = replicas - len(alive)
        taken.append(
            {
                "replicas": replicas,
                "failed": failed,
                "figures": figures,
                "decision": verdict,
                "reason": decision.reason,
            }
        )
        rule_record = {"max": rule.max, "min": rule.min, "batch": rule.batch, "until": targets}
        record = {"rule": rule_record, "level": looks.level, "method": ANYTIME, "looks": taken}
        write_text(folder / "stopping.json", json.dumps(record, indent=2, sort_keys=True) + "\n")
        note(f"{folder.name}: {replicas} replicas, {verdict}: {decision.reason}")
        if decision.stop:
            return


def look_points(rule: Sequential, stack: int) -> list[int]:
    """Numbers of replicas at which the rule looks: `min`, then every `batch`, in whole stacks, the
    last one `max`.
    """
    first, step = (math.ceil(n / stack) * stack for n in (rule.min, rule.batch))
    return [*range(first, rule.max, step), rule.max]


def asked_about(figure: str, suites: Suites) -> Suites:
    """The prompts that `disagreement.NAME` is about, by suite: those of the suite NAME, or all of
    the shift NAME.

    Raises RecipeError in one line where there are none.
    """
    name = figure.partition(".")[2]
    if name in suites:
        return {name: suites[name]}
    with_shift = {
        suite: rows for suite, rows in suites.items() if any(p.shift == name for p in rows)
    }
    if not with_shift:
        raise RecipeError(
            f"replicas.until: {figure}: no suite has {name} prompts; there are: "
            f"{', '.join(suites) or 'no suites'}"
        )
    return with_shift


def _watch(
    condition: str,
    replicas: Sequence[int],
    shards: Sequence[Path],
    prompts: Suites,
    sequences: dict[str, ConfidenceSequence],
) -> None:
    """Extend the confidence sequence of every figure by the pairs of the new replicas."""
    table = OutcomeTable(read_outcomes(shards, MEASURED), prompts)
    arm = table.arm(condition, "replica", replicas)
    assert arm is not None  # the shards hold nothing else
    for figure, sequence in sequences.items():
        name = figure.partition(".")[2]
        columns = table.suites[name] if name in table.suites else table.shifts[name]
        for x in pair_disagreement(arm.answer_RP[:, columns]):
            sequence.add(float(x))


def stopping_note(folder: Path) -> str:
    """The note for readers of a condition's intervals when its number of replicas was decided by
    looking at them.
    """
    record = read_record(folder / "stopping.json", shapes.Stopping, "`ftk run` writes it again")
    last = record["looks"][-1]
    ends = "; ".join(
        f"{figure} {number(f['mean'], '%')} % [{number(f['low'], '%')}, "
        f"{number(f['high'], '%')}] from {f['pairs']} pairs"
        for figure, f in last["figures"].items()
    )
    met = "" if last["decision"] == "stop" else ", its targets not met"
    return (
        f"{folder.name}: the number of replicas, {last['replicas']}, was decided by a "
        f"rule that looked at their answers{met}; the "
        "intervals of this report are made for a number given beforehand and are too "
        "narrow for that; "
        f"{percent(record['level'])} intervals that hold, for these prompts only: {ends}"
    )
