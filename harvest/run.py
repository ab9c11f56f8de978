"""The harvest itself: text and tokens in a thread, the forward pass here, the store's writer in threads of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from .. import __version__, store
from ..devices import suitable_threads
from ..errors import Interrupted, TextError
from ..store.create import is_free
from ..store.places import AnyPath, copy_files
from .arrange import arranged
from .compiled import compile_blocks, compile_sentences
from .config import HarvestConfig
from .fill import Progress, fill
from .first import check_first_rows
from .forward import SiteReader
from .model import load_bridge
from .outliers import norm_bounds
from .pack import TokenBatch
from .plan import COLUMNS, Plan, check_room, plan
from .prefetch import prefetched
from .ranks import Share
from .tokens import encode_documents, encoder, load_tokenizer, skipped_tokens, special_tokens

BATCHES_AHEAD = 4


def harvest(
    config: HarvestConfig,
    progress: Progress | None = None,
    *,
    planned: Plan | None = None,
    reader: SiteReader | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> store.Store | None:
    """Harvest `config.tokens` rows a site into a store at `config.out`, and open it; None for a rank that is not the last to end.

    The rows are the model's own: neither folded nor centred. A text that is too short gives all it has, once; the store's
    attribute `short` then is true.

    Args:
        progress: called after every batch with the rows stored so far (by this rank) and figures: tokens_per_s, bytes_written, dropped,
            and the shares of the time spent in the forward pass, waiting for text and waiting for the disk.
        planned: `plan(config)`, if it was made already.
        reader: `load_reader` of a plan with the same model and sites, to harvest again without loading it again.
        tell: given sentences that are no errors: that memory ran out, and smaller batches go on; that there is nothing to resume.

    Raises:
        ModelError, TextError, StoreError: as `plan`; or the text is empty, or the disk is full.
        Interrupted: on Ctrl-C; the store can be resumed.
    """
    todo = planned or plan(config)
    check_room(todo)
    if config.resume and todo.ranks.rank == 0 and is_free(config.out):
        tell(f"There is nothing to go on with at {config.out}: the harvest begins.")
    tokenizer = load_tokenizer(todo.checkpoint.name, todo.checkpoint.path, **todo.checkpoint.options)
    bos, separator = special_tokens(todo.checkpoint.name, tokenizer, config.separator)
    skip = skipped_tokens(todo.checkpoint.name, tokenizer, config.skip_tokens, config.skip_special, todo.facts.vocabulary)
    writer: store.Writer | None = None
    try:
        tokens = token_batches(todo, tokenizer, bos, separator, skip)
        share = Share(todo.ranks, tokens, todo.rows)
        with (
            prefetched(iter(share) if todo.ranks.several else tokens, BATCHES_AHEAD) as stream,
            suitable_threads(4 * todo.facts.d_model**2, todo.device),
        ):
            # The first batch goes through the model before the store is begun: most mistakes show there.
            first = next(stream, None)
            if first is None and share.seen:
                raise TextError(f"{todo.text.name} is too short for {todo.ranks.world} ranks; start fewer.")
            if first is None:
                shorter = f", or too short for the positions {config.positions}" if config.positions else ""
                raise TextError(
                    f"{todo.text.name} holds no text to harvest: all its documents are empty, or made of skipped tokens{shorter}."
                )
            reader = reader or load_reader(todo, tokenizer, tell)
            max_norms = None
            with compile_sentences(todo.checkpoint.name):
                rows = reader.read(first.ids, first.keep)
                check_first_rows(rows, todo)
                if config.drop_outliers is not None:
                    # Of the stream's first batch on every rank, so that all measure outliers by the same rows.
                    opening = share.first if todo.ranks.several else None
                    max_norms = norm_bounds(reader.read(opening.ids, opening.keep) if opening else rows, config.drop_outliers)
            writer = _create(todo, bos, separator, skip, max_norms)
            if writer is None:
                return _joined(todo)
            with writer:
                if todo.ranks.rank == 0:
                    _save_tokenizer(tokenizer, config.out)
                fill(writer, reader, chain([(first, rows)], ((batch, None) for batch in stream)), progress)
                short = share.seen < todo.rows if todo.ranks.several else not writer.full
                finished = writer.finish({"short": short, "versions": _versions()})
                return _joined(todo) if todo.ranks.several else finished
    except KeyboardInterrupt:
        raise _interrupted(todo, writer) from None


def load_reader(todo: Plan, tokenizer: Any, tell: Callable[[str], None] = lambda sentence: None) -> SiteReader:
    """The planned model with hooks on the planned sites; `tell` hears of memory that has run out.

    Raises:
        ModelError: it cannot be loaded, or lacks a site.
    """
    bridge = load_bridge(todo.checkpoint, todo.model_config, tokenizer, todo.blocks, todo.device, todo.model_dtype)
    dtype = getattr(torch, todo.config.dtype)
    reader = SiteReader(bridge, list(todo.sites), name=todo.checkpoint.name, dtype=dtype, batch_size=todo.batch_size, tell=tell)
    if todo.config.compile:
        compile_blocks(bridge)
    return reader


def _save_tokenizer(tokenizer: Any, out: AnyPath) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        copy_files(Path(folder), out / "tokenizer")


def token_batches(todo: Plan, tokenizer: Any, bos: int, separator: int | None, skip: tuple[int, ...]) -> Iterator[TokenBatch]:
    """The token batches of the planned text, from its beginning; the same ones every time."""
    config = todo.config
    texts = (document for _, document in todo.text.read())
    return arranged(
        encode_documents(encoder(tokenizer), texts, todo.facts.vocabulary, todo.checkpoint.name), config.packing,
        context=config.context, bos=bos, separator=separator, batch_size=todo.batch_size, keep_bos=config.keep_bos, skip=skip,
        tokens=todo.rows, positions=config.positions, every=config.every,
    )  # fmt: skip


def _joined(todo: Plan) -> store.Store | None:
    """The store of all ranks, if this one was the last."""
    return store.join(todo.config.out)


def _create(
    todo: Plan, bos: int, separator: int | None, skip: tuple[int, ...], max_norms: dict[str, float] | None
) -> store.Writer | None:
    """The writer of the store, or of this rank's part; None when this rank has ended before a resume."""
    config, ranks = todo.config, todo.ranks
    told: dict[str, Any] = {
        "sites": todo.sites,
        "dtype": config.dtype,
        "columns": COLUMNS,
        "seed": config.seed,
        "memory": config.memory,
        "resume": config.resume,
        "max_norms": max_norms,
        "attributes": {
            "model": todo.checkpoint.name,
            "revision": todo.checkpoint.revision,
            "architecture": todo.facts.architecture,
            "hook": config.hooks[0] if len(config.hooks) == 1 else list(config.hooks),
            "layers": list(config.layers),
            "model_dtype": str(todo.model_dtype).removeprefix("torch."),
            "compiled": config.compile,
            "context": config.context,
            "dataset": list(todo.text.datasets) or todo.text.name,
            "split": config.split,
            "text_column": config.text_column,
            "tokens_column": config.tokens_column,
            "dataset_fingerprint": todo.text.fingerprint,
            "prepend_bos": True,
            "bos_token_id": bos,
            "separator": config.separator,
            "separator_token_id": separator,
            "keep_bos": config.keep_bos,
            "tokens": todo.rows,
            "packing": config.packing,
            "skipped_token_ids": list(skip),
            "positions": config.positions,
            "every": config.every if config.every > 1 else None,  # as stores that were begun without it say nothing
            "drop_outliers": config.drop_outliers,
        },
    }
    if ranks.several:
        # How many rows fall to a rank shows when the text is read.
        return store.create_rank(config.out, ranks.rank, ranks.world, chunk_rows=todo.chunk_rows, **told)
    return store.create(config.out, rows=todo.rows, force=config.force, **told)


def _versions() -> dict[str, str]:
    names = {"torch": "torch", "transformers": "transformers", "transformer_lens": "transformer-lens"}
    return {"splinterp": __version__, **{name: version(package) for name, package in names.items()}}


def _interrupted(todo: Plan, writer: store.Writer | None) -> Interrupted:
    out = todo.config.out
    if writer is None:
        return Interrupted("Interrupted before the first row; nothing was written. Run the same command again.")
    return Interrupted(
        f"Interrupted with {writer.kept} of {todo.rows} rows stored in {out}: run the same command with --resume to go on."
    )
