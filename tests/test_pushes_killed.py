"A push that is killed anywhere leaves a store that `pull` restores."
import json
import logging
import os
import signal
import subprocess
import sys
from io import BytesIO

import pytest

from audiolab.remote import FolderStore, StorageError, Transfer, pull, push, push_pull, pusher
from audiolab.remote.pusher import RunMirror, WaitingFile
from store_tools import fails, tree


class Killed(BaseException):
    "What a kill is to the process that is killed"


class Mortal(FolderStore):
    "A folder whose pusher dies before its write number `left`"
    left = 10**9

    def write(self, name, file, transfer):
        if self.left == 0: raise Killed
        self.left -= 1
        return super().write(name, file, transfer)


def store_that_dies(monkeypatch, folder, left):
    store = Mortal(folder)
    store.left = left
    for module in push_pull, pusher:
        monkeypatch.setattr(module, "open_store", lambda *args, **options: store)
    return store


def run_at(folder, step):
    "A run folder at a step, the earlier checkpoint pruned"
    (folder/"checkpoints").mkdir(parents=True, exist_ok=True)
    for old in (folder/"checkpoints").iterdir(): old.unlink()
    name = f"checkpoint_step_{step}.safetensors"
    (folder/"checkpoints"/name).write_text(f"weights {step}")
    (folder/"checkpoints/best_model.safetensors").write_text(f"best {step}")  # of equal length
    (folder/"checkpoints/latest.json").write_text(json.dumps({"file": name}))
    (folder/"history.jsonl").write_text("row\n" * step)
    (folder/"config.yaml").write_text("seed: 0\n")
    return folder


def assert_restores(url, folder, states):
    "Each file is as it was at one of the steps, and the newest checkpoint that is named is here"
    back = tree(pull(url, folder, progress=False))
    for name, data in back.items(): assert data in [state.get(name) for state in states], name
    newest = json.loads(back["checkpoints/latest.json"])["file"]
    assert f"checkpoints/{newest}" in back
    assert back.keys() >= {"history.jsonl", "config.yaml", "checkpoints/best_model.safetensors"}


def test_a_push_of_a_run_killed_before_any_write_leaves_a_run(tmp_path, monkeypatch):
    for left in range(8):
        far, states = tmp_path/f"far{left}", []
        for step in (10, 15):
            run = run_at(tmp_path/"run", step)
            states.append(tree(run))
            store_that_dies(monkeypatch, far, left if step == 15 else 99)
            try: push(run, far, progress=False)
            except Killed: assert step == 15
            else: assert step == 10 or left > 6
        assert_restores(far, tmp_path/f"back{left}", states)
        store_that_dies(monkeypatch, far, 99)  # and the next push mends it all
        push(run, far, progress=False)
        assert tree(pull(far, tmp_path/f"again{left}", progress=False)) == states[-1]


def test_a_pusher_killed_again_and_again_leaves_a_run(tmp_path, monkeypatch):
    "Four pushes of a run that goes on, each killed before another of its writes"
    for left in range(0, 8, 2):
        far, states = tmp_path/f"far{left}", []
        for number, step in enumerate((10, 15, 20, 25)):
            run = run_at(tmp_path/"run", step)
            states.append(tree(run))
            store_that_dies(monkeypatch, far, (left + number) % 8 if number else 99)
            mirror = RunMirror(str(far), run, ("config.yaml", "history.jsonl"))
            for name, kind in ((f"checkpoint_step_{step}.safetensors", "step"),
                               ("best_model.safetensors", "final")):
                item = WaitingFile(f"checkpoints/{name}", kind, BytesIO(
                    states[-1][f"checkpoints/{name}"]), 1 if kind == "step" else 0)
                try: mirror.send(item, Transfer())
                except Killed: break
            pointer = [{"checkpoints/latest.json": b'{"file":"best_model.safetensors"}'},
                       *({"checkpoints/latest.json": json.dumps(
                           {"file": f"checkpoint_step_{s}.safetensors"},
                           separators=(",", ":")).encode()} for s in (10, 15, 20, 25))]
            assert_restores(far, tmp_path/f"back{left}-{number}", states + pointer)


