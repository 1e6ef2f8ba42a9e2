"""Damaged and hostile files of every kind that audiolab opens: a result or the documented error that names the file, in bounded
memory and time, with nothing run and nothing written outside.

The files are read in a worker process (this file as a program): it limits its own memory, watches what Python reports to audit
hooks, and can die without taking the tests along.
"""
import ast
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# --- what is done to files

NUMBERS = (b"-1", b"0", b"1", b"9" * 400, b"9" * 5000, b"1e999", b"-1e400", b"NaN", b"-Infinity", b"18446744073709551616", b"9223372036854775807",
           b"4294967296", b"2147483648", b"1099511627776", b"0.5", b"true", b"null", b'""', b"[]", b"{}", b"1_000", b"0x10", b"\xd9\xa3")
TEXTS = ("../../../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "\\\\host\\share", "nul", "con.wav", "a\0b", "A" * 300, "A" * 30_000, "\ud800", "", ".",
         "..", "~/x", "$(touch owned)", "!!python/object/apply:os.system ['touch owned']", "file:///etc/passwd", "\u202e", "\x1b[2J", "__class__",
         "{0.__class__}", "é" * 300, "/dev/zero", "/dev/stdin", "%s%n", "__metadata__", "training.step", "0x1p1024", "nan", "a/../../b", "x.safetensors")
MAGICS = (b"PK\x03\x04", b"\x80\x04\x95", b"RIFF", b"OggS", b"fLaC", b"ID3\x04\0\0\0\0\x7f\x7f", b"\x93NUMPY\x01\0", b"PAR1", b"<html>", b"#!/bin/sh\n",
          b"\xff\xfe", b"\xef\xbb\xbf", b"%YAML 1.1\n---\n")


def deep(rng):
    "Nesting, from harmless to absurd"
    depth, (opened, closed) = rng.choice((40, 300, 900, 20_000)), rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return opened * depth + (b"0" if opened != b"[" else b"") + closed * depth


def aliases():
    "A YAML document that means 9^8 words"
    return b"a0: &a0 x\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 9))


def span(rng, content, longest=64):
    "A region: the first bytes, the last and the middle come equally often"
    size = len(content)
    begin = rng.choice((rng.randrange(min(size, 64) + 1), rng.randrange(size + 1), max(0, size - rng.randrange(min(size, 64) + 1))))
    return begin, min(size, begin + rng.choice((1, 2, 4, 8, rng.randrange(longest) + 1)))


def replace_match(rng, pattern, content, new):
    found = list(re.finditer(pattern, content))
    if not found: return content + new
    match = rng.choice(found)
    return content[:match.start()] + new + content[match.end():]


def cut(rng, c, o): return c[:span(rng, c)[0]]
def flip(rng, c, o):
    c = bytearray(c)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if c: c[min(span(rng, c)[0], len(c) - 1)] ^= 1 << rng.randrange(8)
    return bytes(c)
def drop(rng, c, o): a, b = span(rng, c); return c[:a] + c[b:]
def repeat(rng, c, o): a, b = span(rng, c, 2000); return c[:b] + c[a:b] * rng.choice((1, 2, 50)) + c[b:]
def noise(rng, c, o): a, b = span(rng, c); return c[:a] + rng.randbytes(b - a) + c[b:]
def integer(rng, c, o):
    size, (a, _) = rng.choice((1, 2, 4, 8)), span(rng, c)
    return c[:a] + rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 7)).to_bytes(size, rng.choice(("little", "big"))) + c[a + size:]
def insert(rng, c, o):
    a, _ = span(rng, c)
    return c[:a] + rng.choice((b"\0", b"\0" * 4096, b"\xff" * 100, b"\n", b'"', b"}", b"]", b",", rng.randbytes(30), rng.choice(MAGICS))) + c[a:]
def splice(rng, c, o): other = rng.choice(o); return c[:span(rng, c)[0]] + other[span(rng, other)[0]:]
def number(rng, c, o): return replace_match(rng, rb"-?[0-9]+(\.[0-9]+)?", c, rng.choice(NUMBERS))
def text(rng, c, o):
    new = rng.choice(TEXTS)
    return replace_match(rng, rb'"[^"\n]*"', c, json.dumps(new).encode() if rng.random() < .7 else b'"' + new.encode("utf-8", "surrogatepass") + b'"')
def word(rng, c, o): return replace_match(rng, rb"[A-Za-z_./-]+", c, rng.choice(TEXTS).encode("utf-8", "surrogatepass"))
def nest(rng, c, o): return replace_match(rng, rb'"[^"\n]*"|-?[0-9]+', c, deep(rng))
def foreign(rng, c, o): return rng.choice((b"", rng.choice(MAGICS) + c, rng.choice(MAGICS), rng.randbytes(200), b"\0" * 3000, aliases(), deep(rng)))


BYTES = (cut, cut, flip, flip, drop, repeat, noise, integer, integer, insert, splice, foreign)
WORDS = (number, number, text, text, word, nest)


def damage(rng, content, others, operations=BYTES):
    for _ in range(rng.choice((1, 1, 1, 2, 4))): content = rng.choice(operations)(rng, content, others)
    return content[:1 << 21]


VALUES = (-1, 0, 1, 2, 7, 2**31, 2**53, 2**62, -2**63, 0.5, 1e300, True, False, None, [], {}, [[]], {"a": 1}, ["x"], *TEXTS)


def places(tree, here=()):
    "Every place in nested lists and dicts"
    yield here
    for key, item in (tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()): yield from places(item, (*here, key))


