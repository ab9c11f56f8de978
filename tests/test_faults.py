"""Faults other than kills: what is damaged is told of, never computed with; what is left behind goes; and the campaigns' short forms."""

from __future__ import annotations

import errno
import json
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from splinterp import store as stores
from splinterp.errors import SAEError, SplinterpError, StoreError
from splinterp.infer.codes_store import open_codes, write_codes
from splinterp.sae import SAE, SAEConfig, SparseCodes, load_sae, save_sae
from splinterp.store import commit
from splinterp.tensor_files import read_tensors
from splinterp.train import TrainConfig, loggers, refit, train, train_sweep
from splinterp.train.axes import Member

SITE, D, D_SAE, ROWS = "hook", 6, 12, 2000
CONFIG = TrainConfig(method="pam", activation="topk", d_sae=D_SAE, rows=1500, batch_size=250, lr=1e-3, k=3)


def flips(path: Path, n: int):
    """A file with a bit flipped at n places, one after the other."""
    data, rng = path.read_bytes(), random.Random(0)
    for at in rng.sample(range(len(data)), min(n, len(data))):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        yield at
    path.write_bytes(data)


@pytest.fixture
def sae() -> SAE:
    torch.manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(D_SAE, D), dim=1)
    metadata = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny", "context_size": 128}
    return SAE(SAEConfig("topk", D, D_SAE, 3, metadata=metadata), W.T.contiguous(), torch.zeros(D_SAE), W, torch.randn(D))


def make_store(path: Path, seed: int = 0, **options) -> stores.Store:
    x = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(seed))
    with stores.create(
        path, sites={SITE: D}, dtype="float32", columns=("position",), rows=ROWS, chunk_rows=512, **options
    ) as writer:
        writer.add({SITE: x}, {"position": np.arange(ROWS)})
        return writer.finish()


def test_no_flipped_bit_of_an_sae_changes_what_it_computes(sae, tmp_path):
    save_sae(sae, tmp_path)
    refused = 0
    for name, n in (("sae_weights.safetensors", 100), ("cfg.json", 100)):
        for at in flips(tmp_path / name, n):
            try:
                found = load_sae(tmp_path)
            except SAEError:
                refused += 1
                continue
            for part in ("W_enc", "b_enc", "W_dec", "b_dec"):
                assert torch.equal(getattr(found, part), getattr(sae, part)), (name, at)
            assert (found.config.architecture, found.config.k) == ("topk", 3), (name, at)
            assert found.config.metadata.items() >= sae.config.metadata.items(), (name, at)
    assert refused > 100


