"""A sweep's members are the runs that one gets alone, to the bit, whatever interrupts the sweep."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from runs import left_by, signal_at
from splinterp import store as stores
from splinterp.cli import main
from splinterp.errors import Interrupted, SplinterpError
from splinterp.sae import load_sae
from splinterp.store.files import Lock
from splinterp.train import Member, TrainConfig, TrainOptions, budget, members, parse_axes, stages, train, train_sweep, training
from splinterp.train import checkpoint as files
from splinterp.train.adam import AdamBaseline
from splinterp.train.pam import PAM
from splinterp.train.rows import Rows

SITE, D_IN, D_SAE, N = "hook", 24, 96, 6000
OPTIONS = TrainOptions(
    method="pam", activation="topk", latents=D_SAE, expansion=None, k=6, k_start=None, k_anneal=None, l1=None, l0=None, bandwidth=None, revive="auxk", tokens=6500, epochs=None,
    batch_size=256, lr=1e-2, warmup=None, decay=0.35, encoder_steps=1, mu_enc=None, nu_enc=None, mu_dec=None, nu_dec=None, alpha=None, beta=None,
    ridge=None, decoder_steps=None, pursuit=None, jitter=None, solve_every=3, memory_rows=2000, last_solve=None, memory=None, precision="auto", seed=0, order_seed=None,
)  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with stores.create(tmp_path_factory.mktemp("sweep") / "acts.zarr", sites={SITE: D_IN}, dtype="float32", rows=N) as writer:
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(N, D_SAE, generator=generator) * (torch.rand(N, D_SAE, generator=generator) < 0.06)
        writer.add({SITE: codes @ torch.randn(D_SAE, D_IN, generator=generator)}, {})
        return writer.finish()


def saes(*told: str, **options: object) -> list[Member]:
    """The members of a sweep, as the command line would have them."""
    return members(replace(OPTIONS, **options), parse_axes(told), D_IN, 5632)  # type: ignore[arg-type]


def all_left_by(out: Path) -> dict[str, object]:
    return {path.name: left_by(path) for path in out.iterdir() if path.is_dir()}


@pytest.mark.parametrize(
    "axes",
    [
        ["k=4,8", "seed=0,1"],
        ["method=pam,adam", "latents=48,96"],
        ["activation=topk,batchtopk,relu"],
        ["encoder-steps=1,2", "decoder-steps=yes,no"],
        ["lr=auto,1e-3", "alpha=0,0.1"],
        ["jitter=auto,0.4", "seed=0,1"],
    ],
    ids=str,
)
def test_a_member_is_the_run_that_one_gets_alone(store, tmp_path, axes):
    swept = saes(*axes, mu_dec=0.1)
    results = train_sweep(store, None, swept, tmp_path / "sweep")
    assert [result.member.name for result in results] == [member.name for member in swept]
    for result in results:
        settings = json.loads((result.directory / "run.json").read_text())["settings"]
        config = replace(result.member.config, memory=settings["memory"])
        alone = train(store, None, config, tmp_path / "alone" / result.member.name)
        assert left_by(result.directory) == left_by(alone.directory)
        assert load_sae(result.directory).config.d_sae == config.d_sae
    assert len({(result.directory / "sae_weights.safetensors").read_bytes() for result in results}) == len(results)
    told = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert told["state"] == "finished"
    assert [told["members"][r.member.name]["fvu"] for r in results] == [r.summary["fvu"] for r in results if r.summary]


def test_runs_of_several_sizes_have_the_threads_that_they_have_alone(store, tmp_path, monkeypatch):
    monkeypatch.setattr("splinterp.devices.SMALL_MATRIX", D_IN * 60)
    torch.set_num_threads(2)
    try:
        swept = saes("latents=48,96")
        train_sweep(store, None, swept, tmp_path / "sweep")
        seen: dict[int, set[int]] = {}
        real = PAM.step

        def step(self, x, lr, rows):
            seen.setdefault(self.config.d_sae, set()).add(torch.get_num_threads())
            return real(self, x, lr, rows)

        monkeypatch.setattr(PAM, "step", step)
        train_sweep(store, None, swept, tmp_path / "again")
        assert seen == {48: {1}, 96: {2}}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert all_left_by(tmp_path / "again") == all_left_by(tmp_path / "sweep")


@pytest.mark.parametrize("settings", [{}, {"encoder_steps": 2, "mu_enc": 0.1}, {"activation": "relu", "k": None, "l1": 1.0}, {"activation": "batchtopk"}, {"memory": 250_000}])  # fmt: skip
@pytest.mark.parametrize("method", [PAM, AdamBaseline])
def test_a_step_leaves_its_batch_as_it_is(store, settings, method):
    config = replace(TrainConfig("pam", "topk", D_SAE, N, 256, 1e-2, k=6, solve_every=1, dead_after=1), **settings)
    trained = method(D_IN, config, torch.device("cpu"))
    for x in Rows.of(store, SITE, torch.device("cpu")).training(256, 1024, seed=0):
        before = x.clone()
        trained.step(x, 1e-2)
        assert torch.equal(x, before)


def test_each_batch_is_read_once(store, tmp_path, monkeypatch):
    seen, real = [], Rows.normalise

    def counted(self, x):
        seen.append(len(x))
        return real(self, x)

    monkeypatch.setattr(Rows, "normalise", counted)
    config = {"last_solve": False, "tokens": 2560}
    monkeypatch.setattr(training, "evaluate_rows", lambda sae, rows: {"fvu": 0.0})
    train_sweep(store, None, saes("seed=0,1,2", **config), tmp_path / "sweep")
    assert sum(seen) == 2560


def test_interrupted_and_resumed_is_uninterrupted(store, tmp_path):
    """In the steps, by either signal, and in the last solves, of which one is done then."""
    swept = saes("k=4,8", "seed=0,1", k_start=12)
    train_sweep(store, None, swept, tmp_path / "whole")
    for rows, number in ((1500, signal.SIGINT), (4000, signal.SIGTERM)):
        told: list[str] = []
        with pytest.raises(
            Interrupted,
            match=r"Stopped after step \d+ of 26; .*sweep holds checkpoints of step \d+ for 4 of 4 SAEs and the SAEs so far\. .*--resume",
        ):
            train_sweep(
                store, None, swept, tmp_path / "sweep", progress=signal_at(rows, number=number), resume=True, tell=told.append
            )
        assert len([sentence for sentence in told if "writing 4 checkpoints of" in sentence]) == 1
        assert all(load_sae(tmp_path / "sweep" / member.name).config.d_sae == D_SAE for member in swept)

    def second_solve(at: str, done: int, total: int, figures: dict[str, float]) -> None:
        if at == "last solve 2 of 4":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="holds 1 finished SAEs and 3 as trained, without the last solve"):
        train_sweep(store, None, swept, tmp_path / "sweep", progress=second_solve, resume=True)
    first = (tmp_path / "sweep" / swept[0].name / "summary.json").stat().st_mtime_ns
    train_sweep(store, None, swept, tmp_path / "sweep", resume=True)
    assert (tmp_path / "sweep" / swept[0].name / "summary.json").stat().st_mtime_ns == first
    assert all_left_by(tmp_path / "sweep") == all_left_by(tmp_path / "whole")
    with pytest.raises(SplinterpError, match="is finished: there is nothing to resume"):
        train_sweep(store, None, swept, tmp_path / "sweep", resume=True)


FOUR = ("method=pam,adam", "seed=0,1")


@pytest.fixture(scope="module")
def four(store, tmp_path_factory) -> Path:
    """A sweep of four SAEs that nobody touched."""
    out = tmp_path_factory.mktemp("four") / "sweep"
    train_sweep(store, None, saes(*FOUR), out)
    return out


class Killed(BaseException):
    """As if the process had been killed: nothing more is written."""


@pytest.mark.parametrize(("step", "kept"), [(1, 0), (9, 1), (9, 3), (26, 2), (26, 6)])
def test_killed_between_two_checkpoints_and_resumed_is_uninterrupted(store, four, tmp_path, monkeypatch, step, kept):
    """When `kept` checkpoints of a step have been written: at the last one those of the whole state come first, then those of the weights."""
    swept = saes(*FOUR)
    real, written = files.write_checkpoint, []

    def killed(path, position, state):
        if position.steps == step:
            if len(written) == kept:
                raise Killed
            written.append(path)
        real(path, position, state)

    monkeypatch.setattr(training, "write_checkpoint", killed)
    monkeypatch.setattr(training, "MOST_OF_THE_TIME", math.inf)
    with pytest.raises(Killed):
        train_sweep(store, None, swept, tmp_path / "sweep", checkpoint_every=0)
    found = [tmp_path / "sweep" / member.name / files.CHECKPOINT for member in swept]
    steps = [files.read_checkpoint(path)[0].steps if path.exists() else 0 for path in found]
    assert steps == [step if i < kept else step - 1 for i in range(4)]
    monkeypatch.undo()
    train_sweep(store, None, swept, tmp_path / "sweep", resume=True)
    assert all_left_by(tmp_path / "sweep") == all_left_by(four)


def test_members_that_are_ahead_wait_for_the_others(store, four, tmp_path):
    """One far ahead, one behind, one that was not begun, one that is finished: each goes on from where it is."""
    swept = saes(*FOUR)
    for rows, name in ((1300, "early"), (4500, "late")):
        with pytest.raises(Interrupted):
            train_sweep(store, None, swept, tmp_path / name, progress=signal_at(rows))
    sweep = shutil.copytree(tmp_path / "early", tmp_path / "sweep")
    for i, name in ((0, "late"), (2, None), (3, "whole")):
        shutil.rmtree(sweep / swept[i].name)
        if name:
            shutil.copytree((four if name == "whole" else tmp_path / name) / swept[i].name, sweep / swept[i].name)
    shown: list[int] = []
    train_sweep(store, None, swept, sweep, resume=True, progress=lambda at, done, *rest: shown.append(done))
    assert shown[0] == 256
    assert all_left_by(sweep) == all_left_by(four)


def diverging(monkeypatch, *seeds: int) -> None:
    """From their tenth batch on a weight of the members with these seeds is no number."""
    real = PAM.step

    def poisoned(self, x, lr, rows):
        figures = real(self, x, lr, rows)
        if self.batches == 10 and self.config.seed in seeds:
            with torch.no_grad():
                self.weights.b_enc[3] = math.nan
        return figures

    monkeypatch.setattr(PAM, "step", poisoned)


def test_a_member_that_diverges_is_left_and_the_others_go_on(store, tmp_path, monkeypatch):
    swept = saes("seed=0,1,2")
    train_sweep(store, None, swept, tmp_path / "whole")
    diverging(monkeypatch, 1)
    monkeypatch.setattr(training, "MOST_OF_THE_TIME", math.inf)
    told: list[str] = []
    with pytest.raises(Interrupted):
        train_sweep(store, None, swept, tmp_path / "sweep", checkpoint_every=0, tell=told.append, progress=signal_at(15 * 256))
    assert any(
        sentence.startswith("seed=1: diverged by step 10 (") and "a checkpoint of step 9" in sentence for sentence in told
    )
    results = train_sweep(store, None, swept, tmp_path / "sweep", resume=True)
    assert [result.diverged for result in results] == [None, 10, None]
    assert results[1].summary is None
    assert json.loads((results[1].directory / "run.json").read_text())["diverged"] == 10
    assert files.read_checkpoint(results[1].directory / files.CHECKPOINT)[0].steps == 9
    for i in (0, 2):
        assert left_by(results[i].directory) == left_by(tmp_path / "whole" / swept[i].name)
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["members"]["seed=1"]["diverged"] == 10


def test_a_sweep_of_which_all_diverge_is_an_error(store, tmp_path, monkeypatch):
    diverging(monkeypatch, 0, 1)
    with pytest.raises(SplinterpError, match=r"All 2 SAEs of the sweep in .* diverged .*--force and a lower --lr"):
        train_sweep(store, None, saes("seed=0,1"), tmp_path / "sweep")


def test_the_memory_of_a_training_is_free_before_the_last_solves(store, tmp_path, monkeypatch):
    import gc
    import weakref

    alive: list[weakref.ref] = []
    real, at_solves = PAM.__init__, []

    def made(self, *arguments):
        real(self, *arguments)
        alive.append(weakref.ref(self))

    monkeypatch.setattr(PAM, "__init__", made)

    def progress(at: str, done: int, total: int, figures: dict[str, float]) -> None:
        if at.startswith("last solve"):
            gc.collect()
            at_solves.append(sum(one() is not None for one in alive))

    train_sweep(store, None, saes("seed=0,1,2"), tmp_path / "sweep", progress=progress)
    assert len(alive) == 3
    assert set(at_solves) == {0}


GRAM = 8 * D_SAE**2


@pytest.mark.parametrize(
    ("total", "parts"),
    [(100 * GRAM, [98 * GRAM] * 3), (6 * GRAM, [4 * GRAM] * 3), (6 * GRAM - 1, [2 * GRAM - 1] * 3), (2_000_000, [2_000_000 - 2 * GRAM] * 3)],
)  # fmt: skip
def test_memory_is_shared(total, parts):
    """Three Gram matrices, and what one solve takes besides; where that is too much, equal parts."""
    configs = [member.config for member in saes("seed=0,1,2", memory=total)]
    assert budget.shares(configs, 4, torch.device("cpu")) == parts


def test_too_little_memory_is_a_sentence(store, tmp_path, monkeypatch):
    with pytest.raises(
        SplinterpError, match=r"The 3 SAEs of the sweep would take .* and share 244 KiB \(--memory\)\. .*codes of topk"
    ):
        train_sweep(store, None, saes("seed=0,1,2", activation="batchtopk", memory=250_000), tmp_path / "sweep")
    monkeypatch.setattr(budget, "total_memory", lambda device: 2 * GRAM)
    with pytest.raises(SplinterpError, match=r"The 2 SAEs of the sweep take .* together, and this machine has 144 KiB"):
        train_sweep(store, None, saes("seed=0,1", memory=10**9), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_members_are_solved_without_a_gram_matrix_where_their_share_asks_for_it(store, tmp_path):
    told: list[str] = []
    results = train_sweep(store, None, saes("seed=0,1", latents=200, memory=1_200_000), tmp_path / "sweep", tell=told.append)
    assert sum("solved by conjugate gradients" in sentence for sentence in told) == 2
    config = replace(results[1].member.config, memory=600_000)
    assert left_by(train(store, None, config, tmp_path / "alone").directory) == left_by(results[1].directory)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (["k"], r"--sweep k names no values; write for example --sweep k=16,32,64"),
        (["k="], "names no values"),
        (["tokens=1k,2k"], r"--sweep tokens: that is not for sweeps; choose among method, activation, latents, .*seed"),
        (["learning-rate=1"], "--sweep learning-rate: that is not for sweeps"),
        (["k=4", "k=8"], "--sweep k is given twice"),
        (["latents=1k,1000"], "--sweep latents has the value 1000 twice"),
        (["lr=0.001,1e-3"], "--sweep lr has the value 0.001 twice"),
        (["k=4,"], "--sweep k: '' is not a number"),
        (["k=four"], "--sweep k: 'four' is not a number"),
        (["k=auto"], "--sweep k: 'auto' is not a number"),
        (["lr=fast"], "--sweep lr: 'fast' is not a number"),
        (["seed=one"], "--sweep seed: 'one' is not a number"),
        (["last-solve=maybe"], "--sweep last-solve: 'maybe' is neither yes nor no"),
        (["method=pam,sgd"], "The sweep's method=sgd is refused: --method sgd is unknown"),
        (["k=4,97"], "The sweep's k=97 is refused: k=97 must be between 1 and"),
        (["l1=1,2"], "--l1 has no effect in this sweep without --activation relu; leave it out"),
        (["activation=relu", "seed=0,1"], "--k has no effect in this sweep without --activation topk, batchtopk or jumprelu"),
        (["expansion=2,4"], "--expansion has no effect in this sweep beside --latents"),
        (["method=adam", "lr=auto,1e-3"], "--solve-every, --memory-rows have no effect in this sweep without --method pam"),
        (["activation=relu,topk", "k=4,8"], "The sweep's activation=relu,k=4 and activation=relu,k=8 are one and the same SAE"),
        (["method=pam,adam", "alpha=0,1"], "The sweep's method=adam,alpha=0 and method=adam,alpha=1 are one and the same SAE"),
    ],
    ids=str,
)
def test_a_wrong_axis_is_one_sentence(told, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        saes(*told)


def test_every_option_that_is_swept_is_one():
    import typer.main
    from splinterp.cli import app
    from splinterp.train.axes import SWEPT

    options = {name for parameter in typer.main.get_command(app).commands["train"].params for name in parameter.opts}  # type: ignore[attr-defined]
    assert {f"--{name}" for name in SWEPT} <= options
    assert {name.replace("-", "_") for name in SWEPT} <= asdict(OPTIONS).keys()


def test_an_option_that_one_member_uses_is_left_out_of_the_others():
    given = {"k_start": 12, "k_anneal": 0.5, "l1": 2.0, "alpha": 0.5, "mu_enc": 0.1, "memory": 10**9}
    topk, relu = (member.config for member in saes("activation=topk,relu", encoder_steps=2, **given))
    assert (topk.k, topk.k_start, topk.k_anneal, topk.l1, topk.mu_enc) == (6, 12, 0.5, 0.0, 0.1)
    assert (relu.k, relu.k_start, relu.k_anneal, relu.l1, relu.alpha) == (None, None, 0.2, 2.0, 0.5)
    pam, adam = (member.config for member in saes("method=pam,adam", alpha=0.5, memory=10**9, decoder_steps=False))
    assert (pam.alpha, pam.solve_every, pam.decoder_steps, pam.memory) == (0.5, 3, False, 10**9)
    assert (adam.alpha, adam.solve_every, adam.decoder_steps, adam.memory) == (0.0, None, True, 10**9)
    one, several = (member.config for member in saes("encoder-steps=1,2", mu_enc=0.1))
    assert (one.mu_enc, several.mu_enc) == (0.0, 0.1)


def test_what_follows_from_other_settings_does_so_for_each_member():
    told = {member.name: member.config for member in saes("method=pam,adam", "activation=topk,relu", lr=None)}
    assert {name: config.last_solve for name, config in told.items()} == {
        "method=pam,activation=topk": True, "method=pam,activation=relu": True,
        "method=adam,activation=topk": False, "method=adam,activation=relu": False,
    }  # fmt: skip
    assert {config.l1 for name, config in told.items() if "relu" in name} == {5.0}
    assert {config.order_seed for config in told.values()} == {0}
    assert {config.seed_of_order for member in saes("seed=3,4", seed=7) for config in [member.config]} == {7}
    assert {config.seed_of_order for member in saes("seed=3,4", seed=7, order_seed=5) for config in [member.config]} == {5}


def test_another_sweep_is_named(store, tmp_path):
    out = tmp_path / "sweep"
    with pytest.raises(Interrupted):
        train_sweep(store, None, saes("seed=0,1"), out, progress=signal_at(1000))
    with pytest.raises(SplinterpError, match="was begun as a sweep of seed=0; seed=1, and not of seed=0; seed=2"):
        train_sweep(store, None, saes("seed=0,2"), out, resume=True)
    with pytest.raises(SplinterpError, match=r"seed=0 was begun with k=6, and not with k=5; --resume needs the same"):
        train_sweep(store, None, saes("seed=0,1", k=5), out, resume=True)
    with pytest.raises(SplinterpError, match="exists already"):
        train_sweep(store, None, saes("seed=0,1"), out)
    lock = Lock(out)
    with pytest.raises(SplinterpError, match="written by another process"):
        train_sweep(store, None, saes("seed=0,1"), out, resume=True)
    lock.release(remove=True)
    (out / "sweep.json").write_text("{}")
    with pytest.raises(SplinterpError, match="is damaged"):
        train_sweep(store, None, saes("seed=0,1"), out, resume=True)


def test_force_replaces_a_sweep_and_nothing_else(store, tmp_path):
    out = tmp_path / "sweep"
    train_sweep(store, None, saes("seed=0,1", tokens=512), out)
    (out / "seed=0" / "notes.txt").write_text("mine")
    with pytest.raises(SplinterpError, match="k=97"):
        train_sweep(store, None, saes("k=97"), out, force=True)
    train_sweep(store, None, saes("seed=1,2", tokens=512), out, force=True)
    assert sorted(path.name for path in out.iterdir()) == ["seed=0", "seed=1", "seed=2", "sweep.json"]
    assert [path.name for path in (out / "seed=0").iterdir()] == ["notes.txt"]
    with pytest.raises(SplinterpError, match="seed=0 is not of the sweep"):
        train_sweep(store, None, saes("seed=0", tokens=512), out, force=True)
    train(store, None, saes("seed=0", tokens=512)[0].config, tmp_path / "run")
    with pytest.raises(SplinterpError, match="is not a sweep"):
        train_sweep(store, None, saes("seed=0", tokens=512), tmp_path / "run", force=True)
    with pytest.raises(SplinterpError, match="is not a sweep"):
        train_sweep(store, None, saes("seed=0", tokens=512), tmp_path / "run", resume=True)
    with pytest.raises(SplinterpError, match="is not a run directory"):
        train(store, None, saes("seed=0", tokens=512)[0].config, out, force=True)


def test_figures_of_every_member_reach_the_logger(store, tmp_path, monkeypatch):
    opened: dict[str, list[int]] = {}

    class Kept:
        def __init__(self, name: str) -> None:
            self.steps = opened.setdefault(name, [])

        def log(self, step, figures):
            self.steps.append(step)

        def finish(self, summary): ...

        def close(self):
            self.steps.append(-1)

    monkeypatch.setattr(stages, "open_logger", lambda name, directory, described, step: Kept(directory.name))
    results = train_sweep(store, None, saes("seed=0,1", tokens=1024), tmp_path / "sweep")
    assert opened == {result.member.name: [1, 2, 3, 4, -1] for result in results}


def test_wandb_takes_the_runs_of_a_sweep_side_by_side(store, tmp_path, monkeypatch, written_at_last):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for result in train_sweep(store, None, saes("seed=0,1", tokens=1024), tmp_path / "sweep", logger="wandb"):
        (kept,) = (result.directory / "wandb").glob("offline-run-*/*.wandb")
        written = written_at_last(kept)
        assert b"held_out_fvu" in written
        assert result.member.name.encode() in written


def test_the_command_line(store, tmp_path, capsys):
    command = [
        "train", "--store", store.path, "--latents", 48, "--tokens", "2k", "--sweep", "k=2,4", "--sweep", "method=pam,adam", "--out", tmp_path / "s"
    ]  # fmt: skip

    def run(*more: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in (*command, *more)])
        return (end.value.code, *capsys.readouterr())

    code, out, _ = run()
    assert not code
    assert "Sweep of k=2,4 × method=pam,adam: 4 SAEs on hook" in out
    rows = [line for line in out.splitlines() if "pam" in line or "adam" in line][1:]
    assert len(rows) == 4
    assert sum("best" in row for row in rows) == 1
    fvus = {name: one["fvu"] for name, one in json.loads((tmp_path / "s" / "sweep.json").read_text())["members"].items()}
    assert f"{min(fvus.values()):.4f}" in next(row for row in rows if "best" in row)
    assert "exists already" in run()[2]
    assert not run("--force", "--order-seed", 3)[0]
    assert json.loads((tmp_path / "s" / "k=2,method=pam" / "run.json").read_text())["settings"]["order_seed"] == 3
    code, _, err = run("--force", "--k", 3)
    assert code == 2
    assert "not both" in err
    code, _, err = run("--force", "--sweep", "tokens=1,2")
    assert code == 1
    assert "--sweep tokens: that is not for sweeps" in err
    assert (tmp_path / "s" / "sweep.json").exists()
