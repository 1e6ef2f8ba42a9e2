"The files of a run and its settings, and how each kind is read."
import json
import re
import shutil
from collections import Counter

import numpy as np

from fuzz_damage import aliases, BYTES, damage, hostile, TEXTS, VALUES, word, WORDS


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
            assert any(str(one) in said
                       for one in names), f"{type(cause).__name__} does not name {names[0]}: {said[:300]}"
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
        tensors = {"means": np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3),
                   "counts": np.arange(3), "on": np.array([True]), "none": np.zeros((0, 4))}
        seeds = [write_checkpoint(made, tensors,
                                  {"note": "text", "config": '{"a": [1, 2]}'}).read_bytes(),
                 save_state(made, {"step": 3, "rates": [.1, (1, 2)], "w": np.ones(3)},
                            {"kind": "state"}).read_bytes()]
        safetensors.numpy.save_file(tensors, made, {"format": "pt"})
        return [*seeds, made.read_bytes()]

    def use(self):
        from audiolab.files import (
            CheckpointError, inspect_checkpoint, read_checkpoint, verify_checkpoint,
        )
        from audiolab.files import load_state
        whole = self.tried(lambda: read_checkpoint(self.path), CheckpointError)
        for call in (load_state, lambda path: read_checkpoint(path, verify=False)):
            self.tried(lambda call=call: call(self.path), CheckpointError)
        self.tried(lambda: (str(inspect_checkpoint(self.path)),
                            inspect_checkpoint(self.path)._repr_markdown_()), CheckpointError)
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
        nest = {"step": 3, "big": 2**80, "rates": [.1, -0., (1, "two", None)], "w": np.ones((2, 3)),
                "t": torch.arange(3), 7: Counter({4: 2}),
                "o": OrderedDict(a=torch.zeros(2, dtype=torch.bfloat16)), "flag": True}
        self.tensors, self.notes = pack_state(nest)
        self.tree = json.loads(self.notes["audiolab.state"])
        return [b""]

    def input(self, rng):
        tensors, tree = dict(self.tensors), hostile(rng, self.tree)
        raw = json.dumps(tree)
        if rng.random() < .15:
            raw = damage(rng, raw.encode(), [raw.encode()], WORDS + BYTES).decode("utf-8",
                "replace")
        if rng.random() < .3: tensors.pop(rng.choice(list(tensors)))
        if rng.random() < .3:
            tensors[rng.choice(("w", "t", "o.a", "extra"))] = np.zeros(rng.choice(((), (0,),
                (3, 3))), rng.choice(("f4", "i8", "?", "u2")))
        return tensors, {"audiolab.state": re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "?",
                                                  raw)}

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
        self.task, self.settings, self.bases = {"adversarial": Adversarial,
                                                "mixture": Mixture}, config, []
        for name, task in self.task.items():
            for epochs in (1, 2):
                run = self.folder/f"{name}{epochs}"
                Trainer(task(), config(steps=2 + 3 * epochs, save_every="never",
                                       validate_every="2 steps"), run).fit()
                tensors, notes = read_checkpoint(run/"checkpoints"/"checkpoint_final.safetensors")
                self.bases.append((name, tensors, notes, json.loads(notes["audiolab.state"])))
        self.path, self.count = self.folder/"hostile.safetensors", 0
        return [b""]

    def input(self, rng):
        name, tensors, notes, tree = rng.choice(self.bases)
        tensors, notes = dict(tensors), dict(notes)
        if rng.random() < .7:
            body = hostile(rng, tree["tree"],
                           (*VALUES, {"float": "nan"}, {"float": "inf"}, {"int": hex(2**70)},
                            {"tuple": []}, {"dict": []}, {"torch": "training.step"}))
            notes["audiolab.state"] = re.sub("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "?",
                                             json.dumps(tree | {"tree": body}))
        if rng.random() < .5:
            key = rng.choice(list(tensors))
            value = tensors[key]
            act = rng.randrange(5)
            if act == 0: del tensors[key]
            elif act == 1: tensors[key] = value.reshape(-1)[:-1] if value.size else value
            elif act == 2: tensors[key] = value.astype(rng.choice(("f8", "i4", "?", "f2")))
            elif act == 3: tensors[rng.choice(("extra", "net.x", "training.x"))] = value
            else: tensors[key] = value[None]
        if rng.random() < .1:
            notes[rng.choice(("audiolab.task", "audiolab.run", "config"))] = rng.choice(("", "[]",
                "{", "[" * 500 + "]" * 500, '{"training": 3}', "adversarial"))
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
        trainer = Trainer(self.task[self.name](),
                          self.settings(steps=10, save_every="2 steps", validate_every="3 steps"),
                          run)
        try: self.tried(lambda: trainer.fit(resume=self.path), CheckpointError)
        # weights that are not finite are a result of reading, and are told by the loop
        except NotFinite: self.done["refused"] += 1
        assert not (run/"run.lock").exists()


