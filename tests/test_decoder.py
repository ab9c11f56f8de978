"""The streamed statistics and the closed-form decoder against direct float64 least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from splinterp.errors import SplinterpError
from splinterp.sae import SparseCodes, select_topk, sparse_if_sparse, to_dense
from splinterp.train import Penalties, Statistics, solve_decoder
from splinterp.train.moments import mean_diagonal

N, D_IN, D_SAE, K = 500, 12, 40, 7


def some_rows(seed: int = 0, activation: str = "topk"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D_IN, generator=generator, dtype=torch.float64) + 3.0
    pre = (x - 3) @ torch.randn(D_IN, D_SAE, generator=generator, dtype=torch.float64)
    pre = pre + 0.3 * torch.randn(N, D_SAE, generator=generator, dtype=torch.float64)  # more directions than x has
    return x, select_topk(pre, K) if activation == "topk" else (
        pre - pre.quantile(0.95)
    ).relu() if activation == "sparse relu" else pre.relu()


def part(codes, a, b):
    return (
        SparseCodes(codes.indices[a:b], codes.values[a:b]) if isinstance(codes, SparseCodes) else sparse_if_sparse(codes[a:b])
    )


def streamed(x, codes, batch=64) -> Statistics:
    statistics = Statistics(D_IN, D_SAE)
    for a in range(0, len(x), batch):
        statistics.add(x[a : a + batch], part(codes, a, a + batch))
    return statistics


def direct(x, codes, p: Penalties, W0, b0):
    """The penalised problem as one tall least-squares system, by NumPy's SVD."""
    z = to_dense(codes, D_SAE).numpy()
    eye, zero = np.eye(D_SAE), np.zeros((D_SAE, 1))
    left = [np.hstack([z, np.ones((len(z), 1))])]
    right = [x.numpy()]
    for weight, target in ((p.alpha, np.zeros((D_SAE, D_IN))), (p.mu, W0.numpy())):
        left.append(np.sqrt(weight) * np.hstack([eye, zero]))
        right.append(np.sqrt(weight) * target)
    for weight, target in ((p.beta, np.zeros(D_IN)), (p.nu, b0.numpy())):
        left.append(np.sqrt(weight) * np.eye(D_SAE + 1)[-1:])
        right.append(np.sqrt(weight) * target[None])
    solution = np.linalg.lstsq(np.vstack(left), np.vstack(right), rcond=None)[0]
    return torch.from_numpy(solution[:-1]), torch.from_numpy(solution[-1])


@pytest.mark.parametrize("activation", ["topk", "relu", "sparse relu"])
def test_streamed_decoder_equals_direct_least_squares(activation, penalties):
    x, codes = some_rows(activation=activation)
    generator = torch.Generator().manual_seed(9)
    W0 = torch.randn(D_SAE, D_IN, generator=generator, dtype=torch.float64)
    b0 = torch.randn(D_IN, generator=generator, dtype=torch.float64)
    decoder = solve_decoder(streamed(x, codes), penalties, W0, b0)
    W, b = direct(x, codes, penalties, W0, b0)
    assert decoder.how == "cholesky"
    assert (decoder.W_dec - W).norm() <= 1e-8 * W.norm()
    assert (decoder.b_dec - b).norm() <= 1e-8 * b.norm()


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_sums_over_two_halves_equal_sums_over_the_whole(activation):
    x, codes = some_rows(activation=activation)
    whole = streamed(x, codes)
    merged = streamed(x[:201], part(codes, 0, 201))
    merged.absorb(streamed(x[201:], part(codes, 201, N)))
    for name in ("gram", "cross", "sum_z", "sum_x"):
        a, b = getattr(whole, name), getattr(merged, name)
        assert (a - b).norm() <= 1e-12 * b.norm(), name
    assert merged.rows == whole.rows == N
    assert merged.sum_xx == pytest.approx(whole.sum_xx, rel=1e-13)


def test_loss_from_the_sums_is_the_loss_over_the_rows():
    x, codes = some_rows()
    W, b = torch.randn(D_SAE, D_IN, dtype=torch.float64), torch.randn(D_IN, dtype=torch.float64)
    statistics = streamed(x, codes)
    over_rows = (to_dense(codes, D_SAE) @ W + b - x).square().sum()
    assert statistics.loss(W, b) == pytest.approx(float(over_rows), rel=1e-11)
    assert statistics.variance() == pytest.approx(float((x - x.mean(0)).square().sum()), rel=1e-11)


