"""The second paper's experiments, at sizes of a second: data, metric, gradients, counts; what a recipe finds, leaves and refuses."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.papers.amortisation import cell, flops, inference, recipe, theorem
from splinterp.papers.amortisation.arms import EXPERIMENTS, Arm
from splinterp.papers.amortisation.data import Size, generate
from splinterp.papers.amortisation.encoders import Encoder, FreeCodes, top_k
from splinterp.papers.amortisation.first import authors_weights, our_dictionary, our_layers
from splinterp.papers.amortisation.flops import Shape
from splinterp.papers.amortisation.losses import Cosine, Reconstruction
from splinterp.papers.amortisation.mcc import mcc, paired
from splinterp.papers.amortisation.recipe import NAMES, Amortisation, run
from splinterp.papers.amortisation.tables import table
from splinterp.papers.amortisation.training import marks, train
from torch.utils.flop_counter import FlopCounterMode

SMALL = Size(n=12, m=6, k=2, rows=60)
LAYERS = [[12], [9, 12]]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_data_are_sparse_exactly_and_the_authors_own():
    data = generate(Size(), [20240625, 3])
    for codes, rows in ((data.codes, data.rows), (data.test_codes, data.test_rows)):
        assert codes.shape == (2, 1024, 16)
        assert ((codes > 0).sum(2) == 3).all()
        assert torch.allclose(rows, codes @ data.dictionary)
    assert torch.allclose(data.dictionary.norm(dim=2), torch.ones(2, 16))
    values = data.codes[data.codes > 0]
    assert values.mean() == pytest.approx((2 / np.pi) ** 0.5, abs=0.03)  # of |N(0, 1)|
    fired = (data.codes > 0).float().mean(1)
    assert (fired - 3 / 16).abs().max() < 0.05  # no source is favoured
    np.random.seed(20240625)
    value = np.abs(np.random.normal(0, 1, 16))
    active = np.random.choice(16, 3, replace=False)
    assert data.codes[0, 0][active].tolist() == pytest.approx(value[active].tolist())
    torch.manual_seed(20240625)
    assert torch.allclose(data.dictionary[0, 0], torch.nn.functional.normalize(torch.randn(16, 8)[0], dim=0))
    assert torch.equal(generate(Size(), [3]).rows[0], data.rows[1])


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(0, 2))
def test_mcc_is_the_best_of_all_matchings(seed, n, dead):
    a, b = random(30, n, seed=seed), random(30, n, seed=seed + 1)
    b[:, :dead] = 0.3
    with np.errstate(invalid="ignore"):  # dead ones are no numbers there
        correlations = np.nan_to_num(np.abs(np.corrcoef(a.double().T, b.double().T)[:n, n:]))
    best = max(sum(correlations[i, p] for i, p in enumerate(order)) for order in itertools.permutations(range(n))) / n
    assert mcc(a, b) == pytest.approx(best, abs=1e-9)


def test_mcc_of_the_same_latents_is_one_whatever_order_and_scale():
    codes = generate(SMALL, [0]).codes[0]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    other = codes[:, order] * torch.linspace(0.01, 50, 12) + 3
    assert mcc(codes, other) == pytest.approx(1)
    assert mcc(codes, -other) == pytest.approx(1)
    assert mcc(codes, other[:, 3:]) == pytest.approx(9 / 12)  # sources without a partner
    assert mcc(codes, torch.zeros_like(codes)) == 0
    assert paired(codes, codes * 7) == pytest.approx(1)
    assert paired(codes, other) < 0.5


def codes_of(kind, data, k=None, biases=True):
    if kind == "free":
        return FreeCodes(random(*data.codes.shape) - 1)
    return Encoder(data.rows, our_layers([6, *kind], biases, [0, 1]), k)


@pytest.mark.parametrize(
    ("kind", "k", "biases"),
    [(LAYERS[0], None, False), (LAYERS[0], None, True), (LAYERS[1], None, True), (LAYERS[1], 3, False), ("free", None, False)],
)
@pytest.mark.parametrize("supervised", [False, True])
def test_gradients_are_autograds(kind, k, biases, supervised):
    data = generate(SMALL, [0, 1])
    source = codes_of(kind, data, k, biases)
    bias = torch.zeros(2, 1, 6) + 0.1
    bias.grad = torch.zeros_like(bias)
    loss = Cosine(data.codes) if supervised else Reconstruction(data.rows, our_dictionary(SMALL, [0, 1]), 0.3, True, bias)
    source.backward(loss.backward(source.forward()))
    traced = [p.detach().double().requires_grad_() for p in (*source.parameters, *loss.parameters)]
    x = data.rows.double()
    if kind == "free":
        codes, rest = traced[0].exp(), traced[1:]
    else:
        weights, rest = traced[: len(kind)], traced[len(kind) :]
        biased, rest = (rest[: len(kind)], rest[len(kind) :]) if biases else ([0] * len(kind), rest)
        codes = x
        for w, b in zip(weights, biased, strict=True):
            codes = (codes @ w + b).relu()
        codes = top_k(codes, k) if k else codes
    if supervised:
        value = -torch.nn.functional.cosine_similarity(data.codes.double(), codes, dim=1).mean(1)
    else:
        value = (codes @ rest[0] + rest[1] - x).square().mean((1, 2)) + 0.3 * codes.abs().mean((1, 2))
    assert torch.allclose(loss.value(source.forward()).double(), value, atol=1e-6)
    value.sum().backward()
    for ours, theirs in zip((*source.parameters, *loss.parameters), traced, strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-6)
        assert theirs.grad.abs().max() > 1e-4


def authors_modules(seed, widths, biases, decoder_bias):
    """As in their published code, in its order."""
    torch.manual_seed(seed + 42)
    layers = [torch.nn.Linear(a, b, bias=biases) for a, b in itertools.pairwise(widths)]
    if layers:
        torch.nn.Linear(12, 6, bias=decoder_bias)
    dictionary = torch.randn(6, 12)
    return layers, dictionary / torch.linalg.norm(dictionary, dim=0, keepdim=True)


@pytest.mark.parametrize(
    ("widths", "biases", "decoder_bias"), [([6, 12], False, True), ([6, 7, 12], True, False), ([], False, True)]
)
def test_the_authors_weights_are_those_that_their_code_draws(widths, biases, decoder_bias):
    state = torch.random.get_rng_state()
    ours, dictionary = authors_weights(widths, SMALL, biases, decoder_bias, [3, 20240926])
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's numbers change
    for g, seed in enumerate([3, 20240926]):
        layers, theirs = authors_modules(seed, widths, biases, decoder_bias)
        torch.testing.assert_close(dictionary[g].T, theirs)
        assert len(ours) == len(layers)
        for (weight, bias), layer in zip(ours, layers, strict=True):
            assert torch.equal(weight[g].T, layer.weight)
            assert (bias is None) if layer.bias is None else torch.equal(bias[g, 0], layer.bias)


def test_the_authors_runs_are_other_cells_than_ours(tmp_path):
    ours = run(Amortisation("bias", (0, 1), steps=3), tmp_path)
    theirs = run(Amortisation("bias", (0, 1), weights="paper", steps=3), tmp_path)
    assert [arm["figures"]["codes"]["values"] for arm in ours["arms"]] != [
        arm["figures"]["codes"]["values"] for arm in theirs["arms"]
    ]
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 2 * len(ours["arms"])
    assert {json.loads(line)["seed"] for line in lines if "weights" in json.loads(line)} == {20240926, 20240927}
    assert "the authors' data and first weights" in table(theirs)


@pytest.mark.parametrize("kind", ["sae", "mlp", "sparse coding", "ito"])
def test_seeds_at_once_are_seeds_one_at_a_time(kind):
    arm = Arm(
        "",
        kind,
        "dictionary" if kind == "ito" else "neither",
        hidden=7 * (kind == "mlp"),
        size=SMALL,
        steps=40,
        rate=1e-2,
        marks=3,
    )
    arm = replace(arm, also=("warm-ito",) if kind == "sae" else ())
    together = cell.trained(arm, [0, 1, 2], [5, 6, 6], test_steps=30)
    alone = [cell.trained(arm, [seed], [data], test_steps=30)[0] for seed, data in ((0, 5), (1, 6), (2, 6))]
    for a, b in zip(together, alone, strict=True):
        assert {**a, "seconds": 0, "curve": 0} == pytest.approx({**b, "seconds": 0, "curve": 0}, abs=1e-4)
        assert [m for _, m in a["curve"]] == pytest.approx([m for _, m in b["curve"]], abs=1e-4)
        assert len(a["curve"]) == 3


def test_codes_are_recovered_where_they_can_be():
    data = generate(Size(n=8, m=8, k=2, rows=200), [0])
    codes = inference.optimise(data.test_rows, data.dictionary, 1e-3, 1500, 2e-2)
    assert mcc(data.test_codes[0], codes[0]) > 0.97
    encoder = Encoder(data.rows, our_layers([8, 8], True, [0]))
    train(encoder, Cosine(data.codes), 1500, 1e-2)
    assert paired(data.test_codes[0], encoder.encode(data.test_rows)[0]) > 0.97


def test_a_warm_start_mends_what_the_encoder_left_out():
    arm = Arm("", "sae", "dictionary", size=Size(n=12, m=8, k=2, rows=200), steps=300, rate=1e-2, also=("warm-ito",))
    (figures,) = cell.trained(arm, [0], [0], test_steps=2000)
    assert figures["warm-ito"] > figures["codes"] + 0.05


@pytest.mark.parametrize("hidden", [0, 10])
@pytest.mark.parametrize("learn", [False, True])
def test_products_are_counted_as_torch_counts_them(hidden, learn):
    s = Shape(6, 12, hidden, 60, learn)
    x, D = random(60, 6), random(12, 6).requires_grad_(learn)
    weights = [random(a, b).requires_grad_() for a, b in (((6, hidden), (hidden, 12)) if hidden else ((6, 12),))]
    with FlopCounterMode(display=False) as forward:
        codes = x
        for w in weights:
            codes = (codes @ w).relu()
        loss = (codes @ D - x).square().mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    inferred = flops.encoder_inference(s) - 60 * (hidden + 12)
    assert inferred == forward.get_total_flops()
    parameters = sum(w.numel() for w in weights)
    elementwise = 60 * (2 * hidden + 2 * 12 + 2 * 6 + 12) + flops.ADAM * parameters + learn * (flops.ADAM + 3) * 72
    assert flops.encoder_training(s, 7) == 7 * (forward.get_total_flops() + backward.get_total_flops() + elementwise)
    free = random(60, 12).requires_grad_()
    with FlopCounterMode(display=False) as both:
        (free.exp() @ D - x).square().mean().backward()
    elementwise = 60 * (2 * 6 + 12 + (2 + flops.ADAM) * 12) + learn * (flops.ADAM + 3) * 72
    assert flops.sparse_coding(s, 7) == 7 * (both.get_total_flops() + elementwise)


def test_the_authors_counts_are_those_that_they_published():
    linear, mlp = Shape(8, 16, 0, 1024, True), Shape(8, 16, 32, 1024, True)
    assert flops.papers_encoder_training(linear, 50_000) == 89_292_800_000
    assert flops.papers_encoder_training(mlp, 50_000) == 294_092_800_000
    assert flops.papers_sparse_coding(linear, 50_000) == 2_623_897_600_000
    assert flops.papers_optimisation(linear, 10_000) == 7_209_107_456
    assert flops.encoder_inference(linear) == 540_672
    assert flops.encoder_inference(mlp) == 1_884_160
    assert flops.papers_sparse_coding(linear, 1) > 40 * flops.sparse_coding(linear, 1)  # far too much


@pytest.mark.parametrize(("steps", "count"), [(20_000, 20), (7, 20), (1, 2), (50, 1)])
def test_marks_end_with_the_last_step(steps, count):
    found = marks(steps, count)
    assert found == sorted(set(found))
    assert found[-1] == steps
    assert 1 <= len(found) <= count


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs_and_leaves_all_of_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr(theorem, "MEASUREMENTS", (2, 20))
    config = Amortisation(name, seeds=(0, 1), steps=2)
    result = run(config, tmp_path)
    assert json.loads((tmp_path / f"{name}.json").read_text()) == json.loads(json.dumps(result))
    for drawn in tmp_path.glob("*.svg"):
        ElementTree.fromstring(drawn.read_text())
    lines = table(result).splitlines()
    if name == "theorem":
        few, many = result["points"]
        assert (few["rank"], many["rank"]) == (2, 20)
        for means in theorem.MEANS[1:]:
            assert few[means]["mean"] < 0.6
            assert many[means]["mean"] > 0.95  # 20 are more than K·ln(N/K), 7.1
        return
    assert (tmp_path / f"{name}-flops.svg").exists()
    for arm in result["arms"]:
        assert set(arm["published"]) <= set(arm["figures"])
        for figure in arm["figures"].values():
            assert figure["mean"] == pytest.approx(np.mean(figure["values"]))
            if "published" in figure:
                assert (figure["verdict"] == "agrees") == (abs(figure["mean"] - figure["published"]) <= 0.03)
        assert any(line.startswith(f"| {arm['name']} | codes |") for line in lines)


def test_only_what_is_missing_is_done_again(tmp_path, monkeypatch):
    config = Amortisation("bias", seeds=(0, 1), steps=2)
    result, cells, done = run(config, tmp_path), tmp_path / "cells.jsonl", []
    lines = cells.read_text().splitlines(keepends=True)
    assert len(lines) == 12
    cells.write_text("".join(lines[:5] + lines[6:]) + lines[5][:20])  # one is missing, and the process was killed while writing
    monkeypatch.setattr(recipe, "trained", lambda arm, seeds, *rest: done.extend(seeds) or cell.trained(arm, seeds, *rest))

    def told(result):
        return [{name: f["mean"] for name, f in arm["figures"].items()} for arm in result["arms"]]

    assert told(run(config, tmp_path)) == [pytest.approx(arm, abs=1e-5) for arm in told(result)]
    assert done == [1]
    run(replace(config, seeds=(1, 2)), tmp_path)
    assert done == [1] + 6 * [2]
    counted, papers = (run(replace(config, flops=how), tmp_path)["arms"] for how in ("counted", "paper"))
    assert len(done) == 7  # a way of counting trains nothing
    assert all(a["training_flops"] < b["training_flops"] for a, b in zip(counted, papers, strict=True))
    run(replace(config, data="fresh"), tmp_path)
    assert len(done) == 7 + 12


def test_quick_is_a_part_of_the_whole():
    for name, arms in EXPERIMENTS.items():
        whole, quick = {arm.name: arm.steps for arm in arms(False)}, {arm.name: arm.steps for arm in arms(True)}
        assert len(whole) == len(arms(False))
        assert set(quick) <= set(whole)
        assert all(steps in (whole[arm], whole[arm] // 2, whole[arm] // 5, whole[arm] // 10) for arm, steps in quick.items()), (
            name
        )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"experiment": "known"}, "There is no experiment 'known'; name one of known-codes, known-dictionary"),
        ({"seeds": (1, 1)}, "--seeds must be different numbers from 0 on, not 1, 1"),
        ({"seeds": ()}, "not none"),
        ({"steps": 0}, "--steps 0 would train nothing"),
        ({"experiment": "unknown", "quick": True}, "Of no effect on unknown: --quick; leave that out"),
        (
            {"experiment": "theorem", "quick": True, "data": "fresh", "flops": "paper"},
            "theorem: --quick, --data, --flops; leave",
        ),
        ({"data": "own"}, "--data is paper or fresh, not own"),
        ({"flops": "many"}, "--flops is counted or paper, not many"),
    ],
)
def test_what_cannot_be_is_a_sentence(settings, sentence):
    with pytest.raises(SplinterpError, match=sentence):
        Amortisation(**{"experiment": "bias", **settings})


@pytest.mark.parametrize("size", [(3, 2, 4), (3, 1, 1), (3, 2, 0), (3, 2, 1, 1)])
def test_a_data_set_that_cannot_be_is_a_sentence(size):
    with pytest.raises(SplinterpError, match="is no data set; give 1 ≤ K ≤ N"):
        Size(*size)


@pytest.mark.parametrize("spelling", [["amortisation", "bias"], ["amortisation/bias"]])
def test_the_command(spelling, tmp_path, capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["reproduce", *arguments, "--out", str(tmp_path)])
        return end.value.code, capsys.readouterr()

    code, told = command(*spelling, "--seeds", "0", "--steps", "1", "--json")
    assert not code
    result = json.loads(told.out)
    assert result == json.loads((tmp_path / "bias.json").read_text())
    code, told = command(*spelling, "--seeds", "0", "--steps", "1")
    assert told.out.startswith(table(result))
    code, told = command("amortisation", "biases")
    assert code == 1
    assert "There is no experiment" in told.err
    assert "Traceback" not in told.err
    assert command(*spelling, "--seeds", "one")[0] == 2