def hostile(rng, tree, values=VALUES):
    "A JSON tree with one thing in it replaced, removed, doubled or moved"
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = [place for place in places(tree) if place]
        if not found: return tree
        *way, last = rng.choice(found)
        holder = tree
        for key in way: holder = holder[key]
        act = rng.random()
        if act < .7: holder[last] = rng.choice(values)
        elif act < .8: del holder[last]
        elif act < .9 and isinstance(holder, dict): holder[rng.choice(TEXTS)] = holder[last]
        elif act < .9: holder.insert(0, holder[last])
        else:
            other = rng.choice(found)
            value = tree
            try:
                for key in other: value = value[key]
                holder[last] = json.loads(json.dumps(value))
            except (KeyError, IndexError, TypeError): pass
    return tree


class Payload:
    "What a pickle that is loaded carelessly does"
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return os.system, (f"echo owned > {self.marker}",)


def pickles(marker):
    "Files of many kinds with that pickle inside"
    made = {f"protocol {n}": pickle.dumps(Payload(marker), n) for n in range(6)}
    array = io.BytesIO(); np.save(array, np.array([Payload(marker)], dtype=object), allow_pickle=True); made["npy"] = array.getvalue()
    archive = io.BytesIO(); np.savez(archive, means=np.array([Payload(marker)], dtype=object)); made["npz"] = archive.getvalue()
    import torch
    model = io.BytesIO(); torch.save({"model": Payload(marker)}, model); made["pt"] = model.getvalue()
    old = io.BytesIO(); torch.save({"model": Payload(marker)}, old, _use_new_zipfile_serialization=False); made["old pt"] = old.getvalue()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file: file.writestr("archive/data.pkl", made["protocol 2"]); file.writestr(".metadata", made["protocol 2"])
    return made | {"zip": zipped.getvalue()}


# --- the files, and how each kind is read

class Kind:
    "Makes valid files, damages one of them, and reads the result through every public function that opens it"
    operations = BYTES
    forks, pipes = False, True  # may it start processes; is a pipe to be refused

    def __init__(self, folder):
        self.folder, self.done = folder, Counter()
        folder.mkdir(parents=True)
        self.seeds = self.make()

    def input(self, rng): return damage(rng, rng.choice(self.seeds), self.seeds, self.operations)
    def place(self, content): self.path.write_bytes(content)

    def tried(self, call, *errors, name=None):
        "Whether the call gave a result; if not, its error must be one of those documented and name the file"
        try: call()
        except errors as cause:
            said, names = str(cause), name if isinstance(name, tuple) else (name or self.path,)
            assert any(str(one) in said for one in names), f"{type(cause).__name__} does not name {names[0]}: {said[:300]}"
            assert len(said) < 20_000, f"the message has {len(said)} characters"
            self.done["refused"] += 1
            return False
        self.done["read"] += 1
        return True


class Checkpoints(Kind):
    "Bytes of a safetensors file"
    operations = BYTES + WORDS[:4]

    def make(self):
        import safetensors.numpy
        from audiolab.files import write_checkpoint
        from audiolab.files import save_state
        self.path, made = self.folder/"model.safetensors", self.folder/"made"
        tensors = {"means": np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3), "counts": np.arange(3), "on": np.array([True]), "none": np.zeros((0, 4))}
        seeds = [write_checkpoint(made, tensors, {"note": "text", "config": '{"a": [1, 2]}'}).read_bytes(),
                 save_state(made, {"step": 3, "rates": [.1, (1, 2)], "w": np.ones(3)}, {"kind": "state"}).read_bytes()]
        safetensors.numpy.save_file(tensors, made, {"format": "pt"})
        return [*seeds, made.read_bytes()]

    def use(self):
        from audiolab.files import (
            CheckpointError, inspect_checkpoint, read_checkpoint, verify_checkpoint,
        )
        from audiolab.files import load_state
        whole = self.tried(lambda: read_checkpoint(self.path), CheckpointError)
        for call in (load_state, lambda path: read_checkpoint(path, verify=False)): self.tried(lambda call=call: call(self.path), CheckpointError)
        self.tried(lambda: (str(inspect_checkpoint(self.path)), inspect_checkpoint(self.path)._repr_markdown_()), CheckpointError)
        report = []
        self.tried(lambda: report.append(verify_checkpoint(self.path)), CheckpointError)
        if report: assert str(self.path) in str(report[0]) and (whole or not report[0].ok)


class States(Kind):
    "A state tree that an attacker signed anew"

    def make(self):
        from collections import OrderedDict
        import torch
        from audiolab.files import pack_state
        self.path = self.folder/"state.safetensors"
        nest = {"step": 3, "big": 2**80, "rates": [.1, -0., (1, "two", None)], "w": np.ones((2, 3)), "t": torch.arange(3), 7: Counter({4: 2}),
                "o": OrderedDict(a=torch.zeros(2, dtype=torch.bfloat16)), "flag": True}
        self.tensors, self.notes = pack_state(nest)
        self.tree = json.loads(self.notes["audiolab.state"])
        return [b""]

    def input(self, rng):
        tensors, tree = dict(self.tensors), hostile(rng, self.tree)
        raw = json.dumps(tree)
        if rng.random() < .15: raw = damage(rng, raw.encode(), [raw.encode()], WORDS + BYTES).decode("utf-8", "replace")
        if rng.random() < .3: tensors.pop(rng.choice(list(tensors)))
        if rng.random() < .3: tensors[rng.choice(("w", "t", "o.a", "extra"))] = np.zeros(rng.choice(((), (0,), (3, 3))), rng.choice(("f4", "i8", "?", "u2")))
        return tensors, {"audiolab.state": re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "?", raw)}

    def place(self, made):
        from audiolab.files import write_checkpoint
        write_checkpoint(self.path, *made)

    def use(self):
        from audiolab.files import CheckpointError
        from audiolab.files import load_state
        self.tried(lambda: load_state(self.path), CheckpointError)


