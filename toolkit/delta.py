"""Algebra of weight changes kept as low-rank factors, in float64 on the CPU.

`Factors` = (A [r, I], B [O, r], scale) stand for D = scale * B @ A, of shape [O, I]. Only D has a meaning: (G A, B G^-1) is
the same D for every invertible G, so nothing here averages A or B by itself. The mean of products is a concatenation of
factors, never the product of means.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor, float]


def dense(factors: Factors) -> Tensor:
    """D = scale * B @ A, [O, I]."""
    A, B, scale = factors
    return scale * (_wide(B) @ _wide(A))


def concat(factors: Iterable[Factors], weights: Iterable[float]) -> tuple[Tensor, Tensor]:
    """(A, B) with B @ A = sum_k w_k D_k, exactly; rank min(sum of r_k, O, I).

    Stacks w_k s_k A_k and B_k until their rank would pass min(O, I); from there on one dense sum is kept (as D times an
    identity), so memory does not grow with the number of adapters. Reads `factors` once: the same order, the same bits.
    """
    A_parts: list[Tensor] = []
    B_parts: list[Tensor] = []
    total = None  # [O, I] once it is smaller than the parts
    rank = 0
    for (A, B, scale), weight in zip(factors, weights, strict=True):
        A, B = weight * scale * _wide(A), _wide(B)
        rank += A.shape[0]
        if total is not None:
            total.addmm_(B, A)
        else:
            A_parts.append(A)
            B_parts.append(B)
            if rank > min(B.shape[0], A.shape[1]):
                total = torch.cat(B_parts, dim=1) @ torch.cat(A_parts)
                A_parts, B_parts = [], []
    if total is None:
        return torch.cat(A_parts), torch.cat(B_parts, dim=1)
    return from_dense(total)


def from_dense(D: Tensor) -> tuple[Tensor, Tensor]:
    """D as factors of rank min(O, I), exactly: D and an identity. `truncate` brings it to a lower rank."""
    identity = torch.eye(min(D.shape), dtype=D.dtype)
    return (D, identity) if D.shape[0] <= D.shape[1] else (identity, D)


def truncate(A: Tensor, B: Tensor, *, rank: int | None = None, energy: float | None = None) -> tuple[Tensor, Tensor, float]:
    """The nearest B @ A of at most `rank`, or of the smallest rank that keeps `energy`; and the energy that is kept.

    Eckart-Young: the leading singular triplets of D, found without forming D (thin QR of both factors, SVD of the small
    core). Energy is sum of kept S^2 / sum of all S^2, so the relative error is sqrt(1 - energy). Singular values are
    split evenly between the factors and the largest entry of every left vector is positive: one D gives one (A, B),
    whatever gauge it came in.
    """
    if (rank is None) == (energy is None):
        raise ValueError("give either rank or energy")
    A, B = _wide(A), _wide(B)
    size = min(B.shape[0], A.shape[1])
    if rank is not None and not 1 <= rank <= size:
        raise ValueError(f"rank {rank} is impossible: a change of shape [{B.shape[0]}, {A.shape[1]}] has ranks 1 to {size}")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy {energy} is impossible: it is a share, above 0 and at most 1")
    left, S, right = _svd(A, B)
    power = S.square()
    total = float(power.sum())
    if total == 0:
        keep, kept = rank or 1, 1.0
    else:
        shares = power.cumsum(0) / total
        # 1e-12: a share of one must not chase the rounding of the sum
        keep = rank if rank is not None else 1 + int((shares < energy - 1e-12).sum())  # type: ignore[operator]
        keep = min(keep, len(S))
        kept = min(1.0, float(shares[keep - 1]))
    left, S, right = left[:, :keep], S[:keep], right[:keep]
    sign = torch.sign(left.gather(0, left.abs().argmax(0, keepdim=True)))  # [1, keep]
    sign[sign == 0] = 1
    root = S.sqrt()
    return (sign * root).T * right, left * (sign * root), kept


def _svd(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors [O, n], singular values [n] descending, right vectors [n, I] of B @ A."""
    if A.shape[0] < min(B.shape[0], A.shape[1]):
        Q_B, R_B = torch.linalg.qr(B)
        Q_A, R_A = torch.linalg.qr(A.T)
        U, S, Vh = torch.linalg.svd(R_B @ R_A.T)
        return Q_B @ U, S, Vh @ Q_A.T
    U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
    return U, S, Vh


def inner(first: Factors, second: Factors) -> float:
    """Frobenius inner product <D_1, D_2> = s_1 s_2 tr((A_2 A_1') (B_1' B_2)), from r x r products."""
    (A1, B1, s1), (A2, B2, s2) = first, second
    return float(s1 * s2 * ((_wide(A1) @ _wide(A2).T) * (_wide(B1).T @ _wide(B2))).sum())


def norm(factors: Factors) -> float:
    """Frobenius norm of D."""
    return max(0.0, inner(factors, factors)) ** 0.5


def gram(factors: Sequence[Factors]) -> Tensor:
    """All inner products of one module's changes, [K, K]. The distance of two is sqrt(g_ii + g_jj - 2 g_ij)."""
    A = torch.cat([scale * _wide(A) for A, _, scale in factors])
    B = torch.cat([_wide(B) for _, B, _ in factors], dim=1)
    owner = torch.repeat_interleave(torch.tensor([A.shape[0] for A, _, _ in factors]))  # which adapter a row of A belongs to
    member = torch.nn.functional.one_hot(owner, len(factors)).double()
    return member.T @ ((A @ A.T) * (B.T @ B)) @ member


def swa_weights(S: int) -> list[float]:
    """Stochastic weight averaging: every one of S snapshots alike. https://arxiv.org/abs/1803.05407"""
    return [1 / S] * S


def ema_weights(S: int, decay: float) -> list[float]:
    """Weights of x_1..x_S in e_S, where e_1 = x_1 and e_t = decay * e_(t-1) + (1 - decay) * x_t. They sum to 1.

    In closed form: decay^(S-1) for the first, (1 - decay) * decay^(S-t) for the t-th.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay {decay} is impossible: at least 0 and below 1")
    return [decay ** (S - 1), *((1 - decay) * decay ** (S - t) for t in range(2, S + 1))]


def _wide(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)