def test_weights_of_one_sae_beside_the_settings_of_another_are_refused(sae, tmp_path):
    """As a kill between two files leaves them."""
    save_sae(sae, tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"k": 5}))
    with pytest.raises(SAEError, match=r"cfg.json says k=5, but sae_weights.safetensors beside it was written for k=3"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text(
        json.dumps(cfg | {"metadata": cfg["metadata"] | {"hook_name": "blocks.2.hook_resid_post"}})
    )
    with pytest.raises(SAEError, match=r"cfg.json says metadata.hook_name=blocks.2.hook_resid_post"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(cfg | {"metadata": cfg["metadata"] | {"note": "mine"}}))
    assert load_sae(tmp_path).config.metadata["note"] == "mine"


@pytest.mark.parametrize("array", [f"{SITE}/acts", "position"])
def test_damaged_rows_are_not_merged_into_a_new_store(tmp_path, array):
    paths = [make_store(tmp_path / f"{i}.zarr", seed=i).path for i in range(2)]
    victim = next(path for path in sorted((paths[1] / array).glob("c.*")))
    for _ in flips(victim, 1):
        with pytest.raises(StoreError, match=r"is damaged: its rows from \d+ on do not match their checksum"):
            stores.merge(paths, tmp_path / "merged.zarr", force=(tmp_path / "merged.zarr").exists())
        with pytest.raises(StoreError, match="is unfinished"):
            stores.open(tmp_path / "merged.zarr")
    assert stores.merge(paths, tmp_path / "merged.zarr", force=True).rows == 2 * ROWS


def test_no_flipped_bit_of_a_log_changes_the_store_that_goes_on(tmp_path):
    x = torch.randn(700, D, generator=torch.Generator().manual_seed(0))
    options = {"sites": {SITE: D}, "chunk_rows": 64, "memory": 2 * 4 * 64 * 8, "resume": True}

    def write(upto: int) -> stores.Store | None:
        with stores.create(tmp_path / "acts.zarr", **options) as writer:
            for a in range(writer.resume_offered, upto, 50):
                writer.add({SITE: x[a : a + 50]})
            return writer.finish() if upto == len(x) else None

    write(400)
    for _ in flips(tmp_path / "acts.zarr" / "log.jsonl", 50):
        data = (tmp_path / "acts.zarr" / "log.jsonl").read_bytes()
        told = None
        try:
            write(400)
        except StoreError as error:
            told = str(error)
        finally:
            (tmp_path / "acts.zarr" / "log.jsonl").write_bytes(data)
        assert told is None or "is damaged in line" in told
    write(700)
    assert stores.verify(tmp_path / "acts.zarr", full=True) == []


def test_damage_to_codes_is_a_sentence(tmp_path):
    generator = torch.Generator().manual_seed(0)
    codes = SparseCodes(torch.randint(0, D_SAE, (50, 3), generator=generator), torch.rand(50, 3, generator=generator))
    out = tmp_path / "codes"
    write_codes(out, [(np.arange(50), codes)], D_SAE, {"sae": "x"})
    before = open_codes(out).codes(0, 50)
    for path in [*out.glob("*/*"), out / "zarr.json"]:
        for at in flips(path, 6):
            try:
                found = open_codes(out)
                assert all(torch.equal(a, b) for a, b in zip(found.codes(0, 50), before, strict=True)), (path, at)
                assert found.rows.tolist() == list(range(50))
            except StoreError as error:
                assert "damaged" in str(error) or "is not a store of codes" in str(error)  # noqa: PT017
    (out / "data" / "c.0").unlink()
    with pytest.raises(StoreError, match=r"does not hold"):
        open_codes(out)


def test_ctrl_c_while_tensors_are_read_is_no_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({f"t{i}": torch.ones(3, 4) for i in range(20)}, path)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for i in range(100):
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012
                signal.setitimer(signal.ITIMER_REAL, 1e-3 + 3e-5 * i)
                while True:
                    tensors, _ = read_tensors(path, mapped=i % 2 == 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert float(sum(t.sum() for t in tensors.values())) == 240


def test_what_a_killed_force_left_goes_with_the_next_store(tmp_path):
    left = tmp_path / ".acts.zarr.removed-1"
    left.mkdir()
    (left / "chunk").write_bytes(b"x" * 100)
    make_store(tmp_path / "acts.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["acts.zarr"]


def test_force_takes_a_directory_that_was_made_and_no_more(sae, tmp_path):
    store = make_store(tmp_path / "acts.zarr")
    for name in ("run", "refit"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
    assert train(store, None, CONFIG, tmp_path / "run", force=True).summary
    assert refit(sae, "sae", store, SITE, tmp_path / "refit", force=True).summary
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(SplinterpError, match="so that --force leaves it alone"):
        train(store, None, CONFIG, tmp_path / "run", force=True)


def test_a_member_that_was_killed_at_its_very_end_leaves_nothing(tmp_path):
    store = make_store(tmp_path / "acts.zarr")
    swept = [Member("k=2", {"k": "2"}, replace(CONFIG, k=2)), Member("k=3", {"k": "3"}, CONFIG)]
    train_sweep(store, None, swept, tmp_path / "sweep")
    names = sorted(path.name for path in (tmp_path / "sweep" / "k=2").iterdir())
    told = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(told | {"state": "training"}))
    for name in (".lock", "checkpoint.safetensors", ".checkpoint.safetensors.tmp"):
        (tmp_path / "sweep" / "k=2" / name).touch()
    train_sweep(store, None, swept, tmp_path / "sweep", resume=True)
    assert sorted(path.name for path in (tmp_path / "sweep" / "k=2").iterdir()) == names


def test_an_import_on_a_full_disk_is_not_told_to_resume(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    np.save(tmp_path / "x.npy", np.ones((100, 3), np.float32))
    monkeypatch.setattr(commit, "write_files", full)
    with pytest.raises(StoreError, match=r"No space left on device. Mend that and run the import again with --force\."):
        stores.import_files([tmp_path / "x.npy"], tmp_path / "acts.zarr")


def test_a_full_disk_says_which_file_it_did_not_take(tmp_path, monkeypatch):
    store = make_store(tmp_path / "acts.zarr")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loggers, "write_all", full)
    with pytest.raises(OSError, match="No space left on device") as refused:
        train(store, None, CONFIG, tmp_path / "run")
    assert str(refused.value.filename).endswith("metrics.jsonl")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't start new thread"), torch.OutOfMemoryError("CUDA out of memory. Tried to")]
)
def test_no_memory_left_is_a_sentence(cli, monkeypatch, tmp_path, error):
    def verify(*args, **kwargs):
        raise error

    monkeypatch.setattr(stores, "verify", verify)
    code, _, said = cli("verify", tmp_path)
    assert code == 1
    assert "The system has no memory left for this: end other programs, or ask for less" in said


def test_rows_that_are_all_no_numbers_are_not_said_to_be_missing(tmp_path):
    np.save(tmp_path / "x.npy", np.full((100, 3), np.nan, np.float32))
    with pytest.raises(StoreError, match="All 100 rows that came are left out, as not finite"):
        stores.import_files([tmp_path / "x.npy"], tmp_path / "acts.zarr")


@pytest.mark.parametrize(
    "campaign",
    [
        ["kill_commands.py", "3", "--commands", "1"],
        ["faults.py", "1", "--only", "full_disk,two_at_once,codes,no_numbers", "--commands", "encode"],
    ],
    ids=lambda campaign: campaign[0],
)
def test_short_campaigns(campaign):
    """In processes that have not begun any threads that a fork would lose."""
    script = Path(__file__).parent / "campaigns" / campaign[0]
    done = subprocess.run([sys.executable, script, *campaign[1:]], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
