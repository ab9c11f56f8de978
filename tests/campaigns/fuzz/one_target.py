"""One target under atheris, in a process of its own: `python -m fuzz.one_target NAME FOLDER SECONDS SEED`, from tests/campaigns.

FOLDER keeps `corpus/`, `findings/` (an input and a text a defect, named by its place), `now` (the input at work, should the process die of it)
and `stats.json`. A finding does not end the process.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pkgutil
import random
import socket
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import atheris

PARTS = (
    "errors",
    "quantities",
    "sites",
    "cli",
    "store",
    "sae",
    "harvest",
    "train",
    "infer",
    "evaluate",
    "report",
    "service",
    "api",
)
LONGEST = 2**14
TOLD_EVERY = 0.5
HUNG = 120  # seconds, of whatever kind, after which libFuzzer ends the process: `attempt` counts those of the processor alone


def imported() -> None:
    """All of ours, instrumented; what needs a GPU's packages stays out."""
    import splinterp

    for part in PARTS:
        module = importlib.import_module(f"splinterp.{part}")
        for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"splinterp.{part}."):
            if "triton" not in found.name and splinterp:
                with suppress(ImportError):
                    importlib.import_module(found.name)


def forbid_network() -> None:
    def refused(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was asked")

    socket.socket.connect = socket.getaddrinfo = refused  # pyright: ignore[reportAttributeAccessIssue]


def main(name: str, folder: Path, seconds: str, seed: str) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["splinterp"]):
        imported()
    import torch

    from fuzz.kit import attempt
    from fuzz.mutate import changed_lines, mutated
    from fuzz.targets import ALL

    torch.set_num_threads(1)
    forbid_network()
    for below in ("corpus", "findings"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix="splinterp-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    seeds, one, words = ALL[name].prepare(Path(scratch))
    for valid in seeds:
        (folder / "corpus" / hashlib.sha1(valid).hexdigest()).write_bytes(valid)
    now = os.open(folder / "now", os.O_RDWR | os.O_CREAT, 0o644)
    stats: dict[str, Any] = {"runs": 0, "seconds": 0.0, "findings": {}}
    begun = told = time.monotonic()

    def tell() -> None:
        stats["seconds"] = time.monotonic() - begun
        (folder / ".stats.tmp").write_text(json.dumps(stats))
        os.replace(folder / ".stats.tmp", folder / "stats.json")

    def given(data: bytes) -> None:
        nonlocal told
        os.pwrite(now, data, 0)
        os.ftruncate(now, len(data))
        found = attempt(one, data)
        stats["runs"] += 1
        if found is not None:
            key = hashlib.sha1(found.place.encode()).hexdigest()[:10]
            if found.place not in stats["findings"]:
                (folder / "findings" / key).write_bytes(data)
                (folder / "findings" / f"{key}.txt").write_text(f"{found.place}\n\n{found.told}", errors="backslashreplace")
            stats["findings"][found.place] = stats["findings"].get(found.place, 0) + 1
        if time.monotonic() - told > TOLD_EVERY:
            tell()
            told = time.monotonic()

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        """Half of the mutations of JSON and of lines are structural."""
        chosen = random.Random(seed)
        if words and chosen.random() < 0.5:
            return changed_lines(bytes(data), chosen, words)[:most]
        if data[:1] in b"{[" and chosen.random() < 0.5:
            changed = mutated(bytes(data), chosen)
            if len(changed) <= most:
                return changed
        return atheris.Mutate(data, most)

    tell()
    # Time and memory are watched by `attempt`, too.
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={HUNG}",
        f"-artifact_prefix={folder}/findings/",
        "-rss_limit_mb=0",
        f"-seed={seed}",
        f"-max_len={LONGEST}",
        "-verbosity=0",
        "-print_final_stats=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], given, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
