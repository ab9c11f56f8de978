"""The demo: harvest the embedded model, train an SAE with PAM-SGD and one with Adam, compare them, look at some latents."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import store as stores
from .devices import choose_device, suitable_threads
from .errors import Interrupted, SplinterpError
from .harvest import HarvestConfig, harvest, plan
from .progress import Bar, shown
from .quantities import format_count
from .report import accumulate, print_contexts, top_contexts, write_report
from .report.tables import harvest_figures, print_plan, print_results
from .store.check import load
from .store.create import is_free
from .train import TrainConfig, auto_batch_size, auto_lr, train

TOKENS, LAYER, LATENTS, K = 500_000, 2, 1536, 32


def run_demo(out: Path, console: Console) -> None:
    """Harvest (or reuse the store that an earlier demo left in `out`), train twice, and print what came of it."""
    out.mkdir(parents=True, exist_ok=True)
    times: dict[str, tuple[float, int]] = {}

    started = time.monotonic()
    store, harvested = embedded_store(out / "acts.zarr", TOKENS, console)
    if harvested:
        times["harvest"] = (time.monotonic() - started, harvested)

    site = store.site(None).name
    rows = store.split_rows("train")
    batch = auto_batch_size(rows)
    config = TrainConfig(
        method="pam", activation="topk", d_sae=LATENTS, k=K, rows=rows, batch_size=batch, lr=auto_lr(store.site(None).d)
    )
    console.print(
        f"\nTraining on {rows:,} rows, one pass, {LATENTS:,} latents, k={K}, batches of {batch}, lr {config.lr:g}; "
        f"{store.split_rows('held_out'):,} rows are held out, {store.split_rows('validation'):,} are to choose settings by.",
        highlight=False,
    )  # fmt: skip
    summaries: dict[str, dict[str, Any]] = {}
    results = {}
    for name, method in (("PAM-SGD", "pam"), ("Adam", "adam")):
        directory = out / f"run-{method}"
        one = replace(config, method=method)
        started = time.monotonic()
        with Bar(name, rows) as bar:

            def report(stage: str, done: int, total: int, figures: dict[str, float], name: str = name, bar: Bar = bar) -> None:
                bar.update(done, shown(figures), description=f"{name}: {stage}", total=total)

            try:
                results[name] = train(store, site, one, directory, choose_device("auto"), report, force=True)
            except Interrupted:
                raise Interrupted(f"The demo was stopped; the next one uses {store.path} again, and trains anew.") from None
        times[name] = (time.monotonic() - started, rows)
        summaries[name] = results[name].summary
    adam = summaries.pop("Adam")  # its own figures are those before the solve that our method adds
    alone = {**adam, **adam["before_last_solve"], "seconds": {"train": adam["seconds"]["train"]}}
    summaries |= {"Adam": alone, "Adam + last solve": adam}

    started = time.monotonic()
    sae, page = results["PAM-SGD"].sae, out / "report.html"
    with Bar("latents", store.rows) as bar, suitable_threads(sae.W_enc.numel(), sae.W_enc.device):
        statistics = accumulate(sae, store, site, progress=bar.update)
        latents = top_contexts(sae, store, site, statistics=statistics)
        write_report(
            out / "run-pam", store, page, baselines=[out / "run-adam"], statistics=statistics, force=True,
            progress=lambda stage, done, total: bar.update(done, description=f"report: {stage}", total=total),
        )  # fmt: skip
    times["latents and report"] = (time.monotonic() - started, store.rows)
    print_contexts(console, latents)
    print_results(console, summaries)
    stages = Table(title="Time")
    for heading in ("stage", "seconds", "tokens/s"):
        stages.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, (seconds, n) in times.items():
        stages.add_row(name, f"{seconds:.1f}", format_count(n / seconds))
    console.print(stages)
    console.print(
        f"\nThe store is {out / 'acts.zarr'}, the runs {out / 'run-pam'} and {out / 'run-adam'} (SAELens loads them as they are).\n"
        f"The report, for any browser: {page}\n"
        f"Next: splinterp train --store {out / 'acts.zarr'} --k 16",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def embedded_store(path: Path, tokens: int, console: Console) -> tuple[stores.Store, int]:
    """The embedded model's activations at `path`, harvested now or found whole; and how many rows were harvested now.

    Raises:
        SplinterpError: another store is there.
    """
    config = HarvestConfig(layers=(LAYER,), tokens=tokens, out=path, resume=path.exists())
    if not is_free(path):
        told = load(path).attributes  # one that was interrupted may have no rows in chunks yet
        if (told.get("model"), told.get("dataset")) != (config.model, *config.datasets) or tuple(told["sites"]) != config.sites:
            raise SplinterpError(f"{path} is another store than this makes there; give another --out.")
        if told["status"] == "complete":
            found = stores.open(path)
            console.print(f"The store that is there is used again: {path}, {found.rows:,} rows.", highlight=False)
            return found, 0
        console.print(f"An interrupted harvest is resumed: {path}.", highlight=False)
    planned = plan(config)
    print_plan(console, planned)
    try:
        with Bar("harvest", tokens, unit="tokens") as bar:
            made = harvest(config, lambda done, figures: bar.update(done, harvest_figures(figures)), planned=planned)
    except Interrupted:
        raise Interrupted(f"Interrupted; {path} keeps what was harvested. The same command goes on.") from None
    if made is None:
        raise SplinterpError("This runs in one process; start it without torchrun.")
    return made, tokens