class Runs(Kind):
    "A training checkpoint that an attacker signed anew, resumed by the Trainer"

    def make(self):
        from audiolab.files import read_checkpoint
        from engine_tasks import Adversarial, Mixture, config
        from audiolab.training import Trainer
        self.task, self.settings, self.bases = {"adversarial": Adversarial, "mixture": Mixture}, config, []
        for name, task in self.task.items():
            for epochs in (1, 2):
                run = self.folder/f"{name}{epochs}"
                Trainer(task(), config(steps=2 + 3 * epochs, save_every="never", validate_every="2 steps"), run).fit()
                tensors, notes = read_checkpoint(run/"checkpoints"/"checkpoint_final.safetensors")
                self.bases.append((name, tensors, notes, json.loads(notes["audiolab.state"])))
        self.path, self.count = self.folder/"hostile.safetensors", 0
        return [b""]

    def input(self, rng):
        name, tensors, notes, tree = rng.choice(self.bases)
        tensors, notes = dict(tensors), dict(notes)
        if rng.random() < .7:
            body = hostile(rng, tree["tree"], (*VALUES, {"float": "nan"}, {"float": "inf"}, {"int": hex(2**70)}, {"tuple": []}, {"dict": []}, {"torch": "training.step"}))
            notes["audiolab.state"] = re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "?", json.dumps(tree | {"tree": body}))
        if rng.random() < .5:
            key = rng.choice(list(tensors)); value = tensors[key]
            act = rng.randrange(5)
            if act == 0: del tensors[key]
            elif act == 1: tensors[key] = value.reshape(-1)[:-1] if value.size else value
            elif act == 2: tensors[key] = value.astype(rng.choice(("f8", "i4", "?", "f2")))
            elif act == 3: tensors[rng.choice(("extra", "net.x", "training.x"))] = value
            else: tensors[key] = value[None]
        if rng.random() < .1: notes[rng.choice(("audiolab.task", "audiolab.run", "config"))] = rng.choice(("", "[]", "{", "[" * 500 + "]" * 500, '{"training": 3}', "adversarial"))
        return name, tensors, notes

    def place(self, made):
        from audiolab.files import write_checkpoint
        self.name = made[0]
        write_checkpoint(self.path, *made[1:])

    def use(self):
        from audiolab.files import CheckpointError
        from audiolab.training import NotFinite, Trainer
        run = self.folder/"resumed"
        shutil.rmtree(run, ignore_errors=True)
        trainer = Trainer(self.task[self.name](), self.settings(steps=10, save_every="2 steps", validate_every="3 steps"), run)
        try: self.tried(lambda: trainer.fit(resume=self.path), CheckpointError)
        except NotFinite: self.done["refused"] += 1  # weights that are not finite are a result of reading, and are told by the loop
        assert not (run/"run.lock").exists()


class Auto(Kind):
    "A run folder whose newest files are damaged: it goes on from the newest that is sound"
    operations = BYTES + WORDS[:4]

    def make(self):
        from engine_tasks import Denoise, config
        from audiolab.training import Trainer
        self.task, self.settings, self.whole, self.run = Denoise, config, self.folder/"whole", self.folder/"run"
        Trainer(Denoise(), config(steps=4, validate_every="2 steps"), self.whole).fit()
        self.files = [f"checkpoints/checkpoint_{name}.safetensors" for name in ("final", "step_4", "step_3")] + ["checkpoints/latest.json", "checkpoints/best.json",
                      "history.jsonl", "run.json", "config.yaml", "run.lock", "control"]
        (self.whole/"run.lock").write_text('{"pid": 4194305, "host": "elsewhere", "since": "x", "born": null}')
        (self.whole/"control").write_text("sample\n")
        self.path = self.run
        return [(self.whole/name).read_bytes() for name in self.files]

    def input(self, rng):
        chosen = rng.sample(range(len(self.files)), rng.randrange(1, len(self.files) + 1))
        return {self.files[n]: damage(rng, self.seeds[n], self.seeds, BYTES + WORDS if n > 2 else BYTES) for n in chosen}

    def place(self, made):
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.whole, self.run)
        (self.run/"run.lock").unlink()
        if isinstance(made, bytes): made = dict.fromkeys(self.files, made)
        for name, content in made.items(): (self.run/name).write_bytes(content)

    def use(self):
        from audiolab.files import verify_checkpoint
        from audiolab.training import RunLocked
        from audiolab.training import read_history
        from audiolab.training import Trainer
        trainer = Trainer(self.task(), self.settings(steps=6, validate_every="2 steps"), self.run)
        if not self.tried(lambda: trainer.fit(resume="auto"), RunLocked): return
        assert trainer.result.state in ("completed", "stopped") and (trainer.result.step == 6 or trainer.result.state == "stopped")
        start = [row for row in read_history(self.run) if row["kind"] == "start"][-1]
        assert start["values"]["resumed"] and start["step"] >= 2  # checkpoint_step_2 is always sound
        assert verify_checkpoint(self.run/"checkpoints"/"checkpoint_final.safetensors").ok


