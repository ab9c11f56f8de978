"""The training step from sparse codes against the same step written down with dense codes and autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from splinterp.infer import Dictionary, Target, infer
from splinterp.sae import SparseCodes, by_latent, select_topk, sum_rows, to_dense
from splinterp.train import Penalties, Statistics, TrainConfig, solve_decoder
from splinterp.train.adam import AdamBaseline
from splinterp.train.config import PURSUIT
from splinterp.train.cost import solve_cost, step_cost
from splinterp.train.dictionary import FROM
from splinterp.train.gradient import BETAS, DECODER_RATE
from splinterp.train.gram import add_gram
from splinterp.train.pam import ANCHOR, PAM, SOLVES_SHARE, cadence
from splinterp.train.pursuit import DECODER_SHARE, ON_SUPPORT, STEP
from splinterp.train.sparse import sparse_pass
from splinterp.train.stages import METHODS

CPU = torch.device("cpu")
N, D_IN, D_SAE, K = 60, 10, 64, 4


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_codes(n: int, d_sae: int, k: int) -> SparseCodes:
    generator = torch.Generator().manual_seed(n + d_sae + k)
    return select_topk(torch.randn(n, d_sae, generator=generator, dtype=torch.float64) + 0.5, k)


@pytest.mark.parametrize(("d", "k"), [(8192, 32), (1536, 32), (1536, 1), (1000, 3), (96, 6), (97, 97), (64, 64), (4096, 7)])
def test_the_largest_are_those_of_topk(d, k):
    pre = torch.randn(5, d, generator=torch.Generator().manual_seed(0))
    pre[1] = pre[1].round()  # ties: any of them will do
    pre[2] = -1.0
    for row, indices, values in zip(pre, *select_topk(pre, k), strict=True):
        assert indices.unique().numel() == k
        assert torch.equal(values, row[indices].relu())
        assert torch.equal(row[indices].sort().values, row.topk(k).values.sort().values)
    nan = torch.where(torch.arange(d) == d // 2, torch.nan, pre)
    assert torch.isnan(select_topk(nan, k).values).any(1).all()


@pytest.mark.parametrize(
    ("n", "d_sae", "k"), [(50, 30, 1), (50, 30, 2), (50, 30, 7), (50, 1030, 6), (40, 2048, 5), (3, 5000, 4)]
)
def test_products_over_the_pattern_are_the_dense_ones(n, d_sae, k):
    codes, source = random_codes(n, d_sae, k), torch.randn(n, 9, dtype=torch.float64)
    pattern, z = by_latent(codes, d_sae), to_dense(codes, d_sae)
    assert torch.allclose(sum_rows(pattern, codes.values, source), z.T @ source)
    assert torch.allclose(sum_rows(pattern, codes.values, source, slice(d_sae // 3, d_sae)), z.T[d_sae // 3 :] @ source)
    gram = torch.zeros(d_sae, d_sae, dtype=torch.float64)
    add_gram(gram, codes, pattern, weight=0.5)
    assert torch.allclose((gram + gram.T) / 2, 0.5 * z.T @ z)
    statistics = Statistics(9, d_sae)
    for _ in range(2):  # reading in between changes nothing
        statistics.add(source, codes, pattern)
        assert torch.equal(statistics.gram, statistics.gram.T)
    assert torch.allclose(statistics.gram, 2 * z.T @ z)


def sparse_problem() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((N, D_IN), (D_SAE, D_IN), (D_SAE,), (D_SAE, D_IN), (D_IN,))
    return tuple(torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)


class SparseLoss(torch.autograd.Function):
    """The gradients by hand where autograd can ask for them."""

    @staticmethod
    def forward(ctx, x, W_enc_rows, b_enc, W_dec, b_dec):
        done = sparse_pass(x, select_topk(x @ W_enc_rows.T + b_enc, K), W_dec, b_dec)
        ctx.save_for_backward(*done.gradients)
        return done.squared_error / x.numel()

    @staticmethod
    def backward(ctx, by_loss):
        return None, *(by_loss * gradient for gradient in ctx.saved_tensors)


def test_the_gradients_by_hand_are_the_gradients():
    x, *weights = sparse_problem()
    weights = [w.requires_grad_() for w in weights]
    torch.autograd.gradcheck(lambda *w: SparseLoss.apply(x, *w), weights)
    W_enc_rows, b_enc, W_dec, b_dec = weights
    pre = x @ W_enc_rows.T + b_enc
    z = to_dense(select_topk(pre, K), D_SAE)
    dense = torch.autograd.grad((z @ W_dec + b_dec - x).square().mean(), weights)
    ours = sparse_pass(x, select_topk(pre.detach(), K), W_dec, b_dec).gradients
    for a, b in zip(ours, dense, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    assert sparse_pass(x, select_topk(pre.detach(), K), W_dec, b_dec, decoder=False).gradients[2:] == (None, None)


class DenseReference:
    """Adam, AuxK and PAM as one writes them down: dense codes, autograd, dense statistics, NumPy-like solves in float64."""

    def __init__(self, method: PAM | AdamBaseline, config: TrainConfig, pam: bool) -> None:
        w = method.weights
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (
            t.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            for t in (w.W_enc, w.b_enc, w.W_dec, w.b_dec)
        )
        self.config, self.pam = config, pam
        groups = [{"params": [self.W_enc, self.b_enc]}, {"params": [self.W_dec, self.b_dec]}]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, foreach=False)
        self.since, self.batches = torch.zeros(D_SAE), 0
        self.gram, self.cross = torch.zeros(D_SAE + 1, D_SAE + 1), torch.zeros(D_SAE + 1, D_IN)

    def step(self, x: torch.Tensor, lr: float) -> float:
        pre = x @ self.W_enc + self.b_enc
        top = pre.topk(K)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        error = x - z @ self.W_dec - self.b_dec
        loss = error.square().mean()
        dead = (self.since >= self.config.dead_after).nonzero().squeeze(1)
        if len(dead) and self.config.aux_coefficient:
            k_aux = min(len(dead), D_IN // 2)
            best = torch.where((self.since >= self.config.dead_after)[None], pre, -torch.inf).topk(k_aux)
            rest = error.detach() - torch.zeros_like(pre).scatter(1, best.indices, best.values) @ self.W_dec
            share = k_aux / (D_IN // 2) * rest.square().sum() / error.detach().square().sum()
            loss = loss + self.config.aux_coefficient * share
        told = float(loss.detach())
        if self.config.pursuit:
            loss = loss + self._pursuit(x, pre, z, error, lr / self.config.lr)
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            self.W_dec.grad -= (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            self.optimizer.param_groups[0]["lr"], self.optimizer.param_groups[1]["lr"] = lr, DECODER_RATE * lr
            self.optimizer.step()
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
            self.since = torch.where((z != 0).any(0), 0, self.since + len(x))
            self.batches += 1
            if self.config.method == "pursuit":
                z = to_dense(infer("gradient-pursuit", x, Dictionary(self.W_dec, self.b_dec), Target(k=K)), D_SAE)
            if self.pam and (self.config.method == "pam" or self.batches > FROM * self.config.steps):
                self._statistics(x, z)
        return told

    def _pursuit(self, x: torch.Tensor, pre: torch.Tensor, z: torch.Tensor, error: torch.Tensor, rate: float) -> torch.Tensor:
        """What pursuit adds to the loss: its pull on the pre-activations, and a share of the decoder's part of the loss exchanged."""
        with torch.no_grad():
            W, b = self.W_dec.detach(), self.b_dec.detach()
            top = (z + STEP * error @ W.T).topk(K)
            better = torch.zeros_like(z).scatter(1, top.indices, top.values.relu())
            for _ in range(ON_SUPPORT):
                rest = x - better @ W - b
                g = (rest @ W.T) * (better > 0)
                a = (rest * (g @ W)).sum(1) / (g @ W).square().sum(1)
                better = (better + a[:, None] * g).relu()
            missed, wrong = (better > 0) & (z == 0), (better == 0) & (z > 0)
        pull = (missed * (pre - better).clamp(max=0).square() + wrong * pre.square()).mean() * D_SAE / D_IN
        by_decoder = (x - better @ self.W_dec - self.b_dec).square().mean() - (
            x - z.detach() @ self.W_dec - self.b_dec
        ).square().mean()
        share = 1.0 if self.config.method == "pursuit" else DECODER_SHARE * rate
        return self.config.pursuit * pull + share * by_decoder

    def _statistics(self, x: torch.Tensor, z: torch.Tensor) -> None:
        memory, solve_every = cadence(self.config, D_IN)
        one = torch.cat([z, torch.ones(len(z), 1)], 1)
        keep = 1 - len(x) / memory
        self.gram, self.cross = keep * self.gram + one.T @ one, keep * self.cross + one.T @ x
        if self.batches % solve_every and (self.config.method == "pam" or self.batches < self.config.steps):
            return
        n, mean = self.gram[-1, -1], self.gram[-1, :-1] / self.gram[-1, -1]
        centred = self.gram[:-1, :-1] - n * torch.outer(mean, mean)
        ridge = ANCHOR * centred.diagonal().mean()
        right = self.cross[:-1] - torch.outer(mean, self.cross[-1]) + ridge * self.W_dec
        W = torch.linalg.solve(centred + ridge * torch.eye(D_SAE), right)
        self.b_dec.copy_(self.cross[-1] / n - mean @ W)
        norms = W.norm(dim=1)
        self.W_dec.copy_(W / norms[:, None])
        self.W_enc.mul_(norms)
        self.b_enc.mul_(norms)
        scale = torch.cat([norms, torch.ones(1)])
        self.gram, self.cross = self.gram * scale * scale[:, None], self.cross * scale[:, None]


