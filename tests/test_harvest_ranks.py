"""Several processes harvest one store: the rows of a single process, whoever ends last, whatever is interrupted."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from splinterp import store
from splinterp.errors import Interrupted, SplinterpError, StoreError, TextError
from splinterp.harvest import HarvestConfig, harvest, plan
from splinterp.ranks import Ranks


@pytest.fixture
def config(gpt2_dir, jsonl, tmp_path) -> HarvestConfig:
    return HarvestConfig(
        tokens=1000, layers=(0, 1), out=tmp_path / "one.zarr", model=str(gpt2_dir), dataset=str(jsonl), context=16, batch_size=3, dtype="float32"
    )  # fmt: skip


def run(config: HarvestConfig, rank: int, world: int, progress=None) -> store.Store | None:
    return harvest(config, progress, planned=plan(config, Ranks(rank, world, rank)))


def rows(opened: store.Store) -> list[bytes]:
    """Every row with its columns, in an order of its own."""
    parts = [opened.acts(site, 0, opened.rows).numpy() for site in opened.sites]
    parts += [opened.column(name)[:, None] for name in opened.columns]
    return sorted(b"".join(part[i].tobytes() for part in parts) for i in range(opened.rows))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_have_the_rows_of_one(config, tmp_path, world):
    one = harvest(config)
    several = dataclasses.replace(config, out=tmp_path / "several.zarr")
    for rank in range(world):
        joined = run(several, rank, world)
        assert (joined is None) == (rank < world - 1)
    assert joined.rows == 1000
    assert rows(joined) == rows(one)
    assert joined.attributes["short"] is False
    assert (several.out / "tokenizer" / "tokenizer.json").exists()
    assert store.verify(several.out, full=True) == []
    assert torch.allclose(joined.site("blocks.1.hook_resid_post").mean, one.site("blocks.1.hook_resid_post").mean)


def test_an_interrupted_rank_resumes_and_ended_ones_have_nothing_to_do(config, tmp_path):
    one = harvest(config)
    several = dataclasses.replace(config, out=tmp_path / "several.zarr")
    assert run(several, 0, 2) is None

    def interrupt(done, figures):
        if done > 150:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="run the same command with --resume"):
        run(several, 1, 2, interrupt)
    again = dataclasses.replace(several, resume=True)
    assert run(again, 0, 2) is None
    joined = run(again, 1, 2)
    assert rows(joined) == rows(one)


def test_a_short_text_is_told_of(config, tmp_path):
    long = dataclasses.replace(config, tokens=10**6, out=tmp_path / "long.zarr")
    run(long, 0, 2)
    joined = run(long, 1, 2)
    alone = harvest(dataclasses.replace(long, out=tmp_path / "alone.zarr"))
    assert joined.attributes["short"] is True
    assert rows(joined) == rows(alone)


def test_what_ranks_are_told(config, tmp_path):
    with pytest.raises(StoreError, match="--force is not for several"):
        plan(dataclasses.replace(config, force=True), Ranks(0, 2))
    short = tmp_path / "short.txt"
    short.write_text("a few words and no more than that")
    with pytest.raises(TextError, match="too short for 3 ranks"):
        run(dataclasses.replace(config, dataset=str(short)), 2, 3)
    for environment in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"RANK": "-1", "WORLD_SIZE": "1"}):
        with pytest.raises(SplinterpError, match="not what torchrun sets"):
            Ranks.of_environment(environment)
    assert Ranks.of_environment({}) == Ranks(0, 1, 0)
    assert Ranks(3, 8, 3).device("auto", 4) == "cuda:3"
    assert Ranks(3, 8, 3).device("cpu", 4) == Ranks(1, 2, 1).device("cpu", 0) == "cpu"
    assert Ranks().device("auto", 4) == "auto"


def test_torchrun_on_the_command_line(config, tmp_path):
    out = tmp_path / "torchrun.zarr"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "-m", "splinterp", "harvest", "--model", config.model,
        "--layer", "0", "--layer", "1", "--dataset", config.dataset, "--tokens", "1000", "--context", "16", "--batch-size", "3",
        "--dtype", "float32", "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    # Told by the rank that ended last, or by both where they ended together.
    assert "torchrun.zarr: 1,000 rows" in done.stdout
    assert rows(store.open(out)) == rows(harvest(config))
    assert np.array_equal(np.sort(store.open(out).column("sequence")), np.sort(store.open(config.out).column("sequence")))
