"""Small tasks that exercise every part of the loop, importable by tests and by the processes they start.

As a program: python engine_tasks.py TASK FOLDER [key=value ...]  trains, with --resume auto, and exits like a command.
"""
import json, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import torch
from child_processes import Fork, forked_ranks

from audiolab.data import keyed_rng
from audiolab.data import Loader
from audiolab.training import Sample, Task, Trainer, TrainingConfig

RATE = 8000


class Hums:
    "A data set of noisy hums, keyed by (epoch, index)"
    sample_rate = RATE

    def __init__(self, items=40, length=128, fault=None):
        self.items, self.size, self.fault = items, length, fault
    def __len__(self): return self.items
    def name(self, index): return f"hum-{index}"
    def length(self, index): return self.size

    def item(self, index, epoch):
        if self.fault: self.fault(index, epoch)
        rng = keyed_rng(3, epoch, index)
        clean = np.sin(np.arange(self.size)*rng.uniform(.02, .2) + rng.uniform(0, 6))
        return {"audio": (clean + rng.normal(0, .5, self.size)).astype(np.float32),
                "clean": clean.astype(np.float32), "id": self.name(index), "index": index}


def network(width=4):
    return torch.nn.Sequential(torch.nn.Conv1d(1, width, 9, padding=4), torch.nn.BatchNorm1d(width),
                               torch.nn.GELU(), torch.nn.Dropout(.2),
                               torch.nn.Conv1d(width, 1, 9, padding=4))


class Denoise(Task):
    "Supervised: one optimizer, dropout, batch statistics"
    name = "denoise"

    def __init__(self, workers=0, items=40, fault=None, statistics=True, slow=0.):
        self.workers, self.items, self.fault, self.statistics, self.slow = (workers, items, fault,
                                                                            statistics, slow)

    def data(self, loop):
        return Loader(Hums(self.items, fault=self.fault), loop.config.batch_size, seed=loop.seed,
                      num_workers=self.workers,
                                        rank=loop.rank, world=loop.world, timeout=20)

    def setup(self, loop):
        net = network()
        # each item by itself, so that shares of a batch add up
        if not self.statistics: net = torch.nn.Sequential(net[0], net[2], net[4])
        self.net, loop.data = loop.module("net", net), self.data(loop)
        loop.optimizer("net", torch.optim.AdamW(net.parameters(), lr=3e-3))

    def step(self, batch, loop):
        if self.slow: time.sleep(self.slow)
        with loop.autocast():
            loss = (self.net(batch["audio"][:, None])[:, 0] - batch["clean"]).square().mean()
        loop.update("net", loss)
        return {"loss": loss}

    def validate(self, loop):
        item = Hums().item(0, 10**6)
        return {"loss": (loop.modules["net"](torch.tensor(item["audio"])[None, None])[0, 0] -
                         torch.tensor(item["clean"])).square().mean().item()}

    def sample(self, loop):
        item = Hums().item(0, 10**6)
        return [Sample("hum", loop.modules["net"](torch.tensor(item["audio"])[None, None])[
            0, 0].numpy(), RATE, item["clean"])]


class Adversarial(Denoise):
    "Two optimizers, their gradients kept apart, noise drawn in the step"
    name = "adversarial"

    def setup(self, loop):
        super().setup(loop)
        judge = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 9, stride=4), torch.nn.LeakyReLU(.1),
                                    torch.nn.Conv1d(4, 1, 3))
        self.judge = loop.module("judge", judge)
        loop.optimizer("judge", torch.optim.AdamW(judge.parameters(), lr=1e-3), clip_norm=5.)

    def step(self, batch, loop):
        noisy = batch["audio"][:, None] + .01*torch.randn(batch["audio"].shape)[:, None]
        made, clean = self.net(noisy), batch["clean"][:, None]
        loss_judge = (self.judge(clean) - 1).square().mean() + self.judge(
            made.detach()).square().mean()
        loop.update("judge", loss_judge)
        with loop.frozen("judge"):
            loss = (made - clean).square().mean() + .1*(loop.modules["judge"](made) -
                                                        1).square().mean()
        loop.update("net", loss)
        return {"loss": loss, "loss_judge": loss_judge}


class Counting(Denoise):
    "Writes down which items it saw, from a table or a stream"
    name = "counting"

    def __init__(self, stream=False, seen="", **k):
        super().__init__(statistics=False, **k)
        self.stream, self.seen = stream, seen

    def data(self, loop):
        if not self.stream: return super().data(loop)
        from audiolab.data import ExampleStream, StreamLoader
        items = Hums(self.items)
        return StreamLoader(
            ExampleStream(lambda epoch: (items.item(index, epoch) for index in range(self.items))),
            loop.config.batch_size, shuffle_buffer=16,
                            seed=loop.seed, rank=loop.rank, world=loop.world,
                            num_workers=self.workers, timeout=20)

    def step(self, batch, loop):
        with open(f"{self.seen}.{loop.rank}", "a") as file:
            file.write(json.dumps([loop.step, loop.epoch, batch["id"]]) + "\n")
        return super().step(batch, loop)


