"""SAEs on the Hugging Face hub: pushed as SAELens pushes them, a folder each, and loaded by hf:// names. Nothing else here asks the network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import SAEError
from ..harvest.hub import hub_sentences
from ..quantities import format_bytes
from ..report.runs import SUMMARY
from ..sae import SAE, save_sae
from ..sae.files import CONFIG, WEIGHTS
from ..store.files import read_json

SCHEME = "hf://"
CARD = "README.md"
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(?:/(?P<path>[\w./-]+?))?(?:@(?P<revision>[\w./-]+))?/?")


@dataclass(frozen=True)
class Upload:
    """What is pushed, or would be: each file's name in the repository and its bytes.

    url: of the commit; None before, and of a dry run.
    """

    repo: str
    files: dict[str, bytes]
    url: str | None = None

    @property
    def card(self) -> str:
        """The model card."""
        return next(data for name, data in self.files.items() if name.endswith(CARD)).decode()

    def told(self) -> str:
        """A line a file, with its size."""
        lines = [f"{name}  {format_bytes(len(data))}" for name, data in self.files.items()]
        return "\n".join([f"{self.repo}:", *(f"  {line}" for line in lines)])


def upload_of(sae: SAE, directory: Path | None, repo: str, path: str | None) -> Upload:
    """What a push of an SAE consists of: its two files and a card, in a folder of the repository. Asks no network.

    Of local paths in the SAE's metadata (a model's directory, a text's file) only the last part is told.

    Args:
        path: the folder; None: the name of the SAE's directory.

    Raises:
        SAEError: no possible name of a repository or folder, or an SAE in memory without a `path`.
    """
    if path is None and directory is None:
        raise SAEError("An SAE in memory has no name; say which folder of the repository it belongs in (path).")
    folder = (directory.resolve().name if directory and path is None else path or "").strip("/")
    found = _NAME.fullmatch(f"{repo}/{folder}")
    if repo.count("/") != 1 or not found or ".." in PurePosixPath(folder).parts or not folder:
        raise SAEError(
            f"'{repo}' with the folder '{folder}' is no place on the hub; write user/name, and a plain name for the folder (--path)."
        )
    metadata = {key: _public(value) for key, value in sae.config.metadata.items()}
    public = replace(sae, config=replace(sae.config, metadata=metadata))
    with TemporaryDirectory() as temporary:
        save_sae(public, Path(temporary))
        files = {f"{folder}/{name}": (Path(temporary) / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    summary = read_json(directory / SUMMARY) if directory and (directory / SUMMARY).is_file() else {}
    return Upload(repo, files | {f"{folder}/{CARD}": _card(public, repo, folder, summary).encode()})


def push(upload: Upload, private: bool, message: str | None = None) -> Upload:
    """Make the repository if need be, and commit the files to it.

    Raises:
        SAEError: the hub cannot be reached, or does not let this account write there.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder = next(iter(upload.files)).rpartition("/")[0]
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=data) for name, data in upload.files.items()]
    try:
        with hub_sentences(upload.repo, "model", None, SAEError):
            HfApi().create_repo(upload.repo, private=private, exist_ok=True)
            done = HfApi().create_commit(upload.repo, operations, commit_message=message or f"Upload SAE {folder}")
    except HfHubHTTPError as error:
        raise SAEError(
            f"The hub refused {upload.repo} ({str(error).splitlines()[0]}); set HF_TOKEN to a token that may write there."
        ) from error
    return replace(upload, url=str(done.commit_url))


def fetch(name: str) -> Path:
    """The local directory of an SAE named hf://user/repo[/folder][@revision], downloaded if it is not in the hub's cache.

    Raises:
        SAEError: no such name, repository, folder or revision, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    found = _NAME.fullmatch(name.removeprefix(SCHEME))
    if not found or ".." in name:
        raise SAEError(f"{name} names no SAE on the hub; write hf://user/repo/folder, and @revision behind it if need be.")
    repo, path, revision = found["repo"], (found["path"] or "").strip("/"), found["revision"]
    prefix = f"{path}/" if path else ""
    with hub_sentences(repo, "model", revision, SAEError):
        there = snapshot_download(repo, revision=revision, allow_patterns=[prefix + CONFIG, prefix + WEIGHTS])
    directory = Path(there) / path
    if not (directory / CONFIG).is_file():
        raise SAEError(
            f"{repo} on the hub has no SAE in {path or 'its root'}; see its page for the folders that hold {CONFIG}."
        )
    return directory


def _public(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _card(sae: SAE, repo: str, folder: str, summary: dict[str, Any]) -> str:
    config = sae.config
    rows = {
        "architecture": config.architecture, "d_in": config.d_in, "d_sae": config.d_sae, "k": config.k,
        **{key: config.metadata.get(key) for key in ("model_name", "hook_name", "dataset_path", "context_size")},
        "FVU (held out)": _figure(summary, "fvu"), "L0 (held out)": _figure(summary, "l0"),
        "dead latents (held out)": _figure(summary, "dead_fraction"), "held-out rows": summary.get("n_rows"),
    }  # fmt: skip
    front = "---\nlibrary_name: saelens\ntags:\n- sparse-autoencoder\n- saelens\n- splinterp\n---\n"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    return (
        f"{front}\n# {folder}\n\nA sparse autoencoder in SAELens's format.\n\n| | |\n|---|---|\n{table}\n\n"
        f'```python\nfrom sae_lens import SAE\n\nsae = SAE.from_pretrained("{repo}", "{folder}")\n```\n\nor\n\n'
        f'```python\nimport splinterp\n\nsae = splinterp.load_sae("hf://{repo}/{folder}")\n```\n'
    )


def _figure(summary: dict[str, Any], name: str) -> str | None:
    value = summary.get(name)
    return f"{value:.4g}" if isinstance(value, int | float) else None
