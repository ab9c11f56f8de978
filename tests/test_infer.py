"""Sparse inference against independent references in float64: scikit-learn, SciPy, brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from splinterp.errors import SAEError, SplinterpError
from splinterp.infer import METHODS, Dictionary, Target, correlate, flops_per_row, infer, omp, slabs
from splinterp.sae import SAE, RaggedCodes, SAEConfig, SparseCodes, l0, sparse_if_sparse, to_dense
from splinterp.sae.ragged import RAGGED_UP_TO

scipy_optimize = pytest.importorskip("scipy.optimize")
linear_model = pytest.importorskip("sklearn.linear_model")

ROWS, D_IN, D_SAE = 24, 12, 40
GREEDY = ("mp", "gradient-pursuit", "omp")
L1 = ("ista", "fista", "cd", "lca")
MANY = {"ista": 20_000, "fista": 5_000, "cd": 20_000, "lca": 20_000}


@pytest.fixture
def dictionary():
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)
    W_dec *= torch.rand(D_SAE, 1, generator=generator, dtype=torch.float64) * 3 + 0.1
    return Dictionary(W_dec, torch.randn(D_IN, generator=generator, dtype=torch.float64))


@pytest.fixture
def x():
    return torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sizes(codes, dictionary):
    """Dense u = z·‖W‖."""
    return to_dense(codes, dictionary.d_sae) * dictionary.norms


def errors(codes, x, dictionary):
    """‖x − x̂‖² of each row."""
    return (to_dense(codes, dictionary.d_sae) @ dictionary.W_dec + dictionary.b_dec - x).square().sum(1)


def atoms_and_rows(x, dictionary):
    return dictionary.atoms.T.numpy(), (x - dictionary.b_dec).numpy()


def target_of(name, **more):
    """Something that the method takes."""
    if "k" in METHODS[name].stops:
        return Target(k=4, **more)
    # So few steps that Adam, which divides by its gradient, has not begun to amplify rounding.
    return Target(**{"ito": {"l1": 1.0, "steps": 30}, "ls": {}}.get(name, {"l1": 1.0}), **more)


def start_of(name, x, dictionary):
    return infer("mp", x, dictionary, Target(k=4)) if METHODS[name].start == "must" else None


def signs(name):
    return (True, False) if "signed" in METHODS[name].takes else (False,)


CASES = [(name, signed) for name in METHODS for signed in signs(name)]
every_method = pytest.mark.parametrize(("name", "signed"), CASES)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_signed_omp_is_scikit_learns(x, dictionary, k):
    A, y = atoms_and_rows(x, dictionary)
    expected = linear_model.orthogonal_mp(A, y.T, n_nonzero_coefs=k).T.reshape(ROWS, -1)
    codes = infer("omp", x, dictionary, Target(k=k, signed=True))
    np.testing.assert_allclose(sizes(codes, dictionary), expected, atol=1e-9)


def greedy_nnls(A, y, k):
    """Take the largest positive correlation, fit by SciPy's NNLS, let go of zeros."""
    support, u = [], np.zeros(0)
    while len(support) < k:
        correlations = A.T @ (y - A[:, support] @ u)
        if correlations.max() <= 1e-12:
            break
        support = [*support, int(correlations.argmax())]
        u, _ = scipy_optimize.nnls(A[:, support], y)
        support, u = [j for j, value in zip(support, u, strict=True) if value > 0], u[u > 0]
    dense = np.zeros(A.shape[1])
    dense[support] = u
    return dense


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_non_negative_omp_is_the_greedy_choice_with_scipys_nnls(x, dictionary, k):
    A, y = atoms_and_rows(x, dictionary)
    codes = infer("omp", x, dictionary, Target(k=k))
    np.testing.assert_allclose(sizes(codes, dictionary), [greedy_nnls(A, row, k) for row in y], atol=1e-9)


