"""merge and subset: merged is the whole, a subset is what was asked for, and inputs are never touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from splinterp import store
from splinterp.errors import StoreError

COLUMNS = ("token_id", "position", "document", "sequence")


def make(path, rows: int, salt: int = 0, *, d: int = 3, columns=COLUMNS, sites=("h0", "h1"), dtype="bfloat16", **options):
    """Rows that say where they are from: column 0 is the row's number modulo 128, column 1 the quotient, column 2 the salt."""
    i = torch.arange(rows)
    x = torch.stack([i % 128, i // 128, torch.full((rows,), salt)] + [i % 7] * (d - 3), 1).float()
    numbers = {"token_id": i % 11, "position": i % 8, "document": i // 20, "sequence": i // 8}
    attributes = {"model": "tiny", "dataset": f"d{salt}", **options.pop("attributes", {})}
    with store.create(path, sites=dict.fromkeys(sites, d), dtype=dtype, columns=columns, rows=rows, chunk_rows=100,
                      attributes=attributes, **options) as writer:  # fmt: skip
        writer.add({site: x + k for k, site in enumerate(sites)}, {name: numbers[name] for name in columns})
        (path / "tokenizer").mkdir()
        (path / "tokenizer" / "tokenizer.json").write_text("{}")
        return writer.finish()


def rows_of(s) -> list[tuple]:
    acts = [s.acts(site, 0, s.rows).double().tolist() for site in s.sites]
    columns = [s.column(name).tolist() for name in s.columns]
    return sorted(zip(*(map(tuple, a) for a in acts), *columns, strict=True))


def shifted(rows: list[tuple], document: int, sequence: int) -> list[tuple]:
    return [(*row[:-2], row[-2] + document, row[-1] + sequence) for row in rows]


def test_merged_is_the_whole(tmp_path):
    parts = [make(tmp_path / f"s{k}", rows, k) for k, rows in enumerate((250, 90, 401))]
    calls = []
    whole = store.merge([p.path for p in parts], tmp_path / "m", progress=lambda *done: calls.append(done))
    assert store.verify(tmp_path / "m", full=True) == []
    documents, sequences = np.cumsum([0, 13, 5]), np.cumsum([0, 32, 12])
    expected = [r for p, d, s in zip(parts, documents, sequences, strict=True) for r in shifted(rows_of(p), int(d), int(s))]
    assert rows_of(whole) == sorted(expected)
    assert len(set(zip(whole.column("sequence").tolist(), whole.column("position").tolist(), strict=True))) == 741
    assert calls[-1] == (741, 741)
    told = whole.attributes
    assert told["model"] == "tiny"
    assert "dataset" not in told
    assert told["differing"] == {"dataset": ["d0", "d1", "d2"]}
    assert [one["fingerprint"] for one in told["merged_from"]] == [p.fingerprint for p in parts]
    assert (tmp_path / "m" / "tokenizer" / "tokenizer.json").read_text() == "{}"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 300), min_size=2, max_size=4), dtype=st.sampled_from(["bfloat16", "float16", "float32"]))
def test_merging_never_loses_or_doubles_a_row(tmp_path_factory, sizes, dtype):
    root = tmp_path_factory.mktemp("m")
    parts = [make(root / f"s{k}", n, k, columns=("position",), dtype=dtype) for k, n in enumerate(sizes)]
    whole = store.merge([p.path for p in parts], root / "m")
    assert rows_of(whole) == sorted(row for p in parts for row in rows_of(p))


