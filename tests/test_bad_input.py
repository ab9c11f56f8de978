"""Bad input: whatever a file, a request or a command line says, it is taken or refused in a sentence, soon, and in little memory.

The targets are those of the fuzzing campaign (tests/campaigns/fuzz_all.py); every defect that it, or a look, has found stands below.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from fuzz import Prepared, attempt
from fuzz.mutate import DEEP, changed_lines, damaged, mutated
from fuzz.results import leave_run
from fuzz.targets import ALL
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from splinterp.errors import SplinterpError

EXAMPLES = {"resume": 4, "log": 12}  # the others take a few milliseconds
LARGE = 10**400
GONE = object()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Callable[[str], Prepared]:
    """A target's valid inputs, and the target, by its name."""
    made: dict[str, Prepared] = {}

    def get(name: str) -> Prepared:
        if name not in made:
            made[name] = ALL[name].prepare(tmp_path_factory.mktemp("target"))
        return made[name]

    return get


@pytest.mark.parametrize("name", ALL)
def test_bad_input_is_taken_or_refused_in_a_sentence(name, prepared):
    seeds, one, words = prepared(name)

    @settings(max_examples=EXAMPLES.get(name, 30), derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(seeds), st.randoms(use_true_random=False))
    @example(b"", Random(0))
    @example(b"\xff\xfe\0", Random(0))
    def check(seed: bytes, random: Random) -> None:
        data = seed
        if random.random() < 0.8:
            data = changed_lines(seed, random, words) if words else mutated(seed, random)
        found = attempt(one, data if data != seed else damaged(seed, random))
        assert found is None, found.told

    check()


@pytest.mark.parametrize("name", [name for name in ALL if name not in EXAMPLES])
def test_valid_input_is_taken(name, prepared):
    """At least some of it: or the targets would look at nothing."""
    seeds, one, _ = prepared(name)
    taken = 0
    for seed in seeds:
        try:
            one(seed)
            taken += 1
        except SplinterpError:
            continue
    # Texts are no token ids and token ids no texts; the sound run of a sweep is finished.
    assert taken or name in ("documents", "sweep directory")


def changed(data: bytes, path: tuple[Any, ...], value: Any) -> bytes:
    """JSON with another value at a path of keys and indices."""
    told = at = json.loads(data)
    for key in path[:-1]:
        at = at[key]
    if value is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(told).encode()


