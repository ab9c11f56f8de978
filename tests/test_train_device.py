"""What a GPU would see of a step, on torch's meta device, which has no data: whoever waits for a number, or mixes it with the CPU, fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from splinterp.sae import SparseCodes, by_latent, decode, select_topk, sum_rows
from splinterp.train import Statistics, TrainConfig
from splinterp.train.dead import DeadLatents
from splinterp.train.encoder import Weights
from splinterp.train.gram import add_gram
from splinterp.train.sparse import sparse_pass
from splinterp.train.window import Window

META = torch.device("meta")
N, D_IN, D_SAE, K = 32, 10, 4096, 4
PARTS: dict[str, Callable[[torch.Tensor, SparseCodes, Weights], object]] = {
    "product": lambda x, codes, w: w.pre_activations(x),
    "top-k": lambda x, codes, w: select_topk(w.pre_activations(x), K),
    "forward and back": lambda x, codes, w: sparse_pass(x, codes, w.W_dec, w.b_dec, moment=True),
    "decoding": lambda x, codes, w: decode(codes, w.W_dec, w.b_dec),
    "sums": lambda x, codes, w: sum_rows(by_latent(codes, D_SAE), codes.values, x),
    "Gram": lambda x, codes, w: add_gram(torch.empty(D_SAE, D_SAE, device=META).double(), codes, by_latent(codes, D_SAE)),
    "statistics": lambda x, codes, w: Statistics(D_IN, D_SAE, META).add(x, codes),
    "window": lambda x, codes, w: Window(D_IN, D_SAE, K, 100, META).add(x, codes),
    "dead": lambda x, codes, w: DeadLatents(D_SAE, 50, META).update(codes, N),
}


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_no_part_of_a_step_waits_for_the_device(part):
    config = TrainConfig(method="pam", activation="topk", d_sae=D_SAE, k=K, rows=10**6, batch_size=N, lr=1e-3)
    weights, x = Weights(D_IN, config, META), torch.empty(N, D_IN, device=META)
    codes = SparseCodes(torch.empty(N, K, dtype=torch.int64, device=META), torch.empty(N, K, device=META))
    PARTS[part](x, codes, weights)
