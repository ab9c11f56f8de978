"""What a recipe leaves to be read: one HTML page that needs nothing else, and the claims as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import figures
from .experiments import ARMS, TOLD
from .settings import DIFFERENCES

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1280px; margin: 2em auto; padding: 0 1em; }
h2 { margin-top: 2em; border-bottom: 1px solid #ddd; } h3 { margin: 1.4em 0 .3em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; } th, td { padding: .3em .7em; border-bottom: 1px solid #ddd; vertical-align: top; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
.note { background: #fff6e0; border-left: 4px solid #E69F00; padding: .5em 1em; } code { background: #f4f4f4; padding: .1em .3em; }
.yes { color: #00664d; font-weight: 600; } .weak { color: #8a5a00; font-weight: 600; } .no { color: #a33; font-weight: 600; } summary { cursor: pointer; }
"""
TITLES = {"mnist": "MNIST: PAM-SGD against SGD (E2)", "llm": "LLM activations: PAM-SGD against SGD (E3)"}
PAPER = "SplInterp (arXiv 2505.11836)"


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    title = TITLES[result["recipe"]]
    parts = [
        f"<h1>{title}</h1>", *_lead(result), "<h2>The paper's claims</h2>", _claims(result), "<h2>What the presets are</h2>", _differences()
    ]  # fmt: skip
    for activation, name in figures.ACTIVATION.items():
        parts.append(f"<h2>{name}</h2>")
        parts += _section("Over the epochs, all rows", figures.curves(result, activation), _table(result, activation, "base"))
        for experiment in ("sizes", "updates", "k", "weight-decay", "mu-nu"):
            told = f"{TOLD[experiment][0]}{_extent(result, activation, experiment)}"
            parts += _section(told, figures.swept(result, activation, experiment), _table(result, activation, experiment))
        if activation == "relu":
            parts += _section(TOLD["sparsity"][0], figures.sparsity(result), _table(result, "relu", "sparsity"))
        for preset, by in result["pictures"].items():
            drawn = figures.pictures(by.get(activation, {}), f"{preset}, {name}")
            parts += _section(f"Images, reconstructions and the filters of the busiest latents: {preset}", drawn, "")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def claims_table(result: Mapping[str, Any]) -> str:
    """The claims as Markdown: words, what each preset's figures say, verdict."""
    presets = result["presets"]
    lines = [f"| claim | {' | '.join(presets)} | verdict |", "|---|" + "---|" * (len(presets) + 1)]
    for claim in result["claims"]:
        told = [_told(claim["evidence"].get(preset)) for preset in presets]
        lines.append(f"| {claim['claim']} ({claim['where']}) | {' | '.join(told)} | **{claim['verdict']}** |")
    return "\n".join(lines)


def summary(result: Mapping[str, Any]) -> str:
    """A sentence on what was run."""
    s, data = result["settings"], result["data"]
    return (
        f"{TITLES[result['recipe']]}: {data['rows']:,} training rows of width {s['d_in']}, {s['d_sae']:,} latents, K={s['k']}, batches of "
        f"{s['batch_size']}, seeds {', '.join(map(str, result['seeds']))}; figures are of {data['test_rows']:,} test rows."
    )


def _lead(result: Mapping[str, Any]) -> list[str]:
    parts = [
        f"<p>The experiments of {PAPER}, under three presets: <b>paper</b>, its mathematics; <b>paper-code</b>, what its published code does; "
        "<b>strong</b>, the product's PAM-SGD and Algorithm 3.1 against our Adam and plain Adam, each at its best learning rate.</p>",
        f"<p>{escape(summary(result))} Made by <code>{escape(result['command'])}</code>.</p>",
        f"<p class=note>Rows: {escape(str(result['data']['source']))}; {escape(str(result['data']['split']))}.</p>",
    ]
    if result["left_out"]:
        parts.append(f"<p class=note><b>A quick run.</b> {escape(result['left_out'])}</p>")
    effort, factors = result["effort"], ", ".join(f"{f:g}" for f in result["effort"]["factors"])
    parts.append(
        f"<p>Strong trains each method for {effort['epochs']} epochs or {effort['steps']:,} steps, whichever is more; its rate is the best of {factors} times "
        f"the automatic (the paper's: its own) one by FVU on validation rows (first seed), and the grid grows while the best lies at its end, at most {effort['extensions']} "
        "times. Every method and size is tuned for itself.</p>"
    )
    return parts


