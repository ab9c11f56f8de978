"""SAE files in SAELens's format: a directory with `sae_weights.safetensors` and `cfg.json`, which SAELens loads as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import SAEError
from ..nearest import did_you_mean_path
from ..quantities import parse_json
from .model import SAE, WITH_K, SAEConfig, of_gated
from .seal import check_settings, sealed, unsealed

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
# SAELens reads files that name no version, or one before 6, as an older format and drops their metadata.
VERSION, SAE_LENS_FORMAT = "sae_lens_version", "6.54.0"


def save_sae(sae: SAE, directory: Path) -> None:
    """Write `sae` (float32) into `directory`, which is made if need be, in SAELens's format."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    config = sae.config
    plain = {k: v.detach().to("cpu", torch.float32).contiguous() for k, v in tensors.items()}
    _replace(directory / WEIGHTS, sealed(plain, _settings(config)))
    cfg: dict[str, Any] = {
        "architecture": config.architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": config.reshape_activations,
        "metadata": {**config.metadata, VERSION: SAE_LENS_FORMAT},
    }
    if config.architecture in WITH_K:
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": config.rescale_acts_by_decoder_norm}
    _replace(directory / CONFIG, (json.dumps(cfg, indent=2) + "\n").encode())


def _replace(path: Path, data: bytes) -> None:
    """Replace a file as a whole: a process that is killed leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a full disk does not say whose
        raise


def load_sae(directory: str | Path, device: str | torch.device = "cpu") -> SAE:
    """Read an SAE in SAELens's format, ours or SAELens's own, in float32. A gated one is read as the jumprelu SAE that it is.

    Raises:
        SAEError: no such directory, not an SAE, damaged, or of a kind that is not supported.
    """
    directory = Path(directory)
    config_path, weights_path = directory / CONFIG, directory / WEIGHTS
    if directory.is_file():
        raise SAEError(f"{directory} is a file; give the directory that holds {CONFIG} and {WEIGHTS}.")
    if not directory.exists():
        meant = did_you_mean_path(directory, lambda other: (other / CONFIG).is_file())
        raise SAEError(f"There is no SAE at {directory}; give a run directory, or any directory in SAELens's format.{meant}")
    if (directory / "sweep.json").is_file():
        raise SAEError(f"{directory} holds the runs of a sweep, and is no SAE itself; name one of its folders.")
    if not config_path.is_file() or not weights_path.is_file():
        raise SAEError(
            f"{directory} is not an SAE: it needs {CONFIG} and {WEIGHTS} (a run that has not finished has none yet)."
        )
    try:
        cfg = parse_json(config_path.read_bytes())
    except ValueError as error:
        raise SAEError(f"The SAE in {directory} is damaged: {config_path} is not valid JSON ({error}).") from error
    if not isinstance(cfg, dict):
        raise SAEError(f"{config_path} is damaged: it does not hold a JSON object.")
    config = _config(cfg, directory)
    tensors, settings = unsealed(weights_path)
    gated = cfg.get("architecture") == "gated"
    vectors = (
        ("b_gate", "r_mag", "b_mag") if gated else ("b_enc", "threshold") if config.architecture == "jumprelu" else ("b_enc",)
    )
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (config.d_in, config.d_sae), "W_dec": (config.d_sae, config.d_in), "b_dec": (config.d_in,),
        **dict.fromkeys(vectors, (config.d_sae,)),
    }  # fmt: skip
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise SAEError(f"The SAE in {directory} does not fit its {CONFIG}: {name} should be {shape}, found {found}.")
    check_settings(config_path, _settings(config), weights_path, settings)
    weights = {name: tensors[name].to(device, torch.float32) for name in shapes}
    if gated:
        encoder = of_gated(*(weights.pop(name) for name in ("W_enc", *vectors)))
        weights |= dict(zip(("W_enc", "b_enc", "threshold"), encoder, strict=True))
    return SAE(config, **weights)


def _settings(config: SAEConfig) -> dict[str, Any]:
    """What decides what the weights compute, and tells whose activations they are for, as it is read again. What is added later does no harm."""
    names = ("architecture", "d_in", "d_sae", "apply_b_dec_to_input", "reshape_activations")
    with_k = ("k", "rescale_acts_by_decoder_norm") if config.architecture in WITH_K else ()
    decisive = {name: getattr(config, name) for name in (*names, *with_k)}
    return decisive | {f"metadata.{name}": value for name, value in config.metadata.items() if name != VERSION}


def _config(cfg: dict[str, Any], directory: Path) -> SAEConfig:
    for key, known in (
        ("normalize_activations", ("none",)),
        ("reshape_activations", ("none", "hook_z")),
        ("finetuning_scaling_factor", (False,)),
    ):
        if cfg.get(key) not in (*known, None):
            raise SAEError(
                f"The SAE in {directory} uses {key}={cfg[key]}, which is not supported; fold it into the weights first."
            )
    # SAELens before version 6: the activation by name, its k apart, the metadata at the top level.
    architecture, k = cfg.get("architecture", "standard"), cfg.get("k")
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if activation == "topk":
        architecture, k = "topk", k if k is not None else _k_of(cfg.get("activation_fn_kwargs"))
    elif activation != "relu":
        raise SAEError(
            f"The SAE in {directory} uses the activation {activation!r}, which is not supported; known are relu and topk."
        )
    if architecture == "gated":
        architecture = "jumprelu"
    metadata = {
        key: cfg[key] for key in ("model_name", "hook_name", "dataset_path", "context_size") if cfg.get(key) is not None
    }
    try:
        return SAEConfig(
            architecture=architecture,
            d_in=int(cfg["d_in"]),
            d_sae=int(cfg["d_sae"]),
            k=int(k) if k is not None else None,
            apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)),
            rescale_acts_by_decoder_norm=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
            reshape_activations=cfg.get("reshape_activations") or "none",
            metadata=metadata | dict(cfg.get("metadata") or {}),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise SAEError(f"{directory / CONFIG} is not a configuration that is understood: {error!r}.") from error


def _k_of(arguments: Any) -> Any:
    """k among the arguments of SAELens's older TopK."""
    return arguments.get("k") if isinstance(arguments, dict) else None
