"""Times a training step of TransNormerLLM in PyTorch on several GPUs.

    torchrun --nproc-per-node N torch_multi.py MODE SIZE BATCH LENGTH FORM [--device cpu]

MODE ddp: torch's DistributedDataParallel around the model of torch_training.py, all of it compiled, bf16 autocast. MODE
fsdp: FSDP2, each layer compiled and sharded by itself, gathered in bf16 and freed again after its forward, gradients
reduced in f32; embedding, head and loss are not compiled. Both: f32 weights, fused AdamW, clipped gradients. BATCH
sequences of LENGTH tokens a GPU; FORM as there. One JSON row: tokens/s of all GPUs (the median step), the peak GiB of the
fullest, the first and last loss of rank 0, which sees the same tokens in every step.

On a CPU (gloo, size tiny, FORM plain) the same code with quadratic attention, traced but not compiled: a trial.
"""
import argparse
import json
import os
import resource
import time

import torch
import torch.distributed as dist
import torch_training
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

WARM_UP, STEPS = 4, 8


def spread(model, mode, device):
    """The callable model of this rank, and whether it wants autocast."""
    backend = "inductor" if device.type == "cuda" else "aot_eager"  # the latter needs no compiler of the host
    if mode == "ddp":  # the decays, its only buffers, never change
        return torch.compile(nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True,
                                                                 broadcast_buffers=False), backend=backend), True
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.layers:
        layer.compile(backend=backend)
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh, mp_policy=policy), False


def measure(options, device):
    tokens = options.batch * options.length * dist.get_world_size()
    torch.manual_seed(0)  # the same weights everywhere
    with device:
        model = torch_training.Model("tnl", options.size, options.form == "fused")
    function, autocast = spread(model, options.mode, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, weight_decay=0.1)
    torch.manual_seed(1 + dist.get_rank())
    ids = torch.randint(0, torch_training.VOCAB, (options.batch, options.length), device=device)
    if device.type == "cuda":  # what building the whole model took before it was cut does not count
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = function(ids, ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    losses = [step() for _ in range(WARM_UP)]
    wait()
    dist.barrier()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        losses.append(step())
        wait()
        times.append(time.perf_counter() - start)
    if not all(torch.isfinite(loss) for loss in losses):
        raise SystemExit(f"the losses are not finite: {[loss.item() for loss in losses]}")
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * resource.getrusage(
        resource.RUSAGE_SELF).ru_maxrss
    # Of each step its slowest rank, of each the most memory.
    slowest = torch.tensor([*times, peak / 2**30], device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    *times, peak = slowest.tolist()
    return {"mode": options.mode, "size": options.size, "gpus": dist.get_world_size(), "batch": options.batch,
            "length": options.length, "tokens_per_second": tokens / sorted(times)[len(times) // 2], "memory_gib": peak,
            "losses": [losses[0].item(), losses[-1].item()]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("ddp", "fsdp"))
    parser.add_argument("size", choices=torch_training.SIZES["tnl"])
    parser.add_argument("batch", type=int)
    parser.add_argument("length", type=int)
    parser.add_argument("form", choices=("fused", "plain"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.device == "cpu" and options.form == "fused":
        parser.error("the fused loss is flash-linear-attention's and needs a GPU: take plain")
    device = torch.device(options.device)
    if options.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    torch.set_float32_matmul_precision("high")
    row = measure(options, device)
    if dist.get_rank() == 0:
        print(json.dumps(row), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
