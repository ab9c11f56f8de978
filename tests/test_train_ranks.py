"""Several processes train one SAE: what comes of it is a single process's, up to rounding; and what happens when one of them ends."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from splinterp import store as stores
from splinterp.devices import choose_device
from splinterp.errors import Interrupted, SaidElsewhere, SplinterpError
from splinterp.ranks import Ranks
from splinterp.sae import SparseCodes, load_sae, select_topk, to_dense
from splinterp.train import (
    Decoder,
    Penalties,
    Statistics,
    TrainConfig,
    joined_ranks,
    solve_decoder,
    train,
    train_sweep,
    training,
)
from splinterp.train.adam import AdamBaseline
from splinterp.train.batchtopk import select_batch_topk
from splinterp.train.conjugate import solve_by_cg
from splinterp.train.group import ALONE, Group
from splinterp.train.kept_codes import KeptCodes
from splinterp.train.pam import PAM
from splinterp.train.rows import Rows

SITE, D_IN, D_SAE, N = "hook", 24, 96, 6000
CPU = torch.device("cpu")
# The last of 25 batches has a single row: fewer than there are ranks.
CONFIG = TrainConfig(
    method="pam", activation="topk", d_sae=D_SAE, rows=6001, batch_size=250, lr=3e-3, k=6, k_start=9, solve_every=3, dead_after=600,
    memory_rows=2000,
)  # fmt: skip
CONFIGS = {
    "as it comes": replace(CONFIG, solve_every=None, memory_rows=None),
    "topk": CONFIG,
    "with jitter": replace(CONFIG, jitter=0.3),
    "solve-only, M=2": replace(CONFIG, decoder_steps=False, encoder_steps=2, mu_enc=0.1, nu_enc=0.1),
    "batchtopk": replace(CONFIG, activation="batchtopk"),
    "relu": replace(CONFIG, activation="relu", k=None, k_start=None, l1=1.0),
    "jumprelu": replace(CONFIG, activation="jumprelu"),
    "resample": replace(CONFIG, revive="resample", k=3, k_start=None, dead_after=250),
    "without a Gram matrix": replace(CONFIG, memory=250_000, memory_rows=500),
    "pursuit": replace(CONFIG, method="pursuit", last_solve=False),
    "adam": replace(CONFIG, method="adam"),
    "adam, by conjugate gradients": replace(CONFIG, method="adam", memory=250_000),
}

RESUMED = {name: CONFIGS[name] for name in ("as it comes", "topk", "jumprelu", "without a Gram matrix")}
# What three ranks do: their shares are of several sizes.
OF_THREE = {name: CONFIGS[name] for name in ("as it comes", "topk", "batchtopk", "resample", "without a Gram matrix")}
# All ranks come from one process that has imported what they need.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "splinterp.train", "torch._dynamo"])  # which the first step imports
LOST = 3  # how a rank exits that has lost touch with another


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "acts.zarr"
    with stores.create(path, sites={SITE: D_IN}, dtype="float32", rows=N) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(N, D_SAE, generator=generator) * (torch.rand(N, D_SAE, generator=generator) < 0.06)
        writer.add({SITE: codes @ torch.randn(D_SAE, D_IN, generator=generator)}, {})
        return writer.finish()


def start(what: Callable[..., None], world: int, out: Path, *arguments: Path) -> list[BaseProcess]:
    """A process for each rank, which calls `what`; what it says is in a file beside `out`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    out.mkdir()
    processes: list[BaseProcess] = []
    for rank in range(world):
        own = told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(FORKS.Process(target=as_rank, args=(what, own, said_by(out, rank), out, *arguments)))
        processes[-1].start()
    return processes


def said_by(out: Path, rank: int) -> Path:
    return out.parent / f"{out.name}-said-by-{rank}"


def as_rank(what: Callable[..., None], environment: dict[str, str], said: Path, *arguments: Path) -> None:
    with said.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    with joined_ranks(Ranks.of_environment(), CPU) as group:
        what(group, *arguments)


