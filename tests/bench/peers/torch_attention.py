"""Times linear attention with a constant decay per head by flash-linear-attention: one JSON row a case (BATCHxLENGTH).

Slopes are those of a middle layer of the published models; silu on q and k is part of the time, as it is in levin's.
"""
import json
import sys

import torch
import torch.nn.functional as F
import triton
from fla.ops.simple_gla import chunk_simple_gla, fused_chunk_simple_gla

HEADS, WIDTH = 16, 128


def milliseconds(call):
    return triton.testing.do_bench(call, warmup=50, rep=200, return_mode="median")


def main():
    slopes = 0.5 * 2 ** (-8.0 * torch.arange(1, HEADS + 1, device="cuda", dtype=torch.float32) / HEADS)
    for program, kernel in (("flash-linear-attention chunk", chunk_simple_gla),
                            ("flash-linear-attention fused chunk", fused_chunk_simple_gla)):
        for case in sys.argv[1:]:
            batch, length = (int(number) for number in case.split("x"))
            q, k, v, gradient = (torch.randn(batch, length, HEADS, WIDTH, device="cuda", dtype=torch.bfloat16)
                                 for _ in range(4))
            inputs = [x.requires_grad_() for x in (q, k, v)]

            def attend():
                return kernel(F.silu(q), F.silu(k), v, g_gamma=-slopes, scale=1.0)[0]

            def both():
                attend().backward(gradient)
                for x in inputs:
                    x.grad = None

            with torch.no_grad():
                forward_ms = milliseconds(attend)
            print(json.dumps({"program": program, "batch": batch, "length": length, "forward_ms": forward_ms,
                              "both_ms": milliseconds(both)}), flush=True)


if __name__ == "__main__":
    main()
