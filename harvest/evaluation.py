"""A whole model and packed text for evaluation: what cross-entropies with an SAE in place are taken on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..devices import choose_device
from .forward import auto_batch_size
from .model import check_request, choose_dtype, find_checkpoint, load_bridge, load_config, model_facts
from .pack import batches, pack
from .text import open_text
from .tokens import encode_documents, encoder, load_tokenizer, special_tokens


def evaluation_batches(
    model: str,
    dataset: str,
    tokens: int,
    *,
    context: int = 128,
    split: str = "train",
    text_column: str = "text",
    separator: str = "bos",
    keep_bos: bool = False,
    revision: str | None = None,
    device: str = "auto",
) -> tuple[Any, Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """A TransformerLens bridge with all of the model's blocks, and batches of text for it: about `tokens` tokens, in whole rows.

    Each batch is (ids [B, T] int64, mask [B, T] bool: True where a harvest would keep the row), on the model's device.

    Raises:
        ModelError, TextError: as `plan`.
    """
    checkpoint = find_checkpoint(model, revision=revision)
    config = load_config(checkpoint)
    facts = model_facts(config)
    check_request(checkpoint.name, facts, (), context)
    text = open_text(dataset, split=split, text_column=text_column)
    tokenizer = load_tokenizer(checkpoint.name, checkpoint.path, **checkpoint.options)
    bos, between = special_tokens(checkpoint.name, tokenizer, separator)
    on = choose_device(device)
    dtype = choose_dtype("auto", facts, on)
    bridge = load_bridge(checkpoint, config, tokenizer, facts.n_layers, on, dtype)

    def stream() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        documents = encode_documents(encoder(tokenizer), (t for _, t in text.read()), facts.vocabulary, checkpoint.name)
        left = tokens
        for batch in batches(
            pack(documents, context, bos, between), auto_batch_size(context, facts.n_heads, on, dtype), keep_bos
        ):
            rows = min(len(batch.ids), -(-left // batch.ids.shape[1]))
            yield torch.from_numpy(batch.ids[:rows]).to(on), torch.from_numpy(batch.keep[:rows]).to(on)
            left -= rows * batch.ids.shape[1]
            if left <= 0:
                return

    return bridge, stream()