class Auto(Kind):
    "A run folder whose newest files are damaged: it goes on from the newest that is sound"
    operations = BYTES + WORDS[:4]

    def make(self):
        from engine_tasks import Denoise, config
        from audiolab.training import Trainer
        self.task, self.settings = Denoise, config
        self.whole, self.run = self.folder/"whole", self.folder/"run"
        Trainer(Denoise(), config(steps=4, validate_every="2 steps"), self.whole).fit()
        self.files = [f"checkpoints/checkpoint_{name}.safetensors"
                      for name in ("final", "step_4", "step_3")] + ["checkpoints/latest.json",
                          "checkpoints/best.json",
                      "history.jsonl", "run.json", "config.yaml", "run.lock", "control"]
        (self.whole/"run.lock").write_text('{"pid": 4194305, "host": "elsewhere", "since": "x", "born": null}')
        (self.whole/"control").write_text("sample\n")
        self.path = self.run
        return [(self.whole/name).read_bytes() for name in self.files]

    def input(self, rng):
        chosen = rng.sample(range(len(self.files)), rng.randrange(1, len(self.files) + 1))
        return {self.files[n]: damage(rng, self.seeds[n], self.seeds, BYTES + WORDS
                                      if n > 2 else BYTES) for n in chosen}

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
        assert (trainer.result.state in ("completed", "stopped")
                and (trainer.result.step == 6 or trainer.result.state == "stopped"))
        start = [row for row in read_history(self.run) if row["kind"] == "start"][-1]
        # checkpoint_step_2 is always sound
        assert start["values"]["resumed"] and start["step"] >= 2
        assert verify_checkpoint(self.run/"checkpoints"/"checkpoint_final.safetensors").ok


class Pointers(Kind):
    "latest.json and best.json"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.files import CheckpointFolder
        self.checkpoints = CheckpointFolder(self.folder/"run", metric="loss")
        for n in (1, 2):
            self.checkpoints.save(f"checkpoint_step_{n}", {"w": np.ones(2)}, metric_value=n)
        self.path = self.folder/"run"/"latest.json"
        return [self.path.read_bytes(), *(json.dumps({"file": text}).encode() for text in TEXTS)]

    def use(self):
        if self.path.is_file() and not self.path.is_symlink():
            shutil.copyfile(self.path, self.folder/"run"/"best.json")
        inside = [None, *(self.folder/"run").glob("checkpoint_step_?.safetensors")]
        for which in ("latest", "best"): assert self.checkpoints.resolve(which) in inside
        assert self.checkpoints.resolve("auto").stem == "checkpoint_step_2"
        self.done["read"] += 1


