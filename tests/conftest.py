"""Shared fixtures: everything offline; small random models of true architectures, saved as Hugging Face directories."""

from __future__ import annotations

import os
import shutil
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: a test that asks the network is a mistake

import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# How long an example takes, and how long it takes to think of one, is the machine's affair.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

# Whoever starts the tests in the background of a shell has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest, first; those that mostly wait for other processes lie between those that compute, so that no core is idle.
LONGEST = (
    "test_service_jobs", "test_reproduce_mnist", "test_train_sweep", "test_service_slurm", "test_readme", "test_train_ranks", "test_service_page",
    "test_train_resume", "test_harvest_selection", "test_service_api", "test_service_kill", "test_harvest_ranks", "test_store_ranks",
)  # fmt: skip

BOS, EOS = "<|bos|>", "<|eos|>"
VOCABULARY = 384
LAYERS = 4
MAX_CONTEXT = 64


def pytest_collection_modifyitems(items):
    """What would otherwise be left for one process at the end begins at once (xdist hands out whole files in this order)."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1100,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, driven by selenium, with a profile of its own."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no chromium with chromedriver here")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def written_at_last():
    """A file's bytes, once another process that writes it has come to something: wandb's does so for a moment after a run's end."""

    def read(path: Path) -> bytes:
        size, until = -1, time.monotonic() + 20
        while (path.stat().st_size < 1000 or path.stat().st_size != size) and time.monotonic() < until:
            size = path.stat().st_size
            time.sleep(0.1)
        return path.read_bytes()

    return read


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Documents of very different lengths, one of them empty."""
    words = "alpha beta gamma delta def return import class None self lambda yield".split()  # noqa: SIM905
    documents = [" ".join(words[(i * j) % len(words)] for j in range(i % 17 * 5)) + f"\nd{i} é{i}\n" for i in range(60)]
    return [*documents, "", "short", "one long line " * 200]


@pytest.fixture(scope="session")
def tokenizer(texts):
    """A byte-level BPE tokenizer of 384 tokens with BOS and EOS of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)


def save_random(model: torch.nn.Module, tokenizer, path: Path, seed: int) -> Path:
    """Save `model` with weights that leave nothing at zero or one, so that folding or centring would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def saved(tokenizer):
    """`save_random`, with the tokenizer, for tests that make models of their own."""
    return lambda model, path, seed=0: save_random(model, tokenizer, path, seed)


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory, tokenizer) -> Path:
    """GPT-2's architecture: 4 layers, d=32, 64 positions."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)  # transformers draws weights from torch's global generator
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=MAX_CONTEXT, n_embd=32, n_layer=LAYERS, n_head=4,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return save_random(GPT2LMHeadModel(config), tokenizer, tmp_path_factory.mktemp("models") / "gpt2", seed=1)


@pytest.fixture(scope="session")
def gemma2_dir(tmp_path_factory, tokenizer) -> Path:
    """Gemma 2's architecture: 4 layers, two query heads to a key head, soft-capping, a sliding window of 8."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(2)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, max_position_embeddings=MAX_CONTEXT, sliding_window=8,
        attn_logit_softcapping=5.0, final_logit_softcapping=30.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return save_random(Gemma2ForCausalLM(config), tokenizer, tmp_path_factory.mktemp("models") / "gemma2", seed=2)


@pytest.fixture(scope="session", params=["gpt2", "gemma2"])
def model_dir(request) -> Path:
    return request.getfixturevalue(f"{request.param}_dir")


@pytest.fixture(
    params=[{}, {"alpha": 2.0}, {"beta": 30.0}, {"mu": 5.0}, {"nu": 70.0}, {"alpha": 0.3, "beta": 4.0, "mu": 2.0, "nu": 9.0}],
    ids=lambda given: ",".join(f"{name}={value:g}" for name, value in given.items()) or "none",
)
def penalties(request):
    """The decoder's penalties, one by one and all together."""
    from splinterp.train import Penalties

    return Penalties(**request.param)


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory, texts) -> Path:
    """The documents as a .jsonl file."""
    import json

    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


@pytest.fixture
def cli(capsys):
    """Run the command line; returns (exit code, stdout, stderr)."""

    from splinterp.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
