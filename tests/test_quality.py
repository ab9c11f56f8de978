"""`bench quality`: parts keep to training rows, grids grow, cells are made once, and SAELens is trained as we are."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from splinterp import store as stores
from splinterp.bench import cells, quality, sizes
from splinterp.bench.contenders import Method, Place
from splinterp.bench.quality import QualityBench, share_needed, tuned
from splinterp.bench.quality_report import draw, tables
from splinterp.cli import main
from splinterp.errors import Interrupted, SplinterpError, StoreError
from splinterp.store.batches import split_rows
from splinterp.train import TrainConfig
from splinterp.train.rows import Rows
from splinterp.train.schedule import lr_at

SITE, D_IN, N = "hook", 12, 6000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stores.create(tmp_path_factory.mktemp("quality") / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=N) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(N, 64, generator=generator) * (torch.rand(N, 64, generator=generator) < 0.06)
        noise = 0.01 * torch.randn(N, D_IN, generator=generator)  # no two rows are alike
        writer.add({SITE: codes @ torch.randn(64, D_IN, generator=generator) + noise}, {})
        return writer.finish()


def bench(store, out, **settings) -> QualityBench:
    given = {"latents": 24, "k": 3, "batch_size": 128, "rows": (1000,), "seeds": (0, 1), "factors": (1.0, 2.0), "device": "cpu"}
    return QualityBench(stores=(str(store.path),), out=out, **{**given, **settings})


def rows_of(store, split) -> set[bytes]:
    return {row.numpy().tobytes() for x in store.batches(SITE, 512, split=split) for row in x}


@pytest.mark.parametrize("training", [1, 100, 256, 300, 600, 3000, 60_000, 237_500])
def test_a_store_has_the_training_rows_asked_for_or_the_next_larger_number(training):
    rows = sizes.rows_for(training)
    assert split_rows(rows, "train") >= training
    assert split_rows(rows, "held_out") > 0
    assert all(split_rows(n, "train") != training for n in range(max(2, rows - 300), rows + 300)) or (
        split_rows(rows, "train") == training
    )
    assert split_rows(rows, "train") < training + 256


def test_parts_lie_within_the_training_rows_and_within_larger_parts(store):
    training, seen = rows_of(store, "train"), set()
    for rows in (300, 1000, 2500):
        with sizes.part_of(store, SITE, rows) as part:
            everything, path = rows_of(part, "all"), part.path
            assert part.split_rows("train") >= rows
            assert len(everything) == part.rows
        assert seen < everything < training
        assert not path.exists()
        seen = everything
    with sizes.part_of(store, SITE, store.split_rows("train")) as part:
        assert part is store
    with pytest.raises(SplinterpError, match="give fewer --rows, or all"), sizes.part_of(store, SITE, N):
        pass


@pytest.mark.parametrize("best", [-7.2, -2.0, 0.4, 1.0, 6.0, math.inf])
def test_a_grid_grows_until_the_best_rate_lies_within(store, tmp_path, best):
    asked = []

    def fvu_at(lr: float) -> float:
        asked.append(lr)
        return abs(math.log2(lr) - best) if math.isfinite(best) else math.inf

    grid, at_edge = tuned(fvu_at, quality.FACTORS, 1.0)
    assert sorted(grid) == list(grid) == sorted(asked)
    chosen = min(grid, key=lambda lr: grid[lr])
    assert at_edge == (not min(grid) < chosen < max(grid))
    if math.isfinite(best):
        assert not at_edge
        assert abs(math.log2(chosen) - best) <= 0.5
    else:
        assert len(grid) == 4 + quality.MOST_EXTENSIONS


@pytest.mark.parametrize("share", [0.51, 0.6, 0.7, 0.93, 1.0])
def test_the_share_needed_of_a_power_law_is_exact(share):
    points = {n: 3.0 * n**-0.4 for n in (500, 700, 1000)}
    assert share_needed(points, 3.0 * (1000 * share) ** -0.4, 1000) == ("=", pytest.approx(share))
    assert share_needed(points, points[500], 1000) == ("<", 0.5)
    assert share_needed(points, 0.999 * points[1000], 1000) is None


def test_methods_sizes_and_seeds_come_together_and_no_cell_is_made_twice(store, tmp_path, monkeypatch):
    config = bench(
        store, tmp_path, methods=("pam", "adam", "adam+refit"), fractions=(0.5,), shares=(0.1,), share_of=5000, epochs=(3,)
    )  # fmt: skip
    reported = []
    results = list(quality.run(config, report=lambda *told: reported.append(told)))
    assert [(r["rows"], r["several_epochs"]) for r in results] == [(1000, False), (512, True)]
    for r in results:
        assert r["baseline"] == "adam"
        assert list(r["methods"]) == ["pam", "adam", "adam+refit"]
        for m in r["methods"].values():
            assert len(m["fvu"]) == 2
            assert all(0 < fvu < 1 for fvu in m["fvu"])
            assert m["ratio"] == pytest.approx(sum(m["fvu"]) / sum(r["methods"]["adam"]["fvu"]))
            assert m["lr"] == min((fvu, lr) for grid in m["grid"].values() for lr, fvu in grid.items())[1]
            assert all(n <= end for curve in m["curve"] for (n, *_), (end, *_) in pairwise(curve))
        assert r["methods"]["adam+refit"]["fvu"][0] < r["methods"]["adam"]["fvu"][0]
    (fraction,) = results[0]["methods"]["pam"]["fractions"]
    assert fraction == 512
    assert "fractions" not in results[0]["methods"]["adam"]
    assert all(done <= expected for done, expected, *_ in reported)
    made = [json.loads(line) for line in (tmp_path / cells.NAME).read_text().splitlines()]
    assert len(made) == len({cell["key"] for cell in made})
    assert {cell["contender"] for cell in made} == {"pam", "adam"}
    with (tmp_path / cells.NAME).open("a") as file:
        file.write('{"key": "torn')  # killed while writing
    monkeypatch.setattr(quality, "contend", None)  # nothing is trained again
    assert json.dumps(list(quality.run(config))) == json.dumps(results)
    assert len((tmp_path / cells.NAME).read_text().splitlines()) == len(made)
    told = tables(results[0]) + tables(results[1])
    assert "| adam+refit | " in told
    assert "after 512 rows" in told
    assert len(draw(results, tmp_path)) == 4
    assert all(path.read_text().startswith("<svg") for path in draw(results, tmp_path))


def test_a_cell_is_made_again_where_something_that_decides_has_changed(store, tmp_path):
    def keys(**settings) -> set[str]:
        list(quality.run(bench(store, tmp_path, factors=(1.0,), seeds=(0,), methods=("pam", "adam"), rows=(400,), **settings)))
        return {json.loads(line)["key"] for line in (tmp_path / cells.NAME).read_text().splitlines()}

    assert keys() == keys()
    assert keys() < keys(k=4) < keys(k=4, batch_size=100)
    other = cells.Cells(tmp_path)
    with pytest.raises(StoreError, match="another process"):
        keys()
    other.close()


def test_a_run_that_diverges_is_no_best_one(store, tmp_path, monkeypatch):
    real = quality.contend

    def contend(contender, config, *rest):
        return {"trained": None, "refit": None, "curve": []} if config.lr > 0.05 else real(contender, config, *rest)

    monkeypatch.setattr(quality, "contend", contend)
    (result,) = quality.run(bench(store, tmp_path, methods=("adam",), seeds=(0,), factors=(0.5, 1.0, 2.0, 4.0)))
    assert result["methods"]["adam"]["lr"] <= 0.05
    assert math.isfinite(result["methods"]["adam"]["fvu"][0])
    assert "inf" in tables(result)


@pytest.mark.parametrize("decay", [0.35, 1.0])
def test_saelens_is_trained_on_the_same_batches_at_the_same_rates(store, monkeypatch, decay):
    trainer = pytest.importorskip("sae_lens.training.sae_trainer").SAETrainer
    from splinterp.bench.saelens_training import fit

    config = TrainConfig(
        method="adam", activation="topk", d_sae=24, k=3, rows=2000, batch_size=100, lr=1e-2, decay=0.35, seed=3
    )
    seen, rates, step = [], [], trainer.step
    monkeypatch.setattr(
        trainer,
        "step",
        lambda self, x: (
            seen.append(x.clone()),
            rates.append(self.optimizer.param_groups[0]["lr"]),
            step(self, x),
        )[2],
    )
    place = Place(store, store, SITE, "cpu")
    outcome = fit(config, place)
    ours = list(Rows.of(store, SITE, torch.device("cpu")).training(100, 2000, 3))
    assert len(seen) == len(ours) == config.steps
    assert all(torch.equal(a, b) for a, b in zip(seen, ours, strict=True))
    assert rates == pytest.approx([lr_at(i, config) for i in range(config.steps)], rel=1e-9)
    assert outcome.sae is not None
    assert outcome.curve[-1][2] < 0.9 * outcome.curve[0][2]
    again = fit(config, place).sae
    assert again is not None
    assert torch.equal(outcome.sae.W_enc, again.W_enc)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"methods": ("sgd",)}, "--method sgd is unknown; choose among pam"),
        ({"rows": (10**9,)}, "give fewer --rows, or all"),
        ({"fractions": (1.5,)}, "--fractions must be above 0 and at most 1, not 1.5"),
        ({"factors": ()}, "--rates must be factors above 0"),
        ({"k": 25}, "k=25 must be between 1 and the number of latents, 24"),
    ],
)
def test_mistakes(store, tmp_path, settings, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        list(quality.run(bench(store, tmp_path / "out", **settings)))


def options(store) -> list[str]:
    return [
        "bench",
        "quality",
        "--store",
        str(store.path),
        "--rows",
        "500",
        "--seeds",
        "0",
        "--rates",
        "1",
        "--latents",
        "24",
        "--k",
        "3",
    ]


def test_ctrl_c_is_told_as_what_it_is_here(store, tmp_path, monkeypatch, capsys):
    """Whether a run says so, in words about its own directory, or it comes between two."""
    for error in (
        Interrupted("Stopped; /tmp/run holds a checkpoint. The same command with --resume goes on."),
        KeyboardInterrupt(),
    ):

        def contend(*told, error=error):
            raise error

        monkeypatch.setattr(quality, "contend", contend)
        with pytest.raises(SystemExit) as end:
            main([*options(store), "--method", "adam", "--out", str(tmp_path / "q")])
        assert end.value.code == 1
        said = " ".join(capsys.readouterr().err.split())
        assert said.endswith("q keeps the cells that are done. The same command goes on.")
        assert "--resume" not in said


def test_figures_of_a_run_that_diverged_are_null(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quality, "contend", lambda *told: {"trained": None, "refit": None, "curve": []})
    with pytest.raises(SystemExit) as end:
        main([*options(store), "--method", "adam", "--out", str(tmp_path / "q"), "--json"])
    assert end.value.code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    (result,) = json.loads(capsys.readouterr().out, parse_constant=refuse)["results"]
    assert result["methods"]["adam"]["fvu"] == result["methods"]["adam"]["l0"] == [None]
    assert set(result["methods"]["adam"]["grid"]["1"].values()) == {None}


def test_the_command_line(store, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*options(store), "--method", "adam", "--out", str(tmp_path / "q"), "--json"])
    assert end.value.code == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert list(result["methods"]) == [Method("adam", False).name]
    assert (tmp_path / "q" / "tables.md").exists()
    for wrong, code in ((["--seeds", "a,b"], 2), (["--method", "nobody"], 1)):
        with pytest.raises(SystemExit) as end:
            main([*options(store), *wrong, "--out", str(tmp_path / "w")])
        assert end.value.code == code
        assert "Traceback" not in capsys.readouterr().err
