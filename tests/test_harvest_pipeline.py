"""From the forward pass to the store: the sink's thread, back-pressure, failures, and no forward pass that the store does not need."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest
import torch
from splinterp import store
from splinterp.errors import ModelError, StoreError
from splinterp.harvest import HarvestConfig, harvest
from splinterp.harvest.fill import fill
from splinterp.harvest.host import HostCopies
from splinterp.harvest.pack import TokenBatch
from splinterp.harvest.sink import DEPTH, Sink

SITE = "hook"
CPU = torch.device("cpu")


class Reader:
    """A model whose activation at a token is its id; with `bad`, not finite at ids that it divides."""

    device = CPU

    def __init__(self, bad: int | None = None) -> None:
        self.passes, self._bad = 0, bad

    def read(self, ids, keep):
        self.passes += 1
        x = torch.from_numpy(ids[keep]).float()[:, None].repeat(1, 2)
        if self._bad:
            x[x[:, 0] % self._bad == 0] = float("nan")
        return {SITE: x}


def batches(n: int, rows: int = 2, length: int = 4):
    for i in range(n):
        ids = (i * rows * length + np.arange(rows * length)).reshape(rows, length)
        number = np.arange(i * rows, (i + 1) * rows, dtype=np.uint32)
        yield TokenBatch(ids=ids, sequence=number, document=np.zeros(ids.shape, np.uint32), keep=np.ones(ids.shape, bool))


def writer(path, rows=None, **options):
    columns = ("token_id", "position", "document", "sequence")
    return store.create(path, sites={SITE: 2}, dtype="float32", columns=columns, rows=rows, **options)


@pytest.mark.parametrize(("bad", "rows", "passes"), [(None, 20, 3), (None, 24, 3), (None, 25, 4), (2, 20, 5), (2, 21, 6)])
def test_no_batch_is_forwarded_that_the_store_does_not_need(tmp_path, bad, rows, passes):
    reader = Reader(bad)
    with writer(tmp_path / "s", rows) as w:
        fill(w, reader, ((batch, None) for batch in batches(100)), None)
        done = w.finish()
    assert reader.passes == passes
    wanted = [i for i in range(1000) if bad is None or i % bad][:rows]
    assert sorted(done.column("token_id").tolist()) == wanted
    assert torch.equal(done.acts(SITE, 0, rows)[:, 0].long(), torch.from_numpy(done.column("token_id").astype(np.int64)))


def test_a_text_that_ends_early_gives_all_it_has(tmp_path):
    with writer(tmp_path / "s", 10_000) as w:
        fill(w, Reader(), ((batch, None) for batch in batches(5)), None)
        assert w.finish().rows == 40


class Slow:
    """A writer that waits to be let go, and fails at rows that hold 13."""

    def __init__(self) -> None:
        self.go, self.taken = threading.Event(), []

    def add(self, acts, columns):
        self.go.wait()
        if 13 in columns["i"]:
            raise StoreError("The disk is full.")
        self.taken.append(acts[SITE].clone())


def rows(i: int) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    return {SITE: torch.full((2, 2), float(i))}, {"i": np.array([i])}


def test_the_sink_gives_everything_on_in_order_and_waits_for_it():
    slow = Slow()
    slow.go.set()
    with Sink(slow, CPU) as sink:
        for i in range(5):
            sink.put(*rows(i))
        sink.drain()
        assert len(slow.taken) == 5
        sink.put(*rows(5))
    assert [int(x[0, 0]) for x in slow.taken] == list(range(6))


def test_the_sink_holds_back_a_model_that_is_ahead():
    slow, put = Slow(), []

    def give():
        with Sink(slow, CPU) as sink:
            for i in range(12):
                sink.put(*rows(i))
                put.append(i)

    thread = threading.Thread(target=give)
    thread.start()
    thread.join(0.3)
    assert len(put) <= DEPTH + 1
    slow.go.set()
    thread.join()
    assert len(slow.taken) == 12


@pytest.mark.parametrize("at", ["put", "drain", "exit"])
def test_what_fails_in_the_thread_is_raised_here_and_nothing_behind_it_is_written(at):
    slow = Slow()
    slow.go.set()

    def give():
        with Sink(slow, CPU) as sink:
            sink.put(*rows(1))
            sink.put(*rows(13))
            sink.put(*rows(2)) if at == "exit" else None
            sink.drain() if at == "drain" else None
            while at == "put":
                sink.put(*rows(3))

    with pytest.raises(StoreError, match="full"):
        give()
    assert [int(x[0, 0]) for x in slow.taken] == [1]


def test_an_interrupted_fill_still_writes_what_is_on_its_way(tmp_path):
    def stream():
        for i, batch in enumerate(batches(100)):
            if i == 7:
                raise KeyboardInterrupt
            yield batch, None

    with writer(tmp_path / "s", 1000) as w, pytest.raises(KeyboardInterrupt):
        fill(w, Reader(), stream(), None)
    assert w.rows == 7 * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_from_a_gpu_are_its_rows_whatever_it_does_next():
    copies = HostCopies(torch.device("cuda"), 2)
    for i in range(20):
        x = torch.full((4096, 64), float(i), device="cuda", dtype=torch.bfloat16)
        started = copies.start({SITE: x, "other": x[:1] * 2})
        del x
        torch.full(
            (4096, 64), -1.0, device="cuda", dtype=torch.bfloat16
        )  # takes the memory that was given back, were it given back
        got = {site: values.clone() for site, values in started.wait().items()}
        started.release()
        assert got[SITE].eq(i).all()
        assert got["other"].eq(2 * i).all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_rows_are_the_same_but_for_rounding(gpt2_dir, jsonl, tmp_path):
    common = {
        "model": str(gpt2_dir), "dataset": str(jsonl), "layers": (0,), "tokens": 600, "context": 16, "batch_size": 8, "dtype": "float32",
    }  # fmt: skip
    plain = harvest(HarvestConfig(**common, out=tmp_path / "plain"))
    compiled = harvest(HarvestConfig(**common, out=tmp_path / "compiled", compile=True))
    assert np.array_equal(plain.column("token_id"), compiled.column("token_id"))
    rows = [done.acts("blocks.0.hook_resid_post", 0, 600) for done in (plain, compiled)]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)
    assert compiled.attributes["compiled"]


def test_what_the_compiler_cannot_do_is_a_sentence(gpt2_dir, jsonl, tmp_path, monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/no/such/compiler"))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    config = HarvestConfig(
        model=str(gpt2_dir),
        dataset=str(jsonl),
        layers=(0,),
        tokens=600,
        context=16,
        batch_size=4,
        out=tmp_path / "s",
        compile=True,
    )
    with pytest.raises(ModelError, match="leave --compile out"):
        harvest(config)
    assert not (tmp_path / "s").exists()
