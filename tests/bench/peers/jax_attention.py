"""Times linear attention with a constant decay per head by jax-linear-attention's Hopper kernels (its Mamba-2 core takes
a log-decay per token and head: here the same for every token). One JSON row a case (BATCHxLENGTH)."""
import json
import sys
import time

import jax
import jax.numpy as jnp
from jla.ops.mosaic_gpu.scalar_gate import simple_gla

HEADS, WIDTH = 16, 128


def milliseconds(call, *inputs):
    """Median of rounds of calls that follow each other."""
    jax.block_until_ready(call(*inputs))
    rounds = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(20):
            result = call(*inputs)
        jax.block_until_ready(result)
        rounds.append((time.perf_counter() - start) / 20 * 1e3)
    return sorted(rounds)[len(rounds) // 2]


def main():
    slopes = 0.5 * 2 ** (-8.0 * jnp.arange(1, HEADS + 1, dtype=jnp.float32) / HEADS)
    for case in sys.argv[1:]:
        batch, length = (int(number) for number in case.split("x"))
        keys = jax.random.split(jax.random.PRNGKey(0), 4)
        q, k, v, gradient = (jax.random.normal(key, (batch, length, HEADS, WIDTH), jnp.bfloat16) for key in keys)
        decay = jnp.broadcast_to(-slopes, (batch, length, HEADS))

        def attend(q, k, v):
            return simple_gla(jax.nn.silu(q), jax.nn.silu(k), v, decay, scale=1.0)[0]

        def both(q, k, v, gradient):
            output, backward = jax.vjp(attend, q, k, v)
            return output, backward(gradient)

        print(json.dumps({"program": "jax-linear-attention", "batch": batch, "length": length,
                          "forward_ms": milliseconds(jax.jit(attend), q, k, v),
                          "both_ms": milliseconds(jax.jit(both), q, k, v, gradient)}), flush=True)


if __name__ == "__main__":
    main()
