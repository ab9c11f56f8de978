"""Sources of text: fixed order, honest fingerprints, and a sentence for every mistake."""

from __future__ import annotations

import json
import threading
import time

import pytest
from splinterp.errors import TextError
from splinterp.harvest import open_text
from splinterp.harvest.prefetch import prefetched
from splinterp.harvest.stdlib import stdlib_files


def documents(path, **options):
    return list(open_text(str(path), **options).read())


def test_the_standard_library():
    source = open_text("stdlib")
    names = [name for name, _ in source.read()]
    assert names == sorted(names)
    assert "abc.py" in names
    assert len(names) <= len(stdlib_files())
    assert source.fingerprint == open_text("stdlib").fingerprint


def test_a_text_file_is_one_document_as_it_stands(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\r\ntwo é\n".encode())
    assert documents(path) == [("a.txt", "one\r\ntwo é\n")]


def test_a_jsonl_file_has_a_document_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "body": "b"}\n\n{"text": "", "body": "c"}\n')
    assert documents(path) == [("a.jsonl:1", "one"), ("a.jsonl:3", "")]
    assert documents(path, text_column="body") == [("a.jsonl:1", "b"), ("a.jsonl:3", "c")]


def test_a_directory_in_order_of_names_without_hidden_or_binary_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    for name, text in {"b.txt": "B", "sub/a.py": "A", "a.md": "M", ".git/x.txt": "no", "image.png": "no"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "J"}))
    assert documents(tmp_path) == [("a.md", "M"), ("b.txt", "B"), ("c.jsonl:1", "J"), ("sub/a.py", "A")]


@pytest.mark.parametrize("change", ["emptied", "cut before", "cut meanwhile", "longer", "gone"])
def test_a_text_that_is_no_longer_what_was_found_is_told(tmp_path, change):
    """Else the store would lack documents that its fingerprint vouches for."""
    lines = [json.dumps({"text": f"{i} " * 5000}) + "\n" for i in range(40)]
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    read, victim = open_text(str(tmp_path)).read(), tmp_path / ("a.jsonl" if change == "cut meanwhile" else "b.jsonl")

    def go_on() -> None:
        for i, _ in enumerate(read):
            if i == 3 and change == "gone":
                victim.unlink()
            elif i == 3:
                left = {"emptied": 0, "longer": 50}.get(change, 20)
                victim.write_text("".join((lines + lines)[:left]))

    with pytest.raises(TextError, match=r"has changed since the harvest began|No such file"):
        go_on()


def test_the_fingerprint_changes_with_a_name_a_size_or_a_byte(tmp_path):
    path = tmp_path / "d" / "a.txt"
    path.parent.mkdir()

    def fingerprint():
        return open_text(str(path.parent)).fingerprint

    path.write_text("one")
    seen = {fingerprint()}
    assert fingerprint() in seen
    path.write_text("two")
    seen.add(fingerprint())
    path.write_text("twos")
    seen.add(fingerprint())
    path.rename(path.with_name("b.txt"))
    seen.add(fingerprint())
    assert len(seen) == 4


@pytest.mark.parametrize(
    "name",
    [
        "no/such/file.txt",
        "missing.jsonl",
        "a.jsonl.ZST",
        "a.parquet",
        "a.npy",
        "missing.TXT",
        "/no/such/directory",
        "../x",
        "a b",
    ],
)
def test_a_missing_file_is_not_looked_for_on_the_hub(name):
    with pytest.raises(TextError, match="There is no file or directory"):
        open_text(name)


def test_a_hub_name_without_a_network():
    with pytest.raises(TextError, match=r"nobody/no-such-data:en is streamed from huggingface\.co, which cannot be reached"):
        open_text("nobody/no-such-data:en")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"text": "a"}\n{"text": ', r"line 2, is not valid JSON"),
        ('{"text": "a"}\n["text"]', r"line 2, is not a JSON object"),
        ('{"body": "a", "id": 1}', r"There is no column 'text' in .*line 1, only body, id: choose with --text-column"),
        ('{"text": 5}', r"Column 'text' in .*, line 1 holds int, not text"),
    ],
)
def test_mistakes_in_a_jsonl_file(tmp_path, content, sentence):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(TextError, match=sentence):
        documents(path)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(TextError, match=r"is not UTF-8 text \(byte 3\)"):
        documents(path)


def test_a_directory_without_text(tmp_path):
    with pytest.raises(TextError, match="holds no text files"):
        open_text(str(tmp_path))


def test_a_hub_data_set_is_streamed_from_the_commit_it_was_pinned_to(tmp_path, monkeypatch):
    """The hub replaced by a local folder, read by the real `datasets`."""
    import datasets
    from splinterp.harvest import text

    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    load, asked = datasets.load_dataset, []

    def local(repo, configuration, *, split, revision, streaming):
        asked.append((repo, configuration, split, revision, streaming))
        return load(str(tmp_path), configuration, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr(text, "hub_commit", lambda *_: "c0ffee")
    source = open_text("org/name")
    assert source.fingerprint == "c0ffee"
    assert list(source.read()) == [("org/name:0", "a"), ("org/name:1", "b")] == list(source.read())
    assert asked[0] == ("org/name", None, "train", "c0ffee", True)
    with pytest.raises(TextError, match=r"no column 'body' in the data set org/name, only text"):
        documents("org/name", text_column="body")
    with pytest.raises(TextError, match=r"split 'test'.*Available splits: \['train'\]"):
        documents("org/name", split="test")
    with pytest.raises(TextError, match=r"org/name:en .*'en' not found"):
        documents("org/name:en")


def test_prefetching_keeps_order_and_bound():
    made = []

    def items():
        for i in range(50):
            made.append(i)
            yield i

    with prefetched(items(), depth=3) as stream:
        assert next(stream) == 0
        time.sleep(0.2)
        assert len(made) <= 6
        assert list(stream) == list(range(1, 50))


def test_prefetching_passes_errors_on_in_their_place():
    def items():
        yield 1
        raise TextError("bad line")

    with prefetched(items(), depth=3) as stream:
        assert next(stream) == 1
        with pytest.raises(TextError, match="bad line"):
            next(stream)


def test_prefetching_stops_when_left():
    before = threading.active_count()
    with prefetched(iter(range(10**9)), depth=2) as stream:
        next(stream)
    assert threading.active_count() == before
