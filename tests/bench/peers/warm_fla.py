"""Compiles ahead, with many processes, the Triton kernels of flash-linear-attention that the peers will ask for.

    warm_fla.py BATCH:HEADS:WIDTH[:fused|few|few-forward] BATCH:SIZE .. [--processes N] [--limit KERNELS]

A peer alone compiles one candidate of its autotuner after the other, minutes before its first step. Here the calls are only
noted, every candidate of each is compiled for the GPU of this machine (without one for an H200, as a trial) into the cache
that Triton will look in (TRITON_CACHE_DIR, or its default), and nothing runs: the peers find all candidates compiled, time
the same ones and make the same choice. A case is q, k and v in bf16, WIDTH that of a head (32x16: of its keys and of
its values; SIZE: heads and width of that model in torch_training.py), forward and backward, chunk kernels; `fused`: the
fused-chunk ones; `few`: the candidates of quick_fla.py. The length does not matter as long as 16 divides it.
"""
import argparse
import multiprocessing
import os
import sys
import time

BEGIN = time.perf_counter()
import torch  # noqa: E402  its import counts
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import autotuner, driver, jit  # noqa: E402

FORK = multiprocessing.get_context("fork")  # the workers inherit what was noted
RUN = jit.JITFunction.run
LENGTH = 128


def card():
    """Of the first GPU what kernels are chosen and compiled by; in a process of its own, because one that uses a GPU
    cannot fork."""
    if not torch.cuda.is_available():
        return {"name": "NVIDIA H200", "capability": (9, 0), "max_shared_mem": 232448, "multiprocessor_count": 132}
    its = torch.cuda.get_device_properties(0)
    return {"name": its.name, "capability": (its.major, its.minor), "max_shared_mem": its.shared_memory_per_block_optin,
            "multiprocessor_count": its.multi_processor_count}


class Card:
    """Stands in for Triton's driver: enough to compile for a card without touching it."""

    def __init__(self, its):
        self.its, self.utils = its, self

    def get_device_properties(self, _):
        return {"max_shared_mem": self.its["max_shared_mem"], "multiprocessor_count": self.its["multiprocessor_count"],
                "warpSize": 32, "max_num_regs": 65536}

    def get_current_target(self):
        major, minor = self.its["capability"]
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, _):
        return 0

    def get_active_torch_device(self):
        return torch.device("cuda", 0)

    def get_benchmarker(self):
        return lambda call, quantiles: [0.0] * 3

    def map_python_to_cpp_type(self, kind):
        return kind


class Notes:
    """The kernels asked for, each once: what it was called with, and one candidate (None where there is no choice)."""

    def __init__(self):
        self.calls, self.few = {}, False

    def add(self, function, arguments, named, candidate):
        named = {name: value for name, value in named.items() if name not in ("grid", "warmup")}

        def kind(value):  # as far as it decides about what is compiled
            return (str(value.dtype), value.data_ptr() % 16) if isinstance(value, torch.Tensor) else value

        key = (id(function), tuple(map(kind, arguments)), tuple((name, kind(value)) for name, value in named.items()),
               str(candidate))
        self.calls.setdefault(key, (function, arguments, named, candidate))

    def take_over(self):
        """From here on Triton's kernels are noted, not run."""
        import quick_fla

        def tuned(tuner, *arguments, **named):
            for candidate in quick_fla.few(tuner.configs) if self.few else tuner.configs:
                self.add(tuner.fn, arguments, named, candidate)

        autotuner.Autotuner.run = tuned
        jit.JITFunction.run = lambda function, *arguments, **named: self.add(function, arguments, named, None)


