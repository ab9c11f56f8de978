"""The training step against the one dense product that it cannot avoid, a plain dense Adam step, and SAELens's trainer.

    splinterp bench train --rows 2048 --d-in 768 --latents 8192 --k 32

Every contender takes one step a round on the same random rows, in an order drawn anew each round; units are the time of the bare product
x·W_enc (torch.mm, float32) in the same round. The alternating step holds its statistics; the time of a solve, over the steps between two
solves, is added. No latent counts as dead. Random rows spread the codes evenly over the latents, which is the Gram matrix's worst case.

With a `precision` other than float32 the product at that precision, on operands rounded beforehand, is timed too: our steps' shares are of
that limit. TF32 is then open to plain Adam and SAELens as well. Where the Gram matrix does not fit the memory, PAM solves by conjugate
gradients here as it does in a run, over a window that has been filled. On a GPU torch's topk is timed beside ours.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from ..devices import choose_device
from ..errors import SplinterpError
from ..sae import SparseCodes
from ..train import TrainConfig
from ..train.adam import AdamBaseline
from ..train.budget import solves_by_cg
from ..train.config import Method, Precision
from ..train.gram import add_gram
from ..train.pam import PAM
from ..train.precision import Rounding, rounding, tensor_cores
from ..train.sparse import sparse_pass
from ..train.window import Window
from .contest import measure, threads_set

BARE, ROUNDED, SOLVE = "bare product", "rounded product", "solve"
# The contenders' names in the JSON object, and in the table.
NAMES = {
    "pam": "our PAM step as it comes: pursuit, no solves on the way",
    "alternating": "our PAM step with statistics and solves in it, no pursuit",
    "adam": "our Adam step",
    "gram": "the Gram matrix alone",
    "plain_adam": "plain dense Adam step (autograd)",
    "saelens": "SAELens TopK training step",
}
# Parts of the alternating step, timed on their own in the same rounds; each finds its input in a warmer or colder cache than within the step.
PRODUCT, TOP_K, GRADIENTS, ADAM, STATISTICS = "product", "top-k", "decoding and gradients", "Adam, unit norms", "statistics"
TORCH_TOP_K = "torch's topk"  # beside ours, on a GPU
BATCHES = 3  # of rows, taken in turn
# Of the products that the Gram matrix's contender adds to the statistics': they take their time and change nothing.
NEXT_TO_NOTHING = 1e-30


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """What to measure.

    Raises:
        SplinterpError: a value that cannot be.
    """

    rows: int = 2048
    """Rows a step."""
    d_in: int = 768
    latents: int = 8192
    k: int = 32
    rounds: int = 5
    threads: int | None = None
    """None: as many as torch takes."""
    device: str = "auto"
    precision: Precision = "auto"
    """Of the product in our steps; see `train.precision`."""
    memory: int | None = None
    """Bytes for the statistics; None: half of the device's."""

    def __post_init__(self) -> None:
        for what, value in (
            ("number of rows", self.rows),
            ("width of the rows", self.d_in),
            ("number of rounds", self.rounds),
            ("number of threads", self.threads),
        ):
            if value is not None and value < 1:
                raise SplinterpError(f"The {what} must be at least 1, not {value}.")
        self.train_config("pam")  # refuses the rest

    def train_config(self, method: Method, alternating: bool = False) -> TrainConfig:
        """Of a run without end in which no latent counts as dead."""
        return TrainConfig(
            method=method, activation="topk", d_sae=self.latents, k=self.k, rows=10**12, batch_size=self.rows, lr=1e-4, dead_after=10**12,
            precision=self.precision, memory=self.memory,
            **({"pursuit": 0.0, "memory_rows": 6 * self.latents} if alternating else {}),
        )  # fmt: skip

    @property
    def contenders(self) -> list[str]:
        """Who takes part."""
        device = choose_device(self.device)
        left_out = {
            "gram": solves_by_cg(self.train_config("pam"), device),
            "saelens": find_spec("sae_lens") is None,
            ROUNDED: rounding(self.precision, device) == "float32",
            TORCH_TOP_K: device.type != "cuda",
        }
        everyone = (BARE, ROUNDED, *NAMES, SOLVE, PRODUCT, TOP_K, TORCH_TOP_K, GRADIENTS, ADAM, STATISTICS)
        return [name for name in everyone if not left_out.get(name)]

    @property
    def steps(self) -> int:
        """Contenders' runs in all."""
        return self.rounds * len(self.contenders)


