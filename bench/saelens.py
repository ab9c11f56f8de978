"""SAELens as a contender: its CacheActivationsRunner (the same weights, the same rows of tokens, one store on disk), and its trainer's step."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..harvest import Plan
from .architectures import cut

# A buffer is one Arrow file and is built in memory twice over; they advise less than 2 GB.
BUFFER_BYTES = 2**28


@dataclass
class Caching:
    """A runner that may run again and again; each time it takes up the same rows at `out`, which must not exist."""

    runner: Any
    out: Path

    def run(self) -> None:
        self.runner.cfg.new_cached_activations_path = str(self.out)
        store = self.runner.activations_store
        store.iterable_sequences = store._iterate_tokenized_sequences()
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar; ours is running
            written = self.runner.run()
        assert len(written) * self.runner.context_size == self.runner.cfg.training_tokens


def runner(todo: Plan, ids: torch.Tensor, out: Path) -> Caching:
    """SAELens's own way with a Hugging Face model: its proxy with hooks, stopped at the layer."""
    hook = _module_name(todo)
    return _runner(
        ids, todo.batch_size, hook, todo.facts.d_model, str(todo.model_dtype).removeprefix("torch.").replace("bfloat16", "float16"),
        out, model_name=todo.checkpoint.path, model_class_name="AutoModelForCausalLM", device=str(todo.device),
        model_from_pretrained_kwargs={
            "config": cut(todo.model_config, todo.blocks), "dtype": todo.model_dtype, "local_files_only": True
        },
    )  # fmt: skip


def free_runner(ids: torch.Tensor, batch_size: int, acts: Callable[[torch.Tensor], torch.Tensor], d: int, out: Path) -> Caching:
    """The runner around a model whose forward pass is `acts`: ids [B, T] to rows [B, T, d]."""
    import sae_lens.cache_activations_runner as module

    real = module.load_model
    module.load_model = lambda *_, **__: _FreeModel(acts)
    try:
        return _runner(ids, batch_size, "blocks.0.hook_resid_post", d, "float16", out, model_name="free", device="cpu")
    finally:
        module.load_model = real


def training_step(d_in: int, d_sae: int, k: int, batch_size: int, device: torch.device) -> Callable[[torch.Tensor], object]:
    """A step of its trainer on rows [batch_size, d_in]: a TopKTrainingSAE as it comes."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer, SAETrainerConfig

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, device=str(device)))
    config = SAETrainerConfig(
        total_training_samples=batch_size * 10**6, train_batch_size_samples=batch_size, lr=1e-4, lr_end=1e-4, device=str(device)
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))

    @torch.enable_grad()
    def step(x: torch.Tensor) -> None:
        trainer._train_step(sae=trainer.sae, sae_in=x)

    return step


def _runner(ids: torch.Tensor, batch_size: int, hook: str, d: int, dtype: str, out: Path, **settings: Any) -> Caching:
    from datasets import Dataset, disable_progress_bars
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    disable_progress_bars()
    batches, rest = divmod(len(ids), batch_size)
    assert not rest, "SAELens forwards whole batches"
    batch_bytes = batch_size * ids.shape[1] * d * getattr(torch, dtype).itemsize
    # Its buffers are written whole: as many batches as divide the total, or it would write more than it was asked for.
    a_buffer = next(n for n in range(max(1, min(batches, BUFFER_BYTES // batch_bytes)), 0, -1) if batches % n == 0)
    config = CacheActivationsRunnerConfig(
        dataset_path="tokens", hook_name=hook, d_in=d, training_tokens=ids.numel(), context_size=ids.shape[1],
        model_batch_size=batch_size, buffer_size_gb=(a_buffer + 0.5) * batch_bytes / 1e9, dtype=dtype, shuffle=False,
        streaming=False, prepend_bos=False, new_cached_activations_path=str(out), **settings,
    )  # fmt: skip
    # That the text is shorter than the run, because it counts rows as tokens; and of how it makes tensors.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"sae_lens\.training\.activations_store")
    return Caching(CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"input_ids": ids.tolist()})), out)


def _module_name(todo: Plan) -> str:
    """What transformers calls the block of the planned layer, for example "transformer.h.6"."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(todo.model_config)
    blocks = next(
        name
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) == todo.facts.n_layers
    )
    return f"{blocks}.{todo.blocks - 1}"


class _FreeModel:
    """As much of a HookedRootModule as the runner touches."""

    def __init__(self, acts: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._acts = acts
        self.W_E = torch.empty(0)
        self.tokenizer = None

    def run_with_cache(self, tokens: torch.Tensor, names_filter: list[str], **_: Any) -> tuple[None, dict[str, torch.Tensor]]:
        return None, dict.fromkeys(names_filter, self._acts(tokens))
