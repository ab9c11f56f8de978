"""Training runs on a small store: what they learn, what they leave, what they refuse."""

from __future__ import annotations

import importlib
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from splinterp import store as stores
from splinterp.errors import SplinterpError
from splinterp.evaluate import evaluate_rows
from splinterp.sae import l0, load_sae, to_dense
from splinterp.train import Penalties, TrainConfig, last_solve, raw_rows, refit, remove_run, train
from splinterp.train.config import Method
from splinterp.train.dead import DeadLatents, auxk_loss
from splinterp.train.pam import PAM
from splinterp.train.rows import Rows
from splinterp.train.schedule import k_at, lr_at

D_IN, D_SAE, K, N = 24, 96, 6, 12_000
CPU = torch.device("cpu")
SITE = "blocks.0.hook_resid_post"


def sparse_rows(n: int, seed: int = 0) -> torch.Tensor:
    """Rows that are sparse combinations of a fixed dictionary, off-centre and not of unit scale, as activations are."""
    dictionary = torch.randn(D_SAE, D_IN, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(n, D_SAE, generator=generator) * (torch.rand(n, D_SAE, generator=generator) < K / D_SAE)
    return 5 * codes @ dictionary + 20 + 0.05 * torch.randn(n, D_IN, generator=generator)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "acts.zarr"
    with stores.create(
        path, sites={SITE: D_IN}, dtype="float32", rows=N, attributes={"model": "made up", "context": 8}
    ) as writer:
        writer.add({SITE: sparse_rows(N)}, {})
        return writer.finish()


def config(method: Method = "pam", **options) -> TrainConfig:
    defaults = {"activation": "topk", "d_sae": D_SAE, "rows": 40_000, "batch_size": 256, "lr": 1e-2, "k": K}
    return TrainConfig(method=method, **(defaults | options))


def run(store, tmp_path, c: TrainConfig):
    return train(store, None, c, tmp_path / "run")


@pytest.mark.parametrize("method", ["pam", "adam"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "jumprelu"])
def test_a_run_learns_and_leaves_what_it_says(store, tmp_path, method, activation):
    sparse = {"k": None, "l1": 1.0} if activation == "relu" else {}
    result = run(store, tmp_path, config(method, activation=activation, **sparse))
    untrained = evaluate_rows(
        PAM(D_IN, config(activation=activation, **sparse), CPU).weights.sae(), Rows.of(store, SITE, CPU).once("held_out", 4096)
    )
    assert result.summary["fvu"] < 0.6 * untrained["fvu"]
    assert result.summary["fvu"] < 0.3
    loaded = load_sae(tmp_path / "run")
    again = evaluate_rows(loaded, raw_rows(store, SITE, CPU, "held_out"))
    assert again["fvu"] == pytest.approx(result.summary["fvu"], rel=1e-3)
    validation = evaluate_rows(loaded, raw_rows(store, SITE, CPU, "validation"))
    assert result.summary["validation"] == {name: pytest.approx(validation[name], rel=1e-3) for name in ("fvu", "l0", "n_rows")}
    assert loaded.config.metadata["hook_name"] == SITE
    assert loaded.config.metadata["model_name"] == "made up"
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["store_fingerprint"] == store.fingerprint
    assert described["settings"]["method"] == method
    assert (
        described["versions"]["torch"] == torch.__version__.split("+")[0] or described["versions"]["torch"] == torch.__version__
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["rows"] == 40_000
    assert lines[-1]["held_out_fvu"] > 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == json.loads(json.dumps(result.summary))


def test_the_last_solve_is_the_least_squares_decoder_of_the_finished_encoder(store, tmp_path):
    result = run(store, tmp_path, config(rows=10_000, ridge=0.0))
    sae = result.sae
    x = torch.cat(list(raw_rows(store, SITE, CPU, "train"))).double()
    z = to_dense(sae.encode(x.float()), D_SAE).double()
    fired = (z != 0).any(0)
    left = torch.cat([z[:, fired], torch.ones(len(z), 1, dtype=torch.float64)], 1).numpy()
    solution = np.linalg.lstsq(left, x.numpy(), rcond=None)[0]
    least = float(np.square(left @ solution - x.numpy()).sum())
    ours = float((sae(x.float()).double() - x).square().sum())
    assert ours == pytest.approx(least, rel=1e-4)  # weights are kept in float32


def test_the_last_solve_helps_and_says_what_it_did(store, tmp_path):
    summary = run(store, tmp_path, config("adam", rows=20_000)).summary
    assert summary["fvu"] < summary["before_last_solve"]["fvu"]
    assert summary["last_solve"]["rows"] == store.split_rows("train")
    tried = summary["last_solve"]["validation_fvu"]
    assert f"{summary['last_solve']['ridge']:g}" == min(tried, key=tried.get)
    assert summary["validation"]["fvu"] == pytest.approx(min(tried.values()), rel=1e-4)  # exact, from the sums alone
    assert summary["validation"]["fvu"] < tried["present"]
    assert summary["last_solve"]["validation_rows"] == store.split_rows("validation")


@pytest.mark.parametrize("apart", [True, False])
def test_the_ridge_is_chosen_by_rows_it_was_not_fitted_on(apart):
    """With hardly more rows than latents the smallest ridge fits best and predicts worst."""
    sae = PAM(D_IN, config(k=40), CPU).weights.sae()
    x = (sparse_rows(130) - 20) / 5
    batches = list(x.split(10))
    validation = None if apart else [(sparse_rows(500, seed=6) - 20) / 5]
    solved, what = last_solve(sae, batches, Penalties(), validation=validation)
    assert what.ridge > 1e-6
    assert what.validation_rows == (13 if apart else 500)
    assert what.warning is not None
    assert "130 training rows for 96 latents" in what.warning
    bare, _ = last_solve(sae, batches, Penalties(), ridge=1e-6)
    test = (sparse_rows(2000, seed=5) - 20) / 5
    assert evaluate_rows(solved, [test])["fvu"] < evaluate_rows(bare, [test])["fvu"]


def few_rows_for_a_good_decoder():
    """An SAE whose decoder is that of very many rows, hardly more rows than latents, and rows of which neither knows."""
    sae = PAM(D_IN, config(k=40), CPU).weights.sae()
    best, _ = last_solve(sae, [(sparse_rows(20_000, seed=1) - 20) / 5], Penalties(), ridge=0.0)
    return best, *([(sparse_rows(n, seed=n) - 20) / 5] for n in (110, 400))


def test_a_decoder_that_no_ridge_makes_better_stays():
    sae, few, validation = few_rows_for_a_good_decoder()
    same, what = last_solve(sae, few, Penalties(), validation=validation)
    assert (what.ridge, what.how) == (None, "kept")
    assert torch.equal(same.W_dec, sae.W_dec)
    assert list(what.validation_fvu) == ["present", "10", "1"]  # two in a row that are worse: no others are tried
    assert "none validated better than the present decoder" in what.warning
    _, what = last_solve(sae, few, Penalties(alpha=1e-6), validation=validation)
    assert "present" not in what.validation_fvu  # which knows nothing of the penalty
    assert what.ridge == 10


def test_the_ridge_pulls_towards_the_present_decoder():
    sae, few, _ = few_rows_for_a_good_decoder()
    distances = [
        float((last_solve(sae, few, Penalties(), ridge=ridge)[0].W_dec - sae.W_dec).norm()) for ridge in (1e-3, 1e-1, 10, 1e6)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-4 * sae.W_dec.norm()


def test_a_latent_without_codes_keeps_its_decoder_row():
    sae = PAM(D_IN, config(), CPU).weights.sae()
    b_enc = sae.b_enc.clone()
    b_enc[3] = -1e6
    sae = replace(sae, b_enc=b_enc)
    solved, _ = last_solve(sae, [(sparse_rows(3000) - 20) / 5], Penalties())
    assert torch.allclose(solved.W_dec[3], sae.W_dec[3])


@pytest.mark.parametrize("decoder_steps", [True, False])
def test_every_solve_is_the_minimiser_of_its_statistics(store, decoder_steps):
    """After a solve, in whatever gauge, the gradient of the remembered rows' loss is zero; without one it is not."""
    for solve_every, at_rest in ((1, True), (10**9, False)):
        pam = PAM(D_IN, config(solve_every=solve_every, ridge=1e-9, decoder_steps=decoder_steps), CPU)
        for i, x in enumerate(Rows.of(store, SITE, CPU).training(256, 5120, seed=0)):
            pam.step(x, 1e-2)
            if i < 5:
                continue  # the first few batches leave latents that never fired
            W, b, s = pam.weights.W_dec.detach().double(), pam.weights.b_dec.detach().double(), pam.statistics
            gradient = s.gram @ W + torch.outer(s.sum_z, b) - s.cross
            assert (gradient.norm() < 1e-4 * s.cross.norm()) == at_rest
        assert torch.allclose(pam.weights.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_a_latent_that_has_not_fired_keeps_a_row_of_unit_norm(store, ridge):
    """Without a ridge the solve gives such a latent a row of zeros, which cannot be brought back to unit norm."""
    pam = PAM(D_IN, config(solve_every=2, ridge=ridge, aux_coefficient=0.0), CPU)
    with torch.no_grad():
        pam.weights.b_enc[:20] = -100.0
    for x in Rows.of(store, SITE, CPU).training(256, 2560, seed=0):
        pam.step(x, 1e-3)
    assert torch.allclose(pam.weights.W_dec.norm(dim=1), torch.ones(D_SAE), atol=1e-5)


def test_alpha_does_not_compound_from_solve_to_solve(store):
    """The shrinkage of a solve must not enter the encoder, or the next solve shrinks again."""
    pam = PAM(D_IN, config(alpha=300.0, ridge=0.0, decoder_steps=False), CPU)
    x = next(Rows.of(store, SITE, CPU).training(2048, 2048, seed=0))
    pam.statistics.add(x, pam.weights.encode(x))
    W = []
    for _ in range(5):
        pam.take(pam.solve())
        W.append(pam.weights.W_dec.detach().clone())
    assert torch.allclose(W[0], W[-1], atol=1e-4)
    assert torch.equal(pam.weights.encode(x).values, PAM(D_IN, config(), CPU).weights.encode(x).values)


@pytest.mark.parametrize(("rows", "batch"), [(40_000, 256), (25_000, 4096), (1000, 128), (11_000, 128), (7, 3)])
def test_epochs_that_do_not_divide_into_batches_give_the_planned_steps(store, rows, batch):
    """An epoch's remainder once made a step of its own: the schedule ran out, and the rate went below zero."""
    sizes = [len(x) for x in Rows.of(store, SITE, CPU).training(batch, rows, seed=0)]
    assert len(sizes) == config(rows=rows, batch_size=batch).steps
    assert sum(sizes) == rows
    assert set(sizes[:-1]) <= {batch}
    assert lr_at(len(sizes) + 5, config(rows=rows, batch_size=batch)) == 0


def test_solve_only_in_full_batches_with_all_memory_descends(store):
    """Algorithm 3.1 as published, on one fixed batch: the training loss falls from solve to solve."""
    x = next(Rows.of(store, SITE, CPU).training(4096, 4096, seed=0))
    c = config(
        decoder_steps=False, solve_every=1, memory_rows=4096, batch_size=4096, rows=4096, aux_coefficient=0.0, ridge=1e-6
    )
    pam = PAM(D_IN, c, CPU)
    losses = [pam.step(x, 2e-3).squared_error for _ in range(30)]
    assert all(b < a for a, b in itertools.pairwise(losses[1:]))
    assert losses[-1] < 0.8 * losses[1]


def test_relu_solves_do_not_ratchet_the_sparsity(store):
    """A solve that scaled the encoder up again against L1 made L0 fall from solve to solve without end."""
    pam = PAM(D_IN, config(activation="relu", k=None, l1=1.0, solve_every=2), CPU)
    counts = [l0(pam.step(x, 1e-2).codes) for x in Rows.of(store, SITE, CPU).training(256, 40_000, seed=0)]
    middle, end = sum(counts[60:70]) / 10, sum(counts[-10:]) / 10
    assert end > 0.6 * middle


def test_encoder_pull_holds_the_encoder_back(store):
    x = next(Rows.of(store, SITE, CPU).training(1024, 1024, seed=0))

    def moved(mu: float, nu: float) -> tuple[float, float]:
        pam = PAM(D_IN, config(encoder_steps=10, mu_enc=mu, nu_enc=nu, decoder_steps=False), CPU)
        W, b = pam.weights.W_enc.detach().clone(), pam.weights.b_enc.detach().clone()
        pam.gradient.step(x, 1e-2)
        return float((pam.weights.W_enc - W).detach().norm()), float((pam.weights.b_enc - b).detach().norm())

    free, held_W, held_b = moved(0, 0), moved(10, 0), moved(0, 10)
    assert held_W[0] < 0.5 * free[0]
    assert held_b[1] < 0.5 * free[1]
    assert held_b[0] > 0.5 * free[0]


def test_mu_dec_holds_the_decoder_back(store):
    batches = list(Rows.of(store, SITE, CPU).training(256, 2560, seed=0))

    def moved(mu: float) -> float:
        pam = PAM(D_IN, config(mu_dec=mu, solve_every=10, decoder_steps=False), CPU)
        before = pam.weights.W_dec.clone()
        for x in batches:
            pam.step(x, 1e-3)
        return float((pam.weights.W_dec - before).norm())

    assert moved(1e6) < 0.1 * moved(0.0)


def test_the_same_seed_gives_the_same_bytes(store, tmp_path):
    for name in ("a", "b"):
        train(store, None, config(rows=5000), tmp_path / name)
    a, b = ((tmp_path / name / "sae_weights.safetensors").read_bytes() for name in "ab")
    assert a == b
    train(store, None, config(rows=5000, seed=1), tmp_path / "c")
    assert (tmp_path / "c" / "sae_weights.safetensors").read_bytes() != a


def test_bfloat16_and_float32_stores_train_alike(tmp_path):
    figures = []
    for dtype in ("float32", "bfloat16"):
        path = tmp_path / f"{dtype}.zarr"
        with stores.create(path, sites={SITE: D_IN}, dtype=dtype, rows=N) as writer:
            writer.add({SITE: sparse_rows(N)}, {})
            store = writer.finish()
        figures.append(train(store, None, config(rows=20_000), tmp_path / dtype).summary["fvu"])
    assert figures[1] == pytest.approx(figures[0], abs=0.02)


def test_auxk_pulls_dead_latents_towards_the_error():
    torch.manual_seed(0)
    error, pre = torch.randn(64, D_IN), torch.randn(64, D_SAE, requires_grad=True)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=1)
    dead = torch.tensor([3, 7, 50])
    loss = auxk_loss(error, pre[:, dead], W_dec[dead])
    loss.backward()
    assert pre.grad is not None
    touched = pre.grad.abs().sum(0).nonzero().squeeze(1)
    assert set(touched.tolist()) <= set(dead.tolist())
    assert len(touched) == 3
    # by hand: all three dead latents (fewer than d_in/2), their reconstruction of the error
    by_hand = (error - pre[:, dead] @ W_dec[dead]).square().sum() / error.square().sum() * 3 / (D_IN // 2)
    assert float(loss.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_auxk_revives(store):
    """Latents that start dead (a large negative bias) come back with AuxK, and stay dead without it."""

    def dead_after_training(coefficient: float) -> int:
        pam = PAM(D_IN, config(aux_coefficient=coefficient, dead_after=1000, pursuit=0.0), CPU)
        with torch.no_grad():
            pam.weights.b_enc[:30] = -3.0
        for x in Rows.of(store, SITE, CPU).training(256, 40_000, seed=0):
            pam.step(x, 1e-2)
        return len(pam.gradient.dead.indices())

    assert dead_after_training(1.0) < dead_after_training(0.0) - 10


def test_dead_latents_are_counted_in_rows():
    dead = DeadLatents(4, dead_after=100, device=CPU)
    codes = torch.tensor([[1.0, 0, 0, 0]]).expand(50, 4)
    dead.update(codes, 50)
    assert dead.indices().tolist() == []
    dead.update(codes, 50)
    assert dead.indices().tolist() == [1, 2, 3]
    dead.update(torch.ones(50, 4), 50)
    assert dead.indices().tolist() == []


@pytest.mark.parametrize("steps", [1, 7, 1000, 100_000])
def test_the_schedule_warms_up_and_decays(steps):
    factors = [lr_at(i, config(rows=steps, batch_size=1, lr=1.0)) for i in range(steps)]
    assert all(0 < f <= 1 for f in factors)
    assert max(factors) > 0.9 or steps < 10
    if steps > 100:
        assert factors[0] < 0.1
        assert factors[-1] < 0.01


def test_warm_up_and_decay_are_shares_of_the_run():
    c = config(rows=100, batch_size=1, lr=2.0, warmup=0.5, decay=0.25)
    rates = [lr_at(i, c) for i in range(100)]
    assert rates[24] == pytest.approx(1.0)
    assert rates[49:76] == [2.0] * 27
    assert rates[-1] == pytest.approx(2 / 25)
    flat = [lr_at(i, config(rows=100, batch_size=1, lr=2.0, warmup=0, decay=0)) for i in range(100)]
    assert flat == [2.0] * 100


def test_k_comes_down_to_its_value(store, tmp_path):
    c = config(rows=10_240, k_start=30, k_anneal=0.5)
    ks = [k_at(i, c) for i in range(c.steps)]
    assert (ks[0], ks[10], ks[20], ks[-1]) == (30, 18, K, K)
    assert ks == sorted(ks, reverse=True)
    run(store, tmp_path, c)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["k"] for line in lines] == ks
    assert all(line["l0"] <= line["k"] for line in lines)
    assert lines[0]["l0"] > 2 * K  # more than k fire at first
    assert load_sae(tmp_path / "run").config.k == K


def test_every_training_row_is_seen_and_no_other(store):
    rows = Rows.of(store, SITE, CPU)
    train_rows = torch.cat(list(rows.training(256, store.split_rows("train"), seed=3)))
    expected = torch.cat(list(rows.once("train", 1000)))
    held = torch.cat(list(rows.once("held_out", 1000)))
    validation = torch.cat(list(rows.once("validation", 1000)))

    def multiset(x):
        return sorted(map(bytes, x.numpy()))

    assert multiset(train_rows) == multiset(expected)
    assert not set(multiset(train_rows)) & (set(multiset(held)) | set(multiset(validation)))
    assert min(len(held), len(validation)) >= 256
    both = torch.cat([expected, validation, held])
    assert both.mean(0).abs().max() < 1e-3
    assert float(both.square().mean()) == pytest.approx(1, rel=1e-3)


def test_a_run_is_never_overwritten_and_force_takes_only_runs(store, tmp_path):
    run(store, tmp_path, config(rows=1000))
    with pytest.raises(SplinterpError, match="exists already"):
        run(store, tmp_path, config(rows=1000))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    with pytest.raises(SplinterpError, match="not a run directory"):
        remove_run(tmp_path / "precious")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    remove_run(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_divergence_is_told_and_writes_no_sae(store, tmp_path):
    with pytest.raises(SplinterpError, match="diverged"):
        run(store, tmp_path, config("adam", lr=1e30, activation="relu", k=None))
    assert not (tmp_path / "run" / "sae_weights.safetensors").exists()


def test_a_last_step_that_diverges_is_told(store, tmp_path):
    with pytest.raises(SplinterpError, match="diverged by step 1"):
        run(store, tmp_path, config("adam", rows=100, lr=1e38))


def test_too_many_latents_for_the_memory_are_a_sentence(store, tmp_path):
    with pytest.raises(SplinterpError, match="not enough memory for 3,000,000 latents"):
        run(store, tmp_path, config(d_sae=3_000_000, memory=10**18))
    assert not (tmp_path / "run").exists()


def test_memory_that_fails_at_the_last_solve_is_a_sentence_and_the_steps_are_not_taken_again(store, tmp_path, monkeypatch):
    def refused(*given):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    c = config(rows=5000, batch_size=1000)
    with monkeypatch.context() as short:
        short.setattr(importlib.import_module("splinterp.train.last_solve"), "Statistics", refused)
        with pytest.raises(SplinterpError, match=r"not enough memory for 96 latents: .*--resume .*goes on with the last solve"):
            run(store, tmp_path, c)
        sae = load_sae(tmp_path / "run")
        with pytest.raises(SplinterpError, match=r"not enough memory for 96 latents: .*; lower --memory\.$"):
            refit(sae, "run", store, SITE, tmp_path / "refit")
    assert not (tmp_path / "refit").exists()
    stages = []
    train(store, None, c, tmp_path / "run", resume=True, progress=lambda stage, *told: stages.append(stage))
    assert set(stages) == {"last solve"}
    assert torch.equal(load_sae(tmp_path / "run").W_enc, sae.W_enc)


def test_a_refit_whose_solve_the_machine_cannot_hold_is_refused_at_once(store, tmp_path, monkeypatch):
    sae = PAM(D_IN, config(), CPU).weights.sae()
    monkeypatch.setattr("splinterp.train.budget.total_memory", lambda device: 100_000)
    with pytest.raises(SplinterpError, match="which --memory allows, and there are"):
        refit(sae, "sae", store, SITE, tmp_path / "refit", memory=10**9)
    assert not (tmp_path / "refit").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"k": 97}, "k=97 must be between 1 and the number of latents, 96"),
        ({"method": "sgd"}, "--method sgd"),
        ({"activation": "gelu"}, "--activation gelu"),
        ({"revive": "pray"}, "--revive pray is unknown; choose one of auxk, resample, none"),
        ({"rows": 0}, "rows=0"),
        ({"lr": 0.0}, "lr=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"alpha": -1.0}, "alpha=-1"),
        ({"ridge": -1.0}, "ridge=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"d_sae": 0}, "d_sae=0"),
        ({"memory_rows": 0}, "memory_rows=0"),
        ({"k_start": K - 1}, "k_start=5 must be between k=6"),
        ({"activation": "relu", "k": None, "k_start": 9}, "--k-start belongs to topk, batchtopk, jumprelu"),
        ({"activation": "batchtopk", "k": None}, "k=None must be between 1"),
        ({"activation": "batchtopk", "k": D_SAE + 1}, "k=97 must be between 1"),
        ({"warmup": 1.5}, "warmup=1.5 is a share"),
        ({"decay": -0.1}, "decay=-0.1 is a share"),
    ],
)
def test_bad_settings_have_their_sentences(options, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        config(**options)