@pytest.mark.parametrize(("method", "pursuit"), [("pam", 0.0), ("pam", 0.3), ("adam", 0.0), ("adam", 0.3), ("pursuit", 0.3)])
@pytest.mark.parametrize("aux", [0.0, 1 / 32])
def test_the_curve_is_that_of_the_dense_step(float64, method, aux, pursuit):
    config = TrainConfig(
        method=method, activation="topk", d_sae=D_SAE, k=K, rows=17 * N, batch_size=N, lr=1e-2, aux_coefficient=aux, dead_after=N, solve_every=5,
        pursuit=pursuit, last_solve=False,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(3 * D_IN, D_IN, generator=generator)
    ours = METHODS[method](D_IN, config, CPU)
    dense = DenseReference(ours, config, pam=method != "adam")
    were_dead = 0
    for step in range(17):
        lr = 1e-2 * (1 - step / 17)
        x = torch.randn(N, 3 * D_IN, generator=generator).relu() @ mixing / D_IN
        were_dead += len(ours.gradient.dead.indices())
        # the solves within training are in float32
        assert ours.step(x, lr).loss == pytest.approx(dense.step(x, lr), rel=1e-9 if method == "adam" else 1e-5)
    for a, b in ((ours.weights.W_enc, dense.W_enc), (ours.weights.W_dec, dense.W_dec), (ours.weights.b_enc, dense.b_enc)):
        assert (a - b).detach().norm() <= (1e-8 if method == "adam" else 1e-4) * b.detach().norm()
    assert were_dead > 0


def test_a_quick_solve_is_the_solve_or_is_not_quick():
    codes = random_codes(2000, D_SAE, K)
    statistics = Statistics(D_IN, D_SAE)
    statistics.add(torch.randn(2000, D_IN, dtype=torch.float64), codes)
    penalties, W0 = Penalties(mu=1.0), torch.randn(D_SAE, D_IN, dtype=torch.float64)
    quick, slow = (solve_decoder(statistics, penalties, W0, quick=quick) for quick in (True, False))
    assert (quick.how, slow.how) == ("cholesky in float32", "cholesky")
    assert (quick.W_dec - slow.W_dec).norm() <= 1e-5 * slow.W_dec.norm()
    statistics.rescale_latents(torch.tensor([1e-5] + [1.0] * (D_SAE - 1)))
    assert solve_decoder(statistics, quick=True).how != "cholesky in float32"


@pytest.mark.parametrize(
    ("d_in", "d_sae", "batch", "k"), [(768, 8192, 2048, 32), (2304, 16384, 2048, 64), (192, 1536, 512, 32)]
)
def test_solves_keep_to_their_share_of_the_time(d_in, d_sae, batch, k):
    config = TrainConfig(method="pam", activation="topk", d_sae=d_sae, k=k, rows=10**7, batch_size=batch, lr=1e-3)
    memory, every = cadence(config, d_in)
    solves, steps = solve_cost(d_in, d_sae), every * step_cost(batch, d_in, d_sae, k)
    assert solves <= SOLVES_SHARE * (solves + steps)
    assert every >= memory // batch


@pytest.mark.parametrize(
    ("options", "pull", "alternates"),
    [
        ({}, PURSUIT, False),
        ({"different_rows": D_SAE}, PURSUIT, False),
        ({"different_rows": D_SAE - 1, "jitter": 0.0}, 0.0, False),
        ({"different_rows": D_SAE - 1, "pursuit": 0.1}, 0.1, False),
        ({"different_rows": D_SAE - 1, "jitter": 0.1}, PURSUIT, False),
        ({"rows": D_SAE - 1}, 0.0, False),
        ({"decoder_steps": False}, 0.0, True),
        ({"solve_every": 5}, PURSUIT, True),
        ({"memory_rows": 5}, PURSUIT, True),
        ({"activation": "batchtopk"}, 0.0, False),
        ({"method": "adam"}, 0.0, False),
        ({"method": "pursuit", "different_rows": 1, "last_solve": False}, PURSUIT, True),
    ],
)
def test_when_there_is_pursuit_and_when_solves_on_the_way(options, pull, alternates):
    told = {"method": "pam", "activation": "topk", "rows": 1000, **options}
    config = TrainConfig(d_sae=D_SAE, k=K, batch_size=N, lr=1e-2, **told)
    assert (config.pull, config.alternates) == (pull, alternates)
    assert (PAM(D_IN, config, CPU).statistics is not None) == alternates
