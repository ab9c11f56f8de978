"""A whole model and packed text for evaluation: what cross-entropies with an SAE in place are taken on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..devices import choose_device
from .arrange import arranged
from .facts import model_facts
from .forward import auto_batch_size
from .mixture import open_texts
from .model import check_request, choose_dtype, find_checkpoint, load_bridge, load_config
from .tokens import encode_documents, encoder, load_tokenizer, special_tokens

# The attributes of a store that `evaluation_batches` takes, to see the text as the harvest did.
AS_HARVESTED = (
    "context", "split", "text_column", "tokens_column", "packing", "separator", "keep_bos", "skipped_token_ids", "positions", "seed",
)  # fmt: skip


def evaluation_batches(
    model: str,
    dataset: str | Sequence[str],
    tokens: int,
    *,
    context: int = 128,
    split: str = "train",
    text_column: str = "text",
    tokens_column: str | None = None,
    packing: str = "packed",
    separator: str = "bos",
    keep_bos: bool = False,
    skipped_token_ids: Sequence[int] = (),
    positions: str | None = None,
    seed: int = 0,
    revision: str | None = None,
    device: str = "auto",
) -> tuple[Any, Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """A TransformerLens bridge with all of the model's blocks, and batches of text for it: about `tokens` tokens, in whole rows.

    Each batch is (ids [B, T] int64, mask [B, T] bool: True where a harvest of every token would keep the row), on the model's device.

    Raises:
        ModelError, TextError: as `plan`.
    """
    checkpoint = find_checkpoint(model, revision=revision)
    config = load_config(checkpoint)
    facts = model_facts(config)
    check_request(checkpoint.name, facts, (), context)
    datasets = [dataset] if isinstance(dataset, str) else dataset
    text = open_texts(datasets, split=split, text_column=text_column, tokens_column=tokens_column, seed=seed)
    tokenizer = load_tokenizer(checkpoint.name, checkpoint.path, **checkpoint.options)
    bos, between = special_tokens(checkpoint.name, tokenizer, separator)
    on = choose_device(device)
    dtype = choose_dtype("auto", facts, on)
    bridge = load_bridge(checkpoint, config, tokenizer, facts.n_layers, on, dtype)

    def stream() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        documents = encode_documents(encoder(tokenizer), (t for _, t in text.read()), facts.vocabulary, checkpoint.name)
        left = tokens
        for batch in arranged(
            documents, packing, context=context, bos=bos, separator=between, keep_bos=keep_bos, skip=tuple(skipped_token_ids),
            batch_size=auto_batch_size(context, facts.n_heads, on, dtype), tokens=tokens, positions=positions,
        ):  # fmt: skip
            rows = min(len(batch.ids), -(-left // batch.ids.shape[1]))
            yield torch.from_numpy(batch.ids[:rows]).to(on), torch.from_numpy(batch.keep[:rows]).to(on)
            left -= rows * batch.ids.shape[1]
            if left <= 0:
                return

    return bridge, stream()