def test_merged_rows_are_mixed_even_when_the_pool_is_small(tmp_path):
    parts = [make(tmp_path / f"s{k}", 20_000, k, columns=(), sites=("h",)) for k in range(2)]
    whole = store.merge([p.path for p in parts], tmp_path / "m", memory=2 * 4096 * 14)
    salts = whole.acts(None, 0, whole.rows)[:, 2]
    assert 0.1 < float(salts[: whole.rows // 2].mean()) < 0.9


def test_what_cannot_be_merged_is_refused(tmp_path):
    first = make(tmp_path / "s", 50)
    others = {
        "has the sites": make(tmp_path / "sites", 50, 1, sites=("h0",)),
        "width 4": make(tmp_path / "width", 50, 1, d=4),
        "float32": make(tmp_path / "dtype", 50, 1, dtype="float32"),
        "has the columns": make(tmp_path / "columns", 50, 1, columns=("position",)),
        "would double them": make(tmp_path / "twin", 50, 0),
    }
    for says, other in others.items():
        with pytest.raises(StoreError, match=says) as error:
            store.merge([first.path, other.path], tmp_path / "m")
        assert str(other.path) in str(error.value)
    with pytest.raises(StoreError, match="at least two"):
        store.merge([first.path], tmp_path / "m")
    good = make(tmp_path / "good", 50, 1)
    with pytest.raises(StoreError, match="another name"):
        store.merge([first.path, good.path], good.path, force=True)
    assert not (tmp_path / "m").exists()
    assert store.verify(good.path, full=True) == []


def test_counters_that_would_overflow_are_refused(tmp_path):
    for k in range(2):
        with store.create(tmp_path / f"s{k}", sites={"h": 2}, columns=("document",), rows=2) as writer:
            writer.add({"h": torch.full((2, 2), float(k))}, {"document": np.array([0, 2**32 - 2])})
            writer.finish()
    with pytest.raises(StoreError, match="'document' counts beyond"):
        store.merge([tmp_path / "s0", tmp_path / "s1"], tmp_path / "m")


def test_tokenizers_that_differ_are_not_kept(tmp_path):
    parts = [make(tmp_path / f"s{k}", 50, k) for k in range(2)]
    (tmp_path / "s1" / "tokenizer" / "tokenizer.json").write_text("[]")
    whole = store.merge([p.path for p in parts], tmp_path / "m")
    assert "tokenizer" in whole.attributes["differing"]
    assert not (tmp_path / "m" / "tokenizer").exists()


@pytest.mark.parametrize("rows", [1, 37, 399, 400])
def test_a_sample_is_seeded_and_without_repeats(tmp_path, rows):
    whole = make(tmp_path / "s", 400)
    one, same, other = (
        store.subset(whole.path, tmp_path / name, rows=rows, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    everything = rows_of(whole)
    assert one.rows == rows
    assert len(set(rows_of(one))) == rows
    assert set(rows_of(one)) <= set(everything)
    assert rows_of(one) == rows_of(same)
    assert rows in (1, 400) or rows_of(one) != rows_of(other)
    assert store.verify(one.path, full=True) == []
    assert one.attributes["subset_of"]["fingerprint"] == whole.fingerprint
    assert (one.attributes["model"], one.attributes["source"]) == ("tiny", "subset")
    assert (one.path / "tokenizer" / "tokenizer.json").exists()


def test_samples_are_uniform(tmp_path):
    whole = make(tmp_path / "s", 300, columns=("position",), sites=("h",))
    hits = np.zeros(300)
    for seed in range(60):
        taken = store.subset(whole.path, tmp_path / "t", rows=100, seed=seed, force=True).acts(None, 0, 100).long()
        hits[(taken[:, 0] + 128 * taken[:, 1]).numpy()] += 1
    assert hits.sum() == 6000
    # Binomial(60, 1/3): mean 20, standard deviation 3.7; a third of the store has a standard error of 0.37.
    assert hits.min() >= 4
    assert hits.max() <= 37
    assert all(abs(part.mean() - 20) < 2 for part in np.split(hits, 3))


def test_subsets_by_columns(tmp_path):
    whole = make(tmp_path / "s", 400)
    everything = rows_of(whole)
    by = {
        "token_ids": ([3, 5], lambda r: r[2] in (3, 5)),
        "positions": (range(1, 7), lambda r: 1 <= r[3] < 7),
        "documents": ({0, 19}, lambda r: r[4] in (0, 19)),
    }
    for i, (name, (values, keeps)) in enumerate(by.items()):
        part = store.subset(whole.path, tmp_path / f"p{i}", **{name: values})
        assert rows_of(part) == [r for r in everything if keeps(r)]
    both = store.subset(whole.path, tmp_path / "both", **{name: values for name, (values, _) in by.items()}, rows=2)
    matching = [r for r in everything if all(keeps(r) for _, keeps in by.values())]
    assert both.rows == 2
    assert set(rows_of(both)) <= set(matching)
    with pytest.raises(StoreError, match=f"has {len(matching)} such rows"):
        store.subset(whole.path, tmp_path / "x", **{name: values for name, (values, _) in by.items()}, rows=len(matching) + 1)


def test_what_cannot_be_a_subset_is_refused(tmp_path):
    whole = make(tmp_path / "s", 50, columns=("position",))
    for options, says in [
        ({}, "Say which rows"),
        ({"token_ids": [1]}, "no column 'token_id'"),
        ({"positions": [99]}, "No row of"),
        ({"positions": []}, "No row of"),
        ({"rows": 51}, "has 50 such rows"),
        ({"rows": 0}, "has 50 such rows"),
    ]:
        with pytest.raises(StoreError, match=says):
            store.subset(whole.path, tmp_path / "x", **options)
    with pytest.raises(StoreError, match="another name"):
        store.subset(whole.path, whole.path, rows=5, force=True)
    assert not (tmp_path / "x").exists()
    assert store.verify(whole.path, full=True) == []


def test_an_interrupted_merge_says_to_merge_again(tmp_path):
    parts = [make(tmp_path / f"s{k}", 5000, k) for k in range(2)]

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.merge([p.path for p in parts], tmp_path / "m", progress=interrupt)
    with pytest.raises(StoreError, match=r"splinterp merge \.\.\. --force"):
        store.open(tmp_path / "m")
    assert store.merge([p.path for p in parts], tmp_path / "m", force=True).rows == 10_000