class Mixture(Task):
    "EM of two Gaussians: no optimizer, no batches; its whole state is its own"
    name = "mixture"

    def setup(self, loop):
        self.x = np.concatenate([np.random.default_rng(0).normal(m, 1, 200) for m in (-2, 1.5)])[
            loop.rank::loop.world]
        self.mean, self.weight = np.array([-.5, .5]), np.array([.5, .5])

    def step(self, batch, loop):
        log = np.log(self.weight) - (self.x[:, None] - self.mean)**2/2
        total = np.logaddexp.reduce(log, 1, keepdims=True)
        share = np.exp(log - total)
        sums = loop.place.sum(
            np.concatenate([share.sum(0), (share*self.x[:, None]).sum(0), [total.sum()]]))
        self.weight, self.mean = sums[:2]/sums[:2].sum(), sums[2:4]/sums[:2]
        return {"loss": -sums[4]}

    def weights(self, loop): return {"mean": self.mean, "weight": self.weight}, {}
    def load_weights(self, loop, tensors, metadata):
        self.mean, self.weight = tensors["mean"], tensors["weight"]


class Texts:
    "Texts of 1 to 9 tokens, in batches"
    def __init__(self, size, rank=0, world=1): self.size, self.rank, self.world = size, rank, world
    def __len__(self): return 120//self.size

    def batches(self, epoch, start=0):
        lengths = np.random.default_rng(epoch).permutation(120) % 9 + 1
        for n in range(start, len(self)):
            mine = lengths[n*self.size:(n + 1)*self.size][self.rank::self.world]
            yield {"lengths": torch.tensor(mine)}


class Words(Task):
    "The loss is a sum over tokens, of which batches hold different numbers"
    name = "words"

    def __init__(self): self.seen = []

    def setup(self, loop):
        self.net = loop.module("net", torch.nn.Linear(4, 1))
        loop.optimizer("net", torch.optim.SGD(self.net.parameters(), lr=.05))
        loop.data = Texts(loop.config.batch_size, loop.rank, loop.world)

    def count(self, batch): return int(batch["lengths"].sum())

    def loss(self, batch):
        tokens = torch.cat([torch.arange(length.item())/9 + length/9
                            for length in batch["lengths"]])
        return (self.net(torch.stack([tokens, tokens**2, tokens.sin(), tokens.cos()], 1))[:, 0] -
                tokens.exp()).square().sum()

    def step(self, batch, loop):
        loss, tokens = self.loss(batch), int(batch["lengths"].sum())
        self.seen.append((loop.step, tokens))
        loop.update("net", loss)
        return {"loss": loss/tokens}


TASKS = {task.name: task for task in (Denoise, Adversarial, Counting, Mixture, Words)}


def config(**changes):
    usual = dict(steps=40, batch_size=8, log_every=3, validate_every="7 steps", sample_every="11 steps", save_every="1 step", keep_last=0, ema_decay=.9,
                 clip_norm=1., warmup=.1, device="cpu", seed=5)
    return TrainingConfig(**usual | changes)


def rows(folder, kinds=("log", "validation", "epoch")):
    "The history without its clocks"
    from audiolab.training import read_history
    clocks = ("steps_per_second", "seconds_left", "memory", "seconds")
    return [(row["kind"], row["step"], row["epoch"],
             {k: v for k, v in row["values"].items() if k not in clocks and not k.startswith("share/")})
            for row in read_history(folder) if row["kind"] in kinds]


def state_of(path):
    "What of a checkpoint must be equal after a resume: everything except clocks"
    from audiolab.files import read_checkpoint
    from audiolab.files import unpack_state
    tensors, metadata = read_checkpoint(path)
    state = unpack_state(tensors, metadata)["training"]
    for key in ("seconds",): state.pop(key)
    flat = {name: value.tobytes() for name, value in tensors.items()}
    return flat, json.dumps(state, default=lambda value: None, sort_keys=True)


def start(task, folder, *words, launcher=(), **environment):
    "This file as a program, in a process of its own"
    environment = {"SAY": "1", "OMP_NUM_THREADS": "1"} | environment
    if not launcher: return Fork(program, task, folder, *words, **environment)
    command = [sys.executable, *launcher, __file__, task, str(folder), *words]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def torchrun(task, folder, *words, processes=2, **environment):
    "The same in several processes"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return start(task, folder, *words, launcher=launcher, **environment)


def pair(task, folder, *words):
    "The same in two processes that no launcher watches over"
    return forked_ranks(program, task, folder, *words, SAY="1")


def both_ended(ranks):
    "Exit codes, output and errors of both"
    codes, said, errors = zip(*map(ended, ranks))
    return list(codes), "".join(said), "".join(errors)


def ended(process, timeout=120):
    "Exit code, output and errors of a process, when it is over"
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def copy_run(source, target, step):
    "A run as it was on the disk after the save of a step"
    (target/"checkpoints").mkdir(parents=True)
    for path in (source/"checkpoints").glob("*.safetensors"):
        if path.stem == f"checkpoint_step_{step}":
            (target/"checkpoints"/path.name).write_bytes(path.read_bytes())
    (target/"history.jsonl").write_bytes((source/"history.jsonl").read_bytes())


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(.005)


def wait_for_line(process, start_of_line):
    for line in process.stdout:
        if line.startswith(start_of_line): return line
    raise AssertionError(process.stderr.read())


def alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


def program(name, folder, *rest):
    "Train, with what `key=value` words say; the exit code"
    torch.set_num_threads(1)
    if hasattr(signal, "SIGHUP"):  # nohup lets what it starts ignore it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    given = {key: json.loads(value) for key, value in (word.split("=", 1) for word in rest)}
    task = TASKS[name](**{key: given.pop(key) for key in ("workers", "items", "statistics", "slow",
                                                          "stream", "seen") if key in given})
    trainer = Trainer(task, config(**given), folder)
    if os.environ.get("SAY"):
        trainer.listeners.append(lambda event: print(event.kind, event.step, flush=True))
    return trainer.fit(resume="auto").exit_code


if __name__ == "__main__": sys.exit(program(*sys.argv[1:]))
