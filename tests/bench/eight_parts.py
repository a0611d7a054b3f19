"""The parts of tests/bench/eight_gpus: each function gives the cases of one, a case is one row of its table."""
import dataclasses
import functools
import json
import math
import os
import pathlib
import signal
import sys
import threading
import time

import ranks

COUNTS = (1, 2, 4, 8)
STEPS = 20
# How far the losses of layouts may lie apart in 20 steps, as the tests of layouts ask for. Rounding does not grow on these
# data: on the CPU two orders of summation stayed within 7e-16 (f64) and 5e-7 (f32) with the scales of TNL-385M.
TOLERANCE = {"f64": 1e-10, "f32": 1e-5}
AGREE_BF16 = 5e-3  # of each loss of runs that do the same at another layout
FULL = {"trainer.recompute": "full"}
LAYOUTS = [  # ranks, settings
    (8, {"parallel.zero": 3}),
    (8, {"parallel.tp": 2, "parallel.cp": 2, "parallel.pp": 2}),
    (8, {"parallel.tp": 8, "parallel.sequence_scatter": "true"}),
    (8, {"parallel.cp": 4, "parallel.zero": 2}),
    (4, {"parallel.zero": 1}),
    (4, {"parallel.tp": 4, "parallel.overlap_chunks": 2}),
    (4, {"parallel.cp": 4}),
    (4, {"parallel.pp": 2, "parallel.virtual_stages": 2, "parallel.zero": 1}),
    (2, {"parallel.zero": 3}),
    (2, {"parallel.tp": 2}),
    (2, {"parallel.cp": 2}),
    (2, {"parallel.pp": 2}),
]
PEERS = [  # model, how PyTorch spreads it, sequences of 8192 a GPU, seconds
    ("tnl-385m", "ddp", 4, 60), ("tnl-1b", "fsdp", 2, 60), ("tnl-7b", "fsdp", 1, 80)]
TINY = {"model.num_heads": 8, "model.num_layers": 4, "model.glu_dim": 256}


@dataclasses.dataclass
class Case:
    part: str
    name: str
    gpus: int
    seconds: float  # it takes about so long; not started with less time left
    run: object     # function of the numbers of its devices -> the row of the table
    needs: str = ""  # the case it is compared with: not run without it


def rounded(value):
    """As a table shows it; a trial's fractions of a GiB stay above 0."""
    return "" if value is None else round(value, 1) if value >= 1 else float(f"{value:.2g}")


def name_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def measured(bench, name, model, settings, rows, limit, columns, learns, numbers):
    """A run whose rows are medians of its second half; `columns` says what it is. `learns`: its steps are enough for the
    loss to fall, past the first ones, in which it may rise."""
    outcome = bench.train(name, numbers, model, bench.length(8192), settings, rows, limit)
    if outcome.ended:
        if outcome.ended != ranks.NO_MEMORY:  # which is what a smaller host may answer
            bench.fail(name, outcome.ended)
        return {**columns, "GPUs": len(numbers), "tokens/s": outcome.ended[:60]}
    losses = [row["loss"] for row in outcome.rows]
    if not all(map(math.isfinite, losses)) or (learns and losses[-1] >= losses[0]):
        bench.fail(name, f"the loss {'did not fall' if learns else 'is not finite'}: {losses}")
    speed, gpus = outcome.median("tokens_per_second"), len(numbers)
    return {**columns, "GPUs": gpus, "tokens/s": round(speed), "tokens/s a GPU": round(speed / gpus),
            "MFU %": round(100 * outcome.median("mfu"), 1), "step ms": round(outcome.median("step_ms"), 1),
            "comm ms": rounded(outcome.median("comm_ms")), "exposed ms": rounded(outcome.median("exposed_comm_ms")),
            "GiB a GPU": rounded(max(row["peak_memory_gib"] for row in outcome.rows)),
            "steps": len(outcome.rows), "first loss": round(losses[0], 4), "last loss": round(losses[-1], 4),
            "start s": round(max(0, outcome.seconds - sum(row["step_ms"] for row in outcome.rows) / 1000), 1),
            "seconds": round(outcome.seconds), "losses": losses, "global batch": settings["trainer.global_batch"]}


def scaling(bench):
    for model, micro, zero, rows, seconds in (
            ("tnl-385m", 4, 0, 20, 12), ("tnl-1b", 2, 1, 16, 16), ("tnl-1b", 2, 3, 16, 16)):
        for gpus in reversed(COUNTS):
            if gpus == 1 and zero == 3:
                continue  # the same as with ZeRO 1: nobody to share with
            settings = {"trainer.micro_batch": micro, "trainer.global_batch": micro * gpus}
            layout = (f"dp {gpus}" + (f", ZeRO {zero}" if zero else "")) if gpus > 1 else ""
            if gpus > 1:
                settings["parallel.zero"] = zero
            name = f"scaling-{model}-{gpus}" + (f"-zero{zero}" if zero else "")
            columns = {"model": model, "layout": layout, "batch": f"{micro} x {bench.length(8192)} a GPU"}
            yield Case("scaling", name, gpus, seconds,
                       functools.partial(measured, bench, name, model, settings, rows, 60, columns, True))


