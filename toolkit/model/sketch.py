"""What an adapter computes, in a few numbers a module: copies are told by them, however they are
written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from toolkit.model.adapters import Adapter

OUTPUTS = 4
"""numbers a module"""
ROUNDINGS = 2.0
"""how many standard deviations of rounding two copies may lie apart; rounding to the nearest is
less than half of the one that is counted
"""
NARROW = (torch.bfloat16, torch.float16, torch.float32)
FINEST = 2.0**-40
"""of sums in float64, whose order may differ"""


@dataclass(frozen=True)
class Sketch:
    """Random outputs of every module's change for one random input. Modules that change nothing are
    not in it.
    """

    names: tuple[str, ...]  # M modules
    values: Tensor  # [M, OUTPUTS], float64
    variances: Tensor  # [M, OUTPUTS], of rounding the factors to the dtype that holds them
    factors: str  # hash of the factors where the whole change is zero, else empty

    @cached_property
    def sum(self) -> float:
        """The sum of all outputs."""
        return float(self.values.sum())

    @cached_property
    def spread(self) -> float:
        """Standard deviation of `sum` by rounding."""
        return float(self.variances.sum()) ** 0.5

    def equals(self, other: Sketch) -> bool:
        """Whether the changes differ by rounding alone, in every module."""
        if self.names != other.names or self.factors != other.factors:
            return False
        apart = (self.values - other.values).square().sum(1)
        return bool(
            (apart <= ROUNDINGS**2 * (self.variances + other.variances).sum(1)).all().item()
        )


def sketch(adapter: Adapter) -> Sketch:
    """Read all factors once. Raises AdapterError for values that are not finite."""
    rows = {}
    for name, (A, B, scale) in adapter.items():
        x, G = _inputs(A.shape[1]), _outputs(B.shape[0])
        (uA, leastA), (uB, leastB) = (_rounding(factor) for factor in (A, B))
        A, B = A.double(), B.double()
        t, P = A @ x, G @ B
        value = scale * (P @ t)
        if not value.any():
            continue
        by_B = G.square() @ (((uB * B).square() + leastB**2) @ t.square())
        by_A = P.square() @ (((uA * A).square() + leastA**2) @ x.square())
        rows[name] = torch.stack([value, scale**2 * (by_A + by_B)])
    moments = torch.stack(list(rows.values()), 1) if rows else torch.zeros(2, 0, OUTPUTS)
    return Sketch(tuple(rows), moments[0], moments[1], "" if rows else _factors(adapter))


def equal_pairs(sketches: Sequence[Sketch]) -> list[tuple[int, int]]:
    """(later, first) of those that equal an earlier one, by their order."""
    order = sorted(range(len(sketches)), key=lambda i: sketches[i].sum)
    widest = max((sketch.spread for sketch in sketches), default=0.0)
    first: dict[int, int] = {}
    for position, i in enumerate(order):
        reach = sketches[i].sum + 4 * ROUNDINGS * (sketches[i].spread + widest)
        for j in order[position + 1 :]:
            if sketches[j].sum > reach:
                break
            if sketches[i].equals(sketches[j]):
                low, high = min(i, j), max(i, j)
                first[high] = min(low, first.get(high, low))
    return sorted(first.items())


def _factors(adapter: Adapter) -> str:
    digest = hashlib.sha256()
    for name, (A, B, scale) in adapter.items():
        digest.update(f"{name} {scale}".encode())
        digest.update(A.double().numpy().tobytes() + B.double().numpy().tobytes())
    return digest.hexdigest()


def _rounding(factor: Tensor) -> tuple[float, float]:
    """Of a factor: the largest relative error, and the largest of what is nearly zero. Its dtype is
    the narrowest that holds all its values, whichever it is stored in.
    """
    fits = (dtype for dtype in NARROW if torch.equal(factor.to(dtype).to(factor.dtype), factor))
    info = torch.finfo(next(fits, torch.float64))
    return max(info.eps / 2, FINEST), info.smallest_normal * info.eps / 2


@lru_cache(maxsize=64)
def _inputs(I: int) -> Tensor:
    return torch.randn(I, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@lru_cache(maxsize=64)
def _outputs(O: int) -> Tensor:
    return torch.randn(OUTPUTS, O, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