class Pointers(Kind):
    "latest.json and best.json"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.files import CheckpointFolder
        self.checkpoints = CheckpointFolder(self.folder/"run", metric="loss")
        for n in (1, 2): self.checkpoints.save(f"checkpoint_step_{n}", {"w": np.ones(2)}, metric_value=n)
        self.path = self.folder/"run"/"latest.json"
        return [self.path.read_bytes(), *(json.dumps({"file": text}).encode() for text in TEXTS)]

    def use(self):
        if self.path.is_file() and not self.path.is_symlink(): shutil.copyfile(self.path, self.folder/"run"/"best.json")
        inside = [None, *(self.folder/"run").glob("checkpoint_step_?.safetensors")]
        for which in ("latest", "best"): assert self.checkpoints.resolve(which) in inside
        assert self.checkpoints.resolve("auto").stem == "checkpoint_step_2"
        self.done["read"] += 1


class YamlConfigs(Kind):
    "Configurations"
    operations, name, pipes = BYTES + WORDS, "config.yaml", False  # a configuration may come through a pipe

    def make(self):
        from audiolab.config import save_config
        from audiolab.training import TrainingConfig
        self.path = self.folder/self.name
        save_config(TrainingConfig(steps=10, push="s3://bucket/run"), self.path)
        return [self.path.read_bytes(), b"steps: 3\n", aliases(), b"steps: !!python/object/apply:os.system ['touch owned']\n", b"steps: 1\nsteps: 2\n"][:5 if self.name.endswith("yaml") else 2]

    def use(self):
        from audiolab.config import load_config
        from audiolab.config import ConfigError
        from audiolab.training import TrainingConfig
        self.tried(lambda: load_config(TrainingConfig, self.path), ConfigError)


class JsonConfigs(YamlConfigs):
    name = "config.json"


def sounds(folder):
    "A few short files"
    from audiolab.audio import write_audio
    rng = np.random.default_rng(0)
    tone = (.3 * np.sin(np.arange(4000) * .1) + .01 * rng.standard_normal(4000)).astype(np.float32)
    (folder/"wavs").mkdir(exist_ok=True)
    return [write_audio(folder/"wavs"/f"{name}.wav", tone[:2000 + 500 * n], 8000) for n, name in enumerate("abc")]


class Manifests(Kind):
    "JSONL manifests, and the sound they name"
    operations, name = BYTES + WORDS, "clips.jsonl"

    def make(self):
        from audiolab.data import scan_audio, write_manifest
        self.path, _ = self.folder/self.name, sounds(self.folder)
        write_manifest(self.folder/"made.jsonl", scan_audio(self.folder, workers=0)[0])
        return [(self.folder/"made.jsonl").read_bytes(), b'{"audio": "wavs/a.wav", "start": 0.1, "duration": 0.05, "speaker": 7, "text": "words"}\n']

    def input(self, rng):
        if rng.random() < .5: return super().input(rng)
        rows = [json.loads(line) for line in rng.choice(self.seeds).splitlines()]
        return b"".join(json.dumps(row).encode() + b"\n" for row in hostile(rng, rows))

    def use(self):
        from audiolab.audio import AudioError
        from audiolab.data import DataError, read_manifest
        found = []
        if not self.tried(lambda: found.append(read_manifest(self.path)), DataError): return
        inside = os.path.realpath(self.folder)
        for index, clip in enumerate(found[0].clips):
            assert os.path.realpath(clip.path).startswith(inside), clip.path
            self.tried(lambda index=index, clip=clip: found[0].read(index, 0, min(clip.frames, 100)), AudioError, DataError, name=clip.path)


class Tables(Manifests):
    "Manifests of the form id|text|text"
    name = "metadata.csv"

    def make(self):
        self.path, _ = self.folder/self.name, sounds(self.folder)
        return [b"a|Text, one.|text one\nb|More \"text\"|more\nc|x|y|z\n"]

    def input(self, rng): return Kind.input(self, rng)


class Packed(Kind):
    "The index of a packed store, also signed anew, and its data files"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.data import PackedWriter
        self.path = self.folder/"store"/"index.json"
        with PackedWriter(self.path.parent, {"audio": ("int16", ()), "mel": ("float32", (4,))}, {"sample_rate": 8000}, {}) as writer:
            for n in range(3): writer.add(f"item{n}", {"audio": np.arange(50 + n, dtype=np.int16), "mel": np.ones((5 + n, 4), np.float32)}, {"text": "words"})
        self.files = sorted(path.name for path in self.path.parent.iterdir() if path.is_file() and path.suffix != ".lock")
        self.whole = {name: (self.path.parent/name).read_bytes() for name in self.files}
        return [self.whole["index.json"]]

    def input(self, rng):
        act = rng.random()
        if act < .3: return {"index.json": super().input(rng)}
        if act < .6: name = rng.choice([name for name in self.files if name != "index.json"]); return {name: damage(rng, self.whole[name], list(self.whole.values()))}
        from audiolab.data.packed_format import json_digest
        tree = hostile(rng, json.loads(self.whole["index.json"]))
        try:
            if rng.random() < .8: tree["fingerprint"] = json_digest({key: tree[key] for key in ("settings", "inputs")})
            tree.pop("digest"); tree["digest"] = json_digest(tree)
        except Exception: pass
        return {"index.json": json.dumps(tree).encode()}

    def place(self, made):
        if isinstance(made, bytes): made = {"index.json": made}
        for name, content in {**self.whole, **made}.items(): (self.path.parent/name).write_bytes(content)

    def use(self):
        from audiolab.data import DataError
        from audiolab.data import PackedClips, PackedStore
        found, folder = [], self.path.parent
        if not self.tried(lambda: found.append(PackedStore(folder)), DataError, name=folder): return
        store = found[0]
        if not self.tried(lambda: found.append(PackedClips(store)), DataError, name=folder): return
        for index in range(min(len(store), 5)):
            for call in (store.item, store.name, found[1].clip, lambda index: found[1].clip(index).frames and found[1].read(index, 0, 1)):
                self.tried(lambda call=call, index=index: call(index), DataError, name=folder)
        store.verify()


