"""Mixtures of data sets: the proportions asked for, the same every time, and told in the store."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splinterp.errors import TextError
from splinterp.harvest import open_texts
from splinterp.harvest.mixture import interleave, split_weight

weights_of = st.lists(st.floats(0.01, 100), min_size=2, max_size=5)


@given(weights_of, st.integers(0, 2**32), st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_proportions_are_kept_all_along(weights, seed, n):
    streams = [[(i, k) for k in range(n)] for i in range(len(weights))]
    seen = [0] * len(weights)
    for position, (i, k) in enumerate(interleave(streams, weights, seed)):
        assert k == seen[i]  # each stream in its own order
        seen[i] += 1
        if max(seen) == n:
            break
        for j, weight in enumerate(weights):
            assert abs(seen[j] - (position + 1) * weight / sum(weights)) < len(weights)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_when_one_ends_and_the_order_is_the_same_every_time(lengths, seed):
    streams = [[(i, k) for k in range(n)] for i, n in enumerate(lengths)]
    weights = [i + 1.0 for i in range(len(lengths))]
    once, again = (list(interleave(streams, weights, seed)) for _ in range(2))
    assert once == again
    assert sorted(once) == sorted(item for stream in streams for item in stream)


def test_another_seed_is_another_order():
    streams = [list("a" * 50), list("b" * 50), list("c" * 50)]
    assert len({"".join(interleave(streams, [1, 2, 3], seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("a", "a", 1.0),
        ("/x=1:2/a.txt::0.3", "/x=1:2/a.txt", 0.3),
        ("org/name:en::2e-1", "org/name:en", 0.2),
        ("a::b", "a::b", 1.0),
        ("a::3::1", "a::3", 1.0),
        ("org/name:1", "org/name:1", 1.0),
        ("5", "5", 1.0),
    ],
)
def test_weights(text, name, weight):
    assert split_weight(text) == (name, weight)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_weights_that_cannot_be(weight):
    with pytest.raises(TextError, match=rf"The weight {weight} of the data set a is not a positive number"):
        open_texts([f"a::{weight}"])


@pytest.fixture
def parts(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{name}{i}"}) + "\n" for i in range(30)))
    return [f"{tmp_path / name}.jsonl" for name in "ab"]


def test_a_mixture_can_be_opened_again_by_what_it_tells(parts):
    source = open_texts([f"{parts[0]}::0.25", f"{parts[1]}::0.75"], seed=3)
    documents = [text for _, text in source.read()]
    assert abs(sum(text[0] == "a" for text in documents[:40]) - 10) < 2
    assert len(documents) == 60
    assert source.datasets == (f"{parts[0]}::0.25", f"{parts[1]}::0.75")
    again = open_texts(source.datasets, seed=3)
    assert [text for _, text in again.read()] == documents
    assert again.fingerprint == source.fingerprint


def test_the_fingerprint_changes_with_any_part_weight_or_order(parts):
    def fingerprint(*datasets):
        return open_texts(datasets).fingerprint

    a, b = parts
    seen = [fingerprint(a), fingerprint(a, b), fingerprint(b, a), fingerprint(f"{a}::2", b), fingerprint(a, b, b)]
    with open(b, "a") as file:
        file.write('{"text": "more"}\n')
    assert len({*seen, fingerprint(a, b)}) == 6
    assert fingerprint(a) == fingerprint(f"{a}::0.3") == seen[0]


def test_an_empty_part_is_told(parts, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(TextError, match=r"The data set .*empty\.jsonl holds no document; leave it out"):
        list(open_texts([parts[0], str(tmp_path / "empty.jsonl")]).read())