def test_a_pointer_that_could_not_be_written_is_written_at_the_next_attempt(tmp_path, monkeypatch):
    mirror = RunMirror(str(tmp_path/"far"), None)
    item = WaitingFile("checkpoints/a.safetensors", "best", BytesIO(b"weights"), 1)
    store = store_that_dies(monkeypatch, tmp_path/"far", 1)
    with pytest.raises(Killed): mirror.send(item, Transfer())
    store.left = 99
    mirror.send(item, Transfer())
    assert (tmp_path/"far/checkpoints/best.json").exists()


def test_pull_brings_all_that_verifies_and_names_the_rest(tmp_path, caplog):
    "As a killed push of an older version left it: files that its manifest does not know"
    run, far = run_at(tmp_path/"run", 10), tmp_path/"far"
    push(run, far, progress=False)
    (far/"checkpoints/latest.json").write_text('{"file": "checkpoint_step_15.safetensors"}')
    (far/"config.yaml").unlink()
    said = fails("missing", "2 of 5 files", lambda: pull(far, tmp_path/"back", progress=False))
    assert "latest.json" in said and "config.yaml" in said
    back = tree(tmp_path/"back")
    assert back.keys() == tree(run).keys() - {"checkpoints/latest.json", "config.yaml"}
    assert all(data == tree(run)[name] for name, data in back.items())


def test_a_push_that_goes_on_growing_files_and_is_told_when_pulled(tmp_path, monkeypatch, caplog):
    "In groups: after the first one there is a run to pull, which says that more was to come"
    monkeypatch.setattr(push_pull, "_GROUP", 10)
    run, far = run_at(tmp_path/"run", 10), tmp_path/"far"
    store_that_dies(monkeypatch, far, 3)
    with pytest.raises(Killed): push(run, far, progress=False)
    with caplog.at_level(logging.WARNING): back = pull(far, tmp_path/"back", progress=False)
    assert "was not finished" in caplog.text and tree(back)
    store_that_dies(monkeypatch, far, 99)
    push(run, far, progress=False)
    caplog.clear()
    assert tree(pull(far, tmp_path/"back", progress=False)) == tree(run) and not caplog.records


def test_names_that_cannot_travel_are_told_and_the_rest_is_pushed(tmp_path, caplog):
    run, far = run_at(tmp_path/"run", 10), tmp_path/"far"
    good = tree(run)
    for name in ("A.txt", "a.txt", "a:b.txt", "x ", os.fsdecode(b"caf\xe9.wav")):
        (run/name).write_text(name if name.isprintable() else "")
    with caplog.at_level(logging.WARNING): sent = push(run, far, progress=False)
    for said in ("a.txt", "a:b.txt", "x ", "caf"): assert f"{said}" in caplog.text
    assert sent.keys() == {*good, "A.txt"}
    assert tree(pull(far, tmp_path/"back", progress=False)) == good | {"A.txt": b"A.txt"}
    (run/"A.txt").unlink()
    assert "a.txt" in push(run, far, progress=False)  # the old name is in nobody's way
    assert "a.txt" in tree(pull(far, tmp_path/"again", progress=False))


PUSHING = """
import sys, itertools
from pathlib import Path
from audiolab.remote import push
run, far = map(Path, sys.argv[1:])
for n in itertools.count(1):
    (run/f"checkpoints/step_{n}.bin").write_bytes(bytes([n % 256])*100_000)
    (run/"checkpoints/latest.json").write_text('{"file": "step_%d.bin"}' % n)
    with open(run/"history.jsonl", "a") as file: file.write("row\\n"*n)
    push(run, far, progress=False)
    if n == 1: print("begun", flush=True)
"""


@pytest.mark.slow
def test_pushes_killed_at_any_time_can_be_pulled(tmp_path):
    "60 kills of a process that pushes again and again"
    for kill in range(60):
        run, far = tmp_path/f"run{kill}", tmp_path/f"far{kill}"
        (run/"checkpoints").mkdir(parents=True)
        child = subprocess.Popen([sys.executable, "-c", PUSHING, run, far], stdout=subprocess.PIPE)
        child.stdout.readline()
        try: child.wait(.05 + .013*kill)
        except subprocess.TimeoutExpired: child.send_signal(signal.SIGKILL)
        child.wait()
        try: back = pull(far, tmp_path/f"back{kill}", progress=False)
        except StorageError as problem: pytest.fail(f"kill {kill}: {problem}")
        newest = json.loads((back/"checkpoints/latest.json").read_text())["file"]
        assert (back/"checkpoints"/newest).stat().st_size == 100_000
