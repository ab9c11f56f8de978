"""Tables and plans in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..quantities import counted, format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from ..harvest import HarvestConfig, Plan, Probe
    from ..train import Member, MemberResult, TrainConfig


def print_plan(console: Console, plan: Plan) -> None:
    """What a harvest will do: rows, bytes, sites, where it goes."""
    rows = f"packed into rows of {plan.config.context} tokens"
    if plan.config.packing == "document":
        rows = f"one document a row, cut off at {plan.config.context} tokens"
    console.print(
        f"Harvest {plan.checkpoint.name} ({plan.facts.architecture}, {str(plan.model_dtype).removeprefix('torch.')} on {plan.device}) "
        f"at {', '.join(f'{site} (width {width})' for site, width in plan.sites.items())}\n"
        f"  text {plan.text.name}, {rows}, {counted(plan.batch_size, 'row')} a forward pass{_chosen(plan.config)}\n"
        f"  {counted(plan.rows, 'row')} a site in {plan.config.dtype}, at most {format_bytes(plan.bytes)} in chunks of "
        f"{counted(plan.chunk_rows, 'row')} -> {plan.config.out}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _chosen(config: HarvestConfig) -> str:
    """A line on which rows are stored, where not all are."""
    chosen = [
        *([f"positions {config.positions}"] if config.positions else []),
        *([f"one in {config.every:,}"] if config.every > 1 else []),
        *([f"none above {config.drop_outliers:g} times the median norm"] if config.drop_outliers else []),
    ]
    return f"\n  of its tokens {', '.join(chosen)}" if chosen else ""


def print_probe(console: Console, plan: Plan, found: Probe) -> None:
    """What a harvest will take: time at the rate seen, and whether the disk has room."""
    several = f" a process ({plan.ranks.world} of them)" if plan.ranks.several else ""
    console.print(
        f"  {format_count(found.tokens_per_s)} rows/s{several} in the forward pass: about {format_seconds(found.seconds)}, and longer where "
        "text or disk are slower; nothing was written",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    if found.free is not None:
        lacks = found.free < plan.bytes
        console.print(
            f"  {format_bytes(found.free)} free on the disk" + (", which is too little" if lacks else ""),
            style="red" if lacks else None, markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def harvest_figures(figures: dict[str, Any]) -> str:
    """What stands beside a harvest's progress bar: what was written, and where the time goes."""
    return f"{format_bytes(figures['bytes_written'])}  {_shares(figures)}"


def harvest_speed(figures: dict[str, Any]) -> str:
    """What is said of a harvest's speed when it is over."""
    return f"{figures['tokens_per_s']:,.0f} tokens/s; time in: {_shares(figures)}"


def _shares(figures: dict[str, Any]) -> str:
    return "  ".join(f"{name.removesuffix('_share')} {value:.0%}" for name, value in figures.items() if name.endswith("_share"))


