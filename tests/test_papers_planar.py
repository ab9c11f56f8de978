"""SplInterp's pictures: exact polygons of power diagrams, Figures 5 to 7, E1's toy experiment, and the alternation that must descend."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from splinterp import store as stores
from splinterp.cli import main
from splinterp.errors import SplinterpError
from splinterp.geometry import PowerDiagram
from splinterp.geometry.planar import area, as_affine, lifted, planar_cells, slice_weights
from splinterp.papers.convergence.descent import Objective, Parameters, alternation, gradient
from splinterp.papers.convergence.recipe import ROUNDING, Convergence, summed_up
from splinterp.papers.convergence.recipe import run as converge
from splinterp.papers.figures.checks import agreement, grid, located, nearest, nearest_in_space
from splinterp.papers.figures.recipe import table as figures_table
from splinterp.papers.pages import save
from splinterp.papers.pictures import coloured, draw_cells, figure, frame
from splinterp.papers.toy import models, recipe
from splinterp.papers.toy.data import kmeans_regions, mse, pca_of, points
from splinterp.papers.toy.models import VARIANTS, beginning, disc_error, paper, paper_code
from splinterp.papers.toy.recipe import Toy
from splinterp.papers.toy.recipe import run as play
from splinterp.papers.toy.recipe import table as toy_table
from splinterp.train import Decoder, solve_decoder

BOX = (-2.0, 3.0, -1.0, 2.0)
AREA = 15.0


def generators(n: int, d: int = 2, seed: int = 0):
    draw = np.random.default_rng(seed)
    return draw.uniform(-2, 2, (n, d)), draw.uniform(0, 1.5, n)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (2, 1), (9, 1), (9, 2), (9, 8), (9, 9), (30, 3)])
@pytest.mark.parametrize("relu", [False, True])
def test_cells_fill_the_box_and_are_where_the_power_diagram_has_them(n, k, relu):
    centres, weights = generators(n)
    cells = planar_cells(*as_affine(centres, weights), k, BOX, relu)
    assert cells.area() == pytest.approx(AREA, rel=1e-9)
    diagram = PowerDiagram(torch.from_numpy(centres), torch.from_numpy(weights), k)

    def told(x):
        if not relu:
            return nearest(centres, weights, k)(x)
        rows = torch.from_numpy(x)
        active = diagram.active(diagram.distances(rows), rows)
        return [frozenset(row.nonzero()[:, 0].tolist()) for row in active]

    if relu or k < n:
        assert agreement(cells, told, side=60) == {"points": 3600, "agree": 3600}


def test_cells_are_convex_with_straight_borders_between_neighbours():
    centres, weights = generators(12)
    directions, offsets = as_affine(centres, weights)
    cells = planar_cells(directions, offsets, 2, BOX)
    for own, polygon in cells.polygons.items():
        assert 1 <= len(cells.neighbours[own]) <= len(polygon)
        for other in cells.neighbours[own]:
            assert own in cells.neighbours[other]
            (leaves,), (enters,) = own - other, other - own
            normal, offset = directions[leaves] - directions[enters], offsets[leaves] - offsets[enters]
            on_it = np.abs(polygon @ normal + offset) < 1e-9
            assert on_it.sum() >= 2  # a whole side lies on the border of the two
    numbers = coloured(cells)
    assert all(numbers[own] != numbers[other] for own, others in cells.neighbours.items() for other in others)
    assert area(np.array([(0, 0), (2, 0), (2, 1), (0, 1)], dtype=float)) == 2


def test_a_wrong_cell_would_be_seen():
    centres, weights = generators(9)
    cells = planar_cells(*as_affine(centres, weights), 1, BOX)
    assert agreement(cells, nearest(centres, np.zeros(9)), side=40)["agree"] < 1600
    assert located(cells, np.array([(9.0, 9.0)])) == [frozenset()]


def test_what_cannot_be_parted_is_a_sentence():
    centres, weights = generators(4)
    with pytest.raises(SplinterpError, match="at least one and at most 4"):
        planar_cells(*as_affine(centres, weights), 5, BOX)
    twice = np.concatenate([centres, centres[:1]]), np.concatenate([weights, weights[:1]])
    with pytest.raises(SplinterpError, match="Two generators are the same"):
        planar_cells(*as_affine(*twice), 1, BOX)


@pytest.mark.parametrize("seed", range(3))
def test_a_plane_cuts_a_power_diagram_out_of_a_voronoi_diagram_in_space(seed):
    """At every point of a grid, for a plane that lies askew; and the other way round by h = √(α_max − α)."""
    draw = np.random.default_rng(seed)
    centres = draw.uniform(-2, 2, (14, 3))
    axes, origin = np.linalg.qr(draw.normal(size=(3, 2)))[0].T, draw.normal(size=3)
    cells = planar_cells(*as_affine(*slice_weights(centres, origin, axes)), 1, BOX)
    space = [frozenset((int(i),)) for i in np.linalg.norm((grid(BOX, 80) @ axes + origin)[:, None] - centres, axis=2).argmin(1)]
    assert located(cells, grid(BOX, 80)) == space
    flat, weights = generators(14, seed=seed)
    up = lifted(flat, weights)
    assert up[:, 2].min() == 0
    assert agreement(planar_cells(*as_affine(flat, weights), 1, BOX), nearest_in_space(up), side=80)["agree"] == 6400


def test_the_figures(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "figures", "--out", str(tmp_path), "--json"])
    assert not end.value.code
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "figures.json").read_text())
    assert list(result["figures"]) == ["figure-5", "figure-6", "figure-6-variation", "figure-7", "figure-7-variation"]
    for name, told in result["figures"].items():
        for found in told["checks"].values():
            assert found["agree"] == found["points"] == 160**2
        ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert figures_table(result).count("25,600 of 25,600") == 13
    # The published scripts' other weights and heights are told as what they are.
    assert 0.5 < result["figures"]["figure-7"]["facts"]["published weights share"]["agree"] / 160**2 < 1
    assert 0.5 < result["figures"]["figure-7-variation"]["facts"]["linear heights share"]["agree"] / 160**2 < 1
    page = (tmp_path / "figures.html").read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 5
    assert "http" not in page


def test_a_picture_is_the_same_to_the_byte_each_time(tmp_path):
    centres, weights = generators(9)
    for folder in ("a", "b"):
        made, (ax,) = figure(3, 3)
        frame(ax, BOX, "cells")
        draw_cells(ax, planar_cells(*as_affine(centres, weights), 2, BOX))
        save(made, tmp_path / folder, "cells")
    for suffix in ("svg", "png"):
        assert (tmp_path / "a" / f"cells.{suffix}").read_bytes() == (tmp_path / "b" / f"cells.{suffix}").read_bytes()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_the_scripts_sae_is_the_scripts_sae(variant):
    """Against a plain one: one seed alone, row by row, and no shortcut for the variants whose encoder has no gradient."""
    model = paper_code(replace(variant, steps=6), (3, 4), False, lambda *_: None)[1]
    x = points(4)
    W1, W2, b = (p.clone().requires_grad_() for p in beginning(variant, x, 4))
    adam = torch.optim.Adam([W1, W2, b], lr=variant.rate)

    def hats():
        code, rows = x @ (W1 / W1.norm(dim=1, keepdim=True)).T + b, []
        for row in code:
            kept = torch.topk(row, variant.latents if variant.k == 1 else variant.k)
            share = torch.full((variant.k,), 1 / variant.k) if variant.hard else (kept.values / 0.3).softmax(0)
            rows.append(share @ (W2 / W2.norm(dim=1, keepdim=True))[kept.indices])
        return torch.stack(rows)

    first = hats().detach()
    for _ in range(6):
        adam.zero_grad()
        torch.nn.functional.mse_loss(hats(), x).backward()
        adam.step()
    ours = model.reconstruct(x).detach()
    assert torch.allclose(ours, hats(), atol=1e-5)
    assert not torch.allclose(ours, first, atol=1e-3)
    assert ours.norm(dim=1).max() <= 1 + 1e-6  # within the unit disc,
    assert mse(ours, x) >= disc_error(x)  # whatever that costs
    assert model.trained != variant.hard


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_our_toy_saes_have_the_decoder_of_least_squares_and_regions_that_are_the_pictures(variant):
    model = paper(variant, (1,), True, lambda *_: None)[0]
    x = points(1)
    hats = model.reconstruct(x).detach().double()
    active = model.active(x)
    pre = (x.double() @ model.directions.double().T + model.offsets) * active
    z = active.double() / variant.k if variant.hard else pre
    design = torch.cat([z, torch.ones(len(x), 1, dtype=torch.float64)], 1).numpy()
    best = design @ np.linalg.lstsq(design, x.double().numpy(), rcond=None)[0]
    assert mse(hats, x) == pytest.approx(mse(torch.from_numpy(best), x), abs=2e-5)
    cells = planar_cells(model.directions.double().numpy(), model.offsets.double().numpy(), model.k, (-3, 3, -3, 3), model.relu)
    assert located(cells, x.double().numpy()) == [frozenset(row.nonzero()[:, 0].tolist()) for row in active]


def test_regions_means_and_axes_of_the_toy():
    x = points(0)
    assert x.shape == (100, 2)
    assert torch.equal(x, points(0))
    assert not torch.equal(x, points(1))
    three = kmeans_regions(x, 3)
    labels = three.of(x)
    means = torch.stack([x[labels == i].double().mean(0) for i in range(3)])
    assert three.mse(x, 0) == pytest.approx(float((means[labels] - x).square().mean()), rel=1e-5)
    total = sum(np.linalg.svd((x[labels == i].double() - means[i]).numpy())[1][1] ** 2 for i in range(3))
    assert three.mse(x, 1) == pytest.approx(total / 200, rel=1e-4)
    assert three.mse(x, 2) < 1e-12
    assert torch.allclose(pca_of(x, labels).means, means, atol=1e-6)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "ALTERNATIONS", 60)
        patch.setattr(recipe, "VARIANTS", tuple(replace(v, steps=v.steps // 20) for v in VARIANTS))
        return play(Toy(seeds=(0, 1), quick=True), out), out


def test_what_holds_of_the_toy_whatever_comes_out(played):
    result, _ = played
    assert [(arm["preset"], arm["name"]) for arm in result["arms"]] == list(
        itertools.product(("paper", "paper-code"), [v.name for v in VARIANTS])
    )
    for arm in result["arms"]:
        f = {name: figures["values"] for name, figures in arm["figures"].items()}
        for s in range(2):
            assert f["k-means"][s] > f["pca"][s]
            assert f["k-means, as many"][s] >= f["pca, as many"][s]
            assert f["means of its own"][s] >= f["pca of its own"][s] - 1e-12
            if arm["preset"] == "paper":  # affine on its regions: Theorem 2.6
                assert f["sae"][s] >= f["pca of its own"][s] - 1e-9
            if arm["hard"]:  # and constant there
                assert f["sae"][s] >= f["means of its own"][s] - 1e-9
            if "disc" in f:
                assert f["sae"][s] >= f["disc"][s]
        for found in arm["verdicts"].values():
            assert found["both"] <= min(found["kmeans_above_sae"], found["sae_above_pca"]) <= found["seeds"] == 2
            assert (found["verdict"] == "holds") == (found["both"] == 2)


def test_what_the_toy_leaves(played):
    result, out = played
    assert json.loads((out / "toy.json").read_text()) == json.loads(json.dumps(result))
    names = {path.name for path in out.iterdir()}
    assert {"toy.html", "toy.png", "toy.svg", "paper-k3-hard-better-inits.svg", "paper-code-k1.png"} < names
    assert (out / "toy.html").read_text().count("<img ") == 9
    lines = toy_table(result).splitlines()
    assert "2 seeds (mean ± sd), a tenth of the training" in lines[0]
    assert lines[2].startswith("paper. as in the paper: 3 regions of k-means: holds in ")
    assert len(lines) == 5 + 2 + 8 + 1 + 2 + 24
    with pytest.raises(SplinterpError, match="no preset 'papers'"):
        Toy(("papers",))
    with pytest.raises(SplinterpError, match="--seeds must be different numbers"):
        Toy(seeds=(1, 1))


# -- the alternation ---------------------------------------------------------------------------------------------------------------------

OBJECTIVES = {
    "relu": Objective(None, l1=0.8, alpha=2.0, beta=1.0, mu_enc=3.0, nu_enc=2.0, mu_dec=5.0, nu_dec=4.0),
    "relu, no pulls": Objective(None, l1=0.8, alpha=2.0),
    "topk": Objective(3, alpha=1.0, mu_enc=3.0, nu_enc=2.0, mu_dec=5.0, nu_dec=4.0),
}


def some_rows(n: int = 120, d: int = 8) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    codes = torch.rand(n, 20, generator=draw, dtype=torch.float64) * (torch.rand(n, 20, generator=draw) < 0.15)
    return codes @ torch.randn(20, d, generator=draw, dtype=torch.float64)


def turns_of(objective, n=60, **options):
    x = some_rows()
    start = Parameters.begun(8, 24, seed=0)
    turns = list(itertools.islice(alternation(x, objective, start, 3, **options), n))
    return summed_up(objective.value(x, start), turns)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_all_rows_no_half_step_raises_the_objective_and_its_pulls(name):
    """Theorems 3.1 and C.6: F(t+½) + D_enc ≤ F(t) and F(t+1) + D_dec ≤ F(t+½), in float64, over 120 half-steps."""
    found = turns_of(OBJECTIVES[name])
    assert found["half_steps"] == 120
    assert (found["rose"], found["rose_with_pulls"]) == (0, 0)
    assert found["turns"][-1]["decoder"] < 0.7 * found["begun"]
    pulls = [turn[half] for turn in found["turns"] for half in ("pull_enc", "pull_dec")]
    assert all(pull >= 0 for pull in pulls)
    assert any(pull > 0 for pull in pulls) == ("no pulls" not in name)


def changed(**by):
    def solve(statistics, penalties, W0, b0):
        return solve_decoder(statistics, replace(penalties, **by), W0=W0, b0=b0)

    return solve


def misplaced(statistics, penalties, W0, b0):
    solved = solve_decoder(statistics, penalties, W0=W0, b0=b0)
    return Decoder(solved.W_dec.roll(1, 0), solved.b_dec, solved.how, 0.0)


def from_zero(statistics, penalties, W0, b0):
    return solve_decoder(statistics, penalties, W0=0 * W0, b0=0 * b0)


@pytest.mark.parametrize(
    "wrong", [changed(alpha=0.0, mu=0.0), changed(alpha=500.0), misplaced, from_zero],
    ids=["penalties forgotten", "another ridge", "rows misplaced", "pulled towards zero"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["relu", "topk"])
def test_a_wrong_solve_is_seen(name, wrong):
    assert turns_of(OBJECTIVES[name], 20, solve=wrong)["rose_with_pulls"] > 0


def test_the_encoders_gradient_is_the_objectives():
    x, start = some_rows(), Parameters.begun(8, 24, seed=0)
    for objective in OBJECTIVES.values():
        moved = Parameters(start.W_enc + 0.1, start.b_enc + 0.05, start.W_dec, start.b_dec)
        by_W, by_b = gradient(x, objective, moved, start)
        W, b = moved.W_enc.clone().requires_grad_(), moved.b_enc.clone().requires_grad_()
        pre = x @ W.T + b
        z = pre.relu()
        if objective.k is not None:
            z = z * torch.zeros_like(z).scatter(1, pre.topk(objective.k, dim=1).indices, 1.0)
        error = (z @ start.W_dec + start.b_dec - x).square().sum() + objective.l1 * z.sum()
        pulls = objective.mu_enc * (W - start.W_enc).square().sum() + objective.nu_enc * (b - start.b_enc).square().sum()
        ((error + pulls) / x.numel()).backward()
        assert torch.allclose(by_W, W.grad, atol=1e-12)
        assert torch.allclose(by_b, b.grad, atol=1e-12)


def test_convergence(tmp_path, capsys):
    with stores.create(tmp_path / "acts.zarr", sites={"hook": 8}, dtype="float32", rows=400) as writer:
        writer.add({"hook": some_rows(400).float()}, {})
        store = writer.finish()
    config = Convergence(rows=128, latents=32, turns=12)
    result = converge(config, store, "hook", tmp_path / "out")
    for by in result["curves"].values():
        assert by["full batch"]["rose_with_pulls"] == 0
        assert by["full batch"]["largest_rise"] <= ROUNDING
        assert by["batches"]["rose"] > 0
        assert len(by["batches"]["turns"]) == 12
    assert json.loads((tmp_path / "out" / "convergence.json").read_text()) == json.loads(json.dumps(result))
    for suffix in ("png", "svg", "html"):
        assert (tmp_path / "out" / f"convergence.{suffix}").stat().st_size > 1000
    arguments = ["--store", store.path, "--rows", 128, "--latents", 32, "--turns", 12, "--out", tmp_path / "out"]

    def command(*more):
        with pytest.raises(SystemExit) as end:
            main(["reproduce", "convergence", *map(str, [*arguments, *more])])
        return end.value.code, capsys.readouterr()

    code, told = command("--json")
    assert not code
    assert json.loads(told.out) == json.loads(json.dumps(result))
    code, told = command("--rows", 1000)
    assert code == 1
    assert "training rows, and --rows asks for 1,000; give fewer" in told.err
    assert command("--turns", 1)[0] == 1
