"""The places in a block that can be harvested: what TransformerLens calls them, which tensor each is, and how wide."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ModelError

if TYPE_CHECKING:
    from .facts import ModelFacts


@dataclass(frozen=True)
class Hook:
    """A place in a block.

    name: TransformerLens's, below `blocks.L`. width: the figure of the model that is its width. meaning: the tensor, for --help.
    point: the hook point that `name` must stand for; a mixture of experts, for one, gives the name to another tensor.
    """

    name: str
    width: Literal["d_model", "d_attn", "d_mlp"]
    meaning: str
    point: str | None = None


# In the order of a forward pass. Where norms follow attention and MLP (Gemma 2 and 3, OLMo 2), attn_out and mlp_out are taken
# behind them: what is added, so that resid_mid = resid_pre + attn_out and resid_post = resid_mid + mlp_out. Blocks whose attention
# and MLP run side by side (Pythia, Phi, GPT-J) have no resid_mid.
HOOKS: dict[str, Hook] = {
    "resid_pre": Hook("hook_resid_pre", "d_model", "the block's input"),
    "attn_z": Hook(
        "attn.hook_z", "d_attn", "what attention's output projection takes, the heads side by side", "attn.o.hook_in"
    ),
    "attn_out": Hook("hook_attn_out", "d_model", "what attention adds to the residual stream"),
    "resid_mid": Hook("hook_resid_mid", "d_model", "the stream between attention and MLP"),
    "mlp_in": Hook("mlp.hook_in", "d_model", "what the MLP takes, behind its norm"),
    "mlp_post": Hook("mlp.hook_post", "d_mlp", "what the MLP's output projection takes", "mlp.out.hook_in"),
    "mlp_out": Hook("hook_mlp_out", "d_model", "what the MLP adds to the residual stream"),
    "resid_post": Hook("hook_resid_post", "d_model", "the block's output"),
}


def site_name(layer: int, hook: str) -> str:
    """TransformerLens's name of a hook of a block, which is the site's name in the store."""
    return f"blocks.{layer}.{HOOKS[hook].name}"


def site_widths(name: str, facts: ModelFacts, layers: Collection[int], hooks: Collection[str]) -> dict[str, int]:
    """The width of every site, by name: layer after layer, in each the hooks as given.

    Raises:
        ModelError: in the model `name` one of the widths differs from block to block.
    """
    widths: dict[str, int | None] = {hook: getattr(facts, HOOKS[hook].width) for hook in hooks}
    unknown = [hook for hook, width in widths.items() if width is None]
    if unknown:
        raise ModelError(
            f"The blocks of {name} differ in the width of {', '.join(unknown)}, which cannot be told beforehand; harvest another --hook."
        )
    return {site_name(layer, hook): width for layer in layers for hook, width in widths.items() if width is not None}


def check_sites(name: str, sites: Collection[str], known: Mapping[str, Any]) -> None:
    """Raises ModelError if the bridge of the model `name` lacks one of `sites`; `known` is its `hook_dict`.

    TransformerLens 3.9 takes a hook on an unknown name without a word.
    """
    for site in sites:
        block = ".".join(site.split(".")[:2])
        has = {
            f"{block}.{hook.name}": short
            for short, hook in HOOKS.items()
            if f"{block}.{hook.name}" in known
            and (hook.point is None or known[f"{block}.{hook.name}"] is known.get(f"{block}.{hook.point}"))
        }
        if site not in has:
            raise ModelError(f"{name} has no hook {site}; of its kind it has {', '.join(has.values())}.")