class Pulled(Kind):
    "The manifest of a run in a store, and the files it lists"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.remote import push
        run, self.store = self.folder/"run", self.folder/"store"
        (run/"checkpoints").mkdir(parents=True)
        for name in ("config.yaml", "checkpoints/a.safetensors", "history.jsonl"): (run/name).write_bytes(name.encode() * 5)
        push(run, self.store, progress=False)
        self.path = self.store/"manifest.json"
        return [self.path.read_bytes()]

    def input(self, rng):
        return json.dumps(hostile(rng, json.loads(self.seeds[0]))).encode() if rng.random() < .5 else super().input(rng)

    def use(self):
        from audiolab.remote import StorageError, pull
        shutil.rmtree(self.folder/"pulled", ignore_errors=True)
        before = set(self.folder.rglob("*"))
        self.tried(lambda: pull(self.store, self.folder/"pulled", progress=False, max_bytes=10**6, quiet=1, total=2), StorageError, name=self.store)
        new = set(self.folder.rglob("*")) - before
        assert all(path.is_relative_to(self.folder/"pulled") for path in new), new


class Histories(Kind):
    "history.jsonl"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.training import Event, event_line
        self.path = self.folder/"history.jsonl"
        rows = [Event("start", 0, 0, 0., {"folder": "run", "total_steps": 10, "config": {"a": [1]}}), Event("log", 5, 0, .5, {"loss": .25, "gradient_norm": float("nan"), "share/data": .1}),
                Event("validation", 5, 0, .6, {"loss": 1.}), Event("epoch", 5, 0, 1., {"train": {"loss": 2}, "validation": None, "seconds": 1., "best": True, "epochs": 3}),
                Event("log", 10, 1, 1.5, {"loss": .125}), Event("end", 10, 1, 2., {"state": "completed", "reason": "x"})]
        return ["".join(event_line(row) + "\n" for row in rows).encode()]

    def input(self, rng):
        if rng.random() < .5: return super().input(rng)
        return b"".join(json.dumps(row).encode() + b"\n" for row in hostile(rng, [json.loads(line) for line in self.seeds[0].splitlines()]) or [1])

    def use(self):
        from audiolab.training import Event, RunFolder, read_history
        rows = []
        if not self.tried(lambda: rows.extend(read_history(self.path)), FileNotFoundError): return
        for row in rows: Event(**row)
        RunFolder(self.folder).cut_history(7)
        kept = read_history(self.path)
        assert all(row["step"] <= 7 and row["kind"] != "end" for row in kept)
        assert repr(kept) == repr([row for row in rows if row["step"] <= 7 and row["kind"] not in ("end", "state")])
        self.done["read"] += 1


class Curves(Histories):
    "history.jsonl, drawn"
    def use(self):
        from audiolab.watch import plot_history
        assert plot_history(self.folder)._repr_png_()[0][:4] == b"\x89PNG"
        self.done["read"] += 1


class Starts(Kind):
    "run.json"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.training import RunFolder
        self.path, self.run = self.folder/"run.json", RunFolder(self.folder)
        self.run.begin(resumed=None, step=3); self.run.begin(step=4)
        return [self.path.read_bytes()]

    def use(self):
        from audiolab.files import CheckpointError
        if self.tried(lambda: self.run.begin(step=5), CheckpointError): assert self.run.starts()[-1]["step"] == 5  # refused where a folder has its name


class Controls(Kind):
    "The control file"
    operations = BYTES + (word,)

    def make(self):
        self.path = self.folder/"control"
        return [b"pause\n", b"stop\nsample\nsave\n", b"resume"]

    def use(self):
        from audiolab.training import Control
        control = Control(self.folder)
        assert control.poll() <= {"sample", "save"} and control.state in ("running", "paused", "stopping")
        self.done["read"] += 1


class Locks(Kind):
    "run.lock"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.training import RunLock
        self.path = self.folder/"run.lock"
        with RunLock(self.folder): return [self.path.read_bytes()]

    def input(self, rng):
        return json.dumps(hostile(rng, json.loads(self.seeds[0]))).encode() if rng.random() < .5 else super().input(rng)

    def use(self):
        from audiolab.training import (
            ControlConfig, ControlError, RunLock, RunLocked, control_command,
        )
        self.tried(lambda: control_command(ControlConfig(self.folder, "save", wait=0)), ControlError, name=self.folder)
        lock = RunLock(self.folder)
        self.tried(lambda: (lock.acquire(), lock.release()), RunLocked, OSError, name=self.folder)


