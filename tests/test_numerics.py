"""Activations that are hard on arithmetic: a sensible result, held against float64, or one clear sentence; and the same bytes every time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import splinterp
import torch
from common import contents
from runs import contents_of
from splinterp import store as stores
from splinterp.evaluate.metrics import Metrics
from splinterp.geometry import SpectrumOptions
from splinterp.geometry import spectrum as measure_spectrum
from splinterp.report.directions import directions
from splinterp.sae import SAE, SAEConfig
from splinterp.train import raw_rows
from splinterp.train.decoder import Penalties, solve_decoder
from splinterp.train.gram import Statistics
from splinterp.train.rows import Rows

D, N, LATENTS = 16, 1200, 32
CPU = torch.device("cpu")
KINDS = (
    {"method": "pam"}, {"method": "adam"}, {"method": "pursuit"}, {"method": "pam", "activation": "batchtopk"},
    {"method": "adam", "activation": "batchtopk"}, {"method": "pam", "activation": "relu"}, {"method": "adam", "activation": "relu"},
    {"method": "pam", "activation": "jumprelu"}, {"method": "adam", "activation": "jumprelu"},
)  # fmt: skip


def sparse_rows(n: int = N, d: int = D) -> torch.Tensor:
    """Rows [n, d] that are sparse combinations of 40 directions."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(n, 40, generator=generator) * (torch.rand(n, 40, generator=generator) < 0.08)
    return codes @ torch.randn(40, d, generator=generator)


def with_column(x: torch.Tensor, factor: float, offset: float = 0.0) -> torch.Tensor:
    x[:, 3] = factor * x[:, 3] + offset
    return x