def test_no_other_decoder_has_a_smaller_objective():
    x, codes = some_rows()
    statistics, p = streamed(x, codes), Penalties(alpha=1.0, beta=2.0)

    def objective(W, b):
        return statistics.loss(W, b) + p.alpha * float(W.square().sum()) + p.beta * float(b.square().sum())

    best = solve_decoder(statistics, p)
    least = objective(best.W_dec, best.b_dec)
    for seed in range(5):
        torch.manual_seed(seed)
        W, b = best.W_dec + 1e-3 * torch.randn_like(best.W_dec), best.b_dec + 1e-3 * torch.randn_like(best.b_dec)
        assert objective(W, b) > least


def test_decay_weighs_older_rows_less_however_long_it_runs():
    x, codes = some_rows()
    decayed, weights = Statistics(D_IN, D_SAE), torch.zeros(N, dtype=torch.float64)
    for a in range(0, N, 10):
        decayed.decay(0.5)  # fifty halvings: the stored factor underflows its bound on the way
        weights[:a] *= 0.5
        decayed.add(x[a : a + 10], part(codes, a, a + 10))
        weights[a : a + 10] = 1
    z = to_dense(codes, D_SAE)
    assert torch.allclose(decayed.gram, z.T @ (weights[:, None] * z), rtol=1e-9)
    assert torch.allclose(decayed.cross, z.T @ (weights[:, None] * x), rtol=1e-9)
    assert decayed.rows == pytest.approx(float(weights.sum()), rel=1e-9)
    assert decayed.sum_xx == pytest.approx(float(weights @ x.square().sum(1)), rel=1e-9)


def test_change_of_gauge_equals_scaled_codes():
    x, codes = some_rows()
    factors = torch.rand(D_SAE, dtype=torch.float64) + 0.5
    statistics = streamed(x, codes)
    statistics.rescale_latents(factors)
    scaled = streamed(x, to_dense(codes, D_SAE) * factors)
    assert torch.allclose(statistics.gram, scaled.gram)
    assert torch.allclose(statistics.cross, scaled.cross)
    assert torch.allclose(statistics.sum_z, scaled.sum_z)


def test_latents_that_never_fire_and_latents_that_are_copies_still_give_the_best_loss():
    x, codes = some_rows(activation="relu")
    codes = codes.clone()
    codes[:, 3] = 0  # never fires
    codes[:, 5] = codes[:, 4]  # a copy: the Gram matrix is singular
    decoder = solve_decoder(streamed(x, codes))
    z = torch.cat([codes, torch.ones(N, 1, dtype=torch.float64)], 1).numpy()
    residual = np.linalg.lstsq(z, x.numpy(), rcond=None)
    least = float(np.square(z @ residual[0] - x.numpy()).sum())
    loss = float((codes @ decoder.W_dec + decoder.b_dec - x).square().sum())
    assert decoder.how != "cholesky"
    assert loss == pytest.approx(least, rel=1e-6)


def test_an_anchor_keeps_the_row_of_a_latent_that_never_fires():
    x, codes = some_rows(activation="relu")
    codes = codes.clone()
    codes[:, 3] = 0
    W0 = torch.randn(D_SAE, D_IN, dtype=torch.float64)
    decoder = solve_decoder(streamed(x, codes), Penalties(mu=1e-3), W0)
    assert torch.allclose(decoder.W_dec[3], W0[3])


def test_no_rows_and_negative_penalties_are_refused():
    with pytest.raises(SplinterpError, match="no rows"):
        solve_decoder(Statistics(D_IN, D_SAE))
    with pytest.raises(SplinterpError, match="alpha=-1"):
        Penalties(alpha=-1)


def test_mean_diagonal_is_that_of_the_centred_gram_matrix():
    x, codes = some_rows(activation="relu")
    centred = codes - codes.mean(0)
    assert mean_diagonal(streamed(x, codes)) == pytest.approx(float(centred.square().sum(0).mean()), rel=1e-10)
