"""Students of a distilled condition on disk: which replicas stand behind each teacher, and which
students are independent runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.errors import FtkError
from toolkit.recipe import Condition, Teacher
from toolkit.record.population import groups, read_population
from toolkit.record.results import ConditionDesign, MitigationDesign, Price, TeacherDesign
from toolkit.seeds import SOURCES


class StudentsError(FtkError, ValueError):
    """Students without a trained teacher; one line with the fix."""


@dataclass(frozen=True)
class Teaching:
    """One teacher group: its replicas, the adapters that speak (all of them, or the one they were
    merged into), and hashes of those.
    """

    members: tuple[int, ...]
    adapters: tuple[str, ...]
    sha256: tuple[str, ...]


def teacher_members(run: Path, name: str, teacher: Teacher) -> list[list[int]]:
    """The disjoint groups of successful replicas that teach the condition `name`; the first alone
    where they are fixed.

    Raises StudentsError where a replica is missing that would change who is in which group, or
    where there is no whole group.
    """
    population = read_population(run / teacher.condition)
    missing = sorted(set(range(max(population, default=-1) + 1)) - set(population))
    if missing or not population:
        which = f"replica {missing[0]} is not" if missing else "no replica is"
        raise StudentsError(
            f"{name}: learns from {teacher.condition}, of which {which} trained; train "
            "that condition first"
        )
    members = _groups(run, teacher)
    if not members:
        raise StudentsError(
            f"{name}: learns from groups of {teacher.k}, and fewer replicas of "
            f"{teacher.condition} succeeded; train more of them"
        )
    return members


def _groups(run: Path, teacher: Teacher) -> list[list[int]]:
    succeeded = [
        r for r, record in read_population(run / teacher.condition).items() if record.status == "ok"
    ]
    return groups(succeeded, teacher.k)[: 1 if teacher.groups == "fixed" else None]


def student_design(
    run: Path, condition: Condition, students: ConditionDesign, seconds: float | None
) -> ConditionDesign:
    """One student of each fresh teacher group is a run of the whole procedure; the others of a
    group tell what their own seeds add.

    students: all that succeeded. seconds: of one student's training; the price adds those of its
    teachers.
    """
    teacher = condition.teacher
    assert teacher is not None
    members = _groups(run, teacher)
    group = {
        r: condition.group_of(r) for r in students.replicas if condition.group_of(r) < len(members)
    }
    everyone, factors = list(group), students.factors
    runs = [
        r
        for r in everyone
        if teacher.groups == "fixed" or r == min(s for s in everyone if group[s] == group[r])
    ]
    if len(runs) < len(everyone):
        factors = {"teachers": list(group.values())}
    spent = [
        record.seconds
        for record in read_population(run / teacher.condition).values()
        if record.seconds is not None
    ]
    whole = teacher.k * sum(spent) / len(spent) + seconds if spent and seconds is not None else None
    return replace(
        students,
        replicas=runs,
        price=Price(teacher.k + 1, rank=condition.adapter_rank, seconds=whole),
        factors=factors,
        everyone=everyone,
        teacher=TeacherDesign(
            teacher.condition,
            teacher.label,
            [group[r] for r in runs],
            [members[group[r]] for r in runs],
        ),
    )


def as_mitigation(students: ConditionDesign, k: int) -> MitigationDesign:
    """What students with fresh teachers are to their teachers' condition: a mitigation on disjoint
    groups of K replicas.
    """
    members = students.teacher.members if students.teacher else ()
    label = f"distilled-{students.name}-k{k}"
    return MitigationDesign(
        label,
        students.name,
        "distilled",
        k,
        members,
        students.price,
        students.name,
        students.replicas,
    )


def student_notes(condition: Condition, design: ConditionDesign, vary: Sequence[str]) -> list[str]:
    """Notes for readers where a student is not a run of the whole procedure. vary: sources that
    differ between students.
    """
    teacher = condition.teacher
    if teacher is None:
        return []
    held = [
        source
        for source in SOURCES
        if source not in (*vary, *condition.crossed) and (source != "dropout" or condition.dropout)
    ]
    notes = (
        [
            f"{design.name}: {' and '.join(held)} are the same in all students: what "
            "another draw adds is not in the figures"
        ]
        if held
        else []
    )
    if teacher.groups == "fixed":
        notes.append(
            f"{design.name}: all students learned from the same {teacher.k} replicas of "
            f"{teacher.condition}; how they differ is what their "
            "own seeds add, not how two runs of the whole procedure differ"
        )
    if len(design.everyone) > len(design.replicas):
        notes.append(
            f"{design.name}: {len(design.everyone)} students of {len(design.replicas)} "
            "teacher groups; one of each group counts as a run, "
            "all of them where sources are told apart"
        )
    return notes
