"""Models of a true architecture and random weights: as fast as the real one, made here, without a network."""

from __future__ import annotations

import copy
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from .. import models
from ..errors import ModelError

ARCHITECTURES = ("gpt2", "gemma-2-2b")


def configuration(architecture: str) -> Any:
    """The transformers configuration of an architecture: transformers' own defaults are GPT-2 small and Gemma-2 2B.

    Raises:
        ModelError: it is none of `ARCHITECTURES`.
    """
    from transformers import Gemma2Config, GPT2Config

    if architecture not in ARCHITECTURES:
        raise ModelError(f"There is no architecture '{architecture}' to make up; choose from {', '.join(ARCHITECTURES)}.")
    return GPT2Config() if architecture == "gpt2" else Gemma2Config()


def cut(config: Any, blocks: int) -> Any:
    """A copy of a configuration with its first `blocks` blocks only."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    return config


def make_directory(architecture: str, blocks: int | None, dtype: torch.dtype, folder: Path) -> Path:
    """A Hugging Face directory in `folder`: the whole configuration, the embedded model's tokenizer, random weights.

    Args:
        blocks: of how many blocks there are weights; None: of nothing at all.
    """
    from transformers import AutoModelForCausalLM

    config = configuration(architecture)
    folder.mkdir()
    if blocks is not None:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(cut(config, blocks), dtype=dtype).save_pretrained(folder)
    config.architectures = ["GPT2LMHeadModel" if architecture == "gpt2" else "Gemma2ForCausalLM"]
    config.dtype = dtype
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(str(files(models) / "tiny" / name), folder)
    return folder