@pytest.mark.parametrize("k", [D_IN, D_SAE])
def test_non_negative_omp_to_its_end_solves_nnls(x, dictionary, k):
    A, y = atoms_and_rows(x, dictionary)
    codes = infer("omp", x, dictionary, Target(k=k))
    expected = [scipy_optimize.nnls(A, row)[1] ** 2 for row in y]
    np.testing.assert_allclose(errors(codes, x, dictionary), expected, atol=1e-9)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", L1)
def test_penalised_codes_reach_scikit_learns_objective(x, dictionary, name, signed):
    A, y = atoms_and_rows(x, dictionary)
    l1 = 0.4
    lasso = linear_model.Lasso(alpha=l1 / D_IN, fit_intercept=False, positive=not signed, tol=1e-12, max_iter=100_000)
    expected = np.stack([lasso.fit(A, row).coef_ for row in y])

    def objective(u):
        return ((y - u @ A.T) ** 2).sum(1) / 2 + l1 * np.abs(u).sum(1)

    codes = infer(name, x, dictionary, Target(l1=l1, signed=signed, steps=MANY[name]))
    u = sizes(codes, dictionary).numpy()
    assert signed or (u >= 0).all()
    np.testing.assert_allclose(objective(u), objective(expected), rtol=1e-6, atol=0)
    warm = infer(name, x, dictionary, Target(l1=l1, signed=signed, steps=1), codes) if METHODS[name].start == "may" else codes
    np.testing.assert_allclose(objective(sizes(warm, dictionary).numpy()), objective(expected), rtol=1e-6)


@pytest.mark.parametrize(("name", "signed"), [(name, i % 2 == 0) for i, name in enumerate(L1)])
def test_by_default_every_row_of_a_penalty_is_finished(name, signed):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(64, 24, generator=generator) + 0.7 * torch.randn(1, 24, generator=generator)  # one large eigenvalue
    dictionary = Dictionary(W_dec, torch.zeros(24))
    assert dictionary.lipschitz > 15
    z = torch.rand(40, 64, generator=generator) * (torch.rand(40, 64, generator=generator) < 0.1)
    x, told = z @ W_dec, []
    codes = infer(name, x, dictionary, Target(l1=0.5, signed=signed), tell=told.append)
    exact = dictionary.to(torch.float64)
    best = infer("cd", x.double(), exact, Target(l1=0.5, signed=signed))

    def objective(codes):
        dense = to_dense(codes, 64).double()
        return errors(dense, x.double(), exact) / 2 + 0.5 * sizes(dense, exact).abs().sum(1)

    assert ((objective(codes) - objective(best)) <= 1e-5 / 2 * x.square().sum(1) + 1e-6).all()
    (effort,) = told
    assert (effort.rows, effort.unfinished) == (40, 0)
    assert 40 <= effort.steps < 40 * METHODS[name].steps
    infer(name, x, dictionary, Target(l1=0.5, signed=signed, steps=3), tell=told.append)
    assert told[1].unfinished > 0
    assert told[1].steps == 3 * 40


def test_codes_are_of_one_kind_whatever_the_slabs(monkeypatch, x, dictionary):
    x = x * torch.cat([torch.full((12, 1), 0.5), torch.full((12, 1), 8.0)])  # few codes, and then many
    kinds = set[type]()
    for cpu_bytes in (2**26, 2**13):
        monkeypatch.setattr(slabs, "_CPU_BYTES", cpu_bytes)
        for l1 in (3.0, 12.0):
            codes = infer("cd", x, dictionary, Target(l1=l1))
            assert isinstance(codes, RaggedCodes) == (l0(codes) <= RAGGED_UP_TO * D_SAE)
            kinds.add(type(codes))
    assert kinds == {RaggedCodes, torch.Tensor}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", ["ista", "cd"])
def test_the_objective_never_rises(x, dictionary, name, signed):
    before = (x - dictionary.b_dec).square().sum(1) / 2
    for steps in range(1, 40):
        codes = infer(name, x, dictionary, Target(l1=0.2, signed=signed, steps=steps))
        after = errors(codes, x, dictionary) / 2 + 0.2 * sizes(codes, dictionary).abs().sum(1)
        assert (after <= before + 1e-12).all()
        before = after


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", GREEDY)
def test_more_atoms_never_leave_more(x, dictionary, name, signed):
    before = (x - dictionary.b_dec).square().sum(1)
    for k in range(1, 20):
        codes = infer(name, x, dictionary, Target(k=k, signed=signed))
        after = errors(codes, x, dictionary)
        assert (after <= before + 1e-12).all()
        assert signed or (codes.values >= 0).all()
        before = after


