"""docs/mistakes.md: every mistake on the page, made in the folder that it speaks of, says what the page says, and leaves nothing behind.

    python tests/test_mistakes.py FOLDER     # prints the rows as they ought to be, for the page

The page is the only list. "…" in it stands for anything.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).resolve().parent.parent / "docs" / "mistakes.md"
ROW = re.compile(r"^\| `(?P<typed>[^`]+)`(?: \((?P<when>[^)]+)\))? \| (?P<said>.+) \|$", re.MULTILINE)
TEXT = PAGE.read_text(encoding="utf-8")
ROWS = [match.groupdict() for match in ROW.finditer(TEXT)]
# The first of the tables is that of command lines that are none.
USAGE = [match.groupdict() for match in ROW.finditer(TEXT.split("\n## ")[1])]


def small_disk(patch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    patch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**33, 2**33))


def lacking(*packages: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: [patch.setitem(sys.modules, package, None) for package in packages]  # type: ignore[func-returns-value]


def torchruns(**variables: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: [patch.setenv(name, value) for name, value in variables.items()]  # type: ignore[func-returns-value]


# What a row's second thought in parentheses means.
CONDITIONS: dict[str | None, Callable[[pytest.MonkeyPatch], object]] = {
    None: lambda patch: None,
    "no network": lambda patch: patch.setenv("HF_HUB_OFFLINE", "1"),
    "no GPU": lambda patch: patch.setattr(torch.cuda, "is_available", lambda: False),
    "8 GiB free": small_disk,
    "without wandb": lacking("wandb"),
    "without s3fs": lacking("s3fs"),
    "RANK=4 WORLD_SIZE=4": torchruns(RANK="4", WORLD_SIZE="4"),
}


def rows_at(path: Path, sites: dict[str, int], rows: int = 600, **attributes: object) -> None:
    """A store of random rows; unfinished if `finish=False` is among the attributes."""
    from splinterp import store as stores

    finish = attributes.pop("finish", True)
    generator = torch.Generator().manual_seed(0)
    with stores.create(path, sites=sites, rows=rows, attributes=attributes) as writer:
        writer.add({site: torch.randn(rows if finish else rows // 2, d, generator=generator) for site, d in sites.items()}, {})
        if finish:
            writer.finish()


def make_scene(folder: Path, model: Path) -> None:
    """The folder that the page speaks of."""
    import splinterp

    two = {f"blocks.{layer}.hook_resid_post": 192 for layer in (1, 2)}
    rows_at(folder / "two.zarr", two, model="tiny")
    rows_at(folder / "one.zarr", {"blocks.2.hook_resid_post": 192}, model="tiny", dataset="stdlib", context=128)
    rows_at(folder / "other.zarr", {"imported": 16})
    rows_at(folder / "half.zarr", {"blocks.2.hook_resid_post": 192}, model="tiny", finish=False)
    splinterp.train(folder / "one.zarr", folder / "run", latents=64, k=8, batch_size=64)
    shutil.copytree(folder / "run", folder / "half-run")
    for name in ("summary.json", "sae_weights.safetensors", "cfg.json"):
        (folder / "half-run" / name).unlink()
    (folder / "notes.txt").write_text("Some words of one's own.\n" * 40)
    (folder / "empty.txt").write_text("")
    (folder / "photo.txt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    shutil.copytree(model, folder / "model")
    torch.save({"acts": torch.zeros(3, 2), "more": Path("x")}, folder / "weights.pt")
    (folder / "folder").mkdir()
    (folder / "folder" / "readme").write_text("Something else.")


def plainly(printed: str) -> str:
    """The last sentence on stderr, in one line, without the box that a usage error comes in."""
    box = re.search(r"╭─ Error ─+╮\n(.*?)╰", printed, re.DOTALL)
    lines = [line.strip("│ ") for line in box[1].splitlines()] if box else printed.strip().splitlines()
    return " ".join(" ".join(lines).split())


def spelled(said: str) -> re.Pattern[str]:
    """What the page says, as a pattern: "…" is anything, and Markdown's bars and backslashes are taken back."""
    return re.compile(".+".join(map(re.escape, said.replace("\\|", "|").split("…"))))


@pytest.fixture(scope="module")
def scene(tmp_path_factory, gpt2_dir) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    make_scene(folder, gpt2_dir)
    return folder


def snapshot(folder: Path) -> set[tuple[str, int]]:
    return {
        (str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*") if p.name != ".lock" and "pool" not in p.name
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["typed"])
def test_a_mistake_says_what_the_page_says(row, scene, cli, monkeypatch):
    monkeypatch.chdir(scene)
    CONDITIONS[row["when"]](monkeypatch)
    before = snapshot(scene)
    code, _, err = cli(*shlex.split(row["typed"]))
    assert spelled(row["said"]).fullmatch(plainly(err)), plainly(err)
    assert code == (2 if row in USAGE else 1)
    assert "Traceback" not in err
    assert snapshot(scene) == before


def test_the_page_has_its_rows_and_each_leads_on():
    assert len(ROWS) >= 20
    assert USAGE
    assert len(ROWS) == len(re.findall(r"^\| `", TEXT, re.MULTILINE))  # none is written so that it is not run
    assert all(row["when"] in CONDITIONS for row in ROWS)


def main() -> None:
    """Print what is said today."""
    import contextlib
    import io
    import os

    from splinterp.cli import main as command_line

    folder = Path(sys.argv[1])
    os.chdir(folder)
    for row in ROWS:
        patch, err = pytest.MonkeyPatch(), io.StringIO()
        CONDITIONS[row["when"]](patch)
        from splinterp import cli as module

        module.err_console.file = err
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            command_line(shlex.split(row["typed"]))
        patch.undo()
        when = f" ({row['when']})" if row["when"] else ""
        print(f"| `{row['typed']}`{when} | {plainly(err.getvalue())} |", flush=True)


if __name__ == "__main__":
    main()