def ended(processes: list[BaseProcess], seconds: float = 120) -> list[int | None]:
    """How each has exited; None where it had to be killed."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


# What the ranks do.


def refuse(really: bool) -> None:
    if really:
        raise SplinterpError("no room")


def verbs_and_sums(group: Group) -> None:
    parts = group.gather(torch.arange(group.rank, dtype=torch.float32))
    assert parts.tolist() == [float(i) for rank in range(group.world) for i in range(rank)]
    assert group.any(group.rank == 1, False, True) == (True, False, True)
    assert group.tell({"α": [1, None]} if group.first else "else") == {"α": [1, None]}
    with pytest.raises(SplinterpError, match="no room") as refused, group.agreed():
        refuse(group.rank > 0)
    assert isinstance(refused.value, SaidElsewhere) == (group.rank != 1)

    statistics, kept = Statistics(D_IN, D_SAE), KeptCodes(D_IN, D_SAE, group=group)
    generator = torch.Generator().manual_seed(1)
    weights, xs, zs = [], [], []
    for n in (100, 37, 1, 250):
        x = torch.randn(n, D_IN, generator=generator, dtype=torch.float64)
        codes = select_topk(torch.randn(n, D_SAE, generator=generator, dtype=torch.float64), 5)
        mine = slice(n * group.rank // group.world, n * (group.rank + 1) // group.world)
        some = SparseCodes(codes.indices[mine], codes.values[mine])
        statistics.decay(0.9)
        statistics.add(x[mine], some)
        kept.add(x[mine], some)
        weights = [0.9 * w for w in weights] + [torch.ones(n, dtype=torch.float64)]
        xs.append(x)
        zs.append(to_dense(codes, D_SAE))
        if n == 37:
            statistics.sum_to_first(group)  # in between, as a checkpoint does
    statistics.sum_to_first(group)
    kept.sum_over_ranks()
    x, z, w = torch.cat(xs), torch.cat(zs), torch.cat(weights)[:, None]
    V = torch.randn(D_SAE, 3, generator=generator, dtype=torch.float64)

    def same(a, b) -> None:
        a, b = (torch.as_tensor(t, dtype=torch.float64) for t in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)

    same(kept.cross, z.T @ x)
    same(kept.product(V), z.T @ (z @ V))
    same(kept.rows, len(x))
    assert_solved(solve_by_cg(kept, Penalties(alpha=0.5), tolerance=1e-9, most=500), x, z, torch.ones_like(w))
    if group.first:
        same(statistics.gram, z.T @ (w * z))
        same(statistics.cross, z.T @ (w * x))
        same(statistics.sum_z, (w * z).sum(0))
        same(statistics.sum_x, (w * x).sum(0))
        same(statistics.sum_xx, (w * x.square()).sum())
        same(statistics.rows, w.sum())
        assert_solved(solve_decoder(statistics, Penalties(alpha=0.5)), x, z, w)
    else:
        assert not any(float(t.abs().sum()) for t in (statistics.gram, statistics.cross, statistics.sum_z))
        assert statistics.rows == statistics.sum_xx == 0


def assert_solved(decoder: Decoder, x: torch.Tensor, z: torch.Tensor, w: torch.Tensor) -> None:
    """Least squares with weights w and α = 0.5 on W_dec alone, from the normal equations in float64."""
    z1 = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], 1)
    penalty = torch.diag(torch.tensor([0.5] * D_SAE + [0.0], dtype=z.dtype))
    direct = torch.linalg.solve(z1.T @ (w * z1) + penalty, z1.T @ (w * x))
    ours = torch.cat([decoder.W_dec, decoder.b_dec[None]])
    assert float((ours - direct).norm() / direct.norm()) < 1e-6


def batch_topk(group: Group) -> None:
    generator = torch.Generator().manual_seed(2)
    for n, k in ((64, 3), (2, 3), (64, 20), (1, 90)):
        pre = torch.randn(n, D_SAE, generator=generator)
        pre[0] += 3  # one row has very many
        mine = slice(n * group.rank // group.world, n * (group.rank + 1) // group.world)
        for candidates in (1, 4):  # all ranks search anew where one of them cannot tell otherwise
            ours = select_batch_topk(pre[mine], k, candidates, n, group)
            assert torch.equal(to_dense(ours, D_SAE), to_dense(select_batch_topk(pre, k, candidates), D_SAE)[mine])


def resampled(group: Group) -> None:
    generator = torch.Generator().manual_seed(3)
    for n in (101, 30, 1):  # rows enough for all dead latents, and not
        x = torch.randn(n, D_IN, generator=generator)
        mine = slice(n * group.rank // group.world, n * (group.rank + 1) // group.world)
        ours, one = (AdamBaseline(D_IN, CONFIGS["resample"], CPU, of) for of in (group, ALONE))
        for method, rows in ((ours, x[mine]), (one, x)):
            method.gradient.dead.rows_since[:60] = 10**6
            revived = method.step(rows, 3e-3, n).revived
        assert revived is not None
        assert 0 < len(revived) <= n
        for name in ("W_dec", "W_enc_rows"):
            torch.testing.assert_close(getattr(ours.weights, name)[revived], getattr(one.weights, name)[revived])


def three(group: Group, out: Path, path: Path) -> None:
    batch_topk(group)
    resampled(group)
    for name, config in OF_THREE.items():
        train(stores.open(path), None, config, out / name, group=group)


def two(group: Group, out: Path, path: Path) -> None:
    """All that ranks can be asked within one start."""
    verbs_and_sums(group)
    batch_topk(group)
    resampled(group)
    store = stores.open(path)
    for name, config in CONFIGS.items():
        result = train(store, None, config, out / name, group=group)
        assert bool(result.summary) == group.first
    with pytest.raises(SplinterpError, match="exists already") as refused:
        train(store, None, CONFIG, out / "topk", group=group)
    assert isinstance(refused.value, SaidElsewhere) != group.first
    with pytest.raises(SplinterpError, match="Rank 1 was started with other settings"):
        train(store, None, replace(CONFIG, seed=group.rank), out / "other", group=group)
    with pytest.raises(SplinterpError, match="--sweep trains in a single process") as refused:
        train_sweep(store, None, [], out / "other", group=group)
    assert isinstance(refused.value, SaidElsewhere) != group.first
    assert not (out / "other").exists()
    for name, config in RESUMED.items():
        for rows in (1500, 4000):
            with pytest.raises(SplinterpError, match="Stopped after step") as stopped:
                train(store, None, config, out / f"{name}, resumed", progress=signal_at(rows), group=group, resume=rows > 1500)
            assert isinstance(stopped.value, Interrupted if group.first else SaidElsewhere)
        if group.first:
            shutil.copytree(out / f"{name}, resumed", out / f"{name}, resumed by one")
        train(store, None, config, out / f"{name}, resumed", group=group, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        nan_at(5, patch)
        with pytest.raises(SplinterpError, match="diverged by step 5") as bad:
            train(store, None, CONFIG, out / "diverged", checkpoint_every=0, group=group)
        assert isinstance(bad.value, SaidElsewhere) != group.first
    kill_the_last(group, store, out / "killed")


def signal_at(rows: int):
    """A progress callback that sends the first rank's process a signal; the others hear of it from the first."""

    def progress(at: str, done: int, total: int, figures: dict[str, float]) -> None:
        if at == "train" and done == rows:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def nan_at(batch: int, patch: pytest.MonkeyPatch) -> None:
    """From now on a weight of every rank is no number after so many batches, which only the first's checkpoint can see."""
    real = PAM.step

    def poisoned(self, x, lr, rows):
        figures = real(self, x, lr, rows)
        if self.batches == batch:
            with torch.no_grad():
                self.weights.b_enc[3] = torch.nan
        return figures

    patch.setattr(PAM, "step", poisoned)
    patch.setattr(training, "MOST_OF_THE_TIME", math.inf)


