"""Linear attention for runs that look at numbers, not at speed: flash-linear-attention on a GPU, else plain PyTorch."""
import functools


@functools.cache
def simple_gla():
    """chunk_simple_gla, each kernel in one form of those it would try (up to 48: minutes of compiling)."""
    import triton

    tune = triton.autotune

    def tune_less(configs, *arguments, **named):
        return tune(few(configs), *arguments, **named)

    triton.autotune = tune_less
    from fla.ops.simple_gla import chunk_simple_gla

    triton.autotune = tune
    return chunk_simple_gla


def few(configs):
    """One of many forms of a kernel, where one in the middle is found."""
    middle = [config for config in configs if config.num_warps == 4 and config.num_stages == 2]
    return middle[-1:] if len(configs) > 12 and middle else configs


def linear_attention(q, k, v, slopes):
    """o_t = sum_{s <= t} exp(-slope (t - s)) (q_t . k_s) v_s; q, k, v [batch, length, heads, width].
    On a CPU every pair s, t is computed."""
    if q.is_cuda:
        return simple_gla()(q, k, v, g_gamma=-slopes, scale=1.0)[0]
    import torch

    t = torch.arange(q.shape[1])
    distance = (t[:, None] - t).clamp(min=0)
    weights = torch.exp(-slopes.view(-1, 1, 1) * distance).tril().to(q.dtype)
    return torch.einsum("bthc,bshc,hts,bshd->bthd", q, k, weights, v)