def run(config: TrainBench, progress: Callable[[], None] | None = None) -> dict[str, Any]:
    """What was measured: `unit_seconds`, `units` by contender, `parts` of the PAM step and `solve_every`; see `table`.

    `shares` are the product's time at the `precision`, over our steps' time. `progress` is called after each contender's run. SAELens takes
    part where it is installed, and the Gram matrix where it fits; else their units are None.
    """
    device = choose_device(config.device)
    with threads_set(config.threads):
        contenders, solve_every = _contenders(config, device)
        synchronise: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

        def timed(contender: Callable[[], object]) -> Callable[[], None]:
            def run_once() -> None:
                contender()
                synchronise()

            return run_once

        with torch.no_grad():
            for name, contender in contenders.items():  # memory is lent and code is tuned when the clock starts
                if name != SOLVE:
                    contender()
            seconds = measure(
                {n: timed(c) for n, c in contenders.items()}, config.rounds, lambda _: synchronise(), progress or (lambda: None)
            )
        threads = torch.get_num_threads()
    seconds["alternating"] = [
        step + solve / solve_every for step, solve in zip(seconds["alternating"], seconds[SOLVE], strict=True)
    ]
    units = {name: [t / bare for t, bare in zip(times, seconds[BARE], strict=True)] for name, times in seconds.items()}
    median = {name: statistics.median(times) for name, times in units.items()}
    limit = seconds.get(ROUNDED, seconds[BARE])
    shares = {
        name: statistics.median(p / t for p, t in zip(limit, seconds[name], strict=True))
        for name in ("pam", "alternating", "adam")
    }
    parts = {name: median[name] for name in (PRODUCT, TOP_K, GRADIENTS, ADAM, STATISTICS)}
    return {
        "shape": {"rows": config.rows, "d_in": config.d_in, "latents": config.latents, "k": config.k},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} CPU threads",
        "precision": rounding(config.precision, device),
        "rounds": config.rounds,
        "unit_seconds": statistics.median(seconds[BARE]),
        "solve_every": solve_every,
        "solve_units": median[SOLVE],
        "units": {name: median.get(name) for name in NAMES},
        "ranges": {name: [min(units[name]), max(units[name])] for name in NAMES if name in units},
        "parts": parts | {"solves": median[SOLVE] / solve_every},
        "product_units": median.get(ROUNDED, 1.0),
        "shares": shares,
        "torch_topk_units": median.get(TORCH_TOP_K),
    }


