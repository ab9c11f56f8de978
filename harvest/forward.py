"""One forward pass for all sites, stopped after the last: token ids in, rows of activations out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ModelError
from .hooks import check_sites

TOKENS_A_BATCH = {"cpu": 4096, "cuda": 32768}
ATTENTION_BYTES = 2**30
# Forward passes that a GPU may have to do: one more than it is at, so that it never waits for the host.
PASSES_AHEAD = 2


class _AllSitesRead(Exception):
    """Ends a forward pass once every site has been read."""


class SiteReader:
    """Reads chosen sites of a TransformerLens bridge.

    batch_size: packed rows a forward pass; what is left of the first choice after running out of memory. device: the model's.
    """

    def __init__(
        self, bridge: Any, sites: Sequence[str], *, name: str, dtype: torch.dtype, batch_size: int,
        tell: Callable[[str], None] = lambda sentence: None,
    ) -> None:  # fmt: skip
        """Puts one hook on each of `sites`, for the rest of the bridge's life.

        Args:
            bridge: a TransformerBridge in eval mode.
            sites: hook names such as "blocks.2.hook_resid_post".
            name: what the user called the model, for sentences.
            dtype: of the rows returned.
            batch_size: packed rows a forward pass, at first; halved whenever memory runs out.
            tell: given a sentence on that, once a batch has gone through.

        Raises:
            ModelError: the model has no such hook.
        """
        self.batch_size = batch_size
        self._bridge, self._sites, self._name, self._dtype, self._tell = bridge, tuple(sites), name, dtype, tell
        self.device = next(bridge.original_model.parameters()).device
        self._rows: dict[str, torch.Tensor] = {}
        self._wanted = torch.empty(0, dtype=torch.long)
        self._passes: deque[torch.cuda.Event] = deque()
        check_sites(name, self._sites, bridge.hook_dict)
        for site in self._sites:
            bridge.add_hook(site, self._hook(site))
        # The bridge keeps every layer's attention pattern, B*H*T*T numbers that nobody reads.
        for block in bridge.blocks:
            attention = getattr(block, "attn", None)
            if attention is not None:
                attention.register_forward_hook(_drop_pattern)

    def read(self, ids: np.ndarray, keep: np.ndarray) -> dict[str, torch.Tensor]:
        """The activations of the kept tokens at every site.

        Args:
            ids: [B, T] int64 token ids, BOS already among them.
            keep: [B, T] bool.

        Returns:
            For every site [keep.sum(), d], of the dtype asked for, on the model's device, in row-major order of `keep`. On a GPU
            they may still be in the making; the call then waits only for the passes before the last.

        Raises:
            ModelError: a site was not reached, or not even one packed row fits into memory.
        """
        parts: dict[str, list[torch.Tensor]] = {site: [] for site in self._sites}
        start, before = 0, self.batch_size
        while start < len(ids):
            stop = start + self.batch_size
            try:
                for site, rows in self._forward(ids[start:stop], keep[start:stop]).items():
                    parts[site].append(rows)
                start = stop
                continue
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                rows_tried = min(self.batch_size, len(ids) - start)
            # Outside the except clause, whose traceback would hold on to the tensors that must go.
            self._rows.clear()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if rows_tried == 1:
                raise ModelError(
                    f"Not even one row of {ids.shape[1]} tokens of {self._name} fits into memory; lower --context."
                )
            self.batch_size = rows_tried // 2
        if self.batch_size < before:
            self._tell(
                f"The memory does not hold {before} packed rows a forward pass: it goes on with {self.batch_size}, and the same rows of activations "
                f"(--batch-size {self.batch_size} begins so)."
            )
        return {site: rows[0] if len(rows) == 1 else torch.cat(rows) for site, rows in parts.items()}

    @torch.inference_mode()
    def _forward(self, ids: np.ndarray, keep: np.ndarray) -> dict[str, torch.Tensor]:
        if len(self._passes) == PASSES_AHEAD:
            self._passes.popleft().synchronize()
        self._rows = {}
        self._wanted = torch.from_numpy(np.flatnonzero(keep)).to(self.device)
        try:
            # Integers, not text: the bridge's own tokenizer would put a second BOS in front.
            self._bridge.forward(torch.from_numpy(ids).to(self.device), return_type=None, use_cache=False)
        except _AllSitesRead:
            pass
        else:
            missed = [site for site in self._sites if site not in self._rows]
            raise ModelError(f"{self._name} runs without passing {', '.join(missed)}, so nothing can be harvested there.")
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self.device))
            self._passes.append(done)
        return {site: self._rows[site] for site in self._sites}

    def _hook(self, site: str) -> Any:
        def read(tensor: torch.Tensor, hook: Any) -> None:
            # Copied at once: a later block may write into its input in place.
            # attn_z comes as [B, T, heads, head_dim], the others as [B, T, d].
            self._rows[site] = tensor.flatten(2).flatten(0, 1).index_select(0, self._wanted).to(self._dtype)
            if len(self._rows) == len(self._sites):
                raise _AllSitesRead

        return read


def auto_batch_size(context: int, n_heads: int, device: torch.device, dtype: torch.dtype) -> int:
    """Packed rows a forward pass: some thousand tokens, with the attention's [B, H, T, T] scores within 1 GiB."""
    by_tokens = TOKENS_A_BATCH["cpu" if device.type == "cpu" else "cuda"] // context
    by_attention = ATTENTION_BYTES // (n_heads * context * context * dtype.itemsize)
    return max(1, min(by_tokens, by_attention))


def _drop_pattern(module: Any, args: Any, output: Any) -> None:
    module._pattern = None


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's or the CPU's allocator gave up (the CPU's has no exception class of its own)."""
    return (
        isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or "can't allocate memory" in str(error)
    )