def test_the_better_the_fit_after_each_choice_the_less_is_left(x, dictionary):
    for signed in (True, False):
        left = [float(errors(infer(name, x, dictionary, Target(k=6, signed=signed)), x, dictionary).sum()) for name in GREEDY]
        assert left == sorted(left, reverse=True)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", ["sparse", "ragged", "dense"])
def test_least_squares_on_the_support(x, dictionary, signed, kind):
    A, y = atoms_and_rows(x, dictionary)
    start = infer("mp", x, dictionary, Target(k=5))
    dense = to_dense(start, D_SAE)
    start = {"sparse": start, "ragged": sparse_if_sparse(dense, dense != 0), "dense": dense}[kind]
    if kind == "ragged":
        rows, indices = dense.nonzero(as_tuple=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), (dense != 0).sum(1).cumsum(0)])
        start = RaggedCodes(indices, dense[rows, indices], starts)
    u = sizes(infer("ls", x, dictionary, Target(signed=signed), start), dictionary).numpy()
    for i in range(ROWS):
        support = dense[i].nonzero().squeeze(1).numpy()
        solve = (lambda M, row: np.linalg.lstsq(M, row, rcond=None)) if signed else scipy_optimize.nnls
        expected = np.zeros(D_SAE)
        expected[support] = solve(A[:, support], y[i])[0]
        np.testing.assert_allclose(u[i], expected, atol=1e-9)


def test_inference_time_optimisation_cold_and_warm(x, dictionary):
    l1 = 1.0

    def loss(codes):
        return errors(codes, x, dictionary) / D_IN + l1 * sizes(codes, dictionary).mean(1)

    start = infer("omp", x, dictionary, Target(k=4))
    assert (to_dense(start, D_SAE) == 0).any()
    before = loss(start)
    for steps in (1, 10, 300):
        warm = loss(infer("ito", x, dictionary, Target(l1=l1, steps=steps), start))
        cold = loss(infer("ito", x, dictionary, Target(l1=l1, steps=steps)))
        assert (warm <= before + 1e-12).all()
        if steps < 300:
            assert warm.mean() < cold.mean()
    A, y = atoms_and_rows(x, dictionary)
    lasso = linear_model.Lasso(alpha=l1 / D_SAE / 2, fit_intercept=False, positive=True, tol=1e-12, max_iter=100_000)
    best = np.stack([lasso.fit(A, row).coef_ for row in y])
    optimum = torch.from_numpy(((y - best @ A.T) ** 2).mean(1) + l1 * best.mean(1))
    long = [infer("ito", x, dictionary, Target(l1=l1, steps=4000, rate=0.01), s) for s in (None, start)]
    for codes in long:
        assert (loss(codes) >= optimum - 1e-6).all()
        assert (loss(codes) <= 1.02 * optimum).all()
        active = (to_dense(codes, D_SAE) > 0).sum(1)  # exp is never 0, and these are
        assert (active - torch.from_numpy((best > 0).sum(1))).abs().max() <= 4
        assert active.float().mean() < D_SAE / 3


def test_codes_that_were_left_out_come_back(dictionary):
    # All weight on the wrong latent: the right one begins at the floor and has to grow by a factor of 10,000.
    x = dictionary.W_dec[:1] * 2 + dictionary.b_dec
    start = torch.zeros(1, D_SAE, dtype=torch.float64)
    start[0, 1] = 1.0
    z = to_dense(infer("ito", x, dictionary, Target(l1=1e-4, steps=2000), start), D_SAE)
    assert float(errors(z, x, dictionary)) < 1e-4 * float((x - dictionary.b_dec).square().sum())