class Archives(Kind):
    "Legacy .npz files"

    def make(self):
        self.path = self.folder/"model.npz"
        seeds = []
        for save in (np.savez, np.savez_compressed):
            made = io.BytesIO(); save(made, means=np.linspace(0, 1, 12).reshape(3, 4), names=np.array(["a", "b"]), flag=np.array(True)); seeds.append(made.getvalue())
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
            with file.open("zeros.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**24,)})
                for _ in range(128): stream.write(bytes(2**20))
        lie = io.BytesIO()
        with zipfile.ZipFile(lie, "w") as file:
            header = io.BytesIO(); np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (5 * 10**10,)})
            file.writestr("claim.npy", header.getvalue() + bytes(80)); file.writestr("../../x.npy", header.getvalue())
        return [*seeds, *seeds, lie.getvalue(), bomb.getvalue()]

    def input(self, rng):
        if rng.random() < .7: return super().input(rng)
        made = io.BytesIO()  # well-formed archives of hostile arrays
        with zipfile.ZipFile(made, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(rng.choice((1, 2, 3, 1500))):
                head = str({"descr": rng.choice(("<f4", "|O", ">i8", "|V8", [("a", "<f4")], "<M8[s]", "|S0", "<U9999999", "x" * 99)), "fortran_order": rng.choice((True, False, 1)),
                            "shape": rng.choice(((2,), (), (-1,), (2**62, 4), (2**33,), "x", (1,) * 40))})
                raw = b"\x93NUMPY" + bytes((rng.choice((1, 2, 3, 9)), 0)) + struct.pack("<H", len(head)) + head.encode() + rng.randbytes(rng.choice((0, 8, 100)))
                file.writestr(rng.choice(("a.npy", f"{_}.npy", "../a.npy", "/etc/x.npy", "a", "A" * 300 + ".npy", "é.npy")), raw)
        return made.getvalue()

    def use(self):
        from audiolab.files import CheckpointError
        from audiolab.files import read_npz
        self.tried(lambda: read_npz(self.path, max_bytes=2**26), CheckpointError)


class Sound(Kind):
    "Sound"
    ending = "wav"

    def make(self):
        from audiolab.audio import write_audio
        self.path, rate = self.folder/f"sound.{self.ending}", 8000
        tone = (.3 * np.sin(np.arange(6000) * .1) + .02 * np.random.default_rng(0).standard_normal((2, 6000))).astype(np.float32)
        return [write_audio(self.path, tone[:n], rate).read_bytes() for n in (1, 2)]

    def use(self):
        from audiolab.audio import AudioError, probe_audio, read_audio
        from audiolab.data import AudioFiles, Clip, DataError, scan_audio
        self.tried(lambda: probe_audio(self.path), AudioError)
        self.tried(lambda: read_audio(self.path, sample_rate=16_000, mono=True), AudioError)
        self.tried(lambda: read_audio(self.path, start=.1, duration=.05), AudioError)
        self.tried(lambda: AudioFiles([Clip("a", str(self.path), 8000, 1, 6000)]).read(0, 1000, 500), AudioError, DataError)
        files, report = scan_audio(self.folder, workers=0)
        assert len(files) + len(report.unreadable) == (not self.path.is_dir())  # a pipe is listed as unreadable


class Flac(Sound): ending = "flac"
class Ogg(Sound): ending = "ogg"
class Mp3(Sound): ending = "mp3"
class Opus(Sound): ending = "opus"


class Parquet(Kind):
    "Parquet files, and what lies in their cells"
    forks = True  # the library datasets may start helpers

    def make(self):
        import datasets
        from audiolab.audio import write_audio
        datasets.disable_progress_bars()
        self.datasets, self.path, self.turn = datasets, self.folder/"train.parquet", 0
        tone = (.3 * np.sin(np.arange(3000) * .1)).astype(np.float32)
        self.sounds = [write_audio(self.folder/f"a.{ending}", tone, 8000).read_bytes() for ending in ("wav", "flac", "mp3", "ogg")]
        datasets.Dataset.from_dict({"audio": [{"bytes": raw, "path": f"{n}.wav"} for n, raw in enumerate(self.sounds)], "text": list("abcd")}).cast_column("audio", datasets.Audio(decode=False)).to_parquet(self.path)
        return [self.path.read_bytes()]

    def input(self, rng):
        if rng.random() < .15: return super().input(rng)
        cells = [rng.choice(({"bytes": damage(rng, rng.choice(self.sounds), self.sounds), "path": rng.choice(TEXTS[:6] + ("x.wav", None))}, {"bytes": None, "path": rng.choice(TEXTS)},
                             {"bytes": b"", "path": None}, {"bytes": None, "path": "http://127.0.0.1:9/x.wav"}, {"bytes": None, "path": "zip://a::/etc/passwd"})) for _ in range(3)]
        return [{key: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for key, value in cell.items()} for cell in cells]

    def place(self, made):
        self.cells = made if isinstance(made, list) else None
        if not self.cells: self.turn += 1; self.path = self.folder/f"train{self.turn}.parquet"; self.path.write_bytes(made)

    def use(self):
        from audiolab.audio import AudioError
        from audiolab.data import DataError
        from audiolab.data import HubClips, HubStream, open_clips
        if self.cells:
            table = self.datasets.Dataset.from_dict({"audio": self.cells, "text": ["words"] * 3})
            stream = HubStream(table.to_iterable_dataset(), 8000)
            for row in stream.open(0, 0, 1): self.tried(lambda row=row: stream.item(row, 0), AudioError, DataError, name=(stream.name(row), row[2]["audio"]["path"]))
            clips = HubClips(table)
        else:
            found = []
            if not self.tried(lambda: found.append(open_clips(self.path)), DataError, AudioError): return
            clips = found[0]
        for index in range(min(len(clips), 5)):
            self.tried(lambda index=index: clips.clip(index), AudioError, DataError, name=(f"[{index}]", self.cells and self.cells[index]["path"]))
            self.tried(lambda index=index: clips.read(index, 0, 10), AudioError, DataError, name=(f"[{index}]", self.cells and self.cells[index]["path"]))


KINDS = {"checkpoint": Checkpoints, "state": States, "resumed checkpoint": Runs, "run folder": Auto, "pointer": Pointers, "config.yaml": YamlConfigs, "config.json": JsonConfigs,
         "manifest.jsonl": Manifests, "manifest.csv": Tables, "packed store": Packed, "store manifest": Pulled, "history": Histories, "curves": Curves, "run.json": Starts,
         "control": Controls, "run.lock": Locks, "npz": Archives, "wav": Sound, "flac": Flac, "ogg": Ogg, "mp3": Mp3, "opus": Opus, "parquet": Parquet}


# --- the worker

FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "os.fork", "os.forkpty", "shutil.unpack_archive")
CHANGES = ("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")


