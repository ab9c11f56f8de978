"""Rows chosen by position, every n-th token, outliers left out: what is stored is what a plain reading of the options says."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splinterp import store
from splinterp.cli import main
from splinterp.errors import Interrupted, SplinterpError, StoreError, TextError
from splinterp.harvest import HarvestConfig, harvest, plan, run
from splinterp.harvest.arrange import arranged
from splinterp.harvest.evaluation import evaluation_batches
from splinterp.harvest.outliers import norm_bounds
from splinterp.harvest.selection import parse_positions
from splinterp.ranks import Ranks

BOS, CONTEXT = 0, 24
SITES = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
token_lists = st.lists(st.lists(st.integers(0, 5), max_size=12), max_size=30)


@pytest.fixture
def config(gpt2_dir, jsonl, tmp_path) -> HarvestConfig:
    return HarvestConfig(
        model=str(gpt2_dir), layers=(0, 2), dataset=str(jsonl), tokens=10**6, context=CONTEXT, batch_size=4, dtype="float32",
        out=tmp_path / "s.zarr",
    )  # fmt: skip


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("[!.]*")) if file.is_file()}


def places(opened: store.Store) -> list[tuple[int, int]]:
    """(sequence, position) of every row, in the store's order."""
    return list(zip(opened.column("sequence").tolist(), opened.column("position").tolist(), strict=True))


def by_place(opened: store.Store) -> dict[tuple[int, int], bytes]:
    """Every row's activations and numbers."""
    parts = [opened.acts(site, 0, opened.rows).numpy() for site in opened.sites]
    parts += [opened.column(name)[:, None] for name in opened.columns]
    return {place: b"".join(part[i].tobytes() for part in parts) for i, place in enumerate(places(opened))}


@st.composite
def specs(draw) -> tuple[str, set[int], bool, int]:
    """(spec, the positions that it names one by one, whether `last` is among them, the context)."""
    context = draw(st.integers(2, 9))
    parts, chosen = [], set()
    for first in draw(st.lists(st.integers(0, context - 1), min_size=1, max_size=5)):
        end = draw(st.integers(first + 1, 12))
        kind = draw(st.sampled_from(["last", "one", "range", "from", "to"]))
        parts.append(
            {"last": "last", "one": f" {first}", "range": f"{first}:{end} ", "from": f"{first}:", "to": f":{end}"}[kind]
        )
        chosen |= set(
            {"last": (), "one": [first], "range": range(first, end), "from": range(first, 99), "to": range(end)}[kind]
        )
    return ",".join(parts), chosen, "last" in parts, context


@settings(max_examples=300, deadline=None)
@given(specs())
def test_positions_are_read_as_written_and_written_as_read(drawn):
    spec, chosen, last, context = drawn
    positions = parse_positions(spec, context, bos_kept=True)
    assert positions.last == last
    assert set(np.flatnonzero(positions._replace(last=False).mask(np.ones(99, bool)))) == chosen
    assert parse_positions(str(positions), context, bos_kept=True) == positions
    ends = [edge for span in positions.spans for edge in span if edge is not None]
    assert all(a < b for a, b in pairwise(ends))


def stream(documents, packing, **changes):
    """(sequence, position, id) of every kept token, in the order of the stream."""
    settings = {"context": 8, "bos": BOS, "separator": BOS, "batch_size": 3, "keep_bos": False, "skip": (), "tokens": 10**9}
    numbered = ((i, np.array(ids, np.int64)) for i, ids in enumerate(documents))
    for batch in arranged(numbered, packing, **settings | changes):
        for row, position in zip(*np.nonzero(batch.keep), strict=True):
            yield int(batch.sequence[row]), int(position), int(batch.ids[row, position])


@settings(max_examples=300, deadline=None)
@given(
    token_lists, specs(), st.sampled_from(["packed", "document"]), st.booleans(), st.sampled_from([(), (2, 5)]), st.integers(1, 5),
    st.integers(1, 4),
)  # fmt: skip
def test_what_is_kept_is_what_a_plain_reading_keeps(documents, drawn, packing, keep_bos, skip, every, batch_size):
    spec, chosen, last, context = drawn
    all_of_it = {"context": context, "batch_size": batch_size}
    text = [token for token in stream(documents, packing, **all_of_it) if token[2] not in skip]
    last_of_row = {sequence: position for sequence, position, _ in text}
    expected = []
    for sequence, position, token in stream(documents, packing, keep_bos=keep_bos, **all_of_it):
        at = position in chosen or (last and last_of_row.get(sequence) == position)
        if at and token not in skip:
            expected.append((sequence, position, token))
    found = stream(documents, packing, keep_bos=keep_bos, skip=skip, positions=spec, every=every, **all_of_it)
    if not keep_bos and {"0", "0:1", ":1"} & {part.strip() for part in spec.split(",")}:
        with pytest.raises(TextError, match="Position 0 is that of BOS"):
            next(found)
    else:
        assert list(found) == expected[::every]


