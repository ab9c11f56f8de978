"""Language models: a name to a checkpoint, a checkpoint to a TransformerLens bridge over only the blocks that are needed."""

from __future__ import annotations

import copy
import logging
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .. import models
from ..errors import ModelError, StoreError
from ..names import is_plain
from ..nearest import did_you_mean, did_you_mean_path
from ..store.files import read_json
from .config import EMBEDDED
from .facts import ModelFacts
from .faithful import check_faithful, sample_logits
from .hub import hub_commit, hub_sentences

# Of what a library says: TransformerLens names all of its architectures.
LONGEST_LINE = 240
INDEX = "model.safetensors.index.json"

_UNFUSED_GELU = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files are.

    name: as the user, or the hub, calls it. path: a directory or a hub repository. options: what every
    `from_pretrained` is given, so that config, weights and tokenizer are of one revision.
    """

    name: str
    path: str
    revision: str | None
    options: dict[str, Any]


def find_checkpoint(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Checkpoint:
    """Resolve "tiny", an existing directory, or a TransformerLens or hub name (gemma-2-2b is google/gemma-2-2b).

    Raises:
        ModelError: there is no such model, or it may not be read.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    path = Path(str(files(models) / "tiny")) if name == EMBEDDED else Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path} holds no model: a Hugging Face directory has a config.json, *.safetensors and a tokenizer."
            )
        if revision is not None:
            raise ModelError(f"{path} is a directory, so it has no revision '{revision}'; leave --revision out.")
        called = EMBEDDED if name == EMBEDDED else str(path.resolve())
        return Checkpoint(called, str(path), None, {**options, "local_files_only": True})
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no model directory {path}; check the path.{_meant(name)}")
    repository = _official_name(name)
    with _meaning(name):
        commit = hub_commit(repository, "model", revision, ModelError)
    pinned = commit or revision
    return Checkpoint(
        repository, repository, pinned, {**options, "revision": pinned or "main", "local_files_only": commit is None}
    )


def load_config(checkpoint: Checkpoint) -> Any:
    """The transformers configuration.

    Raises:
        ModelError: it cannot be had, or is not that of a decoder of text.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        with _meaning(checkpoint.name), hub_sentences(checkpoint.path, "model", checkpoint.revision, ModelError):
            config = AutoConfig.from_pretrained(checkpoint.path, **checkpoint.options)
    # transformers takes the file for what it should be.
    except (
        OSError, ValueError, StrictDataclassError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError,
    ) as error:  # fmt: skip
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{checkpoint.name} needs Python code of its own; read it, and if you trust it give --trust-remote-code."
            ) from error
        raise ModelError(f"{checkpoint.path} has no config.json that transformers understands: {_first_line(error)}") from error
    # Also because TransformerLens pip-installs torchvision when it meets a model that sees.
    if getattr(config, "is_encoder_decoder", False) or config.get_text_config() is not config:
        raise ModelError(
            f"{checkpoint.name} ({config.model_type}) is not a plain decoder of text, and only those can be harvested; "
            "choose a text-only model."
        )
    return config


def check_request(name: str, facts: ModelFacts, layers: tuple[int, ...], context: int) -> None:
    """Raises ModelError for a layer that the model lacks, or a context that it cannot see."""
    for layer in layers:
        if layer >= facts.n_layers:
            raise ModelError(f"{name} has layers 0..{facts.n_layers - 1}; asked for {layer}.")
    if facts.max_context is not None and context > facts.max_context:
        raise ModelError(
            f"{name} sees at most {facts.max_context} tokens at once; a context of {context} is too long: lower --context."
        )


def blocks_needed(config: Any, last: int) -> int:
    """Blocks to load for layer `last`: those up to it; all where the first depend on how many follow (Gemma 3n and 4)."""
    depends = any(getattr(config, name, None) for name in ("num_kv_shared_layers", "hidden_size_per_layer_input"))
    return int(config.num_hidden_layers) if depends else last + 1


def choose_dtype(dtype: str, facts: ModelFacts, device: torch.device) -> torch.dtype:
    """The dtype to run in; "auto" is float32 on a CPU, elsewhere the checkpoint's own half type, or bfloat16."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cpu":
        return torch.float32
    return facts.dtype if facts.dtype in _HALF else torch.bfloat16


