"""The benchmarks run, on sizes that say nothing, and give the figures they promise."""

from __future__ import annotations

import json
import os

import pytest
import torch
from splinterp import cli
from splinterp.bench import architectures, contest
from splinterp.bench import infer as infer_bench
from splinterp.bench import store as store_bench
from splinterp.bench import train as train_bench
from splinterp.bench.harvest import OURS, HarvestBench, run, table
from splinterp.bench.store import StoreBench
from splinterp.errors import SplinterpError


def test_a_share_is_of_the_limit_in_the_same_round():
    shares = contest.compare({"limit": [1.0, 2.0, 4.0], "x": [2.0, 2.0, 2.0]}, "limit")
    assert shares["x"] == {"median": 1.0, "low": 0.5, "high": 2.0}


def test_every_contender_runs_once_a_round():
    ran = []
    seconds = contest.measure({n: (lambda n=n: ran.append(n)) for n in "abc"}, 4, lambda _: None, lambda: None)
    assert sorted(ran) == sorted("abc" * 4)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    assert ran != ["a", "b", "c"] * 4


@pytest.fixture
def torch_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_harvest_bench(gpt2_dir, tmp_path, torch_threads):
    steps = []
    config = HarvestBench(
        model=str(gpt2_dir), layer=2, context=16, tokens=300, free_tokens=600, batch_size=4, rounds=2, folder=tmp_path
    )
    result = run(config, lambda: steps.append(1))
    assert len(steps) == config.steps
    assert result["tokens"] == 320  # whole batches
    for title in ("of the bare forward", "of TransformerLens", "of one site", "of raw writing"):
        assert all(share["low"] > 0 for share in result["ratios"][title].values())
    assert result["ratios"]["of the bare forward"][OURS]["median"] > 0
    assert json.loads(json.dumps(result)) == result
    assert "tokens/s" in table(result)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("reading", [True, False])
def test_the_store_bench(tmp_path, torch_threads, reading):
    config = StoreBench(gb=0.002, d=16, dtypes=("bfloat16",), rounds=1, reading=reading, folder=tmp_path)
    steps = []
    (result,) = store_bench.run(config, lambda: steps.append(1))
    assert len(steps) == config.steps
    assert set(result["ratios"]) == ({"write", "read, cold", "read, warm"} if reading else {"write"})
    assert all(share["low"] > 0 for shares in result["ratios"].values() for share in shares.values())
    assert result["compression"] > 1
    assert "raw write" in store_bench.table(result)
    assert not os.listdir(tmp_path)


def test_the_architectures_are_the_true_ones():
    gpt2, gemma = map(architectures.configuration, architectures.ARCHITECTURES)
    assert (gpt2.n_embd, gpt2.n_layer, gpt2.n_head, gpt2.vocab_size) == (768, 12, 12, 50257)
    assert (gemma.hidden_size, gemma.num_hidden_layers, gemma.intermediate_size) == (2304, 26, 9216)
    assert (gemma.num_attention_heads, gemma.num_key_value_heads, gemma.head_dim, gemma.vocab_size) == (8, 4, 256, 256000)
    assert (gemma.attn_logit_softcapping, gemma.final_logit_softcapping, gemma.sliding_window) == (50.0, 30.0, 4096)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"free_tokens": -1}, "must not be negative"),
        ({"architecture": "gpt5"}, "no architecture 'gpt5'"),
    ],
)
def test_mistakes(settings, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        run(HarvestBench(**settings))


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}, {"memory": 200_000}])
def test_the_train_bench(torch_threads, options):
    steps = []
    config = train_bench.TrainBench(rows=32, d_in=16, latents=128, k=4, rounds=2, threads=1, device="cpu", **options)
    result = train_bench.run(config, lambda: steps.append(1))
    assert len(steps) == config.steps
    assert json.loads(json.dumps(result)) == result
    assert result["shape"] == {"rows": 32, "d_in": 16, "latents": 128, "k": 4}
    assert result["unit_seconds"] > 0
    assert set(result["units"]) == set(train_bench.NAMES)
    by_cg = "memory" in options  # the Gram matrix does not fit
    assert (result["units"]["gram"] is None) == by_cg
    assert all(units > 0 for name, units in result["units"].items() if name not in ("saelens", "gram") or units is not None)
    assert result["precision"] == options.get("precision", "float32")
    assert all(0 < share < 1 for share in result["shares"].values())
    assert result["torch_topk_units"] is None
    assert all(name in train_bench.table(result) for name in ("our PAM step", "solves"))
    with pytest.raises(SplinterpError, match="k=129 must be between 1 and the number of latents, 128"):
        train_bench.TrainBench(latents=128, k=129)
    with pytest.raises(SplinterpError, match="tf32 is a GPU's"):
        train_bench.run(train_bench.TrainBench(latents=128, k=4, device="cpu", precision="tf32"))
    with pytest.raises(SplinterpError, match="number of threads must be at least 1, not 0"):
        train_bench.TrainBench(threads=0)


def test_the_infer_bench(torch_threads):
    steps = []
    config = infer_bench.InferBench(latents=64, d_in=32, k=4, rows=256, sklearn_rows=8, rounds=2, threads=2, device="cpu")
    result = json.loads(json.dumps(infer_bench.run(config, lambda: steps.append(1))))
    assert len(steps) == config.steps
    assert set(result["ratios"]) == set(result["fvu"]) == set(infer_bench.OURS)
    assert all(0 < r["low"] <= r["median"] <= r["high"] for r in result["ratios"].values())
    # Noise is a hundredth of the rows' energy: who finds the atoms leaves no more.
    assert result["fvu"]["omp"] < 0.03
    assert result["fvu"]["omp"] <= result["fvu"]["gradient pursuit"] <= result["fvu"]["matching pursuit"]
    assert [m["rows"] for m in result["memory"]] == [256, 2048]
    assert all(name in infer_bench.table(result) for name in infer_bench.OURS)


@pytest.mark.parametrize("command", ["store", "harvest", "train", "infer"])
def test_mistakes_on_the_command_line(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", command, "--rounds", "0"])
    assert end.value.code == 1
    assert "at least 1" in (told := capsys.readouterr()).err or "more than 0" in told.err
    assert "Traceback" not in told.err
