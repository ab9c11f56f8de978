"""SAEs, MLP encoders, checkpoints and stores of codes; a language model's configuration."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import google_crc32c
import numpy as np
import torch
from splinterp.api import load_sae
from splinterp.harvest.config import HarvestConfig
from splinterp.harvest.plan import plan
from splinterp.harvest.tokens import load_tokenizer as model_tokenizer
from splinterp.harvest.tokens import skipped_tokens, special_tokens
from splinterp.infer.codes_store import open_codes, write_codes
from splinterp.infer.mlp import MlpEncoder, decoder_norms, find_mlp, save_mlp
from splinterp.report.windows import load_tokenizer
from splinterp.sae import SAE, SAEConfig, SparseCodes, save_sae
from splinterp.store import Store
from splinterp.store.files import json_crc
from splinterp.train.checkpoint import Position, read_checkpoint, write_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from .kit import Prepared, Target
from .trees import Tree, encoded, reread

D, LATENTS = 3, 5


def an_sae(architecture: Any = "topk") -> SAE:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, D), "b_dec": (D,)}
    config = SAEConfig(
        architecture, D, LATENTS, 2 if architecture == "topk" else None, metadata={"hook_name": "h", "model_name": "tiny"}
    )
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return SAE(config, **weights, threshold=torch.rand(LATENTS, generator=generator) if architecture == "jumprelu" else None)


class Weights:
    """A safetensors file whose header is told as JSON: `header.json` stands for it, and the numbers behind it stay as they are."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        self.path, self._rest = path, data[8 + length :]
        self.header = path.with_name(f"{path.stem}.header.json")
        self.header.write_bytes(data[8 : 8 + length])

    def write(self, checked: bool = False) -> None:
        """The file, from the header as it is now; with `checked` the checkpoint's checksum made to fit."""
        header = self.header.read_bytes() if self.header.exists() else b""
        data = struct.pack("<Q", len(header)) + header + self._rest
        if checked:
            data = data[:-4] + google_crc32c.value(data[:-4]).to_bytes(4, "little")
        self.path.write_bytes(data)


def sae(folder: Path) -> Prepared:
    """The tensors are a jumprelu SAE's, which every other architecture needs some of."""
    save_sae(an_sae("jumprelu"), folder)
    weights = Weights(folder / "sae_weights.safetensors")
    tree = Tree(folder, ["cfg.json", weights.header.name])
    x = torch.randn(4, D)

    def one(data: bytes) -> None:
        tree.write(data)
        weights.write()
        read = load_sae(folder)
        if read.config.d_in == D and read.config.d_sae <= 64:
            assert read(x).shape == x.shape
            read.plain()

    sound = json.loads(tree.seed())["cfg.json"]
    others = (
        {"architecture": "topk", "k": 2},
        {"architecture": "standard"},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}},
        {"architecture": "gated"},
    )
    return Prepared([tree.seed(), *(tree.seed(**{"cfg.json": sound | other}) for other in others)], one)


def mlp(folder: Path) -> Prepared:
    made, generator = an_sae(), torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=generator) for shape in ((D, 4), (4,), (4, LATENTS), (LATENTS,))]
    weights = Weights(save_mlp(MlpEncoder(*tensors, norms=decoder_norms(made), k=2), made, folder, {}))
    tree = Tree(folder, ["encoder-mlp-4.json", weights.header.name])

    def one(data: bytes) -> None:
        tree.write(data)
        weights.write()
        encoder, _ = find_mlp(made, folder, weights.path)
        encoder.encode(torch.randn(4, D))

    return Prepared([tree.seed()], one)


def checkpoint(folder: Path) -> Prepared:
    path = folder / "checkpoint.safetensors"
    state = {
        "weights.W_enc": torch.randn(D, LATENTS),
        "method.steps": torch.tensor(3),
        "fired": torch.zeros(LATENTS, dtype=torch.int64),
    }
    write_checkpoint(path, Position(steps=3, rows=30), state)
    weights = Weights(path)
    tree = Tree(folder, [weights.header.name])

    def one(data: bytes) -> None:
        tree.write(data)
        weights.write(checked=True)
        position, state = read_checkpoint(path)
        assert position.rows >= 0
        assert all(tensor.nbytes <= path.stat().st_size for tensor in state.values())

    return Prepared([tree.seed(), encoded(reread({"x": tree.seed()}, "x")[weights.header.name])], one)


