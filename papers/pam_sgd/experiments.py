"""Which trainings an experiment is made of: points (a value that is swept) with their arms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..gemma import SHARES, Sizes
from .published import Published
from .settings import (
    ACTIVATIONS,
    PULL_RELU,
    Activation,
    Effort,
    Preset,
    Site,
    decay_of,
    published,
    strong,
    tuned,
    with_mu_nu,
    with_sgds_l1,
    with_weight_decay,
)
from .strong import SOLVED, TRAINED, Strong, Trainer, Tuned

# What is swept: heading, what the axis says, whether it is logarithmic.
TOLD = {
    "base": ("Over the epochs", "epoch"),
    "sizes": ("Size of the training set", "share of the training rows"),
    "updates": ("M, encoder updates on each batch", "M"),
    "weight-decay": ("Weight decay", "weight decay"),
    "mu-nu": ("Quadratic update costs µ = ν", "µ = ν"),
    "k": ("K of TopK", "K, share of the latents"),
    "sparsity": ("Sparsity of ReLU codes", "K"),
}
ARMS = {
    "sgd": "SGD (plain Adam)", "pam": "PAM-SGD", "alternation": "Algorithm 3.1, tuned", "adam": "our Adam", "adam+solve": "our Adam + last solve"
}  # fmt: skip
PAPERS_ARMS: dict[str, Literal["sgd", "pam"]] = {"sgd": "sgd", "alternation": "pam"}  # of the paper's trainings, in strong
EVERY_SEED = ("base", "sizes", "sparsity")  # the others may have the first seed alone
PAPERS_K = (15, 20, 40, 80, 160, 320, 640, 1280)


@dataclass(frozen=True)
class Extent:
    """How much of the paper's experiments is done.

    Attributes:
        share: of the rows, and `epochs`, of every sweep but that over sizes. base_epochs: of the curves. size_epochs: at most, of sizes.
        The values that are swept; `told` says in a sentence what is left out, if something is. every_seed: whether experiments beyond
        EVERY_SEED have more than the first seed.
    """

    share: float
    epochs: int
    base_epochs: int
    size_epochs: int
    shares: tuple[float, ...]
    updates: tuple[int, ...]
    decays: tuple[float, ...]
    mu_nus: tuple[float, ...]
    ks: tuple[int, ...]
    effort: Effort
    told: str | None = None
    every_seed: bool = True


_DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
_FACTORS = (1 / 4, 1 / 2, 1.0, 2.0)
MNIST = Extent(
    1.0, 50, 50, 20, (0.01, 0.05, 0.10, 0.25, 0.50, 1.0), (1, 3, 5, 10), _DECAYS, _DECAYS, (), Effort(20, 2000, _FACTORS, 6)
)
QUICK_MNIST = Extent(
    0.25, 10, 10, 10, (0.01, 0.05, 0.10, 0.25, 1.0), (1, 3, 10), (0.0, 1e-3, 1e-2), (0.0, 1e-3, 1e-2), (), Effort(10, 150, (1 / 2, 1.0, 2.0), 2),
    "The size experiment leaves out 50 % and takes 10 epochs at most (the paper: 20); the sweeps over M, weight decay and µ/ν a quarter of the rows in 10 epochs (all rows "
    "in 50), three values each and one seed; strong trains for 10 epochs or 150 steps, whichever is more (20 or 2,000), on a grid that begins with three "
    "rates (four); and there are two seeds.", every_seed=False,
)  # fmt: skip
LLM = Extent(
    1.0, 50, 100, 50, SHARES, (1, 3, 5, 10), _DECAYS, (1e-4, 1e-3, 1e-2, 1e-1, 1.0), PAPERS_K, Effort(50, 2000, _FACTORS, 6)
)
QUICK_LLM = Extent(
    1.0, 15, 15, 15, (0.01, 0.05, 0.10, 0.25, 0.40, 0.45, 0.50, 0.75, 1.0), (1, 3, 10), (0.0, 1e-3, 1e-2), (1e-4, 1e-3, 1.0),
    (15, 80, 320, 640, 1280), Effort(15, 150, (1 / 2, 1.0, 2.0), 2),
    "15 epochs each (the paper: 50, and 100 of the curves); sizes without 65 and 85 %; M, weight decay and µ/ν at three values, K at five, with one seed; "
    "strong trains for 15 epochs or 150 steps, whichever is more (50 or 2,000), on a grid that begins with three rates (four); and there are two seeds.",
    every_seed=False,
)  # fmt: skip

Job = Published | Strong | Tuned


@dataclass(frozen=True)
class Point:
    """A value of what is swept, and for every arm its training and the stage of it that counts.

    Attributes:
        x: what stands on the axis. label: how it is told. rows: trained on. epochs: None where every training has steps of its own.
    """

    preset: Preset
    activation: Activation
    experiment: str
    x: float
    label: str
    rows: int
    epochs: int | None
    arms: dict[str, tuple[Job, str]]


def size_epochs(site: Site, share: float, extent: Extent) -> int:
    """Of the size experiment: the code's rule on MNIST."""
    return min(extent.size_epochs, max(10, int(20 * share)) if site.recipe == "mnist" else extent.size_epochs)


def share_of(site: Site, rows: int, share: float) -> int:
    """Rows that a share is."""
    return max(1, int(rows * share) if site.recipe == "mnist" else Sizes(site.d_sae).of(9000 * share))


def points(site: Site, rows: int, extent: Extent, presets: tuple[Preset, ...]) -> Iterator[Point]:
    """All of a recipe's, on `rows` training rows in all."""
    for preset in presets:
        for activation in ACTIVATIONS:
            yield from (_strong if preset == "strong" else _published)(site, rows, extent, preset, activation)


