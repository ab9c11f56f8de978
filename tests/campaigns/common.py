"""What the campaigns share: forked work, signals, folders compared file by file, and memory measured in a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

# One time in four a signal that can be listened to.
SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM, signal.SIGINT)

# (the summary's lines, what failed)
Outcome = tuple[dict[str, str], list[str]]


def forked(work: Callable[[], None]) -> int:
    """The process id of a fork that does `work` in one thread, and ends as a command would: by a SystemExit's code, or 3 for anything else.

    The parent has imported everything, so that a child is at work within milliseconds.
    """
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            work()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 3 if end.code else 0)
        except KeyboardInterrupt:  # before the command line had begun
            os._exit(1)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    return pid


def command_line(arguments: list[str], said: Path | None = None) -> Callable[[], None]:
    """Work for `forked`: our command line, with its output in the file `said`, or thrown away."""

    def work() -> None:
        from splinterp import cli

        to = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(to, 1)
        os.dup2(to, 2)
        cli.main(arguments)

    return work


def ended(pid: int) -> int:
    """The exit code of a process that is waited for; minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(path: Path) -> dict[str, bytes]:
    """Every file but the lock's, which a writer killed after its last rename leaves behind."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.name != ".lock"}


def differing(found: Mapping[str, object], reference: Mapping[str, object]) -> list[str]:
    """The names under which the two differ."""
    return sorted(name for name in found.keys() | reference.keys() if found.get(name) != reference.get(name))


def told(kills: Counter[str]) -> str:
    """Signals by name, in words."""
    return f"{sum(kills.values())} ({', '.join(f'{n} {name}' for name, n in sorted(kills.items()))})"


def run_campaign(
    description: str | None,
    argument: str,
    default: int,
    campaign: Callable[[argparse.Namespace, Path], Outcome],
    **options: int,
) -> None:
    """The command line of a campaign of kills: prints its summary, and exits with 1 if anything failed.

    Args:
        argument: the name of its number, `default` if left out. campaign: given that, `seed` and the other options, and a folder.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(argument, type=int, nargs="?", default=default)
    for name, value in {"seed": 0, **options}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="[default: %(default)s]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="splinterp-kill-") as folder:
        summary, failures = campaign(args, Path(folder))
    for name, value in summary.items():
        print(f"| {name} | {value} |")
    for failure in failures:
        print(failure)
    sys.exit(bool(failures))


def peak_memory(code: str, *arguments: object, limit: int | None = None) -> int:
    """The peak of resident memory, in MiB, of a Python process that runs `code` with these arguments.

    Args:
        limit: bytes of private memory that the process may have: it fails at the first allocation beyond.
    """
    bound = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))\n" if limit else ""
    # Of that process image alone: ru_maxrss would be the parent's where that is larger.
    peak = "\nimport re; print(int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) // 1024)"
    command = [sys.executable, "-c", bound + code + peak, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return int(done.stdout.split()[-1])
