"Sounds, tables and stores, and how each kind is read."
import io
import json
import os
import shutil
import struct
import warnings
import zipfile

import numpy as np

from fuzz_damage import BYTES, damage, hostile, TEXTS, WORDS
from fuzz_runs import Kind


def sounds(folder):
    "A few short files"
    from audiolab.audio import write_audio
    rng = np.random.default_rng(0)
    tone = (.3 * np.sin(np.arange(4000) * .1) + .01 * rng.standard_normal(4000)).astype(np.float32)
    (folder/"wavs").mkdir(exist_ok=True)
    return [write_audio(folder/"wavs"/f"{name}.wav", tone[:2000 + 500 * n], 8000)
            for n, name in enumerate("abc")]


class Manifests(Kind):
    "JSONL manifests, and the sound they name"
    operations, name = BYTES + WORDS, "clips.jsonl"

    def make(self):
        from audiolab.data import scan_audio, write_manifest
        self.path, _ = self.folder/self.name, sounds(self.folder)
        write_manifest(self.folder/"made.jsonl", scan_audio(self.folder, workers=0)[0])
        return [(self.folder/"made.jsonl").read_bytes(),
                b'{"audio": "wavs/a.wav", "start": 0.1, "duration": 0.05, "speaker": 7, "text": "words"}\n']

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
            self.tried(lambda index=index,
                       clip=clip: found[0].read(index, 0, min(clip.frames, 100)), AudioError,
                       DataError, name=clip.path)


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
        with PackedWriter(self.path.parent, {"audio": ("int16", ()), "mel": ("float32", (4,))},
                          {"sample_rate": 8000}, {}) as writer:
            for n in range(3):
                writer.add(f"item{n}", {"audio": np.arange(50 + n, dtype=np.int16),
                                        "mel": np.ones((5 + n, 4), np.float32)}, {"text": "words"})
        self.files = sorted(path.name for path in self.path.parent.iterdir() if path.is_file()
                            and path.suffix != ".lock")
        self.whole = {name: (self.path.parent/name).read_bytes() for name in self.files}
        return [self.whole["index.json"]]

    def input(self, rng):
        act = rng.random()
        if act < .3: return {"index.json": super().input(rng)}
        if act < .6:
            name = rng.choice([name for name in self.files if name != "index.json"])
            return {name: damage(rng, self.whole[name], list(self.whole.values()))}
        from audiolab.data.packed_format import json_digest
        tree = hostile(rng, json.loads(self.whole["index.json"]))
        try:
            if rng.random() < .8:
                tree["fingerprint"] = json_digest({key: tree[key]
                                                   for key in ("settings", "inputs")})
            tree.pop("digest")
            tree["digest"] = json_digest(tree)
        except Exception: pass
        return {"index.json": json.dumps(tree).encode()}

    def place(self, made):
        if isinstance(made, bytes): made = {"index.json": made}
        for name, content in {**self.whole, **made}.items():
            (self.path.parent/name).write_bytes(content)

    def use(self):
        from audiolab.data import DataError
        from audiolab.data import PackedClips, PackedStore
        found, folder = [], self.path.parent
        if not self.tried(lambda: found.append(PackedStore(folder)), DataError, name=folder): return
        store = found[0]
        if not self.tried(lambda: found.append(PackedClips(store)), DataError, name=folder): return
        for index in range(min(len(store), 5)):
            for call in (store.item, store.name, found[1].clip,
                         lambda index: found[1].clip(index).frames and found[1].read(index, 0, 1)):
                self.tried(lambda call=call, index=index: call(index), DataError, name=folder)
        store.verify()


class Pulled(Kind):
    "The manifest of a run in a store, and the files it lists"
    operations = BYTES + WORDS

    def make(self):
        from audiolab.remote import push
        run, self.store = self.folder/"run", self.folder/"store"
        (run/"checkpoints").mkdir(parents=True)
        for name in ("config.yaml", "checkpoints/a.safetensors", "history.jsonl"):
            (run/name).write_bytes(name.encode() * 5)
        push(run, self.store, progress=False)
        self.path = self.store/"manifest.json"
        return [self.path.read_bytes()]

    def input(self, rng):
        if rng.random() >= .5: return super().input(rng)
        return json.dumps(hostile(rng, json.loads(self.seeds[0]))).encode()

    def use(self):
        from audiolab.remote import StorageError, pull
        shutil.rmtree(self.folder/"pulled", ignore_errors=True)
        before = set(self.folder.rglob("*"))
        self.tried(lambda: pull(self.store, self.folder/"pulled", progress=False, max_bytes=10**6,
                                quiet=1, total=2), StorageError, name=self.store)
        new = set(self.folder.rglob("*")) - before
        assert all(path.is_relative_to(self.folder/"pulled") for path in new), new


