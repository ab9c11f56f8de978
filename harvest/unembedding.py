"""The end of a language model, its final norm and unembedding: from directions in the residual stream to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .facts import model_facts
from .model import blocks_needed, find_checkpoint, load_config, load_model
from .tokens import load_tokenizer


class Unembedding:
    """The final norm and the unembedding of a model.

    Attributes:
        name: the model's. d_model: width of its residual stream. norm: the final norm, None where the model has none.
    """

    def __init__(self, name: str, d_model: int, norm: nn.Module | None, head: nn.Module, tokenizer: Any) -> None:
        self.name, self.d_model, self.norm, self._head, self._tokenizer = name, d_model, norm, head, tokenizer

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """What each token stands for."""
        return self._tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False)

    @torch.inference_mode()
    def effects(self, directions: Tensor) -> Tensor:
        """What directions [n, d_model] do to the logits, standardised over the vocabulary: float32 [n, V] with mean 0 and deviation 1.

        The norm is taken where it is linear: of f(x) = γ·(x − μ(x))/σ(x) + β, f(v) − f(0) is γ·(v − μ(v)) up to a positive factor (an RMS norm
        has no μ), which standardising removes, as it removes a shift of all logits.
        """
        directions = nn.functional.normalize(directions.float(), dim=1) * self.d_model**0.5  # far above the norm's ε
        ends = [directions, torch.zeros_like(directions[:1])]
        logits, nothing = (self._head(one if self.norm is None else self.norm(one)).float() for one in ends)
        effects = logits - nothing
        effects -= effects.mean(1, keepdim=True)
        return effects / effects.std(1, keepdim=True, correction=0).clamp_min(torch.finfo(torch.float32).tiny)


def load_unembedding(name: str, revision: str | None = None) -> Unembedding:
    """The final norm and unembedding of a model, by a forward pass of one token through as few of its blocks as can be, in float32 on the CPU.

    The final norm is the module whose output the unembedding takes.

    Raises:
        ModelError: there is no such model, or its weights or tokenizer cannot be loaded; or it has no unembedding.
    """
    checkpoint = find_checkpoint(name, revision=revision)
    config = load_config(checkpoint)
    model = load_model(checkpoint, config, blocks_needed(config, 0), torch.float32).eval()
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{checkpoint.name} has no unembedding, so that latents cannot be led to tokens; give another --model."
        )
    outputs: list[tuple[nn.Module, Tensor]] = []
    taken: list[Tensor] = []

    def keep_output(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append((module, output))

    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower() and module is not head]
    hooks = [norm.register_forward_hook(keep_output) for norm in norms]
    hooks.append(head.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0])))
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.int64), use_cache=False)
    for hook in hooks:
        hook.remove()
    final = next((norm for norm, output in reversed(outputs) if torch.equal(output, taken[-1])), None)
    tokenizer = load_tokenizer(checkpoint.name, checkpoint.path, **checkpoint.options)
    return Unembedding(checkpoint.name, model_facts(config).d_model, final, head, tokenizer)
