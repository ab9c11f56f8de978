"""The paper's empirical claims, each decided from figures.

Two values are compared seed by seed (same rows, same batches): by the logarithms of their ratios, one a seed. One is *clearly* smaller where
the mean of these is beyond MARGIN, and beyond two of its standard errors (of a single seed, for want of any, beyond ALONE_MARGIN). A training that
diverged is clearly worse than one that did not.

    PAM beats SGD     clearly, at more than half of the sizes up to 25 % of the rows, and nowhere there is it clearly behind. Under `strong` the better
                      PAM-SGD (the product's, or Algorithm 3.1) meets the better gradient training (our Adam, or plain Adam), both chosen on
                      validation rows; Adam with our last solve is on neither side.
    mostly there      its mean advantage (log ratio) is larger up to 25 % than beyond.
    sparser           the L0 of PAM's ReLU codes is clearly below SGD's (paper-code: on the first 256 test rows, as the code has it). With ReLU the
                      product's PAM-SGD has Adam's very encoder, so that `strong` compares Algorithm 3.1 with plain Adam.
    M = 1–3 best      none of M > 3 is clearly better than the best of M ≤ 3, and the largest M is clearly worse. (`strong`: the same number of
                      encoder steps for every M.)
    unstable          a K is, if some seed's test FVU exceeds 1 (worse than the rows' mean), or its test error in the second half of the epochs
                      varies by more than WOBBLE. The claim holds if more than half of the K below 8 % of the latents are, and none of those above 15 %.
    peak              PAM's mean test error is at its highest at 40 to 50 % of the rows, and there at least PEAK times that at 25 % and at 65 % or more.
    weight decay      PAM is clearly ahead of SGD at more than half of the values, and nowhere clearly behind: what the code's figure compares. (`strong`:
                      Algorithm 3.1 and plain Adam, tuned.) Beside it stands each at its best value.
    µ/ν               of values up to 1e-3 none changes PAM's test error by more than LITTLE, either way.

A claim *holds* if it does under `strong`; *holds only against a weak baseline* if it does under `paper` or `paper-code`, and not under `strong`; where
it is about PAM alone, and has no baseline, that reads *holds only in the paper's setting*. Else it *does not hold*. Without `strong` there is no verdict.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .settings import ACTIVATIONS

MARGIN, ALONE_MARGIN, FEW, WOBBLE, PEAK, LITTLE = 0.01, 0.03, 0.25, 1.5, 1.5, 0.05
BELOW, ABOVE = 0.08, 0.15  # of the latents
MODERATE = 1e-3
WEAK, ALONE, HOLDS, NOT, UNDECIDED = (
    "holds only against a weak baseline", "holds only in the paper's setting", "holds", "does not hold", "undecided: strong was not run",
)  # fmt: skip

Points = Sequence[Mapping[str, Any]]
Of = Mapping[str, Points]  # an activation's points by experiment


@dataclass(frozen=True)
class Evidence:
    """What a preset's figures say."""

    told: str
    holds: bool


def decided(recipe: str, results: Mapping[str, Mapping[str, Of]]) -> list[dict[str, Any]]:
    """Of each claim its words, `where`, by preset `evidence` (`told`, `holds`), and the `verdict`."""
    return [
        _claim(*given, results) for activation in ACTIVATIONS for given in _claims(recipe, activation)
    ]  # fmt: skip


def verdict(holds: Mapping[str, bool], baseline: bool) -> str:
    """From what holds under which preset; `baseline`: whether the claim compares with one."""
    if "strong" not in holds:
        return UNDECIDED
    if holds["strong"]:
        return HOLDS
    return (WEAK if baseline else ALONE) if any(holds.values()) else NOT


def clearly(logs: Sequence[float]) -> int:
    """1 where the log ratios of the seeds are clearly above zero, −1 where clearly below, else 0."""
    if any(map(math.isinf, logs)):
        return 1 if min(logs) > 0 else -1 if max(logs) < 0 else 0
    mean = statistics.fmean(logs)
    beyond = max(MARGIN, 2 * statistics.stdev(logs) / len(logs) ** 0.5) if len(logs) > 1 else ALONE_MARGIN
    return 0 if abs(mean) <= beyond else 1 if mean > 0 else -1


def log_ratios(a: Sequence[float | None], b: Sequence[float | None]) -> list[float]:
    """log(a/b) of each seed that both have, which are the first ones; infinite where one of them is no number, zero where neither is."""
    return [
        math.log(x / y) if x and y else math.inf * ((x is None) - (y is None)) if (x is None) != (y is None) else 0.0
        for x, y in zip(a, b, strict=False)
    ]