@every_method
def test_the_gauge_is_free(x, dictionary, name, signed):
    scale = torch.rand(D_SAE, 1, dtype=torch.float64) * 5 + 0.2
    other = Dictionary(dictionary.W_dec * scale, dictionary.b_dec)
    target = target_of(name, **({"signed": True} if signed else {}))
    start = start_of(name, x, dictionary)
    z = to_dense(infer(name, x, dictionary, target, start), D_SAE)
    torch.testing.assert_close(to_dense(infer(name, x, other, target, start), D_SAE) * scale[:, 0], z)


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_and_doubled_atoms_and_rows_of_nothing(dictionary, x, name, signed, dtype):
    W_dec = dictionary.W_dec.clone()
    W_dec[3], W_dec[5], W_dec[6] = 0, W_dec[4], -2 * W_dec[4]
    odd = Dictionary(W_dec.to(dtype), dictionary.b_dec.to(dtype))
    x = x.to(dtype).clone()
    x[0] = odd.b_dec
    x[1] = 2 * odd.W_dec[4] + odd.b_dec
    target = target_of(name, **({"signed": True} if signed else {}))
    start = infer("mp", x, odd, Target(k=4)) if METHODS[name].start == "must" else None
    if start is not None:  # the doubled ones together, and the dead one
        start = SparseCodes(torch.tensor([[3, 4, 5, 6]]).expand(ROWS, 4).clone(), torch.ones(ROWS, 4, dtype=dtype))
    codes = infer(name, x, odd, target, start)
    z = to_dense(codes, D_SAE)
    assert z.isfinite().all()
    assert (z[:, 3] == 0).all()
    if isinstance(codes, SparseCodes):
        assert all(len(set(row)) == len(row) for row in codes.indices.tolist())
    assert z[0].abs().max() < 1e-6
    assert (errors(codes, x, odd) <= (x - odd.b_dec).square().sum(1) * (1 + 1e-6)).all()
    if name in ("omp", "ls"):
        assert float(errors(codes, x, odd)[1]) < 1e-8


@every_method
def test_slabs_are_the_whole(monkeypatch, x, dictionary, name, signed):
    target = target_of(name, **({"signed": True} if signed else {}))
    start = start_of(name, x, dictionary)
    whole = to_dense(infer(name, x, dictionary, target, start), D_SAE)
    monkeypatch.setattr(slabs, "_CPU_BYTES", 2**14)  # a few rows at a time
    by_slabs = infer(name, x, dictionary, target, start)
    torch.testing.assert_close(to_dense(by_slabs, D_SAE), whole)
    nothing = infer(name, x[:0], dictionary, target, None if start is None else SparseCodes(*(t[:0] for t in start)))
    assert to_dense(nothing, D_SAE).shape == (0, D_SAE)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", [*GREEDY, "cd", "ls"])
def test_without_the_gram_matrix_the_codes_are_the_same(x, dictionary, name, signed):
    target = target_of(name, signed=signed)
    start = start_of(name, x, dictionary)
    with_gram = to_dense(infer(name, x, dictionary, target, start), D_SAE)
    free = Dictionary(dictionary.W_dec, dictionary.b_dec, gram_bytes=0)
    without = infer(name, x, free, target, start)
    assert free.gram is None
    assert free.to(torch.float32).gram is None
    torch.testing.assert_close(to_dense(without, D_SAE), with_gram)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", GREEDY)
def test_sums_of_many_rows_of_the_gram_matrix(name, signed):
    generator = torch.Generator().manual_seed(0)
    W_dec, x = (torch.randn(n, 64, generator=generator, dtype=torch.float64) for n in (96, 20))
    dictionary, free = (Dictionary(W_dec, torch.zeros(64, dtype=torch.float64), gram_bytes=b) for b in (2**30, 0))
    assert correlate.OfDictionary(x, dictionary)._by_gram(16) is not None
    by_gram, dense = (to_dense(infer(name, x, d, Target(k=16, signed=signed)), 96) for d in (dictionary, free))
    torch.testing.assert_close(by_gram, dense)


