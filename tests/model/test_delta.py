"""Laws of the low-rank algebra, against dense float64 references written here."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.model import delta

EXACT = {"rtol": 0, "atol": 1e-12}


def draw(generator, r, rows, columns, dtype=torch.float32, scale=None):
    A = torch.randn(r, columns, generator=generator).to(dtype)
    B = torch.randn(rows, r, generator=generator).to(dtype)
    return A, B, float(torch.randn((), generator=generator)) if scale is None else scale


def reference(factors, weights):
    return sum(
        (w * s * (B.double() @ A.double()) for (A, B, s), w in zip(factors, weights, strict=True)),
        torch.zeros(()),
    )


@st.composite
def adapters(draw_):
    """One module's factors of K adapters with ranks, scales and dtypes of their own; and
    weights.
    """
    rows, columns = draw_(st.integers(2, 12)), draw_(st.integers(2, 12))
    ranks = draw_(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    dtype = draw_(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw_(st.integers(0, 2**31)))
    factors = [draw(generator, r, rows, columns, dtype) for r in ranks]
    weights = draw_(st.lists(st.floats(0.01, 3), min_size=len(ranks), max_size=len(ranks)))
    return factors, weights


def gauge(factors, generator):
    """The same change in another basis of its rank: A -> G A, B -> B G^-1."""
    A, B, scale = factors
    r = A.shape[0]
    G = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64))[
        0
    ] @ torch.diag(0.5 + 2 * torch.rand(r, generator=generator, dtype=torch.float64))
    return G @ A.double(), B.double() @ torch.linalg.inv(G), scale


@given(adapters())
@settings(max_examples=60, deadline=None)
def test_concat_is_the_weighted_sum_and_its_rank_is_bounded(case):
    factors, weights = case
    A, B = delta.concat(iter(factors), iter(weights))
    want = reference(factors, weights)
    assert A.shape[0] == min(sum(A.shape[0] for A, _, _ in factors), *want.shape)
    torch.testing.assert_close(B @ A, want, rtol=1e-12, atol=1e-12)


@given(adapters(), st.data())
@settings(max_examples=60, deadline=None)
def test_truncation_is_optimal_and_reports_the_true_energy(case, data):
    factors, weights = case
    A, B = delta.concat(factors, weights)
    want = reference(factors, weights)
    rank = data.draw(st.integers(1, min(want.shape)))
    A, B, energy = delta.truncate(A, B, rank=rank)
    S = torch.linalg.svdvals(want)
    error = (B @ A - want).norm()
    assert error <= S[rank:].norm() * (1 + 1e-5) + 1e-9 * S.norm()
    assert energy == pytest.approx(float(S[:rank].square().sum() / S.square().sum()), abs=1e-9)
    assert float(error) == pytest.approx(
        float(want.norm()) * (1 - energy) ** 0.5, rel=1e-4, abs=1e-6 * float(want.norm())
    )
    # balanced: both factors carry the square roots of the singular values
    torch.testing.assert_close(A @ A.T, B.T @ B, rtol=1e-8, atol=1e-8 * float(S[0]))


@given(adapters(), st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_energy_chooses_the_smallest_rank(case, share):
    factors, weights = case
    A, B = delta.concat(factors, weights)
    A2, _, energy = delta.truncate(A, B, energy=share)
    assert energy >= share - 1e-9
    if A2.shape[0] > 1:
        assert delta.truncate(A, B, rank=A2.shape[0] - 1)[2] < share + 1e-9


@given(adapters(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_gauge_changes_nothing(case, seed):
    factors, weights = case
    generator = torch.Generator().manual_seed(seed)
    turned = [gauge(one, generator) for one in factors]
    A1, B1 = delta.concat(factors, weights)
    A2, B2 = delta.concat(turned, weights)
    torch.testing.assert_close(B1 @ A1, B2 @ A2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(delta.gram(factors), delta.gram(turned), rtol=1e-9, atol=1e-9)


def test_canonical_factors_do_not_depend_on_the_gauge():
    generator = torch.Generator().manual_seed(0)
    one = draw(generator, 4, 20, 15, torch.float64, 2.0)
    first = delta.truncate(*delta.concat([one], [1.0]), rank=4)
    second = delta.truncate(*delta.concat([gauge(one, generator)], [1.0]), rank=4)
    torch.testing.assert_close(first[0], second[0], **EXACT)
    torch.testing.assert_close(first[1], second[1], **EXACT)
    largest = first[1].gather(0, first[1].abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


@given(adapters())
@settings(max_examples=40, deadline=None)
def test_inner_products(case):
    factors, _ = case
    flat = torch.stack([delta.dense(one).flatten() for one in factors])
    gram = flat @ flat.T
    torch.testing.assert_close(
        delta.gram(factors), gram, rtol=1e-9, atol=1e-9 * float(gram.abs().max())
    )
    assert delta.inner(factors[0], factors[-1]) == pytest.approx(
        float(gram[0, -1]), rel=1e-9, abs=1e-9 * float(gram.abs().max())
    )
    assert delta.norm(factors[0]) == pytest.approx(float(flat[0].norm()), rel=1e-9)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_dense_both_ways(shape):
    D = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    A, B = delta.from_dense(D)
    assert torch.equal(B @ A, D)
    A, B, energy = delta.truncate(A, B, rank=min(shape))
    torch.testing.assert_close(B @ A, D, **EXACT)
    assert energy == pytest.approx(1)


def test_a_change_of_zero_stays_zero():
    A, B, energy = delta.truncate(torch.zeros(3, 8), torch.zeros(6, 3), energy=0.9)
    assert A.shape == (1, 8) and not A.any() and not B.any() and energy == 1
    assert delta.truncate(torch.randn(3, 8), torch.zeros(6, 3), rank=2)[0].isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1e-5, -1.0])
def test_homogeneous(scale):
    A, B, _ = draw(torch.Generator().manual_seed(0), 6, 20, 12)
    plain = delta.truncate(A, B, rank=3)
    scaled = delta.truncate(scale * A, B, rank=3)
    torch.testing.assert_close(
        scaled[1] @ scaled[0], scale * (plain[1] @ plain[0]), rtol=1e-5, atol=1e-7 * abs(scale)
    )
    assert scaled[2] == pytest.approx(plain[2], abs=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{"rank": 0}, {"rank": 6}, {"energy": 0.0}, {"energy": 1.5}, {}, {"rank": 1, "energy": 0.5}],
)
def test_impossible_ranks_are_refused(arguments):
    with pytest.raises(ValueError):
        delta.truncate(torch.randn(3, 9), torch.randn(5, 3), **arguments)


@given(st.integers(1, 60), st.floats(0, 0.999))
def test_ema_weights_are_the_recursion(S, decay):
    x = torch.randn(S, dtype=torch.float64, generator=torch.Generator().manual_seed(S))
    e = x[0]
    for t in range(1, S):
        e = decay * e + (1 - decay) * x[t]
    weights = torch.tensor(delta.ema_weights(S, decay), dtype=torch.float64)
    assert float(weights @ x) == pytest.approx(float(e), abs=1e-12)
    assert float(weights.sum()) == pytest.approx(1)
    assert sum(delta.swa_weights(S)) == pytest.approx(1)


def test_decay_of_one_is_refused():
    with pytest.raises(ValueError, match="decay"):
        delta.ema_weights(3, 1.0)


def test_concat_holds_one_dense_sum_however_many_adapters():
    """Of a generator of 2,000 adapters one block is alive at once."""
    import gc
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    def stream():
        nonlocal most
        generator = torch.Generator().manual_seed(0)
        for _ in range(2000):
            one = draw(generator, 4, 24, 16, torch.float64, 1.0)
            alive.append(weakref.ref(one[0]))
            most = max(most, sum(ref() is not None for ref in alive))
            yield one

    gc.disable()
    try:
        A, _ = delta.concat(stream(), [1 / 2000] * 2000)
    finally:
        gc.enable()
    assert A.shape[0] == 16
    assert most <= delta.BLOCK / 4 + 8


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("exact", [3, 24])
def test_the_leading_part_of_a_full_sum_is_that_of_its_svd(shape, exact):
    """Found from D D' instead: the same ranks, energy and change, also where D has fewer ranks than
    are asked for.
    """
    generator = torch.Generator().manual_seed(0)
    B, A = (
        torch.randn(n, generator=generator, dtype=torch.float64)
        for n in ((shape[0], exact), (exact, shape[1]))
    )
    D = B @ A
    U, S, Vh = torch.linalg.svd(D, full_matrices=False)
    A5, B5, energy = delta.truncate(*delta.from_dense(D), rank=5)
    torch.testing.assert_close(
        B5 @ A5, U[:, :5] * S[:5] @ Vh[:5], rtol=1e-9, atol=1e-9 * float(S[0])
    )
    assert energy == pytest.approx(float(S[:5].square().sum() / S.square().sum()), rel=1e-12)
    # the balanced gauge
    torch.testing.assert_close(A5.norm(dim=1), B5.norm(dim=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_many_adapters_are_summed_in_blocks_to_1e_6(dtype):
    """400 adapters of rank 8 are three blocks: the error against float64 stays below 1e-6, for
    independent changes and for copies.
    """
    generator = torch.Generator().manual_seed(0)
    factors = [draw(generator, 8, 40, 30, dtype, 0.5) for _ in range(400)]
    weights = [1 / 400] * 400
    for members in (factors, factors[:1] * 400):
        A, B = delta.concat(iter(members), weights)
        want = reference(members, weights)
        assert float((B @ A - want).norm() / want.norm()) < (
            1e-12 if dtype == torch.float64 else 1e-6
        )


def test_inner_products_in_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    factors = [draw(generator, 1 + k % 3, 9, 7, torch.float64) for k in range(11)]
    whole = delta.gram(factors)
    monkeypatch.setattr(delta, "BLOCK", 4)
    torch.testing.assert_close(delta.gram(factors), whole, rtol=1e-12, atol=1e-12)
    # an adapter that leaves the module alone
    factors.insert(4, (torch.zeros(0, 7), torch.zeros(9, 0), 1.0))
    assert not delta.gram(factors)[4].any() and delta.gram(factors).shape == (12, 12)


@given(adapters(), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_stream_errs_by_no_more_than_it_says(case, buffer):
    factors, weights = case
    want = reference(factors, weights)
    A, B, discarded = delta.stream(iter(factors), iter(weights), buffer)
    assert A.shape[0] <= 2 * buffer + 6
    assert float((B @ A - want).norm()) <= discarded * (1 + 1e-9) + 1e-9 * float(want.norm())
    if sum(A.shape[0] for A, _, _ in factors) <= 2 * min(buffer, *want.shape):
        assert discarded == 0


def test_a_stream_finds_what_is_common_to_all():
    """64 adapters of one direction and a little noise: a buffer of 8 keeps the mean to within its
    bound, which is tight here.
    """
    generator = torch.Generator().manual_seed(0)
    common = draw(generator, 1, 40, 30, torch.float64, 1.0)
    factors = []
    for _ in range(64):
        A, B, _ = draw(generator, 3, 40, 30, torch.float64, 1.0)
        factors.append((torch.cat([common[0], 0.01 * A]), torch.cat([common[1], B], dim=1), 1.0))
    want = reference(factors, [1 / 64] * 64)
    A, B, discarded = delta.stream(factors, [1 / 64] * 64, 8)
    error = float((B @ A - want).norm())
    assert 0 < error <= discarded < 0.05 * float(want.norm())
