"""Harvesting against the bare forward pass to the same layer, and the way to the disk against raw file writing.

    splinterp bench harvest --architecture gpt2 --layer 6 --context 128 --tokens 32k --rounds 3
    splinterp bench harvest --architecture gemma-2-2b --layer 12 --context 1024 --tokens 1M --device cuda --model-dtype bfloat16

Every contender forwards the same packed rows of the standard library's text through the same weights, BOS rows included, once a
round and in an order drawn anew each round; ratios are taken within a round. Loading models is not timed; ours reads, tokenises and packs
its text within its time, and ends with a finished, verified-as-written store, while SAELens is given token ids.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..devices import choose_device, suitable_threads
from ..errors import SplinterpError
from ..harvest import HarvestConfig, Plan, harvest, plan
from ..harvest.fill import Progress
from ..harvest.forward import SiteReader
from ..harvest.run import load_reader, token_batches
from ..harvest.tokens import load_tokenizer, special_tokens
from .architectures import cut, make_directory
from .contest import compare, measure
from .free import FREE_STEPS, measure_free

BARE, LENS, FORWARD = "Hugging Face, truncated", "TransformerLens", "ours, forward alone"
OURS, TWO, SAELENS = "ours, stored", "ours, two sites, stored", "SAELens runner"


@dataclass(frozen=True, kw_only=True)
class HarvestBench:
    """What to measure.

    Raises:
        SplinterpError: a value that cannot be.
    """

    architecture: str = "gpt2"
    """Random weights of this architecture, where no model is named."""
    model: str | None = None
    """A Hugging Face directory."""
    layer: int = 6
    context: int = 128
    tokens: int = 32768
    """Tokens that each contender forwards in a round; rounded up to whole batches."""
    free_tokens: int = 1_000_000
    """Rows that go to the disk in a round where the forward pass is free. 0: none of that."""
    batch_size: int | None = None
    """Packed rows a forward pass. None: as `splinterp harvest` chooses."""
    model_dtype: str = "auto"
    compile: bool = False
    device: str = "auto"
    rounds: int = 3
    folder: Path | None = None
    """On the disk to be measured. None: the system's temporary folder."""

    def __post_init__(self) -> None:
        for what, value in (("number of rounds", self.rounds), ("layer", self.layer), ("number of tokens", self.tokens)):
            if value < 1:
                raise SplinterpError(f"The {what} must be at least 1, not {value}.")
        if self.free_tokens < 0:
            raise SplinterpError(f"The number of tokens must not be negative, but it is {self.free_tokens}.")
        if self.folder is not None and not self.folder.is_dir():
            raise SplinterpError(f"{self.folder} is no folder; name one on the disk to be measured.")

    @property
    def steps(self) -> int:
        """Contenders' runs in all."""
        saelens = find_spec("sae_lens") is not None
        return self.rounds * (5 + saelens + (FREE_STEPS + saelens if self.free_tokens else 0))


def run(config: HarvestBench, progress: Callable[[], None] | None = None) -> dict[str, Any]:
    """What was measured: `tokens_per_s`, `ratios` by table and contender, `shares` of ours; see `table`.

    `progress` is called after each contender's run. SAELens takes part where it is installed.

    Raises:
        SplinterpError: no such model, layer or device, or the disk is full.
    """
    folder = Path(tempfile.mkdtemp(prefix="splinterp-bench-", dir=config.folder))
    step = progress or (lambda: None)
    try:
        result = _measure_model(config, folder, step)
        if config.free_tokens:
            result = _joined(result, measure_free(config.free_tokens, config.context, config.rounds, folder / "free", step))
        return result
    finally:
        shutil.rmtree(folder)