def kill_the_last(group: Group, store: stores.Store, out: Path) -> None:
    """The last rank is killed between two steps."""
    real = PAM.step

    def step(self, x, lr, rows):
        if self.batches == 7 and group.rank == group.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, x, lr, rows)

    PAM.step = step
    try:
        train(store, None, CONFIG, out, group=group)
    except SplinterpError as error:
        print(error, flush=True)
        sys.exit(LOST)


# What comes of it.


@pytest.fixture(scope="module")
def together(store, tmp_path_factory) -> dict[int, Path]:
    """What so many ranks have left."""
    outs = {world: tmp_path_factory.mktemp(f"together-{world}") / "runs" for world in (2, 3)}
    for (world, out), what, codes in zip(outs.items(), (two, three), ([LOST, -signal.SIGKILL], [0, 0, 0]), strict=True):
        exited = ended(start(what, world, out, store.path))
        assert exited == codes, "\n".join(said_by(out, rank).read_text() for rank in range(world))
    return outs


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for name, config in CONFIGS.items():
        train(store, None, config, out / name)
    return out


def curve(run: Path, name: str) -> torch.Tensor:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 26))
    return torch.tensor([line.get(name, 0.0) for line in lines], dtype=torch.float64)


def tolerance(world: int, name: str) -> float:
    """Relative. Only three windows of 167 rows do not hold quite the rows of one of 500."""
    return 6e-2 if (world, name) == (3, "without a Gram matrix") else 1e-5


def assert_alike(a: Path, b: Path, tolerance: float) -> None:
    steps = slice(None) if tolerance == 1e-5 else slice(-1)  # the last one's single row may have another loss
    for name in ("loss", "fvu", "l0", "held_out_fvu"):
        torch.testing.assert_close(curve(a, name)[steps], curve(b, name)[steps], rtol=tolerance, atol=0)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (a, b)]
    for name in ("fvu", "l0", "rows_trained", "steps"):
        assert summaries[0][name] == pytest.approx(summaries[1][name], rel=tolerance)
    assert summaries[0]["last_solve"]["rows"] == summaries[1]["last_solve"]["rows"]
    if tolerance == 1e-5:
        assert summaries[0]["last_solve"]["ridge"] == summaries[1]["last_solve"]["ridge"]
        assert torch.equal(curve(a, "dead"), curve(b, "dead"))