def _contenders(config: TrainBench, device: torch.device) -> tuple[dict[str, Callable[[], object]], int]:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(config.rows, config.d_in, generator=generator).to(device) for _ in range(BATCHES)]
    turn = cycle(batches)
    pursuing = PAM(config.d_in, config.train_config("pam"), device)
    pam = PAM(config.d_in, config.train_config("pam", alternating=True), device)
    solve_every, pam.solve_every = pam.solve_every, 10**12  # solves are timed on their own
    adam = AdamBaseline(config.d_in, config.train_config("adam"), device)
    x, w, lr = batches[0], pam.weights, 1e-4
    W_enc = w.W_enc.detach().clone(memory_format=torch.contiguous_format)
    figures = pam.step(x, lr)
    codes, pre = figures.codes, w.pre_activations(x).detach()
    assert isinstance(codes, SparseCodes)
    assert figures.pattern is not None
    pattern, pam_statistics = figures.pattern, pam.statistics
    if isinstance(pam_statistics, Window):
        for _ in range(pam_statistics.capacity // config.rows):
            more = torch.randn(config.rows, config.d_in, generator=generator).to(device)
            some = w.encode(more)
            assert isinstance(some, SparseCodes)
            pam_statistics.add(more, some)
    rounded = rounding(config.precision, device)
    with_tensor_cores = lambda: nullcontext() if rounded == "float32" else tensor_cores(True)  # noqa: E731
    plain = _plain_adam(config, device)

    def theirs(step: Callable[[Tensor], object]) -> object:
        with with_tensor_cores():
            return step(next(turn))

    contenders: dict[str, Callable[[], object]] = {
        BARE: lambda: torch.mm(x, W_enc),
        ROUNDED: _rounded_product(x, W_enc, rounded),
        "pam": lambda: pursuing.step(next(turn), lr),
        "alternating": lambda: pam.step(next(turn), lr),
        "adam": lambda: adam.step(next(turn), lr),
        "plain_adam": lambda: theirs(plain),
        SOLVE: lambda: pam.take(pam.solve()),
        PRODUCT: lambda: w.pre_activations(x, out=pre),
        TOP_K: lambda: w.activate(pre),
        TORCH_TOP_K: lambda: pre.topk(config.k, dim=1, sorted=False),
        GRADIENTS: lambda: sparse_pass(x, codes, w.W_dec, w.b_dec, moment=pam.gradient.moment),
        ADAM: pam.gradient.update,
    }
    if isinstance(pam_statistics, Window):
        contenders[STATISTICS] = lambda: pam_statistics.add(x, codes)
    elif pam_statistics:
        gram = pam_statistics.gram
        contenders["gram"] = lambda: add_gram(gram, codes, pattern, NEXT_TO_NOTHING)
        contenders[STATISTICS] = lambda: pam_statistics.add(x, codes, pattern, figures.cross)
    if find_spec("sae_lens") is not None:
        from .saelens import training_step

        saelens = training_step(config.d_in, config.latents, config.k, config.rows, device)
        contenders["saelens"] = lambda: theirs(saelens)
    return {name: contenders[name] for name in config.contenders}, solve_every


def _rounded_product(x: Tensor, W_enc: Tensor, rounded: Rounding) -> Callable[[], object]:
    """The product at a precision and nothing else: bfloat16 operands are there already, and on a GPU no bias is added."""
    if rounded != "bfloat16":

        def product() -> Tensor:
            with tensor_cores(rounded == "tf32"):
                return torch.mm(x, W_enc)

        return product
    a, b = x.bfloat16(), W_enc.bfloat16()
    if x.is_cuda:
        return lambda: torch.mm(a, b, out_dtype=torch.float32)
    a, b = a.float(), b.float()  # as a CPU has it
    return lambda: torch.mm(a, b)


def _plain_adam(config: TrainBench, device: torch.device) -> Callable[[Tensor], None]:
    """A TopK SAE as one writes it down: dense codes, autograd, torch's Adam as it comes."""
    W_dec = torch.nn.functional.normalize(torch.randn(config.latents, config.d_in), dim=1).to(device)
    W_enc = W_dec.T.clone(memory_format=torch.contiguous_format)
    b_enc, b_dec = torch.zeros(config.latents, device=device), torch.zeros(config.d_in, device=device)
    weights = [t.requires_grad_() for t in (W_enc, b_enc, W_dec, b_dec)]
    optimizer = torch.optim.Adam(weights, lr=1e-4)

    @torch.enable_grad()
    def step(x: Tensor) -> None:
        pre = x @ W_enc + b_enc
        values, indices = pre.topk(config.k, dim=1)
        codes = torch.zeros_like(pre).scatter(1, indices, values.relu())
        loss = (codes @ W_dec + b_dec - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def table(result: dict[str, Any]) -> str:
    """Markdown: a line a contender, its time in units of the bare product, and how many of our PAM steps it takes; then our time's parts."""
    s, units = result["shape"], result["units"]
    lines = [
        f"{s['rows']:,} rows a step, d_in {s['d_in']:,}, {s['latents']:,} latents, k={s['k']}, {result['device']}, {result['rounds']} rounds. "
        f"The unit, the bare product x·W_enc, takes {1000 * result['unit_seconds']:.4g} ms; a solve takes {result['solve_units']:.1f} units, "
        f"one in {result['solve_every']} steps.",
        "",
        "| | units | PAM steps |",
        "|---|---|---|",
    ]
    for name, told in NAMES.items():
        if units[name] is not None:
            low, high = result["ranges"][name]
            lines.append(f"| {told} | {units[name]:.2f} ({low:.2f}–{high:.2f}) | {units[name] / units['pam']:.2f} |")
    parts = ", ".join(f"{name} {value:.2f}" for name, value in result["parts"].items())
    gram = "; the Gram matrix is in the statistics" if units["gram"] is not None else ""
    lines += ["", f"The alternating step's parts, each on its own, in units: {parts}{gram}."]
    shares = ", ".join(f"{name} {value:.2f}" for name, value in result["shares"].items())
    lines += [
        "",
        f"The product in {result['precision']} takes {result['product_units']:.2f} units; its share of our steps' time: {shares}.",
    ]
    if result["torch_topk_units"] is not None:
        lines += [f"torch's own topk would take {result['torch_topk_units']:.2f} units."]
    return "\n".join(lines)