def _published(site: Site, rows: int, extent: Extent, preset: Preset, activation: Activation) -> Iterator[Point]:
    llm = site.recipe == "llm"

    def both(n: int, epochs: int) -> tuple[Published, Published]:
        sgd, pam = (published(site, preset, activation, arm, n, epochs) for arm in ("sgd", "pam"))
        return sgd, pam

    def point(experiment: str, x: float, label: str, n: int, epochs: int, **arms: Published) -> Point:
        return Point(preset, activation, experiment, x, label, n, epochs, {name: (arm, SOLVED) for name, arm in arms.items()})

    sgd, pam = both(rows, extent.base_epochs)
    yield point("base", extent.base_epochs, str(extent.base_epochs), rows, extent.base_epochs, sgd=sgd, pam=pam)
    for share in extent.shares:
        n, epochs = share_of(site, rows, share), size_epochs(site, share, extent)
        sgd, pam = both(n, epochs)
        yield point("sizes", share, f"{share:.0%}", n, epochs, sgd=with_sgds_l1(site, preset, sgd), pam=pam)
    n, epochs = share_of(site, rows, extent.share), extent.epochs
    sgd, pam = both(n, epochs)
    for updates in extent.updates:
        yield point("updates", updates, str(updates), n, epochs, pam=replace(pam, updates=updates))
    for value in extent.decays:
        own = (with_sgds_l1(site, preset, sgd), pam)
        decayed = [with_weight_decay(site, preset, arm, value) for arm in own]
        yield point("weight-decay", value, f"{value:g}", n, epochs, sgd=decayed[0], pam=decayed[1])
    for value in extent.mu_nus:
        penalised = with_mu_nu(site, preset, pam, value)
        # SGD has such a term in the code's MNIST alone.
        beside = {"sgd": with_mu_nu(site, preset, sgd, value)} if preset == "paper-code" and not llm else {}
        yield point("mu-nu", value, f"{value:g}", n, epochs, **beside, pam=penalised)
    if llm and activation == "topk":
        for k in extent.ks:
            own_k = Sizes(site.d_sae).of(k)
            yield point("k", own_k / site.d_sae, str(own_k), n, epochs, pam=replace(pam, k=own_k))
    if llm and activation == "relu":
        relaxed = replace(pam, pull=PULL_RELU * site.weight) if preset == "paper-code" else pam
        yield point("sparsity", 0, "ReLU", n, epochs, sgd=sgd, pam=relaxed)


def _strong(site: Site, rows: int, extent: Extent, preset: Preset, activation: Activation) -> Iterator[Point]:
    effort, relu = extent.effort, activation == "relu"

    arms: dict[str, tuple[Job, str]]

    def job(trainer: Trainer, n: int, updates: int = 1, **more: Any) -> Strong:
        # With ReLU the product's PAM-SGD is Adam with the last solve.
        alone = relu and trainer == "pam" and updates == 1 and not more
        return strong(site, activation, "adam" if alone else trainer, n, effort, updates, **more)

    def point(experiment: str, x: float, label: str, n: int, arms: dict[str, tuple[Job, str]]) -> Point:
        return Point(preset, activation, experiment, x, label, n, None, arms)

    def adams(adam: Strong) -> dict[str, tuple[Job, str]]:
        return {"adam": (adam, TRAINED), "adam+solve": (adam, SOLVED)}

    def all_arms(n: int) -> dict[str, tuple[Job, str]]:
        papers = {name: (tuned(site, activation, arm, n, effort), SOLVED) for name, arm in PAPERS_ARMS.items()}
        return {
            "sgd": papers["sgd"],
            **adams(job("adam", n)),
            "pam": (job("pam", n), SOLVED),
            "alternation": papers["alternation"],
        }

    def decayed(arm: Literal["sgd", "pam"], n: int, value: float) -> Tuned:
        one = tuned(site, activation, arm, n, effort)
        return replace(one, setting=replace(one.setting, weight_decay=value))

    for share in extent.shares:
        n = share_of(site, rows, share)
        yield point("sizes", share, f"{share:.0%}", n, all_arms(n))
    n = share_of(site, rows, extent.share)
    for updates in extent.updates:
        yield point("updates", updates, str(updates), n, {"pam": (job("pam", n, updates), SOLVED)})
    for value in extent.decays:
        weight = decay_of(value, n, site.d_in)
        more: dict[str, Any] = {"alpha": weight, "beta": weight} if value else {}
        papers = {name: (decayed(arm, n, value), SOLVED) for name, arm in PAPERS_ARMS.items()}
        arms = {"sgd": papers["sgd"], "pam": (job("pam", n, **more), SOLVED), "alternation": papers["alternation"]}
        yield point("weight-decay", value, f"{value:g}", n, arms)
    for value in extent.mu_nus:
        own = value * site.weight
        pulled = job("pam", n, 2, mu_enc=own, nu_enc=own, mu_dec=value, nu_dec=value)
        yield point("mu-nu", value, f"{value:g}", n, {"pam": (pulled, SOLVED)})
    if site.recipe == "llm" and not relu:
        for k in extent.ks:
            own_k = Sizes(site.d_sae).of(k)
            with_k = replace(site, k=own_k)
            trainers: tuple[Trainer, ...] = ("pam", "adam")
            with_own = {name: strong(with_k, activation, name, n, effort) for name in trainers}
            arms = {"pam": (with_own["pam"], SOLVED), **adams(with_own["adam"])}
            yield point("k", own_k / site.d_sae, str(own_k), n, arms)
    if site.recipe == "llm" and relu:
        yield point("sparsity", 0, "ReLU", n, all_arms(n))