def attention(batch, heads, key, value, form):
    """Calls what a layer calls, on tensors of the CPU whose numbers nobody looks at."""
    from fla.ops.common import fused_chunk
    from fla.ops.simple_gla import chunk

    q, k, v, do = (torch.empty(batch, LENGTH, heads, width, dtype=torch.bfloat16) for width in (key, key, value, value))
    decay = torch.empty(heads)
    if form == "fused":
        fused_chunk.fused_chunk_fwd(q=q, k=k, v=v, g=None, g_gamma=decay, scale=1.0, initial_state=None,
                                    output_final_state=False, cu_seqlens=None)
        fused_chunk.fused_chunk_bwd(q=q, k=k, v=v, g=None, g_gamma=decay, do=do, dht=None, scale=1.0, initial_state=None,
                                    cu_seqlens=None)
        return
    chunk.chunk_simple_gla_fwd(q, k, v, None, g_gamma=decay, scale=1.0)
    if form != "few-forward":
        chunk.chunk_simple_gla_bwd(q, k, v, None, decay, None, do, None, 1.0)


def compile_all(calls, processes):
    """Each process takes the next call until none is left; how many failed, the first of them named."""
    turn, failed = FORK.Value("i", 0), FORK.Value("i", 0)

    def work():
        jit.JITFunction.run = RUN
        while True:
            with turn.get_lock():
                i = turn.value
                turn.value += 1
            if i >= len(calls):
                return
            function, arguments, named, candidate = calls[i]
            try:
                RUN(function, *arguments, grid=(1,), warmup=True, **named, **(candidate.all_kwargs() if candidate else {}))
            except Exception as error:  # the others are of use without it
                with failed.get_lock():
                    failed.value += 1
                    if failed.value <= 3:
                        print(f"{getattr(function, '__name__', function)} {candidate}: {type(error).__name__} "
                              f"{str(error)[:200]}", file=sys.stderr, flush=True)

    workers = [FORK.Process(target=work, daemon=True) for _ in range(min(processes, len(calls)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lost = [worker.exitcode for worker in workers if worker.exitcode]
    if lost:
        raise SystemExit(f"{len(lost)} of {len(workers)} compiling processes ended with {lost[0]}")
    return failed.value


def case_of(text):
    """(batch, heads, width of keys, of values, form)."""
    import torch_training

    sizes = torch_training.SIZES["tnl"]
    parts = text.split(":")
    if len(parts) > 1 and parts[1] in sizes:
        width, heads, *_ = sizes[parts[1]]
        parts[1:2] = [str(heads), str(width // heads)]
    form = parts[3] if len(parts) == 4 else ""
    numbers = [*parts[:2], *(parts[2].split("x") if len(parts) > 2 else [])]
    if len(numbers) == 3:
        numbers.append(numbers[2])
    if len(parts) > 4 or len(numbers) != 4 or not all(number.isdigit() for number in numbers) or form not in (
            "", "fused", "few", "few-forward"):
        raise argparse.ArgumentTypeError(f"{text} is not like 2:16:128:fused, 2:4:32x16 or 4:385m")
    return *map(int, numbers), form


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=case_of, metavar="CASE")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=int, help="only the first so many kernels")
    options = parser.parse_args()
    os.nice(5)
    with FORK.Pool(1) as pool:
        its = pool.apply(card)
    driver.set_active(Card(its))
    torch.cuda.get_device_name = lambda *_: its["name"]
    torch.cuda.get_device_capability = lambda *_: its["capability"]
    torch.cuda.device_count = lambda: 1
    notes = Notes()
    notes.take_over()  # before fla decorates its kernels
    for *sizes, form in options.cases:
        notes.few = form.startswith("few")
        attention(*sizes, form)
    calls = list(notes.calls.values())[:options.limit]
    prepared = time.perf_counter() - BEGIN
    failed = compile_all(calls, options.processes)
    print(f"{len(calls)} kernels for {its['name']}, {failed} failed; imports {prepared:.1f} s, all "
          f"{time.perf_counter() - BEGIN:.1f} s", flush=True)
    return 1 if calls and failed == len(calls) else 0


if __name__ == "__main__":
    sys.exit(main())