def codes(folder: Path) -> Prepared:
    path = folder / "codes.zarr"
    rows = np.arange(6)
    write_codes(path, [(rows, SparseCodes(torch.tensor([[0, 3]] * 6), torch.rand(6, 2)))], LATENTS, {"encoder": "native"})
    tree = Tree(path, ["zarr.json", *(f"{name}/zarr.json" for name in ("indptr", "indices", "data", "rows"))], _sealed)
    numbers = Tree(path, ["indptr/c.0", "indices/c.0"], _checked)

    def one(data: bytes) -> None:
        chosen, other = (numbers, tree) if b'"indptr/c.0"' in data else (tree, numbers)
        other.restore()
        chosen.write(data)
        read = open_codes(path)
        assert read.rows.shape == (read.shape[0],)
        found = read.codes(0, min(4, read.shape[0]))
        assert len(found.starts) == min(4, read.shape[0]) + 1
        assert not len(found.indices) or 0 <= int(found.indices.min()) <= int(found.indices.max()) < read.shape[1]

    return Prepared([tree.seed(), numbers.seed()], one)


def _sealed(files: dict[str, bytes], told: dict[str, Any]) -> None:
    """The attributes' checksum as they are, where they have one."""
    root = reread(files, "zarr.json")
    attributes = root.get("attributes") if isinstance(root, dict) else None
    if isinstance(attributes, dict) and attributes.pop("attributes_crc32c", None) is not None:
        attributes["attributes_crc32c"] = json_crc(attributes)
        files["zarr.json"] = encoded(root)


def _checked(files: dict[str, bytes], told: dict[str, Any]) -> None:
    for name, data in files.items():
        files[name] = data[:-4] + google_crc32c.value(data[:-4]).to_bytes(4, "little")


def model(folder: Path) -> Prepared:
    """config.json of a model's directory, as far as the plan of a harvest."""
    from splinterp import models as embedded

    path = folder / "model"
    shutil.copytree(Path(embedded.__file__).parent / "tiny", path, ignore=shutil.ignore_patterns("*.safetensors"))
    tree = Tree(path, ["config.json"])
    text = folder / "a.txt"
    text.write_text("x")

    def one(data: bytes) -> None:
        tree.write(data)
        planned = plan(HarvestConfig(model=str(path), layers=(1,), dataset=(str(text),), tokens=100, out=folder / "out.zarr"))
        assert planned.bytes > 0

    one(tree.seed())  # what it imports takes seconds
    return Prepared([tree.seed(), json.dumps(json.loads(tree.seed())["config.json"]).encode()], one)


def tokenizer(folder: Path) -> Prepared:
    """tokenizer.json and tokenizer_config.json of a model's directory; the first is a store's, too."""
    words = {word: i for i, word in enumerate(["<|bos|>", "<|eos|>", "A", "few", "words", "of", "text", "."])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<|eos|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|eos|>").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    tree = Tree(folder, ["tokenizer.json", "tokenizer_config.json"])
    held = SimpleNamespace(columns=("token_id", "position", "sequence"), path=folder, local=lambda name: folder)

    def one(data: bytes) -> None:
        tree.write(data)
        load_tokenizer(cast("Store", held)).decode([2, 3, 4])
        found = model_tokenizer("a model", str(folder), local_files_only=True, trust_remote_code=False)
        special_tokens("a model", found, "bos")
        skipped_tokens("a model", found, (), True, 8)

    one(tree.seed())  # what it imports takes seconds
    return Prepared([tree.seed()], one)


TARGETS: tuple[Target, ...] = (
    Target("sae", "cfg.json and the header of sae_weights.safetensors", sae),
    Target("mlp", "an MLP encoder's description and header", mlp),
    Target("checkpoint", "a checkpoint's header, checksum made to fit", checkpoint),
    Target("codes", "a store of codes: its metadata, and its CSR numbers", codes),
    Target("model", "a language model's config.json", model),
    Target("tokenizer", "tokenizer.json and tokenizer_config.json of a model and of a store", tokenizer),
)
