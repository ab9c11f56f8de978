"""The service's parts: paths, commands, turns, the queue, and what becomes of jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services import make_store
from splinterp.errors import SplinterpError
from splinterp.service import commands, keeper, locks, offered
from splinterp.service.commands import Work, arguments_from, next_arguments, work_of
from splinterp.service.follow import lines_from
from splinterp.service.jobs import Job
from splinterp.service.manager import Manager
from splinterp.service.paths import PathError, Root, overlap
from splinterp.service.progress import waiting_times
from splinterp.service.queue import Queue, QueueFullError
from splinterp.service.runner import LocalRunner
from splinterp.service.schedule import Slots, startable

TRAIN = ("--store", "acts.zarr", "--latents", "64", "--k", "4", "--batch-size", "128")
NAMES = st.sampled_from(["a", "a/b", "a/b/c", "ab", "b", "b/c"])


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("service") / "root"
    root.mkdir()
    make_store(root / "acts.zarr")
    return root


@pytest.fixture
def root(stored) -> Root:
    return Root.at(stored)


def job(id: int, *, reads=(), writes=(), priority=0, threads=1, device="cpu", state="queued", slot=None) -> Job:
    work = Work("train", (), tuple(reads), tuple(writes), device=device)
    return Job(id, work, state, priority, threads, 1, "", slot=slot)


# Paths.


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a/..", ".splinterp/token", "a/.hidden", "-x", "a/--out", "~/x", "s3://b/x", "file:///x", "a\\b", "a\nb", "a\0b", "x" * 501, "/" , "a/" + "é" * 200],
)  # fmt: skip
def test_paths_that_lead_out_are_refused(root, text):
    with pytest.raises(PathError):
        root.inside(text)


def test_links_are_resolved_before_they_are_judged(root, tmp_path):
    (root.path / "out").symlink_to(tmp_path)
    (root.path / "state").symlink_to(root.path / ".splinterp")
    (root.path / "circle").symlink_to(root.path / "circle")
    (root.path / "same").symlink_to(root.path / "acts.zarr")
    try:
        for name in ("out", "out/x", "state/token", "circle/x"):
            with pytest.raises(PathError):
                root.inside(name)
        assert root.claim("same") == root.claim("acts.zarr") == "acts.zarr"  # one store, whatever it is called
    finally:
        for name in ("out", "state", "circle", "same"):
            (root.path / name).unlink()


@given(NAMES, NAMES)
def test_overlap_is_what_paths_say(one, other):
    pairs = zip(Path(one).parts, Path(other).parts, strict=False)
    assert overlap(one, other) == all(a == b for a, b in pairs)


# Commands.


def test_what_is_offered_is_the_command_line_s(root):
    assert {"harvest", "train", "refit", "encode", "eval", "report"} <= commands.KINDS.keys() <= offered.commands().keys()
    train = offered.commands()["train"]
    assert train.option("method").default == "pam"
    assert train.option("decoder_steps").off == "--solve-only"
    assert train.option("k").told == "32"


def test_every_path_of_an_offered_command_is_known_as_one():
    for name, kind in commands.KINDS.items():
        known = {*kind.reads, *kind.names, kind.writes}
        paths = {option.name for option in offered.commands()[name].options if option.is_path}
        assert paths <= known, name


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("demo", [], "no job"),
        ("serve", [], "no job"),
        ("train", [], "Missing option"),
        ("train", [*TRAIN, "--k", "four"], "not a number"),
        ("train", ["--store", "/acts.zarr"], "absolute"),
        ("train", ["--store", "acts.zarr", "--out", "../run"], "plain names"),
        ("train", ["--store=acts.zarr", "--nope"], "No such option"),
        ("train", ["--help"], "No such option"),
        ("train", [*TRAIN, "extra"], "unexpected extra argument"),
        ("harvest", ["--trust-remote-code"], "not for the service"),
        ("harvest", ["--dataset", "/etc/passwd"], "absolute"),
        ("harvest", ["--dataset", "a/b/c/d.txt::0.5"], "There is no dataset"),
        ("harvest", ["--model", "../x"], "plain names"),
        ("eval", ["run", "--store", "acts.zarr", "--encoder", "mlp:/etc/x"], "absolute"),
        ("eval", ["--", "--store", "acts.zarr"], "Missing option"),
        ("train", [*TRAIN, *["x"] * 300], "at most"),
        ("train", [*TRAIN, "--site", "a\x1b[2J"], "printable"),
    ],
)
def test_jobs_that_cannot_be_are_refused_in_the_command_line_s_words(root, command, arguments, words):
    with pytest.raises(SplinterpError, match=words):
        work_of(root, command, arguments)


def test_a_job_claims_what_it_reads_and_writes_and_names_its_output(root):
    work = work_of(root, "train", TRAIN)
    assert work.reads == ("acts.zarr",)
    assert work.out.startswith("runs/acts-pam-")
    assert work.writes == (work.out,)
    assert work_of(root, "train", work.arguments) == work
    evaluated = work_of(
        root, "eval", ["runs/a", "--store", "acts.zarr", "--encoder", "mlp:runs/a/mlp.safetensors", "--dataset", "stdlib"]
    )
    assert evaluated.reads == ("runs/a", "acts.zarr", "runs/a/mlp.safetensors")
    assert evaluated.writes == ()


def test_options_by_name_are_the_same_command_line(root):
    told = {"store": "acts.zarr", "k": 4, "decoder_steps": "no", "force": True, "sweep": ["k=4,8", "seed=0,1"], "out": "-x"}
    assert arguments_from("train", told) == [
        "--store=acts.zarr", "--out=-x", "--k=4", "--solve-only", "--sweep=k=4,8", "--sweep=seed=0,1", "--force",
    ]  # fmt: skip
    assert arguments_from("eval", {"sae": "-run", "store": "acts.zarr"}) == ["--store=acts.zarr", "--", "-run"]
    with pytest.raises(SplinterpError, match="no option"):
        arguments_from("train", {"nope": 1})


def test_a_further_attempt_goes_on_with_what_the_job_began_and_with_nothing_else(tmp_path):
    root, since = Root.at(tmp_path), time.time()
    plain = Work("train", ("--store", "s", "--out", "run"), out="run")
    forced = replace(plain, arguments=(*plain.arguments, "--force"), force=True)
    assert next_arguments(root, plain, "resume", since) == list(plain.arguments)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".run.json.tmp").touch()
    assert next_arguments(root, plain, "resume", since) == list(plain.arguments)
    assert not (tmp_path / "run").exists()  # it had not come further than its lock
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert next_arguments(root, plain, "resume", since) == ["--resume", *plain.arguments]
    assert next_arguments(root, plain, "retry", since) == ["--force", *plain.arguments]
    assert next_arguments(root, forced, "resume", since) == ["--resume", *plain.arguments]
    os.utime(tmp_path / "run" / "run.json", (since - 100, since - 100))  # another one's, which --force was to replace
    assert next_arguments(root, forced, "resume", since) == list(forced.arguments)
    assert not commands.is_finished(root, plain, since)
    (tmp_path / "run" / "run.json").touch()
    (tmp_path / "run" / "summary.json").touch()
    assert commands.is_finished(root, plain, since)


# Turns.


def test_turns_follow_priority_then_order_and_the_machine_s_room():
    queued = [job(2, priority=5), job(1, threads=2), job(3)]
    assert startable([], queued, Slots((), 3)) == [(queued[0], "cpu"), (queued[1], "cpu")]
    # What is next waits for its threads, and nobody overtakes it.
    assert startable([job(9, state="running", slot="cpu")], queued[1:], Slots((), 2)) == []
    gpus = Slots(("cuda:0", "cuda:1"), 4)
    wanted = [job(1, device="auto"), job(2, device="cuda"), job(3, device="auto"), job(4, device="cuda:1"), job(5)]
    assert startable([], wanted, gpus) == [(wanted[0], "cuda:0"), (wanted[1], "cuda:1"), (wanted[4], "cpu")]
    assert gpus.wanted("cuda:7") == ()
    assert startable([], [job(1, threads=99)], Slots((), 4))[0][1] == "cpu"


def test_a_job_waits_for_a_store_that_is_not_there_or_not_finished_and_holds_up_nobody(tmp_path):
    root, queue, runner = Root.at(tmp_path), Queue(tmp_path / "q"), Scripted(tmp_path)
    make_store(tmp_path / "acts.zarr")
    waiting = queue.submit(work_of(root, "train", ["--store", "late.zarr", "--out", "a"]), priority=9)
    other = queue.submit(work_of(root, "train", [*TRAIN, "--out", "b"]))
    manager = Manager(queue, runner, root, Slots((), 1))
    manager.tick()
    assert [queue.get(job.id).state for job in (waiting, other)] == ["queued", "starting"]
    queue.change(other.id, ("starting",), state="stopped", ended=1.0)
    (tmp_path / "late.zarr").mkdir()
    for status, state in (("writing", "queued"), ("complete", "starting")):
        (tmp_path / "late.zarr" / "zarr.json").write_text(json.dumps({"attributes": {"splinterp": {"status": status}}}))
        manager.tick()
        assert queue.get(waiting.id).state == state
        assert queue.get(waiting.id).message == ("Waits for late.zarr, which is not finished." if state == "queued" else "")


jobs_of = st.lists(
    st.tuples(st.lists(NAMES, max_size=2), st.lists(NAMES, max_size=1), st.integers(0, 2), st.booleans()), max_size=7
)


@given(jobs_of)
@settings(max_examples=200)
def test_nobody_reads_or_writes_what_another_writes_and_everybody_has_a_turn(told):
    jobs = {
        i: job(i, reads=reads, writes=writes, priority=p, state="running" if runs else "queued", slot="cpu" if runs else None)
        for i, (reads, writes, p, runs) in enumerate(told)
    }

    def clash(a: Job, b: Job) -> bool:
        both = [(a, b), (b, a)]
        return any(overlap(w, o) for x, y in both for w in x.work.writes for o in (*y.work.reads, *y.work.writes))

    running = {i: j for i, j in jobs.items() if j.state == "running"}
    queued = sorted((j for j in jobs.values() if j.state == "queued"), key=lambda j: (-j.priority, j.id))
    started = [j for j, _ in startable(list(running.values()), queued, Slots((), 100))]
    for n, one in enumerate(started):
        assert not any(clash(one, other) for other in [*running.values(), *started[:n]])
        assert not any(clash(one, other) for other in queued if other.id < one.id)
    waiting = [j for j in queued if j not in started]
    for one in waiting:  # each for another one
        assert any(clash(one, other) for other in [*running.values(), *(o for o in queued if o.id < one.id)])


def test_waiting_times_fill_the_lanes():
    queued = [job(1), job(2), job(3)]
    active = [(job(8, state="running"), 10.0), (job(9, state="running"), None)]
    assert waiting_times(active, queued, {"train": 5.0}, Slots((), 2)) == {1: 10.0, 2: 15.0, 3: 20.0}
    assert waiting_times([], queued, {"train": None}, Slots((), 2)) == {1: 0.0, 2: 0.0, 3: None}


# The queue.


def test_the_queue_keeps_everything_and_makes_one_job_of_one_request(tmp_path):
    work = Work("train", ("--store", "s"), ("s",), ("run",), "run")
    queue = Queue(tmp_path / "q", most=3)
    first = queue.submit(work, priority=3, label="é", request="r")
    assert queue.submit(work, request="r") == first
    second = queue.submit(work)
    assert queue.change(second.id, ("queued",), state="done", ended=1.0, result={"fvu": 0.5}, line=["a"])
    assert not queue.change(second.id, ("queued",), state="stopped")
    queue.submit(work)
    queue.submit(work)
    with pytest.raises(QueueFullError):
        queue.submit(work)
    told, changed = queue.jobs(), queue.changed
    queue.close()
    again = Queue(tmp_path / "q")
    assert again.jobs() == told
    assert again.changed == changed
    assert [j.id for j in told] == [1, 3, 4, 2]
    assert again.claims() == {"run"}
    assert again.writer_of("run").id == 1
    assert again.writer_of("other") is None
    (tmp_path / "other").write_bytes(b"no database" * 100)
    with pytest.raises(SplinterpError, match="cannot be read"):
        Queue(tmp_path / "other")


def test_a_log_of_lines_is_followed_through_what_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert lines_from(path, 0) == ([], 0)
    path.write_bytes(b'{"a": 1}\n{"a": NaN}\n{"a"')
    assert lines_from(path, 0) == ([{"a": 1}, {"a": None}], 20)
    assert lines_from(path, 20) == ([], 20)
    path.write_bytes(b'{"a": 1}\n')
    assert lines_from(path, 20) == ([{"a": 1}], 9)  # the run went back to a checkpoint: all of it again
    path.write_bytes(b'{"abcd": 1234567890}\n{"b": 2}\n')
    assert lines_from(path, 9)[1] == 30


# Processes.


def test_a_keeper_tells_how_a_job_ended_and_holds_its_lock_while_it_lives(tmp_path):
    root = Root.at(tmp_path)
    queue, runner = Queue(tmp_path / "q"), LocalRunner(tmp_path / "jobs", tmp_path)
    job = replace(queue.submit(Work("verify", ())), attempt=1, state="starting")
    runner.start(job, ["--version"], dict(os.environ))
    with pytest.raises(SplinterpError, match="still runs"):
        runner.start(replace(job, attempt=2), ["--version"], dict(os.environ))
    until = time.monotonic() + 60
    while locks.is_held(runner.lock(job)) and time.monotonic() < until:
        time.sleep(0.05)
    assert runner.ended(job).code == 0
    assert "splinterp" in (runner.folder(job) / "log").read_text()
    assert root.path == tmp_path.resolve()


@pytest.mark.parametrize("early", [True, False])
def test_a_keeper_hands_on_a_signal_however_early(tmp_path, early):
    folder = tmp_path / "job"
    folder.mkdir()
    lock = locks.acquire(tmp_path / "lock")
    work = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)"
    kept = subprocess.Popen(
        [sys.executable, "-I", keeper.__file__, str(folder), str(lock), sys.executable, "-c", work],
        pass_fds=(lock,), start_new_session=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(lock)
    if early:
        while not (folder / keeper.KEEPER).exists():
            time.sleep(0.001)
    else:
        assert kept.stdout.readline() == b"up\n"
    os.killpg(kept.pid, signal.SIGTERM)
    kept.wait(30)
    told = json.loads((folder / keeper.EXIT).read_text())
    assert told["asked"] == signal.SIGTERM
    assert told["code"] in ((-15, 7, 1) if early else (7,))
    assert not locks.is_held(tmp_path / "lock")


class Scripted:
    """A runner whose jobs do what the test says."""

    name = "scripted"

    def __init__(self, folder: Path) -> None:
        self.found, self.started, self.stopped, self._folder = None, [], [], folder

    def folder(self, job):
        return self._folder

    def start(self, job, arguments, environment):
        self.started.append(arguments)
        return {"n": len(self.started)}

    def poll(self, job):
        return self.found

    def stop(self, job, *, now=False):
        self.stopped.append(now)
        return True


def test_what_becomes_of_interrupted_jobs(tmp_path):
    from splinterp.service.runner import Alive, Ended, Gone

    make_store(tmp_path / "acts.zarr")
    root, queue, runner = Root.at(tmp_path), Queue(tmp_path / "q"), Scripted(tmp_path)
    made = queue.submit(work_of(root, "train", TRAIN))

    def state(manager: Manager, found) -> str:
        runner.found = found
        manager.tick()
        return queue.get(made.id).state

    def restarted() -> Manager:
        return Manager(queue, runner, root, Slots((), 1), grace=0.0)

    manager = restarted()
    assert state(manager, Alive()) == "starting"
    assert state(manager, Alive()) == "running"
    # The service was away, and so was the machine: on it goes, counted.
    (tmp_path / made.work.out).mkdir(parents=True)
    (tmp_path / made.work.out / "run.json").write_text("{}")
    assert state(restarted(), Gone(begun=True)) == "starting"
    assert runner.started[-1][:2] == ["train", "--resume"]
    assert queue.get(made.id).restarts == 1
    # Killed before anything had begun: as if it had never been started.
    manager = restarted()
    assert state(manager, Gone(begun=False)) == "starting"
    assert queue.get(made.id).restarts == 1
    # A machine that goes down tells all processes to end.
    assert state(manager, Ended(1, asked=True)) == "starting"
    assert queue.get(made.id).restarts == 2
    # Asked to stop, then pressed.
    manager.stop(made.id)
    assert state(manager, Alive()) == "stopping"
    assert state(manager, Alive()) == "stopping"
    assert runner.stopped == [True, True]  # no grace in this test
    assert state(manager, Ended(-9, asked=False)) == "stopped"
    manager.again(made.id, "resume")
    assert state(manager, Alive()) == "starting"
    # Killed by the system under a service that is there: a person decides.
    assert state(manager, Gone(begun=True)) == "failed"
    manager.again(made.id, "retry")
    assert state(manager, Alive()) == "starting"
    assert "--force" in runner.started[-1]
    assert state(manager, Ended(-9, asked=False)) == "failed"
    assert "want of memory" in queue.get(made.id).message
    with pytest.raises(SplinterpError, match="nothing to stop"):
        manager.stop(made.id)
