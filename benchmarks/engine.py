"""The engine beside plain PyTorch, other trainers, plain files and other readers of sound, as tables in Markdown.

    python benchmarks/engine.py [loop] [checkpoint] [async] [decode] [loader] [painting] [--quick] [--gigabytes 1] [--folder DIR] [--rounds N]

Without names all parts are run. Every implementation has a process of its own and one thread; they take turns, one repetition each, after a
round that does not count; figures are medians over rounds, ratios medians of ratios within a round. Where a disk, a thread or a worker process
takes part, wall time is given, else CPU time. Checkpoints and sound are written to a temporary folder inside `--folder`: choose a
disk that is worth measuring. BENCHMARK_TRACE=1 prints why an implementation fails.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from statistics import median
from unittest.mock import patch

from _peers import Peer, compare, find, header, paired, show, table, verdict

import numpy as np

LIBRARIES = ("torch", "accelerate", "lightning", "safetensors", "numpy", "soundfile", "soxr", "librosa", "torchcodec")
OURS = "audiolab"


# ---- loop: the same steps, driven by different loops

class Batches:
    "The same ten small batches over and over; notes the CPU time when the first counted and the last batch are asked for."
    def __init__(self, steps, skip=100):
        import torch
        generator = torch.Generator().manual_seed(0)
        def draw(*shape): return torch.randn(shape, generator=generator)
        self.items, self.steps, self.skip = [{"x": draw(8, 16), "y": draw(8, 4), "z": draw(8, 8)}
                                             for _ in range(10)], steps, skip

    def batches(self, epoch, start=0):
        for number in range(start, self.steps):
            if number == self.skip: self.begin = time.process_time()
            if number == self.steps - 1: self.end = time.process_time()
            yield self.items[number % 10]

    def __iter__(self): return self.batches(0)
    def __len__(self): return self.steps
    def result(self): return dict(step_us=1e6*(self.end - self.begin)/(self.steps - 1 - self.skip))


class Log:
    "What the loops without a logger of their own use: means over twenty steps as lines of JSON."
    def __init__(self, folder): self.file, self.sums, self.count = open(Path(folder)/"log.jsonl", "a", buffering=1), {}, 0

    def __call__(self, **values):
        for name, value in values.items(): self.sums[name] = self.sums.get(name, 0.) + value.item()
        self.count += 1
        if self.count % 20 == 0:
            self.file.write(json.dumps({name: total/20 for name, total in self.sums.items()}) + "\n")
            self.sums = {}


def nets(kind):
    import torch
    torch.manual_seed(0)
    def layers(i, o):
        return torch.nn.Sequential(torch.nn.Linear(i, 32), torch.nn.ReLU(), torch.nn.Linear(32, o))
    return {"net": layers(16, 4)} if kind == "one" else {"g": layers(8, 16), "d": layers(16, 1)}


def adamw(net):
    import torch
    return torch.optim.AdamW(net.parameters(), lr=1e-3)


def losses(kind, net, batch):
    "(name, loss) one after the other; the next is computed when the parameters have moved."
    if kind == "one":
        yield "net", (net["net"](batch["x"]) - batch["y"]).square().mean()
        return
    fake = net["g"](batch["z"])
    yield "d", (1 - net["d"](batch["x"])).relu().mean() + (1 +
                                                           net["d"](fake.detach())).relu().mean()
    yield "g", -net["d"](fake).mean()


def loop_plain(kind, folder, data):
    import torch
    net, log = nets(kind), Log(folder)
    optimizers = {name: adamw(module) for name, module in net.items()}
    for batch in data:
        values = {}
        for name, loss in losses(kind, net, batch):
            optimizers[name].zero_grad()
            loss.backward()
            values[f"norm_{name}"] = torch.nn.utils.clip_grad_norm_(net[name].parameters(), 1.)
            optimizers[name].step()
            values[f"loss_{name}"] = loss
        log(**values)


def loop_audiolab(kind, folder, data):
    from audiolab.training import Task, TrainingConfig
    from audiolab.training import Trainer

    class Steps(Task):
        def setup(self, loop):
            self.net = {name: loop.module(name, module) for name, module in nets(kind).items()}
            for name, module in self.net.items(): loop.optimizer(name, adamw(module))
            loop.data = data

        def step(self, batch, loop):
            values = {}
            for name, loss in losses(kind, self.net, batch):
                loop.update(name, loss)
                values[f"loss_{name}"] = loss
            return values
    config = TrainingConfig(epochs=1, clip_norm=1., schedule="constant", validate_every="never",
                            sample_every="never", device="cpu", log_every=20)
    Trainer(Steps(), config, folder).fit()


def loop_accelerate(kind, folder, data):
    from accelerate import Accelerator
    accelerator, log, net = Accelerator(cpu=True), Log(folder), nets(kind)
    optimizers = {name: accelerator.prepare_optimizer(adamw(module)) for name,
                  module in net.items()}
    net = {name: accelerator.prepare_model(module) for name, module in net.items()}
    for batch in data:
        values = {}
        for name, loss in losses(kind, net, batch):
            optimizers[name].zero_grad()
            accelerator.backward(loss)
            values[f"norm_{name}"] = accelerator.clip_grad_norm_(net[name].parameters(), 1.)
            optimizers[name].step()
            values[f"loss_{name}"] = loss
        log(**values)


def loop_fabric(kind, folder, data):
    from lightning.fabric import Fabric
    fabric, log, net, optimizers = Fabric(accelerator="cpu", devices=1), Log(folder), {}, {}
    for name, module in nets(kind).items():
        net[name], optimizers[name] = fabric.setup(module, adamw(module))
    for batch in data:
        values = {}
        for name, loss in losses(kind, net, batch):
            optimizers[name].zero_grad()
            fabric.backward(loss)
            values[f"norm_{name}"] = fabric.clip_gradients(net[name], optimizers[name], max_norm=1.)
            optimizers[name].step()
            values[f"loss_{name}"] = loss
        log(**values)


def loop_lightning(kind, folder, data):
    import lightning
    import torch
    from lightning.pytorch.loggers import CSVLogger

    class Steps(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.automatic_optimization = torch.nn.ModuleDict(nets(kind)), kind == "one"

        def configure_optimizers(self):
            made = [adamw(module) for module in self.net.values()]
            return made[0] if kind == "one" else made

        def training_step(self, batch, number):
            if kind == "one":
                (_, loss), = losses(kind, self.net, batch)
                self.log("loss", loss)
                return loss
            optimizers = dict(zip(self.net, self.optimizers()))
            for name, loss in losses(kind, self.net, batch):
                optimizers[name].zero_grad()
                self.manual_backward(loss)
                self.clip_gradients(optimizers[name], 1., "norm")
                optimizers[name].step()
                self.log(f"loss_{name}", loss)
    lightning.Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=CSVLogger(folder),
                      log_every_n_steps=20, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False,
                      gradient_clip_val=1. if kind == "one" else None).fit(Steps(), data)


LOOPS = {"plain PyTorch": loop_plain, OURS: loop_audiolab, "Accelerate": loop_accelerate, "Lightning Fabric": loop_fabric, "Lightning Trainer": loop_lightning}
MODULES = {OURS: "audiolab.training", "Accelerate": "accelerate", "Lightning Fabric": "lightning.fabric", "Lightning Trainer": "lightning"}


def loop_setup(name, kind, steps, folder):
    import torch
    torch.set_num_threads(1)

    def run():
        data = Batches(steps)
        with tempfile.TemporaryDirectory(dir=folder) as own: LOOPS[name](kind, own, data)
        return data.result()
    return run


def import_seconds(module):
    code = f"import time, torch; a = time.process_time(); import {module}; print(time.process_time() - a)"
    found = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
             for _ in range(3)]
    return (median(float(f.stdout.split()[-1]) for f in found)
            if not any(f.returncode for f in found) else None)


def part_loop(args, folder):
    steps, rounds = (600, 3) if args.quick else (2000, args.rounds or 9)
    imports = {name: import_seconds(module) for name, module in MODULES.items()}
    show(f"## Loop: {steps} steps of a tiny net on the CPU, AdamW, gradients clipped, losses logged every 20 steps")
    for kind, title in (("one", "One optimizer"),
                        ("two", "Generator and discriminator, two AdamW")):
        rows = compare(loop_setup, list(LOOPS), rounds, kind=kind, steps=steps, folder=folder)
        plain = find(rows, "plain PyTorch")
        above = {row["name"]: paired(row, plain, "step_us", lambda a, b: a - b) for row in rows if "error" not in row}
        show(f"### {title}", table(rows, {
            "CPU us / step": lambda r: f"{r['step_us']:.0f}", "above plain PyTorch, us": lambda r: f"{above[r['name']]:+.0f}",  # noqa: B023
            "import after torch, CPU s": lambda r: f"{s:.2f}"
            if (s := imports.get(r["name"])) is not None else "-"}))
        verdict(f"overhead of audiolab ({title.lower()}), us a step", above[OURS], 100, text="{:.0f}")
        peers = [value for name, value in above.items() if name not in (OURS, "plain PyTorch")]
        if peers: verdict("the same beside the best peer", above[OURS], min(peers), text="{:.0f}")
    show("Without setting up, and without the checkpoint that audiolab writes at the end. audiolab also logs the gradient norm, seeds every step, refuses "
         "gradients that are not finite, keeps its place for resuming and tells where the time goes; Lightning's Trainer does not log the norm here.")


# ---- checkpoint: a state of many tensors, to disk and back

@lru_cache(1)
def state(megabytes):
    "Named float32 arrays of this size together, in pieces of 16 MB: random, so that no layer below can compress them."
    block = np.random.default_rng(0).random(megabytes*10**6//4, np.float32)
    return {f"layer{number}.weight": part for number,
            part in enumerate(np.array_split(block, max(megabytes//16, 1)))}


def synced(path):
    fd = os.open(path, os.O_RDONLY)
    try: os.fsync(fd)
    finally: os.close(fd)


def write_raw(path, arrays, reserve):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        if reserve: os.posix_fallocate(fd, 0, sum(array.nbytes for array in arrays))
        for array in arrays:
            left = memoryview(array).cast("B")
            while len(left): left = left[os.write(fd, left):]
        os.fsync(fd)
    finally: os.close(fd)


SAVES = ["raw write, fsync", "raw write in reserved space, fsync", "audiolab write_checkpoint", "safetensors save_file, fsync", "torch.save, fsync",
         "torch.save, no fsync", "np.savez, fsync"]
LOADS = ["raw read, 1 MiB at a time", "raw read in one call", "audiolab read_checkpoint, verified",
         "audiolab read_checkpoint, verify=False", "safetensors.numpy load_file",
         "safetensors.torch load_file, touched", "torch.load weights_only", "np.load of npz"]


def save_setup(name, megabytes, folder):
    arrays, path = state(megabytes), Path(folder)/f"save{SAVES.index(name)}"
    if name.startswith("raw"):
        def run(): return write_raw(path, list(arrays.values()), "reserved" in name)
    elif name.startswith("audiolab"):
        from audiolab.files import write_checkpoint
        def run(): return write_checkpoint(path, arrays)
    elif name.startswith("np"):
        path = path.with_suffix(".npz")
        def run(): return (np.savez(path, **arrays), synced(path))
    else:
        import torch
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        if name.startswith("torch"):
            def write(): return torch.save(tensors, path)
        else:
            from safetensors.torch import save_file
            def write(): return save_file(tensors, path)
        run = write if "no fsync" in name else lambda: (write(), synced(path))
    # the pages are in this process's tables now
    probe = sum(float(array[::1024].sum()) for array in arrays.values())
    assert np.isfinite(probe)

    def before():
        path.unlink(missing_ok=True)
        if hasattr(os, "sync"): os.sync()  # what others left to be written is not ours to wait for
    return lambda: (run(), None)[1], before


def load_setup(name, megabytes, folder, cold):
    arrays, path = state(megabytes), Path(folder)/f"load{LOADS.index(name)}"
    if name.startswith("raw"):
        write_raw(path, list(arrays.values()), False)
        piece = 2**20 if "1 MiB" in name else path.stat().st_size

        def run():
            block, done = memoryview(np.empty(path.stat().st_size, np.uint8)), 0
            with open(path, "rb", buffering=0) as file:
                while got := file.readinto(block[done:done + piece]): done += got
            return block
    elif name.startswith("audiolab"):
        from audiolab.files import read_checkpoint, write_checkpoint
        write_checkpoint(path, arrays)
        def run(): return read_checkpoint(path, verify="verified" in name)
    elif name.startswith("np"):
        path = path.with_suffix(".npz")
        np.savez(path, **arrays)

        def run():
            with np.load(path) as file: return {key: file[key] for key in file}
    else:
        import torch
        from safetensors.numpy import load_file as load_numpy
        from safetensors.torch import load_file, save_file
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        (torch.save if name.startswith("torch") else save_file)(tensors, path)
        if name.startswith("torch"):
            def run(): return torch.load(path, weights_only=True)
        elif "numpy" in name:
            def run(): return load_numpy(path)
        else:
            def run():
                return [tensor.view(torch.uint8)[::4096].sum()
                        for tensor in load_file(path).values()]
    synced(path)

    def before():
        if not cold: return
        fd = os.open(path, os.O_RDONLY)
        try: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally: os.close(fd)

    def measured():
        begin = disk_bytes()
        run()
        return dict(disk_mb=(disk_bytes() - begin)/1e6)
    return measured, before


def disk_bytes():
    "Bytes that this process has had read from the disk itself (0 where the system does not tell)."
    try:
        with open("/proc/self/io") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))
    except (OSError, StopIteration): return 0


def part_checkpoint(args, folder):
    megabytes = 128 if args.quick else round(1000*args.gigabytes)
    rounds, state_bytes = 3 if args.quick else args.rounds or 5, megabytes*1e6
    state(megabytes)  # before the processes are forked, which then share it
    def best(row): return min(r["wall_s"] for r in row["rounds"])
    def columns(rows, base):
        return ({
        "best wall s (median)": lambda r: f"{best(r):.3f} ({r['wall_s']:.3f})",
        "best MB/s": lambda r: f"{state_bytes/best(r)/1e6:,.0f}",
        f"speed of {base}": lambda r: f"{best(find(rows, base))/best(r):.2f}x", "CPU s": lambda r: f"{r['cpu_s']:.3f}",
        "peak MB above the state": lambda r: f"{r['peak_mb']:.0f}"})

    def judge(rows, name, base, what):
        verdict(f"{what}, speed beside {base}", best(find(rows, base))/best(find(rows, name)), .9,
                at_most=False)

    show(f"## Checkpoint: {megabytes} MB of float32 in {len(state(megabytes))} tensors", "### Save")
    rows = compare(save_setup, SAVES, rounds, megabytes=megabytes, folder=folder)
    show(table(rows, columns(rows, SAVES[0])))
    judge(rows, "audiolab write_checkpoint", SAVES[0], "write_checkpoint")
    for cold in (True, False):
        if cold and not hasattr(os, "posix_fadvise"): continue
        rows = compare(load_setup, LOADS, rounds, megabytes=megabytes, folder=folder, cold=cold)
        raw = min(LOADS[:2], key=lambda name: best(find(rows, name)))  # noqa: B023
        show(f"### Load, {'file dropped from the page cache before' if cold else 'file in the page cache'}",
             table(rows, columns(rows, raw) |
                   {"MB from the disk": lambda r: f"{r['disk_mb']:.0f}"}))
        judge(rows, "audiolab read_checkpoint, verified", raw, f"read_checkpoint with verification ({'cold' if cold else 'warm'})")
    show("Ratios are of the best rounds: whatever else uses the disk, or looks for huge pages in fragmented memory, only ever adds time.")
    show("Peak memory counts what was loaded. `write_checkpoint` also hashes every tensor, writes beside the old file, renames and syncs the folder; "
         "`read_checkpoint` compares every hash. The loads of safetensors and torch compare none, that of npz a CRC32.")


# ---- async: a run that goes on while its state is written

def run_setup(name, megabytes, folder, steps, saves):
    "A Trainer with a state of this size and steps of some milliseconds; a save at every so many of them."
    import torch
    from audiolab.training import Task, TrainingConfig
    from audiolab.training import Trainer, save_run
    from audiolab.files import CheckpointWriter
    torch.set_num_threads(1)
    times, blocked, every = [], [], steps//(saves + 1)

    class Data:
        def __len__(self): return steps
        def batches(self, epoch, start=0):
            for _ in range(start, steps):
                times.append(time.perf_counter())
                yield None

    class Heavy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)
            for key, array in state(megabytes).items():
                self.register_buffer(key.replace(".", "_"), torch.from_numpy(array.copy()))

    class Busy(Task):
        exports = False

        def setup(self, loop):
            self.net, self.a = loop.module("net", Heavy()), torch.randn(640, 640)
            loop.optimizer("net", torch.optim.SGD(self.net.layer.parameters(), lr=1e-3))
            loop.data = Data()

        def step(self, batch, loop):
            loss = self.net.layer(self.a[:, :8]).square().mean() + 0*(self.a@self.a).sum()
            loop.update("net", loss)
            return {"loss": loss}

    class Listener:
        def __init__(self): self.saved = []
        def __call__(self, event):
            if event.kind == "checkpoint": self.saved.append((event.step, event.values["seconds"]))

    def timed(*what):
        begin = time.perf_counter()
        save_run(*what)
        blocked.append(time.perf_counter() - begin)

    def run():
        times.clear()
        blocked.clear()
        listener = Listener()
        with tempfile.TemporaryDirectory(dir=folder) as own:
            config = TrainingConfig(epochs=1, schedule="constant", validate_every="never",
                                    sample_every="never", save_every=f"{every} steps", device="cpu")
            trainer = Trainer(Busy(), config, own, [listener])
            if name == "written at once": blocking(trainer, CheckpointWriter)
            with patch("audiolab.training.loop.save_run", timed): trainer.fit()
        # the save comes at the end of that step
        spans, begins = np.diff(times), [every*k - 1 for k in range(1, saves + 1)]
        during = np.zeros(len(spans), bool)  # until the event that tells that it is on the disk
        for begin in begins:
            during[begin:max(next((step for step, _ in listener.saved if step > begin), len(spans)),
                             begin + 1)] = True
        idle, first = float(np.median(spans[~during])), np.isin(np.arange(len(spans)), begins)
        rest = spans[during & ~first]
        return dict(idle_ms=1e3*idle, first_s=blocked[0], blocked_s=median(blocked[1:saves]),
                    stall_s=float((spans[during] - idle).sum()/saves),
                    during_ms=1e3*float(np.median(rest)) if len(rest) else float("nan"),
                    write_s=median(s for _, s in listener.saved[:saves]))
    return run


def blocking(trainer, writer):
    "Make a Trainer write its checkpoints before it goes on, for comparison."
    original = trainer.task.setup

    def setup(loop):
        original(loop)
        saver = trainer.run.saver
        saver.writer = writer(saver.checkpoints, background=False)
    trainer.task.setup = setup


def part_async(args, folder):
    megabytes, steps, saves = (128, 400, 3) if args.quick else (round(1000*args.gigabytes), 1200, 3)
    state(megabytes)
    rows = compare(run_setup, ["written in a thread", "written at once"],
                   2 if args.quick else args.rounds or 3, megabytes=megabytes, folder=folder,
                   steps=steps, saves=saves)
    gigabytes = megabytes/1000
    show(f"## Saving while training: {megabytes} MB of state, a Trainer on one core", table(rows, {
        "step, no save, ms": lambda r: f"{r['idle_ms']:.2f}", "step during a save, ms": lambda r: f"{r['during_ms']:.2f}" if "thread" in r["name"] else "-",
        "first save blocks, s/GB": lambda r: f"{r['first_s']/gigabytes:.3f}",
        "next ones, s/GB": lambda r: f"{r['blocked_s']/gigabytes:.3f}",
        "written after, s": lambda r: f"{r['write_s']:.2f}", "lost to a save in all, s": lambda r: f"{r['stall_s']:.3f}",
        "share of a minute": lambda r: f"{r['stall_s']/60:.2%}"}))
    ours = find(rows, "written in a thread")
    verdict("a save blocks the loop, s per GB", ours["blocked_s"]/gigabytes, .1)
    verdict("share of its time that a run loses by one save a minute, %", 100*ours["stall_s"]/60, 5)


# ---- decode: whole files, and crops of long ones

FORMATS = ("wav", "flac", "mp3", "ogg")
RATE, TARGET = 44_100, 24_000  # Hz


def sound_setup(name, folder, short, long):
    "Not measured: writes stereo music of two lengths (s) in every format, and the crops that exact readers return."
    import soundfile
    from audiolab.audio import read_audio
    from audiolab.audio import instrument_corpus
    files = instrument_corpus(Path(folder)/"corpus", n_files=12, sample_rate=RATE)
    left = np.concatenate([read_audio(file, mono=True)[0] for file in files])
    stereo = np.stack([left, .8*np.roll(left, 1500) + .2*left], 1)
    # no silence: it would cost nothing
    stereo += 1e-3*np.random.default_rng(0).standard_normal(stereo.shape).astype(np.float32)
    stereo /= np.abs(stereo).max()*1.05
    starts = np.random.default_rng(1).integers(0, (long - 2)*RATE, 200)
    np.save(Path(folder)/"starts.npy", starts)

    def run():
        for ending in FORMATS:
            for label, seconds in (("short", short), ("long", long)):
                with soundfile.SoundFile(Path(folder)/f"{label}.{ending}", "w", RATE, 2) as file:
                    for second in range(seconds):
                        file.write(np.take(stereo, range(second*RATE, (second + 1)*RATE), axis=0,
                                           mode="wrap"))
            x, _ = soundfile.read(Path(folder)/f"long.{ending}", dtype="float32")
            np.save(Path(folder)/f"crops.{ending}.npy",
                    np.stack([x[s:s + RATE].T for s in starts[:24]]))
    return run


def torchcodec_decoder(path, **options):
    from torchcodec.decoders import AudioDecoder
    return AudioDecoder(str(path), **options)


def whole_setup(name, path, seconds):
    if name == "torchcodec":
        torchcodec_decoder(path)
        def run():
            return torchcodec_decoder(path, sample_rate=TARGET, num_channels=1).get_all_samples()
    elif name == "torchaudio":
        import torchaudio
        def run():
            return torchaudio.functional.resample(torchaudio.load(path)[0].mean(0), RATE, TARGET)
    elif name == "librosa.load":
        import librosa
        def run(): return librosa.load(path, sr=TARGET, mono=True)
    elif name.startswith("soundfile"):
        import soundfile
        import soxr
        def run():
            return soxr.resample(soundfile.read(path, dtype="float32")[0].mean(1), RATE, TARGET,
                                 quality="HQ")
    else:
        from audiolab.audio import read_audio
        def run(): return read_audio(path, sample_rate=TARGET, mono=True)
    return lambda: (run(), None)[1]


def crop_reader(name, path):
    "A function start -> float32 [2, RATE] at the file's rate, or [TARGET] where the name says 24 kHz."
    import soundfile
    import soxr
    if name.startswith("torchcodec"):
        decoder = torchcodec_decoder(path)
        return lambda start: decoder.get_samples_played_in_range(start/RATE,
                                                                 start/RATE + 1).data.numpy()
    if name.startswith("torchaudio"):
        import torchaudio
        return lambda start: torchaudio.load(path, frame_offset=start, num_frames=RATE)[0].numpy()
    if name.startswith("librosa"):
        import librosa
        if "24 kHz" in name:
            return lambda start: librosa.load(path, sr=TARGET, mono=True, offset=start/RATE,
                                              duration=1.)[0]
        return lambda start: np.ascontiguousarray(librosa.load(path, sr=None, mono=False,
                                                               offset=start/RATE, duration=1.)[0])
    if name.startswith("soundfile"):
        kept = soundfile.SoundFile(path) if "kept" in name else None

        def read(start):
            if kept is not None:
                kept.seek(start)
                return kept.read(RATE, dtype="float32")
            with soundfile.SoundFile(path) as file:
                file.seek(start)
                return file.read(RATE, dtype="float32")
        return (lambda start: soxr.resample(read(start).mean(1), RATE, TARGET, quality="HQ")) if "24 kHz" in name else lambda start: np.ascontiguousarray(read(start).T)
    from audiolab.audio import probe_audio, read_audio
    from audiolab.data import AudioFiles, Clip, Segments
    about = probe_audio(path)
    files = AudioFiles([Clip("long", str(path), RATE, about.channels, about.frames)])
    if name.endswith("read_audio"):
        return lambda start: read_audio(path, start=start/RATE, duration=1.)[0]
    if name.endswith("read_audio, 24 kHz mono"):
        return lambda start: read_audio(path, start=start/RATE, duration=1., sample_rate=TARGET,
                                        mono=True)[0]
    if "Segments" in name:
        segments, count = Segments(files, TARGET, 1.), iter(range(10**9))  # chooses its own places
        return lambda start: segments.item(0, next(count))["audio"]
    return lambda start: files.read(0, int(start), RATE)


def crop_setup(name, folder, ending, count):
    read, starts = crop_reader(name, Path(folder)/f"long.{ending}"), np.load(Path(folder)/"starts.npy")
    exact = -1
    if "24 kHz" not in name:
        wanted = np.load(Path(folder)/f"crops.{ending}.npy")
        exact = sum(found.shape == crop.shape and bool((found == crop).all()) for crop,
                    found in ((crop, np.asarray(read(s))) for crop, s in zip(wanted, starts)))
    turn = [0]

    def run():
        begin = time.process_time()
        for i in range(count): read(starts[(turn[0] + i) % len(starts)])
        turn[0] += count
        return dict(crop_ms=1e3*(time.process_time() - begin)/count, exact=exact)
    return run


WHOLE = ["audiolab read_audio", "soundfile, soxr HQ", "librosa.load", "torchcodec", "torchaudio"]
CROPS = ["audiolab AudioFiles.read", "audiolab read_audio", "soundfile opened each time", "soundfile kept open", "librosa.load", "torchcodec", "torchaudio"]
CROPS_24 = ["audiolab Segments.item, 24 kHz mono", "audiolab read_audio, 24 kHz mono", "soundfile opened each time, soxr, 24 kHz mono",
            "soundfile kept open, soxr, 24 kHz mono", "librosa.load, 24 kHz mono"]


def across(found, cell):
    "One table of several comparisons: rows are implementations, columns formats."
    names = [row["name"] for row in next(iter(found.values()))]
    rows = []
    for name in names:
        of = {key: next(row for row in rows_ if row["name"] == name) for key,
              rows_ in found.items()}
        rows.append(dict(name=name, of=of) |
                    ({"error": r["error"]} if (r := of[next(iter(of))]).get("error") else {}))
    return table(rows,
                 {key: (lambda r, key=key: r["of"][key].get("error") or cell(r["of"][key], key))
                  for key in found})


def part_decode(args, folder):
    short, long, count, rounds = (10, 120, 20,
                                  3) if args.quick else (60, 1200, 40, args.rounds or 7)
    maker = Peer(sound_setup, "material", folder=folder, short=short, long=long)
    maker.ask()
    maker.close()
    if maker.error: raise SystemExit(maker.error)
    whole = {e: compare(whole_setup, WHOLE, rounds, path=str(Path(folder)/f"short.{e}"),
                        seconds=short) for e in FORMATS}
    long_whole = {e: compare(whole_setup, ["soundfile, soxr HQ"], 2, path=str(Path(folder)/f"long.{e}"), seconds=long)[0] for e in FORMATS}
    show(f"## Decode: 44.1 kHz stereo, CPU time of one core; libsndfile {__import__('soundfile').__libsndfile_version__}",
         f"### Whole files of {short} s to 24 kHz mono: times real time (peak MB)",
         across(whole, lambda r, e: f"{short/r['cpu_s']:,.0f} ({r['peak_mb']:.0f})"))
    for names, title in ((CROPS, "float32 [2, T]"), (CROPS_24, "to 24 kHz mono")):
        found = {e: compare(crop_setup, names, rounds, folder=folder, ending=e, count=count)
                 for e in FORMATS}
        def exact(r): return f" ({r['exact']:.0f}/24 exact)" if r["exact"] >= 0 else ""
        # noqa: B023
        show(f"### Random crops of 1 s from {long//60} minutes, {title}: ms each",
             across(found, lambda r, e: f"{r['crop_ms']:.3f}{exact(r)}"))
        for e in FORMATS:
            ours, good = find(found[e], names[0]), [row for row in found[e] if "error" not in row
                                                    and not row["name"].startswith("audiolab")]
            if names is CROPS and e in ("wav", "flac"):
                verdict(f"{e}: whole decoding over a crop", 1e3*long_whole[e]["cpu_s"]/ours["crop_ms"], 10, at_most=False)
            sound = [row for row in good if row["exact"] in (-1, 24)] or good
            best = min(sound, key=lambda row: row["crop_ms"])
            verdict(f"{e}, {title}: a crop beside the best exact peer ({best['name']})",
                    paired(ours, best, "crop_ms"), 1.05)
    show("Whole decoding and resampling of the long files took, CPU s: " + ", ".join(f"{e} {row['cpu_s']:.2f}" for e, row in long_whole.items()) + ". `exact`: how many of 24 crops equal, "
         "bit for bit, those of the whole file decoded. A ratio of 1.05 allows for the spread of the measurement.")


# ---- loader: samples a second

class Indexed:
    "A data set as torch's DataLoader wants it."
    def __init__(self, dataset): self.dataset = dataset
    def __len__(self): return len(self.dataset)
    def __getitem__(self, index): return self.dataset.item(index, 0)


def loader_material(name, folder, files, seconds):
    from audiolab.audio import write_audio
    from audiolab.audio import instrument_corpus
    from audiolab.audio import read_audio

    def run():
        from audiolab.data import WholeClips, scan_audio
        from audiolab.data import pack
        parts = np.concatenate([read_audio(f, mono=True)[0] for f in instrument_corpus(
            Path(folder)/"loader corpus", n_files=12, sample_rate=TARGET)])
        rng = np.random.default_rng(0)
        (Path(folder)/"flac").mkdir(exist_ok=True)
        for number in range(files):
            x = np.take(parts, np.arange(seconds*TARGET) + rng.integers(len(parts)), mode="wrap")
            write_audio(Path(folder)/"flac"/f"{number:03}.flac",
                        np.clip(x + 1e-3*rng.standard_normal(len(x)), -1, 1).astype(np.float32),
                        TARGET)
        pack(WholeClips(scan_audio(Path(folder)/"flac", workers=0)[0], TARGET), Path(folder)/"packed", workers=0)
    return run


def datasets(kind, folder):
    from audiolab.data import Segments, scan_audio
    from audiolab.data import PackedClips, PackedStore
    source = (PackedClips(PackedStore(Path(folder)/"packed")) if kind == "packed"
              else scan_audio(Path(folder)/"flac", workers=0)[0])
    return Segments(source, TARGET, 1., per_clip=None)


def loader_setup(name, kind, folder, batch):
    import torch
    from audiolab.data import Loader, collate
    torch.set_num_threads(1)
    workers, epoch = 2 if "2 workers" in name else 0, iter(range(10**9))
    dataset = datasets(kind, folder)
    if "gather" in name:
        store = dataset.source.store
        counts = np.diff(store.mapped["audio"].offsets)

        def batches():
            rng = np.random.default_rng(next(epoch))
            for _ in range(len(dataset)//batch):
                items = rng.integers(len(store), size=batch)
                found, _ = store.gather("audio", items,
                                        rng.integers(counts[items] - TARGET), TARGET)
                yield torch.from_numpy(found*np.float32(2**-15))
    elif "DataLoader" in name:
        loader = torch.utils.data.DataLoader(Indexed(dataset), batch, shuffle=True, drop_last=True,
                                             num_workers=workers, collate_fn=collate,
                                             persistent_workers=bool(workers))
        def batches(): return iter(loader)
    else:
        loader = Loader(dataset, batch, num_workers=workers)
        def batches(): return loader.batches(next(epoch))

    def run():
        count = sum(batch for _ in batches())
        return dict(count=count)
    return run


def part_loader(args, folder):
    files, seconds, rounds = (8, 30, 3) if args.quick else (40, 60, args.rounds or 7)
    maker = Peer(loader_material, "material", folder=folder, files=files, seconds=seconds)
    maker.ask()
    maker.close()
    if maker.error: raise SystemExit(maker.error)
    show(f"## Loader: batches of 32 crops of 1 s, 24 kHz, from {files} clips of {seconds} s")
    for kind, title in (("packed", "packed int16 store"), ("flac", "FLAC files")):
        names = [*["gather of the store alone"]*(kind == "packed"), "audiolab Loader, 0 workers", "torch DataLoader, 0 workers", "audiolab Loader, 2 workers", "torch DataLoader, 2 workers"]
        rows = compare(loader_setup, names, rounds, kind=kind, folder=folder, batch=32)
        show(f"### {title}", table(rows, {
            "samples / s (wall)": lambda r: f"{r['count']/r['wall_s']:,.0f}", "CPU us / sample, this process": lambda r: f"{1e6*r['cpu_s']/r['count']:.1f}",
            "and its workers": lambda r: f"{1e6*r['workers_s']/r['count']:.1f}"
            if "2 workers" in r["name"] else "-", "peak MB": lambda r: f"{r['peak_mb']:.0f}"}))
        for workers in (0, 2):
            ours, peer = (find(rows, f"{name}, {workers} workers") for name in ("audiolab Loader", "torch DataLoader"))
            if ours and peer:
                for row in (ours, peer):
                    for r in row["rounds"]: r["all_s"] = r["cpu_s"] + r["workers_s"]
                verdict(f"{title}, {workers} workers: CPU time of a sample beside torch's DataLoader", paired(ours, peer, "all_s"), 1.05)
    show("Both loaders read the same data set (random crops by seed, epoch and index) and use the same collate; workers stay alive between epochs. The gather copies int16 crops of random clips into one array and scales it.")


# ---- painting: what a monitor costs

def painting_setup(name, steps, folder):
    import torch
    from audiolab.training import Sample
    from audiolab.training import Task, TrainingConfig
    from audiolab.training import Trainer
    torch.set_num_threads(1)
    a = torch.randn(400, 400)

    def matmuls():  # how many make a step of about 2.4 ms
        begin = time.process_time()
        for _ in range(50): a@a
        return max(1, round(2.3e-3/((time.process_time() - begin)/50)))
    matmuls()
    count = matmuls()

    class Data:
        def __len__(self): return steps
        def batches(self, epoch, start=0):
            for number in range(start, steps):
                if number == steps//10:
                    self.begin = time.perf_counter(), time.process_time(), time.thread_time()
                if number == steps - 1:
                    self.end = time.perf_counter(), time.process_time(), time.thread_time()
                yield None

    class Busy(Task):
        def setup(self, loop):
            self.net = loop.module("net", torch.nn.Linear(4, 1))
            loop.optimizer("net", adamw(self.net))
            loop.data = self.data = Data()

        def step(self, batch, loop):
            for _ in range(count): a@a
            loss = self.net(a[:8, :4]).square().mean()
            loop.update("net", loss)
            return {"loss": loss, "other": loss*2}

        def sample(self, loop):
            x = torch.randn(TARGET)
            return [Sample("noise", x.numpy(), TARGET, (x*.5).numpy())]

    def run():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            config = TrainingConfig(epochs=1, schedule="constant", validate_every="never",
                                    sample_every=f"{steps//4} steps", save_every="never", device="cpu")
            task = Busy()
            trainer = Trainer(task, config, own)
            if name == "Monitor, 1 Hz":
                from audiolab.watch import Monitor
                monitor = Monitor(trainer, interval=1.)
            trainer.fit(background=True)
            trainer.join()
            if name == "Monitor, 1 Hz" and not monitor.wait(): raise RuntimeError("the monitor goes on painting")
        wall, cpu, thread = (b - a for a, b in zip(task.data.begin, task.data.end))
        done = steps - 1 - steps//10
        return dict(rate=done/wall, process_us=1e6*cpu/done, thread_us=1e6*thread/done,
                    beside_us=1e6*(cpu - thread)/done)
    return run


def part_painting(args, folder):
    steps, rounds = (800, 2) if args.quick else (4000, args.rounds or 5)
    rows = compare(painting_setup, ["no monitor", "Monitor, 1 Hz"], rounds, steps=steps,
                   folder=folder)
    show(f"## Painting: {steps} steps on one core, losses and a pair of spectrograms in the notebook's monitor", table(rows, {
        "steps / s (wall)": lambda r: f"{r['rate']:.0f}",
        "CPU us / step, training thread": lambda r: f"{r['thread_us']:.0f}",
        "other threads": lambda r: f"{r['beside_us']:.0f}", "all": lambda r: f"{r['process_us']:.0f}"}))
    plain, ours = find(rows, "no monitor"), find(rows, "Monitor, 1 Hz")
    if plain and ours:
        verdict("throughput lost, % of the wall",
                100*paired(plain, ours, "rate", lambda a, b: 1 - b/a), 5)
        verdict("CPU time added, %", 100*paired(ours, plain, "process_us", lambda a, b: a/b - 1), 5)


# ---- all together

PARTS = {"loop": part_loop, "checkpoint": part_checkpoint, "async": part_async,
         "decode": part_decode, "loader": part_loader, "painting": part_painting}


def main():
    parser = argparse.ArgumentParser(description="The engine beside other libraries, as Markdown")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: shows that everything runs, not how fast")
    parser.add_argument("--gigabytes", type=float, default=1., help="size of the checkpoint (default: 1)")
    parser.add_argument("--rounds", type=int, help="repetitions that count")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS): parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True) as folder:
        header("Engine benchmarks", LIBRARIES)
        for name in PARTS:
            if not args.parts or name in args.parts: PARTS[name](args, folder)


if __name__ == "__main__": main()
