"""Which options of `train` have an effect beside which others: one that has none is refused, or it would be taken to have had some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ..errors import SplinterpError
from .config import WITH_K

if TYPE_CHECKING:
    from .settings import TrainOptions


def _alternates(o: TrainOptions) -> bool:
    in_pam = o.decoder_steps is False or o.solve_every is not None or o.memory_rows is not None
    return o.method == "pursuit" or (o.method == "pam" and in_pam)


# Options; where they have an effect; and what is said where they have none.
_RULES: tuple[tuple[tuple[str, ...], Callable[[TrainOptions], bool], str], ...] = (
    (("k", "k_start"), lambda o: o.activation in WITH_K, f"without --activation {', '.join(WITH_K[:-1])} or {WITH_K[-1]}"),
    (("k_anneal",), lambda o: o.k_start is not None and o.activation in WITH_K, "without --k-start"),
    (("l1",), lambda o: o.activation == "relu", "without --activation relu"),
    (("l0", "bandwidth"), lambda o: o.activation == "jumprelu", "without --activation jumprelu"),
    (("expansion",), lambda o: o.latents is None, "beside --latents"),
    (("mu_enc", "nu_enc"), lambda o: o.encoder_steps > 1, "without several --encoder-steps on a batch"),
    (("decoder_steps",), lambda o: o.method == "pam", "without --method pam"),
    (("solve_every", "memory_rows"), lambda o: o.method != "adam", "with --method adam"),
    (("pursuit",), lambda o: o.activation == "topk", "without --activation topk"),
    (
        ("alpha", "beta", "mu_dec", "nu_dec", "ridge", "memory"),
        lambda o: o.solves_last or _alternates(o),
        "without --last-solve or solves on the way (--solve-every)",
    ),
)
_NAMES = {"decoder_steps": "--decoder-steps/--solve-only"}  # where it is not --name


def no_effect(options: TrainOptions) -> dict[str, str]:
    """The options that are given and have no effect -> why, as a sentence goes on after "has no effect"."""
    return {
        name: why
        for names, effective, why in _RULES
        for name in names
        if getattr(options, name) is not None and not effective(options)
    }


def refuse(idle: Mapping[str, str], where: str = "") -> None:
    """Refuse options that have no effect, as `no_effect` tells them; the sentence is about those that share the first one's reason.

    Raises:
        SplinterpError: there are some.
    """
    if idle:
        why = next(iter(idle.values()))
        names = [_NAMES.get(name, f"--{name.replace('_', '-')}") for name in idle if idle[name] == why]
        have, them = ("has", "it") if len(names) == 1 else ("have", "them")
        raise SplinterpError(f"{', '.join(names)} {have} no effect{where} {why}; leave {them} out.")
