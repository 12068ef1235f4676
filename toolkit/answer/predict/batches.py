"""What passes a model together, by what it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

TOKENS = 8192  # of all rows that pass together
CACHED = 32768  # tokens whose keys and values a batch holds, prompt and answer
LOGITS = 1 << 28  # numbers at the output head of one forward pass: 1 GiB


def fit(tokens: int, numbers: int) -> int:
    """How often so many tokens, with so many numbers at the output head, fit in one forward pass;
    at least once.
    """
    return max(1, min(TOKENS // max(1, tokens), LOGITS // max(1, numbers)))


def together(
    lengths: Sequence[int], rows_each: int, extra: int, vocabulary: int
) -> Iterator[list[int]]:
    """Indices of prompts that go on in one batch, shortest first: what their KV caches and one row
    of logits each may take.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        rows = rows_each * (len(batch) + 1)
        if batch and (rows * (lengths[i] + extra) > CACHED or rows * vocabulary > LOGITS // 4):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def alike(
    lengths: Sequence[int],
    order: Iterable[int],
    rows_each: int,
    spread: float,
    head: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Indices in batches of about TOKENS, the longest of which is at most 1 + `spread` times as
    long as the first.

    head: numbers at the output head of each row, of which a batch has at most about LOGITS.
    Shortest first.
    """
    batch: list[int] = []
    for i in order:
        rows = rows_each * (len(batch) + 1)
        numbers = rows * max(head[k] for k in (*batch, i)) if head else 0
        if batch and (
            rows * lengths[i] > TOKENS
            or numbers > LOGITS
            or lengths[i] > (1 + spread) * lengths[batch[0]]
        ):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