def _claims(result: Mapping[str, Any]) -> str:
    presets = result["presets"]
    head = "".join(f"<th>{escape(text)}</th>" for text in ("claim", "where", *presets, "verdict"))
    rows = []
    for claim in result["claims"]:
        kind = "yes" if claim["verdict"] == "holds" else "no" if claim["verdict"].startswith("does") else "weak"
        cells = "".join(f"<td>{escape(_told(claim['evidence'].get(preset)))}</td>" for preset in presets)
        rows.append(
            f"<tr><td>{escape(claim['claim'])}</td><td>{escape(claim['where'])}</td>{cells}<td class={kind}>{escape(claim['verdict'])}</td></tr>"
        )
    return (
        f"<div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div><p>Ratios are of test errors, geometric means over the seeds: below 1 the "
        "first is better. ✓ and ✗ say whether the claim holds under a preset, by rules that look at the scatter over the seeds "
        "(papers/pam_sgd/claims.py). It <i>holds</i> if it does under strong.</p>"
    )


def _told(evidence: Mapping[str, Any] | None) -> str:
    return "–" if evidence is None else f"{'✓' if evidence['holds'] else '✗'} {evidence['told']}"


def _differences() -> str:
    head, *rows = DIFFERENCES
    cells = lambda row, tag: "".join(f"<{tag}>{escape(text)}</{tag}>" for text in row)  # noqa: E731
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return (
        f"<div class=wide><table><tr>{cells(head, 'th')}</tr>{body}</table></div>"
        "<p>In all of them solves are in float64 (the code's: float32), and Adam's moments decay by 0.9 and 0.999 (strong: 0.5 and 0.95). On a site "
        "narrower than the paper's, rows, latents, K and batches keep its proportions, and penalties of the encoder's loss their weight.</p>"
    )


def _section(heading: str, drawn: str | None, table: str) -> list[str]:
    if drawn is None and not table:
        return []
    return [f"<h3>{escape(heading)}</h3>", f"<p>{drawn}</p>" if drawn else "", table]


def _extent(result: Mapping[str, Any], activation: str, experiment: str) -> str:
    """How many rows and epochs, where all points have the same."""
    points = [p for of in result["results"].values() for p in of[activation].get(experiment, [])]
    rows, epochs = {p["rows"] for p in points}, {p["epochs"] for p in points if p["epochs"]}
    if experiment == "sizes" or len(rows) != 1:
        return ""
    return f" ({rows.pop():,} rows{f', {epochs.pop()} epochs' if len(epochs) == 1 else ''})"


def _table(result: Mapping[str, Any], activation: str, experiment: str) -> str:
    """Every figure of an experiment, folded away."""
    head = ("preset", "value", "rows", "epochs", "arm", "test error", "±", "FVU", "L0", "dead, %", "lr")
    lines: list[Sequence[str]] = [
        (
            preset, p["label"], f"{p['rows']:,}", str(p["epochs"] or "–"), ARMS[name], _number(arm["mean"]), _number(arm["sd"], 2), _mean(arm["fvu"]),
            _mean(arm["l0"]), _mean(arm["dead"], 100), f"{arm['lr']:.3g}" if "lr" in arm else "as published",
        )
        for preset, of in result["results"].items()
        for p in of[activation].get(experiment, [])
        for name, arm in p["arms"].items()
    ]  # fmt: skip
    if not lines:
        return ""
    cells = lambda line: "".join(  # noqa: E731
        f"<td{' class=n' if i not in (0, 4) else ''}>{escape(text)}</td>" for i, text in enumerate(line)
    )
    rows = "".join(f"<tr>{cells(line)}</tr>" for line in lines)
    return f"<details><summary>figures</summary><div class=wide><table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{rows}</table></div></details>"


def _number(value: float | None, digits: int = 4) -> str:
    return "no number" if value is None else f"{value:.{digits}g}"


def _mean(values: Sequence[float | None], factor: float = 1.0) -> str:
    there = [value for value in values if value is not None]
    return _number(factor * sum(there) / len(there)) if len(there) == len(values) and there else "no number"
