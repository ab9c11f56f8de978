"""A language model with SAEs in place: what follows a site computes from their reconstructions; and its cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SplinterpError
from ..sae import SAE
from .metrics import Encode

Rows = Callable[[Tensor], Tensor]  # [N, d] of the model's dtype -> what stands in their place, [N, d]


class Splice:
    """A TransformerLens model whose rows at some sites are replaced; a context manager within whose block the model itself is so.

    Called, it runs the model (with the model's own arguments), in the block or outside. Other hooks stay what they are; those that were
    there before see the model's own rows. Gradients pass through. It is not for several blocks at once.

    Attributes:
        where: bool [B, T], True where rows are replaced; None: everywhere. May be set anew before each batch.
    """

    def __init__(self, model: Any, replacements: Mapping[str, SAE | Rows], where: Tensor | None = None) -> None:
        """`replacements` by hook name: SAEs, which put their reconstructions there, or functions from rows to rows.

        Args:
            model: a TransformerBridge, or anything with TransformerLens's `hook_dict` and `hooks`.

        Raises:
            SplinterpError: the model lacks a hook, or there is nothing to put in place.
        """
        if not replacements:
            raise SplinterpError("There is no SAE to put in place; give at least one.")
        for name in replacements:
            if name not in model.hook_dict:  # TransformerLens 3.9 takes a hook on an unknown name without a word
                raise SplinterpError(
                    f"The model has no hook {name}, so the SAE cannot be put in place there; give the model that was harvested."
                )
        self.model, self.where = model, where
        self._hooks = [
            (name, self._hook(reconstructing(one) if isinstance(one, SAE) else one)) for name, one in replacements.items()
        ]
        self._block: AbstractContextManager[Any] | None = None

    @classmethod
    def at_their_sites(cls, model: Any, saes: Sequence[SAE], where: Tensor | None = None) -> Splice:
        """SAEs at the sites that their metadata name.

        Raises:
            SplinterpError: one says nothing of its site, or two belong to one; or as above.
        """
        named: dict[str, SAE | Rows] = {}
        for sae in saes:
            name = sae.config.metadata.get("hook_name")
            if not isinstance(name, str):
                raise SplinterpError("An SAE does not say which hook it belongs to; give it with a name: {hook: SAE}.")
            if name in named:
                raise SplinterpError(f"Two SAEs belong to {name}, and only one can be in place there; leave one out.")
            named[name] = sae
        return cls(model, named, where)

    def __enter__(self) -> Splice:
        if self._block is not None:
            raise SplinterpError("These SAEs are in place already; leave that block first.")
        block = self.model.hooks(fwd_hooks=self._hooks)
        block.__enter__()
        self._block = block
        return self

    def __exit__(self, *error: Any) -> None:
        block, self._block = self._block, None
        assert block is not None
        block.__exit__(*error)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives for these arguments, with the SAEs in place."""
        if self._block is not None:
            return self.model(*args, **kwargs)
        with self:
            return self.model(*args, **kwargs)

    def _hook(self, replace: Rows) -> Callable[..., Tensor]:
        def hook(acts: Tensor, hook: Any) -> Tensor:  # TransformerLens passes the hook point by this name
            flat = acts.flatten(2).flatten(0, 1)  # attn.hook_z comes as [B, T, heads, head_dim]
            new = replace(flat).to(flat)
            if self.where is not None:
                if self.where.shape != acts.shape[:2]:
                    raise SplinterpError(
                        f"`where` is {list(self.where.shape)}, and the model's rows are {list(acts.shape[:2])}; set it for this batch."
                    )
                new = torch.where(self.where.to(flat.device).reshape(-1, 1), new, flat)
            return new.reshape(acts.shape)

        return hook


def reconstructing(sae: SAE, encode: Encode | None = None) -> Rows:
    """From a model's rows to the SAE's reconstructions, float32 on its device; codes come from `encode`, if not from its own encoder.

    Raises (when called): SplinterpError for rows of another width.
    """

    def reconstruct(rows: Tensor) -> Tensor:
        if rows.shape[1] != sae.config.d_in:
            raise SplinterpError(
                f"The model's rows are {rows.shape[1]} wide and the SAE's {sae.config.d_in}; give the model that was harvested."
            )
        return sae.decode((encode or sae.encode)(rows.to(sae.W_enc)))

    return reconstruct


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
    spliced = Splice(bridge, {hook_name: reconstructing(sae, encode)})
    ablated = Splice(bridge, {hook_name: mean.expand_as})
    totals, n = [0.0, 0.0, 0.0], 0
    for ids, mask in batches:
        spliced.where = ablated.where = mask
        for i, run in enumerate((bridge, spliced, ablated)):
            logits = run(ids, return_type="logits")
            totals[i] += float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum"))
        n += ids[:, 1:].numel()
    if not n:
        raise SplinterpError("There is no text to take cross-entropies on.")
    clean, with_sae, without = (t / n for t in totals)
    recovered = (without - with_sae) / (without - clean) if without != clean else float("nan")
    return CrossEntropies(clean, with_sae, without, recovered)
