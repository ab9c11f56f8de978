"""Slurm's runner against a small Slurm of our own making on PATH: its three commands, with a queue in a folder."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest
from services import Served, make_store
from splinterp.service.commands import work_of
from splinterp.service.jobs import Job
from splinterp.service.paths import Root
from splinterp.service.slurm import UNSEEN, SlurmRunner

# Jobs run one at a time, as processes; `hold` keeps them waiting, `down` is a controller that does not answer.
SBATCH = """
import os, re, subprocess, sys, pathlib
at = pathlib.Path(os.environ["FAKE_SLURM"])
if (at / "down").exists(): sys.exit("sbatch: error: Unable to contact slurm controller")
script = pathlib.Path(sys.argv[-1]).read_text()
said = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\\S+)", script, re.M))
number = len(list(at.glob("*.job"))) + 100
(at / f"{number}.job").write_text(said["job-name"])
(at / f"{number}.args").write_text(" ".join(sys.argv[1:]))
with open(said["output"], "ab") as log:
    runner = "import os,sys,time,pathlib;at=pathlib.Path(sys.argv[1])\\nwhile (at/'hold').exists(): time.sleep(.05)\\nos.chdir(sys.argv[3]);os.execvp('bash',['bash',sys.argv[2]])"
    child = subprocess.Popen([sys.executable, "-c", runner, str(at), sys.argv[-1], said["chdir"]], stdout=log, stderr=log, start_new_session=True)
(at / f"{number}.pid").write_text(str(child.pid))
print(number)
"""
SQUEUE = """
import os, pathlib, sys
at = pathlib.Path(os.environ["FAKE_SLURM"])
if (at / "down").exists(): sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
for job in at.glob("*.job"):
    pid = (job.with_suffix(".pid")).read_text()
    try: words = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError: continue
    if words[0] != "Z":
        print(f"{job.read_text()}|{job.stem}|{'PENDING' if (at / 'hold').exists() else 'RUNNING'}")
"""
SCANCEL = """
import os, pathlib, signal, sys
at = pathlib.Path(os.environ["FAKE_SLURM"])
pid = int((at / f"{sys.argv[-1]}.pid").read_text())
with open(at / "cancelled", "a") as file: file.write(" ".join(sys.argv[1:]) + "\\n")
os.kill(pid, signal.SIGTERM) if "--batch" in sys.argv else os.killpg(pid, signal.SIGKILL)
"""
SRUN = "import os, sys\nwords = [w for w in sys.argv[1:] if not w.startswith('--ntasks')]\nos.execvp(words[0], words)\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of the fake's queue."""
    folder, bin = tmp_path / "slurm", tmp_path / "bin"
    folder.mkdir()
    bin.mkdir()
    for name, code in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL), ("srun", SRUN)):
        (bin / name).write_text(f"#!{sys.executable} -I\n{code}")
        (bin / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


def test_a_training_goes_through_slurm_is_stopped_resumed_and_found_again(slurm, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    make_store(root / "acts.zarr")
    with Served(root, "--slurm", "--partition=gpu --gres=gpu:1", "--job-threads", "1") as served:
        client = served.client
        (slurm / "hold").touch()
        made = client.submit(
            "train", store="acts.zarr", latents=64, k=4, tokens="100M", batch_size=128, out="runs/it's; touch x"
        )
        until = time.monotonic() + 60
        while not list(slurm.glob("*.pid")) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(3)
        assert client.job(made["id"])["state"] == "starting"  # it waits in Slurm's queue
        served.kill()
        (slurm / "hold").unlink()
        served.start()
        while client.job(made["id"])["progress"]["done"] is None and time.monotonic() < until + 60:
            time.sleep(0.3)
        found = client.job(made["id"])
        assert (found["state"], found["attempt"], found["slot"]) == ("running", 1, "slurm")
        assert len(list(slurm.glob("*.job"))) == 1  # submitted once
        assert (slurm / "100.args").read_text().startswith("--parsable --partition=gpu --gres=gpu:1 ")
        (slurm / "down").touch()  # nothing is known of any job, and nothing is done about it
        time.sleep(3)
        assert client.job(made["id"])["state"] == "running"
        (slurm / "down").unlink()
        client.stop(made["id"])
        stopped = client.wait(made["id"])
        assert stopped["state"] == "stopped"
        assert "holds a checkpoint" in stopped["message"]
        assert (slurm / "cancelled").read_text().split("\n")[0] == "--batch --signal=TERM 100"
        client.resume(made["id"])
        while client.job(made["id"])["state"] != "running" and time.monotonic() < until + 120:
            time.sleep(0.3)
        assert "--resume" in client.job(made["id"])["command_line"]
        client.stop(made["id"], now=True)
        asked = time.monotonic()
        assert client.wait(made["id"])["state"] == "stopped"
        assert time.monotonic() - asked < UNSEEN / 2  # what is killed writes no word of its end that would be waited for
    assert not (root / "x").exists()


def test_the_script_quotes_every_argument_and_runs_ranks_by_torchrun(tmp_path):
    (tmp_path / "acts.zarr").mkdir()
    root = Root.at(tmp_path)
    runner = SlurmRunner(tmp_path / "jobs", tmp_path)
    work = work_of(root, "train", ["--store", "acts.zarr", "--out", "a b'; rm x", "--site", "$(x)"])
    script = runner.script(Job(7, work, "starting", 0, 4, 8, "", attempt=2), ["train", *work.arguments])
    assert "-m torch.distributed.run --standalone --nproc-per-node=8 -m splinterp train" in script
    assert """'a b'"'"'; rm x'""" in script
    assert "'$(x)'" in script
    assert "#SBATCH --cpus-per-task=32" in script
    assert Path(tmp_path / "jobs").exists() is False
