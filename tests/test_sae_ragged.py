"""Ragged codes: the same numbers as dense ones, in every product, and the same training."""

from __future__ import annotations

import pytest
import torch
from splinterp.sae import (
    RaggedCodes,
    by_latent,
    decode,
    entry_rows,
    fired_counts,
    l0,
    rows_of,
    sparse_if_sparse,
    sum_rows,
    thinned,
    to_dense,
    to_ragged,
)  # fmt: skip
from splinterp.train import Statistics, TrainConfig
from splinterp.train.adam import AdamBaseline
from splinterp.train.gram import evenly_padded
from splinterp.train.pam import PAM
from splinterp.train.sparse import dense_pass, sparse_pass, through_relu

CPU = torch.device("cpu")
N, D_IN, D_SAE = 60, 9, 70


def dense_codes(share: float, n: int = N) -> torch.Tensor:
    """Some rows have none, one has them all."""
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(n, D_SAE, generator=generator, dtype=torch.float64) + 0.1
    z *= torch.rand(n, D_SAE, generator=generator) < share * 2 * torch.rand(n, 1, generator=generator)
    z[::7], z[5] = 0, 1.0
    return z


@pytest.mark.parametrize("share", [0.0, 0.03, 0.4, 1.0])
def test_products_are_the_dense_ones(share):
    z = dense_codes(share)
    codes, source = to_ragged(z), torch.randn(N, D_IN, dtype=torch.float64)
    assert torch.equal(to_dense(codes, D_SAE), z)
    assert rows_of(codes) == N
    assert l0(codes) == l0(z)
    assert torch.equal(fired_counts(codes, D_SAE), fired_counts(z, D_SAE))
    W_dec, b_dec = torch.randn(D_SAE, D_IN, dtype=torch.float64), torch.randn(D_IN, dtype=torch.float64)
    assert torch.allclose(decode(codes, W_dec, b_dec), decode(z, W_dec, b_dec))
    pattern = by_latent(codes, D_SAE)
    assert torch.allclose(sum_rows(pattern, codes.values, source), z.T @ source)
    assert torch.allclose(sum_rows(pattern, codes.values, source, slice(20, 33)), z.T[20:33] @ source)
    assert torch.equal(to_dense(thinned(codes, codes.values > 0.5), D_SAE), z * (z > 0.5))
    assert torch.equal(to_dense(to_ragged(z, torch.ones_like(z) > 0), D_SAE), z)  # zeros may be entries
    assert isinstance(sparse_if_sparse(z), RaggedCodes if share < 0.1 else torch.Tensor)
    assert torch.equal(to_dense(sparse_if_sparse(z), D_SAE), z)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.4, 1.0])
def test_groups_of_rows_hold_every_entry_once_and_statistics_are_the_dense_ones(share, monkeypatch):
    z, x = dense_codes(share), torch.randn(N, D_IN, dtype=torch.float64)
    codes = to_ragged(z)
    groups = list(evenly_padded(codes))
    assert sum(int((g.values != 0).sum()) for g in groups) == len(codes.values)
    assert sum(g.values.numel() for g in groups) <= 2 * len(codes.values) + 5 * N
    assert sum(len(g.values) for g in groups) == int((z != 0).any(1).sum())
    direct = Statistics(D_IN, D_SAE)
    direct.add(x, z)
    for limit in (0.0, 1.0):  # by a dense product, by pairs
        monkeypatch.setattr("splinterp.train.gram._PAIRS_UP_TO", limit)
        statistics = Statistics(D_IN, D_SAE)
        statistics.add(x, codes)
        for name in ("gram", "cross", "sum_z", "sum_x"):
            assert torch.allclose(getattr(statistics, name), getattr(direct, name), rtol=1e-12), name


def test_rows_of_entries_are_in_order():
    codes = to_ragged(dense_codes(0.1))
    assert torch.equal(entry_rows(codes).bincount(minlength=N), codes.starts.diff())
    assert bool((entry_rows(codes).diff() >= 0).all())


