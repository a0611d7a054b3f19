"""Training runs of levin on some of a host's devices, ended as soon as they have written enough rows.

Host gives devices out in order and starts the runs: train() is one of levin, call() one of any other program. Used by
tests/bench/eight_gpus.
"""
import array
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import statistics
import struct
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NO_MEMORY = "no memory left"


def write_shard(prefix, tokens, vocabulary):
    """Megatron shards PREFIX.bin and .idx: made-up text whose frequent tokens are learnt in a few steps, 1M tokens of it
    over and over. Never a token below 3: those are no text to the models, and the embedding of padding starts at zero,
    where a norm is anything but smooth: with a third of the text padding, rounding grew tenfold a step, and losses rose."""
    chance, first = random.Random(1), 3
    block = array.array("H", (first + int((vocabulary - first) * chance.random() ** 8)
                              for _ in range(min(tokens, 1 << 20))))
    blocks = tokens // len(block) + 1  # one more than asked for: a sequence of all tokens needs its last target
    with open(f"{prefix}.bin", "wb") as out:
        for _ in range(blocks):
            block.tofile(out)
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, blocks, blocks + 1)
    starts = [i * len(block) * 2 for i in range(blocks)]
    with open(f"{prefix}.idx", "wb") as out:
        out.write(header + struct.pack(f"<{blocks}i", *[len(block)] * blocks) + struct.pack(f"<{blocks}q", *starts)
                  + struct.pack(f"<{blocks + 1}q", *range(blocks + 1)))


@dataclasses.dataclass
class Outcome:
    """What a run left: its rows (metrics.jsonl), how it ended ("" when it had all its rows), its last words, seconds."""
    rows: list
    ended: str
    said: str
    seconds: float

    def median(self, key):
        """Over the second half of the rows; None where they do not have it."""
        values = [row[key] for row in self.rows[len(self.rows) // 2:] if row.get(key) is not None]
        return statistics.median(values) if values else None


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid):
    return [int(line) for line in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]


def descendants(pid):
    return [one for child in children(pid) for one in (child, *descendants(child))]


def end(process):
    """Ends a run at once, without its checkpoint, and waits until its devices are free again."""
    if process.poll() is not None:
        return
    family = [process.pid, *descendants(process.pid)]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 20
    while any(map(alive, family)) and time.monotonic() < until:
        time.sleep(0.05)


class Host:
    """The devices of this machine, who has them, and the settings all runs share."""

    def __init__(self, levin, device, count, folder):
        self.levin, self.device, self.count, self.folder = str(pathlib.Path(levin).resolve()), device, count, folder
        # Set it in a trial: bytes a rank alone may map, which stand for a device's memory; MPI would crash at this limit.
        self.address_space = None
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        self.names = named if named != [""] else [str(i) for i in range(count)]
        self.free, self.changed = list(range(count)), threading.Condition()
        self.stopped = False  # set it to end all runs
        self.environment = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                            "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
                            "LEVIN_GEMM_CACHE": str(folder / "gemm"), "LEVIN_PROGRAM": self.levin, **os.environ}
        if device == "cpu":
            self.environment["OMP_NUM_THREADS"] = "1"

    def take(self, count):
        """The numbers of `count` devices; waits for them."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.free) >= count)
            taken, self.free = self.free[:count], self.free[count:]
            return taken

    def give_back(self, numbers):
        with self.changed:
            self.free = sorted(self.free + numbers)
            self.changed.notify_all()

    def environment_of(self, numbers):
        if self.device == "cpu":
            return self.environment
        return {**self.environment, "CUDA_VISIBLE_DEVICES": ",".join(self.names[i] for i in numbers)}

    def command(self, config, run_folder, settings):
        common = {"run.folder": run_folder, "trainer.device": self.device, "trainer.eval_every": 0, "log.report": "false",
                  "log.tensorboard": "false", "schedule.warmup_steps": 100, "trainer.steps": 100000, **settings}
        return ["train", str(ROOT / "configs" / config), *(f"{key}={value}" for key, value in common.items())]

    def call(self, name, numbers, command, limit):
        """Any program, at most `limit` seconds: how it ended ("" for status 0) and what it said, which NAME.txt keeps."""
        log, until = self.folder / f"{name}.txt", time.monotonic() + limit
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, cwd=ROOT, stderr=subprocess.STDOUT,
                                       env=self.environment_of(numbers), start_new_session=True)
            try:
                while process.poll() is None and time.monotonic() < until and not self.stopped:
                    time.sleep(0.1)
                status = process.poll()
            finally:
                end(process)
        said = log.read_text(errors="replace")
        if status == 0:
            return "", said
        if status is None:
            return "stopped" if self.stopped else f"not done after {limit:.0f} s", said
        errors = [line for line in said.splitlines() if "Error" in line and "ChildFailedError" not in line]
        return f"status {status}: " + " ".join((errors or said.splitlines())[-1:])[:300], said

    def train(self, name, numbers, config, settings, rows, limit, restarts=None, watch=None):
        """Runs until `rows` rows are written, the program ends or `limit` seconds are over. With `restarts` it is started
        by launch/run and ends by itself. `watch(process, run_folder)` is called all the while."""
        run_folder = self.folder / "runs" / name
        program, limited = [self.levin], bool(self.address_space) and len(numbers) == 1
        if limited:
            program = ["prlimit", f"--as={self.address_space}", *program]
        if restarts is not None:
            program = [str(ROOT / "launch" / "run"), "-n", str(len(numbers)), "--restarts", str(restarts), "levin"]
        elif len(numbers) > 1:
            program = ["mpirun", "-n", str(len(numbers)), "--bind-to", "none", *program]
        log = self.folder / f"{name}.txt"
        start = time.monotonic()
        with log.open("w") as out:
            process = subprocess.Popen(program + self.command(config, run_folder, settings), stdout=out, cwd=ROOT,
                                       stderr=subprocess.STDOUT, env=self.environment_of(numbers), start_new_session=True)
            try:
                ended = f"not done after {limit:.0f} s"
                while time.monotonic() - start < limit and not self.stopped:
                    over = process.poll() is not None
                    if watch:
                        watch(process, run_folder)
                    if over or (restarts is None and len(rows_of(run_folder)) >= rows):
                        ended = ""
                        break
                    time.sleep(0.02 if watch else 0.1)
            finally:
                end(process)
        if self.stopped:
            ended = "stopped"
        said = log.read_text(errors="replace")
        found = rows_of(run_folder)
        if len(found) < rows and not ended:
            words = [line for line in said.splitlines() if line.startswith("levin: ")] or said.splitlines()[-3:]
            ended = f"status {process.returncode}: " + " ".join(" ".join(words).split())[:300]
            # Libraries crash where an allocation fails at the limit of a trial.
            if "[memory]" in said or "out of memory" in said or (limited and process.returncode == -signal.SIGSEGV):
                ended = NO_MEMORY
        return Outcome(found[:rows], ended, said, time.monotonic() - start)


def rows_of(run_folder):
    """The whole lines of metrics.jsonl."""
    try:
        text = (run_folder / "metrics.jsonl").read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]