OURS = ("zarr.json", "attributes", "splinterp")
# What was not refused in a sentence once: the target, where in its first valid input, what stands there, and what is said now.
DEFECTS: dict[str, tuple[str, tuple[Any, ...], Any, str]] = {
    "a list as long as a store says it has chunks": ("store", (*OURS, "rows"), 10**15, "does not match"),
    "a store without its files' checksums": ("store", (*OURS, "metadata_crc32c"), GONE, "do not describe a store"),
    "a dtype that is a list": ("store", (*OURS, "dtype"), [], "do not describe a store"),
    "blocks that are a number": ("store", ("manifest.jsonl", 0, "blocks", "h"), 7, "what it says of chunk 0"),
    "blocks that are too few": ("store", ("manifest.jsonl", 0, "blocks", "h"), "", "what it says of chunk 0"),
    "checksums that are a number": ("store", ("manifest.jsonl", 1, "crc32c"), 0.5, "what it says of chunk 1"),
    "a chunk that is called one": ("store", ("manifest.jsonl", 0, "chunk"), "one", "damaged in line 1"),
    "a chunk of more rows than fit": ("store", ("manifest.jsonl", 0, "rows"), 10**9, "what it says of chunk 0"),
    "a mean that is gone": ("store", ("h/zarr.json", "attributes", "mean"), GONE, "does not hold the site's mean"),
    "a mean of another width": ("store", ("h/zarr.json", "attributes", "mean"), [1.0], "does not hold the site's mean"),
    "a mean beyond every float": ("store", ("h/zarr.json", "attributes", "mean"), [1, 2, LARGE], "does not hold the site's mean"),
    "outliers that are a list": ("store", ("h/zarr.json", "attributes", "outliers"), [], "does not hold the site's mean"),
    "a root nested too deeply": ("store", ("zarr.json",), DEEP[1], "not valid JSON"),
    "norms that are gone": ("log", ("log.jsonl", 0, "norms"), {}, "what it says of chunk"),
    "a histogram beyond every float": ("log", ("log.jsonl", 0, "histograms", "h"), {"99999": 256}, "what it says of chunk"),
    "sums that are no vectors": ("log", ("log.jsonl", 0, "sums", "h"), "AAAA", "what it says of chunk"),
    "a pool of no chunks": ("log", (*OURS, "pool_chunks"), 0, "its pool_chunks is 0"),
    "a pool of more chunks than can be": ("log", (*OURS, "pool_chunks"), 10**9, "its pool_chunks is 1000000000"),
    "a pool that is a dictionary": ("log", (*OURS, "pool_chunks"), {"x": 1}, "its pool_chunks is {'x': 1}"),
    "bounds that are a number": ("log", (*OURS, "max_norms"), 7, "its max_norms is 7"),
    "bounds of a name": ("log", (*OURS, "max_norms"), {"h": "x"}, "its max_norms is {'h': 'x'}"),
    "a log nested too deeply": ("log", ("log.jsonl", 0), DEEP[0], "damaged in line 1"),
    "more rows than other Zarr holds": ("zarr", ("zarr.json", "shape", 0), 10**13, "most of its chunks are missing"),
    "more rows than any float": ("zarr", ("zarr.json", "shape", 0), LARGE, "most of its chunks are missing"),
    "chunks without rows": ("zarr", ("zarr.json", "chunk_grid", "configuration", "chunk_shape", 0), 0, "chunks without rows"),
    "a fill beyond every float": ("zarr", ("zarr.json", "fill_value"), LARGE, "zarr cannot open it"),
    "a configuration nested too deeply": ("sae", ("cfg.json",), DEEP[0], "nested too deeply"),
    "an old SAE's arguments that are text": ("sae", ("cfg.json",), {"activation_fn": "topk", "activation_fn_kwargs": "x"}, "not a configuration"),
    "an MLP of infinite width": ("mlp", ("encoder-mlp-4.json", "hidden"), float("inf"), "damaged"),
    "an MLP that keeps more latents than there are": ("mlp", ("encoder-mlp-4.json", "k"), 10**6, "would keep"),
    "codes of no shape": ("codes", ("zarr.json", "attributes", "shape"), [6], "how many codes"),
    "codes of more rows than there are": ("codes", ("zarr.json", "attributes", "shape", 0), 10**12, "does not hold"),
    "codes whose metadata are another array's": ("codes", ("indices/zarr.json", "data_type"), "int64", "does not hold"),
    "a checkpoint's rows below none": ("checkpoint", ("checkpoint.header.json", "__metadata__", "position"), '{"rows": -1}', "rows is -1"),
    "a position nested too deeply": ("checkpoint", ("checkpoint.header.json", "__metadata__", "position"), DEEP[0], "nested too deeply"),
    "a model's configuration nested too deeply": ("model", ("config.json",), DEEP[0], "config.json"),
    "a model's dtype that is a list": ("model", ("config.json", "dtype"), ["float16"], "config.json"),
    "a model without heads of any width": ("model", ("config.json", "n_embd"), 0, "config.json"),
    "a model of more blocks than can be": ("model", ("config.json", "n_layer"), 10**30, "config.json"),
    "a tokenizer nested too deeply": ("tokenizer", ("tokenizer.json",), DEEP[0], "is damaged"),
    "a tokenizer of no kind": ("tokenizer", ("tokenizer.json", "model", "type"), "x", "is damaged"),
    "a token's id beyond every memory": ("tokenizer", ("tokenizer.json", "model", "vocab", "text"), 2**31, "is damaged"),
    "a tokenizer's class that is a number": ("tokenizer", ("tokenizer_config.json", "tokenizer_class"), 3, "usable tokenizer"),
    "a run's settings that are a list": ("resume", ("run.json", "settings"), [], "does not describe a run"),
    "a run that diverged at a word": ("resume", ("run.json", "diverged"), "early", "does not describe a run"),
    "a sweep's memory that is a word": ("sweep directory", ("sweep.json", "members", "k=4", "settings", "memory"), "x", "damaged"),
}  # fmt: skip
# What is taken: it is shown as well as it can be, or left out.
TAKEN: dict[str, tuple[str, tuple[Any, ...], Any]] = {
    "rows beyond every float": ("runs", ("metrics.jsonl", 0, "rows"), LARGE),
    "an infinite setting": ("runs", ("run.json", "settings", "lr"), float("inf")),
    "a store's name with half a character": ("runs", ("run.json", "site"), "\ud800"),
    "a setting with half a character": ("runs", ("run.json", "settings", "method"), "\ud800"),
    "figures before the last solve that are a list": ("runs", ("summary.json", "before_last_solve"), [1]),
    "a site that is a number": ("catalogue", ("run.json", "site"), 3),
    "figures that are no numbers": ("catalogue", ("metrics.jsonl", 3, "held_out_fvu"), None),
    "rows beyond every float, served": ("catalogue", ("metrics.jsonl", 3, "rows"), LARGE),
    "a summary beyond every float": ("catalogue", ("summary.json", "fvu"), LARGE),
}


