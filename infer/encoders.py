"""Encoders by name: from rows to codes of an SAE's dictionary, by its own encoder, by sparse inference, or by an MLP trained for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import SplinterpError
from ..sae import SAE, Codes, l0
from .methods import METHODS, check, infer
from .mlp import find_mlp
from .penalty import ito_penalty, penalties_for
from .problem import Dictionary, Effort, Target

NATIVE, MLP = "native", "mlp"
NAMES = (NATIVE, *METHODS, MLP)
STARTS = ("encoder", "none")
_FROM_ENCODER = ("ls", "ito")  # unless told otherwise: ls needs codes, and of ito's many minima the encoder's is a better one
_PENALTY_ROWS = 256  # that λ is chosen on


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What a user says of an encoder; None: not said. For k, l1, residual, signed and steps see `Target`.

    Attributes:
        name: one of NAMES, or mlp:PATH. start: "encoder" or "none".
    """

    name: str = NATIVE
    k: int | None = None
    l1: float | None = None
    residual: float | None = None
    signed: bool | None = None
    steps: int | None = None
    start: str | None = None

    def given(self) -> list[str]:
        """The names of what is said beside the name."""
        return [n for n in ("k", "l1", "residual", "signed", "steps", "start") if getattr(self, n) is not None]


class Spent:
    """The effort of all rows since it was last set to nothing."""

    def __init__(self) -> None:
        self.effort = Effort()

    def add(self, effort: Effort) -> None:
        self.effort += effort


@dataclass(frozen=True)
class Encoder:
    """A way from rows [N, d_in] to codes that the SAE's decoder decodes.

    Attributes:
        name: one of NAMES. settings: what it was told, and what was chosen for it; of an MLP its width and path. notes: sentences about what
            was chosen. spent: what its rows took so far, where it iterates.
    """

    name: str
    encode: Callable[[Tensor], Codes]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spent: Spent = field(default_factory=Spent)

    def __call__(self, x: Tensor) -> Codes:
        return self.encode(x)


def make_encoder(sae: SAE, options: EncoderOptions, directory: Path | None, sample: Callable[[], Tensor]) -> Encoder:
    """The encoder that the options speak of, for `sae`, which lies in `directory` (None: in memory alone).

    Left out, k is the SAE's own or, of an SAE that has none, its L0 rounded; λ is one that comes to about that L0; values are
    signed of an abstopk SAE alone; ls and ito start from the SAE's encoder, the others from nothing.

    Args:
        sample: gives rows [N, d_in], training rows preferably, on which L0 and λ are measured where that is needed.

    Raises:
        SplinterpError: no such encoder, an option that it does not take, or no MLP in the directory.
        SAEError: k is beyond the number of latents; a damaged MLP.
    """
    name, _, path = options.name.partition(":")
    if name not in NAMES or (path and name != MLP):
        raise SplinterpError(f"There is no encoder '{options.name}'; there are {', '.join(NAMES)} (or mlp:PATH).")
    if options.start not in (None, *STARTS):
        raise SplinterpError(f"--start is encoder or none, not '{options.start}'.")
    if name in (NATIVE, MLP):
        _refuse(name, options.given())
        if name == NATIVE:
            return Encoder(NATIVE, sae.encode)
        mlp, where = find_mlp(sae, directory, Path(path) if path else None)
        return Encoder(MLP, mlp.encode, {"hidden": mlp.hidden, "path": str(where)})
    return _inferring(sae, name, options, sample)


def budget_of(sae: SAE, sample: Callable[[], Tensor]) -> tuple[int, str | None]:
    """The number of latents a row that an SAE has: its k, or its L0 rounded, and a sentence that says so."""
    if sae.config.k is not None:
        return sae.config.k, None
    x = sample()
    found = l0(sae.encode(x))
    k = min(max(1, round(found)), sae.config.d_sae)
    return k, f"k = {k}: the SAE has no k of its own, and its encoder's L0 on {len(x):,} training rows is {found:.1f}."


def _inferring(sae: SAE, name: str, options: EncoderOptions, sample: Callable[[], Tensor]) -> Encoder:
    method, dictionary, notes = METHODS[name], Dictionary.of(sae), []
    takes = (*method.stops, *method.takes, *(["start"] if method.start != "none" else []))
    _refuse(name, [option for option in options.given() if option not in takes])
    signed = "signed" in method.takes and (sae.config.architecture == "abstopk" if options.signed is None else options.signed)
    from_encoder = options.start == "encoder" or (options.start is None and name in _FROM_ENCODER)
    k, l1 = options.k, options.l1
    if "k" in method.stops and k is None and options.residual is None:
        k, note = budget_of(sae, sample)
        notes += [note] if note else []
    if "l1" in method.stops and l1 is None:
        budget, _ = budget_of(sae, sample)
        x = sample()[:_PENALTY_ROWS]
        (l1,) = penalties_for(dictionary, x, [budget], signed)
        if l1 is None:
            raise SplinterpError(f"No λ gives this dictionary's ℓ1 codes an L0 of {budget}; give one with --l1.")
        l1 = ito_penalty(l1, dictionary) if name == "ito" else l1
        notes.append(f"λ = {l1:.4g}: chosen on {len(x):,} training rows to come to about {budget} latents a row.")
    target = Target(k=k, l1=l1, residual=options.residual, signed=signed, steps=options.steps)
    check(name, target, from_encoder)
    if k is not None and k > sae.config.d_sae:
        raise SplinterpError(f"k={k} is more than the SAE's {sae.config.d_sae:,} latents; lower --k.")

    spent = Spent()

    def encode(x: Tensor) -> Codes:
        return infer(name, x, dictionary, target, sae.encode(x) if from_encoder else None, spent.add)

    settings = {n: v for n in ("k", "l1", "residual", "steps") if (v := getattr(target, n)) is not None}
    if "signed" in method.takes:
        settings["signed"] = signed
    if method.start != "none":
        settings["start"] = "encoder" if from_encoder else "none"
    return Encoder(name, encode, settings, tuple(notes), spent)


def _refuse(name: str, given: list[str]) -> None:
    if given:
        raise SplinterpError(f"{', '.join(f'--{option}' for option in given)} has no effect on --encoder {name}; leave it out.")