@pytest.mark.parametrize("d", [D_SAE, 256, 272])  # without blocks, and with
@pytest.mark.parametrize("either_sign", [True, False])
def test_the_largest_of_a_row(d, either_sign):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-5, 6, (200, d), generator=generator).float()  # the largest many times over
    for _ in range(3):
        found = (scores.abs() if either_sign else scores).gather(1, correlate.largest(scores, either_sign))
        assert torch.equal(found, (scores.abs() if either_sign else scores).amax(1, keepdim=True))
        scores[torch.arange(200), torch.randint(d, (200,), generator=generator)] = -torch.inf
    scores[:, 7] = torch.inf
    assert either_sign or (correlate.largest(scores) == 7).all()
    assert (correlate.largest(torch.full((3, d), -torch.inf), either_sign) < d).all()
    scores[:] = 0
    scores[:, d - 1] = torch.tensor([-1.0, 1.0]).repeat(100)
    assert (correlate.largest(scores, True) == d - 1).all()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", GREEDY)
@pytest.mark.parametrize("k", [D_IN + 5, D_SAE])
def test_more_atoms_than_dimensions(x, dictionary, name, signed, k):
    codes = infer(name, x, dictionary, Target(k=k, signed=signed))
    assert codes.indices.shape == (ROWS, k)
    assert all(len(set(row)) == k for row in codes.indices.tolist())
    if signed and name == "omp":
        assert errors(codes, x, dictionary).max() < 1e-12


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", GREEDY)
def test_rows_end_at_their_residual(x, dictionary, name, signed):
    whole = (x - dictionary.b_dec).square().sum(1)
    ks = (infer(name, x, dictionary, Target(k=k, signed=signed)) for k in range(1, D_IN + 1))
    left = torch.stack([whole, *(errors(codes, x, dictionary) for codes in ks)])
    enough = left <= 0.5**2 * whole
    codes = infer(name, x, dictionary, Target(residual=0.5, signed=signed))
    after = errors(codes, x, dictionary)
    assert codes.indices.shape[1] == D_IN
    reached = enough.any(0)
    assert reached.float().mean() > 0.5
    first = enough.int().argmax(0)
    torch.testing.assert_close(after[reached], left.gather(0, first[None])[0][reached])


def test_float32_pursuit_is_close_to_float64(x, dictionary):
    for name in GREEDY:
        exact = errors(infer(name, x, dictionary, Target(k=6)), x, dictionary)
        single = infer(name, x.float(), dictionary.to(torch.float32), Target(k=6))
        assert single.values.dtype is torch.float32
        torch.testing.assert_close(
            errors(single._replace(values=single.values.double()), x, dictionary), exact, rtol=1e-4, atol=1e-5
        )