@pytest.mark.parametrize(("world", "name"), [*((2, name) for name in CONFIGS), *((3, name) for name in OF_THREE)])
def test_ranks_train_as_one_process(together, alone, world, name):
    by_ranks, by_one = together[world] / name, alone / name
    assert_alike(by_ranks, by_one, tolerance(world, name))
    if name in ("topk", "batchtopk"):
        assert curve(by_one, "dead")[5:-1].max() > 0  # so that AuxK had something to do
    assert json.loads((by_ranks / "run.json").read_text())["ranks"] == world
    assert load_sae(by_ranks).config.d_sae == D_SAE
    assert sorted(path.name for path in by_ranks.iterdir()) == sorted(path.name for path in by_one.iterdir())


@pytest.mark.parametrize("name", RESUMED)
def test_a_stopped_run_goes_on_with_any_number_of_ranks(store, together, alone, name):
    assert_alike(together[2] / f"{name}, resumed", alone / name, tolerance(2, name))
    one = together[2] / f"{name}, resumed by one"
    train(store, None, CONFIGS[name], one, resume=True)
    assert_alike(one, alone / name, tolerance(2, name))
    assert json.loads((one / "run.json").read_text())["ranks"] == 1


def test_divergence_is_seen_by_all(together):
    assert json.loads((together[2] / "diverged" / "run.json").read_text())["diverged"] == 5


def test_a_killed_rank_ends_the_other_with_a_sentence(together):
    said = said_by(together[2], 0).read_text()
    assert "Rank 0 of 2 has lost touch with rank 1, which has ended: see what is said there." in said
    assert "--resume goes on from the last checkpoint" in said
    assert not (together[2] / "killed" / ".lock").exists()


def test_torchrun_on_the_command_line_tells_a_refusal_once(store, tmp_path):
    (tmp_path / "out").mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "splinterp", "train",
        "--store", str(store.path), "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("pam on hook of") == 1
    assert done.stderr.count("exists already; give another --out") == 1


# Without other processes.


def old_order(store, batch_size: int, total: int, seed: int) -> list[torch.Tensor]:
    """The batches as `Store.batches` has them: what is left at an epoch's end begins the next epoch's first batch."""
    epochs = -(-total // store.split_rows("train"))
    rows = torch.cat([x.clone() for epoch in range(epochs) for x in store.batches(SITE, 250, seed=seed, epoch=epoch)])
    return list(rows[:total].split(batch_size))


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize(("batch_size", "total"), [(256, 12_000), (100, 6001), (7, 500), (9000, 20_000), (1000, 500)])
def test_shares_joined_are_the_batches_of_one_process(store, batch_size, total, world):
    shares = []
    for rank in range(world):
        rows = Rows(store, SITE, torch.zeros(D_IN), 1.0, CPU, Group(rank, world))
        shares.append([x.clone() for x in rows.training(batch_size, total, seed=3)])
        done = batch_size * (len(shares[0]) // 2)
        rest = list(rows.training(batch_size, total, seed=3, skip=done))
        assert all(torch.equal(a, b) for a, b in zip(rest, shares[rank][len(shares[0]) // 2 :], strict=True))
    expected = old_order(store, batch_size, total, 3)
    assert len(shares[0]) == len(expected)
    for i, batch in enumerate(expected):
        parts = [share[i] for share in shares]
        assert torch.equal(torch.cat(parts), batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("world", [1, 2, 5])
def test_batches_dealt_to_ranks_are_those_of_one_process(store, world):
    whole = list(store.batches(SITE, 700, shuffle=False))
    dealt = [[x.clone() for x in store.dealt(SITE, 700, rank, world)] for rank in range(world)]
    for i, batch in enumerate(store.batches(SITE, 700, shuffle=False)):
        assert torch.equal(dealt[i % world][i // world], batch)
    assert sum(map(len, dealt)) == len(whole)


def test_what_torchrun_may_say_wrong(monkeypatch):
    with pytest.raises(SplinterpError, match="LOCAL_WORLD_SIZE=3 is not what torchrun sets"):
        Ranks.of_environment({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "3"})
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SplinterpError, match="Rank 1 of 2 did not find the others"), joined_ranks(Ranks(1, 2, 1, 2), CPU):
        pass
    monkeypatch.setenv("MASTER_PORT", "0")
    with pytest.raises(SplinterpError, match="cannot meet at port 0"), joined_ranks(Ranks(1, 2, 1, 2), choose_device("cpu")):
        pass
