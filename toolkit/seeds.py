"""Seeds: every random draw has its own, derived only from (root seed, purpose, replica).

A hash, not arithmetic: `root + replica` would give replica 1 of root 0 the draws of replica 0 of
root 1.
"""

import hashlib
from collections.abc import Iterable, Mapping

SOURCES = ("init", "order", "dropout")
"""What `vary` may name: initial adapter weights, order of the training rows, dropout masks."""


def derive(root: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for one purpose: sha256 of (root, purpose, indices).

    63 bits, because torch generators and int64 tensors take no more.
    """
    text = ":".join(["ftk", str(root), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def replica_seeds(
    root: int, replica: int, vary: Iterable[str], crossed: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The seed of every source for one replica.

    Sources in `vary` get a seed per replica; the others share one seed, so all replicas draw alike.
    Adding replicas, or varying one more source, changes no other seed.
    crossed: number of levels of each source of a crossed design, instead of `vary`: replicas run
    through all combinations of levels, the last source fastest, and then through all of them again
    with the same seeds.
    """
    if crossed:
        levels, remainder = {}, replica
        for source in reversed(list(crossed)):
            remainder, levels[source] = divmod(remainder, crossed[source])
        return {
            source: derive(root, source, levels[source])
            if source in levels
            else derive(root, source)
            for source in SOURCES
        }
    vary = set(vary)
    return {
        source: derive(root, source, replica) if source in vary else derive(root, source)
        for source in SOURCES
    }
