"""Packing and encoding: nothing of the text is lost, doubled or moved, and SAELens would have packed it alike."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splinterp.errors import ModelError
from splinterp.harvest.pack import batches, pack
from splinterp.harvest.tokens import encode_documents, encoder, load_tokenizer, special_tokens, split_text

BOS, SEPARATOR = 0, 1

token_lists = st.lists(st.lists(st.integers(2, 9), max_size=25), max_size=12)


@cache
def saelens_packing():
    """SAELens's own packing, by its file: importing the package takes ten seconds."""
    package = importlib.util.find_spec("sae_lens")
    if package is None or package.origin is None:
        pytest.skip("SAELens is not installed")
    path = Path(package.origin).with_name("tokenization_and_batching.py")
    spec = importlib.util.spec_from_file_location("saelens_packing", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays(documents):
    return [(i, np.array(ids, np.int64)) for i, ids in enumerate(documents)]


@given(token_lists, st.integers(2, 9), st.sampled_from([None, BOS]), st.sampled_from([None, BOS, SEPARATOR]), st.integers(1, 5))
@settings(max_examples=300, deadline=None)
def test_kept_tokens_give_back_each_document(documents, context, bos, separator, batch_size):
    found = {i: [] for i in range(len(documents))}
    sequences = []
    for batch in batches(pack(arrays(documents), context, bos, separator), batch_size, keep_special=False):
        assert batch.ids.shape == batch.keep.shape == batch.document.shape
        assert len(batch.ids) <= batch_size
        sequences += batch.sequence.tolist()
        columns = batch.columns()
        order = np.lexsort((columns["position"], columns["sequence"]))
        assert (order == np.arange(batch.kept)).all()
        for name, column in columns.items():
            assert column.dtype == np.uint32, name
        for token, document in zip(columns["token_id"], columns["document"], strict=True):
            found[int(document)].append(int(token))
    assert list(found.values()) == documents
    assert sequences == list(range(len(sequences)))


@given(token_lists, st.integers(2, 9), st.sampled_from([None, BOS, SEPARATOR]))
@settings(max_examples=100, deadline=None)
def test_rows_have_the_context_start_with_bos_and_only_the_last_is_shorter(documents, context, separator):
    rows = list(pack(arrays(documents), context, BOS, separator))
    assert all(len(row.ids) == context for row in rows[:-1])
    assert all(0 < len(row.ids) <= context for row in rows)
    for row in rows:
        assert row.ids[0] == BOS
        assert not row.text[0]
        assert row.text[1:].any()
        starts = np.flatnonzero(np.diff(row.document.astype(np.int64))) + 1
        if separator is not None:
            assert (row.ids[starts] == separator).all()
            assert (~row.text[1:]).sum() == len(starts)
        else:
            assert row.text[1:].all()


@given(token_lists, st.integers(2, 9), st.randoms())
@settings(max_examples=100, deadline=None)
def test_pieces_of_a_document_are_packed_as_the_whole(documents, context, random):
    pieces = []
    for i, ids in arrays(documents):
        cuts = sorted(random.sample(range(len(ids) + 1), k=min(2, len(ids))))
        pieces += [(i, part) for part in np.split(ids, cuts)]
    whole, cut = pack(arrays(documents), context, BOS, BOS), pack(pieces, context, BOS, BOS)
    for a, b in zip(whole, cut, strict=True):
        assert all((x == y).all() for x, y in zip(a, b, strict=True))


@given(st.lists(st.lists(st.integers(0, 5), max_size=20), max_size=12), st.integers(2, 9))
@settings(max_examples=100, deadline=None)
def test_rows_are_those_of_saelens(documents, context):
    reference = saelens_packing()
    # They keep a BOS that ends a document as a row of its own, where we drop it.
    documents = [ids if ids[-1:] != [BOS] else [*ids, 5] for ids in documents]
    iterator = (torch.tensor(ids) for ids in documents)
    theirs = list(reference.concat_and_batch_sequences(iterator, context, BOS, None, BOS)) if any(documents) else []
    ours = [row.ids for row in pack(arrays(documents), context, BOS, BOS)]
    assert len(ours) - len(theirs) in (0, 1)  # they drop the last, partial row
    for a, b in zip(ours, theirs, strict=False):
        assert a.tolist() == b.tolist()


def test_keeping_special_tokens_keeps_all():
    (batch,) = batches(pack(arrays([[5, 6], [7]]), 8, BOS, SEPARATOR), 4, keep_special=True)
    assert batch.columns()["token_id"].tolist() == [BOS, 5, 6, SEPARATOR, 7]
    assert batch.columns()["document"].tolist() == [0, 0, 0, 1, 1]


def test_documents_are_encoded_as_by_the_tokenizer_itself(tokenizer, texts):
    found = list(encode_documents(encoder(tokenizer), texts, len(tokenizer), "m"))
    assert [index for index, _ in found] == list(range(len(texts)))
    for text, (_, ids) in zip(texts, found, strict=True):
        assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_a_slow_tokenizer_gives_the_same_ids(tokenizer, texts, monkeypatch):
    fast = [ids.tolist() for ids in encoder(tokenizer)(texts)]
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert [ids.tolist() for ids in encoder(tokenizer)(texts)] == fast


def test_saved_truncation_does_not_cut_documents(tokenizer, texts):
    whole = [len(ids) for ids in encoder(tokenizer)(texts)]
    tokenizer.backend_tokenizer.enable_truncation(3)
    try:
        assert [len(ids) for ids in encoder(tokenizer)(texts)] == whole
        assert tokenizer.backend_tokenizer.truncation is not None  # the user's own tokenizer is left alone
    finally:
        tokenizer.backend_tokenizer.no_truncation()


def test_a_long_text_is_cut_where_tokens_part(tokenizer):
    text = "def f(x):\n    return x\n\nalpha beta\n" * 100
    pieces = list(split_text(text, longest=200))
    assert "".join(pieces) == text
    assert all(len(piece) <= 200 for piece in pieces)
    assert all(piece[0] == "\n" for piece in pieces[1:])
    ids = np.concatenate(encoder(tokenizer)(pieces))
    assert ids.tolist() == encoder(tokenizer)([text])[0].tolist()


def test_a_long_text_without_line_breaks_is_cut_all_the_same():
    assert [len(piece) for piece in split_text("x" * 25, longest=10)] == [10, 10, 5]


def test_an_id_beyond_the_vocabulary_is_refused(tokenizer, texts):
    with pytest.raises(ModelError, match="knows only 100 tokens"):
        list(encode_documents(encoder(tokenizer), texts, 100, "m"))


def test_a_directory_with_only_a_config_has_no_tokenizer(gpt2_dir, tmp_path):
    # transformers makes an empty tokenizer of it without a word.
    (tmp_path / "config.json").write_bytes((gpt2_dir / "config.json").read_bytes())
    with pytest.raises(ModelError, match="without a usable tokenizer"):
        load_tokenizer("m", str(tmp_path), local_files_only=True)


def test_special_tokens(tokenizer):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert special_tokens("m", tokenizer, "bos") == (bos, bos)
    assert special_tokens("m", tokenizer, "eos") == (bos, eos)
    assert special_tokens("m", tokenizer, "none") == (bos, None)


class Nameless:
    bos_token_id = None
    eos_token_id = None


def test_special_tokens_that_are_missing():
    with pytest.raises(ModelError, match="neither a BOS nor an EOS"):
        special_tokens("m", Nameless(), "bos")
    only_eos = Nameless()
    only_eos.eos_token_id = 7  # type: ignore[assignment]
    assert special_tokens("m", only_eos, "bos") == (7, 7)


def test_a_tokenizer_that_is_loaded_again_and_again_encodes_by_one_backend(gpt2_dir, texts):
    """The library keeps what each has encoded: a new one each time would be a leak of megabytes a harvest."""
    from splinterp.harvest import tokens

    found = []
    for _ in range(3):
        tokenizer = tokens.load_tokenizer("gpt2", str(gpt2_dir), local_files_only=True)
        found.append([ids.tolist() for ids in tokens.encoder(tokenizer)(texts)])
        known = len(tokens._USED)
        assert tokenizer.backend_tokenizer not in tokens._USED.values()  # its own truncation stays as it is
    assert found[0] == found[1] == found[2]
    assert len(tokens._USED) == known
    tokenizer.backend_tokenizer.enable_truncation(3)
    assert [ids.tolist() for ids in tokens.encoder(tokenizer)(texts)] == found[0]
    assert len(tokens._USED) == known
