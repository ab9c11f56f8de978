"""What a training run is told: one frozen dataclass, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..errors import SplinterpError
from .jitter import auto_jitter

Method = Literal["pam", "adam", "pursuit"]
Activation = Literal["topk", "batchtopk", "relu", "jumprelu"]
Revive = Literal["auxk", "resample", "none"]
PURSUIT = 0.3
WITH_K: tuple[Activation, ...] = ("topk", "batchtopk", "jumprelu")  # those that are told how many latents a row has
Precision = Literal["auto", "float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Penalties are in units of normalised rows (mean 0, mean square 1 per dimension). Those of the decoder belong to a loss that is a sum
    over the rows of the statistics' memory (Theorem C.1); `l1`, `l0`, `mu_enc` and `nu_enc` to one that is a mean over rows.

    Attributes:
        method: pam (closed-form decoder), adam (the baseline: gradient steps on everything, unit-norm decoder) or pursuit (a dictionary for
            pursuit's codes, with topk: train/dictionary.py).
        activation: topk, batchtopk (k latents a row on average over a batch; saved as jumprelu), relu or
            jumprelu (thresholds learnt for k latents a row on average).
        d_sae: number of latents.
        k: latents kept a row (topk), on average (batchtopk), or aimed at on average (jumprelu).
        l1: weight of the sparsity penalty Σ z_i‖W_dec,i‖ (relu).
        l0: weight of the sparsity penalty on L0/k − 1 (jumprelu).
        bandwidth: width of the window around a threshold that its gradient is estimated from (jumprelu), in units of √(d_in/k): the
            pre-activations of a row's latents if there were k of one size.
        rows: rows to train on in all, epochs counted. different_rows: how many of them are different ones; None: all.
        batch_size: rows a step.
        k_start: k at the beginning; None: k.
        k_anneal: share of the run over which k_start comes down to k.
        lr: peak learning rate of the encoder (and of Adam's decoder).
        warmup: share of the run over which the rate rises from zero; None: 5 %, at most 1000 steps.
        decay: share of the run over which the rate falls to zero at the end.
        encoder_steps: M of Algorithm 3.1: encoder steps on each batch before its codes enter the statistics.
        mu_enc, nu_enc: pull of W_enc and b_enc towards their values before the M steps.
        decoder_steps: pam only: whether the decoder takes gradient steps too, between solves.
        pursuit: weight λ of the pull towards better codes than the encoder's (train/pursuit.py); 0: none; None: PURSUIT for pursuit, and for pam with topk
            and decoder_steps, unless there are fewer different rows than latents and no jitter, else none.
        jitter: share of noise of the rows' own covariance in every training row (train/jitter.py), below 1; None: `auto_jitter`.
        alpha, beta, mu_dec, nu_dec: the decoder's penalties of Theorem C.1; anchors are the decoder's current values.
        ridge: relative ridge towards the present decoder, in units of the centred Gram matrix's mean diagonal; None: chosen on validation
            rows in the last solve.
        solve_every: steps between two solves; None: chosen from their cost, but see `alternates`.
        memory_rows: how many rows the statistics remember (an exponential window); None: chosen from d_sae.
        last_solve: whether the finished encoder's decoder is solved once more over all training rows.
        revive: what is done for dead latents: auxk (a loss by which they reconstruct what the live ones leave), resample (they begin anew
            towards rows with a large loss) or none.
        aux_coefficient: weight of AuxK.
        dead_after: rows without firing after which a latent counts as dead in training.
        memory: bytes that the statistics and their solves may take, in each process; None: half of the device's memory, which processes
            on one device share. Where the Gram matrix takes more, solves are by conjugate gradients over a plain window of
            `memory_rows` rows, no more than fit.
        precision: how the products x·W_enc and pursuit's of a training step are rounded (train/precision.py): float32, tf32 (GPUs), bfloat16; auto is tf32
            on a GPU and float32 on a CPU. Everything else is float32 or float64.
        seed: of initialisation and, where there is no `order_seed`, of the order of the rows.
        order_seed: of the order of the rows; None: `seed`. Runs that share their batches have it in common.
    """

    method: Method
    activation: Activation
    d_sae: int
    rows: int
    batch_size: int
    lr: float
    different_rows: int | None = None
    k: int | None = None
    k_start: int | None = None
    k_anneal: float = 0.2
    warmup: float | None = None
    decay: float = 1.0
    l1: float = 0.0
    l0: float = 3.0
    bandwidth: float = 0.2
    encoder_steps: int = 1
    mu_enc: float = 0.0
    nu_enc: float = 0.0
    decoder_steps: bool = True
    pursuit: float | None = None
    jitter: float | None = None
    alpha: float = 0.0
    beta: float = 0.0
    mu_dec: float = 0.0
    nu_dec: float = 0.0
    ridge: float | None = None
    solve_every: int | None = None
    memory_rows: int | None = None
    last_solve: bool = True
    revive: Revive = "auxk"
    aux_coefficient: float = 1 / 32
    dead_after: int = 50_000
    memory: int | None = None
    precision: Precision = "auto"
    seed: int = 0
    order_seed: int | None = None

    def __post_init__(self) -> None:
        if self.pursuit and self.activation != "topk":
            raise SplinterpError(f"--pursuit belongs to --activation topk; leave it out with {self.activation}.")
        if self.method not in get_args(Method):
            raise SplinterpError(f"--method {self.method} is unknown; choose one of {', '.join(get_args(Method))}.")
        if self.activation not in get_args(Activation):
            raise SplinterpError(f"--activation {self.activation} is unknown; choose one of {', '.join(get_args(Activation))}.")
        if self.precision not in get_args(Precision):
            raise SplinterpError(f"--precision {self.precision} is unknown; choose one of {', '.join(get_args(Precision))}.")
        if self.revive not in get_args(Revive):
            raise SplinterpError(f"--revive {self.revive} is unknown; choose one of {', '.join(get_args(Revive))}.")
        if self.method == "pursuit":
            self._check_pursuit()
        for name in ("d_sae", "rows", "batch_size", "encoder_steps", "dead_after"):
            if getattr(self, name) < 1:
                raise SplinterpError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.activation in WITH_K and (self.k is None or not 1 <= self.k <= self.d_sae):
            raise SplinterpError(
                f"k={self.k} must be between 1 and the number of latents, {self.d_sae}; lower --k or raise --latents."
            )
        if self.k_start is not None and self.activation not in WITH_K:
            raise SplinterpError(f"--k-start belongs to {', '.join(WITH_K)}; leave it out with --activation {self.activation}.")
        if self.k_start is not None and self.k is not None and not self.k <= self.k_start <= self.d_sae:
            raise SplinterpError(f"k_start={self.k_start} must be between k={self.k} and the number of latents, {self.d_sae}.")
        for name in ("k_anneal", "warmup", "decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SplinterpError(f"{name}={value} is a share of the run: it must be between 0 and 1.")
        for name in ("different_rows", "solve_every", "memory_rows", "memory"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise SplinterpError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.ridge is not None and not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise SplinterpError(f"ridge={self.ridge} must be zero or positive.")
        for name in ("lr", "l1", "l0", "bandwidth", "mu_enc", "nu_enc", "alpha", "beta", "mu_dec", "nu_dec", "aux_coefficient"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SplinterpError(f"{name}={value} must be zero or positive.")
        for name in ("seed", "order_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**63:
                raise SplinterpError(f"{name}={value} must be between 0 and 2^63 - 1.")
        if self.pursuit is not None and not (math.isfinite(self.pursuit) and self.pursuit >= 0):
            raise SplinterpError(f"pursuit={self.pursuit} must be zero or positive.")
        if self.jitter is not None and not 0 <= self.jitter < 1:
            raise SplinterpError(
                f"jitter={self.jitter} is the share of noise in a training row: it must be at least 0 and below 1."
            )
        if self.bandwidth == 0:
            raise SplinterpError(
                "bandwidth=0 would leave the thresholds where they are; give a positive --bandwidth or leave it out."
            )
        if self.encoder_steps == 1 and (self.mu_enc or self.nu_enc):
            raise SplinterpError(
                "--mu-enc and --nu-enc pull the encoder back over several steps on a batch: with one they do nothing; raise --encoder-steps."
            )
        if self.lr == 0:
            raise SplinterpError("lr=0 would train nothing; give a positive --lr or leave it out.")

    def _check_pursuit(self) -> None:
        if self.activation != "topk":
            raise SplinterpError(f"--method pursuit goes with --activation topk; leave out {self.activation}.")
        if self.last_solve:
            raise SplinterpError(
                "--last-solve would fit the decoder to the encoder's codes, and --method pursuit makes it for pursuit's; leave it out."
            )
        if self.pursuit == 0:
            raise SplinterpError(
                "--pursuit 0 leaves --method pursuit without its codes; give --method adam, or a positive --pursuit."
            )

    @property
    def pull(self) -> float:
        """The weight of pursuit that `pursuit` comes to: where nothing is said, none with fewer different rows than latents and no jitter. There
        better codes are only learnt by heart: of 600 rows for 1,536 latents the held-out FVU was 3 % higher with them (bench/RESULTS.md)."""
        if self.pursuit is not None:
            return self.pursuit
        ours = self.method == "pam" and self.activation == "topk" and self.decoder_steps
        return PURSUIT if self.method == "pursuit" or (ours and (self.one_pass >= self.d_sae or self.noise)) else 0.0

    @property
    def noise(self) -> float:
        """The share of noise that `jitter` comes to."""
        return auto_jitter(self.rows, self.one_pass, self.d_sae) if self.jitter is None else self.jitter

    @property
    def one_pass(self) -> int:
        """How many different rows the run has."""
        return self.rows if self.different_rows is None else self.different_rows

    @property
    def alternates(self) -> bool:
        """Whether the decoder is solved for on the way: in pursuit; in pam, where it takes no gradient steps, or where the solves'
        cadence or memory is given. Beside gradient steps they gained nothing, and cost up to 3 % on few rows (bench/RESULTS.md)."""
        as_it_comes = self.decoder_steps and self.solve_every is None and self.memory_rows is None
        return self.method == "pursuit" or (self.method == "pam" and not as_it_comes)

    @property
    def seed_of_order(self) -> int:
        """The seed of the order of the rows."""
        return self.seed if self.order_seed is None else self.order_seed

    @property
    def steps(self) -> int:
        """Training steps: the rows over the batch size, the last batch may be smaller."""
        return math.ceil(self.rows / self.batch_size)