def clusters(spread):
    """32 clusters of 12 atoms in 64 dimensions, and rows of about eight atoms with noise."""
    generator = torch.Generator().manual_seed(1)
    base, apart = (torch.randn(*shape, 64, generator=generator, dtype=torch.float64) for shape in ((32, 1), (32, 12)))
    dictionary = Dictionary((base + spread * apart).reshape(-1, 64), torch.zeros(64, dtype=torch.float64))
    z = torch.rand(100, 384, generator=generator, dtype=torch.float64)
    z *= torch.rand(100, 384, generator=generator) < 8 / 384
    return dictionary, z @ dictionary.W_dec + 0.1 * torch.randn(100, 64, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", ["omp", "ls"])
@pytest.mark.parametrize("spread", [0.1, 0.01])
def test_float32_fits_correlated_atoms_like_float64(name, signed, spread):
    dictionary, x = clusters(spread)
    target = Target(k=64, signed=signed) if name == "omp" else Target(signed=signed)
    start = infer("mp", x, dictionary, Target(k=32, signed=signed)) if name == "ls" else None
    exact = infer(name, x, dictionary, target, start)
    single = infer(name, x.float(), dictionary.to(torch.float32), target, start)
    left, whole = [errors(to_dense(c, 384).double(), x, dictionary) for c in (single, exact)], x.square().sum(1)
    assert ((left[0] - left[1]) / whole).max() < 1e-4


def test_no_row_is_left_with_more_than_it_was(x, dictionary):
    rows = correlate.OfDictionary(x, dictionary)
    generator = torch.Generator().manual_seed(0)
    S = torch.stack([torch.randperm(D_SAE, generator=generator)[:6] for _ in range(ROWS)])
    good = to_dense(infer("ls", x + dictionary.b_dec, dictionary, Target(signed=True), SparseCodes(S, S.double() + 1)), D_SAE)
    good = (good * dictionary.norms).gather(1, S)
    bad = torch.randn(ROWS, 6, generator=generator, dtype=torch.float64)
    for u in (good, 0.1 * bad, bad, 1e3 * bad, torch.where(bad > 1, torch.inf, bad)):
        bounded = omp._bounded(rows, S, u)
        assert (rows.left(S, bounded) <= rows.squared * (1 + 1e-12)).all()
        fine = rows.left(S, u) <= rows.squared
        assert torch.equal(bounded[fine], u[fine])
        among = correlate.OnSupport(x, dictionary, S, torch.ones_like(S, dtype=torch.bool))
        places = torch.arange(6).expand(ROWS, 6)
        torch.testing.assert_close(omp._bounded(among, places, u), bounded)
    assert not fine.all()


@pytest.mark.parametrize("scale", [1e-36, 1e-23, 1e20, 1e36])
def test_atoms_of_any_length_that_float32_has(x, dictionary, scale):
    dictionary = dictionary.to(torch.float32)
    other = Dictionary(dictionary.W_dec * scale, dictionary.b_dec)
    torch.testing.assert_close(other.atoms.norm(dim=1), torch.ones(D_SAE))
    codes, found = (infer("omp", x.float(), d, Target(k=5)) for d in (dictionary, other))
    torch.testing.assert_close(to_dense(found, D_SAE) * scale, to_dense(codes, D_SAE), rtol=1e-4, atol=1e-5)


@every_method
@pytest.mark.parametrize("exponent", [-100, -60, 60, 100])
def test_rows_of_any_length_that_float32_has(x, dictionary, name, signed, exponent):
    dictionary, x, scale = dictionary.to(torch.float32), x.float(), 2.0**exponent
    target = target_of(name, **({"signed": True} if signed else {}))
    other = Dictionary(dictionary.W_dec, dictionary.b_dec * scale)
    start = start_of(name, x, dictionary)
    z = to_dense(infer(name, x, dictionary, target, start), D_SAE)
    scaled = target if target.l1 is None else replace(target, l1=target.l1 * scale)
    start = start if start is None else start._replace(values=start.values * scale)
    torch.testing.assert_close(to_dense(infer(name, x * scale, other, scaled, start), D_SAE) / scale, z)


def test_codes_to_begin_from_that_cannot_be(x, dictionary):
    start = infer("mp", x, dictionary, Target(k=3))
    dense = to_dense(start, D_SAE)
    dense[3, 1] = torch.nan
    for name, target in (("fista", Target(l1=0.1)), ("cd", Target(l1=0.1)), ("ito", Target(l1=0.1)), ("ls", Target())):
        with pytest.raises(SAEError, match="begin from have values that are not finite among rows 0 to 23"):
            infer(name, x, dictionary, target, dense)
        for index in (D_SAE, -1):
            with pytest.raises(SAEError, match="begin from name latents that the dictionary of 40 does not have"):
                infer(name, x, dictionary, target, start._replace(indices=torch.full_like(start.indices, index)))


def test_codes_in_columns_are_codes(x, dictionary):
    start = infer("mp", x, dictionary, Target(k=4))
    columns = SparseCodes(*(t.T.contiguous().T for t in start))
    expected = infer("ls", x, dictionary, Target(), start)
    torch.testing.assert_close(infer("ls", x, dictionary, Target(), columns).values, expected.values)


def test_the_dictionary_of_an_sae(x):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, D_IN, generator=generator)
    config = SAEConfig("topk", D_IN, D_SAE, k=4, rescale_acts_by_decoder_norm=True)
    sae = SAE(config, W_dec.T.contiguous(), torch.zeros(D_SAE), W_dec, torch.ones(D_IN))
    rows = x.float()
    better = infer("ls", rows, Dictionary.of(sae), Target(), sae.encode(rows))
    assert (sae.decode(better) - rows).square().sum() < (sae(rows) - rows).square().sum()


