"""Command-line options that several commands have, and their parsers."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import SplinterpError
from .quantities import parse_quantity


def quantity(text: str | int) -> int:
    """Options such as 20000, 10k, 1M, 2.5B; typer hands over defaults too, which are numbers already."""
    try:
        return text if isinstance(text, int) else parse_quantity(text)
    except SplinterpError as error:
        raise typer.BadParameter(str(error)) from None


def whole(text: str | int) -> int:
    """Options such as --layer, which count from zero."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a whole number; write for example 2.") from None


StoreOption = Annotated[
    str, typer.Option("--store", metavar="PATH", help="A store that `splinterp harvest` or `import` wrote.")
]
SiteOption = Annotated[
    str | None, typer.Option("--site", help="The hook point, where the store has several (`info` lists them).")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what exists at the output.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]

# How rows become codes, for commands that take a finished SAE.
EncoderOption = Annotated[
    str,
    typer.Option(
        help="Where codes come from: native (the SAE's own encoder); its dictionary by ista, fista, cd, lca, ito (ℓ1: --l1), omp, mp, "
        "gradient-pursuit (--k), ls (least squares on the encoder's latents); or mlp, trained by `splinterp mlp` (mlp:PATH where there are several)."
    ),
]
KOption = Annotated[
    int | None,
    typer.Option(
        "--k", parser=quantity, help="Latents a row (omp, mp, gradient-pursuit). \\[default: the SAE's k, or its L0 rounded]"
    ),
]
L1Option = Annotated[
    float | None,
    typer.Option(
        help="λ in ½‖x - x̂‖² + λ·Σ|z|·‖W‖ (ista, fista, cd, lca); of means over a row for ito. \\[default: one that comes to about the SAE's L0]"
    ),
]
ResidualOption = Annotated[
    float | None,
    typer.Option(
        help="Stop where ‖x - x̂‖ is at most this part of ‖x - b_dec‖ (omp, mp, gradient-pursuit); without --k by this alone."
    ),
]
SignedOption = Annotated[
    bool | None,
    typer.Option("--signed/--non-negative", help="Whether codes may be negative. \\[default: for an abstopk SAE]"),
]
StepsOption = Annotated[
    int | None, typer.Option(parser=quantity, help="Iterations at most (ista, fista, cd, lca, ito). \\[default: the method's]")
]
StartOption = Annotated[
    str | None,
    typer.Option(
        help="Begin from the codes of the SAE's encoder, or from none (ista, fista, cd, ito; ls: encoder). \\[default: encoder for ito and ls, "
        "else none]"
    ),
]
