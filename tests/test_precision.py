"""What `--precision` rounds, and what it must not."""

from __future__ import annotations

import json

import pytest
import torch
from splinterp import cli
from splinterp import store as stores
from splinterp.errors import SplinterpError
from splinterp.sae import load_sae
from splinterp.train import TrainConfig
from splinterp.train.pam import PAM
from splinterp.train.precision import pre_activations, rounding, tensor_cores
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((30, 50), (70, 50), (70,)))  # type: ignore[return-value]


def test_what_a_precision_means_on_a_device():
    assert rounding("auto", CPU) == "float32"
    assert rounding("auto", torch.device("cuda")) == "tf32"
    assert rounding("bfloat16", CPU) == "bfloat16"
    with pytest.raises(SplinterpError, match="tf32 is a GPU's"):
        rounding("tf32", CPU)
    with pytest.raises(SplinterpError, match="--precision fp8 is unknown; choose one of auto, float32, tf32, bfloat16"):
        TrainConfig(method="pam", activation="topk", d_sae=8, k=2, rows=10, batch_size=5, lr=1e-3, precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("rounded", ["float32", "bfloat16"])
def test_operands_are_rounded_and_sums_are_not(rounded):
    x, W, b = problem()
    as_rounded = (lambda t: t.bfloat16().double()) if rounded == "bfloat16" else (lambda t: t.double())
    reference = as_rounded(x) @ as_rounded(W).T + b.double()  # the bias is never rounded
    ours = pre_activations(x, W, b, rounded)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), reference, rtol=0, atol=1e-5)
    with torch.no_grad():
        into = torch.empty(30, 70)
        assert pre_activations(x, W, b, rounded, into) is into
        assert torch.equal(into, ours)


def switch() -> str:
    return torch.backends.cuda.matmul.fp32_precision


class Watch(TorchDispatchMode):
    """The operations that run while TF32 is allowed, and all those that multiply matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: list[str] = []
        self.products: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if switch() == "tf32":
            self.allowed.append(name)
        if name in ("mm", "addmm", "bmm", "linalg_cholesky_ex", "cholesky_solve", "_linalg_solve_ex"):
            self.products.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_tf32_is_allowed_in_those_products_alone(activation):
    k = 4 if activation == "topk" else None
    config = TrainConfig(
        method="pam", activation=activation, d_sae=48, k=k, rows=10**6, batch_size=32, lr=1e-2, solve_every=2, dead_after=33
    )  # fmt: skip
    pam = PAM(10, config, CPU)
    pam.weights.rounding = "tf32"  # a CPU takes no notice of the switch, which is what is watched here
    before = switch()
    with Watch() as watch:
        for _ in range(4):
            pam.step(torch.randn(32, 10), 1e-2)
    assert [name for name in watch.allowed if name in watch.products] == 4 * (1 + bool(config.pull)) * ["addmm"]
    assert set(watch.allowed) <= {"mm", "addmm", "t", "transpose", "expand"}
    assert {"linalg_cholesky_ex", "cholesky_solve"} <= watch.products  # there were solves
    assert switch() == before
    with pytest.raises(ZeroDivisionError), tensor_cores(True):
        _ = 1 / 0
    assert switch() == before


def test_the_option_reaches_the_run(tmp_path, capsys):
    """And changes what is learnt, a little: the finished encoder is evaluated in float32, as it is used."""
    with stores.create(tmp_path / "acts.zarr", sites={"site": 10}, dtype="float32", rows=3000, attributes={}) as writer:
        generator = torch.Generator().manual_seed(0)
        writer.add({"site": torch.randn(3000, 30, generator=generator).relu() @ torch.randn(30, 10, generator=generator)}, {})
        writer.finish()
    arguments = [
        "train",
        "--store",
        str(tmp_path / "acts.zarr"),
        "--latents",
        "40",
        "--k",
        "4",
        "--batch-size",
        "128",
        "--device",
        "cpu",
    ]
    found = {}
    for precision in ("auto", "float32", "bfloat16"):
        out = tmp_path / precision
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, "--precision", precision, "--out", str(out)])
        assert end.value.code in (None, 0)
        told = json.loads((out / "run.json").read_text())
        assert told["settings"]["precision"] == precision
        assert told["precision"] == ("float32" if precision == "auto" else precision)
        sae, fvu = load_sae(out), json.loads((out / "summary.json").read_text())["fvu"]
        assert sae.W_enc.dtype == torch.float32
        assert not torch.equal(sae.W_enc, sae.W_enc.bfloat16().float())
        found[precision] = fvu
    assert found["auto"] == found["float32"] != found["bfloat16"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.05)
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--precision", "tf32", "--out", str(tmp_path / "no")])
    assert "--precision tf32 is a GPU's" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
