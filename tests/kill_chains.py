"""Chains of kills: a run is killed with kill -9 at random instants, and started until it ends.

As a program: python kill_chains.py KIND FOLDER SOUNDS  trains to the end, from wherever it stands.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tts_runs
import voice_runs
from child_processes import children_of
from engine_tasks import Adversarial, alive, config, rows, state_of
from snac_runs import fit, forked, over, settings

from audiolab.files import CheckpointFolder, verify_checkpoint
from audiolab.remote import pull
from audiolab.ssgs import train_model
from audiolab.training import Trainer, TrainingConfig, read_history
from audiolab.vocoder import MelFormat, VocoderConfig, VocoderModel, train_vocoder

PATIENCE = 300  # s, for a busy machine
TOLD = "log", "validation", "epoch", "sample"


# what is trained: a function each, which goes on from wherever the folder stands

def adversarial(folder, sounds):
    Trainer(Adversarial(), config(steps=60, log_every=1, save_every="3 steps", keep_last=3),
            folder).fit("auto")


def vocoder(folder, sounds, **changes):
    usual = dict(steps=24, batch_size=4, device="cpu", log_every=1, validate_every="5 steps",
                 sample_every="7 steps", save_every="2 steps", keep_last=3, ema_decay=.9,
                 warmup=.3, clip_norm=5.)
    train_vocoder(VocoderConfig(
        folders=(str(sounds),), output=str(folder), resume="auto", segment_seconds=.2,
        windows=(512, 256), mel=MelFormat(n_mels=40, n_fft=512, hop_length=128),
        model=VocoderModel(12, hidden=24, blocks=1, draft_rounds=2, polish_rounds=1,
                           extra_rounds=2),
        training=TrainingConfig(**usual | changes)))


def pushed_vocoder(folder, sounds): vocoder(folder, sounds, push=str(store_of(folder)))


def store_of(folder): return folder.with_name(f"{folder.name}-store")


def states(folder, sounds, **changes):
    usual = dict(n_states=4, n_em_iterations=6, checkpoint_interval=1, tolerance=0.)
    train_model(sorted(sounds.iterdir())[:3], checkpoint_dir=folder, resume_from="auto",
                **usual | changes)


def codec(folder, sounds, **more):
    training = {"steps": 10, "keep_last": 3, "validate_every": "3 steps", "sample_every": "5 steps"}
    fit(settings(folder, sounds, {
        "training": training, "codebooks": {"restart_after": 1.},
        "data": {"validation": .2, "validation_clips": 1, "validation_seconds": .1}}, more), "auto")


def encoder(folder, sounds):
    lessons = sounds.with_name("lessons")
    if not lessons.exists(): voice_runs.small_lessons(lessons)
    voice_runs.fit(voice_runs.settings(lessons, folder, epochs=4, keep_checkpoints=3, training={
        "save_every": "2 steps", "sample_every": "never"}), "auto")


def reader(folder, sounds):
    corpus = sounds.with_name("letters")
    if not (corpus/"am"/"cache.json").exists(): tts_runs.small_cache(corpus)
    tts_runs.fit(tts_runs.settings(corpus, folder, epochs=4, keep_last=3, save_every="2 steps"),
                 "auto")


@dataclass(frozen=True)
class Kind:
    "A kind of training, and what it leaves."
    train: object  # called with the run folder and the folder of sounds
    last: str = "checkpoints/checkpoint_final.safetensors"
    results: tuple = ("model_final.safetensors", "best_model.safetensors")  # equal byte for byte
    share: float = 1.  # of the kills of a campaign
    processes: int = 1  # that share the work
    torchrun: bool = False  # who starts them; else they are forked
    pushed: bool = False  # to a store, which is pulled from


_SSGS = "model_final.npz", "training_history.json", "test_generation.wav"
_VOICE = "model_final.safetensors", "best_model.safetensors", "test_metrics.json"
_SNAC = "model_final.safetensors", "best_model.safetensors", "pytorch_model.bin", "config.json"
KINDS = {
    "two optimizers": Kind(adversarial),
    "vocoder": Kind(vocoder, share=2),
    "vocoder, 2 workers": Kind(partial(vocoder, num_workers=2)),
    "vocoder, pushed": Kind(pushed_vocoder, share=2, pushed=True),
    "vocoder, 2 processes": Kind(vocoder, processes=2),
    "vocoder, torchrun": Kind(vocoder, share=.4, processes=2, torchrun=True),
    "ssgs": Kind(states, "checkpoint_final.safetensors", _SSGS, 2),
    "ssgs, online": Kind(partial(states, mode="online", n_em_iterations=12, tolerance=.1),
                         "checkpoint_final.safetensors", _SSGS),
    "snac": Kind(codec, "snac_16khz_final.safetensors", _SNAC, 2),
    "snac, ema, accumulated": Kind(partial(codec, codebooks={"mode": "ema"},
                                           training={"accumulate": 2}),
                                   "snac_16khz_final.safetensors", _SNAC),
    "voice": Kind(encoder, "final_checkpoint.safetensors", _VOICE, 2),
    "tts": Kind(reader, share=2),
}


# a run, in a process of its own or in several

class Start:
    "A start of a run, which can be killed"

    def __init__(self, name, folder, sounds):
        self.kind, self.log = KINDS[name], folder.with_name("log.txt")
        words = name, folder, sounds
        if self.kind.torchrun:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            with open(self.log, "ab") as log:
                command = [sys.executable, *launcher, __file__, *map(str, words)]
                pids = [subprocess.Popen(command, stdout=log, stderr=log).pid]
        else:
            port, world = free_port(), self.kind.processes
            pids = forked(*(partial(train_as, rank, world, port, self.log, *words)
                            for rank in range(world)))
        self.codes = dict.fromkeys(pids)  # None: it goes on

    def wait(self, seconds=PATIENCE):
        "The exit code, that of a failure if there is one; None if it goes on"
        until = time.monotonic() + seconds
        for pid, code in self.codes.items():
            if code is None: self.codes[pid] = over(pid, max(until - time.monotonic(), 0))
        codes = self.codes.values()
        return None if None in codes else next(filter(None, codes), 0)

    def kill(self, victim):
        "kill -9, of several processes to all, the launcher or one rank. The code when all are over"
        first, *others = self.codes
        ranks = children_of(first) if self.kind.torchrun else [first, *others]
        chosen = {"launcher": [first], "rank": ranks[-1:]}.get(victim) or {*ranks, *self.codes}
        for pid in chosen:
            if self.codes.get(pid) is None: kill(pid)
        if self.wait(10) is None:  # as a launcher does, that sees one of them end
            for pid, code in self.codes.items():
                if code is None: kill(pid, signal.SIGTERM)
        code, until = self.wait(120), time.monotonic() + 60
        assert code is not None, f"processes outlive the kill of {victim}"
        while self.kind.torchrun and any(map(alive, ranks)):
            assert time.monotonic() < until, f"a rank outlives the kill of {victim}"
            time.sleep(.02)
        return code


def kill(pid, number=signal.SIGKILL):
    try: os.kill(pid, number)
    except ProcessLookupError: pass


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train_as(rank, world, port, log, name, folder, sounds):
    "In a process that was forked: what it says goes to a file"
    with open(log, "ab", buffering=0) as file:
        for number in (1, 2): os.dup2(file.fileno(), number)
    if world > 1: os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                                    MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train(name, folder, sounds)


def train(name, folder, sounds):
    torch.set_num_threads(1)
    KINDS[name].train(folder, sounds)


# when

def any_instant(start, folder, rng, lasts, last): return start.wait(rng.uniform(0, .7)*lasts)


def while_saving(start, folder, rng, lasts, last):
    "Soon after a file has been begun, some time"
    code = start.wait(rng.uniform(0, .7)*lasts)
    until = time.monotonic() + lasts
    while code is None and time.monotonic() < until:
        if any(".tmp-" in name for _, _, names in os.walk(folder) for name in names): break
        code = start.wait(.001)
    return code if code is not None else start.wait(rng.uniform(0, .01))


def at_the_end(start, folder, rng, lasts, last):
    "Soon after the row of the last step"
    history, row, code = folder/"history.jsonl", f'"log", "step": {last},'.encode(), None
    until = time.monotonic() + PATIENCE
    while code is None and not (history.exists() and row in history.read_bytes()):
        assert time.monotonic() < until, "the last step does not come"
        code = start.wait(.002)
    return code if code is not None else start.wait(rng.uniform(0, .1))


AIMS = {any_instant: .5, while_saving: .25, at_the_end: .25}


class Chain:
    "One run, killed again and again"

    def __init__(self, name, folder, sounds, whole, rng):
        self.name, self.kind, self.folder, self.sounds = name, KINDS[name], folder, sounds
        self.whole, self.rng, self.kills = whole, rng, []

    def run(self, most):
        "Kill it at most so many times, and let it end; AssertionError where it is not equal"
        while not self._start_and_kill(len(self.kills) < most): self._check_store()
        self._check_end()

    def _start_and_kill(self, killing):
        "Whether it came to its end"
        began, start = time.monotonic(), Start(self.name, self.folder, self.sounds)
        aim = list(AIMS)[self.rng.choice(len(AIMS), p=list(AIMS.values()))]
        lasts = self.whole.seconds / (1 + len(self.kills) % 3)
        if killing: code = aim(start, self.folder, self.rng, lasts, self.whole.step)
        else: code = start.wait()
        if code is None and killing:
            victim = self.rng.choice(["all", "launcher", "rank"])
            if (code := start.kill(victim)) != 0:
                self.kills.append((aim.__name__, self._step(), str(victim)))
                return False
        assert code == 0, f"exit code {code}: {start.log.read_text()[-1500:]}"
        if killing: self.whole.took(time.monotonic() - began, not self.kills)
        return True

    def _step(self):
        try: return read_history(self.folder)[-1]["step"]
        except (OSError, IndexError): return 0

    def _check_store(self):
        "What was pushed so far is a run; now and then it is all that is left of it"
        far = store_of(self.folder)
        if not (far/"manifest.json").exists(): return
        back = self.folder.with_name("back")
        pull(str(far), back, progress=False)
        newest = json.loads((back/"checkpoints"/"latest.json").read_text())["file"]
        assert verify_checkpoint(back/"checkpoints"/newest).ok
        if self.rng.random() < .3: shutil.rmtree(self.folder), back.rename(self.folder)
        else: shutil.rmtree(back)

    def _check_end(self):
        one, other, kind = self.whole.folder, self.folder, self.kind
        end = read_history(other)[-1]
        assert end["kind"] == "end" and end["values"]["state"] == "completed", f"it ends with {end}"
        weights, training = zip(state_of(one/kind.last), state_of(other/kind.last))
        assert weights[0].keys() == weights[1].keys(), "tensors of other names"
        differ = [name for name, value in weights[0].items() if value != weights[1][name]]
        assert not differ, f"{len(differ)} tensors differ, such as {differ[0]}"
        assert training[0] == training[1], f"states differ: {first_difference(*training)}"
        a, b = rows(one, TOLD), rows(other, TOLD)
        assert a == b, f"histories differ: {[x for x in a if x not in b][:3]} became " \
                       f"{[x for x in b if x not in a][:3]}, {len(a)} rows {len(b)}"
        for name in kind.results:
            assert (one/name).read_bytes() == (other/name).read_bytes(), f"{name} differs"
        assert CheckpointFolder((other/kind.last).parent).resolve("auto") == other/kind.last
        left = [path.name for path in other.rglob("*") if ".tmp-" in path.name]
        assert not left, f"temporary files are left: {left}"
        if not kind.pushed: return
        assert (store_of(other)/"manifest.json").exists(), "nothing was pushed"
        self._check_pulled(pull(str(store_of(other)), other.with_name("back"), progress=False))

    def _check_pulled(self, back):
        for name in (self.kind.last, *self.kind.results):
            assert (back/name).read_bytes() == (self.folder/name).read_bytes(), f"pushed {name}"
        shutil.rmtree(back)


def first_difference(a, b):
    n = next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return f"{a[max(n - 80, 0):n + 80]} | {b[max(n - 80, 0):n + 80]}"


class Whole:
    "A run that nobody disturbs: what the others must be equal to"

    def __init__(self, name, folder, sounds):
        self.folder, began = folder, time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)
        if KINDS[name].processes > 1: assert Start(name, folder, sounds).wait() == 0
        else:  # here, so that what is forked finds all that it needs
            with open(os.devnull, "w") as log, redirect_stderr(log), redirect_stdout(log):
                train(name, folder, sounds)
        self.seconds, self.step = time.monotonic() - began, read_history(folder)[-1]["step"]

    def took(self, seconds, whole):
        "One that was to be killed ended before: kill earlier from now on"
        self.seconds = seconds if whole else .7*self.seconds


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