def load_model(checkpoint: Checkpoint, config: Any, blocks: int, dtype: torch.dtype) -> Any:
    """The model's first `blocks` blocks as transformers builds it, on the CPU, its weights as they are.

    Raises:
        ModelError: no safetensors weights, or weights that do not fit the configuration.
    """
    with _quiet():
        from transformers import AutoModelForCausalLM

        _check_index(Path(checkpoint.path) / INDEX)
        config = copy.deepcopy(config)
        config.num_hidden_layers = blocks
        _fuse_gelu(config)
        if vars(config).get("layer_types"):  # of some architectures a property, which follows by itself
            config.layer_types = config.layer_types[:blocks]
        try:
            with hub_sentences(checkpoint.path, "model", checkpoint.revision, ModelError):
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    checkpoint.path,
                    config=config,
                    dtype=dtype,
                    attn_implementation="eager",
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **checkpoint.options,
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"The weights of {checkpoint.name} cannot be loaded (only safetensors are, never pickles): {_first_line(error)}"
            ) from error
        except (TypeError, LookupError, ArithmeticError) as error:
            raise ModelError(
                f"The config.json of {checkpoint.name} describes no model that transformers can build: {error!r}"
            ) from error
        model, report = loaded
        # transformers fills what it misses with random numbers and goes on.
        for key, found, wanted in sorted(report["mismatched_keys"])[:1]:
            raise ModelError(
                f"The weights of {checkpoint.name} do not fit its config.json: {key} is {list(found)} and should be {list(wanted)}; "
                "the files belong to different models."
            )
        if report["missing_keys"]:
            raise ModelError(
                f"The weights of {checkpoint.name} lack {', '.join(sorted(report['missing_keys'])[:3])}: "
                "the files are incomplete or belong to another architecture."
            )
        return model


def _check_index(path: Path) -> None:
    """See that the index of a directory's weights names files of that directory alone: transformers would follow it anywhere."""
    if not path.is_file():
        return
    try:
        names = read_json(path).get("weight_map")
    except StoreError as error:
        raise ModelError(str(error)) from None
    if not isinstance(names, dict) or not all(map(is_plain, names.values())):
        raise ModelError(f"{path} is damaged: it names files that do not lie beside it.")


def load_bridge(
    checkpoint: Checkpoint, config: Any, tokenizer: Any, blocks: int, device: torch.device, dtype: torch.dtype
) -> Any:
    """The model's first `blocks` blocks as a TransformerLens TransformerBridge, in eval mode, its weights as they are.

    The bridge neither folds nor centres anything: its residual stream is Hugging Face's own.

    Raises:
        ModelError: as `load_model`; or an architecture that TransformerLens does not know, cannot run, or runs otherwise than Hugging Face.
    """
    with _quiet():
        from transformer_lens.model_bridge import TransformerBridge

        model = load_model(checkpoint, config, blocks, dtype)
        # Before the bridge puts modules of its own into the model.
        expected = sample_logits(model.to(device).eval(), config.vocab_size)
        try:
            bridge = TransformerBridge.boot_transformers(
                checkpoint.path,
                hf_model=model,
                tokenizer=_settled(tokenizer),
                device=str(device),
                dtype=dtype,
            )
            found = sample_logits(bridge, config.vocab_size, return_type="logits")
        except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
            advice = "give --model-dtype float32" if dtype in _HALF else "try another version of it, or harvest another model"
            raise ModelError(
                f"TransformerLens cannot run {checkpoint.name} in {str(dtype).removeprefix('torch.')} ({_first_line(error)}); {advice}."
            ) from error
        check_faithful(checkpoint.name, expected, found, dtype)
    return bridge


def _fuse_gelu(config: Any) -> None:
    """The tanh GELU as torch's one kernel: transformers' spelling of it in eight steps takes a fifth of GPT-2's time on a CPU.

    The same formula, rounded once instead of eight times.
    """
    for name in ("activation_function", "hidden_act", "hidden_activation"):
        if getattr(config, name, None) in _UNFUSED_GELU:
            setattr(config, name, "gelu_pytorch_tanh")


def _settled(tokenizer: Any) -> Any:
    """A copy that says it adds BOS already, or TransformerLens loads it a second time, from the hub's main branch.

    Rows go into the bridge as integers, so its tokenizer is never asked.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.init_kwargs["add_bos_token"] = True
    return tokenizer


def _official_name(name: str) -> str:
    """TransformerLens's aliases resolved; any other name as it is."""
    from transformer_lens.supported_models import MODEL_ALIASES

    return next((official for official, aliases in MODEL_ALIASES.items() if name in aliases), name)


@contextmanager
def _meaning(name: str) -> Iterator[None]:
    """Say in a ModelError which model may have been meant by `name`, if it is near one that there is."""
    try:
        yield
    except ModelError as error:
        if not (meant := _meant(name)):
            raise
        raise ModelError(f"{error}{meant}") from error


def _meant(name: str) -> str:
    from transformer_lens.supported_models import MODEL_ALIASES

    known = {EMBEDDED, *MODEL_ALIASES, *(alias for aliases in MODEL_ALIASES.values() for alias in aliases)}
    if name in known:
        return ""
    return did_you_mean_path(Path(name), lambda other: (other / "config.json").is_file()) or did_you_mean(name, known)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' loading bars and its report on the blocks that are left out on purpose."""
    from transformers.utils import logging as transformers_logging

    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    line = str(error).strip().split("\n", 1)[0].rstrip(":")
    return textwrap.shorten(line, LONGEST_LINE, placeholder=" …") or type(error).__name__