class Loss(torch.autograd.Function):
    """The gradients by hand where autograd can ask for them."""

    @staticmethod
    def forward(ctx, x, W_enc_rows, b_enc, W_dec, b_dec, sparse):
        z = (x @ W_enc_rows.T + b_enc).relu()
        done = sparse_pass(x, to_ragged(z), W_dec, b_dec) if sparse else dense_pass(x, z, W_dec, b_dec)
        ctx.save_for_backward(*done.gradients)
        return done.squared_error / x.numel()

    @staticmethod
    def backward(ctx, by_loss):
        return None, *(by_loss * gradient for gradient in ctx.saved_tensors), None


def problem() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((N, D_IN), (D_SAE, D_IN), (D_SAE,), (D_SAE, D_IN), (D_IN,))
    x, W_enc_rows, b_enc, W_dec, b_dec = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [x, W_enc_rows, b_enc - 3, W_dec / W_dec.norm(dim=1, keepdim=True), b_dec]


@pytest.mark.parametrize("sparse", [True, False])
def test_the_gradients_by_hand_are_the_gradients(sparse):
    x, *weights = problem()
    torch.autograd.gradcheck(lambda *w: Loss.apply(x, *w, sparse), [w.requires_grad_() for w in weights])


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("decoder", [True, False])
def test_l1_by_hand_is_that_of_autograd(sparse, decoder):
    x, *weights = problem()
    W_enc_rows, b_enc, W_dec, b_dec = (w.requires_grad_() for w in weights)
    z = (x @ W_enc_rows.T + b_enc).relu()
    loss = (z @ W_dec + b_dec - x).square().mean() + 3.0 * (z * W_dec.norm(dim=1)).sum() / x.numel()
    expected = list(torch.autograd.grad(loss, [W_enc_rows, b_enc, W_dec, b_dec]))
    # by the decoder L1 pulls along its rows alone; the step takes what is across them
    expected[2] -= (expected[2] * W_dec).sum(1, keepdim=True) * W_dec
    z = z.detach()
    codes = to_ragged(z) if sparse else z
    through = through_relu(codes, 3.0 / x.numel())
    one_pass = sparse_pass if sparse else dense_pass
    ours = one_pass(x, codes, W_dec.detach(), b_dec.detach(), decoder, through).gradients  # type: ignore[arg-type]
    for name, reference in zip(ours._fields, expected, strict=True):
        by_hand = getattr(ours, name)
        if name.endswith("dec") and not decoder:
            assert by_hand is None
            continue
        if name == "W_dec":
            by_hand = by_hand - (by_hand * W_dec).sum(1, keepdim=True) * W_dec
        assert torch.allclose(by_hand, reference, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("method", [PAM, AdamBaseline])
@pytest.mark.parametrize(
    "options",
    [{"activation": "relu", "l1": 1.0}, {"activation": "relu", "l1": 1.0, "encoder_steps": 2, "decoder_steps": False}],
)
def test_a_run_is_the_same_from_ragged_and_from_dense_codes(method, options, monkeypatch):
    """With statistics and solves."""
    name = "pam" if method is PAM else "adam"
    config = TrainConfig(method=name, d_sae=128, rows=20_000, batch_size=250, lr=1e-2, dead_after=500, solve_every=4, **options)
    mixing = torch.randn(3 * D_IN, D_IN, generator=torch.Generator().manual_seed(3)) / D_IN
    x = torch.randn(20, 250, 3 * D_IN, generator=torch.Generator().manual_seed(2)).relu() @ mixing
    runs = []
    for limit in (1.0, -1.0):  # always ragged, never
        monkeypatch.setattr("splinterp.sae.ragged.RAGGED_UP_TO", limit)
        monkeypatch.setattr("splinterp.train.gram._PAIRS_UP_TO", limit)
        run = method(D_IN, config, CPU)
        kinds = {type(run.step(batch, 3e-3).codes) for batch in x}
        assert kinds == {RaggedCodes if limit > 0 else torch.Tensor}
        runs.append(run)
    for name, tensor in runs[0].weights.state().items():
        other = runs[1].weights.state()[name]
        assert (tensor - other).norm() <= 1e-3 * tensor.norm(), name