class Watch:
    "Notes what must not happen, by Python's audit events"
    def __init__(self, folder): self.folder, self.on, self.forks, self.seen = os.path.realpath(folder), False, False, []

    def inside(self, path, follow=True):
        if not isinstance(path, (str, bytes, os.PathLike)) or b"\0" in os.fsencode(path): return True  # a descriptor, or nothing
        path = os.path.abspath(os.fsdecode(path))
        where = os.path.realpath(path) if follow else os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        return where.startswith(self.folder) or where.startswith(("/dev/null", "/dev/shm/", "/proc/"))

    def __call__(self, event, arguments):
        if not self.on: return
        self.on = False
        try:
            if event in FORBIDDEN and not (self.forks and event in ("os.fork", "subprocess.Popen")): self.seen.append(f"{event} {str(arguments)[:200]}")
            elif event == "open":
                path, mode, flags = arguments
                if (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not self.inside(path): self.seen.append(f"wrote to {path!r:.200}")
            elif event in CHANGES and not all(self.inside(path, follow=False) for path in arguments[:2] if isinstance(path, (str, bytes))): self.seen.append(f"{event} {arguments!r:.200}")
            elif event == "exec" and not os.path.exists(name := arguments[0].co_filename) and not name.startswith("<frozen"): self.seen.append(f"exec of {name:.200}")
        except Exception as cause: self.seen.append(f"{event}: {cause!r}")
        finally: self.on = True


class Quiet(list):
    "Warnings are part of the interface and not of interest here"
    def write(self, text): return len(text)
    def flush(self): pass


def examine(kind, watch, content, label, findings):
    "Read one input; what is wrong with that goes to the findings"
    kind.place(content)
    watch.seen, watch.forks, watch.on = [], kind.forks, True
    began = time.process_time()
    try: kind.use()
    except Exception: findings.append(f"{label}: {''.join(traceback.format_exc()[-1500:])}")
    finally: watch.on = False
    seconds = time.process_time() - began
    if watch.seen: findings.append(f"{label}: {watch.seen[:3]}")
    if seconds > 10: findings.append(f"{label}: took {seconds:.1f} s")
    return seconds


def special(kind, watch, act, findings):
    "Pickles, and things that are no files, instead of damaged files"
    folder = kind.folder
    if act == "pickles":
        for name, content in pickles(folder/"owned").items(): examine(kind, watch, content, name, findings) if not isinstance(kind, (States, Runs)) else None
        if (folder/"owned").exists(): findings.append("a payload ran")
        return
    kind.place(kind.input(random.Random(0)) if isinstance(kind, (States, Runs, Parquet)) else kind.seeds[0])
    if kind.path.is_dir(): return
    place, kind.place = kind.place, lambda content: None  # what is to be read lies there already
    for what in ("pipe", "folder", "device", "loop") if kind.pipes else ("folder", "device", "loop"):
        if kind.path.is_dir() and not kind.path.is_symlink(): shutil.rmtree(kind.path)
        else: kind.path.unlink(missing_ok=True)
        if what == "pipe": os.mkfifo(kind.path)
        elif what == "folder": kind.path.mkdir()
        else: kind.path.symlink_to("/dev/zero" if what == "device" else kind.path.name)
        examine(kind, watch, b"", what, findings)
    kind.place = place


def worker(folder):
    import logging, resource
    folder = Path(folder)
    os.environ["HF_HOME"], os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"] = str(folder/"hf"), "1", "1"
    os.chdir(folder)
    import torch
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL); warnings.simplefilter("ignore")
    watch, kinds = Watch(folder), {}
    sys.addaudithook(watch)
    out, sys.stderr = sys.stdout, open(folder/"stderr.txt", "a")
    sys.stdout = sys.stderr
    os.dup2(sys.stderr.fileno(), 2)  # what decoders say
    for line in sys.stdin:
        name, act, seed, count = json.loads(line)
        if name not in kinds:
            kind = kinds[name] = KINDS[name](folder/re.sub(r"\W", "_", name))
            if not isinstance(kind, (States, Runs)): kind.place(kind.seeds[0]); kind.use() if not isinstance(kind, Auto) else None
        kind, rng, findings, slowest = kinds[name], random.Random(f"{name}{seed}"), [], 0.
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.path.exists("/proc/self/statm") else 2**34
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
        kind.done.clear()
        if act == "damage":
            for number in range(count):
                slowest = max(slowest, examine(kind, watch, kind.input(rng), f"{name}, seed {seed}, input {number}", findings))
                if len(findings) >= 5: break
        else: special(kind, watch, act, findings)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(json.dumps({"findings": findings, "done": dict(kind.done), "slowest": slowest}), file=out, flush=True)


class Worker:
    "A worker process, started again where it died"
    def __init__(self, folder): self.folder, self.process, self.starts = folder, None, 0

    def ask(self, kind, act="damage", seed=0, count=0, timeout=300):
        import select
        if self.process is None or self.process.poll() is not None:
            self.starts += 1
            place = self.folder/f"worker{self.starts}"; place.mkdir()
            self.process = subprocess.Popen([sys.executable, str(HERE/"test_fuzz.py"), str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                            env=os.environ | {"OMP_NUM_THREADS": "1", "CI": ""})
        self.process.stdin.write(json.dumps([kind, act, seed, count]) + "\n"); self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]: self.process.kill()
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            said = (self.folder/f"worker{self.starts}"/"stderr.txt")
            pytest.fail(f"{kind}, seed {seed}: the worker {'hung' if code == -9 else 'died'} ({code}): {said.read_text()[-2000:] if said.exists() else ''}")
        return json.loads(answer)

    def close(self):
        if self.process and self.process.poll() is None: self.process.stdin.close(); self.process.wait(20)


