"""BatchTopK: what a batch keeps, what the step makes of it, and the threshold of the finished encoder."""

from __future__ import annotations

import itertools

import pytest
import torch
from splinterp import store as stores
from splinterp.sae import SparseCodes, l0, load_sae, select_topk, to_dense
from splinterp.train import TrainConfig, raw_rows, train
from splinterp.train.batchtopk import Threshold, select_batch_topk
from splinterp.train.config import Method

CPU = torch.device("cpu")
N, D_IN, D_SAE, K = 64, 12, 128, 5


def config(method: Method = "pam", **options) -> TrainConfig:
    defaults = {"activation": "batchtopk", "d_sae": D_SAE, "rows": 20_000, "batch_size": 250, "lr": 1e-2, "k": K}
    return TrainConfig(method=method, **(defaults | options))


def reference(pre: torch.Tensor, k: int) -> torch.Tensor:
    """As one writes it down."""
    flat = pre.relu().flatten()
    best = flat.topk(k * len(pre))
    return torch.zeros_like(flat).scatter(0, best.indices, best.values).view_as(pre)


def pre_activations(kind: str) -> torch.Tensor:
    pre = torch.randn(N, D_SAE, generator=torch.Generator().manual_seed(0))
    if kind == "one row has it all":
        pre[3] = pre[3].abs() + 10
    elif kind == "a few rows have much":
        pre[:4] += 1
    elif kind == "few are positive":
        pre -= 2.2
    elif kind == "none is positive":
        pre = -pre.abs()
    return pre


@pytest.mark.parametrize("kind", ["even", "a few rows have much", "one row has it all", "few are positive", "none is positive"])
@pytest.mark.parametrize("k", [1, K, 40, D_SAE])
def test_the_largest_of_the_batch_are_kept(kind, k):
    pre = pre_activations(kind)
    codes, expected = select_batch_topk(pre, k), reference(pre, k)
    assert torch.equal(to_dense(codes, D_SAE), expected)
    assert l0(codes) == min(k, float((pre > 0).sum()) / N)
    assert len(codes.values) == (expected > 0).sum()  # no zeros among them
    assert all(codes.indices[a:b].unique().numel() == b - a for a, b in itertools.pairwise(codes.starts.tolist()))


def test_ties_are_kept_and_a_nan_is_not_hidden():
    pre = torch.zeros(4, D_SAE)
    pre[:, :9] = 1.0
    assert l0(select_batch_topk(pre, 2)) == 9
    pre = pre_activations("even")
    pre[5, 7] = torch.nan
    for candidates in (4, 1):
        codes = select_batch_topk(pre, K, candidates)
        assert torch.isnan(to_dense(codes, D_SAE)).any()


def test_the_threshold_is_the_running_mean_of_the_smallest_kept():
    c = config(rows=100 * 250 * 100)  # remembers 100 batches
    threshold, expected = Threshold(c, CPU), 0.0
    for i in range(50):
        pre = torch.randn(250, D_SAE, generator=torch.Generator().manual_seed(i))
        codes = select_batch_topk(pre, K)
        threshold.update(codes)
        expected = 0.99 * expected + 0.01 * float(pre.flatten().topk(K * 250).values.min())
    assert float(threshold.value) == pytest.approx(expected, rel=1e-6)
    threshold.update(select_topk(-torch.ones(250, D_SAE), K))  # nothing kept says nothing
    assert float(threshold.value) == pytest.approx(expected, rel=1e-6)
    short = Threshold(config(rows=600, batch_size=250), CPU)  # of a few steps: the last whole batch
    short.update(SparseCodes(torch.zeros(250, 1, dtype=torch.int64), torch.full((250, 1), 2.0)))
    short.update(SparseCodes(torch.zeros(100, 1, dtype=torch.int64), torch.full((100, 1), 7.0)))
    assert float(short.value) == pytest.approx(0.6 * 2 + 0.4 * 7)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("batchtopk") / "acts.zarr"
    with stores.create(path, sites={"hook": D_IN}, dtype="float32", rows=8000) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(8000, D_SAE, generator=generator) * (torch.rand(8000, D_SAE, generator=generator) < K / D_SAE)
        writer.add({"hook": 5 * codes @ torch.randn(D_SAE, D_IN, generator=generator) + 20}, {})
        return writer.finish()


@pytest.mark.parametrize("method", ["pam", "adam"])
@pytest.mark.parametrize("options", [{}, {"encoder_steps": 2, "decoder_steps": False}, {"k_start": 3 * K}])
def test_runs_keep_k_on_average_and_saelens_reads_them(store, tmp_path, method, options):
    seen: list[float] = []
    result = train(
        store, None, config(method, **options), tmp_path / "run", progress=lambda at, done, total, figures: seen.append(figures.get("l0", 0))
    )  # fmt: skip
    assert result.summary["fvu"] < 0.4  # a mean predictor's is 1
    assert min(x for x in seen if x) >= K - 1e-6  # at most what ties add, and annealing
    ours = load_sae(tmp_path / "run")
    assert ours.config.architecture == "jumprelu"
    assert ours.threshold is not None
    assert ours.threshold.unique().numel() == 1
    x = torch.cat(list(raw_rows(store, "hook", CPU, "held_out")))
    codes = to_dense(ours.encode(x), D_SAE)
    assert l0(codes) == pytest.approx(K, rel=0.2)
    assert l0(codes) == pytest.approx(result.summary["l0"], rel=1e-3)
    assert (codes > 0).sum(1).unique().numel() > 1
    sae_lens = pytest.importorskip("sae_lens")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "run"))
    assert theirs.cfg.architecture() == "jumprelu"
    apart = (theirs.encode(x).detach() - codes).abs()
    # both encode in float32: a pre-activation within rounding of the threshold may fall on either side
    pre = ours.pre_activations(x)
    assert float(apart[(pre - ours.threshold).abs() > 1e-4].max()) <= 1e-4
