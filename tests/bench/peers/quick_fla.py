"""flash-linear-attention's kernels for runs that look at numbers, not at speed."""
import functools


@functools.cache
def simple_gla():
    """chunk_simple_gla, each kernel in one form of those it would try (up to 48: minutes of compiling)."""
    import triton

    tune = triton.autotune

    def tune_less(configs, *arguments, **named):
        middle = [config for config in configs if config.num_warps == 4 and config.num_stages == 2]
        return tune(middle[-1:] if len(configs) > 12 and middle else configs, *arguments, **named)

    triton.autotune = tune_less
    from fla.ops.simple_gla import chunk_simple_gla

    triton.autotune = tune
    return chunk_simple_gla


def linear_attention(q, k, v, slopes):
    """o_t = sum_{s <= t} exp(-slope (t - s)) (q_t . k_s) v_s; q, k, v [batch, length, heads, width]."""
    return simple_gla()(q, k, v, g_gamma=-slopes, scale=1.0)[0]
