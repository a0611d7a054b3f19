"""The parts of tests/bench/eight_gpus: each function gives the cases of one, a case is one row of its table."""
import dataclasses
import functools
import math
import os
import pathlib
import signal
import threading

import ranks

COUNTS = (1, 2, 4, 8)
TOLERANCE = 1e-5  # of a loss in f32, as the tests of layouts ask for
STEPS = 20
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
TINY = {"model.num_heads": 8, "model.num_layers": 4, "model.glu_dim": 256}



@dataclasses.dataclass
class Case:
    part: str
    name: str
    gpus: int
    seconds: float  # it takes about so long; not started with less time left
    run: object     # function of the numbers of its devices -> the row of the table


def rounded(value):
    """As a table shows it; a trial's fractions of a GiB stay above 0."""
    return "" if value is None else round(value, 1) if value >= 1 else float(f"{value:.2g}")


def name_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def measured(bench, name, model, settings, rows, limit, columns, numbers):
    """A run whose rows are medians of its second half; `columns` says what it is."""
    outcome = bench.train(name, numbers, model, bench.length(8192), settings, rows, limit)
    if outcome.ended:
        if outcome.ended != ranks.NO_MEMORY:  # which is what a smaller host may answer
            bench.fail(name, outcome.ended)
        return {**columns, "GPUs": len(numbers), "tokens/s": outcome.ended[:60]}
    losses = [row["loss"] for row in outcome.rows]
    if not all(map(math.isfinite, losses)) or min(losses[1:]) >= losses[0]:
        bench.fail(name, f"the loss did not fall: {losses}")
    speed, gpus = outcome.median("tokens_per_second"), len(numbers)
    return {**columns, "GPUs": gpus, "tokens/s": round(speed), "tokens/s a GPU": round(speed / gpus),
            "MFU %": round(100 * outcome.median("mfu"), 1), "step ms": round(outcome.median("step_ms"), 1),
            "comm ms": rounded(outcome.median("comm_ms")), "exposed ms": rounded(outcome.median("exposed_comm_ms")),
            "GiB a GPU": rounded(max(row["peak_memory_gib"] for row in outcome.rows)),
            "steps": len(outcome.rows), "first loss": round(losses[0], 4), "seconds": round(outcome.seconds)}


def scaling(bench):
    for model, micro, zero, rows, seconds in (
            ("tnl-385m", 4, 0, 20, 16), ("tnl-1b", 2, 1, 16, 18), ("tnl-1b", 2, 3, 16, 18)):
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
                       functools.partial(measured, bench, name, model, settings, rows, 60, columns))


def tensor(bench):
    all_gpus = bench.options.gpus
    for tp, zero in ((1, 3), (8, 1), (1, 1), (2, 1), (4, 1), (2, 3), (4, 3)):
        if tp > all_gpus or all_gpus % tp or (tp == all_gpus and zero == 3):
            continue
        dp = all_gpus // tp
        layout = f"tp {tp} x dp {dp}" + (f", ZeRO {zero}" if dp > 1 else "")
        settings = {"parallel.tp": tp, "parallel.zero": zero if dp > 1 else 0, "trainer.micro_batch": 1,
                    "trainer.global_batch": 8}
        name = f"tensor-tp{tp}-zero{zero}"
        yield Case("tensor", name, all_gpus, 26, functools.partial(
            measured, bench, name, "tnl-7b", settings, 8, 70, {"model": "tnl-7b", "layout": layout}))