ROWS = {
    "an outlier dimension": lambda: with_column(sparse_rows(), 1000),
    "a constant column": lambda: with_column(sparse_rows(), 0, 1e4),
    "a tiny variance about a large mean": lambda: with_column(1e-2 * sparse_rows(), 1, 1e4),
    "outlier rows": lambda: sparse_rows() * torch.where(torch.arange(N) % 50 == 0, 1e4, 1.0)[:, None],
    "two different rows": lambda: torch.randn(2, D, generator=torch.Generator().manual_seed(1)).repeat(N // 2, 1),
    "every row a hundred times": lambda: sparse_rows(N // 100).repeat(100, 1),
    "width one": lambda: sparse_rows(d=1),
    "fewer rows than latents": lambda: sparse_rows(280),
    "very small": lambda: 1e-20 * sparse_rows(),
    "very large": lambda: 1e18 * sparse_rows(),
}


def stored(path: Path, x: torch.Tensor, dtype: str = "float32") -> stores.Store:
    with stores.create(path, sites={"site": x.shape[1]}, dtype=dtype, rows=len(x)) as writer:
        writer.add({"site": x}, {})
        return writer.finish()


@pytest.fixture(scope="module", params=ROWS, ids=lambda name: name.replace(" ", "-"))
def hard(request, tmp_path_factory) -> stores.Store:
    return stored(tmp_path_factory.mktemp("hard") / "acts.zarr", ROWS[request.param]())


def options(kind: dict[str, str], k: int = 4) -> dict:
    return {**kind, "latents": LATENTS, "batch_size": 128, **({} if kind.get("activation") == "relu" else {"k": k})}


def fvu_in_float64(sae: SAE, x: torch.Tensor) -> float:
    """Of rows [N, d_in], everything in float64, the variance in two passes."""
    x = x.double()
    return float((sae.to(dtype=torch.float64)(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def finite_json(path: Path) -> None:
    """Every line, or all of it, is JSON, which has no NaN and no infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} has {constant}, which is no JSON")

    text = path.read_text()
    for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
        json.loads(part, parse_constant=refuse)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_every_kind_of_training_ends_in_finite_weights_and_a_true_fvu(hard, kind, tmp_path):
    result = splinterp.train(hard, tmp_path / "run", **options(kind))
    sae = result.sae
    assert all(bool(t.isfinite().all()) for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    x = torch.cat(list(raw_rows(hard, "site", CPU, "held_out")))
    # The SAE itself works in float32: of rows of 10,000 ± 1, and more so ± 0.01, that is felt.
    far = float(x.mean(0).abs().max()) / float((x - x.mean(0)).square().mean()) ** 0.5
    tolerance = 0.02 if far > 1e5 else 2e-3 if far > 1e3 else 1e-4
    assert result.summary["fvu"] == pytest.approx(fvu_in_float64(sae, x), rel=tolerance, abs=1e-9)
    assert result.summary["fvu"] < 1.1
    for name in ("summary.json", "metrics.jsonl", "run.json"):
        finite_json(tmp_path / "run" / name)


def test_whatever_takes_an_sae_takes_these(hard, tmp_path):
    run = splinterp.train(hard, tmp_path / "run", **options(KINDS[0]))
    x = torch.cat(list(raw_rows(hard, "site", CPU, "held_out")))
    for encoder in ("native", "omp", "ls"):
        figures = splinterp.evaluate(run, hard, encoder=encoder)
        assert math.isfinite(figures["fvu"])
    refitted = splinterp.refit(run, hard, tmp_path / "refit")
    assert refitted.summary["fvu"] == pytest.approx(fvu_in_float64(refitted.sae, x), rel=0.02, abs=1e-9)
    assert len(splinterp.encode(run, hard, tmp_path / "codes.zarr").rows) == hard.rows
    told = splinterp.report(run, out=tmp_path / "report.html")["held_out"]
    assert told["fvu"] == pytest.approx(run.summary["fvu"], rel=1e-3, abs=1e-9)
    assert splinterp.geometry(run, hard, rows=64)["split"] == "held_out"
    assert splinterp.gap(run, hard, encoders=["omp"], rows=64).gap.points
    found = splinterp.spectrum(hard, run, regions=2, epochs=1)
    assert all(math.isfinite(entry["fvu"]) for entry in found["entries"])


def test_the_unit_of_the_rows_is_their_spread_whatever_their_mean(tmp_path):
    x = ROWS["a tiny variance about a large mean"]()
    rows = Rows.of(stored(tmp_path / "acts.zarr", x), "site", CPU)
    assert rows.scale == pytest.approx(float((x.double() - x.double().mean(0)).square().mean()) ** 0.5, rel=0.05)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_rows_that_are_all_alike_are_refused_in_a_sentence(tmp_path, value, cli):
    stored(tmp_path / "acts.zarr", torch.full((600, D), value))
    code, _, err = cli("train", "--store", tmp_path / "acts.zarr", "--out", tmp_path / "run", "--k", 2)
    assert (code, "Traceback" in err) == (1, False)
    assert "All rows of site in" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("n", [1, 2, 256])
def test_too_few_rows_to_keep_some_apart_are_told(tmp_path, n, cli):
    stored(tmp_path / "acts.zarr", sparse_rows(n))
    for command in (["train", "--k", 2, "--store"], ["spectrum", "--regions", 2, "--store"]):
        code, _, err = cli(*command, tmp_path / "acts.zarr", "--out", tmp_path / "out")
        assert (code, f"too few rows ({n})" in err) == (1, True), err


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_as_many_latents_a_row_as_there_are(tmp_path, kind):
    if kind.get("activation") == "relu":
        pytest.skip("relu is not told how many")
    store = stored(tmp_path / "acts.zarr", sparse_rows())
    run = splinterp.train(store, tmp_path / "run", **options(kind, k=LATENTS))
    x = torch.cat(list(raw_rows(store, "site", CPU, "held_out")))
    assert run.summary["fvu"] == pytest.approx(fvu_in_float64(run.sae, x), rel=1e-3)
    assert run.summary["fvu"] < 0.5


@pytest.mark.parametrize("alike", [0.1, 3e3])
def test_the_fvu_of_rows_that_are_all_alike_is_0_or_infinite_and_null_in_json(alike, tmp_path, cli):
    """Whatever rounding leaves of their variance. The store's rows differ, its held-out ones do not."""
    x = torch.full((100, D), alike)
    sae = SAE(SAEConfig("standard", D, 4), torch.zeros(D, 4), torch.zeros(4), torch.zeros(4, D), torch.full((D,), alike))
    for offset, expected in ((0.0, 0.0), (0.01, math.inf)):
        metrics = Metrics(D, 4, x.double().mean(0) * (1 + 1e-9))
        metrics.add_errors(x, sae(x) - x + offset, 0.0, torch.zeros(4, dtype=torch.int64))
        assert metrics.figures()["fvu"] == expected
    from splinterp.store.batches import split_blocks

    (held_out,) = split_blocks(768, "held_out")
    numbered = stored(tmp_path / "numbered.zarr", torch.arange(768.0)[:, None])
    rows = sparse_rows(768)
    rows[numbered.acts("site", held_out * 256, held_out * 256 + 256)[:, 0].long()] = alike  # where the same seed puts them
    store = stored(tmp_path / "acts.zarr", rows)
    assert len(torch.cat(list(raw_rows(store, "site", CPU, "held_out"))).unique()) == 1
    run = splinterp.train(store, tmp_path / "run", **options({"method": "adam"}))
    assert run.summary["fvu"] == math.inf
    for name in ("summary.json", "metrics.jsonl"):
        finite_json(tmp_path / "run" / name)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["fvu"] is None
    for command in (["eval", tmp_path / "run", "--store", tmp_path / "acts.zarr", "--json"], 
                    ["refit", tmp_path / "run", "--store", tmp_path / "acts.zarr", "--out", tmp_path / "refit"],
                    ["report", tmp_path / "run", "--out", tmp_path / "report.html"]):  # fmt: skip
        code, out, err = cli(*command)
        assert (code, "Traceback" in err) == (0, False), err
        if "--json" in command:
            json.loads(out, parse_constant=lambda name: pytest.fail(name))


def test_numbers_that_are_none_are_told_and_never_become_a_figure(tmp_path, cli):
    """Rows of a Zarr array of others, and the weights of an SAE: ours have none."""
    import zarr

    x = sparse_rows(600).numpy()
    x[7, 2], x[300, 1] = np.nan, np.inf
    array = zarr.create_array(tmp_path / "theirs.zarr", shape=x.shape, dtype="float32", chunks=(100, D))
    array[:] = x
    code, _, err = cli("train", "--store", tmp_path / "theirs.zarr", "--out", tmp_path / "run", "--k", 2)
    assert (code, "2 rows at theirs that are not finite" in err, "splinterp import" in err) == (1, True, True), err
    assert cli("import", tmp_path / "theirs.zarr", "--out", tmp_path / "ours.zarr")[0] == 0
    assert stores.open(tmp_path / "ours.zarr").rows == 598
    metrics = Metrics(D, 4, torch.zeros(D))
    metrics.add_errors(torch.randn(5, D), torch.full((5, D), math.nan), 0.0, torch.zeros(4, dtype=torch.int64))
    assert math.isnan(metrics.figures()["fvu"])


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-3])
def test_the_solve_is_least_squares_with_rank_deficient_codes_and_an_outlier_dimension(ridge):
    generator = torch.Generator().manual_seed(0)
    z = torch.randint(1, 64, (400, 12), generator=generator) * (
        torch.rand(400, 12, generator=generator) < 0.3
    )  # sums are exact
    z = torch.cat([z, z[:, :3], 1024 * z[:, 3:4], torch.zeros(400, 2), z[:, :1] + z[:, 1:2]], 1)  # rank 12 of 19
    x = with_column(torch.randn(400, D, generator=generator), 1000, 1e4)
    statistics = Statistics(D, z.shape[1])
    for a in range(0, 400, 100):
        statistics.add(x[a : a + 100].double(), z[a : a + 100].double())
    decoder = solve_decoder(statistics, Penalties(mu=ridge))
    design = torch.cat([z.double(), torch.ones(400, 1, dtype=torch.float64)], 1)
    target = x.double()
    if ridge:  # the offset b is free: rows of zeros and √μ for W alone
        weights = torch.diag(torch.cat([torch.full((z.shape[1],), ridge**0.5), torch.zeros(1)]).double())
        design, target = torch.cat([design, weights]), torch.cat([target, torch.zeros(len(weights), D, dtype=torch.float64)])
    best = torch.linalg.lstsq(design, target, driver="gelsd").solution

    def cost(W: torch.Tensor, b: torch.Tensor) -> float:
        return float((z.double() @ W + b - x.double()).square().sum() + ridge * W.square().sum())

    assert bool(decoder.W_dec.isfinite().all())
    assert cost(decoder.W_dec, decoder.b_dec) == pytest.approx(cost(best[:-1], best[-1]), rel=1e-9)
    assert statistics.loss(decoder.W_dec, decoder.b_dec) == pytest.approx(
        float((z.double() @ decoder.W_dec + decoder.b_dec - x.double()).square().sum()), rel=1e-6
    )


@pytest.mark.parametrize("factor", [2.0**-66, 2.0**60])
def test_spectrum_and_directions_know_no_unit(tmp_path, factor):
    """Squares of such numbers are none in float32."""
    x = sparse_rows()
    found = []
    for unit in (1.0, factor):
        store = stored(tmp_path / f"{unit}.zarr", unit * x)
        told = measure_spectrum(SpectrumOptions(regions=4, epochs=1, coefficients=2.0), store, "site", {})
        found.append([entry["fvu"] for entry in told["entries"]])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(8, D, generator=generator)
    plain, scaled = (
        directions(SAE(SAEConfig("standard", D, 8), u * W.T, torch.zeros(8), u * W, torch.zeros(D)), 3) for u in (1.0, factor)
    )
    assert np.allclose(scaled.norms, factor * plain.norms, rtol=1e-5, atol=0)
    assert np.array_equal(scaled.nearest, plain.nearest)
    assert np.allclose(scaled.cosines, plain.cosines, atol=1e-6)
    assert np.allclose(scaled.encoder, 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_the_same_seed_trains_the_same_bytes(tmp_path, kind):
    store = stored(tmp_path / "acts.zarr", sparse_rows())
    for name in ("first", "second"):
        splinterp.train(store, tmp_path / name, seed=3, **options(kind))
        splinterp.encode(tmp_path / name, store, tmp_path / f"{name}.zarr")
    assert contents_of(tmp_path / "first") == contents_of(tmp_path / "second")
    first, second = (
        {k: v for k, v in contents(tmp_path / f"{name}.zarr").items() if k != "zarr.json"} for name in ("first", "second")
    )
    assert first == second


def test_the_same_seed_harvests_the_same_bytes_and_bfloat16_costs_little(tmp_path, gpt2_dir, jsonl):
    """What bfloat16 stores round away is far below what an SAE leaves (bench/RESULTS.md has the embedded model's)."""
    for name, dtype in (("first", "bfloat16"), ("second", "bfloat16"), ("exact", "float32")):
        splinterp.harvest(
            str(gpt2_dir), 2, dataset=str(jsonl), tokens=3000, context=32, out=tmp_path / f"{name}.zarr", dtype=dtype, seed=5
        )
    first, second = (contents(tmp_path / f"{name}.zarr") for name in ("first", "second"))
    assert first == second
    rounded, exact = (stores.open(tmp_path / f"{name}.zarr") for name in ("first", "exact"))
    (site,) = exact.sites
    assert torch.equal(rounded.acts(site, 0, 3000), exact.acts(site, 0, 3000).bfloat16())  # the same rows, in the same order
    told = {}
    for name, store in (("rounded", rounded), ("exact", exact)):
        told[name] = splinterp.evaluate(splinterp.train(store, tmp_path / name, latents=64, k=8), exact)["fvu"]
    assert told["rounded"] == pytest.approx(told["exact"], rel=0.02)