class Archives(Kind):
    "Legacy .npz files"

    def make(self):
        self.path = self.folder/"model.npz"
        seeds = []
        for save in (np.savez, np.savez_compressed):
            made = io.BytesIO()
            save(made, means=np.linspace(0, 1, 12).reshape(3, 4), names=np.array(["a", "b"]),
                 flag=np.array(True))
            seeds.append(made.getvalue())
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
            with file.open("zeros.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream,
                                                     {"descr": "<f8", "fortran_order": False,
                                                      "shape": (2**24,)})
                for _ in range(128): stream.write(bytes(2**20))
        lie = io.BytesIO()
        with zipfile.ZipFile(lie, "w") as file:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header,
                                                 {"descr": "<f8", "fortran_order": False,
                                                  "shape": (5 * 10**10,)})
            file.writestr("claim.npy", header.getvalue() + bytes(80))
            file.writestr("../../x.npy", header.getvalue())
        return [*seeds, *seeds, lie.getvalue(), bomb.getvalue()]

    def input(self, rng):
        if rng.random() < .7: return super().input(rng)
        made = io.BytesIO()  # well-formed archives of hostile arrays
        packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2,
                              zipfile.ZIP_LZMA))
        with zipfile.ZipFile(made, "w", packing) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(rng.choice((1, 2, 3, 1500))):
                head = str({"descr": rng.choice(("<f4", "|O", ">i8", "|V8", [("a", "<f4")],
                                                 "<M8[s]", "|S0", "<U9999999", "x" * 99)),
                                                 "fortran_order": rng.choice((True, False, 1)),
                            "shape": rng.choice(((2,), (), (-1,), (2**62, 4), (2**33,), "x",
                                                 (1,) * 40))})
                raw = b"\x93NUMPY" + bytes((rng.choice((1, 2, 3, 9)), 0)) + struct.pack("<H",
                    len(head)) + head.encode() + rng.randbytes(rng.choice((0, 8, 100)))
                file.writestr(rng.choice(("a.npy", f"{_}.npy", "../a.npy", "/etc/x.npy", "a",
                                          "A" * 300 + ".npy", "é.npy")), raw)
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
        tone = (.3 * np.sin(np.arange(6000) * .1)
                + .02 * np.random.default_rng(0).standard_normal((2, 6000))).astype(np.float32)
        return [write_audio(self.path, tone[:n], rate).read_bytes() for n in (1, 2)]

    def use(self):
        from audiolab.audio import AudioError, probe_audio, read_audio
        from audiolab.data import AudioFiles, Clip, DataError, scan_audio
        self.tried(lambda: probe_audio(self.path), AudioError)
        self.tried(lambda: read_audio(self.path, sample_rate=16_000, mono=True), AudioError)
        self.tried(lambda: read_audio(self.path, start=.1, duration=.05), AudioError)
        self.tried(lambda: AudioFiles([Clip("a", str(self.path), 8000, 1, 6000)]).read(0, 1000,
            500), AudioError, DataError)
        files, report = scan_audio(self.folder, workers=0)
        # a pipe is listed as unreadable
        assert len(files) + len(report.unreadable) == (not self.path.is_dir())


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
        self.sounds = [write_audio(self.folder/f"a.{ending}", tone, 8000).read_bytes()
                       for ending in ("wav", "flac", "mp3", "ogg")]
        cells = [{"bytes": raw, "path": f"{n}.wav"} for n, raw in enumerate(self.sounds)]
        table = datasets.Dataset.from_dict({"audio": cells, "text": list("abcd")})
        table.cast_column("audio", datasets.Audio(decode=False)).to_parquet(self.path)
        return [self.path.read_bytes()]

    def input(self, rng):
        if rng.random() < .15: return super().input(rng)
        cells = [rng.choice(({"bytes": damage(rng, rng.choice(self.sounds), self.sounds),
                              "path": rng.choice(TEXTS[:6] + ("x.wav", None))},
                              {"bytes": None, "path": rng.choice(TEXTS)},
                             {"bytes": b"", "path": None},
                             {"bytes": None, "path": "http://127.0.0.1:9/x.wav"},
                             {"bytes": None, "path": "zip://a::/etc/passwd"})) for _ in range(3)]
        return [{key: value.encode("utf-8", "replace").decode()
                 if isinstance(value, str) else value for key, value in cell.items()}
                 for cell in cells]

    def place(self, made):
        self.cells = made if isinstance(made, list) else None
        if not self.cells:
            self.turn += 1
            self.path = self.folder/f"train{self.turn}.parquet"
            self.path.write_bytes(made)

    def use(self):
        from audiolab.audio import AudioError
        from audiolab.data import DataError
        from audiolab.data import HubClips, HubStream, open_clips
        if self.cells:
            table = self.datasets.Dataset.from_dict({"audio": self.cells, "text": ["words"] * 3})
            stream = HubStream(table.to_iterable_dataset(), 8000)
            for row in stream.open(0, 0, 1):
                self.tried(lambda row=row: stream.item(row, 0), AudioError, DataError,
                           name=(stream.name(row), row[2]["audio"]["path"]))
            clips = HubClips(table)
        else:
            found = []
            if not self.tried(lambda: found.append(open_clips(self.path)), DataError, AudioError):
                return
            clips = found[0]
        for index in range(min(len(clips), 5)):
            self.tried(lambda index=index: clips.clip(index), AudioError, DataError,
                       name=(f"[{index}]", self.cells and self.cells[index]["path"]))
            self.tried(lambda index=index: clips.read(index, 0, 10), AudioError, DataError,
                       name=(f"[{index}]", self.cells and self.cells[index]["path"]))