def said(one: Callable[[bytes], object], data: bytes) -> str:
    """The sentence in which an input is refused."""
    found = attempt(one, data)
    assert found is None, found.told
    with pytest.raises(SplinterpError) as refused:
        one(data)
    return str(refused.value)


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_was_found_is_refused_in_a_sentence(defect, prepared):
    name, path, value, sentence = DEFECTS[defect]
    seeds, one, _ = prepared(name)
    assert sentence in said(one, changed(seeds[0], path, value))


@pytest.mark.parametrize("defect", TAKEN)
def test_what_was_found_is_taken(defect, prepared):
    name, path, value = TAKEN[defect]
    seeds, one, _ = prepared(name)
    one(changed(seeds[0], path, value))


def test_dead_latents_of_none_are_no_figure(prepared):
    seeds, one, _ = prepared("runs")
    one(changed(changed(seeds[1], ("run.json", "settings", "d_sae"), 0), ("metrics.jsonl", 3, "dead"), 3))


def test_half_a_character_is_shown_as_well_as_can_be(cli, tmp_path):
    """JSON may hold what is no text in any encoding; names of files, too."""
    for name in ("one", "two"):
        leave_run(tmp_path / name)
    told = json.loads((tmp_path / "one" / "run.json").read_text())
    told["settings"]["method"] = "\ud800"
    (tmp_path / "one" / "run.json").write_text(json.dumps(told))
    code, out, err = cli("compare", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "compare.html")
    assert (code, err) == (0, "")
    assert "\\ud800" in out
    assert "<td>?</td>" in (tmp_path / "compare.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("what", [{"rows": "many"}, {"sites": {"/etc": 1}}, {"sites": []}, {"model": 3}, {"columns": 5}])
def test_a_store_s_own_words_do_not_bring_the_service_down(what, prepared):
    seeds, one, _ = prepared("catalogue")
    for name, value in what.items():
        one(changed(seeds[1], (*OURS, name), value))
    one(changed(seeds[1], ("zarr.json", "attributes"), [what]))


@pytest.mark.parametrize(
    "header", [b"'" * 50, b"-" * 5000, b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"(" * 300]
)
@pytest.mark.parametrize("name", ["npy", "npz header"])
def test_a_header_that_python_cannot_parse(name, header, prepared):
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    assert "is not a plain" in said(prepared(name).one, data)


def test_a_tensor_of_fewer_numbers_than_its_shape_has(prepared):
    file = io.BytesIO()
    torch.save(torch.ones(1, 4).expand(10**6, 4), file)
    assert "fewer numbers" in said(prepared("pt").one, file.getvalue())


def test_moments_of_adam_under_another_name(prepared):
    told = json.loads(prepared("resume").seeds[0])
    header = told["checkpoint.header.json"]
    header["gradient.adam.1.exp"] = header.pop("gradient.adam.1.exp_avg")
    assert "moments of Adam do not fit" in said(prepared("resume").one, json.dumps(told).encode())


def test_a_sweep_of_more_saes_than_can_be(prepared):
    axes = [f"{name}={','.join(map(str, range(1, 60)))}" for name in ("k", "latents", "seed", "solve-every", "memory-rows")]
    assert "714,924,299 SAEs" in said(prepared("sweeps").one, "\n".join(axes).encode())


def test_rows_of_codes_that_begin_before_others_end(prepared):
    told = json.loads(prepared("codes").seeds[1])
    told["indptr/c.0"] = np.array([0, 2, 1, 6, 8, 10, 12], "<i8").tobytes().decode("latin-1") + "0000"
    assert "begin one after the other" in said(prepared("codes").one, json.dumps(told).encode())
    told = json.loads(prepared("codes").seeds[1])
    told["indices/c.0"] = np.full(12, 77, "<i4").tobytes().decode("latin-1") + "0000"
    assert "latents that its SAE does not have" in said(prepared("codes").one, json.dumps(told).encode())


@pytest.mark.parametrize(
    "head", ["Origin: http://[", "Content-Length: \xb2", "Content-Length: " + "9" * 5000, "Host: [", "Cookie: =\xff;;"]
)
def test_a_request_s_head_is_no_server_error(head, prepared):
    prepared("requests").one(b"POST\n/api/jobs\n" + head.encode("latin-1"))


@pytest.mark.parametrize("priority", ["--5", "²", "1_0", "9" * 5000])
def test_a_form_s_number_is_one(priority, prepared):
    fields = {"command": "train", "fields": {"store": "acts.zarr", "job_priority": priority}}
    assert "Priority must be a number" in said(prepared("jobs").one, json.dumps(fields).encode())