# --- the tests

pytestmark = pytest.mark.skipif(os.name == "nt", reason="optional: needs the resource module of Unix")
USUAL = {"checkpoint": 300, "state": 300, "resumed checkpoint": 60, "run folder": 15, "pointer": 150, "config.yaml": 150, "config.json": 200, "manifest.jsonl": 300, "manifest.csv": 200,
         "packed store": 200, "store manifest": 60, "history": 200, "curves": 5, "run.json": 60, "control": 100, "run.lock": 150, "npz": 150, "wav": 60, "flac": 60, "ogg": 60, "mp3": 60, "opus": 30, "parquet": 25}


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    worker = Worker(tmp_path_factory.mktemp("fuzz"))
    yield worker
    worker.close()


def check(answer, kind, count):
    assert not answer["findings"], "\n\n".join(answer["findings"])
    assert sum(answer["done"].values()) >= count, answer


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "parquet"])
def test_damaged_files(fuzzer, kind):
    "A result, or the documented error with the file's name"
    answer = fuzzer.ask(kind, count=USUAL[kind])
    check(answer, kind, USUAL[kind])
    if kind in ("checkpoint", "state", "resumed checkpoint", "config.yaml", "config.json", "manifest.jsonl", "manifest.csv", "packed store", "store manifest", "npz", "wav", "flac", "mp3"):
        assert answer["done"].get("refused") and answer["done"].get("read"), answer  # neither everything nor nothing is refused


def test_damaged_tables(fuzzer):
    pytest.importorskip("datasets", reason="needs the package datasets: pip install 'audiolab[hf]'")
    check(fuzzer.ask("parquet", count=USUAL["parquet"]), "parquet", USUAL["parquet"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("state", "resumed checkpoint", "curves", "parquet")])
def test_pickles_never_run(fuzzer, kind):
    "Payloads that would create a file, given to every public function that opens a file"
    check(fuzzer.ask(kind, "pickles"), kind, 5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("run folder", "curves", "parquet", "state", "resumed checkpoint")])
def test_pipes_folders_and_devices(fuzzer, kind):
    "What is no file is refused or passed over at once"
    answer = fuzzer.ask(kind, "others", timeout=60)
    assert not answer["findings"], "\n\n".join(answer["findings"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_campaign(tmp_path, capsys):
    "Tens of thousands of damaged files"
    many = Counter({"checkpoint": 5000, "state": 5000, "resumed checkpoint": 600, "run folder": 150, "pointer": 1000, "config.yaml": 1500, "config.json": 3000,
                    "manifest.jsonl": 4000, "manifest.csv": 3000, "packed store": 3000, "store manifest": 800, "history": 2500, "curves": 40, "run.json": 500, "control": 2000,
                    "run.lock": 2000, "npz": 2500, "wav": 1500, "flac": 1500, "ogg": 1500, "mp3": 1500, "opus": 500, "parquet": 300})
    worker, lines, findings = Worker(tmp_path), [], []
    for kind, count in many.items():
        if kind == "parquet": pytest.importorskip("datasets", reason="needs the package datasets: pip install 'audiolab[hf]'")
        answer = worker.ask(kind, seed=1, count=count, timeout=1500)
        findings += answer["findings"]
        lines.append(f"{kind:20} {count:7,} files; calls that gave a result {answer['done'].get('read', 0):7,}, a documented error {answer['done'].get('refused', 0):7,}; slowest {answer['slowest']:.2f} s")
        with capsys.disabled(): print(f"\n{lines[-1]}", end="", flush=True)
    worker.close()
    with capsys.disabled(): print(f"\n{many.total():,} damaged files", flush=True)
    assert not findings, "\n\n".join(findings)


def test_nothing_in_the_package_can_run_what_it_reads():
    "No unpickling, no eval or exec, no shell, no unsafe option of a library, anywhere in the package"
    import audiolab
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "codeop", "runpy", "imp"}
    names = {"eval", "exec", "compile", "__import__", "execfile"}
    attributes = {("os", "system"), ("os", "popen"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("torch", "load"), ("np", "load"), ("numpy", "load"), ("subprocess", "getoutput")}
    options = {("shell", True), ("allow_pickle", True), ("weights_only", False), ("trust_remote_code", True)}
    found = []
    for path in sorted(Path(audiolab.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        restricted = {call.func for call in ast.walk(tree) if isinstance(call, ast.Call) and any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)}
        for node in ast.walk(tree):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import): found += [f"{where} import {a.name}" for a in node.names if a.name.split(".")[0] in modules]
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in modules: found.append(f"{where} from {node.module}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names: found.append(f"{where} {node.func.id}(")
            if node in restricted: continue  # torch.load of weights only, which the loader of published models calls after it has looked at the pickle itself
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and (node.value.id, node.attr) in attributes: found.append(f"{where} {node.value.id}.{node.attr}")
            if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant) and (node.arg, node.value.value) in options: found.append(f"{where} {node.arg}={node.value.value}")
    assert not found
    assert len(list(Path(audiolab.__file__).parent.rglob("*.py"))) > 20  # it did look


if __name__ == "__main__": worker(sys.argv[1])