def tensor(bench):
    """Eight updates a run, too few to ask that the loss falls; but the runs must agree."""
    all_gpus = bench.options.gpus
    few = [(tp, 1) for tp in reversed(COUNTS)] + [(1, 3)]
    for tp, zero in few + ([(2, 3), (4, 3)] if all_gpus == COUNTS[-1] else []):
        if tp > all_gpus or (tp == all_gpus and zero == 3):
            continue
        dp = all_gpus // tp
        layout = f"tp {tp} x dp {dp}" + (f", ZeRO {zero}" if dp > 1 else "")
        settings = {"parallel.tp": tp, "parallel.zero": zero if dp > 1 else 0, "trainer.micro_batch": 1,
                    "trainer.global_batch": 8}
        name = f"tensor-tp{tp}-zero{zero}"
        columns = {"model": "tnl-7b", "layout": layout}
        yield Case("tensor", name, all_gpus, 10 + 100 / all_gpus, functools.partial(
            measured, bench, name, "tnl-7b", settings, 8, 90, columns, False))


def large(bench):
    gpus = bench.options.gpus
    settings = {"parallel.tp": gpus, "trainer.micro_batch": 1, "trainer.global_batch": 1, **FULL}
    columns = {"model": "tnl3-15b", "layout": f"tp {gpus}"}
    yield Case("large", "large-15b", gpus, 15 + 60 / gpus, functools.partial(
        measured, bench, "large-15b", "tnl3-15b", settings, STEPS, 90, columns, False))
    # One stage alone is a model of its layers. As few stages as fit with 16 bytes a parameter in three quarters of memory.
    layers, per_layer, embedding = 88, 5 * 12288**2 + 3 * 12288 * 32768, 64000 * 12288
    fits = (gpus * bench.gib * 2**30 * 0.75 / 16 - embedding) / per_layer
    stages = next((count for count in (4, 8, 11, 22, 44) if layers // count <= fits), 88)
    stage = {} if bench.small else {"model.num_layers": layers // stages}
    columns = {"model": f"175b: {layers // stages} layers, stage 1 of {stages}, and the head", "layout": f"tp {gpus}"}
    yield Case("large", "large-175b-stage", gpus, 40, functools.partial(
        measured, bench, "large-175b-stage", "tnl-175b", {**settings, **stage}, STEPS, 110, columns, False))


def first_length(bench, parameters, layers, width, zero, gpus):
    """The power of two to try first: what bytes a parameter and a token should leave room for in 90 % of the memory."""
    if bench.small:
        return 4096 * gpus if gpus > 1 else {1: 32768, 3: 262144}[zero]  # once from below, once from above
    state = {1: 6 + 10 / gpus, 3: 16 / gpus}[zero] * parameters
    token = 2 * width * (layers + 3)  # inputs of the layers, the gradient of the stream; slices are small beside
    room = (0.9 * bench.gib * 2**30 - state) / token
    return gpus * 2 ** int(math.log2(max(room, 1024)))


def context(bench):
    for model, size, zero, seconds in (
            ("tnl-1b", (1.02e9, 16, 2048), 1, 75), ("tnl-7b", (6.84e9, 30, 4096), 3, 95)):
        for gpus in reversed(COUNTS):
            settings = {"trainer.micro_batch": 1, "trainer.global_batch": 1, **FULL,
                        "trainer.recompute_slice": 1024 if bench.small else 65536}
            if gpus > 1:
                settings.update({"parallel.cp": gpus, "parallel.zero": zero})
            name = f"context-{model}-{gpus}"
            yield Case("context", name, gpus, seconds, functools.partial(
                longest, bench, name, model, settings, first_length(bench, *size, zero, gpus)))


def longest(bench, name, model, settings, length, numbers):
    """Doubles the length while it fits, halves it while nothing has; each try has a limit of its own."""
    good, tried = None, {}
    while length >= 1024 and length not in tried and (not good or length > good[0]):
        outcome = bench.train(f"{name}-{length}", numbers, model, length, settings, 2, 15 if bench.small else 75)
        tried[length] = outcome.ended or "fits"
        bench.say(f"{name}: {length} tokens: {tried[length]} ({outcome.seconds:.0f} s)")
        if outcome.ended.startswith("status"):
            bench.fail(f"{name}-{length}", outcome.ended)
            break
        if outcome.ended and good:
            break
        if outcome.ended:
            length //= 2
            continue
        good = length, outcome
        length *= 2
        if bench.left() < 2 * outcome.seconds:
            tried[length] = "no time left to try"
    above = {at: how for at, how in tried.items() if not good or at > good[0]}
    row = {"model": model, "GPUs": len(numbers), "longest": good[0] if good else "none",
           "above it": "; ".join(f"{at}: {how[:40]}" for at, how in sorted(above.items())[:1])}
    if good:
        row["tokens/s a GPU"] = round(good[1].rows[-1]["tokens_per_second"] / len(numbers))
        row["step s"] = round(good[1].rows[-1]["step_ms"] / 1000, 2)
        row["MFU %"] = round(100 * good[1].rows[-1]["mfu"], 1)
        row["GiB a GPU"] = rounded(good[1].rows[-1]["peak_memory_gib"])
    return row


class Losses:
    """Of a run that others are compared with; they wait for it."""

    def __init__(self):
        self.values, self.there = None, threading.Event()


def named(layout):
    return ", ".join(f"{key.split('.')[1]} {value}" for key, value in layout.items()) or "one GPU"


def train_exactly(bench, name, numbers, precision, layout, **more):
    settings = {"trainer.precision": precision, "trainer.micro_batch": 1, "trainer.global_batch": 8,
                "schedule.type": "constant", "schedule.warmup_steps": STEPS, **layout}
    return bench.train(name, numbers, "tnl-385m", 32 if bench.small else 512, settings, STEPS, 75, **more)


def exactly(bench, name, precision, layout, reference, kept, numbers):
    """20 steps at a layout, compared with the run `reference` (None: no comparison); `kept` takes its losses."""
    try:
        outcome = train_exactly(bench, name, numbers, precision, layout)
        row, losses = compare(bench, name, named(layout), precision, outcome, reference, TOLERANCE[precision], numbers)
        if losses and not reference and not losses[-1] < losses[0]:
            bench.fail(name, f"the loss did not fall, so equal losses would say little: {losses}")
        if kept:
            kept.values = losses
        return row
    finally:
        if kept:
            kept.there.set()


def compare(bench, name, said, precision, outcome, reference, tolerance, numbers):
    """The row of a run and its losses (None where it failed)."""
    row = {"layout": said, "precision": precision, "GPUs": len(numbers), "steps": len(outcome.rows)}
    if reference:
        reference.there.wait(max(bench.left(), 0))
    if outcome.ended or len(outcome.rows) != STEPS or (reference and not reference.values):
        bench.fail(name, outcome.ended or f"{len(outcome.rows)} of {STEPS} steps, or nothing to compare with")
        return row, None
    losses = [row["loss"] for row in outcome.rows]
    row.update({"first loss": round(losses[0], 6), "last loss": round(losses[-1], 6)})
    if reference:
        apart = [abs(mine / theirs - 1) for mine, theirs in zip(losses, reference.values)]
        row.update({"difference of step 1": f"{apart[0]:.1e}", "largest of 20": f"{max(apart):.1e}",
                    "allowed": f"{tolerance:.0e}"})
        if not max(apart) <= tolerance:
            bench.fail(name, f"losses differ by {max(apart):.1e}, more than {tolerance}; by step: "
                       + " ".join(f"{one:.1e}" for one in apart))
    return row, losses


def killed(bench, name, layout, undisturbed, numbers):
    """launch/run; the last rank is killed once the checkpoint in the middle is there. What comes out must be what the
    same layout does undisturbed: to the bit, where both took the same GEMM algorithms (the first run times them)."""
    seen = {}

    def watch(process, folder):
        if "ranks" not in seen:  # looked for early: it takes a while, and the checkpoint is near the end
            starters = [pid for pid in ranks.descendants(process.pid) if name_of(pid) == "mpirun"]
            started = [rank for pid in starters for rank in ranks.children(pid)]
            if len(started) == len(numbers):
                seen["ranks"] = started
        elif "killed" not in seen and (folder / "checkpoints" / f"step_{STEPS // 2:08}").is_dir():
            seen["killed"] = max(seen["ranks"])
            os.kill(seen["killed"], signal.SIGKILL)
        if (folder / "failure_before.txt").exists():
            seen["verdict"] = (folder / "failure_before.txt").read_text()

    settings = {**layout, "trainer.steps": STEPS, "checkpoint.every": STEPS // 2}
    outcome = train_exactly(bench, name, numbers, "f32", settings, restarts=1, watch=watch)
    verdict = seen.get("verdict", "")
    if "resumed from" not in outcome.said or f"rank {len(numbers) - 1} of" not in verdict \
            or "ended without a word" not in verdict:
        bench.fail(name, f"the lost rank was not named, or the run did not go on: {seen}\n"
                   + "\n".join(outcome.said.splitlines()[-30:]))
    said = f"{named(layout)}; a rank killed, resumed, against itself undisturbed"
    row, _ = compare(bench, name, said, "f32", outcome, undisturbed, TOLERANCE["f32"], numbers)
    return {**row, "note": verdict.split("(")[0].strip()}


def exact(bench):
    gpus = bench.options.gpus
    alone, alone_f32, undisturbed = Losses(), Losses(), Losses()

    def case(name, precision, layout, count, reference, kept, seconds, needs=""):
        return Case("exact", name, count, seconds, functools.partial(
            exactly, bench, name, precision, layout, reference, kept), needs)

    yield case("exact-alone", "f64", {}, 1, None, alone, 30)
    yield case("exact-alone-f32", "f32", {}, 1, None, alone_f32, 12)
    for count, layout in [one for one in LAYOUTS if one[0] <= gpus][:8]:
        name = f"exact-{count}-" + "-".join(f"{key.split('.')[1]}{value}" for key, value in layout.items())
        yield case(name, "f64", layout, count, alone, None, 15, "exact-alone")
    if gpus > 1:
        layout = {"parallel.zero": 3, "parallel.tp": 2}
        yield case(f"exact-{gpus}-f32", "f32", layout, gpus, alone_f32, undisturbed, 10, "exact-alone-f32")
        yield Case("exact", "exact-killed", gpus, 40, functools.partial(
            killed, bench, "exact-killed", layout, undisturbed), f"exact-{gpus}-f32")


def peers(bench):
    """PyTorch on all GPUs. Its kernels are compiled by the CPU while levin has the GPUs; a peer waits for them."""
    folder, gpus, warmed = pathlib.Path(__file__).resolve().parent / "peers", bench.options.gpus, threading.Event()
    if bench.small:
        warmed.set()  # the trial has no kernels
    else:
        yield Case("peers", "peers-warm", 0, 0, functools.partial(warm, bench, folder / "warm_fla.py", warmed))
    for model, mode, batch, seconds in PEERS:
        yield Case("peers", f"peers-{model}-{mode}", gpus, seconds, functools.partial(
            peer, bench, f"peers-{model}-{mode}", model, mode, 1 if bench.small else batch, folder / "torch_multi.py",
            warmed))


def warm(bench, program, warmed, _):
    """Leaves some cores to levin. Not a failure where it is one: peers compile what they do not find."""
    try:
        processes = max(2, (os.cpu_count() or 2) - 4 * bench.host.count)
        cases = [f"{batch}:{model.removeprefix('tnl-')}" for model, _, batch, _ in PEERS]
        ended, said = bench.host.call("peers-warm", range(bench.host.count), [
            sys.executable, program, *cases, "--processes", str(processes)], max(bench.left(), 0))
        bench.say("peers-warm: " + (ended or said.strip().splitlines()[-1]))
    finally:
        warmed.set()


def peer(bench, name, model, mode, batch, program, warmed, numbers):
    warmed.wait(max(bench.left(), 0))
    if bench.left() < 30:  # the kernels took it all
        bench.not_run.append(name)
        return None
    length, gpus, begin = bench.length(8192), len(numbers), time.monotonic()
    size, form = ("tiny", "plain") if bench.small else (model.removeprefix("tnl-"), "fused")
    ended, said = bench.host.call(name, numbers, [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus), program, mode, size,
        str(batch), str(length), form, "--device", bench.options.device], max(0, min(180, bench.left())))
    row = {"model": model, "layout": {"ddp": "PyTorch DDP", "fsdp": "PyTorch FSDP2"}[mode],
           "batch": f"{batch} x {length} a GPU", "GPUs": gpus}
    if ended:
        no_memory = "out of memory" in said
        if not no_memory:
            bench.fail(name, ended)
        return {**row, "tokens/s": ranks.NO_MEMORY if no_memory else ended[:60]}
    result = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    speed = result["tokens_per_second"]
    return {**row, "tokens/s": round(speed), "tokens/s a GPU": round(speed / gpus),
            "GiB a GPU": rounded(result["memory_gib"]), "seconds": round(time.monotonic() - begin)}


def in_order_of_worth(bench, parts):
    """Each part's most telling runs first, packed so that runs on few GPUs fill the host together."""
    everything = [case for part in parts for case in globals()[part](bench) if case.gpus <= bench.options.gpus]

    def some(part, count=None):
        found = [case for case in everything if case.part == part][:count]
        for case in found:
            everything.remove(case)
        return found

    order = [case for case in everything if case.gpus == 0]
    everything = [case for case in everything if case.gpus]
    order += some("scaling", 4) + some("exact", 2) + some("scaling", 4) + some("tensor", 4) + some("exact")
    order += some("large") + some("scaling") + some("context", 5) + some("tensor") + some("peers")
    return order + some("context")
