"""Algebra of weight changes kept as low-rank factors, in float64 on the CPU.

`Factors` = (A [r, I], B [O, r], scale) stand for D = scale * B @ A, of shape [O, I]. Only D has a
meaning: (G A, B G^-1) is the same D for every invertible G, so nothing here averages A or B by
itself. The mean of products is a concatenation of factors, never the product of means.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor, float]

BLOCK = 1024
"""ranks that are stacked before they are multiplied: enough for the full speed of a matrix
product
"""


def dense(factors: Factors) -> Tensor:
    """D = scale * B @ A, [O, I]."""
    A, B, scale = factors
    return _wide(B) @ (scale * _wide(A))


def concat(factors: Iterable[Factors], weights: Iterable[float]) -> tuple[Tensor, Tensor]:
    """(A, B) with B @ A = sum_k w_k D_k, exactly; rank min(sum of r_k, O, I).

    Stacks w_k s_k A_k and B_k. Once their rank has passed both BLOCK and min(O, I), they are
    multiplied into one dense sum (returned as D times an identity), so memory does not grow with
    the number of adapters. These blocks of factors that are stored in float32 or less are
    multiplied in float32 and summed in float64: relative error below 1e-6. All else is float64.
    Reads `factors` once: the same order, the same bits.
    """
    total: Tensor | None = None  # [O, I]
    for A, B, narrow in _blocks(factors, weights):
        if narrow is None and total is None and A.shape[0] <= min(B.shape[0], A.shape[1]):
            return A, B
        total = _wide(B @ A) if total is None else total.add_(B @ A)
    assert total is not None
    return from_dense(total)


def _blocks(
    factors: Iterable[Factors], weights: Iterable[float]
) -> Iterator[tuple[Tensor, Tensor, torch.dtype | None]]:
    """Stacked w_k s_k A_k and B_k, about max(BLOCK, O, I) ranks at a time; and the dtype to
    multiply a block in, None for the last one.
    """
    # as they are stored: in float64 they would be read and written three times
    held: list[tuple[Tensor, Tensor, float]] = []

    def block(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        A = torch.cat([A.detach().to("cpu", dtype) * factor for A, _, factor in held])
        return A, torch.cat([B.detach().to("cpu", dtype) for _, B, _ in held], dim=1)

    rank, narrow = 0, torch.float32
    for (A, B, scale), weight in zip(factors, weights, strict=True):
        if rank > max(BLOCK, min(B.shape[0], A.shape[1])):
            yield *block(narrow), narrow
            held, rank, narrow = [], 0, torch.float32
        held.append((A, B, weight * scale))
        rank += A.shape[0]
        narrow = torch.promote_types(narrow, torch.promote_types(A.dtype, B.dtype))
    yield *block(torch.float64), None


def stream(
    factors: Iterable[Factors], weights: Iterable[float], buffer: int
) -> tuple[Tensor, Tensor, float]:
    """As `concat`, in at most about twice `buffer` ranks: whenever more are stacked, all but the
    `buffer` largest are cut.

    Also returns the sum of the norms of what was cut, which the error of the sum cannot exceed
    (triangle inequality).
    """
    A_sum, B_sum, discarded = None, None, 0.0
    for (A, B, scale), weight in zip(factors, weights, strict=True):
        A, B = weight * scale * _wide(A), _wide(B)
        A_sum = A if A_sum is None else torch.cat([A_sum, A])
        B_sum = B if B_sum is None else torch.cat([B_sum, B], dim=1)
        limit = min(buffer, B.shape[0], A.shape[1])
        if A_sum.shape[0] > 2 * limit:
            power = norm((A_sum, B_sum, 1.0)) ** 2
            A_sum, B_sum, kept = truncate(A_sum, B_sum, rank=limit)
            if limit < min(B.shape[0], A.shape[1]):
                discarded += max(0.0, (1 - kept) * power) ** 0.5
    assert A_sum is not None and B_sum is not None
    return A_sum, B_sum, discarded


def from_dense(D: Tensor) -> tuple[Tensor, Tensor]:
    """D as factors of rank min(O, I), exactly: D and an identity. `truncate` brings it to a lower
    rank.
    """
    identity = torch.eye(min(D.shape), dtype=D.dtype)
    return (D, identity) if D.shape[0] <= D.shape[1] else (identity, D)


def truncate(
    A: Tensor, B: Tensor, *, rank: int | None = None, energy: float | None = None
) -> tuple[Tensor, Tensor, float]:
    """The nearest B @ A of at most `rank`, or of the smallest rank that keeps `energy`; and the
    energy that is kept.

    Eckart-Young: the leading singular triplets of D, found without forming D (thin QR of both
    factors, SVD of the small core). Energy is sum of kept S^2 / sum of all S^2, so the relative
    error is sqrt(1 - energy). Singular values are split evenly between the factors and the largest
    entry of every left vector is positive: one D gives one (A, B), whatever gauge it came in.
    """
    if (rank is None) == (energy is None):
        raise ValueError("give either rank or energy")
    A, B = _wide(A), _wide(B)
    size = min(B.shape[0], A.shape[1])
    if rank is not None and not 1 <= rank <= size:
        raise ValueError(
            f"rank {rank} is impossible: a change of shape [{B.shape[0]}, {A.shape[1]}] "
            f"has ranks 1 to {size}"
        )
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy {energy} is impossible: it is a share, above 0 and at most 1")
    S, vectors, total = (
        _leading(A, B, rank) if rank and 4 * rank <= size <= A.shape[0] else _svd(A, B)
    )
    power = S.square()
    if total == 0:
        keep, kept = rank or 1, 1.0
    else:
        shares = power.cumsum(0) / total
        # 1e-12: a share of one must not chase the rounding of the sum
        keep = rank if rank is not None else 1 + int((shares < energy - 1e-12).sum())  # type: ignore[operator]
        keep = min(keep, len(S))
        kept = min(1.0, float(shares[keep - 1]))
    S, (left, right) = S[:keep], vectors(keep)
    sign = torch.sign(left.gather(0, left.abs().argmax(0, keepdim=True)))  # [1, keep]
    sign[sign == 0] = 1
    root = S.sqrt()
    return (sign * root).T * right, left * (sign * root), kept


Spectrum = tuple[Tensor, Callable[[int], tuple[Tensor, Tensor]], float]
"""Singular values of B @ A, descending; how to get the first left [O, keep] and right [keep, I]
vectors; the sum of all squared values.
"""


def _svd(A: Tensor, B: Tensor) -> Spectrum:
    """All singular values."""
    if A.shape[0] <= min(
        B.shape[0], A.shape[1]
    ):  # also a wide D times an identity: several times faster than its SVD
        Q_B, R_B = torch.linalg.qr(B)
        Q_A, R_A = torch.linalg.qr(A.T)
        U, S, Vh = torch.linalg.svd(R_B @ R_A.T)
        return S, lambda keep: (Q_B @ U[:, :keep], Vh[:keep] @ Q_A.T), float(S.square().sum())
    U, S, Vh = torch.linalg.svd(_product(A, B), full_matrices=False)
    return S, lambda keep: (U[:, :keep], Vh[:keep]), float(S.square().sum())


def _leading(A: Tensor, B: Tensor, rank: int) -> Spectrum:
    """The first `rank` singular values of a full D, from the eigenvectors of D D': several times
    faster than all of them.

    D is projected on those vectors, so that only values below 1e-8 of the largest, which a squared
    matrix does not see, may be missed.
    """
    D = _product(A, B)
    wide = D if D.shape[0] <= D.shape[1] else D.T
    U = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].flip(1)
    projected = U.T @ wide
    S = projected.norm(dim=1)
    V = projected / S.clamp(min=torch.finfo(S.dtype).tiny)[:, None]

    def vectors(keep: int) -> tuple[Tensor, Tensor]:
        return (U[:, :keep], V[:keep]) if wide is D else (V[:keep].T, U[:, :keep].T)

    return S, vectors, float(D.square().sum())


def _product(A: Tensor, B: Tensor) -> Tensor:
    """B @ A, where one of them may be the identity of `from_dense`."""
    for factor, other in ((A, B), (B, A)):
        if factor.shape[0] == factor.shape[1] and torch.equal(
            factor, torch.eye(len(factor), dtype=factor.dtype)
        ):
            return other
    return B @ A


def inner(first: Factors, second: Factors) -> float:
    """Frobenius inner product <D_1, D_2> = s_1 s_2 tr((A_2 A_1') (B_1' B_2)), from r x r
    products.
    """
    (A1, B1, s1), (A2, B2, s2) = first, second
    return float(s1 * s2 * ((_wide(A1) @ _wide(A2).T) * (_wide(B1).T @ _wide(B2))).sum())


def norm(factors: Factors) -> float:
    """Frobenius norm of D."""
    A, B, scale = factors
    if A.shape[0] >= min(B.shape[0], A.shape[1]):
        return abs(scale) * float(_product(_wide(A), _wide(B)).norm())
    return max(0.0, inner(factors, factors)) ** 0.5


def gram(factors: Iterable[Factors]) -> Tensor:
    """All inner products of one module's changes, [K, K]. The distance of two is sqrt(g_ii + g_jj -
    2 g_ij).

    Block by block of adapters: beside the factors, memory is that of the result.
    """
    blocks: list[list[Factors]] = [[]]
    for change in factors:
        if sum(A.shape[0] for A, _, _ in blocks[-1]) > BLOCK:
            blocks.append([])
        blocks[-1].append(change)
    rows = []
    for i, block in enumerate(blocks):
        A, B, member = _stacked(block)
        row = []
        for j, other in enumerate(blocks):
            if j < i:
                row.append(rows[j][i].T)
                continue
            A2, B2, member2 = _stacked(other)
            row.append(member.T @ ((A @ A2.T) * (B.T @ B2)) @ member2)
        rows.append(row)
    G = torch.cat([torch.cat(row, dim=1) for row in rows])
    return (G + G.T) / 2


def _stacked(factors: Sequence[Factors]) -> tuple[Tensor, Tensor, Tensor]:
    """s_k A_k and B_k stacked, and which adapter each rank belongs to [ranks, K]."""
    A = torch.cat([scale * _wide(A) for A, _, scale in factors])
    B = torch.cat([_wide(B) for _, B, _ in factors], dim=1)
    owner = torch.repeat_interleave(torch.tensor([A.shape[0] for A, _, _ in factors]))
    return A, B, torch.nn.functional.one_hot(owner, len(factors)).double()


def swa_weights(S: int) -> list[float]:
    """Stochastic weight averaging: every one of S snapshots alike.
    https://arxiv.org/abs/1803.05407
    """
    return [1 / S] * S


def ema_weights(S: int, decay: float) -> list[float]:
    """Weights of x_1..x_S in e_S, where e_1 = x_1 and e_t = decay * e_(t-1) + (1 - decay) * x_t.
    They sum to 1.

    In closed form: decay^(S-1) for the first, (1 - decay) * decay^(S-t) for the t-th.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay {decay} is impossible: at least 0 and below 1")
    return [decay ** (S - 1), *((1 - decay) * decay ** (S - t) for t in range(2, S + 1))]


def _wide(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)
