"""The settings of the presets paper and paper-code, and of what the strong one has in common with them.

Taken from the paper's appendix and from its authors' published scripts (E2: MNIST, E3: Gemma-2-2B, layer 12). `DIFFERENCES` says, in one place,
where the presets part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ...train import TrainConfig, auto_lr
from .. import gemma
from .published import Published
from .strong import SOLVED, TRAINED, Grid, Strong, Trainer, Tuned

Preset = Literal["paper", "paper-code", "strong"]
Activation = Literal["topk", "relu"]
PRESETS: tuple[Preset, ...] = ("paper", "paper-code", "strong")
ACTIVATIONS: tuple[Activation, ...] = ("topk", "relu")

DIFFERENCES = (
    ("", "paper", "paper-code, MNIST (E2)", "paper-code, LLM (E3)", "strong"),
    ("“SGD”", "Adam, untied", "Adam, encoder and decoder tied", "Adam, tied", "Adam at its best rate, which decays: ours (untied, unit-norm decoder, AuxK, warm-up), and plain as in paper"),
    ("TopK", "K largest pre-activations", "K largest magnitudes, signs kept", "the same", "K largest pre-activations"),
    ("order", "encoder's epoch, then the solve", "the same", "solve, then the encoder's epoch; evaluated with the old decoder",
     "the product's: gradient steps on both, one solve at the end; Algorithm 3.1: as in paper, at its best rate"),
    ("solve", "Theorem C.1: centred, with bias; α 1e-6 (LLM: β too, and µ = ν 1e-3)", "uncentred, + 1e-6·I; bias: the mean residual after it",
     "uncentred, effective ridge 1e-10; bias: the mean residual after it", "Theorem C.1, ridge chosen on validation rows"),
    ("µ, ν", "pull towards encoder and decoder of the last iteration; PAM only", "an L2 penalty on the encoder; both methods; part of the reported loss",
     "pull of the encoder, of both methods; the decoder's switched off", "of M = 2 steps on a batch, and of the last solve"),
    ("weight decay", "Adam's, of all weights; α = β in PAM's solve", "Adam's, of the encoder's weights", "Adam's, biases too; PAM's α, β switched off",
     "α = β of the product's last solve, as the same share of a mean loss; Adam's of the paper's arms"),
    ("start", "decoder: projection on the encoder's directions", "PAM's decoder at random, small", "random; solved before it is used", "tied, then free"),
    ("gradient clipping", "none", "none", "norm 1, PAM only; the decoder bias's uncleared gradient counts in", "none"),
    ("L1 (ReLU)", "none (MNIST), 1e-5 (LLM)", "none", "1e-5 for PAM; for SGD 1e-2 in sizes and weight decay, else 1e-5; part of the reported loss",
     "none (MNIST), 1e-5 (LLM)"),
    ("z-scores (LLM)", "of the training rows", "–", "of training and test rows together", "of the training rows"),
    ("test loss", "mean squared error", "mean over batches of 128", "mean over batches, with L1", "mean squared error"),
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """What is common to all trainings of one recipe: `mnist` or `llm`, the rows' width, and the sizes; `lr` is the paper's."""

    recipe: Literal["mnist", "llm"]
    d_in: int
    d_sae: int
    k: int
    batch_size: int
    lr: float

    @property
    def weight(self) -> float:
        """By what penalties in the encoder's mean loss are multiplied, so that they weigh as they do on rows of the paper's width."""
        return 1.0 if self.recipe == "mnist" else gemma.D_IN / self.d_in


def mnist_site(d_in: int, d_sae: int = 256, k: int = 15) -> Site:
    """The paper's MNIST."""
    return Site("mnist", d_in, d_sae, k, 128, 3e-3)


def llm_site(d_in: int, sizes: gemma.Sizes) -> Site:
    """The paper's Gemma, in proportion."""
    return Site("llm", d_in, sizes.latents, sizes.of(gemma.K), sizes.of(gemma.BATCH), gemma.LR)


L1, L1_SGD = 1e-5, 1e-2
MOST_SOLVES = 30
PULL, PULL_RELU = 1e-3, 5e-4  # Gemma's µ = ν; the latter where the code compares sparsity