def _measure_model(config: HarvestBench, folder: Path, progress: Callable[[], None]) -> dict[str, Any]:
    device = choose_device(config.device)
    dtype = {"auto": torch.float32 if device.type == "cpu" else torch.bfloat16}.get(config.model_dtype)
    model = config.model
    if model is None:
        made = dtype or getattr(torch, config.model_dtype)
        model = str(make_directory(config.architecture, config.layer + 1, made, folder / config.architecture))
    one, two = (
        plan(
            HarvestConfig(
                model=model, layers=layers, tokens=config.tokens, context=config.context, batch_size=config.batch_size,
                keep_bos=True, dataset="stdlib", model_dtype=config.model_dtype, compile=config.compile, device=config.device,
                out=folder / f"{len(layers)}.zarr", force=True,
            )
        )
        for layers in ((config.layer,), (config.layer - 1, config.layer))
    )  # fmt: skip
    tokenizer = load_tokenizer(one.checkpoint.name, one.checkpoint.path, **one.checkpoint.options)
    ids = _ids(one, tokenizer)
    readers = [load_reader(todo, tokenizer) for todo in (one, two)]
    bare, lens = _bare(one), _lens(one, tokenizer)
    shares: dict[str, float] = {}

    def note(_: int, figures: dict[str, Any]) -> None:
        shares.update({name: value for name, value in figures.items() if name.endswith("_share")})

    contenders: dict[str, Callable[[], None]] = {
        BARE: lambda: _forward(ids, one, lambda batch: bare(batch.to(one.device), use_cache=False)),
        LENS: lambda: _read(ids, one, lens),
        FORWARD: lambda: _read(ids, one, readers[0]),
        OURS: lambda: _store(one, readers[0], note),
        TWO: lambda: _store(two, readers[1], None),
    }
    if find_spec("sae_lens") is not None:
        from .saelens import runner

        caching = runner(one, ids, folder / "saelens")
        contenders[SAELENS] = caching.run

    def fresh(_: str) -> None:
        shutil.rmtree(folder / "saelens", ignore_errors=True)

    with suitable_threads(4 * one.facts.d_model**2, one.device):
        # Once for nothing: compiled code, tuned kernels and lent memory are there when the clock starts.
        for warm_up in (contenders[BARE], contenders[LENS], contenders[FORWARD]):
            warm_up()
        seconds = measure(contenders, config.rounds, fresh, progress)
    tokens = ids.numel()
    return {
        "model": config.model or f"{config.architecture} with random weights",
        "device": torch.cuda.get_device_name(one.device) if one.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "model_dtype": str(one.model_dtype).removeprefix("torch."),
        "layer": config.layer,
        "context": config.context,
        "batch_size": one.batch_size,
        "tokens": tokens,
        "rounds": config.rounds,
        "compile": config.compile,
        "device_memory": torch.cuda.max_memory_allocated(one.device) if one.device.type == "cuda" else None,
        "shares": shares,
        "tokens_per_s": {"forward": {name: tokens / statistics.median(times) for name, times in seconds.items()}},
        "ratios": {
            "of the bare forward": compare(seconds, BARE),
            "of TransformerLens": compare(seconds, LENS),
            "of one site": compare({name: seconds[name] for name in (OURS, TWO)}, OURS),
        },
    }  # fmt: skip


def _ids(todo: Plan, tokenizer: Any) -> torch.Tensor:
    """The first packed rows of the planned text that hold the planned tokens, in whole batches' worth: [rows, context] int64."""
    bos, separator = special_tokens(todo.checkpoint.name, tokenizer, todo.config.separator)
    rows: list[np.ndarray] = []
    for batch in token_batches(todo, tokenizer, bos, separator, ()):
        rows.append(batch.ids)
        if sum(part.size for part in rows) >= todo.rows:
            break
    return torch.from_numpy(np.concatenate(rows))


def _bare(todo: Plan) -> Any:
    """The truncated model itself, with transformers' own choice of attention."""
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(
        todo.checkpoint.path, config=cut(todo.model_config, todo.blocks), dtype=todo.model_dtype, local_files_only=True
    )
    return model.to(todo.device).eval()


