"""Files of documents: each format gives the same documents, and a sentence for whatever is wrong with it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from splinterp.errors import TextError
from splinterp.harvest import formats, open_text
from splinterp.harvest.tokens import encode_documents, encoder


def documents(path: Path, **options) -> list:
    return [document for _, document in open_text(str(path), **options).read()]


def token_ids(path: Path, **options) -> list[list[int]]:
    return [document.ids.tolist() for document in documents(path, **options)]


def packed(path: Path, content: bytes) -> Path:
    """Write `content` as the name asks: compressed or not."""
    squeeze = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(squeeze(content))
    return path


def parquet(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_is_the_text(tmp_path, jsonl, texts, suffix):
    assert documents(packed(tmp_path / f"a.jsonl{suffix}", jsonl.read_bytes())) == texts
    assert documents(packed(tmp_path / f"a.txt{suffix}", "one\r\ntwo é\n".encode())) == ["one\r\ntwo é\n"]


@pytest.mark.parametrize("squeeze", [gzip.compress, zstandard.compress])
def test_an_archive_of_several_members_is_read_to_its_end(tmp_path, texts, squeeze):
    path = tmp_path / ("a.jsonl.gz" if squeeze is gzip.compress else "a.jsonl.zst")
    path.write_bytes(b"".join(squeeze(json.dumps({"text": text}).encode() + b"\n") for text in texts))
    assert documents(path) == texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_holds_the_same_documents(tmp_path, texts, kind):
    path = parquet(tmp_path / "a.parquet", id=list(range(len(texts))), text=pa.array(texts).cast(kind))
    assert documents(path) == texts
    names = [name for name, _ in open_text(str(path)).read()]
    assert names == [f"a.parquet:{row}" for row in range(1, len(texts) + 1)]


def test_a_directory_holds_all_of_them_but_arrays(tmp_path):
    packed(tmp_path / "a.txt.gz", b"A")
    packed(tmp_path / "b.jsonl.zst", b'{"text": "B"}')
    parquet(tmp_path / "c.parquet", text=["C"])
    (tmp_path / "d.txt").write_text("D")
    np.save(tmp_path / "e.npy", np.arange(3))
    packed(tmp_path / "f.tar.gz", b"no")
    assert documents(tmp_path) == ["A", "B", "C", "D"]


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64", ">u4"])
def test_arrays_of_token_ids(tmp_path, dtype):
    rows = np.arange(12, dtype=dtype).reshape(3, 4)
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows.ravel())
    assert token_ids(tmp_path / "a.npy") == rows.tolist()
    assert token_ids(tmp_path / "b.npy") == [list(range(12))]
    assert token_ids(tmp_path) == [*rows.tolist(), list(range(12))]


def test_columns_of_token_ids(tmp_path):
    rows = [[1, 2, 3], [], [4]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    assert token_ids(tmp_path / "a.jsonl", tokens_column="input_ids") == rows
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.uint16()), pa.list_(pa.int64())):
        path = parquet(tmp_path / "a.parquet", input_ids=pa.array(rows).cast(kind))
        assert token_ids(path, tokens_column="input_ids") == rows


def test_a_long_array_is_encoded_in_pieces(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr("splinterp.harvest.tokens.LONGEST_PIECE", 5)
    np.save(tmp_path / "a.npy", np.arange(12))
    pieces = list(encode_documents(encoder(tokenizer), documents(tmp_path / "a.npy"), 384, "m"))
    assert [(index, len(ids)) for index, ids in pieces] == [(0, 5), (0, 5), (0, 2)]
    assert np.concatenate([ids for _, ids in pieces]).tolist() == list(range(12))


@pytest.mark.parametrize(("ids", "wrong"), [([1, 384], 384), ([-1, 3], -1), ([2**40], 2**40)])
def test_ids_beyond_the_vocabulary_are_refused_by_their_row(tmp_path, tokenizer, ids, wrong):
    np.save(tmp_path / "a.npy", np.array([[0] * len(ids), ids]))
    with pytest.raises(TextError, match=rf"There is a token {wrong} in .*a\.npy, row 2, but m knows the tokens 0\.\.383"):
        list(encode_documents(encoder(tokenizer), documents(tmp_path / "a.npy"), 384, "m"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_damaged_archives(tmp_path, jsonl, name):
    path = packed(tmp_path / name, jsonl.read_bytes() * 20)
    whole = path.read_bytes()
    for content in (whole[:-9], whole[: len(whole) // 2], b"no archive at all", whole[:-4]):
        path.write_bytes(content)
        with pytest.raises(TextError, match=rf"{name} is damaged, or no (gzip|zstd) archive"):
            documents(path)
    path.write_bytes(b"")
    with pytest.raises(TextError, match=rf"{name} is an empty file, not a (gzip|zstd) archive"):
        documents(path)


@pytest.mark.parametrize(("name", "content"), [("a.txt.gz", b"x" * 101), ("a.jsonl.zst", b'{"text": "' + b"x" * 101)])
def test_what_unpacks_to_more_than_a_document_may_hold(tmp_path, monkeypatch, name, content):
    monkeypatch.setattr(formats, "LONGEST_DOCUMENT", 100)
    with pytest.raises(TextError, match=rf"{name}.* than 100 bytes, too long for one document; split it"):
        documents(packed(tmp_path / name, content))


def test_a_zstd_window_that_asks_for_gigabytes_is_refused(tmp_path):
    # Magic, a frame header without content size, and the window descriptor of 2 GiB.
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00")
    with pytest.raises(TextError, match="is damaged"):
        documents(tmp_path / "a.txt.zst")


def test_damaged_parquet(tmp_path, texts):
    path = parquet(tmp_path / "a.parquet", text=texts)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-20], whole[len(whole) // 2 :], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(TextError, match=r"a\.parquet is damaged, or no Parquet file"):
            documents(path)
    broken = bytearray(whole)
    broken[40:400] = bytes(360)
    path.write_bytes(broken)
    with pytest.raises(TextError, match=r"a\.parquet is damaged"):
        documents(path)


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"body": ["a"], "id": [1]}, {}, r"no column 'text' in .*a\.parquet, only body, id: choose with --text-column"),
        ({"text": [1]}, {}, r"Column 'text' in .*a\.parquet holds int64, not text"),
        ({"text": ["a", None]}, {}, r"a\.parquet, row 2 holds null, not text"),
        ({"text": pa.array([], pa.string())}, {}, r"a\.parquet holds no rows"),
        ({"text": ["a"]}, {"tokens_column": "ids"}, r"no column 'ids' in .*, only text: choose with --tokens-column"),
        ({"ids": ["a"]}, {"tokens_column": "ids"}, r"holds string, not a list of token ids"),
        ({"ids": [[1.5]]}, {"tokens_column": "ids"}, r"not a list of token ids"),
        ({"ids": [[1], None]}, {"tokens_column": "ids"}, r"row 2 holds null"),
        ({"ids": [[1], [1, None]]}, {"tokens_column": "ids"}, r"row 2 holds a null among its ids"),
    ],
)
def test_mistakes_in_a_parquet_file(tmp_path, columns, options, sentence):
    path = parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(TextError, match=sentence):
        documents(path, **options)


def test_bytes_that_are_no_utf8_in_a_parquet_file(tmp_path):
    strings = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff"))
    with pytest.raises(TextError, match="row 2 holds bytes that are not UTF-8"):
        documents(parquet(tmp_path / "a.parquet", text=strings))


@pytest.mark.parametrize("value", ["1 2", "text", [1.5], [[1]], [1, [2]], {"a": 1}, None, ["a"], [True], [2**70]])
def test_mistakes_in_a_jsonl_column_of_ids(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(json.dumps({"ids": [1]}) + "\n" + json.dumps({"ids": value}))
    with pytest.raises(
        TextError, match=r"Column 'ids' in .*line 2 holds .*, not a list of token ids: choose with --tokens-col"
    ):
        documents(tmp_path / "a.jsonl", tokens_column="ids")


def test_a_tokens_column_of_text_that_has_none(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for name in (tmp_path / "a.txt", tmp_path):
        with pytest.raises(TextError, match=r"a\.txt is text and has no column of token ids"):
            open_text(str(name), tokens_column="ids")
    with pytest.raises(TextError, match="The text stdlib is not tokenised"):
        open_text("stdlib", tokens_column="ids")


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((2, 2)), r"is an array \[2, 2\] of float64; token ids are integers"),
        (np.zeros((2, 2, 2), int), r"is an array \[2, 2, 2\] of int64"),
        (np.int64(3), r"is an array \[\] of int64"),
        (np.zeros((0, 4), int), r"holds no token ids: its array is \[0, 4\]"),
    ],
)
def test_arrays_that_are_no_token_ids(tmp_path, array, sentence):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(TextError, match=sentence):
        documents(tmp_path / "a.npy")


def test_damaged_arrays(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(10000))
    whole = path.read_bytes()
    lying = whole.replace(b"(10000,)", b"(9" + b"9" * 12 + b",)")[: len(whole)]
    unfinished = whole.replace(b", }", b", (")  # numpy lets Python's tokenizer complain of it
    for content in (b"", whole[:50], whole[:-8], b"x" * 200, lying, unfinished):
        path.write_bytes(content)
        with pytest.raises(TextError, match=r"a\.npy is damaged, or no \.npy array of integers"):
            documents(path)
