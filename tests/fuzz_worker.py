"A process that reads damaged files: it limits its own memory, watches what Python reports to audit hooks, and can die."
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest

from fuzz_damage import pickles
from fuzz_data import (
    Archives, Flac, Manifests, Mp3, Ogg, Opus, Packed, Parquet, Pulled, Sound, Tables,
)
from fuzz_sounds import Zoo
from fuzz_runs import (
    Auto, Checkpoints, Controls, Curves, Histories, JsonConfigs, Locks, Pointers, Runs, Starts,
    States, YamlConfigs,
)



# --- the files, and how each kind is read

KINDS = {"checkpoint": Checkpoints, "state": States, "resumed checkpoint": Runs, "run folder": Auto,
         "pointer": Pointers, "config.yaml": YamlConfigs, "config.json": JsonConfigs,
         "manifest.jsonl": Manifests, "manifest.csv": Tables, "packed store": Packed,
         "store manifest": Pulled, "history": Histories, "curves": Curves, "run.json": Starts,
         "control": Controls, "run.lock": Locks, "npz": Archives, "wav": Sound, "flac": Flac,
         "ogg": Ogg, "mp3": Mp3, "opus": Opus, "sound zoo": Zoo,
         "parquet": Parquet}


# --- the worker

FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn",
             "subprocess.Popen", "socket.connect", "os.fork", "os.forkpty", "shutil.unpack_archive")
CHANGES = ("os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate",
           "os.chmod")


class Watch:
    "Notes what must not happen, by Python's audit events"
    def __init__(self, folder):
        self.folder, self.on, self.forks, self.seen = os.path.realpath(folder), False, False, []

    def inside(self, path, follow=True):
        # a descriptor, or nothing
        if not isinstance(path, (str, bytes, os.PathLike)) or b"\0" in os.fsencode(path):
            return True
        path = os.path.abspath(os.fsdecode(path))
        folder, name = os.path.split(path)
        where = os.path.realpath(path) if follow else os.path.join(os.path.realpath(folder), name)
        return (where.startswith(self.folder)
                or where.startswith(("/dev/null", "/dev/shm/", "/proc/")))

    def __call__(self, event, arguments):
        if not self.on: return
        self.on = False
        try:
            if event in FORBIDDEN and not (self.forks and event in ("os.fork", "subprocess.Popen")):
                self.seen.append(f"{event} {str(arguments)[:200]}")
            elif event == "open":
                path, mode, flags = arguments
                if (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not self.inside(path):
                    self.seen.append(f"wrote to {path!r:.200}")
            elif event in CHANGES and not all(self.inside(path, follow=False)
                                              for path in arguments[:2]
                                              if isinstance(path, (str, bytes))):
                self.seen.append(f"{event} {arguments!r:.200}")
            elif event == "exec":
                name = arguments[0].co_filename
                if not os.path.exists(name) and not name.startswith("<frozen"):
                    self.seen.append(f"exec of {name:.200}")
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
        for name, content in pickles(folder/"owned").items():
            if not isinstance(kind, (States, Runs)): examine(kind, watch, content, name, findings)
        if (folder/"owned").exists(): findings.append("a payload ran")
        return
    kind.place(kind.input(random.Random(0))
               if isinstance(kind, (States, Runs, Parquet)) else kind.seeds[0])
    if kind.path.is_dir(): return
    place, kind.place = kind.place, lambda content: None  # what is to be read lies there already
    for what in ("pipe", "folder", "device", "loop"):
        if what == "pipe" and not kind.pipes: continue
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
    os.environ |= {"HF_HOME": str(folder/"hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.chdir(folder)
    import torch
    torch.set_num_threads(1)
    if importlib.util.find_spec("av"): import av  # noqa: F401  (not while it is watched)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    watch, kinds = Watch(folder), {}
    sys.addaudithook(watch)
    out, sys.stderr = os.fdopen(os.dup(1), "w"), open(folder/"stderr.txt", "a")
    sys.stdout = sys.stderr
    for number in (1, 2): os.dup2(sys.stderr.fileno(), number)  # what decoders say
    for line in sys.stdin:
        name, act, seed, count = json.loads(line)
        if name not in kinds:
            kind = kinds[name] = KINDS[name](folder/re.sub(r"\W", "_", name))
            if not isinstance(kind, (States, Runs)):
                kind.place(kind.seeds[0])
                kind.use() if not isinstance(kind, Auto) else None
        kind, rng, findings, slowest = kinds[name], random.Random(f"{name}{seed}"), [], 0.
        used, statm = 2**34, Path("/proc/self/statm")
        if statm.exists(): used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
        kind.done.clear()
        if act == "damage":
            for number in range(count):
                slowest = max(slowest, examine(kind, watch, kind.input(rng),
                                               f"{name}, seed {seed}, input {number}", findings))
                if len(findings) >= 5: break
        else: special(kind, watch, act, findings)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(json.dumps({"findings": findings, "done": dict(kind.done), "slowest": slowest}),
              file=out, flush=True)


class Worker:
    "A worker process, started again where it died"
    def __init__(self, folder): self.folder, self.process, self.starts = folder, None, 0

    def ask(self, kind, act="damage", seed=0, count=0, timeout=300):
        import select
        if self.process is None or self.process.poll() is not None:
            self.starts += 1
            place = self.folder/f"worker{self.starts}"
            place.mkdir()
            command = [sys.executable, __file__, str(place)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"})
        self.process.stdin.write(json.dumps([kind, act, seed, count]) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], timeout)[0]: self.process.kill()
        answer = self.process.stdout.readline()
        if not answer:
            code = self.process.wait()
            said = (self.folder/f"worker{self.starts}"/"stderr.txt")
            pytest.fail(f"{kind}, seed {seed}: the worker {'hung' if code == -9 else 'died'} ({code}): {said.read_text()[-2000:] if said.exists() else ''}")
        return json.loads(answer)

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.stdin.close()
            self.process.wait(20)


# --- the tests

if __name__ == "__main__": worker(sys.argv[1])
