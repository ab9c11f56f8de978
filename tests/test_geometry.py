"""The geometry of SAEs: their regions are the power diagrams that theory says, and what it does not say has a counterexample."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from splinterp.errors import SAEError, SplinterpError
from splinterp.geometry import (
    DiagramCheck,
    PowerDiagram,
    Visits,
    active_generators,
    affine_error,
    arrangement_generators,
    check_arrangement,
    conditions,
    fingerprints,
    generators,
    half_spaces,
    nearest_border,
    region_map,
    survey,
)
from splinterp.sae import SAE, SAEConfig, to_dense

D_IN, D_SAE, K, N = 12, 40, 5, 700
KINDS = [
    ("topk", {}),
    ("topk", {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": True}),
    ("abstopk", {}),
    ("abstopk", {"apply_b_dec_to_input": True, "rescale_acts_by_decoder_norm": True}),
    ("standard", {"apply_b_dec_to_input": True}),
    ("jumprelu", {}),
]
every_kind = pytest.mark.parametrize(("architecture", "conventions"), KINDS)
with_k = pytest.mark.parametrize(("architecture", "conventions"), KINDS[:4])


def random_sae(architecture, conventions, d_in=D_IN, d_sae=D_SAE, k=K, seed=0) -> SAE:
    draw = torch.Generator().manual_seed(seed)
    config = SAEConfig(architecture, d_in, d_sae, k if "topk" in architecture else None, **conventions)
    # Some latents look for more than others, and the biases matter.
    W_enc = torch.randn(d_in, d_sae, generator=draw) * (0.3 + torch.rand(d_sae, generator=draw))
    threshold = 2 * torch.rand(d_sae, generator=draw) - 0.5 if architecture == "jumprelu" else None
    W_dec = torch.randn(d_sae, d_in, generator=draw)
    return SAE(config, W_enc, torch.randn(d_sae, generator=draw), W_dec, torch.randn(d_in, generator=draw), threshold)


def random_rows(n=N, d_in=D_IN, seed=1):
    return 2 * torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))


@with_k
def test_the_nearest_weighted_centres_are_the_active_set(architecture, conventions):
    sae = random_sae(architecture, conventions)
    check = DiagramCheck(sae)
    assert len(check.diagram.weights) == (2 * D_SAE if architecture == "abstopk" else D_SAE)
    for x in random_rows().split(300):
        check.add(x)
    counts = check.counts
    assert (counts.rows, counts.share) == (N, 1.0)
    assert counts.tied <= N // 100
    if not conventions:  # by the theorem's own words, from the weights: μ_i = w_i, α_i = 2·b_i + ‖w_i‖²
        x = random_rows()
        w, b = sae.W_enc.T.double(), sae.b_enc.double()
        signs = (1, -1) if architecture == "abstopk" else (1,)
        distances = torch.cat([((x[:, None] - s * w) ** 2).sum(2) - (2 * s * b + w.square().sum(1)) for s in signs], 1)
        nearest = torch.zeros_like(distances).scatter(1, distances.topk(K, largest=False).indices, 1.0)
        selected = torch.zeros(N, D_SAE).scatter(1, sae.encode(x).indices, 1.0)
        assert torch.equal(sum(nearest.split(D_SAE, dim=1)), selected.double())


@with_k
@pytest.mark.parametrize("wrong", ["weights", "centres"])
def test_another_diagram_is_found_out(architecture, conventions, wrong):
    check = DiagramCheck(random_sae(architecture, conventions))
    other = {wrong: getattr(check.diagram, wrong) * 1.2}
    check.diagram = replace(check.diagram, **other)
    check.add(random_rows())
    assert check.counts.share < 0.9


def test_rows_with_fewer_than_k_active_are_counted_and_verified_by_what_is_active():
    sae = random_sae("topk", {}, k=20)
    check, x = DiagramCheck(sae), random_rows()
    check.add(x)
    positive = (to_dense(sae.encode(x), D_SAE) > 0).sum(1)
    assert 0 < check.counts.short == int((positive < 20).sum()) < N
    assert check.counts.share == 1.0


def test_ties_are_counted_apart():
    sae = random_sae("topk", {})
    x = random_rows()
    own = generators(sae)
    # Each row is moved to where its K-th and its next pre-activation are the same, as far as float32 can say.
    best = own.pre_activations(x).topk(K + 1)
    apart = own.directions[best.indices[:, K - 1]] - own.directions[best.indices[:, K]]
    step = (best.values[:, K - 1] - best.values[:, K]) / apart.square().sum(1)
    tied = (x.double() - step[:, None] * apart).float()
    check = DiagramCheck(sae)
    check.add(tied)
    assert check.counts.tied > 0.9 * N
    assert check.counts.agree < N
    assert not check.counts.share < 1


def test_zero_and_duplicate_rows_of_the_encoder_are_found():
    sae = random_sae("topk", {})
    assert conditions(sae) == (0, 0, 0)
    sae.W_enc[:, 3] = -0.0
    sae.W_enc[:, 7] = sae.W_enc[:, 8]
    sae.W_enc[:, 9] = sae.W_enc[:, 8]
    sae.b_enc[9] = sae.b_enc[8]
    assert conditions(sae) == (1, 2, 1)
    signed = replace(sae, config=replace(sae.config, architecture="abstopk"))
    signed.W_enc[:, 20] = -signed.W_enc[:, 21]
    # Of ±w the zero meets itself, both signs of the pair meet the third's, and w_20 is −w_21.
    assert conditions(signed) == (1, 1 + 2 * 2 + 2, 2)


@every_kind
def test_a_regions_map_is_the_sae_on_all_of_it(architecture, conventions):
    sae = random_sae(architecture, conventions)
    x = random_rows(40)
    assert affine_error(sae, x) < 1e-13
    found = region_map(sae, x[0])
    assert torch.linalg.matrix_rank(found.slope) <= len(found.latents)
    # The ball around a row that does not reach its border lies in the region: one map for all of it.
    radius = float(nearest_border(generators(sae), x[:1]).distance[0])
    around = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    around = x[0].double() + 0.999 * radius * around / around.norm(dim=1, keepdim=True)
    double = sae.to(dtype=torch.float64)
    assert (found(around) - double(around)).norm() <= 1e-12 * double(around).norm()


def brute_force_borders(own, x):
    """The distance by every hyperplane of every region, pair by pair."""
    pre, active = own.pre_activations(x), own.active(x)
    distances = []
    for p, on in zip(pre, active, strict=True):
        inside, outside = on.nonzero()[:, 0].tolist(), (~on).nonzero()[:, 0].tolist()
        full = own.k is not None and len(inside) == own.k
        found = [p[i] / own.directions[i].norm() for i in inside]
        found += [] if full else [-p[j] / own.directions[j].norm() for j in outside]
        pairs = itertools.product(inside, outside) if full else ()
        found += [(p[i] - p[j]) / (own.directions[i] - own.directions[j]).norm() for i, j in pairs]
        distances.append(min(float(d) for d in found))
    return torch.tensor(distances, dtype=torch.float64)


@every_kind
@pytest.mark.parametrize(("strongest", "candidates"), [(1, 1), (3, 32), (256, 1), (256, 32)])
def test_the_nearest_border_is_the_nearest_and_the_neighbour_lies_behind_it(
    architecture, conventions, strongest, candidates, monkeypatch
):
    monkeypatch.setattr("splinterp.geometry.borders._STRONGEST", strongest)
    monkeypatch.setattr("splinterp.geometry.borders._CANDIDATES", candidates)
    sae = random_sae(architecture, conventions, k=20 if architecture == "topk" else K)  # with topk some rows have fewer than k
    own, x = generators(sae), random_rows(60)
    border = nearest_border(own, x)
    assert torch.allclose(border.distance, brute_force_borders(own, x), rtol=1e-9)
    zero = torch.zeros(D_IN, dtype=torch.float64)
    normals = [  # out of the region
        (own.directions[j] if j >= 0 else zero) - (own.directions[i] if i >= 0 else zero)
        for i, j in zip(border.leaves.tolist(), border.enters.tolist(), strict=True)
    ]
    for row, distance, normal, i, j in zip(x.double(), border.distance, normals, border.leaves, border.enters, strict=True):
        here, behind = (own.active((row + t * distance * normal / normal.norm())[None])[0] for t in (1 - 1e-6, 1 + 1e-6))
        assert torch.equal(here, own.active(row[None])[0])
        changed = {int(g) for g in (here != behind).nonzero()[:, 0]}
        assert changed == {int(g) for g in (i, j) if g >= 0}


def test_latents_without_a_direction_have_no_border():
    sae = random_sae("topk", {}, d_sae=3, k=2)
    sae.W_enc[:] = 0
    sae.b_enc[:] = torch.tensor([1.0, -1.0, 0.5])
    border = nearest_border(generators(sae), random_rows(5))
    assert border.distance.isinf().all()
    assert (border.leaves == -1).all()
    assert (border.enters == -1).all()
    sae.W_enc[:, 1] = 1.0  # can take the place of either, the weaker one first
    border = nearest_border(generators(sae), random_rows(5))
    switched_on = border.enters == 1
    assert switched_on.any()
    assert border.distance.isfinite()[switched_on].all()


def test_visits_count_regions_as_sets_do_and_say_where_they_stop():
    active = torch.rand(5000, 6, generator=torch.Generator().manual_seed(0)) < 0.3
    counts = {}
    for row in active.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    visits, few = Visits(), Visits(most=10)
    for some in active.split(900):
        visits.add(some)
        few.add(some)
        few.figures()
    assert visits.figures() == (len(counts), True, list(counts.values()).count(1), max(counts.values()))
    assert visits.figures() == visits.figures()
    assert few.figures()[:2] == (10, False)
    assert len(fingerprints(torch.eye(300, dtype=torch.bool)).unique(dim=0)) == 300


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
@pytest.mark.parametrize(("d_in", "d_sae"), [(2, 6), (3, 5), (12, 40)])
def test_the_cells_of_relu_and_jumprelu_are_a_power_diagrams(architecture, d_in, d_sae):
    sae = random_sae(architecture, {}, d_in, d_sae)
    x = random_rows(1500, d_in)
    assert check_arrangement(sae, x).share == 1.0
    if d_sae <= 6:  # of the generators of all 2^d sets, realised or not
        own = generators(sae)
        sets = torch.tensor(list(itertools.product([False, True], repeat=d_sae)))
        centres, weights = arrangement_generators(own, sets)
        nearest = (((x.double()[:, None] - centres) ** 2).sum(2) - weights).argmin(1)
        assert torch.equal(sets[nearest], own.active(x))
    for row in x[:5]:
        inside = half_spaces(sae, row)
        own_cell = (active_generators(sae, sae.encode(x)) == active_generators(sae, sae.encode(row[None]))).all(1)
        assert torch.equal(inside.contain(x), own_cell)


def test_parallel_hyperplanes_and_duplicates_do_not_matter_to_an_arrangement():
    sae = random_sae("standard", {}, 2, 6)
    sae.W_enc[:, 1], sae.W_enc[:, 2] = sae.W_enc[:, 0], -sae.W_enc[:, 0]
    sae.b_enc[3:] = 0  # three lines through one point
    assert check_arrangement(sae, random_rows(1500, 2)).share == 1.0


def test_the_latents_own_generators_are_no_diagram_of_relu():
    """Two lines in the plane have four cells; two generators have two cells in order 1, and one in order 2."""
    sae = random_sae("standard", {}, 2, 2)
    x = 20 * random_rows(2000, 2)
    active = active_generators(sae, sae.encode(x))
    assert len(active.unique(dim=0)) == 4
    assert set(active.sum(1).tolist()) == {0, 1, 2}  # an order K would have K everywhere
    for k in (1, 2):
        diagram = PowerDiagram.of(random_sae("topk", {}, 2, 2, k=k))
        nearest = diagram.distances(x).topk(k, largest=False).indices.sort(1).values
        assert len(nearest.unique(dim=0)) == {1: 2, 2: 1}[k]
    with pytest.raises(SAEError, match="no diagram of a fixed order"):
        PowerDiagram.of(sae)
    with pytest.raises(SAEError, match="power diagram"):
        half_spaces(random_sae("topk", {}), random_rows(1)[0])


def test_the_map_of_relu_is_a_convex_functions_gradient_only_with_tied_weights():
    """A gradient of a convex function is monotone, (x̂(x) − x̂(y))·(x − y) ≥ 0, and its slopes are symmetric."""
    sae = random_sae("standard", {})
    tied = replace(sae, W_dec=sae.W_enc.T.contiguous())
    against = replace(sae, W_dec=-sae.W_enc.T)
    x, y = random_rows(seed=2), random_rows(seed=3)
    rises = lambda s: ((s(x) - s(y)) * (x - y)).sum(1)  # noqa: E731
    assert (rises(tied) >= 0).all()
    assert (rises(against) < 0).all()
    slope = region_map(sae, x[0]).slope
    assert (slope - slope.T).norm() > 0.1 * slope.norm()


def test_the_map_of_jumprelu_jumps_at_a_border_and_that_of_relu_does_not():
    for architecture, jumps in (("jumprelu", True), ("standard", False)):
        sae = random_sae(architecture, {}).to(dtype=torch.float64)
        own, row = generators(sae), random_rows(1).double()
        border = nearest_border(own, row)
        latent = int(torch.maximum(border.leaves, border.enters))
        normal = own.directions[latent] * (1 if border.enters[0] >= 0 else -1) / own.directions[latent].norm()
        sides = [sae(row + (border.distance + eps) * normal) for eps in (-1e-9, 1e-9)]
        jump = max(float(sae.threshold[latent]), 0.0) * float(sae.W_dec[latent].norm()) if jumps else 0.0
        assert float((sides[1] - sides[0]).norm()) == pytest.approx(jump, abs=1e-6)
        assert (jump > 0.01) == jumps


@every_kind
def test_a_survey_puts_it_together(architecture, conventions):
    sae, x, told = random_sae(architecture, conventions), random_rows(), []
    found = survey(sae, x.split(300), 500, told.append)
    assert (found["n_rows"], told[-1], found["verified"]) == (500, 500, 1.0)
    assert found["map_error"] < 1e-13
    own = generators(sae)
    assert found["border_min"] == pytest.approx(float(nearest_border(own, x[:500]).distance.min()), rel=1e-9)
    assert found["regions"] == len(own.active(x[:500]).unique(dim=0))
    assert (found["short"] is None) == (architecture in ("standard", "jumprelu"))
    with pytest.raises(SplinterpError, match="no rows"):
        survey(sae, [], 5)