@pytest.mark.parametrize("name", METHODS)
def test_cost_grows_with_what_is_asked(name):
    few = flops_per_row(name, D_SAE, D_IN, target_of(name), support=4)
    wide = flops_per_row(name, D_SAE, 4 * D_IN, target_of(name), support=4)
    assert 2 * D_SAE * D_IN <= few < wide
    if METHODS[name].steps:
        assert flops_per_row(name, D_SAE, D_IN, target_of(name), support=4, steps=10**6) > few
        if name != "ito":  # a look at the gap at the 20th or the 64th step is not the 21st's or the 65th's
            at = 64 if name == "cd" else 20
            costs = [flops_per_row(name, D_SAE, D_IN, target_of(name), steps=at + i) for i in (-1, 0, 1, 2)]
            assert costs[1] - costs[0] == costs[3] - costs[2] < costs[2] - costs[1]
    else:
        assert few < flops_per_row(name, D_SAE, D_IN, target_of(name), support=8)


@pytest.mark.parametrize("name", ["mp", "gradient-pursuit", "omp"])
def test_cost_of_a_step_is_at_most_little_more_than_a_dense_product(name):
    def step(d_sae, d_in, k):
        return flops_per_row(name, d_sae, d_in, Target(k=k)) - flops_per_row(name, d_sae, d_in, Target(k=k - 1))

    product = 2 * 1536 * 384
    assert step(1536, 384, 8) < product / 10
    assert product < step(1536, 384, 256) < 2 * product or name == "mp"
    assert step(32_768, 384, 8) > 2 * 32_768 * 384  # no Gram matrix


@pytest.mark.parametrize(
    ("name", "target", "start", "told"),
    [
        ("lars", Target(k=3), False, "no method 'lars'"),
        ("omp", Target(), False, "needs k or residual"),
        ("omp", Target(k=3, l1=0.1), False, "l1 has no effect on omp"),
        ("fista", Target(k=3, l1=0.1), False, "k has no effect on fista"),
        ("fista", Target(), False, "needs l1"),
        ("ito", Target(l1=0.1, signed=True), False, "signed has no effect on ito"),
        ("ls", Target(), False, "needs codes"),
        ("omp", Target(k=3), True, "does not begin from codes"),
        ("omp", Target(k=D_SAE + 1), False, "lower k"),
    ],
)
def test_what_a_method_cannot_take_is_refused(x, dictionary, name, target, start, told):
    codes = infer("mp", x, dictionary, Target(k=2)) if start else None
    with pytest.raises(SplinterpError, match=told):
        infer(name, x, dictionary, target, codes)


@pytest.mark.parametrize("bad", [{"k": 0}, {"steps": 0}, {"l1": -1.0}, {"residual": 1.0}, {"rate": 0.0}])
def test_targets_that_cannot_be(bad):
    with pytest.raises(SplinterpError):
        Target(**bad)


def test_rows_and_dictionaries_that_cannot_be(x, dictionary):
    target = Target(k=2)
    with pytest.raises(SAEError, match="Rows must be"):
        infer("omp", x[:, 1:], dictionary, target)
    x = x.clone()
    x[7, 2] = torch.nan
    with pytest.raises(SAEError, match="not finite among rows 0 to 23"):
        infer("omp", x, dictionary, target)
    with pytest.raises(SAEError, match="not finite"):
        Dictionary(dictionary.W_dec * torch.inf, dictionary.b_dec)
    with pytest.raises(SAEError, match="got"):
        Dictionary(dictionary.W_dec, dictionary.b_dec[1:])
    with pytest.raises(SAEError, match="of 23 rows"):
        infer("ls", x, dictionary, Target(), SparseCodes(torch.zeros(23, 1, dtype=torch.int64), torch.ones(23, 1)))
