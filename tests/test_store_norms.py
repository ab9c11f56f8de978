"""Norms in a store: their histogram, the median and the outliers told from it, and outliers left out on writing."""

from __future__ import annotations

import json
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from splinterp import store
from splinterp.errors import StoreError
from splinterp.store.files import json_crc
from splinterp.store.histogram import OUTLYING, median_and_outliers, norm_histogram, summed

BIN = 2**0.25 * (1 + 1e-9)
OPTIONS = {"sites": {"a": 3, "b": 2}, "columns": ("i",), "dtype": "float32", "chunk_rows": 64, "memory": 2 * 64 * 50 * 2}
KEPT_SINCE = ("histograms", "dropped_outliers", "line_crc32c")


def rows_of(scales: np.ndarray) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Rows that have these norms [n] at site a, and norms of 1 at b, but where the norm is not finite."""
    x, y = torch.zeros(len(scales), 3), torch.zeros(len(scales), 2)
    x[:, 0], y[:, 1] = torch.from_numpy(scales).float(), 1
    return {"a": x, "b": y}, {"i": np.arange(len(scales))}


def scales_of(n: int, seed: int = 0) -> np.ndarray:
    """Norms of which some are far above the others, some 0 and some not finite."""
    generator = np.random.default_rng(seed)
    scales = np.exp(generator.normal(0, 0.5, n))
    for share, value in ((0.05, 300.0), (0.02, 0.0), (0.02, np.nan)):
        scales[generator.random(n) < share] = value
    return scales.astype(np.float32).astype(np.float64)


def write(path: Path, scales: np.ndarray, step: int = 50, upto: int | None = None, **options) -> store.Store | None:
    acts, columns = rows_of(scales)
    with store.create(path, **(OPTIONS | options)) as writer:
        for at in range(writer.resume_offered, len(scales) if upto is None else upto, step):
            part = slice(at, min(at + step, len(scales)))
            writer.add({name: x[part] for name, x in acts.items()}, {"i": columns["i"][part]})
        return writer.finish() if upto is None else None


def contents(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


norms = st.one_of(st.just(0.0), st.floats(1e-30, 1e30), st.floats(0.5, 40))


@settings(max_examples=300, deadline=None)
@given(st.lists(norms, min_size=1, max_size=60), st.integers(1, 4))
def test_a_median_within_its_bin_and_outliers_above_it(values, parts):
    values = np.sort(np.array(values))
    histogram = summed(norm_histogram(part) for part in np.array_split(np.random.default_rng(0).permutation(values), parts))
    assert histogram == norm_histogram(values)
    assert sum(histogram.values()) == len(values)
    median, outliers = median_and_outliers(histogram, values[0], values[-1])
    exact = values[(len(values) - 1) // 2]
    assert exact / BIN <= median <= exact * BIN
    limit = OUTLYING * median
    assert (values > limit * BIN).sum() <= outliers <= (values >= limit * (1 - 1e-9)).sum()


def expected_norms(opened: store.Store) -> tuple[float, int, int]:
    """The median of site a's rows, and how many are above 10 times that by more and by less than a bin."""
    found = opened.acts("a", 0, opened.rows).double().norm(dim=1).numpy()
    median = float(np.sort(found)[(len(found) - 1) // 2])
    return median, int((found > 10 * median * BIN**2).sum()), int((found > 10 * median / BIN).sum())


def test_every_store_tells_its_median_and_its_outliers(tmp_path):
    write(tmp_path / "other", scales_of(300, seed=1))
    for rank in range(2):
        acts, columns = rows_of(scales_of(400, seed=rank))
        with store.create_rank(tmp_path / "ranks", rank, 2, **OPTIONS) as writer:
            writer.add(acts, columns)
            writer.finish()
    plain = write(tmp_path / "plain", scales_of(700))
    made = [
        plain,
        store.copy(plain.path, tmp_path / "archive", compress=True),
        store.merge([plain.path, tmp_path / "other"], tmp_path / "merged"),
        store.subset(plain.path, tmp_path / "subset", rows=500),
        store.join(tmp_path / "ranks"),
    ]
    for opened in made:
        site = opened.site("a")
        median, least, most = expected_norms(opened)
        assert site.median_norm == pytest.approx(median, rel=BIN - 1)
        assert 0 < least <= site.outliers <= most
        assert opened.site("b").median_norm == 1.0
        told = json.loads(json.dumps(opened.info()))["sites"][0]
        assert (told["median_norm"], told["outliers"]) == (site.median_norm, site.outliers)
        assert told["outlier_share"] == site.outliers / opened.rows
    foreign = zarr.create_array(tmp_path / "foreign", shape=(700, 3), dtype="f4", chunks=(100, 3))
    foreign[:] = rows_of(np.nan_to_num(scales_of(700)))[0]["a"].numpy()
    site = store.open(tmp_path / "foreign").site()
    assert (site.median_norm, site.outliers) == pytest.approx((plain.site("a").median_norm, plain.site("a").outliers), rel=0.1)


def test_an_unfinished_store_tells_those_of_its_chunks(tmp_path):
    write(tmp_path / "s", scales_of(700), upto=500)
    part = store.open(tmp_path / "s", unfinished=True)
    assert 0 < part.rows < 500
    assert part.site("a").median_norm == pytest.approx(expected_norms(part)[0], rel=BIN - 1)


def stripped(lines: bytes) -> bytes:
    """Lines as they were before they had a histogram."""
    kept = [{key: value for key, value in json.loads(line).items() if key not in KEPT_SINCE} for line in lines.splitlines()]
    return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in kept)


def aged(path: Path) -> None:
    """Make of a finished store what it would have been before norms were counted."""
    manifest = path / "manifest.jsonl"
    manifest.write_bytes(stripped(manifest.read_bytes()))
    root = json.loads((path / "zarr.json").read_text())
    ours = root["attributes"]["splinterp"]
    for site in ours["sites"]:
        file = path / site / "zarr.json"
        group = json.loads(file.read_text())
        for key in ("median_norm", "outliers"):
            del group["attributes"][key]
        file.write_text(json.dumps(group, indent=1) + "\n")
        ours["metadata_crc32c"][f"{site}/zarr.json"] = google_crc32c.value(file.read_bytes())
    ours["manifest_crc32c"] = google_crc32c.value(manifest.read_bytes())
    del ours["attributes_crc32c"]
    ours["attributes_crc32c"] = json_crc(ours)
    (path / "zarr.json").write_text(json.dumps(root, indent=1) + "\n")


def test_older_stores_open_and_are_copied_as_they_are(tmp_path):
    new = write(tmp_path / "s", scales_of(300))
    aged(tmp_path / "s")
    old = store.open(tmp_path / "s")
    assert store.verify(tmp_path / "s", full=True) == []
    assert old.fingerprint == new.fingerprint
    told = old.info()["sites"][0]
    assert told["median_norm"] is told["outliers"] is told["outlier_share"] is None
    assert told["max_norm"] == new.site("a").max_norm
    store.copy(tmp_path / "s", tmp_path / "archive", compress=True)
    back = store.copy(tmp_path / "archive", tmp_path / "back")
    assert contents(back.path) == contents(tmp_path / "s")
    assert store.subset(tmp_path / "s", tmp_path / "subset", rows=200).site("a").median_norm is not None


def test_an_older_log_is_resumed(tmp_path):
    scales = scales_of(700)
    new = write(tmp_path / "new", scales)
    write(tmp_path / "s", scales, upto=400)
    log, pool = tmp_path / "s" / "log.jsonl", tmp_path / "s" / "pool"
    log.write_bytes(stripped(log.read_bytes()))
    header, _, rest = pool.read_bytes().partition(b"\n")
    body = json.dumps({k: v for k, v in json.loads(header).items() if k not in KEPT_SINCE}).encode() + b"\n" + rest[:-4]
    pool.write_bytes(body + google_crc32c.value(body).to_bytes(4, "little"))
    acts, columns = rows_of(scales)
    with store.create(tmp_path / "s", **OPTIONS, resume=True) as writer:
        assert writer.resume_offered == 400
        writer.add({name: x[400:] for name, x in acts.items()}, {"i": columns["i"][400:]})
        resumed = writer.finish()
    assert resumed.fingerprint == new.fingerprint
    assert resumed.site("a").median_norm is None


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_outliers_are_left_out_and_counted_whatever_happens(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("bounds")
    n = data.draw(st.integers(1, 400))
    scales = np.array(data.draw(st.lists(st.sampled_from([0.5, 1.0, 7.0, 9.0, np.nan]), min_size=n, max_size=n)))
    bounds = data.draw(st.sampled_from([{"a": 7.0}, {"a": 7.0, "b": 5.0}, {"a": 8.0, "b": 1.0}]))
    good = np.flatnonzero(scales <= 7)
    if not len(good):
        return
    planned = data.draw(st.sampled_from([None, len(good) + 9, max(1, len(good) // 2)]))
    options = {"rows": planned, "max_norms": bounds, "chunk_rows": data.draw(st.sampled_from([29, 64]))}
    opened = write(folder / "whole", scales, data.draw(st.integers(1, 90)), **options)
    stored = good[:planned]
    used = n if planned is None or len(good) < planned else int(stored[-1]) + 1
    assert sorted(opened.column("i").tolist()) == stored.tolist()
    assert opened.attributes["offered_rows"] == used
    assert opened.attributes["dropped_non_finite"] == np.isnan(scales[:used]).sum()
    assert opened.info()["dropped_outliers"] == (scales[:used] == 9).sum()
    assert opened.attributes["max_norms"] == bounds
    step, upto = data.draw(st.integers(1, 90)), data.draw(st.integers(0, n))
    write(folder / "broken", scales, step, upto=upto, **options)
    # Bounds measured anew may come out otherwise; those that the store was begun with hold.
    measured = options | {"max_norms": dict.fromkeys(bounds, 0.75)}
    write(folder / "broken", scales, step, resume=True, **measured)
    assert contents(folder / "broken") == contents(folder / "whole")
    store.copy(folder / "whole", folder / "archive", compress=True)
    store.copy(folder / "archive", folder / "back")
    assert contents(folder / "back") == contents(folder / "whole")


def test_ranks_take_the_bounds_of_the_first_and_add_their_counts(tmp_path):
    scales = [scales_of(n, seed) for seed, n in enumerate((150, 290, 70))]
    for rank, own in enumerate(scales):
        acts, columns = rows_of(own)
        with store.create_rank(tmp_path / "s", rank, 3, **OPTIONS, max_norms={"a": 20.0 + rank / 1000}) as writer:
            writer.add(acts, columns)
            writer.finish()
    joined = store.join(tmp_path / "s")
    every = np.concatenate(scales)
    assert joined.attributes["max_norms"] == {"a": 20.0}
    assert joined.attributes["dropped_outliers"] == (every > 20).sum() > 0
    assert joined.attributes["dropped_non_finite"] == np.isnan(every).sum() > 0
    assert joined.rows == (every <= 20).sum()
    assert joined.site("a").max_norm <= 20


@pytest.mark.parametrize(
    ("begun", "resumed", "says"),
    [
        ({"a": 5.0}, None, "was begun with max_norms = {'a': 5.0}, not None"),
        (None, {"a": 5.0}, "was begun with max_norms = None, not {'a': 5.0}"),
        ({"a": 5.0}, {"b": 5.0}, "was begun with max_norms = {'a': 5.0}, not {'b': 5.0}"),
    ],
)
def test_a_resume_must_leave_out_outliers_as_before(tmp_path, begun, resumed, says):
    write(tmp_path / "s", scales_of(100), upto=50, max_norms=begun)
    with pytest.raises(StoreError) as error:
        store.create(tmp_path / "s", **OPTIONS, max_norms=resumed, resume=True)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"c": 1.0}, "no site 'c' to bound the norms of; the sites are a, b"),
        ({"a": 0.0}, "largest norm at site 'a' must be a positive number, not 0.0"),
        ({"a": float("inf")}, "must be a positive number, not inf"),
        ({"a": float("nan")}, "must be a positive number, not nan"),
    ],
)
def test_bounds_that_cannot_be(tmp_path, bounds, says):
    with pytest.raises(StoreError, match=says):
        store.create(tmp_path / "s", **OPTIONS, max_norms=bounds)
    assert not (tmp_path / "s").exists()
