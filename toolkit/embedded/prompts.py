"""The prompts for measurement in the small world, in two versions; no torch.

A version never changes: what was measured with it stays comparable. The world, the task, the
training rows and the base are the same in both, and no prompt of one is in the other.

A cluster is what was drawn by itself. In the first version it is a template or frame throughout. In
the second, of typical prompts it is one request: training has 42 sentences, all of them are asked,
and only their fillings are drawn. Of unseen names and numbers it is the name or number. Of all
others it is a sentence or frame, a sample of what people might say; there are three times as many
as in the first, with one or two prompts each: those of one stand and fall together.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from toolkit.embedded import sentences, world

Question = tuple[str, str, str, str | None]  # category, cluster, request, reference
Request = tuple[str, str, dict[str, str]]  # intent, template, filling
T = TypeVar("T")


def suite(shift: str, version: int) -> list[dict[str, str | None]]:
    """Prompts for measurement: `id, prompt, category, shift, cluster, reference`.

    shift: typical, near or far; version: one of `VERSIONS`. Every right answer is known, but for
    ambiguous requests; it is written as a completion.
    """
    questions: dict[str, Question] = {}
    trained = {row["prompt"] for row in world.train_rows()}
    for question in VERSIONS[version][shift]():
        prompt = question[2] + world.ARROW
        if prompt not in trained:
            questions.setdefault(prompt, question)
    mark = shift if version == 1 else f"{shift}-v{version}"  # ids tell versions apart
    return [
        {
            "id": f"{mark}-{i:03d}",
            "prompt": prompt,
            "category": category,
            "shift": shift,
            "cluster": cluster,
            "reference": reference and f" {reference}",
        }
        for i, (prompt, (category, cluster, _, reference)) in enumerate(questions.items())
    ]


# -- the first version ---------------------------------------------------------------------------


def _first_typical() -> Iterator[Question]:
    for intent, template, values in world.splits()["typical"]:
        yield (
            ("one-slot" if len(values) < 2 else "more-slots"),
            template,
            world.render(template, values),
            world.call(intent, values),
        )


def _first_near() -> Iterator[Question]:
    rng = random.Random("near")
    for category, table in (("paraphrase", world.PARAPHRASES), ("reordered", world.REORDERED)):
        templates = [
            (intent, template) for intent, templates in table.items() for template in templates
        ]
        for intent, template in rng.sample(templates, min(20, len(templates))) * 2:
            values = _fill(template, rng)
            yield category, template, world.render(template, values), world.call(intent, values)
    spare = [row for row in world.splits()["spare"] if row[0] != "none"]
    for intent, template, values in rng.sample([row for row in spare if _slippery(row[1])], 40):
        yield (
            "typo",
            template,
            world.render(_typo(template, rng), values),
            world.call(intent, values),
        )
    for category, unseen in (
        ("unseen-name", ("name",)),
        ("unseen-number", ("count", "minutes", "degrees")),
    ):
        templates = [
            (i, t)
            for i, ts in world.SEEN.items()
            for t in ts
            if i != "none" and set(world.slots(t)) & set(unseen)
        ]
        for n in range(40):
            intent, template = templates[n % len(templates)]
            values = _fill(template, rng)
            values |= {slot: rng.choice(world.UNSEEN[slot]) for slot in values if slot in unseen}
            yield category, template, world.render(template, values), world.call(intent, values)
    for n, (intent, template, values) in enumerate(
        rng.sample([row for row in spare if not _is_statement(row[1])], 36)
    ):
        frame = world.LONGER[n % len(world.LONGER)]
        yield (
            "longer",
            frame,
            frame.format(world.render(template, values)),
            world.call(intent, values),
        )


def _first_far() -> Iterator[Question]:
    rng = random.Random("far")
    for category, templates, reference in (
        ("unseen-intent", world.UNKNOWN_INTENTS, "none()"),
        ("out-of-scope", world.OUT_OF_SCOPE, "none()"),
        ("ambiguous", world.AMBIGUOUS, None),
    ):
        for template in templates * 3:
            yield category, template, world.render(template, _fill(template, rng)), reference
    spare = [row for row in world.splits()["spare"] if not _is_statement(row[1])]
    for n in range(36):
        intent, template, values = rng.choice(spare)
        other_intent, other_template, other_values = rng.choice(
            [row for row in spare if row[0] != intent]
        )
        first, second = world.render(template, values), world.render(other_template, other_values)
        other = world.call(other_intent, other_values)
        frame = world.NEGATIONS[n % len(world.NEGATIONS)]
        yield "negation", frame, frame.format(first), "none()"
        frame = world.TWO_REQUESTS[n % len(world.TWO_REQUESTS)]
        yield (
            "two-requests",
            frame,
            frame.format(first, second),
            f"{world.call(intent, values)};{other}",
        )
        frame = world.CORRECTIONS[n % len(world.CORRECTIONS)]
        yield "correction", frame, frame.format(first, second), other


# -- the second version --------------------------------------------------------------------------


def _second_typical() -> Iterator[Question]:
    """Other fillings of the sentences of training. These are all that there are, and only fillings
    are drawn: each is a cluster.
    """
    first_version = {
        question[2] for question in _first_near()
    }  # some of whose slips slipped nothing
    for intent, template, values in world.splits()["spare"]:
        if (request := world.render(template, values)) not in first_version:
            yield (
                ("one-slot" if len(values) < 2 else "more-slots"),
                request,
                request,
                world.call(intent, values),
            )


def _second_near() -> Iterator[Question]:
    """One prompt of every sentence, two of every frame, four of every name, three of every
    number.
    """
    rng, first_version = random.Random("near, second"), {question[2] for question in _first_near()}
    for category, table, added in (
        ("paraphrase", world.PARAPHRASES, sentences.PARAPHRASES),
        ("reordered", world.REORDERED, sentences.REORDERED),
    ):
        for intent, template in [*_templates(table), *_templates(added)]:
            values = _unused(template, rng, first_version)
            yield category, template, world.render(template, values), world.call(intent, values)
    for intent, template, values in islice(
        _requests(rng, lambda template: bool(_slippery(template))), 36
    ):
        slip = template
        while slip == template:  # "ee" swapped is "ee"
            slip = _typo(template, rng)
        yield "typo", template, world.render(slip, values), world.call(intent, values)
    for category, slots, times in (
        ("unseen-name", ("name",), 4),
        ("unseen-number", ("count", "minutes", "degrees"), 3),
    ):
        templates = [
            (intent, template)
            for intent, template in _templates(world.SEEN)
            if set(world.slots(template)) & {*slots}
        ]
        order = _rounds([row for row in templates if row[0] != "none"], rng)
        for new in world.UNSEEN[slots[0]] * times:
            for intent, template in order:
                values = _fill(template, rng)
                values |= dict.fromkeys(values.keys() & {*slots}, new)
                if (request := world.render(template, values)) not in first_version:
                    first_version.add(request)
                    yield category, new, request, world.call(intent, values)
                    break
    frames = (*world.LONGER, *sentences.LONGER) * 2
    for frame, (intent, template, values) in zip(
        frames, _requests(rng, _is_imperative), strict=False
    ):
        yield (
            "longer",
            frame,
            frame.format(world.render(template, values)),
            world.call(intent, values),
        )


def _second_far() -> Iterator[Question]:
    """One prompt of every sentence, two of every frame."""
    rng, first_version = random.Random("far, second"), {question[2] for question in _first_far()}
    for category, templates, reference in (
        ("unseen-intent", (*world.UNKNOWN_INTENTS, *sentences.UNKNOWN_INTENTS), "none()"),
        ("out-of-scope", (*world.OUT_OF_SCOPE, *sentences.OUT_OF_SCOPE), "none()"),
        ("ambiguous", (*world.AMBIGUOUS, *sentences.AMBIGUOUS), None),
    ):
        for template in templates:
            if template != "turn it {state}":  # the first version has both
                yield (
                    category,
                    template,
                    world.render(template, _unused(template, rng, first_version)),
                    reference,
                )
    requests = _requests(rng, _is_imperative)
    for frame in (*world.NEGATIONS, *sentences.NEGATIONS) * 2:
        _, template, values = next(requests)
        yield "negation", frame, frame.format(world.render(template, values)), "none()"
    for category, frames in (
        ("two-requests", (*world.TWO_REQUESTS, *sentences.TWO_REQUESTS)),
        ("correction", (*world.CORRECTIONS, *sentences.CORRECTIONS)),
    ):
        for frame in frames * 2:
            intent, template, values = next(requests)
            other_intent, other_template, other_values = next(
                row for row in requests if row[0] != intent
            )
            request = frame.format(
                world.render(template, values), world.render(other_template, other_values)
            )
            other = world.call(other_intent, other_values)
            yield (
                category,
                frame,
                request,
                other if category == "correction" else f"{world.call(intent, values)};{other}",
            )


def _templates(table: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    return [(intent, template) for intent, templates in table.items() for template in templates]


def _requests(rng: random.Random, fits: Callable[[str], bool]) -> Iterator[Request]:
    """Held-out requests that are no statements, without end: every template that fits once, in a
    new order, then all again.
    """
    held_out: dict[str, list[Request]] = {}
    for row in world.splits()["typical"]:
        if row[0] != "none" and fits(row[1]):
            held_out.setdefault(row[1], []).append(row)
    return (rng.choice(held_out[template]) for template in _rounds(list(held_out), rng))


def _rounds(values: list[T], rng: random.Random) -> Iterator[T]:
    """All values in a random order, again and again, without end."""
    while True:
        yield from rng.sample(values, len(values))


def _unused(template: str, rng: random.Random, first_version: set[str]) -> dict[str, str]:
    """A filling of which the first version has no prompt."""
    while True:
        values = _fill(template, rng)
        if world.render(template, values) not in first_version:
            return values


# -- both ----------------------------------------------------------------------------------------


def _fill(template: str, rng: random.Random) -> dict[str, str]:
    values = {slot: rng.choice(world.ARGUMENTS[slot]) for slot in world.slots(template)}
    while values.get("from", "") == values.get("to", "nowhere"):
        values["to"] = rng.choice(world.ARGUMENTS["to"])
    return values


def _is_imperative(template: str) -> bool:
    return not _is_statement(template)


def _is_statement(template: str) -> bool:
    return template.split()[0] in world.NOT_IMPERATIVE or template in world.SEEN["none"]


def _slippery(template: str) -> list[int]:
    """Positions of the words of a template that are long enough for a slip of the fingers;
    arguments are spared.
    """
    return [i for i, word in enumerate(template.split()) if len(word) > 3 and "{" not in word]


def _typo(template: str, rng: random.Random) -> str:
    """One slip: a letter dropped, doubled, or swapped with the next."""
    words = template.split()
    n = rng.choice(_slippery(template))
    word = words[n]
    position = rng.randrange(1, len(word) - 1)
    words[n] = rng.choice(
        (
            word[:position] + word[position + 1 :],
            word[: position + 1] + word[position:],
            word[:position] + word[position + 1] + word[position] + word[position + 2 :],
        )
    )
    return " ".join(words)


VERSIONS: dict[int, dict[str, Callable[[], Iterator[Question]]]] = {
    1: {"typical": _first_typical, "near": _first_near, "far": _first_far},
    2: {"typical": _second_typical, "near": _second_near, "far": _second_far},
}
