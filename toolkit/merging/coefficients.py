"""Methods whose result is a combination sum_k c_k D_k of the changes: each finds the c_k, and no
change is ever formed.

All that such a method can know of the adapters without looking at single entries is their Gram
matrix G, g_ij = <D_i, D_j>, which the factors give by r x r products. (gram [K, K], weights [K]
that sum to 1) -> coefficients [K], in float64.
"""

import torch
from torch import Tensor


def weighted(gram: Tensor, weights: Tensor) -> Tensor:
    """The mean: c = w."""
    return weights


def scaled(gram: Tensor, weights: Tensor, *, lambda_: float) -> Tensor:
    """Task arithmetic, a factor of the mean: c = lambda * w."""
    return lambda_ * weights


def shrink(gram: Tensor, weights: Tensor, *, t: float | None) -> Tensor:
    """The mean times t, toward the base: c = t * w. Without `t`, the t of least expected squared
    error, estimated.

    D_k = S + N_k with independent N_k of mean zero and E|N_k|^2 = v. For the mean M,
    E|t M - S|^2 = t^2 (|S|^2 + v sum w^2) - 2 t |S|^2 + |S|^2 is least at
    t = |S|^2 / (|S|^2 + v sum w^2) = 1 - v sum w^2 / E|M|^2. Every adapter is a group of its own,
    so v is estimated without bias by (tr G - 1'G1 / K) / (K - 1) and E|M|^2 by w'Gw; a negative t
    counts as 0. This is James and Stein's estimator with the dimension so large that (d - 2) / d
    is 1. One adapter says nothing of v: t = 1.
    """
    K = len(weights)
    if t is None:
        spread = (gram.trace() - gram.sum() / K) / (K - 1) if K > 1 else torch.zeros(())
        power = weights @ gram @ weights
        t = max(0.0, 1 - float(spread * weights.square().sum() / power)) if power > 0 else 1.0
    return t * weights


def model_stock(gram: Tensor, weights: Tensor) -> Tensor:
    """The mean times t = K c / (1 + (K - 1) c), where c is the mean cosine of two adapters (below 0
    it counts as 0).

    Where all norms are equal this is the t of `shrink`. One adapter has t = 1.
    """
    K = len(weights)
    if K == 1:
        return weights
    cosine = _cosines(gram)
    c = max(0.0, float(cosine.sum() - cosine.trace()) / (K * (K - 1)))
    return K * c / (1 + (K - 1) * c) * weights


def multislerp(gram: Tensor, weights: Tensor) -> Tensor:
    """The direction of the mean unit vector, with the mean norm. It undoes the shrinkage that
    averaging independent noise brings.
    """
    return _on_the_sphere(gram, weights, steps=0)


def karcher(gram: Tensor, weights: Tensor) -> Tensor:
    """The Karcher mean of the directions (least sum of squared angles), with the mean norm. It
    starts from `multislerp`.
    """
    return _on_the_sphere(gram, weights, steps=100)


def geometric_median(gram: Tensor, weights: Tensor) -> Tensor:
    """The point of least weighted sum of distances, by Weiszfeld's iteration from the mean.

    Distances follow from G: |D_i - M|^2 = g_ii - 2 (Gc)_i + c'Gc. Whether one of the points is the
    median, where the iteration would be slow, is tested first: it is if the unit vectors to the
    others, weighted, sum to less than its own weight.
    """
    squared = (gram.diag()[:, None] + gram.diag()[None, :] - 2 * gram).clamp(min=0)
    # nearer than rounding lets see: the same point
    apart = squared > 1e-14 * float(gram.diag().max())
    for i in range(len(weights)):
        pull = torch.where(apart[i], weights / squared[i].sqrt(), 0.0)  # of the others on point i
        pull[i] = -pull.sum()
        at_i = weights[~apart[i]].sum()
        if max(0.0, float(pull @ gram @ pull)) ** 0.5 < (1 - 1e-9) * float(at_i):
            return torch.nn.functional.one_hot(torch.tensor(i), len(weights)).double()
    c = weights
    for _ in range(10_000):
        distance = (
            (gram.diag() - 2 * gram @ c + c @ gram @ c)
            .clamp(min=1e-28 * float(gram.diag().max()))
            .sqrt()
        )
        new = weights / distance.clamp(min=1e-300)
        new = new / new.sum()
        if float((new - c).abs().max()) < 1e-13:
            break
        c = new
    return c


def _cosines(gram: Tensor) -> Tensor:
    norm = gram.diag().clamp(min=0).sqrt()
    return torch.where(
        norm[:, None] * norm[None, :] > 0, gram / (norm[:, None] * norm[None, :]), 0.0
    ).clamp(-1, 1)


def _on_the_sphere(gram: Tensor, weights: Tensor, steps: int) -> Tensor:
    norm = gram.diag().clamp(min=0).sqrt()
    if not norm.any():
        return weights
    unit = torch.where(norm > 0, 1 / norm, 0.0)  # a change of zero has no direction
    cosine = gram * unit[:, None] * unit[None, :]
    share = torch.where(norm > 0, weights, 0.0)
    share = share / share.sum()
    length = float(share @ cosine @ share)
    if length < 1e-20:
        raise ValueError(
            "the directions of the adapters cancel, so that they have no mean direction; "
            "use another method, or weights"
        )
    m = share / length**0.5
    for _ in range(steps):
        dot = (cosine @ m).clamp(-1, 1)
        angle = dot.arccos()
        # theta / sin(theta), 1 at 0
        pull = share * torch.where(
            angle > 1e-8, angle / dot.square().neg().add(1).clamp(min=1e-30).sqrt(), 1.0
        )
        tangent = pull - (pull @ dot) * m
        size = max(0.0, float(tangent @ cosine @ tangent)) ** 0.5
        if size < 1e-14:
            break
        m = torch.cos(torch.tensor(size)) * m + torch.sin(torch.tensor(size)) / size * tangent
        m = m / float(m @ cosine @ m) ** 0.5
    return float(weights @ norm) * m * unit