def print_info(console: Console, facts: dict[str, Any]) -> None:
    """What `info` tells of a store."""
    line = f"{facts['path']}: {facts['status']}, {counted(facts['rows'], 'row')}, {format_bytes(facts['bytes'])}"
    if kept := facts.get("rows_kept_for_resume"):
        line += f", beside {counted(kept, 'row')} kept for a resume"
    console.print(line, markup=False, soft_wrap=True)
    sites = Table()
    for name in ("site", "rows", "d", "dtype", "mean norm"):
        sites.add_column(name, justify="left" if name in ("site", "dtype") else "right")
    for site in facts["sites"]:
        sites.add_row(site["name"], f"{site['rows']:,}", str(site["d"]), site["dtype"], f"{site['mean_norm']:.4g}")
    print_whole(console, sites)
    for site in facts["sites"]:
        if site["median_norm"] is not None:  # unknown in older stores
            console.print(
                f"  {site['name']}: median norm {site['median_norm']:.3g}, {counted(site['outliers'], 'row')} ({site['outlier_share']:.2%}) "
                "above 10 times that",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
    rest = {
        k: v
        for k, v in facts.items()
        if k not in ("path", "status", "rows", "bytes", "sites", "versions", "rows_kept_for_resume") and v is not None
    }
    for name, value in rest.items():
        told = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        console.print(f"  {name}: {told}", markup=False, highlight=False, soft_wrap=True)


def print_train_plan(
    console: Console,
    config: TrainConfig,
    members: Sequence[Member],
    site: str,
    d_in: int,
    rows: int,
    out: Path,
    processes: int = 1,
) -> None:
    """What a training run, or a sweep of `members`, will do on a site with so many training rows, and where it goes."""
    c = config
    each = [member.config.d_sae for member in members] or [c.d_sae]
    kept = f"{format_bytes(4 * sum(2 * d_in * d_sae + d_sae + d_in for d_sae in each))} of weights -> {out}"
    stream = f"{counted(c.rows, 'row', format_count)} ({counted(c.rows / rows, 'epoch')}), {counted(c.steps, 'step')} of {c.batch_size}"
    if members:
        from ..train.axes import axes_of

        told = " × ".join(f"{name}={','.join(values)}" for name, values in axes_of(members).items())
        line = f"Sweep of {told}: {counted(len(members), 'SAE')} on {site}, together: {stream}, {kept}"
    else:
        sparsity = f"l1={c.l1:g}" if c.k is None else f"k={c.k}"
        line = f"{c.method} on {site}: {stream}, {counted(c.d_sae, 'latent')}, {sparsity}, lr {c.lr:.2g}, seed {c.seed}"
        line += f", jitter {c.noise:.2g}" if c.noise else ""
        line += f", {processes} processes, {kept}" if processes > 1 else f", {kept}"
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_sweep(console: Console, results: Sequence[MemberResult]) -> None:
    """The SAEs of a sweep, a line each: what sets it apart, and its figures on held-out rows; the lowest FVU is marked. Then those that
    diverged."""
    summaries = [result.summary for result in results if result.summary]
    best, n = min(summary["fvu"] for summary in summaries), summaries[0]["n_rows"]
    table = Table(title=f"On {counted(n, 'held-out row')} (dead: fired on none of them)", title_justify="left")
    for name in (*results[0].member.values, "FVU", "as trained", "L0", "dead", "train", "solve", ""):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for result in results:
        own, s = result.member.values.values(), result.summary
        if s is None:
            table.add_row(*own, "–", "–", "–", "–", "–", "–", "diverged", style="red")
            continue
        before, solve = s["before_last_solve"], s["seconds"].get("last_solve")
        table.add_row(
            *own, _fvu(s), _fvu(before or s), f"{s['l0']:.1f}", f"{s['dead_fraction']:.1%}",
            format_seconds(s["seconds"]["train"]), format_seconds(solve) if solve is not None else "–", "best" if s["fvu"] == best else "",
            style="bold" if s["fvu"] == best else None,
        )  # fmt: skip
    print_whole(console, table)
    for result in results:
        if result.diverged is not None:
            told = f"{result.member.name} diverged by step {result.diverged:,}."
            console.print(told, style="red", markup=False, highlight=False, soft_wrap=True)


def print_results(console: Console, summaries: dict[str, dict[str, Any]]) -> None:
    """Runs side by side: FVU, L0, dead share on held-out rows, and how long they took."""
    n = next(iter(summaries.values()))["n_rows"]
    table = Table(title=f"On {counted(n, 'held-out row')} (dead: fired on none of them)", title_justify="left")
    for name in ("method", "FVU", "L0", "dead", "rows", "rows/s", "train", "solve"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    for name, s in summaries.items():
        solve = s["seconds"].get("last_solve")
        table.add_row(
            name, _fvu(s), f"{s['l0']:.1f}", f"{s['dead_fraction']:.1%}", format_count(s["rows_trained"]),
            format_count(s["rows_per_second"]), format_seconds(s["seconds"]["train"]), format_seconds(solve) if solve is not None else "–",
        )  # fmt: skip
    print_whole(console, table)
    for name, s in summaries.items():
        if by := s.get("pursuit"):
            native = _fvu({"fvu": by["native_fvu"]})
            told = f"{name}: on {counted(by['n_rows'], 'held-out row')} FVU {_fvu(by)} by {by['encoder']} at L0 {by['l0']:.1f}, {native} by the encoder."
            console.print(told, markup=False, highlight=False, soft_wrap=True)


def _fvu(figures: Mapping[str, Any]) -> str:
    """The FVU in at most eight characters, also where it is nowhere near 1."""
    fvu = figures["fvu"]
    return f"{fvu:.4f}" if fvu < 100 else f"{fvu:.2e}"


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as it is: the lines of one that is wider than the terminal run over, where rich would cut figures off."""
    table.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.print(table, crop=False)


def print_refit(console: Console, out: Path, s: dict[str, Any]) -> None:
    """What a refit came to."""
    before, solved = s["before_refit"]["fvu"], s["solved"]["fvu"]
    ratio = f"{solved / before - 1:+.1%}" if 0 < before < math.inf else "–"
    came = f"FVU on {counted(s['n_rows'], 'held-out row')}: {before:.4f} -> {solved:.4f} ({ratio})"
    kept = "; the decoder stays as it was" if s["kept"] else ""
    ridge = "without end" if s["last_solve"]["ridge"] is None else f"{s['last_solve']['ridge']:g}"
    console.print(
        f"{came}{kept}; ridge {ridge}, {format_seconds(s['seconds'])} -> {out}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def print_figures(console: Console, figures: dict[str, Any]) -> None:
    """One evaluation, a line a figure."""
    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, _figure(value))
    print_whole(console, table)


def _figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