@settings(max_examples=100, deadline=None)
@given(token_lists, st.integers(1, 4), st.integers(1, 20), st.sampled_from([None, "last", "2:"]))
def test_documents_are_taken_from_the_beginning_of_the_text(documents, every, tokens, positions):
    whole = sorted(stream(documents, "document", positions=positions))
    enough = (tokens - 1) * every
    found = list(stream(documents, "document", positions=positions, every=every, tokens=tokens))
    if len(whole) > enough:
        assert max(found[:tokens])[0] <= whole[enough][0]


@pytest.mark.parametrize(
    ("packing", "positions", "every"),
    [("packed", "3:6,last", 1), ("packed", "0:9,20", 3), ("document", None, 7), ("document", "3:6,last", 2)],
)
def test_the_store_has_the_rows_chosen_and_no_others(config, tmp_path, packing, positions, every):
    config = dataclasses.replace(config, packing=packing)
    whole = harvest(dataclasses.replace(config, out=tmp_path / "whole.zarr"))
    some = harvest(dataclasses.replace(config, positions=positions, every=every))
    rows = by_place(whole)
    lasts = dict(sorted(rows))
    chosen = {None: range(99), "3:6,last": range(3, 6), "0:9,20": (*range(9), 20)}[positions]
    at = {p for p in rows if p[1] in chosen or (positions == "3:6,last" and lasts[p[0]] == p[1])}
    found = by_place(some)
    assert set(found) <= at
    assert len(found) == -(-len(at) // every)
    if packing == "packed":
        assert sorted(found) == sorted(at)[::every]
    # Rows that share a batch with others than before may differ in their last bits.
    assert all(found[place] == rows[place] for place in found) or packing == "document"
    assert some.attributes["positions"] == positions
    assert some.attributes["every"] == (every if every > 1 else None)
    other = harvest(dataclasses.replace(config, positions=positions, every=every, batch_size=7, out=tmp_path / "other.zarr"))
    assert places(other) == places(some)


def test_exactly_the_rows_asked_for(config):
    assert harvest(dataclasses.replace(config, tokens=57, positions="1:9", every=3, drop_outliers=1.5)).rows == 57


CHOOSY = {"positions": "2:,last", "every": 2, "drop_outliers": 1.05, "skip_tokens": (7,)}


def test_outliers_are_left_out_counted_and_replaced(config, tmp_path):
    whole = harvest(dataclasses.replace(config, out=tmp_path / "whole.zarr"))
    done = harvest(dataclasses.replace(config, tokens=300, drop_outliers=1.1))
    norms = {site: whole.acts(site, 0, whole.rows).norm(dim=1).double() for site in SITES}
    at = places(whole)
    order = sorted(range(whole.rows), key=at.__getitem__)
    first = [i for i in order if whole.column("sequence")[i] < 4]  # the first batch
    bounds = {site: 1.1 * float(np.median(norms[site][first])) for site in SITES}
    assert done.attributes["max_norms"] == pytest.approx(bounds)
    small = [all(norms[site][i] <= done.attributes["max_norms"][site] for site in SITES) for i in order]
    stored = [at[i] for i, keep in zip(order, small, strict=True) if keep][:300]
    assert sorted(places(done)) == stored
    seen = order.index(at.index(stored[-1])) + 1
    assert done.attributes["dropped_outliers"] == done.info()["dropped_outliers"] == seen - 300 > 0
    assert done.attributes["dropped_non_finite"] == 0
    assert done.attributes["drop_outliers"] == 1.1
    assert all(done.site(site).max_norm <= bounds[site] * 1.0001 for site in SITES)


def interrupt_after(batches: int):
    left = iter(range(batches - 1))

    def progress(rows, figures):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_a_resumed_harvest_is_the_uninterrupted_one(config, jsonl, tmp_path, monkeypatch, packing):
    (tmp_path / "longer.jsonl").write_text(jsonl.read_text() * 3)
    config = dataclasses.replace(
        config, dataset=str(tmp_path / "longer.jsonl"), tokens=515, packing=packing, memory=1, **CHOOSY
    )
    whole = harvest(config)
    assert (whole.rows, whole.chunks) == (515, 3)
    assert whole.attributes["dropped_outliers"] > 0
    for batches in (2, 8):
        broken = dataclasses.replace(config, out=tmp_path / f"{batches}.zarr")
        with pytest.raises(Interrupted, match="--resume"):
            harvest(broken, interrupt_after(batches))
        # What is measured anew may come out otherwise in its last bits, as on another GPU.
        with monkeypatch.context() as patch:
            patch.setattr(run, "norm_bounds", lambda rows, factor: dict.fromkeys(SITES, 1e-3))
            harvest(dataclasses.replace(broken, resume=True))
        assert tree(broken.out) == tree(config.out)


def test_a_resume_must_choose_as_before(config):
    config = dataclasses.replace(config, tokens=600, **CHOOSY)
    with pytest.raises(Interrupted):
        harvest(config, interrupt_after(2))
    for change, told in (
        ({"positions": "2:"}, "positions = 2:,last, not 2:"),
        ({"every": 1}, "every = 2, not None"),
        ({"drop_outliers": 1.2}, "drop_outliers = 1.05, not 1.2"),
        ({"drop_outliers": None}, "drop_outliers = 1.05, not None"),
    ):
        with pytest.raises(StoreError, match=f"was begun with {told}"):
            harvest(dataclasses.replace(config, resume=True, **change))


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_ranks_store_what_one_process_does(config, tmp_path, packing):
    config = dataclasses.replace(config, packing=packing, **CHOOSY)
    for tokens in (10**6, 200):
        config = dataclasses.replace(config, tokens=tokens, out=tmp_path / f"one-{tokens}.zarr")
        one = harvest(config)
        several = dataclasses.replace(config, out=tmp_path / f"several-{tokens}.zarr")
        for rank in (2, 0, 1):
            joined = harvest(several, planned=plan(several, Ranks(rank, 3, rank)))
        assert joined is not None
        assert joined.attributes["max_norms"] == one.attributes["max_norms"]
        left_out = joined.attributes["dropped_outliers"]
        if tokens == 10**6:
            assert by_place(joined) == by_place(one)
            assert left_out == one.attributes["dropped_outliers"] > 0
        else:  # counted before the forward pass, so that none comes in the place of those left out
            assert (one.rows, joined.rows) == (tokens, tokens - left_out)
            assert by_place(joined).items() <= by_place(one).items()
            assert left_out > 0


def test_evaluation_looks_at_the_positions_that_were_harvested(config):
    _, batches = evaluation_batches(config.model, config.dataset, 200, context=CONTEXT, positions="3:5,last", device="cpu")
    for ids, mask in batches:
        assert set(mask.nonzero()[:, 1].tolist()) == {3, 4, ids.shape[1] - 1}


@pytest.mark.parametrize("rows", [torch.zeros(5, 3), torch.full((5, 3), torch.nan)], ids=["zero", "not finite"])
def test_without_a_norm_to_go_by_there_are_no_outliers(rows):
    with pytest.raises(SplinterpError, match=r"has no rows at b by whose norms .* leave --drop-outliers out"):
        norm_bounds({"a": torch.ones(5, 3), "b": rows}, 10)
    mixed = torch.tensor([[1.0], [float("inf")], [3.0], [2.0]])
    assert norm_bounds({"a": mixed}, 10) == {"a": 20.0}


MISTAKES = [
    (["--positions", "first"], "'first' names no positions; write last, a number, or a range such as 5:10"),
    (["--positions", "-1"], "'-1' names no positions"),
    (["--positions", ":"], "':' names no positions"),
    (["--positions", "3,"], "'' names no positions"),
    (["--positions", "1:2:3"], "'1:2:3' names no positions"),
    (["--positions", "9:5"], "The range 9:5 holds no position"),
    (["--positions", "last,16"], "There is no position 16 in a context of 16 tokens; they are 0..15"),
    (["--positions", "16:"], "There is no position 16 in a context of 16 tokens"),
    (["--positions", "0"], "Position 0 is that of BOS, whose rows are left out; name others, or keep it with --keep-bos"),
    (["--positions", ":1"], "Position 0 is that of BOS"),
    (["--drop-outliers", "1"], "Outliers are told by a factor above 1 of the median norm, for example 10, not by 1."),
    (["--drop-outliers", "nan"], "not by nan"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=[" ".join(arguments) for arguments, _ in MISTAKES])
def test_every_mistake_has_its_sentence(gpt2_dir, tmp_path, capsys, arguments, sentence):
    out = tmp_path / "s.zarr"
    with pytest.raises(SystemExit) as end:
        main(["harvest", "--model", str(gpt2_dir), "--layer", "1", "--context", "16", "--out", str(out), *arguments])
    assert end.value.code == 1
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_texts_that_do_not_reach_the_positions(config, tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(TextError, match="or too short for the positions 20:"):
        harvest(dataclasses.replace(config, dataset=str(tmp_path / "a.txt"), positions="20:"))
    with pytest.raises(SplinterpError, match="Of every 0 tokens none can be stored"):
        dataclasses.replace(config, every=0)


def test_the_command_line_takes_and_tells_all_of_it(gpt2_dir, jsonl, tmp_path, capsys):
    out = str(tmp_path / "s.zarr")
    with pytest.raises(SystemExit) as end:
        main(
            ["harvest", "--model", str(gpt2_dir), "--layer", "1", "--dataset", str(jsonl), "--context", "16", "--tokens", "90", "--out", out,
             "--positions", "last, 4:9", "--every", "2", "--drop-outliers", "1.1"]
        )  # fmt: skip
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "of its tokens positions 4:9,last, one in 2, none above 1.1 times the median norm" in told
    dropped = store.open(out).info()["dropped_outliers"]
    assert dropped > 0
    assert f", {dropped:,} outliers left out." in told
    with pytest.raises(SystemExit):
        main(["info", out])
    told = capsys.readouterr().out
    assert "blocks.1.hook_resid_post: median norm " in told
    assert " 0 rows (0.00%) above 10 times that" in told
    assert f"dropped_outliers: {dropped}" in told
