"""Merges written out from their papers, one entry after another."""

import numpy as np
import scipy.optimize
import scipy.stats
import torch

from toolkit import seeds

ALONG = ("swa", "ema", "lawa")  # to `combine`, a mean

ids = lambda case: f"{case[0]}-{'-'.join(map(str, case[1].values()))}"  # noqa: E731


def ref_mean(D, w):
    return np.einsum("k,koi->oi", w, D)


def ref_trimmed_mean(D, w, trim=0.2):
    """Entry by entry: the quantile function from trim to 1 - trim, averaged by summing the pieces
    of its steps.
    """
    out = np.zeros(D.shape[1:])
    for at in np.ndindex(*out.shape):
        values = D[(slice(None), *at)]
        order = np.argsort(values)
        edges = np.concatenate([[0], np.cumsum(w[order])])
        pieces = [
            (max(lo, trim), min(hi, 1 - trim), v)
            for lo, hi, v in zip(edges[:-1], edges[1:], values[order], strict=True)
        ]
        out[at] = sum((hi - lo) * v for lo, hi, v in pieces if hi > lo) / (1 - 2 * trim)
    return out


def ref_geometric_median(D, w):
    x = D.reshape(len(D), -1)
    unit = np.linalg.norm(x, axis=1).max()
    x = x / unit

    def cost(m):
        return float(w @ np.linalg.norm(x - m, axis=1))

    starts = [w @ x, *x]
    found = min(
        (
            scipy.optimize.minimize(cost, s, method="BFGS", options={"gtol": 1e-12}).x
            for s in starts
        ),
        key=cost,
    )
    best = min([found, *x], key=cost)
    return unit * best.reshape(D.shape[1:])


def ref_shrink(D, w):
    mean = ref_mean(D, w)
    K = len(D)
    plain = D.mean(0)
    v = sum(np.sum((d - plain) ** 2) for d in D) / (K - 1) if K > 1 else 0.0
    return max(0.0, 1 - v * np.sum(w**2) / np.sum(mean**2)) * mean


def ref_model_stock(D, w):
    K = len(D)
    if K == 1:
        return D[0]
    pairs = [
        np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
        for i, a in enumerate(D)
        for b in D[:i]
    ]
    c = max(0.0, np.mean(pairs))
    return K * c / (1 + (K - 1) * c) * ref_mean(D, w)


def ref_elect(D, w, votes=None):
    sign = np.where(np.einsum("k,koi->oi", w if votes is None else votes, D) >= 0, 1, -1)
    agrees = np.sign(D) == sign
    weight = np.einsum("k,koi->oi", w, agrees)
    return np.divide(
        np.einsum("k,koi->oi", w, D * agrees), weight, out=np.zeros_like(weight), where=weight > 0
    )


def ref_top(D, density):
    keep = max(1, int(density * D[0].size))
    return np.stack([np.where(np.abs(d) >= np.sort(np.abs(d), axis=None)[-keep], d, 0) for d in D])


def ref_ties(D, w, density=0.2):
    return ref_elect(ref_top(D, density), w)


def ref_breadcrumbs(D, w, density=0.9, gamma=0.01):
    kept = []
    for d in D:
        order = np.argsort(np.abs(d), axis=None)
        n, keep = d.size, max(1, int(density * d.size))
        top = min(int(gamma * n), n - keep)
        mask = np.zeros(n, bool)
        mask[order[n - top - keep : n - top]] = True
        kept.append(np.where(mask.reshape(d.shape), d, 0))
    return ref_mean(np.stack(kept), w)


def uniform(seed, method, name, shape):
    generator = torch.Generator().manual_seed(seeds.derive(seed, f"merge:{method}:{name}"))
    return torch.rand(shape, generator=generator).numpy()


def ref_dare(D, w, density=0.5, seed=0, ids="012345"):
    masks = np.stack(
        [uniform(seed, "dare", id, d.shape) < density for id, d in zip(ids, D, strict=False)]
    )
    return ref_mean(masks * D / density, w)


def ref_della(D, w, density=0.5, epsilon=0.15, seed=0, ids="012345"):
    pruned = []
    for id, d in zip(ids, D, strict=False):
        rank = scipy.stats.rankdata(np.abs(d), method="ordinal", axis=1) - 1
        p = density - epsilon + 2 * epsilon * rank / (d.shape[1] - 1)
        pruned.append(np.where(uniform(seed, "della", id, d.shape) < p, d / p, 0))
    return ref_elect(np.stack(pruned), w)


def ref_sce(D, w, select_topk=1.0):
    variance = D.var(0)
    if select_topk < 1:
        keep = int(np.count_nonzero(variance) * select_topk)
        D = np.where(variance >= np.sort(variance, axis=None)[-keep], D, 0)
    power = w * (D**2).sum((1, 2))
    return ref_elect(D, power / power.sum(), votes=w)


def ref_multislerp(D, w):
    norm = np.sqrt((D**2).sum((1, 2)))
    mean = ref_mean(D / norm[:, None, None], w)
    return (w @ norm) * mean / np.linalg.norm(mean)


def ref_karcher(D, w):
    """Gradient descent on the sphere in R^(O x I)."""
    norm = np.sqrt((D**2).sum((1, 2)))
    u = (D / norm[:, None, None]).reshape(len(D), -1)
    m = w @ u / np.linalg.norm(w @ u)
    for _ in range(500):
        dot = np.clip(u @ m, -1, 1)
        angle = np.arccos(dot)
        factor = np.where(angle > 1e-9, angle / np.maximum(np.sin(angle), 1e-300), 1.0)
        step = w @ (factor[:, None] * (u - dot[:, None] * m))
        size = np.linalg.norm(step)
        if size < 1e-15:
            break
        m = np.cos(size) * m + np.sin(size) * step / size
        m /= np.linalg.norm(m)
    return (w @ norm) * m.reshape(D.shape[1:])


REFERENCES = {
    "mean": (ref_mean, {}),
    "greedy_soup": (ref_mean, {}),
    "task_arithmetic": (lambda D, w, **p: p["lambda"] * ref_mean(D, w), {"lambda": 0.4}),
    "trimmed_mean": (ref_trimmed_mean, {"trim": 0.3}),
    "geometric_median": (ref_geometric_median, {}),
    "shrink": (ref_shrink, {}),
    "model_stock": (ref_model_stock, {}),
    "ties": (ref_ties, {"density": 0.4}),
    "breadcrumbs": (ref_breadcrumbs, {"density": 0.6, "gamma": 0.2}),
    "dare": (ref_dare, {"density": 0.6, "seed": 3}),
    "della": (ref_della, {"density": 0.5, "epsilon": 0.2, "seed": 3}),
    "sce": (ref_sce, {"select_topk": 0.6}),
    "multislerp": (ref_multislerp, {}),
    "karcher": (ref_karcher, {}),
}
