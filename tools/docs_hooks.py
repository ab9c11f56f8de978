"""What mkdocs is told beyond mkdocs.yml: the package where mkdocstrings finds it, notebooks as pages, and nothing loaded from a network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINKS = ROOT / "build" / "docs" / "splinterp"
# Elements that a browser fetches by itself; links that a reader follows are none of them.
FETCHED = re.compile(r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?(?:https?:)?//|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*\bhref=[\"']?(?:https?:)?//|@import\s+url\((?:https?:)?//")  # fmt: skip


def on_startup(command: str, dirty: bool) -> None:
    """A folder `splinterp` with the package's modules and nothing else: the repository's root, which is the package, holds much more."""
    shutil.rmtree(LINKS, ignore_errors=True)
    LINKS.mkdir(parents=True)
    for path in (*ROOT.glob("*.py"), *(folder.parent for folder in ROOT.glob("*/__init__.py"))):
        (LINKS / path.name).symlink_to(path)


def on_files(files: Any, config: Any) -> Any:
    """Notebooks as pages, with the outputs that they keep."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
        files.remove(file)
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=markdown(notebook)))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Raises where a page would load something from a network."""
    found = FETCHED.search(output)
    if found:
        raise SystemExit(f"{page.file.src_uri} would load something from a network: {found[0]}…")
    return output


def markdown(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: text cells as they are, code in fences, outputs behind them."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        parts += [_output(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/svg+xml" in data:
        return "".join(data["image/svg+xml"])
    if "text/html" in data:
        return re.sub(r"\n\s*\n", "\n", "".join(data["text/html"]))
    text = "".join(output.get("text") or data.get("text/plain") or "")
    return f"```text\n{text.rstrip()}\n```"
