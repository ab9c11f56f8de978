"""What the second paper trained, as settings: each experiment's arms, with what was published of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from .data import Size

# The authors' seeds: of the data of the first two experiments, and of the others.
FIRST_DATA, LATER_DATA, SCALING_DATA = 20240625, 20240926, 20240927
TEST_STEPS, TEST_RATE = 10_000, 3e-3  # of inference-time optimisation on test rows
LCA_L1 = 0.1  # λ of LCA, whose loss is ½‖x − x̂‖² + λ·Σ|s|
QUICK = 5  # a quick recipe takes a fifth of the long trainings' steps,
QUICK_SWEEP = 10  # and at three times the rate a tenth;
QUICK_SCALING = 2  # of the scaling half: free codes take 10,000 steps at this rate to come from exp(−10) to 1

Kind = Literal["sae", "mlp", "sparse coding", "ito", "lca", "omp"]

UNTRAINED: tuple[Kind, ...] = ("ito", "lca", "omp")


@dataclass(frozen=True)
class Arm:
    """One encoder in one setting.

    Attributes:
        kind: ito, lca and omp have no training: codes of the test rows on the true dictionary. hidden: an MLP's width.
        goal: what is learnt from: the true codes, the true dictionary, or neither. bias: of the encoder's layers; decoder_bias: of X̂.
        k: TopK after the ReLU, with no L1 then. rate, steps: of Adam. data_seed: of the authors' data; own_data: each run has its own.
        also: other inference on the trained dictionary: ito, warm-ito, top-k, omp. marks: points of the curve.
        published: by figure (codes, dictionary, peak, or one of `also`), the mean of so many `runs`. why: known reasons for a difference.
    """

    name: str
    kind: Kind
    goal: Literal["codes", "dictionary", "neither"]
    hidden: int = 0
    size: Size = field(default_factory=Size)
    bias: bool = False
    decoder_bias: bool = False
    k: int | None = None
    l1: float = 0.01
    rate: float = 1e-3
    steps: int = 40_000
    data_seed: int = LATER_DATA
    own_data: bool = False
    also: tuple[str, ...] = ()
    marks: int = 1
    published: Mapping[str, float] = field(default_factory=dict)
    runs: int = 3
    why: Mapping[str, str] = field(default_factory=dict)


def known_codes(_: bool) -> list[Arm]:
    common = Arm(
        "SAE", "sae", "codes", bias=True, steps=20_000, data_seed=FIRST_DATA, marks=20, published={"codes": 0.862}, runs=5
    )
    mlps = {32: 0.901, 256: 0.900, 1024: 0.950}
    return [
        common,
        *(replace(common, name=f"MLP {h}", kind="mlp", hidden=h, published={"codes": v}) for h, v in mlps.items()),
    ]


def known_dictionary(_: bool) -> list[Arm]:
    common = Arm("SAE", "sae", "dictionary", steps=20_000, data_seed=FIRST_DATA, marks=20, runs=5)
    mlps = {32: 0.781, 256: 0.818}
    return [
        replace(common, also=("warm-ito",), published={"codes": 0.609, "peak": 0.710}),
        replace(common, name="SAE + ITO", kind="ito", published={"codes": 0.967}),
        replace(common, name="LCA", kind="lca", l1=LCA_L1, steps=300, marks=1),
        replace(common, name="OMP, k=3", kind="omp", k=common.size.k, steps=common.size.k, marks=1),
        *(replace(common, name=f"MLP {h}", kind="mlp", hidden=h, published={"codes": v}) for h, v in mlps.items()),
    ]


def unknown(_: bool) -> list[Arm]:
    sae = Arm("SAE", "sae", "neither", marks=20, runs=5)
    mlps = {32: (0.623, 0.791), 256: (0.643, 0.851)}
    return [
        replace(sae, also=("ito", "warm-ito"), published={"codes": 0.566, "dictionary": 0.745, "ito": 0.583}),
        replace(sae, name="sparse coding", kind="sparse coding", marks=6, published={"codes": 0.691, "dictionary": 0.838}),
        *(
            replace(sae, name=f"MLP {h}", kind="mlp", hidden=h, published={"codes": c, "dictionary": d})
            for h, (c, d) in mlps.items()
        ),
    ]


# By K, M and N: MCC of codes and of the dictionary, for SAE, MLP (32) and sparse coding.
SCALING: dict[tuple[int, int, int], tuple[tuple[float, float], ...]] = {
    (3, 8, 16): ((0.638, 0.746), (0.593, 0.807), (0.733, 0.878)),
    (3, 16, 32): ((0.577, 0.684), (0.533, 0.689), (0.928, 0.973)),
    (3, 32, 128): ((0.420, 0.606), (0.316, 0.516), (0.869, 0.945)),
    (9, 16, 32): ((0.494, 0.683), (0.451, 0.667), (0.453, 0.667)),
    (9, 32, 128): ((0.294, 0.530), (0.262, 0.518), (0.322, 0.598)),
    (15, 16, 32): ((0.460, 0.652), (0.431, 0.670), (0.399, 0.642)),
    (15, 32, 128): ((0.241, 0.485), (0.243, 0.511), (0.249, 0.524)),
}


def scaling(quick: bool) -> list[Arm]:
    arms = []
    for (k, m, n), published in SCALING.items():
        if quick and k > 3:
            continue
        for (name, kind, hidden), (codes, dictionary) in zip(_KINDS, published, strict=True):
            arms.append(
                Arm(
                    f"{name}, K={k}, {n}×{m}",
                    kind,
                    "neither",
                    hidden=hidden,
                    size=Size(n, m, k),
                    steps=_long(quick, 25_000 if k == 15 else 50_000, QUICK_SCALING),
                    data_seed=SCALING_DATA,
                    published={"codes": codes, "dictionary": dictionary},
                )
            )
    return arms


_KINDS: tuple[tuple[str, Kind, int], ...] = (("SAE", "sae", 0), ("MLP 32", "mlp", 32), ("sparse coding", "sparse coding", 0))

# By λ: MCC of the codes, for SAE, MLP (32) and sparse coding.
L1 = {
    0.001: (0.538, 0.550, 0.739), 0.005: (0.619, 0.599, 0.736), 0.01: (0.595, 0.607, 0.730), 0.05: (0.597, 0.606, 0.751),
    0.1: (0.617, 0.615, 0.728), 0.5: (0.593, 0.701, 0.836), 1.0: (0.559, 0.680, 0.722), 2.0: (0.414, 0.491, 0.651), 5.0: (0.208, 0.065, 0.446),
}  # fmt: skip


def l1(quick: bool) -> list[Arm]:
    return [
        Arm(
            f"{name}, λ={weight:g}",
            kind,
            "neither",
            hidden=hidden,
            l1=weight,
            rate=3e-3,
            steps=_long(quick, 100_000, QUICK_SWEEP),
            own_data=True,
            published={"codes": value},
        )
        for weight, published in L1.items()
        for (name, kind, hidden), value in zip(_KINDS, published, strict=True)
    ]


# By k: MCC of the codes, for SAE and MLP (32) with TopK.
TOP_K = {
    1: (0.326, 0.233), 2: (0.561, 0.432), 3: (0.637, 0.504), 4: (0.610, 0.505), 5: (0.611, 0.490), 8: (0.507, 0.328), 10: (0.469, 0.388),
    15: (0.447, 0.405),
}  # fmt: skip


def topk(quick: bool) -> list[Arm]:
    steps = _long(quick, 100_000, QUICK_SWEEP)
    arms = [
        Arm(
            f"{name} TopK, k={k}",
            kind,
            "neither",
            hidden=hidden,
            k=k,
            l1=0.0,
            rate=3e-3,
            steps=steps,
            own_data=True,
            published={"codes": value},
        )
        for k, published in TOP_K.items()
        for (name, kind, hidden), value in zip(_KINDS[:2], published, strict=True)
    ]
    sparse = Arm("", "sparse coding", "neither", rate=3e-3, steps=steps, own_data=True, also=("top-k", "omp"), runs=2)
    why = {
        "omp": "theirs optimises only the codes that are largest at the start (on the true dictionary 0.1 to 0.4 at any rate); OMP searches"
    }
    for weight, kept, searched in ((0.05, 0.790, 0.331), (0.5, 0.795, 0.357)):
        published = {"codes": {0.05: 0.793, 0.5: 0.804}[weight], "top-k": kept, "omp": searched}
        arms.append(replace(sparse, name=f"sparse coding, λ={weight:g}", l1=weight, published=published, why=why))
    return arms


# By width: MCC of the codes and of the dictionary.
WIDTHS = {
    8: (0.455, 0.749), 16: (0.572, 0.722), 32: (0.596, 0.768), 64: (0.550, 0.759), 128: (0.672, 0.822), 256: (0.721, 0.862),
}  # fmt: skip


def mlp_width(quick: bool) -> list[Arm]:
    return [
        Arm(
            f"MLP {h}",
            "mlp",
            "neither",
            hidden=h,
            rate=3e-4,
            steps=_long(quick, 100_000),
            published={"codes": codes, "dictionary": dictionary},
        )
        for h, (codes, dictionary) in WIDTHS.items()
    ]


# Without and with biases: MCC of the codes and of the dictionary.
BIAS: dict[tuple[str, Kind, int, float], tuple[tuple[float, float], ...]] = {
    ("SAE", "sae", 0, 1e-3): ((0.567, 0.730), (0.563, 0.709)),
    ("sparse coding", "sparse coding", 0, 1e-3): ((0.669, 0.821), (0.623, 0.816)),
    ("MLP 64", "mlp", 64, 1e-4): ((0.608, 0.742), (0.529, 0.731)),
}


def bias(quick: bool) -> list[Arm]:
    arms = []
    for (name, kind, hidden, rate), both in BIAS.items():
        for biased, (codes, dictionary) in zip((False, True), both, strict=True):
            arms.append(
                Arm(
                    f"{name}, {'biases' if biased else 'no bias'}",
                    kind,
                    "neither",
                    hidden=hidden,
                    bias=biased and kind != "sparse coding",
                    decoder_bias=biased,
                    rate=rate,
                    steps=_long(quick, 100_000),
                    published={"codes": codes, "dictionary": dictionary},
                )
            )
    return arms


def _long(quick: bool, steps: int, part: int = QUICK) -> int:
    return steps // part if quick else steps


EXPERIMENTS: dict[str, Callable[[bool], list[Arm]]] = {
    "known-codes": known_codes, "known-dictionary": known_dictionary, "unknown": unknown, "scaling": scaling, "l1": l1, "topk": topk,
    "mlp-width": mlp_width, "bias": bias,
}  # fmt: skip