Judge = Callable[[str, Of], Evidence | None]
Given = tuple[str, str, bool, str, Judge]


def _claims(recipe: str, activation: str) -> list[Given]:
    """Words, where, whether there is a baseline, the activation, and who decides."""
    name = {"mnist": "MNIST", "llm": "LLM activations"}[recipe]
    where = f"{name}, {'TopK' if activation == 'topk' else 'ReLU'}"
    claims: list[Given] = [
        ("PAM-SGD beats SGD at 1 to 25 % of the data", where, True, activation, beats),
        ("… and mostly there", where, True, activation, mostly_there),
    ]
    if recipe == "llm" and activation == "relu":
        claims.append(("ReLU codes of PAM-SGD are sparser (about 15 % on Gemma)", where, True, activation, sparser))
    claims.append(("M = 1 to 3 encoder updates a batch are best", where, False, activation, few_updates))
    if recipe == "llm" and activation == "topk":
        claims.append(("TopK is unstable with K below 8 to 15 % of the latents", where, False, activation, unstable))
        claims.append(("the test error peaks at 45 % of the data", where, False, activation, peak))
    claims.append(("PAM-SGD is ahead at every weight decay", where, True, activation, decay))
    claims.append(("moderate µ, ν change little", where, False, activation, penalties))
    return claims


def _claim(words: str, where: str, baseline: bool, activation: str, judge: Judge, results: Any) -> dict[str, Any]:
    found = {preset: judge(preset, by[activation]) for preset, by in results.items()}
    evidence = {preset: {"told": e.told, "holds": e.holds} for preset, e in found.items() if e}
    return {
        "claim": words, "where": where, "evidence": evidence,
        "verdict": verdict({preset: e["holds"] for preset, e in evidence.items()}, baseline),
    }  # fmt: skip


SIDES = {"pam": ("pam", "alternation"), "sgd": ("adam", "sgd")}


def better(point: Mapping[str, Any], side: str) -> str:
    """The arm of a side that a point has; of several the one with the lowest FVU on validation rows at its best rate."""
    arms = [arm for arm in SIDES[side] if arm in point["arms"]]
    tuned = {
        arm: min((v for v in point["arms"][arm].get("grid", {}).values() if v is not None), default=math.inf) for arm in arms
    }
    return min(arms, key=lambda arm: tuned[arm])


def advantage(point: Mapping[str, Any]) -> list[float]:
    """log(PAM/SGD) of each seed, of the better arm of either side."""
    return ratio(point, better(point, "pam"), better(point, "sgd"))


def ratio(point: Mapping[str, Any], a: str, b: str, figure: str = "loss") -> list[float]:
    """log(a/b) of each seed, of two arms of a point."""
    return log_ratios(point["arms"][a][figure], point["arms"][b][figure])


def told_ratio(logs: Sequence[float]) -> str:
    """The geometric mean of the ratios."""
    mean = statistics.fmean(logs)
    return f"{math.exp(mean):.3g}" if abs(mean) < 100 else "∞" if mean > 0 else "0"


def beats(preset: str, of: Of) -> Evidence:
    """See the module."""
    points = of["sizes"]
    few = [clearly(advantage(p)) for p in points if p["x"] <= FEW]
    told = f"{_against(preset)} at {_listed(points)}: {', '.join(told_ratio(advantage(p)) for p in points)}"
    if preset == "strong":
        for a, b, name in (
            ("pam", "adam", "product's PAM/our Adam"), ("pam", "adam+solve", "product's PAM/(our Adam + last solve)"),
            ("alternation", "sgd", "Algorithm 3.1/plain Adam"),
        ):  # fmt: skip
            told += f"; {name}: {', '.join(told_ratio(ratio(p, a, b)) for p in points)}"
    return Evidence(told, few.count(-1) > len(few) / 2 and 1 not in few)


def mostly_there(preset: str, of: Of) -> Evidence:
    """See the module."""
    few, many = (
        statistics.fmean(max(-5.0, min(5.0, -x)) for p in of["sizes"] if (p["x"] <= FEW) == small for x in advantage(p))
        for small in (True, False)
    )
    told = f"{_against(preset)} {math.exp(-few):.3g} on the mean up to 25 %, {math.exp(-many):.3g} beyond"
    return Evidence(told, few > max(many, MARGIN))


