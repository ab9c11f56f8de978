"""The whole harvest: exact counts, resuming to the byte, and one sentence for every mistake."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from splinterp import demo, store
from splinterp.errors import Interrupted, ModelError, SplinterpError, StoreError, TextError
from splinterp.harvest import HarvestConfig, forward, harvest, plan, run
from splinterp.store import files


@pytest.fixture
def config(gpt2_dir, jsonl, tmp_path) -> HarvestConfig:
    return HarvestConfig(
        model=str(gpt2_dir), layers=(0, 2), dataset=str(jsonl), tokens=1200, context=24, batch_size=2, memory=1,
        out=tmp_path / "s.zarr",
    )  # fmt: skip


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("[!.]*")) if file.is_file()}


def interrupt_after(batches: int):
    count = 0

    def progress(rows, figures):
        nonlocal count
        count += 1
        if count == batches:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("tokens", [1, 22, 23, 24, 255, 1000])
def test_exactly_the_tokens_asked_for(config, tokens):
    done = harvest(dataclasses.replace(config, tokens=tokens, separator="none"))
    assert done.rows == tokens
    assert done.attributes["short"] is False
    columns = {name: done.column(name) for name in done.columns}
    assert len(set(zip(columns["sequence"], columns["position"], strict=True))) == tokens
    # The beginning of the text, whatever the shuffling.
    assert columns["sequence"].max() == (tokens - 1) // 23
    assert store.verify(config.out, full=True) == []


def test_both_sites_are_rows_of_the_same_tokens(config, tmp_path):
    both = harvest(config)
    for layer in config.layers:
        one = harvest(dataclasses.replace(config, layers=(layer,), out=tmp_path / f"{layer}.zarr"))
        site = f"blocks.{layer}.hook_resid_post"
        assert np.array_equal(one.column("token_id"), both.column("token_id"))
        assert one.acts(site, 0, one.rows).equal(both.acts(site, 0, both.rows))


def test_a_resumed_harvest_is_the_uninterrupted_one_byte_for_byte(config, tmp_path):
    whole = []
    harvest(config, lambda rows, figures: whole.append(rows))
    expected = tree(config.out)
    generator = random.Random(0)
    skipped = []
    for trial in range(4):
        broken = dataclasses.replace(config, out=tmp_path / f"{trial}.zarr")
        with pytest.raises(Interrupted, match=r"of 1200 rows stored in .*run the same command with --resume"):
            harvest(broken, interrupt_after(generator.randint(1, 15)))
        with pytest.raises(Interrupted):
            harvest(dataclasses.replace(broken, resume=True), interrupt_after(generator.randint(1, 10)))
        calls = []
        done = harvest(dataclasses.replace(broken, resume=True), lambda rows, figures, calls=calls: calls.append(rows))
        assert done.rows == 1200
        assert tree(broken.out) == expected
        skipped.append(len(whole) - len(calls))
    assert max(skipped) > 0


def test_ctrl_c_before_the_first_row(config, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_bridge", interrupted)
    with pytest.raises(Interrupted, match="nothing was written"):
        harvest(config)
    assert not config.out.exists()


def test_resuming_with_other_settings_is_refused(config):
    with pytest.raises(Interrupted):
        harvest(config, interrupt_after(3))
    for change in ({"context": 16}, {"layers": (0, 1)}, {"seed": 1}, {"keep_bos": True}, {"tokens": 1300}):
        with pytest.raises(StoreError, match="was begun with"):
            harvest(dataclasses.replace(config, resume=True, **change))


def test_a_mistake_in_the_text_behind_the_first_batch_is_told(config, jsonl, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text(jsonl.read_text() + "{\n")
    config = dataclasses.replace(config, dataset=str(path), tokens=10**6)
    with pytest.raises(TextError, match="is not valid JSON"):
        harvest(config)


def test_progress_tells_rows_and_figures(config):
    told = []
    done = harvest(config, lambda rows, figures: told.append((rows, figures)))
    rows = [n for n, _ in told]
    assert rows == sorted(rows)
    assert rows[-1] == done.rows
    figures = told[-1][1]
    assert set(figures) == {"tokens_per_s", "bytes_written", "dropped", "forward_share", "text_share", "disk_share"}
    assert figures["tokens_per_s"] > 0
    assert figures["bytes_written"] > 0
    assert sum(figures[f"{what}_share"] for what in ("forward", "text", "disk")) <= 1


def test_rows_that_are_not_finite_are_left_out_everywhere(config, monkeypatch):
    real = forward.SiteReader.read

    def read(self, ids, keep):
        rows = real(self, ids, keep)
        first = rows["blocks.0.hook_resid_post"].clone()
        first[::40] = float("inf")
        return rows | {"blocks.0.hook_resid_post": first}

    monkeypatch.setattr(forward.SiteReader, "read", read)
    done = harvest(config)
    assert done.rows == 1200
    assert done.attributes["dropped_non_finite"] > 20
    assert done.acts("blocks.2.hook_resid_post", 0, 1200).isfinite().all()


def test_a_plan_says_what_will_be_done_and_does_nothing(config):
    planned = plan(config)
    done = harvest(config, planned=planned)
    assert planned.sites == {name: site.d for name, site in done.sites.items()}
    assert planned.rows == done.rows
    assert planned.chunk_rows == done.chunk_rows
    chunks = list(config.out.rglob("c.*"))
    assert planned.bytes == sum(file.stat().st_size for file in chunks)
    assert planned.blocks == 3
    assert planned.facts.n_layers == 4


def test_the_embedded_model_and_the_standard_library_are_the_defaults(tmp_path):
    config = HarvestConfig(layers=(1,), tokens=500, out=tmp_path / "s.zarr")
    planned = plan(config)
    assert planned.text.name == "stdlib"
    assert planned.checkpoint.options["local_files_only"] is True
    done = harvest(config, planned=planned)
    assert done.rows == 500
    assert done.attributes["model"] == "tiny"
    assert HarvestConfig(layers=(1,), tokens=1, out=tmp_path, model="gpt2").datasets == ("monology/pile-uncopyrighted",)


MISTAKES = [
    ({"layers": (7,)}, ModelError, r"has layers 0\.\.3; asked for 7"),
    ({"layers": (1, 4)}, ModelError, r"has layers 0\.\.3; asked for 4"),
    ({"layers": (-1,)}, ModelError, "Layers are counted from 0"),
    ({"layers": ()}, ModelError, "No layer to harvest"),
    ({"hooks": ("mlp_in", "resid")}, ModelError, "There is no hook 'resid'; choose one of resid_pre, attn_z"),
    ({"dtype": "int8"}, ModelError, "There is no store dtype 'int8'"),
    ({"model_dtype": "int8"}, ModelError, "There is no model dtype 'int8'"),
    ({"separator": "sep"}, ModelError, "There is no separator 'sep'"),
    ({"context": 1}, TextError, "A context of 1 has no room"),
    ({"context": 65}, ModelError, "sees at most 64 tokens at once; a context of 65 is too long"),
    ({"tokens": 0}, SplinterpError, "number of tokens must be at least 1"),
    ({"batch_size": 0}, SplinterpError, "batch size must be at least 1"),
    ({"seed": -1}, SplinterpError, "must not be negative"),
    ({"model": "/no/such/directory"}, ModelError, "There is no model directory /no/such/directory"),
    ({"model": "a/b/c"}, ModelError, "There is no model directory a/b/c"),
    ({"model": "nobody/no-such-model"}, ModelError, r"nobody/no-such-model is not on this machine and huggingface\.co"),
    ({"model": "gemma-2-2b", "revision": "no-such"}, ModelError, r"google/gemma-2-2b is not on this machine"),
    ({"device": "no-such"}, SplinterpError, "There is no device 'no-such' to use here"),
    ({"revision": "main"}, ModelError, "is a directory, so it has no revision"),
    ({"dataset": "missing.txt"}, TextError, "There is no file or directory missing.txt"),
    ({"text_column": "body"}, TextError, "There is no column 'body' in .* only id, text"),
    ({"split": "test"}, TextError, "--split has no effect on the text"),
    ({"dataset": "stdlib", "text_column": "body"}, TextError, "--text-column has no effect on the text stdlib"),
    ({"resume": True, "force": True}, StoreError, "not both"),
]


@pytest.mark.parametrize(("change", "error", "sentence"), MISTAKES, ids=[str(change) for change, _, _ in MISTAKES])
def test_every_mistake_has_its_sentence_and_leaves_nothing(config, change, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        harvest(dataclasses.replace(config, **change))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "!")) or "cannot be used here" in message
    assert not config.out.exists()


@pytest.mark.parametrize("content", ["", "\ufeff"])
def test_empty_text(config, tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(TextError, match="holds no text to harvest"):
        harvest(dataclasses.replace(config, dataset=str(tmp_path / "a.txt")))
    assert not config.out.exists()


def without(directory: Path, tmp_path: Path, *names: str) -> str:
    copy = tmp_path / "model"
    shutil.copytree(directory, copy)
    for name in names:
        (copy / name).unlink(missing_ok=True)
    return str(copy)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (["config.json"], "holds no model"),
        (["tokenizer.json", "tokenizer_config.json"], "without a usable tokenizer"),
        (["model.safetensors"], "only safetensors are, never pickles"),
    ],
)
def test_directories_that_lack_something(config, gpt2_dir, tmp_path, missing, sentence):
    with pytest.raises(ModelError, match=sentence):
        harvest(dataclasses.replace(config, model=without(gpt2_dir, tmp_path, *missing)))
    assert not config.out.exists()


def test_pickled_weights_are_not_loaded(config, gpt2_dir, tmp_path):
    import torch

    model = without(gpt2_dir, tmp_path, "model.safetensors")
    torch.save({}, Path(model) / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never pickles"):
        harvest(dataclasses.replace(config, model=model))


def test_configurations_that_are_no_text_decoders(config, gpt2_dir, tmp_path):
    model = without(gpt2_dir, tmp_path)
    for content, sentence in [
        ('{"model_type": "t5"}', "is not a plain decoder of text"),
        ('{"model_type": "llava"}', "is not a plain decoder of text"),
        ('{"model_type": "no-such-thing"}', "no config.json that transformers understands"),
        ("{", "no config.json that transformers understands"),
    ]:
        (Path(model) / "config.json").write_text(content)
        with pytest.raises(ModelError, match=sentence):
            plan(dataclasses.replace(config, model=model))


def test_an_output_that_exists_is_never_overwritten_without_force(config):
    harvest(dataclasses.replace(config, tokens=30))
    before = tree(config.out)
    with pytest.raises(StoreError, match="exists already; give another name or --force"):
        plan(config)
    with pytest.raises(StoreError, match="complete; there is nothing to resume"):
        harvest(dataclasses.replace(config, tokens=30, resume=True))
    assert tree(config.out) == before
    assert harvest(dataclasses.replace(config, tokens=40, force=True)).rows == 40


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("GatedRepoError", "accept it at https://huggingface.co/org/name, then set HF_TOKEN"),
        ("RepositoryNotFoundError", "There is no model 'org/name' on huggingface.co"),
        ("RevisionNotFoundError", "has no revision 'v9'"),
        ("LocalEntryNotFoundError", "is not on this machine"),
        ("HFValidationError", "nor a possible name"),
    ],
)
def test_what_the_hub_says_becomes_a_sentence(kind, sentence):
    from huggingface_hub import errors
    from splinterp.harvest.hub import hub_sentences

    cause = getattr(errors, kind).__new__(getattr(errors, kind))
    with pytest.raises(ModelError, match=sentence), hub_sentences("org/name", "model", "v9", ModelError):
        raise OSError("transformers' own words") from cause


def test_a_full_disk_is_a_sentence_and_the_harvest_goes_on_after_space_is_made(config, monkeypatch):
    harvest(config)
    expected = tree(config.out)
    shutil.rmtree(config.out)
    real, left = files.write_all, iter(range(12))

    def full(fd: int, data: memoryview) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, data)

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(StoreError, match=r"could not be written: No space left on device\. The rows stored so far are kept"):
        harvest(config)
    monkeypatch.undo()
    assert harvest(dataclasses.replace(config, resume=True)).rows == 1200
    assert tree(config.out) == expected


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_file_that_may_not_be_read(config, tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_text("{}")
    real = Path.open

    def refused(self, *arguments, **options):
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(TextError, match=f"{name} cannot be read: Permission denied"):
        harvest(dataclasses.replace(config, dataset=str(path)))
    assert not config.out.exists()


def test_other_errors_of_the_system_are_left_alone():
    from splinterp.harvest.hub import hub_sentences

    with pytest.raises(IsADirectoryError), hub_sentences("org/name", "model", None, ModelError):
        raise IsADirectoryError("x")


def test_an_interrupted_demo_goes_on_by_itself(tmp_path, monkeypatch):
    """Its rows all wait in the pool: no chunk is full before the end."""
    path, console = tmp_path / "acts.zarr", Console(quiet=True)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo.Bar, "update", stop)
        with pytest.raises(Interrupted, match="The same command goes on"):
            demo.embedded_store(path, 6000, console)
    made, harvested = demo.embedded_store(path, 6000, console)
    assert (made.rows, harvested, made.status) == (6000, 6000, "complete")
    again, harvested = demo.embedded_store(path, 6000, console)
    assert (again.fingerprint, harvested) == (made.fingerprint, 0)