def published(
    site: Site, preset: Preset, activation: Activation, arm: Literal["sgd", "pam"], rows: int, epochs: int
) -> Published:
    """As the presets paper and paper-code have it where nothing is swept."""
    common: dict[str, Any] = {
        "arm": arm, "d_sae": site.d_sae, "k": site.k, "rows": rows, "epochs": epochs, "batch_size": site.batch_size, "lr": site.lr,
        "scale": 0.1 if site.recipe == "mnist" else site.d_in**-0.5,
    }  # fmt: skip
    llm, pam, relu = site.recipe == "llm", arm == "pam", activation == "relu"
    if preset == "paper":
        common |= {"architecture": "standard" if relu else "topk", "matched": True, "alpha": 1e-6}
        if llm:
            pull = {"pull": PULL * site.weight, "mu_dec": PULL, "nu_dec": PULL, "beta": 1e-6} if pam else {}
            common |= {"l1": L1 * site.weight if relu else 0.0, **pull}
        return Published(**common)
    common |= {
        "architecture": "standard" if relu else "abstopk", "tied": not pam, "centred": False, "test_batch": site.batch_size,
        "decoder_scale": site.d_sae**-0.5 if llm else 0.01, "alpha": 1e-10 if llm else 1e-6,
    }  # fmt: skip
    if llm:
        common |= {
            "pull": PULL * site.weight, "clip": 1.0 if pam else None, "solve_first": pam, "over_all": True,
            "l1": L1 * site.weight if relu else 0.0, "penalised": relu,
        }  # fmt: skip
    return Published(**common)


def with_weight_decay(site: Site, preset: Preset, setting: Published, value: float) -> Published:
    """Of a sweep over weight decay."""
    if preset == "paper":
        solve = {"alpha": (setting.alpha or 0.0) + value, "beta": setting.beta + value} if setting.arm == "pam" else {}
        return replace(setting, weight_decay=value, **solve)
    return replace(setting, weight_decay=value, decay_biases=site.recipe == "llm" and value > 0)


def with_mu_nu(site: Site, preset: Preset, setting: Published, value: float) -> Published:
    """Of a sweep over µ = ν."""
    if preset == "paper-code" and site.recipe == "mnist":
        return replace(setting, l2=value, penalised=value > 0)
    decoder = {"mu_dec": value, "nu_dec": value} if preset == "paper" else {}
    return replace(setting, pull=value * site.weight, **decoder)


def with_sgds_l1(site: Site, preset: Preset, setting: Published) -> Published:
    """The code's larger L1 for SGD with ReLU, where it has it."""
    heavy = preset == "paper-code" and setting.arm == "sgd" and setting.l1 > 0
    return replace(setting, l1=L1_SGD * site.weight) if heavy else setting


@dataclass(frozen=True)
class Effort:
    """What the strong preset spends on a training: at least so many epochs and so many steps; and on its rate (see `Strong`)."""

    epochs: int
    steps: int
    factors: tuple[float, ...]
    extensions: int


def strong(
    site: Site, activation: Activation, trainer: Trainer, rows: int, effort: Effort, updates: int = 1, **more: Any
) -> Strong:
    """One of the product's trainings, with its defaults; `updates`: M, the gradient steps in all being the same."""
    batch = min(site.batch_size, rows)
    total = max(effort.epochs * rows, effort.steps * batch)
    relu = activation == "relu"
    l1 = L1 * gemma.D_IN if relu and site.recipe == "llm" else 0.0  # the product divides by the rows' width
    config = TrainConfig(
        method=trainer, activation=activation, d_sae=site.d_sae, k=None if relu else site.k, l1=l1, rows=max(rows, total // updates),
        different_rows=rows, batch_size=batch, lr=1.0, encoder_steps=updates, **more,
    )  # fmt: skip
    stages = (TRAINED, SOLVED) if trainer == "adam" else (SOLVED,)
    return Strong(config, rows, Grid(auto_lr(site.d_in), effort.factors, effort.extensions), stages)


def tuned(site: Site, activation: Activation, arm: Literal["sgd", "pam"], rows: int, effort: Effort) -> Tuned:
    """One of the paper's trainings without penalties, PAM's ridge chosen on validation rows; as long as the product's. With few rows
    PAM takes several updates a batch, so that there are at most MOST_SOLVES."""
    batch = min(site.batch_size, rows)
    epochs = max(effort.epochs, -(-effort.steps * batch // rows))
    updates = max(1, -(-epochs // max(MOST_SOLVES, effort.epochs))) if arm == "pam" else 1
    setting = replace(
        published(site, "paper", activation, arm, rows, -(-epochs // updates)), lr=1.0, pull=0.0, beta=0.0, mu_dec=0.0, nu_dec=0.0,
        alpha=None if arm == "pam" else 0.0, updates=updates,
    )  # fmt: skip
    return Tuned(setting, Grid(site.lr, effort.factors, effort.extensions))


def decay_of(value: float, rows: int, d_in: int) -> float:
    """The penalty, of a sum over rows, that weighs as Adam's weight decay does in a mean over entries."""
    return value * rows * d_in / 2