class YamlConfigs(Kind):
    "Configurations"
    # a configuration may come through a pipe
    operations, name, pipes = BYTES + WORDS, "config.yaml", False

    def make(self):
        from audiolab.config import save_config
        from audiolab.training import TrainingConfig
        self.path = self.folder/self.name
        save_config(TrainingConfig(steps=10, push="s3://bucket/run"), self.path)
        return [self.path.read_bytes(), b"steps: 3\n", aliases(),
                b"steps: !!python/object/apply:os.system ['touch owned']\n",
                b"steps: 1\nsteps: 2\n"][:5 if self.name.endswith("yaml") else 2]

    def use(self):
        from audiolab.config import load_config
        from audiolab.config import ConfigError
        from audiolab.training import TrainingConfig
        self.tried(lambda: load_config(TrainingConfig, self.path), ConfigError)


class JsonConfigs(YamlConfigs):
    name = "config.json"


class Histories(Kind):
    "history.jsonl"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.training import Event, event_line
        self.path = self.folder/"history.jsonl"
        rows = [Event("start", 0, 0, 0., {"folder": "run", "total_steps": 10,
                                          "config": {"a": [1]}}),
                                          Event("log", 5, 0, .5,
                                                {"loss": .25, "gradient_norm": float("nan"),
                                                 "share/data": .1}),
                Event("validation", 5, 0, .6, {"loss": 1.}),
                Event("epoch", 5, 0, 1., {"train": {"loss": 2}, "validation": None, "seconds": 1.,
                                          "best": True, "epochs": 3}),
                Event("log", 10, 1, 1.5, {"loss": .125}),
                Event("end", 10, 1, 2., {"state": "completed", "reason": "x"})]
        return ["".join(event_line(row) + "\n" for row in rows).encode()]

    def input(self, rng):
        if rng.random() < .5: return super().input(rng)
        return b"".join(json.dumps(row).encode() + b"\n"
                        for row in hostile(rng,
                                           [json.loads(line)
                                            for line in self.seeds[0].splitlines()]) or [1])

    def use(self):
        from audiolab.training import Event, RunFolder, read_history
        rows = []
        if not self.tried(lambda: rows.extend(read_history(self.path)), FileNotFoundError): return
        for row in rows: Event(**row)
        RunFolder(self.folder).cut_history(7)
        kept = read_history(self.path)
        assert all(row["step"] <= 7 and row["kind"] != "end" for row in kept)
        assert repr(kept) == repr([row for row in rows if row["step"] <= 7
                                   and row["kind"] not in ("end", "state")])
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
        self.run.begin(resumed=None, step=3)
        self.run.begin(step=4)
        return [self.path.read_bytes()]

    def use(self):
        from audiolab.files import CheckpointError
        # refused where a folder has its name
        if self.tried(lambda: self.run.begin(step=5), CheckpointError):
            assert self.run.starts()[-1]["step"] == 5


class Controls(Kind):
    "The control file"
    operations = BYTES + (word,)

    def make(self):
        self.path = self.folder/"control"
        return [b"pause\n", b"stop\nsample\nsave\n", b"resume"]

    def use(self):
        from audiolab.training import Control
        control = Control(self.folder)
        assert (control.poll() <= {"sample", "save"}
                and control.state in ("running", "paused", "stopping"))
        self.done["read"] += 1


class Locks(Kind):
    "run.lock"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.training import RunLock, run_lock
        run_lock._BEAT = .001  # a lock of another machine is waited for
        self.path = self.folder/"run.lock"
        with RunLock(self.folder): return [self.path.read_bytes()]

    def input(self, rng):
        if rng.random() >= .5: return super().input(rng)
        return json.dumps(hostile(rng, json.loads(self.seeds[0]))).encode()

    def use(self):
        from audiolab.training import (
            ControlConfig, ControlError, RunLock, RunLocked, control_command,
        )
        self.tried(lambda: control_command(ControlConfig(self.folder, "save", wait=0)),
                   ControlError, name=self.folder)
        lock = RunLock(self.folder)
        self.tried(lambda: (lock.acquire(), lock.release()), RunLocked, OSError, name=self.folder)