def sparser(preset: str, of: Of) -> Evidence:
    """See the module."""
    point = of["sparsity"][0]
    pam, figure = "alternation" if preset == "strong" else "pam", "l0_first" if preset == "paper-code" else "l0"
    logs = ratio(point, pam, "sgd", figure)
    l0 = [statistics.fmean(v for v in point["arms"][arm][figure] if v is not None) for arm in (pam, "sgd")]
    return Evidence(f"L0 {l0[0]:.1f} against {l0[1]:.1f}: {math.expm1(statistics.fmean(logs)):+.1%}", clearly(logs) < 0)


def few_updates(preset: str, of: Of) -> Evidence:
    """See the module."""
    points = of["updates"]
    best = min((p for p in points if p["x"] <= 3), key=lambda p: _mean(p["arms"]["pam"]["loss"]))
    more = [clearly(log_ratios(p["arms"]["pam"]["loss"], best["arms"]["pam"]["loss"])) for p in points if p["x"] > 3]
    told = ", ".join(f"M={p['label']}: {_mean(p['arms']['pam']['loss']):.4g}" for p in points)
    told += " (as many updates in all)" if preset == "strong" else ""
    return Evidence(told, bool(more) and -1 not in more and more[-1] == 1)


def unstable(preset: str, of: Of) -> Evidence:
    """See the module."""
    low = [_wobbles(p["arms"]["pam"]) for p in of["k"] if p["x"] < BELOW]
    high = [_wobbles(p["arms"]["pam"]) for p in of["k"] if p["x"] > ABOVE]
    told = ", ".join(f"K={p['label']} ({p['x']:.1%}): FVU {_mean(p['arms']['pam']['fvu']):.3g}" for p in of["k"])
    told += f"; unstable: {sum(low)} of {len(low)} below 8 %, {sum(high)} of {len(high)} above 15 %"
    return Evidence(told, sum(low) > len(low) / 2 and not any(high))


def _wobbles(arm: Mapping[str, Any]) -> bool:
    for fvu, curve in zip(arm["fvu"], arm.get("curves") or [[]] * len(arm["fvu"]), strict=True):
        late = curve[len(curve) // 2 :]
        if fvu is None or fvu > 1 or None in late or (late and max(late) > WOBBLE * min(late)):
            return True
    return False


def peak(preset: str, of: Of) -> Evidence:
    """See the module."""
    means = {p["x"]: _mean(p["arms"]["pam"]["loss"]) for p in of["sizes"]}
    top = max(means, key=lambda x: means[x])
    beside = [mean for x, mean in means.items() if x == FEW or x >= 0.65]
    told = f"highest at {top:.0%}: {means[top]:.3g}; " + ", ".join(f"{x:.0%}: {m:.3g}" for x, m in means.items() if x != top)
    return Evidence(told, 0.4 <= top <= 0.5 and bool(beside) and means[top] >= PEAK * max(beside))


def decay(preset: str, of: Of) -> Evidence:
    """See the module."""
    points, pam = of["weight-decay"], "alternation" if preset == "strong" else "pam"
    ahead = [clearly(ratio(p, pam, "sgd")) for p in points]
    against = "Algorithm 3.1/plain Adam" if preset == "strong" else "PAM/SGD"
    told = f"{against} at " + ", ".join(f"{p['label']}: {told_ratio(ratio(p, pam, 'sgd'))}" for p in points)
    best = [min(points, key=lambda p: _mean(p["arms"][arm]["loss"]))["arms"][arm]["loss"] for arm in (pam, "sgd")]
    told += f"; each at its best: {told_ratio(log_ratios(*best))}"
    return Evidence(told, ahead.count(-1) > len(ahead) / 2 and 1 not in ahead)


def penalties(preset: str, of: Of) -> Evidence:
    """See the module."""
    points = of["mu-nu"]
    first = points[0]
    changes = {p["x"]: statistics.fmean(log_ratios(p["arms"]["pam"]["loss"], first["arms"]["pam"]["loss"])) for p in points[1:]}
    told = f"test error against {first['x']:g}: " + ", ".join(f"{x:g}: {math.expm1(v):+.1%}" for x, v in changes.items())
    little = [abs(change) <= LITTLE for x, change in changes.items() if x <= MODERATE]
    return Evidence(told, bool(little) and all(little))


def _mean(values: Sequence[float | None]) -> float:
    return math.inf if None in values else statistics.fmean(v for v in values if v is not None)


def _against(preset: str) -> str:
    return "best PAM/best Adam" if preset == "strong" else "PAM/SGD"


def _listed(points: Points) -> str:
    return ", ".join(p["label"].removesuffix("%") for p in points) + " %"
