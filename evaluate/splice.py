"""Cross-entropy of a language model with its activations replaced by an SAE's reconstructions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SplinterpError
from ..sae import SAE
from .metrics import Encode


class CrossEntropies(NamedTuple):
    """Mean next-token cross-entropies in nats: of the model as it is, with the site's rows replaced by the SAE's reconstructions, and
    with them replaced by their mean; and the share of the loss that the reconstructions recover, (ablated − spliced)/(ablated − clean)."""

    ce_clean: float
    ce_spliced: float
    ce_ablated: float
    ce_recovered: float


@torch.inference_mode()
def cross_entropies(
    bridge: Any,
    hook_name: str,
    sae: SAE,
    mean: Tensor,
    batches: Iterable[tuple[Tensor, Tensor]],
    encode: Encode | None = None,
) -> CrossEntropies:
    """Run a TransformerLens bridge (all of its blocks) three times on every batch.

    Args:
        hook_name: the site whose rows the SAE speaks of.
        mean: [d_in], what ablation puts in place of every row.
        batches: (token ids [B, T] on the model's device, mask [B, T]: True where rows are replaced). Where rows are left out of harvests
            (BOS), the model keeps its own.
        encode: where codes come from, if not from the SAE's own encoder.

    Raises:
        SplinterpError: the model lacks the hook, or is of another width; or there is no text.
    """
    if hook_name not in bridge.hook_dict:  # TransformerLens 3.9 takes a hook on an unknown name without a word
        raise SplinterpError(
            f"The model has no hook {hook_name}, so the SAE cannot be put in place there; give the model that was harvested."
        )
    device = sae.W_enc.device
    replaced_at: list[Tensor] = []  # the current batch's mask

    def spliced(acts: Tensor) -> Tensor:
        return sae.decode((encode or sae.encode)(acts.to(device, torch.float32)))

    def ablated(acts: Tensor) -> Tensor:
        return mean.to(device, torch.float32).expand_as(acts)

    def run(ids: Tensor, replace: Any) -> float:
        def hook(acts: Tensor, hook: Any) -> Tensor:  # TransformerLens passes the hook point by this name
            flat = acts.flatten(2).flatten(0, 1)  # attn.hook_z comes as [B, T, heads, head_dim]
            if flat.shape[1] != sae.config.d_in:
                raise SplinterpError(
                    f"The model's rows are {flat.shape[1]} wide and the SAE's {sae.config.d_in}; give the model that was harvested."
                )
            new = torch.where(replaced_at[0].reshape(-1, 1), replace(flat).to(flat), flat)
            return new.reshape(acts.shape)

        hooks = [(hook_name, hook)] if replace is not None else []
        logits = bridge.run_with_hooks(ids, fwd_hooks=hooks, return_type="logits")
        return float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"))

    totals, n = [0.0, 0.0, 0.0], 0
    for ids, mask in batches:
        replaced_at[:] = [mask.to(device)]
        for i, replace in enumerate((None, spliced, ablated)):
            totals[i] += run(ids, replace)
        n += ids[:, 1:].numel()
    if not n:
        raise SplinterpError("There is no text to take cross-entropies on.")
    clean, with_sae, without = (t / n for t in totals)
    recovered = (without - with_sae) / (without - clean) if without != clean else float("nan")
    return CrossEntropies(clean, with_sae, without, recovered)
