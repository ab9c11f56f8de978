"""One latent as a card of the report's page."""

from __future__ import annotations

from collections.abc import Container
from html import escape

from ..quantities import counted
from .charts import spark
from .latents import ContextSeen, Group, LatentSeen
from .pieces import visible
from .tokens import Effects

SHADES = 9
AT_ONCE = 8  # contexts that are seen without a click
GAP = "⋮"


def card(one: LatentSeen, shown: Container[int]) -> str:
    """An <article>; what the script sorts by is in its data attributes. `shown`: the latents that are on the page, which are linked."""
    nearest = one.nearest[0][1] if one.nearest else 0.0
    data = {
        "id": one.latent, "interest": f"{one.interest:.6g}", "density": f"{one.density:.6g}", "max": f"{one.largest:.6g}", "cosine": f"{nearest:.6g}",
    }  # fmt: skip
    head = "".join(f' data-{name}="{value}"' for name, value in data.items())
    return "\n".join([
        f'<article id="latent-{one.latent}" tabindex="-1"{head}>',
        f'<h3><a href="#latent-{one.latent}">{one.latent}</a></h3>',
        f'<div class="facts">{_facts(one)}{_spark(one)}{_nearest(one, shown)}{_tokens(one)}</div>',
        f'<div class="contexts">{_groups(one)}</div>',
        "</article>",
    ])  # fmt: skip


def _facts(one: LatentSeen) -> str:
    facts = [
        ("fires on", f"{one.density:.3%}" if one.density < 0.001 else f"{one.density:.2%}", counted(one.fired, "row")),
        ("largest", _three(one.largest), "the largest activation in the store"),
        ("mean", _three(one.mean), "the mean activation where it fires"),
        ("interest", f"{one.interest:.2f}", "contrast times spread; see the notes"),
        ("norm", _three(one.norm), "of its decoder row"),
    ]
    listed = "".join(
        f'<div title="{escape(told)}"><dt>{name}</dt><dd>{value}</dd></div>' for name, value, told in facts
    )  # fmt: skip
    return f"<dl>{listed}</dl>"


def _spark(one: LatentSeen) -> str:
    return spark(one.histogram, one.end) if one.fired else "<p>Fires on no row of the store.</p>"


def _nearest(one: LatentSeen, shown: Container[int]) -> str:
    def named(latent: int, cosine: float) -> str:
        text = f"{latent} <small>{cosine:.2f}</small>"
        return f'<li><a href="#latent-{latent}">{text}</a></li>' if latent in shown else f"<li>{text}</li>"

    if not one.nearest:
        return ""
    return f'<h4 title="by the cosine of decoder rows">Nearest</h4><ul class="near">{"".join(named(*pair) for pair in one.nearest)}</ul>'


def _tokens(one: LatentSeen) -> str:
    def listed(title: str, effects: Effects) -> str:
        items = "".join(
            f"<li><code>{escape(visible(text)) or '·'}</code> <small>{value:+.1f}</small></li>" for text, value in effects
        )
        return f'<h4>{title}</h4><ul class="tokens">{items}</ul>'

    if one.raised is None or one.lowered is None:
        return ""
    return listed("Raises", one.raised) + listed("Lowers", one.lowered)


def _groups(one: LatentSeen) -> str:
    if not one.groups:
        return ""
    first, *others = one.groups
    parts = [_list(first.contexts[:AT_ONCE], one.largest)]
    rest = [Group("further strongest", first.contexts[AT_ONCE:]), *others]
    inner = "".join(f"<h4>{escape(g.name)}</h4>{_list(g.contexts, one.largest)}" for g in rest if g.contexts)
    if inner:
        parts.append(f"<details><summary>More, and weaker firings by fifths</summary>{inner}</details>")
    return "".join(parts)


def _list(contexts: list[ContextSeen], largest: float) -> str:
    return f"<ol>{''.join(_context(one, largest) for one in contexts)}</ol>"


def _context(one: ContextSeen, largest: float) -> str:
    """The text, its shaded tokens apart: <mark class="s1"> to s9."""
    parts = []
    for i, (text, value) in enumerate(zip(one.pieces, one.values, strict=True)):
        if text is None:
            parts.append("" if i and one.pieces[i - 1] is None else f'<i title="not in the store">{GAP}</i>')
            continue
        told = escape(visible(text)) or "·" * (i == one.centre)
        if value or i == one.centre:
            shade = min(SHADES, max(1, round(abs(value) / largest * (SHADES + 1)))) if largest else 1
            chosen = " at" if i == one.centre else ""
            told = f'<mark class="s{shade}{chosen}" title="{_three(value)}">{told}</mark>'
        parts.append(told)
    where = f"position {one.position}" + ("" if one.document is None else f" of document {one.document}") + f", row {one.row}"
    return f'<li><b title="{where}">{_three(one.value)}</b><span class="ctx">{"".join(parts)}</span></li>'


def _three(value: float) -> str:
    """Three digits, as 5.60 and 0.758 have them."""
    return f"{value:#.3g}".rstrip(".")
