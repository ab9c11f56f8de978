"""What the first batch shows before a store is begun: rows of another width than planned, or that a dtype cannot hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import ModelError
from ..store.pool import row_norms
from .plan import Plan

# Single rows that are not finite are left out and counted; beyond this share of the first batch the dtype is to blame.
TOO_MANY = 0.05


def check_first_rows(rows: Mapping[str, torch.Tensor], todo: Plan) -> None:
    """Look at the rows [n, d] of the first batch, by site, in the store's dtype.

    Raises:
        ModelError: they are not as wide as planned, or more than 5 % of them at a site, and not just one, are not finite.
    """
    for site, x in rows.items():
        if x.shape[1] != todo.sites[site]:
            raise ModelError(
                f"The rows of {todo.checkpoint.name} at {site} are {x.shape[1]} wide, and not {todo.sites[site]} as its "
                "configuration led to expect; harvest another --hook."
            )
        bad = x[~torch.isfinite(row_norms(x))]
        if len(bad) > max(1, TOO_MANY * len(x)):
            raise ModelError(
                f"{len(bad)} of the first {len(x)} rows of {todo.checkpoint.name} at {site} are not finite: {_cause(bad, todo)}"
            )


def _cause(bad: torch.Tensor, todo: Plan) -> str:
    model, stored = (str(dtype).removeprefix("torch.") for dtype in (todo.model_dtype, todo.config.dtype))
    if model == "float16":
        also = " and --dtype bfloat16" if stored == "float16" else ""
        return f"the model's dtype, float16, ends at 65504; give --model-dtype bfloat16 or float32{also}."
    # A cast of finite numbers makes infinities, never NaN.
    if stored == "float16" and not bool(bad.isnan().any()):
        return "the store's dtype, float16, ends at 65504; give --dtype bfloat16 or float32."
    if model == "bfloat16":
        return "the model computes them so in bfloat16; give --model-dtype float32, or check its weights."
    return "the model computes them so in float32; its weights are damaged, or belong to another architecture."