def _lens(todo: Plan, tokenizer: Any) -> SiteReader:
    """A bridge as TransformerLens makes it, with one hook and no more to do."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        todo.checkpoint.path, config=cut(todo.model_config, todo.blocks), dtype=todo.model_dtype,
        attn_implementation="eager", local_files_only=True,
    )  # fmt: skip
    bridge = TransformerBridge.boot_transformers(
        todo.checkpoint.path, hf_model=model.to(todo.device).eval(), tokenizer=tokenizer, device=str(todo.device),
        dtype=todo.model_dtype,
    )  # fmt: skip
    return SiteReader(bridge, list(todo.sites), name=todo.checkpoint.name, dtype=todo.model_dtype, batch_size=todo.batch_size)


def _store(todo: Plan, reader: SiteReader, progress: Progress | None) -> None:
    harvest(todo.config, progress, planned=todo, reader=reader)


def _read(ids: torch.Tensor, todo: Plan, reader: SiteReader) -> None:
    _forward(ids, todo, lambda batch: reader.read(batch.numpy(), np.ones(batch.shape, bool)))


@torch.inference_mode()
def _forward(ids: torch.Tensor, todo: Plan, forward: Callable[[torch.Tensor], Any]) -> None:
    for batch in ids.split(todo.batch_size):
        forward(batch)
    if todo.device.type == "cuda":
        torch.cuda.synchronize(todo.device)


def _joined(result: dict[str, Any], free: dict[str, Any]) -> dict[str, Any]:
    return {
        **result,
        "free_tokens": free["tokens"],
        "free_d": free["d"],
        "free_shares": free["shares"],
        "tokens_per_s": result["tokens_per_s"] | free["tokens_per_s"],
        "ratios": result["ratios"] | free["ratios"],
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: a line a contender, its speed, and its share of each limit with the smallest and largest over the rounds."""
    shares = ", ".join(f"{name.removesuffix('_share')} {100 * share:.1f} %" for name, share in result["shares"].items())
    memory = f", {result['device_memory'] / 2**30:.1f} GiB of its memory at most" if result["device_memory"] else ""
    lines = [
        f"{result['model']}, layer {result['layer']}, context {result['context']}, {result['batch_size']} rows a pass, "
        f"{result['tokens']:,} tokens, {result['model_dtype']} on {result['device']}{memory}"
        f"{', compiled' if result['compile'] else ''}, {result['rounds']} rounds. Our time: {shares}.",
        "",
        "| | tokens/s | of the bare forward | of TransformerLens |",
        "|---|---|---|---|",
    ]
    bare, lens = (result["ratios"][title] for title in ("of the bare forward", "of TransformerLens"))
    speeds = result["tokens_per_s"]["forward"]
    lines += [f"| {name} | {speeds[name]:,.0f} | {_share(bare[name])} | {_share(lens[name])} |" for name in bare]
    lines += ["", f"Two sites run at {_share(result['ratios']['of one site'][TWO])} of one site's speed."]
    if "free_tokens" in result:
        lines += ["", *_free_lines(result)]
    return "\n".join(lines)


def _free_lines(result: dict[str, Any]) -> Iterator[str]:
    shares = ", ".join(f"{name.removesuffix('_share')} {100 * share:.0f} %" for name, share in result["free_shares"].items())
    yield f"A free forward pass: {result['free_tokens']:,} rows of {result['free_d']} in 2 bytes. Our time: {shares}."
    yield ""
    yield "| | tokens/s | of raw writing | of SAELens |"
    yield "|---|---|---|---|"
    raw, saelens = (result["ratios"].get(title) for title in ("of raw writing", "of SAELens writing"))
    for name, share in raw.items():
        beside = "" if saelens is None else _share(saelens[name])
        yield f"| {name} | {result['tokens_per_s']['free'][name]:,.0f} | {_share(share)} | {beside} |"


def _share(share: dict[str, float]) -> str:
    return f"{share['median']:.2f} ({share['low']:.2f}–{share['high']:.2f})"
