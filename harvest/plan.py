"""What a harvest will do, worked out and checked before anything heavy is loaded or written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..devices import choose_device
from ..errors import StoreError, TextError
from ..quantities import format_bytes
from ..ranks import Ranks
from ..store.check import reachable
from ..store.places import AnyPath, on_disk
from ..store.plan import make_plan
from .config import HarvestConfig
from .facts import ModelFacts, model_facts
from .forward import auto_batch_size
from .hooks import site_widths
from .mixture import open_texts
from .model import Checkpoint, blocks_needed, check_request, choose_dtype, find_checkpoint, load_config
from .text import TextSource

COLUMNS = ("token_id", "position", "document", "sequence")


@dataclass(frozen=True)
class Plan:
    """A harvest about to be done.

    sites: width of each site, by name. rows: rows a site. bytes: what the store will take on disk.
    chunk_rows: rows a chunk. batch_size: packed rows a forward pass. blocks: blocks of the model that are loaded.
    model_config: the transformers configuration.
    """

    config: HarvestConfig
    checkpoint: Checkpoint
    facts: ModelFacts
    text: TextSource
    sites: dict[str, int]
    rows: int
    bytes: int
    chunk_rows: int
    batch_size: int
    blocks: int
    device: torch.device
    model_dtype: torch.dtype
    model_config: Any
    ranks: Ranks


def plan(config: HarvestConfig, ranks: Ranks | None = None) -> Plan:
    """Look up the model's configuration and the text, check both against `config`, and work out the figures.

    Loads no weights, reads no documents and writes nothing. Names on the hub cost a few short requests. `ranks`: None: as torchrun says.

    Raises:
        ModelError: no such model, or it lacks a layer, or sees less than the context.
        TextError: no such text, or an option has no effect on it.
        StoreError: `config.out` exists, and neither resume nor force was asked for.
    """
    out, ranks = config.out, ranks or Ranks.of_environment()
    # create() has the last word; this one comes before minutes of loading.
    with reachable(out):
        # Of several ranks another may have begun the store already.
        taken = not (config.resume or config.force or ranks.several) and (out.is_file() or (out / "zarr.json").exists())
    if taken:
        raise StoreError(f"{out} exists already; give another name or --force, or --resume if its harvest was interrupted.")
    if ranks.several and config.force:
        raise StoreError(
            f"A rank cannot know whether another has begun already, so --force is not for several; remove {out} first."
        )
    checkpoint = find_checkpoint(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    model_config = load_config(checkpoint)
    facts = model_facts(model_config)
    check_request(checkpoint.name, facts, config.layers, config.context)
    text = open_texts(
        config.datasets,
        split=config.split,
        text_column=config.text_column,
        tokens_column=config.tokens_column,
        seed=config.seed,
    )
    for name in ("split", "text_column"):
        if getattr(config, name) != getattr(HarvestConfig, name) and name not in text.takes:
            raise TextError(f"--{name.replace('_', '-')} has no effect on the text {text.name}; leave it out.")
    device = choose_device(ranks.device(config.device, torch.cuda.device_count()))
    dtype = choose_dtype(config.model_dtype, facts, device)
    sites = site_widths(checkpoint.name, facts, config.layers, config.hooks)
    layout = make_plan(
        out, sites=sites, dtype=config.dtype, columns=COLUMNS, rows=config.tokens, attributes=None,
        seed=config.seed, memory=config.memory, chunk_rows=None,
    )  # fmt: skip
    return Plan(
        config=config,
        checkpoint=checkpoint,
        facts=facts,
        text=text,
        sites=sites,
        rows=config.tokens,
        bytes=-(-config.tokens // layout.chunk_rows) * sum(array.chunk_bytes(layout.chunk_rows) for array in layout.arrays),
        chunk_rows=layout.chunk_rows,
        batch_size=config.batch_size or auto_batch_size(config.context, facts.n_heads, device, dtype),
        blocks=blocks_needed(model_config, config.layers[-1]),
        device=device,
        model_dtype=dtype,
        model_config=model_config,
        ranks=ranks,
    )


def check_room(todo: Plan) -> None:
    """See that the disk has room for the store, as far as can be known: before hours of forward passes, and not after.

    Raises:
        StoreError: it has not.
    """
    config, free = todo.config, free_bytes(todo.config.out)
    if free is None or todo.ranks.several:  # others have written some of it
        return
    # What a harvest that is resumed has written already, or one that is replaced gives back.
    free += sum(path.stat().st_size for path in on_disk(config.out).rglob("*") if path.is_file())
    if free < todo.bytes:
        raise StoreError(
            f"{config.out} would take up to {format_bytes(todo.bytes)}, and its disk has {format_bytes(free)} free; give fewer --tokens, or an --out on "
            "another disk."
        )


def free_bytes(out: AnyPath) -> int | None:
    """Bytes free where a store will lie; None where that cannot be known (a URL)."""
    if not isinstance(out, Path):
        return None
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free
