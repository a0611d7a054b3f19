"""Repeats a levin run of TransNormerLLM in PyTorch, for its loss curve: the same initial weights, batches and settings.

    torch_curve.py RUN WEIGHTS OUT [--device cuda] [--micro-batch 2] [--seconds S] [--steps N]

RUN is the run's folder (its config.yaml says model, data, schedule and optimizer), WEIGHTS the Hugging Face export of
its initial weights (a run of one step at optimizer.learning_rate=0 has them). Writes OUT/metrics.jsonl, rows as levin
writes them, so that `levin report RUN OUT` draws both.

On a GPU: flash-linear-attention, bf16 autocast, f32 weights and residual stream, not compiled. On a CPU: everything in
f32 with quadratic attention, to check this file against levin at small sizes.
"""
import argparse
import json
import math
import pathlib
import time

import numpy
import quick_fla
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import nn

BITS = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix_bits(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & BITS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & BITS
    return x ^ (x >> 31)


def counter_hash(key, counter):
    return mix_bits((mix_bits((key + GOLDEN) & BITS) + (counter + 1) * GOLDEN) & BITS)


def shuffled(number, size, seed):
    """levin's order of samples (data/sampler.cpp): which sample is the number-th of the run."""
    epoch, value = divmod(number, size)
    bits = max(8, (size - 1).bit_length())
    right_bits = bits - bits // 2
    left_mask, right_mask = (1 << bits // 2) - 1, (1 << right_bits) - 1
    key = counter_hash(seed, epoch)
    keys = [counter_hash(key, i) for i in range(8)]
    while True:
        left, right = value >> right_bits, value & right_mask
        for i in range(0, 8, 2):
            left = (left ^ mix_bits((right + keys[i]) & BITS)) & left_mask
            right = (right ^ mix_bits((left + keys[i + 1]) & BITS)) & right_mask
        value = left << right_bits | right
        if value < size:
            return value


class Samples:
    """The rows of one shard of u16 tokens: sample i is tokens [i * length, i * length + length]."""

    def __init__(self, prefixes, length, seed, shuffle):
        if len(prefixes) != 1 or not isinstance(prefixes[0], str):
            raise SystemExit(f"torch_curve reads a single shard, not {prefixes}")
        # Documents lie one after the other in the .bin, which is all that unpacked training looks at.
        index = open(prefixes[0] + ".idx", "rb").read(18)
        if index[:9] != b"MMIDIDX\0\0" or index[17] != 8:
            raise SystemExit(f"{prefixes[0]}.idx: expected the index of a Megatron shard of u16 tokens")
        self.tokens = numpy.memmap(prefixes[0] + ".bin", dtype="<u2", mode="r")
        self.length, self.seed, self.shuffle = length, seed, shuffle
        self.count = (len(self.tokens) - 1) // length

    def rows(self, first, count, device):
        """Inputs and targets, [count, length] each."""
        rows = []
        for number in range(first, first + count):
            at = (shuffled(number, self.count, self.seed) if self.shuffle else number % self.count) * self.length
            rows.append(self.tokens[at : at + self.length + 1].astype(numpy.int64))
        both = torch.from_numpy(numpy.stack(rows)).to(device)
        return both[:, :-1], both[:, 1:]


def norm(x):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, weights, prefix, heads, layer, layers):
        super().__init__()
        self.heads = heads
        for name in ("token_mixer.qkvu_proj", "token_mixer.out_proj", "channel_mixer.l1", "channel_mixer.l2",
                     "channel_mixer.l3"):
            setattr(self, name.split(".")[1], nn.Parameter(weights.pop(f"{prefix}{name}.weight")))
        theta = weights.pop(f"{prefix}token_mixer.lrpe.theta", None)  # [heads, 1, width]
        self.theta = None if theta is None else nn.Parameter(theta.squeeze(1))
        slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
        factor = torch.tensor(1.0 - layer / max(layers - 1, 1) + 1e-5)
        self.register_buffer("slopes", slopes.float() * factor)

    def turned(self, x):
        """[x cos(theta t), x sin(theta t)], the width doubled."""
        positions = torch.arange(x.shape[1], device=x.device, dtype=torch.float64).view(-1, 1, 1)
        angle = self.theta.double() * positions
        return torch.cat([x.float() * angle.cos().float(), x.float() * angle.sin().float()], -1).to(x.dtype)

    def forward(self, x):
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v, u = F.linear(norm(x), self.qkvu_proj).split(width, -1)
        q, k, v = F.silu(q).view(shape), F.silu(k).view(shape), v.contiguous().view(shape)
        if self.theta is not None:
            q, k = self.turned(q), self.turned(k)
        o = quick_fla.linear_attention(q, k, v, self.slopes).reshape(batch, length, width)
        x = x + F.linear(u * norm(o), self.out_proj)
        y = norm(x)
        return x + F.linear(F.linear(y, self.l1) * F.linear(y, self.l2), self.l3)


class Model(nn.Module):
    def __init__(self, settings, weights):
        super().__init__()
        plain = {"family": "tnl", "decay": "alibi", "qk_activation": "silu", "norm": "simplermsnorm", "gate": "multiply",
                 "glu_activation": "none", "bias": False, "tie_embeddings": True, "mixer": "lightning"}
        other = [f"model.{key}={settings[key]}" for key in plain if settings[key] != plain[key]]
        heads = settings["num_heads"]
        if other or heads & (heads - 1):
            raise SystemExit(f"torch_curve knows the published TransNormerLLM with 2^n heads only, not {other or heads}")
        self.scale = math.sqrt(settings["hidden_size"]) if settings["scale_embedding"] else 1.0
        self.pad = settings["pad_token_id"] if settings["pad_token_id"] >= 0 else None
        self.embedding = nn.Parameter(weights.pop("model.embed_tokens.weight"))
        weights.pop("lm_head.weight", None)  # the embedding again
        layers = settings["num_layers"]
        self.layers = nn.ModuleList(Layer(weights, f"model.layers.{i}.", heads, i, layers) for i in range(layers))
        if weights:
            raise SystemExit(f"weights that this model has not: {sorted(weights)[:5]}")

    def forward(self, ids, targets):
        """The sum of the losses of all targets."""
        x = F.embedding(ids, self.embedding, padding_idx=self.pad) * self.scale
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(norm(x), self.embedding)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")


def learning_rate_at(step, steps, optimizer, schedule):
    high, low = optimizer["learning_rate"], optimizer["min_learning_rate"]
    low = high / 10 if low < 0 else low
    warmup = schedule["warmup_steps"]
    if step < warmup:
        return high * (step + 1) / warmup
    if schedule["type"] != "cosine":
        raise SystemExit(f"torch_curve knows schedule.type cosine, not {schedule['type']}")
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


class Run:
    def __init__(self, options):
        self.device, self.micro_batch = torch.device(options.device), options.micro_batch
        self.config = yaml.safe_load((options.run / "config.yaml").read_text())
        trainer, data, adam = (self.config[key] for key in ("trainer", "data", "optimizer"))
        if data["packed_documents"] or trainer["z_loss"] or trainer["global_batch"] % self.micro_batch:
            raise SystemExit("torch_curve knows neither packed documents, z-loss nor uneven micro-batches")
        length, seed = trainer["sequence_length"], trainer["seed"]
        self.train = Samples(data["train"], length, seed, data["shuffle"])
        self.validation = Samples(data["validation"], length, seed, False) if data["validation"] else None
        weights = {}
        for path in sorted(options.weights.glob("*.safetensors")):
            weights.update(load_file(path))
        weights = {name: value.float() for name, value in weights.items()}
        self.model = Model(self.config["model"], weights).to(self.device)
        parameters = list(self.model.parameters())
        groups = [{"params": [p for p in parameters if p is not self.model.layers[0].theta]},
                  {"params": [p for p in parameters if p is self.model.layers[0].theta], "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=(adam["beta1"], adam["beta2"]), eps=adam["eps"],
            weight_decay=adam["weight_decay"], fused=self.device.type == "cuda")

    def loss(self, samples, first, count):
        ids, targets = samples.rows(first, count, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.model(ids, targets)

    def update(self, step):
        trainer = self.config["trainer"]
        batch, total = trainer["global_batch"], 0.0
        for first in range(step * batch, (step + 1) * batch, self.micro_batch):
            loss = self.loss(self.train, first, self.micro_batch) / (batch * trainer["sequence_length"])
            loss.backward()
            total += loss.detach()
        clip = trainer["clip_grad_norm"] or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        rate = learning_rate_at(step, trainer["steps"], self.config["optimizer"], self.config["schedule"])
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": float(total), "learning_rate": rate, "grad_norm": float(grad_norm)}

    @torch.no_grad()
    def evaluate(self):
        trainer, total = self.config["trainer"], 0.0
        wanted = trainer["eval_batches"] * trainer["global_batch"] or self.validation.count
        count = min(wanted, self.validation.count)
        for first in range(0, count, self.micro_batch):
            total += self.loss(self.validation, first, min(self.micro_batch, count - first))
        return float(total) / (count * trainer["sequence_length"])


def main():
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "weights", "out"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end the run early, start-up counted in")
    parser.add_argument("--steps", type=int, help="end the run after so many of its steps")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options)
    trainer = run.config["trainer"]
    tokens = trainer["global_batch"] * trainer["sequence_length"]
    steps = min(options.steps or trainer["steps"], trainer["steps"])
    last = begin
    with (options.out / "metrics.jsonl").open("w") as out:
        for step in range(1, steps + 1):
            row = {"step": step, "tokens": step * tokens, **run.update(step - 1)}  # reading the loss waits for the GPU
            now = time.perf_counter()
            row |= {"step_ms": 1000 * (now - last), "tokens_per_second": tokens / (now - last)}
            final = step == steps or now - begin > options.seconds
            every = trainer["eval_every"]
            if run.validation and (final or (every and step % every == 0)):
                row["validation_loss"] = run.evaluate()
            if run.device.type == "cuda":
                row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            out.write(json.dumps(row) + "\n")
            out.flush()
            if step in (1, 2) or step % trainer["log_every"] == 0 or final:
                print(f"step {step} loss {row['loss']:.4f} norm {row['grad_norm']:.3f} {row['step_ms']:.0f} ms", flush=True)
            if final:
                return
            last = time.perf_counter()


if __name__ == "__main__":
    main()
