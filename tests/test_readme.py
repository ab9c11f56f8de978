"""What the README and the documentation show, works: commands and Python run, small, in the order of the page; links lead somewhere.

A block of commands or Python behind `<!-- not run: why -->` is only looked at: its commands must parse, its Python compile.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import types
from pathlib import Path

import pytest
import typer.main
from splinterp.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- (?P<not_run>not run: [^>]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE
)
COMMAND = typer.main.get_command(app)
# What makes a command small, behind what it says itself: of an option that is given twice the last one counts.
SMALLER = {
    "harvest": "--tokens 3k", "train": "--latents 96", "eval --model": "--tokens 300", "gap": "--rows 64", "spectrum": "--regions 4",
    "mlp": "--width 16", "geometry": "--rows 128",
}  # fmt: skip
SMALL = {
    'store, "ours")': 'store, "ours", latents=96)',
    'method="adam")': 'method="adam", latents=96)',
    "200_000": "3_000",
    "tokens=2_000": "tokens=300",
    "rows=512": "rows=64",
}


def blocks(page: Path, *languages: str) -> list[re.Match[str]]:
    return [b for b in BLOCK.finditer(page.read_text(encoding="utf-8")) if b["language"] in languages]


def commands(text: str) -> list[list[str]]:
    """The words of every splinterp command in a block, options that make it small not among them."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("splinterp ")]


def check(words: list[str]) -> None:
    """Raises on a command, an option or a value that is none."""
    command = COMMAND
    while isinstance(getattr(command, "commands", None), dict):
        command, words = command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    command.make_context(str(command.name), list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page_parses(page):
    shown = [words for block in blocks(page, "") for words in commands(block["text"])]
    inline = re.findall(
        r"`splinterp ([a-z][^`]*)`", re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    )
    whole = [
        shlex.split(told.replace("\n", " "))
        for told in inline
        if "…" not in told and "..." not in told and " " in told and not re.search(r"\b[A-Z]{2,}\b", told)
    ]
    for words in shown:
        check(words)
    for words in whole:  # in running text, what is understood may be left out
        try:
            check(words)
        except Exception as error:
            if type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):  # an argument, or an option's value
                raise
    if page.name in ("README.md", "index.md"):
        assert len(shown) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_does_what_it_shows(page, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "", "python"):
        text = block["text"]
        if block["language"] == "python":
            for large, small in SMALL.items():
                text = text.replace(large, small)
            code = compile(text, f"{page.name}: {text.splitlines()[0]}", "exec")
            if not block["not_run"]:
                if "sae_lens" in text:
                    pytest.importorskip("sae_lens")
                exec(code, names)
            continue
        for words in [] if block["not_run"] else commands(text):
            command = "eval --model" if words[0] == "eval" and "--model" in words else words[0]
            code, _, err = cli(*words, *SMALLER.get(command, "").split())
            assert code == 0, f"splinterp {shlex.join(words)}: {err}"


def test_make_targets_of_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = "\n".join(block["text"] for page in PAGES for block in blocks(page, ""))
    targets = set(re.findall(r"^make ([a-z0-9-]+)", shown, re.MULTILINE))
    assert targets >= {"demo", "test", "docs"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_is_finished_and_its_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert "PLACEHOLDER" not in text
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target


def test_the_documentation_names_every_page_and_what_it_refers_to_exists():
    import splinterp

    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": (\S+\.(?:md|ipynb))$", text, re.MULTILINE))
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    assert {name.removesuffix(".md").removesuffix(".ipynb") for name in named} == {
        str(page.relative_to(ROOT / "docs").with_suffix("")) for page in pages
    }
    referred = set()
    for page in PAGES:
        for reference in re.findall(r"^::: splinterp\.(\S+)$", page.read_text("utf-8"), re.MULTILINE):
            module, _, name = f"splinterp.{reference}".rpartition(".")
            assert hasattr(__import__(module, fromlist=[name]), name), reference
            referred.add(name)
    assert referred >= {*splinterp.api.__all__}


NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def tool(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_keeps_such_outputs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept, run = (json.loads(path.read_text(encoding="utf-8")) for _ in range(2))
    tool("run_notebooks").run(run)

    def kinds(notebook):
        outputs = [cell.get("outputs", []) for cell in notebook["cells"]]
        return [[(output["output_type"], sorted(output.get("data", {}))) for output in of_cell] for of_cell in outputs]

    assert kinds(run) == kinds(kept)
    shown = tool("docs_hooks").markdown(run)
    assert shown.count("```python") == sum(cell["cell_type"] == "code" for cell in run["cells"])
    assert "<svg" in shown


@pytest.mark.parametrize(
    ("html", "loads"),
    [
        ('<script src="https://unpkg.com/x.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/css">', True),
        ("<img alt=x src=http://example.org/a.png>", True),
        ('<a href="https://arxiv.org/abs/2505.11836">a link that a reader follows</a>', False),
        ('<link rel="canonical" href="https://example.org/"><script src="assets/a.js"></script><svg xmlns="http://www.w3.org/2000/svg">', False),
    ],
)  # fmt: skip
def test_pages_that_would_load_from_a_network_are_told(html, loads):
    assert bool(tool("docs_hooks").FETCHED.search(html)) == loads
