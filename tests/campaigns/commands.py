"""Commands on small inputs, what a reader takes for their complete output, and how a user goes on who does as their sentences say."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import command_line, contents, ended, forked
from runs import contents_of, without_times
from splinterp import store
from splinterp.errors import SplinterpError
from splinterp.infer.codes_store import open_codes
from splinterp.train import training

D_IN, ROWS = 16, 8192
MOST_STARTS = 8


@dataclass(frozen=True)
class Command:
    """A command: its line with {out}, and {seed} for one that leaves something else; `of` gives what is compared of its output.

    `of` is None of an output that no reader takes for complete. reads: what of the inputs, by name.
    """

    line: str
    of: Callable[[Path], Any]
    reads: tuple[str, ...] = ("acts.zarr",)


def of_store(path: Path) -> Any:
    try:
        store.open(path)
    except SplinterpError:
        return None
    # Killed after its last rename, a writer leaves what only writers need.
    return {name: data for name, data in contents(path).items() if name not in ("log.jsonl", "pool")}


def of_codes(path: Path) -> Any:
    try:
        open_codes(path)
    except SplinterpError:
        return None
    return contents(path)


def of_file(path: Path) -> Any:
    return path.read_bytes() if path.exists() else None


def of_run(path: Path) -> Any:
    """Of a run, a refit or a sweep."""
    if (path / "sweep.json").exists():
        told = json.loads((path / "sweep.json").read_text())
        told.pop("started")
        return (
            {"sweep.json": told, **{n: contents_of(path / n) for n in told["members"]}} if told["state"] == "finished" else None
        )
    if not (path / "summary.json").exists():
        return None
    if (path / "metrics.jsonl").exists():
        return contents_of(path)
    kept = {name: (path / name).read_bytes() for name in ("cfg.json", "sae_weights.safetensors")}
    return {**kept, "summary.json": without_times(json.loads((path / "summary.json").read_text()))}


TRAIN = "train --store acts.zarr --latents 64 --tokens 20k --batch-size 256 --checkpoint-every 0.0005 --seed {seed} --out {out}"
HARVEST = "harvest --dataset text --layer 0 --tokens 3000 --context 64 --batch-size 8 --memory 1MiB --seed {seed} --out {out}"
SAE = ("acts.zarr", "sae0")
COMMANDS = {
    "import": Command("import part0.npy part1.npy --seed {seed} --out {out}", of_store, ("part0.npy", "part1.npy")),
    "merge": Command("merge part0.zarr part1.zarr --seed {seed} --out {out}", of_store, ("part0.zarr", "part1.zarr")),
    "sweep": Command(f"{TRAIN} --sweep k=4,8", of_run),
    "encode": Command("encode sae{seed} --store acts.zarr --out {out}", of_codes, SAE),
    "report": Command("report sae{seed} --store acts.zarr --latents 8 --out {out}", of_file, SAE),
    "refit": Command("refit sae{seed} --store acts.zarr --out {out}", of_run, SAE),
    "eval": Command("eval sae{seed} --store acts.zarr --json", of_file, SAE),
    "train": Command(f"{TRAIN} --k 4", of_run),
    "harvest": Command(HARVEST, of_store, ("text",)),
}


def preload(names: Iterable[str]) -> None:
    """Import what the commands need, before the first fork, so that a child is at work within a hundredth of a second."""
    import splinterp.api
    import splinterp.report.build
    import splinterp.report.tables
    import torch._dynamo  # noqa: F401
    import zarr.codecs  # noqa: F401

    if "harvest" in names:
        import splinterp.harvest  # noqa: F401
        import transformer_lens.model_bridge  # noqa: F401
        import transformers  # noqa: F401


def advice(said: str) -> str | None:
    """The option by which a sentence says how to go on."""
    return next((option for option in ("--resume", "--force") if option in said), None)


class Workshop:
    """A folder with what commands read, and what each leaves when nobody touches it.

    Attributes:
        references: by command the output, another seed's, the names of all files, and the seconds that it takes.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        preload(names)
        self.folder, self.references = folder, dict[str, tuple[Any, Any, list[str], float]]()
        generator = torch.Generator().manual_seed(0)
        codes = torch.rand(ROWS, 64, generator=generator) * (torch.rand(ROWS, 64, generator=generator) < 0.05)
        rows = (codes @ torch.randn(64, D_IN, generator=generator)).numpy()
        for i, part in enumerate(np.array_split(rows, 2)):
            np.save(folder / f"part{i}.npy", part)
        (folder / "text").mkdir()
        for i in range(8):
            words = (f"{i}, {j}, {i * j % 97}, value_{j} = {i} + {j}" for j in range(60))
            (folder / "text" / f"{i}.txt").write_text("\n".join(words))
        for line in (
            *(f"import part{i}.npy --out part{i}.zarr" for i in range(2)),
            "import part0.npy part1.npy --out acts.zarr",
            *(f"train --store acts.zarr --latents 64 --k 4 --tokens 20k --seed {seed} --out sae{seed}" for seed in range(2)),
        ):
            self._must(line)
        for name in names:
            found, seconds = [], 0.0
            for seed in (1, 0):
                out = self.out(f"whole-{name}-{seed}", name)
                begun = time.monotonic()
                self._must(self.line(name, out, seed))
                seconds = time.monotonic() - begun
                found.append(self.output(name, out))
            self.references[name] = (found[1], found[0], self.names(out), seconds)

    def out(self, within: str, name: str) -> Path:
        """Where a command may write, in a new folder of its own."""
        (self.folder / within).mkdir()
        return self.folder / within / name

    def line(self, name: str, out: Path, seed: int = 0) -> str:
        return COMMANDS[name].line.format(out=os.path.relpath(out, self.folder), seed=seed)

    def start(self, line: str, before: Callable[[], None] = lambda: None, said: str = "said") -> int:
        """A forked command in the folder, `before` being done first; what it says is in the file `said`."""
        work = command_line(line.split(), self.folder / said)
        (self.folder / said).unlink(missing_ok=True)  # of an earlier one, should this one not come to write any

        def there() -> None:
            training.MOST_OF_THE_TIME = 1.0  # checkpoints come as often as they are asked for
            os.chdir(self.folder)
            before()
            work()

        return forked(there)

    def run(self, line: str, before: Callable[[], None] = lambda: None) -> int:
        return ended(self.start(line, before))

    def text(self, said: str = "said") -> str:
        """All that a command said."""
        path = self.folder / said
        return path.read_text().strip() if path.exists() else ""

    def said(self, said: str = "said") -> str:
        """Its last sentence, without what differs from time to time."""
        last = (self.text(said).splitlines() or [""])[-1]
        return re.sub(r"\d[\d,]*", "N", re.sub(r"\S*out\d+/", "", last.replace(f"{self.folder}/", "")))

    def output(self, name: str, out: Path) -> Any:
        """What is compared of a command's output; None where there is none that is complete."""
        if name == "eval":
            text = self.text()
            return json.loads(text) if text.startswith("{") and text.endswith("}") else None
        return COMMANDS[name].of(out)

    def names(self, out: Path) -> list[str]:
        """The names of all that lies where a command may write."""
        return [path.relative_to(out.parent).as_posix() for path in sorted(out.parent.rglob("*"))]

    def settle(self, name: str, out: Path, more: str = "", seed: int = 0) -> list[str]:
        """Go on as the command's sentences say until it is done; returns what is then wrong with it."""
        line = self.line(name, out, seed)
        for _ in range(MOST_STARTS):
            status, said = self.run(f"{line} {more}"), self.said()
            if status == 0 or "nothing to resume" in said:
                return self.compare(name, out)
            if status != 1 or (option := advice(said)) in (None, more):
                return [f"{name} {more}: it cannot be gone on with (exit code {status}): {said}"]
            more = option or ""
        return [f"{name}: it never came to its end: {said}"]

    def compare(self, name: str, out: Path) -> list[str]:
        """What is wrong with an output that is said to be complete."""
        new, _, names, _ = self.references[name]
        wrong = []
        if self.output(name, out) != new:
            wrong.append(f"{name}: the output differs from that of a command that nobody touched")
        if name != "eval" and self.names(out) != names:
            wrong.append(f"{name}: left beside, or missing: {sorted(set(self.names(out)) ^ set(names))}")
        return wrong

    def _must(self, line: str) -> None:
        if self.run(line):
            raise SystemExit(f"splinterp {line}: {self.text()}")
