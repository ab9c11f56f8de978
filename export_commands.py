"""`splinterp export`: SAEs and activations for other programs, and for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import DeviceOption, ForceOption, quantity
from .quantities import counted
from .sae_commands import split_of

TARGETS = ("saelens", "saelens-activations", "neuronpedia", "hub")
# The options that each target takes.
_TAKES = {
    "saelens": {"out", "force"}, "saelens-activations": {"out", "context", "split", "force"},
    "neuronpedia": {"out", "store", "site", "model", "device", "force"}, "hub": {"repo", "path", "private", "dry_run"},
}  # fmt: skip
out_console = Console()


def export(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="SAE|STORE", help="An SAE (a run directory, or in SAELens's format), or a store.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="saelens: an SAE's two files alone; saelens-activations: a store's rows as SAELens's cached activations; "
            "neuronpedia: an SAE's latents as SAEDashboard's batches; hub: an SAE to the Hugging Face hub."
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The directory to write (all but hub).")] = None,
    context_size: Annotated[
        int | None,
        typer.Option(
            "--context",
            parser=quantity,
            help="Rows that SAELens is to take for a context (saelens-activations). \\[default: the store's]",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="all, train, held_out or validation (saelens-activations).")] = "all",
    store: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="The store to look at (neuronpedia). \\[default: the one that the run was trained on]"
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Its site (neuronpedia). \\[default: the SAE's]")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Whose unembedding says which tokens a latent raises and lowers (neuronpedia)."),
    ] = None,
    device: DeviceOption = "auto",
    repo: Annotated[str | None, typer.Option(metavar="USER/NAME", help="The repository, made if need be (hub).")] = None,
    path: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="The SAE's folder there (hub). \\[default: the name of its directory]")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository (hub).")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what would be sent, file by file, and the model card (hub); asks no network."),
    ] = False,
    force: ForceOption = False,
) -> None:
    """Write an SAE or a store for SAELens or Neuronpedia, or push an SAE to the Hugging Face hub."""
    if to not in TARGETS:
        raise typer.BadParameter(f"--to is {', '.join(TARGETS[:-1])} or {TARGETS[-1]}")
    for parameter in context.command.params:
        name = "context" if parameter.name == "context_size" else str(parameter.name)
        source = context.get_parameter_source(str(parameter.name))
        if source and source.name == "COMMANDLINE" and name not in {"what", "to", *_TAKES[to]}:
            raise typer.BadParameter(f"{parameter.opts[0]} has no effect with --to {to}; leave it out")
    if to == "hub":
        if repo is None:
            raise typer.BadParameter("--to hub needs the --repo to push to")
        _push(what, repo, path, private, dry_run)
        return
    if out is None:
        raise typer.BadParameter(f"--to {to} needs the --out directory to write")
    if to == "saelens":
        from .api import export_sae

        told = f"{export_sae(what, out, force=force)}: an SAE that SAELens loads."
    elif to == "neuronpedia":
        from .api import export_neuronpedia
        from .progress import Bar

        with Bar("export", None) as bar:
            lacking = export_neuronpedia(
                what, store, out, site=site, model=model, device=device, force=force, progress=bar.report
            )
        told = "\n".join(
            [f"{out}: batches as SAEDashboard writes them; Neuronpedia's converter takes the directory.", *lacking]
        )
    else:
        from . import store as stores
        from .api import export_activations
        from .progress import Bar

        chosen, opened = split_of(split), stores.open(what)
        with Bar("export", None) as bar:
            rows = export_activations(opened, out, context=context_size, split=chosen, force=force, progress=bar.report)
        left = (opened.rows if chosen == "all" else opened.splits()[chosen]) - rows
        told = f"{out}: {counted(rows, 'row')}; in SAELens: use_cached_activations=True, cached_activations_path={str(out)!r}."
        if left:
            fill, are = ("fills", "is") if left == 1 else ("fill", "are")
            told += f" {counted(left, 'row')} that {fill} no context {are} left out."
    out_console.print(told, markup=False, highlight=False, soft_wrap=True)


def _push(sae: str, repo: str, path: str | None, private: bool, dry_run: bool) -> None:
    from .api import push_to_hub

    upload = push_to_hub(sae, repo, path, private=private, dry_run=dry_run)
    lines = [upload.told(), "", upload.card] if dry_run else [upload.told(), f"Pushed: {upload.url}"]
    out_console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if dry_run:
        out_console.print("Nothing was sent. Without --dry-run it is.", markup=False)
