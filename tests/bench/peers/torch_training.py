"""Times a whole training step in PyTorch with the best public kernels: torch_training.py KIND SIZE BATCH LENGTH FORM.

KIND tnl (flash-linear-attention) or transformer (LLaMA-style, torch's softmax attention); FORM fused (tied head, bf16
residual stream, fused linear + cross-entropy) or plain (head of its own, f32 logits). bf16 autocast, f32 weights, fused
AdamW, torch.compile. One JSON row.
"""
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

# width, heads, inner width of the GLU, layers: those of configs/models
SIZES = {"tnl": {"385m": (1024, 8, 2816, 24), "1b": (2048, 16, 5632, 16), "3b": (2560, 20, 6912, 32),
                 "7b": (4096, 32, 11008, 30), "tiny": (256, 8, 256, 4)},  # tiny: for trials
         "transformer": {"385m": (1024, 8, 2816, 26), "1b": (2048, 16, 5632, 17)}}
VOCAB = 64000


def norm(x):
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype)


@torch.compiler.disable
def linear_attention(q, k, v, decay):
    if not q.is_cuda:
        import quick_fla
        return quick_fla.linear_attention(q, k, v, -decay)
    from fla.ops.simple_gla import chunk_simple_gla
    return chunk_simple_gla(q, k, v, g_gamma=decay, scale=1.0)[0]


@torch.compiler.disable
def fused_loss(function, hidden, targets, weight):
    return function(hidden.flatten(0, 1), targets.flatten(), weight.to(hidden.dtype))


def gated_units(x, wide, narrow, activation):
    a, b = wide(x).chunk(2, -1)
    return narrow(activation(a) * b)


class TransNormerLayer(nn.Module):
    def __init__(self, width, heads, inner, layer, layers):
        super().__init__()
        self.heads = heads
        self.qkvu = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 2 * inner, bias=False)
        self.narrow = nn.Linear(inner, width, bias=False)
        slopes = 2 ** (-8.0 * torch.arange(1, heads + 1).float() / heads) * (1 - layer / max(layers - 1, 1) + 1e-5)
        self.register_buffer("decay", -slopes)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v, u = self.qkvu(norm(x)).split(width, -1)
        shape = (batch, length, self.heads, width // self.heads)
        o = linear_attention(F.silu(q).reshape(shape), F.silu(k).reshape(shape), v.reshape(shape).contiguous(), self.decay)
        x = x + self.out(norm(o.reshape(batch, length, width)) * u)
        return x + gated_units(norm(x), self.wide, self.narrow, lambda a: a)


class TransformerLayer(nn.Module):
    def __init__(self, width, heads, inner, layer, layers):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.wide = nn.Linear(width, 2 * inner, bias=False)
        self.narrow = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        batch, length, width = x.shape
        head = width // self.heads
        q, k, v = (part.view(batch, length, self.heads, head).transpose(1, 2)
                   for part in self.qkv(self.norms[0](x)).split(width, -1))
        frequency = 10000.0 ** (-torch.arange(0, head, 2, device=x.device).float() / head)
        angle = torch.arange(length, device=x.device).float()[:, None] * frequency
        cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)

        def turned(part):
            first, second = part.chunk(2, -1)
            return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)

        o = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + self.out(o.transpose(1, 2).reshape(batch, length, width))
        return x + gated_units(self.norms[1](x), self.wide, self.narrow, F.silu)


class Model(nn.Module):
    def __init__(self, kind, size, fused):
        super().__init__()
        width, heads, inner, layers = SIZES[kind][size]
        layer = TransNormerLayer if kind == "tnl" else TransformerLayer
        self.embedding = nn.Embedding(VOCAB, width)
        self.head = nn.Linear(width, VOCAB, bias=False)
        self.layers = nn.ModuleList(layer(width, heads, inner, i, layers) for i in range(layers))
        self.loss = None
        if fused:
            from fla.modules.fused_linear_cross_entropy import FusedLinearCrossEntropyLoss
            self.loss = FusedLinearCrossEntropyLoss()
            self.head.weight = self.embedding.weight
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, targets):
        x = self.embedding(ids)
        if self.loss is not None:
            x = x.to(torch.bfloat16)
        for layer in self.layers:
            x = layer(x)
        if self.loss is not None:
            return fused_loss(self.loss, norm(x).to(torch.bfloat16), targets, self.head.weight)
        return F.cross_entropy(self.head(norm(x)).flatten(0, 1).float(), targets.flatten())


def main():
    kind, size, batch, length, form = sys.argv[1:]
    batch, length = int(batch), int(length)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = Model(kind, size, form == "fused").cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, weight_decay=0.1)
    compiled = torch.compile(model)
    ids = torch.randint(0, VOCAB, (batch, length), device="cuda")

    def step():
        with torch.autocast("cuda", torch.bfloat16):
            loss = compiled(ids, ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(4):
        step()
    torch.cuda.synchronize()
    times = []
    for _ in range(8):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    print(json.dumps({"tokens_per_second": batch * length / sorted(times)[len(times) // 2],
                      "memory_gib": torch.cuda.max_memory_allocated() / 2**30}), flush=True)


if __name__ == "__main__":
    main()
