"""Train the embedded model: a tiny GPT-2 on the Python standard library's own source.

    python tools/train_tiny_model.py --out models/tiny --minutes 90

Writes a standard Hugging Face directory (config, float16 safetensors, tokenizer) and `training.json` with the held-out loss
beside that of a bigram model on the same tokens. One file in twenty, chosen by the hash of its name, is never trained on.
The run is bounded by wall-clock time; with `--steps` instead, it is reproducible on one machine (seed fixed).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from splinterp.harvest.stdlib import is_held_out, stdlib_documents  # pyright: ignore[reportMissingImports]  (found once installed)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EOT = "<|endoftext|>"


def build_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on `texts`; <|endoftext|> is its BOS and EOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[EOT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOT, eos_token=EOT, unk_token=EOT)


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All documents in one row of token ids, each behind an <|endoftext|>."""
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts)
    eot = tokenizer.bos_token_id
    return torch.from_numpy(np.concatenate([np.array([eot, *e.ids], dtype=np.int64) for e in encoded]))


def windows(stream: torch.Tensor, context: int) -> torch.Tensor:
    """Non-overlapping windows [n, context] of the stream; the remainder is dropped."""
    n = len(stream) // context
    return stream[: n * context].view(n, context)


def bigram_loss(train: torch.Tensor, held_out: torch.Tensor, vocabulary: int) -> float:
    """Cross-entropy (nats/token) of a bigram model interpolated with the unigram; its weight is tuned on the held-out rows,
    in the bigram's favour."""
    counts = torch.bincount(train[:-1] * vocabulary + train[1:], minlength=vocabulary**2).view(vocabulary, vocabulary).double()
    unigram = (torch.bincount(train, minlength=vocabulary).double() + 0.5) / (len(train) + 0.5 * vocabulary)
    first, second = held_out[:, :-1].flatten(), held_out[:, 1:].flatten()
    pair, total, base = counts[first, second], counts.sum(1)[first], unigram[second]
    return min(float(-((pair + w * base) / (total + w)).log().mean()) for w in (1, 3, 10, 30, 100, 300, 1000))


@torch.no_grad()
def model_loss(model: GPT2LMHeadModel, rows: torch.Tensor, batch: int = 32) -> float:
    """Mean next-token cross-entropy (nats) over rows [n, context]."""
    model.eval()
    losses = [float(model(input_ids=part, labels=part).loss) * len(part) for part in rows.split(batch)]
    model.train()
    return sum(losses) / len(rows)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by five Newton-Schulz steps (Jordan et al., 2024), in float32: torch.optim.Muon works in
    bfloat16, which a CPU without bfloat16 products emulates (measured here: 3 s a step against 0.2 s)."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  (torch's may be given a closure)
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)  # root mean square of 0.2, as AdamW's


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The polar factor of a matrix [m, n], approximately, by five quintic Newton-Schulz iterations."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def optimizers(model: GPT2LMHeadModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, norms and biases."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and ".h." in name]
    others = [p for name, p in named.items() if not (p.ndim == 2 and ".h." in name)]
    return [Muon(matrices, lr=lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=90.0)
    budget.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=16, help="rows of --context tokens a step")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    documents = list(stdlib_documents())
    train_texts = [text for name, text in documents if not is_held_out(name)]
    held_texts = [text for name, text in documents if is_held_out(name)]
    tokenizer = build_tokenizer(train_texts, args.vocabulary)
    tokenizer.model_max_length = args.context
    train_stream = token_stream(tokenizer, train_texts)
    test_stream = token_stream(tokenizer, [text for _, text in stdlib_documents(tests=True)])  # more text: less repetition
    held_rows = windows(token_stream(tokenizer, held_texts), args.context)
    bigram = bigram_loss(train_stream, held_rows, args.vocabulary)
    print(f"{len(train_stream):,} training tokens, {held_rows.numel():,} held out, bigram loss {bigram:.4f}", flush=True)

    end = tokenizer.backend_tokenizer.token_to_id(EOT)
    config = GPT2Config(
        vocab_size=args.vocabulary, n_positions=args.context, n_embd=args.width, n_layer=args.layers, n_head=args.heads,
        bos_token_id=end, eos_token_id=end, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    steppers = optimizers(model, args.lr)

    started, step, seen, queue = time.monotonic(), 0, 0, torch.empty(0, args.context, dtype=torch.long)
    while True:
        share = step / args.steps if args.steps else (time.monotonic() - started) / (60 * args.minutes)
        if share >= 1:
            break
        lr = args.lr * min(1.0, (step + 1) / 100) * min(1.0, (1 - share) / 0.4 + 0.01)  # warm-up, flat, linear decay
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = lr
        if len(queue) < args.batch:  # an epoch: windows at a fresh offset, shuffled
            offset = int(torch.randint(args.context, ()))
            rows, extra = (windows(stream[offset:], args.context) for stream in (train_stream, test_stream))
            rows = torch.cat([rows, extra[torch.randperm(len(extra))[: len(rows)]]])  # half library, half its tests
            queue = torch.cat([queue, rows[torch.randperm(len(rows))]])
        rows, queue = queue[: args.batch], queue[args.batch :]
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
        step, seen = step + 1, seen + rows.numel()
        if step % 50 == 0:
            rate = seen / (time.monotonic() - started)
            line = f"step {step} tokens {seen:,} loss {loss.item():.4f} lr {lr:.2e} {rate:.0f} tokens/s {share:.1%}"
            print(line + (f" held out {model_loss(model, held_rows[:64]):.4f}" if step % 200 == 0 else ""), flush=True)

    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    report = {
        "held_out_loss": model_loss(model.float(), held_rows), "bigram_loss": bigram, "unit": "nats/token",
        "held_out_tokens": held_rows.numel(), "training_tokens": len(train_stream), "extra_training_tokens": len(test_stream), "tokens_seen": seen, "steps": step,
        "parameters": sum(p.numel() for p in model.parameters()), "minutes": round((time.monotonic() - started) / 60, 1),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
    assert math.isfinite(report["held_out_loss"])
    (args.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