def large(bench):
    gpus = bench.options.gpus
    settings = {"parallel.tp": gpus, "trainer.micro_batch": 1, "trainer.global_batch": 1, **FULL}
    yield Case("large", "large-15b", gpus, 45, functools.partial(
        measured, bench, "large-15b", "tnl3-15b", settings, STEPS, 90, {"model": "tnl3-15b", "layout": f"tp {gpus}"}))
    # One stage alone is a model of its layers. As few stages as fit with 16 bytes a parameter in three quarters of memory.
    layers, per_layer, embedding = 88, 5 * 12288**2 + 3 * 12288 * 32768, 64000 * 12288
    fits = (gpus * bench.gib * 2**30 * 0.75 / 16 - embedding) / per_layer
    stages = next((count for count in (4, 8, 11, 22, 44) if layers // count <= fits), 88)
    stage = {} if bench.small else {"model.num_layers": layers // stages}
    columns = {"model": f"175b: {layers // stages} layers, stage 1 of {stages}, and the head", "layout": f"tp {gpus}"}
    yield Case("large", "large-175b-stage", gpus, 50, functools.partial(
        measured, bench, "large-175b-stage", "tnl-175b", {**settings, **stage}, STEPS, 110, columns))


def first_length(bench, parameters, layers, width, glu, zero, gpus):
    """The power of two to try first: what bytes a parameter and a token should leave room for in 80 % of the memory."""
    if bench.small:
        return 4096 * gpus if gpus > 1 else {1: 32768, 3: 262144}[zero]  # once from below, once from above
    state = {1: 6 + 10 / gpus, 3: 16 / gpus}[zero] * parameters
    token = 2 * width * (layers + 3)  # inputs of the layers, the gradient of the stream
    if gpus > 1:
        token += 4 * (9 * width + 3 * glu)  # one layer and its gradients, which slices divide on one GPU
    room = (0.8 * bench.gib * 2**30 - state) / token
    return gpus * 2 ** int(math.log2(max(room, 1024)))


def context(bench):
    for model, size, zero, seconds in (
            ("tnl-1b", (1.02e9, 16, 2048, 5632), 1, 75), ("tnl-7b", (6.84e9, 30, 4096, 11008), 3, 95)):
        for gpus in reversed(COUNTS):
            settings = {"trainer.micro_batch": 1, "trainer.global_batch": 1, **FULL}
            if gpus == 1:
                settings["trainer.recompute_slice"] = 1024 if bench.small else 65536
            else:
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


def train_exactly(bench, name, numbers, layout, **more):
    settings = {"trainer.precision": "f32", "trainer.micro_batch": 1, "trainer.global_batch": 8,
                "schedule.type": "constant", "schedule.warmup_steps": STEPS, **layout}
    return bench.train(name, numbers, "tnl-385m", 32 if bench.small else 512, settings, STEPS, 60, **more)


def alone(bench, numbers):
    """The losses that all layouts must have."""
    try:
        outcome = train_exactly(bench, "exact-alone", numbers, {})
        if outcome.ended:
            bench.fail("exact-alone", outcome.ended)
            return {"layout": "one GPU", "GPUs": 1, "steps": len(outcome.rows)}
        losses = [row["loss"] for row in outcome.rows]
        if not losses[-1] < 0.99 * losses[0]:
            bench.fail("exact-alone", f"the loss did not fall, so equal losses would say little: {losses}")
        bench.reference = losses
        return {"layout": "one GPU", "GPUs": 1, "steps": STEPS, "last loss": round(losses[-1], 6)}
    finally:
        bench.reference_done.set()


def compared(bench, name, layout, numbers):
    said = ", ".join(f"{key.split('.')[1]} {value}" for key, value in layout.items())
    return compare(bench, name, said, train_exactly(bench, name, numbers, layout), numbers)


def compare(bench, name, said, outcome, numbers):
    bench.reference_done.wait(max(bench.left(), 0))
    row = {"layout": said, "GPUs": len(numbers), "steps": len(outcome.rows)}
    if outcome.ended or len(outcome.rows) != STEPS or not bench.reference:
        bench.fail(name, outcome.ended or f"{len(outcome.rows)} steps, {'a' if bench.reference else 'no'} reference")
        return row
    largest = max(abs(mine["loss"] / loss - 1) for mine, loss in zip(outcome.rows, bench.reference))
    if not largest <= TOLERANCE:
        bench.fail(name, f"losses differ by {largest}, more than {TOLERANCE}")
    return {**row, "last loss": round(outcome.rows[-1]["loss"], 6), "largest difference": f"{largest:.1e}"}


def killed(bench, numbers):
    """launch/run; the last rank is killed once the checkpoint in the middle is there."""
    seen = {}

    def watch(process, folder):
        if not seen.get("killed") and (folder / "checkpoints" / f"step_{STEPS // 2:08}").is_dir():
            starters = [pid for pid in ranks.descendants(process.pid) if name_of(pid) == "mpirun"]
            started = [rank for pid in starters for rank in ranks.children(pid)]
            if started:
                seen["killed"] = max(started)
                os.kill(seen["killed"], signal.SIGKILL)
        if (folder / "failure_before.txt").exists():
            seen["verdict"] = (folder / "failure_before.txt").read_text().split(";")[0]

    layout = {"parallel.zero": 3, "parallel.tp": 2, "trainer.steps": STEPS, "checkpoint.every": STEPS // 2}
    outcome = train_exactly(bench, "exact-killed", numbers, layout, restarts=1, watch=watch)
    if "resumed from" not in outcome.said or "ended without a word" not in seen.get("verdict", ""):
        bench.fail("exact-killed", f"no rank was lost, or the run did not go on: {seen}")
    row = compare(bench, "exact-killed", "zero 3, tp 2; a rank killed, resumed", outcome, numbers)
    return {**row, "note": seen.get("verdict", "")}


def exact(bench):
    yield Case("exact", "exact-alone", 1, 25, functools.partial(alone, bench))
    for gpus, layout in [one for one in LAYOUTS if one[0] <= bench.options.gpus][:8]:
        name = f"exact-{gpus}-" + "-".join(f"{key.split('.')[1]}{value}" for key, value in layout.items())
        yield Case("exact", name, gpus, 15, functools.partial(compared, bench, name, layout))
    if bench.options.gpus > 1:
        yield Case("exact", "exact-killed", bench.options.gpus, 45, functools.partial(killed, bench))


def in_order_of_worth(bench, parts):
    """Each part's most telling runs first, packed so that runs on few GPUs fill the host together."""
    everything = [case for part in parts for case in globals()[part](bench) if case.gpus <= bench.options.gpus]

    def some(part, count=None):
        found = [case for case in everything if case.part == part][:count]
        for case in found:
            everything.remove(case)
        return found

    order = some("scaling", 4) + some("exact", 1) + some("scaling", 4) + some("tensor", 3) + some("exact")
    order += some("large") + some("scaling") + some("context", 5) + some("tensor")
    return order + some("context")
