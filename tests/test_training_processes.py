"The loop in several processes"
import json
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from audiolab.files import CheckpointFolder
from audiolab.training import Trainer, read_history, send, watch_parent

sys.path.insert(0, str(Path(__file__).parent))
from child_processes import children_of
from engine_tasks import (
    Denoise, alive, both_ended, config, copy_run, ended, pair, start, state_of, torchrun, wait_for,
    wait_for_line,
)
from fault_runs import one_thread  # noqa: F401


# several processes

def test_two_processes_equal_one_and_resume_into_each_other(tmp_path):
    "The same global batches: the loss curve agrees to 1e-4, and a run may change its number of processes"
    words = ["statistics=false", "ema_decay=0", "warmup=0"]
    one = Trainer(Denoise(statistics=False), config(ema_decay=0, warmup=0), tmp_path/"one").fit()
    codes, out, err = both_ended(pair("denoise", tmp_path/"two", *words))
    assert codes == [0, 0], err
    def loss(folder):
        rows = [row for row in read_history(folder) if row["kind"] in ("log", "validation")]
        return np.array([row["values"]["loss"] for row in rows])

    np.testing.assert_allclose(loss(tmp_path/"two"), loss(tmp_path/"one"), rtol=1e-4)
    assert out.count("\nend 40") == 1 and one.step == 40  # logged once
    for source, name in (("two", "two_to_one"), ("one", "one_to_two")):
        copy_run(tmp_path/source, tmp_path/name, 17)
        if name == "two_to_one":
            Trainer(Denoise(statistics=False), config(ema_decay=0, warmup=0, save_every="never"),
                    tmp_path/name).fit(resume="auto")
        else:
            codes, out, err = both_ended(pair("denoise", tmp_path/name, *words))
            assert codes == [0, 0], out + err
        np.testing.assert_allclose(loss(tmp_path/name), loss(tmp_path/"one"), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_resume_exactly_and_stop_together(tmp_path):
    "SIGTERM to the launcher: both stop after the same step, one checkpoint, and the resumed run equals an unbroken one"
    code, _, err = ended(torchrun("adversarial", tmp_path/"whole"))
    assert code == 0, err
    process = torchrun("adversarial", tmp_path/"stopped", "slow=0.05")
    wait_for_line(process, "log 12")
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert 12 <= read_history(tmp_path/"stopped")[-1]["step"] < 40 and read_history(tmp_path/"stopped")[-1]["values"]["state"] == "stopped"
    code, out, err = ended(torchrun("adversarial", tmp_path/"stopped"))
    assert code == 0, out + err
    final = [state_of(tmp_path/name/"checkpoints"/"checkpoint_final.safetensors") for name in ("whole", "stopped")]
    assert final[0] == final[1]


@pytest.mark.slow
def test_two_processes_save_and_sample_while_paused(tmp_path):
    process = torchrun("denoise", tmp_path, "slow=0.05", 'save_every="never"', 'sample_every="never"')
    for line, word in {"log": "pause", "state": "save", "checkpoint": "sample"}.items():
        wait_for_line(process, line)
        send(tmp_path, word)
    wait_for_line(process, "sample")
    saved = CheckpointFolder(tmp_path/"checkpoints").resolve("auto")
    assert saved.stem == f"checkpoint_step_{read_history(tmp_path)[-1]['step']}"
    for word in ("resume", "stop"):
        send(tmp_path, word)
        if word == "resume": wait_for_line(process, "state")
    code, _, err = ended(process)
    assert code == 0, err


@pytest.mark.slow
def test_two_nodes_equal_one(tmp_path):
    "Two launchers of one process each, which meet on the loopback, give the weights of one launcher with two processes, bit for bit"
    assert ended(torchrun("adversarial", tmp_path/"one"))[0] == 0
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "t"]
    nodes = [start("adversarial", tmp_path/"two", launcher=launcher) for _ in range(2)]
    assert [ended(node)[0] for node in nodes] == [0, 0]
    final = [state_of(tmp_path/name/"checkpoints"/"checkpoint_final.safetensors") for name in ("one", "two")]
    assert final[0] == final[1]


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_see_each_item_once_also_after_a_kill(stream, tmp_path):
    "80 items in epochs of 10 batches of 8, killed in the second epoch and resumed"
    words = ["items=80", f"stream={json.dumps(stream)}", f'seen="{tmp_path}/seen"', "epochs=2", "steps=0", 'schedule="constant"', "warmup=0", 'save_every="1 step"']
    ranks = pair("counting", tmp_path/"run", "slow=0.05", *words)
    wait_for_line(ranks[0], "log 12")
    for rank in ranks: rank.kill()
    assert both_ended(ranks)[0] == [-signal.SIGKILL]*2
    codes, _, err = both_ended(pair("counting", tmp_path/"run", *words))
    assert codes == [0, 0], err
    seen = {}
    for rank in (0, 1):
        for line in (tmp_path/f"seen.{rank}").read_text().splitlines():
            step, epoch, ids = json.loads(line)
            seen[rank, step] = epoch, ids
    assert {step for _, step in seen} == set(range(20))
    for epoch in (0, 1):
        ids = [name for number, names in seen.values() if number == epoch for name in names]
        assert len(ids) == 80 and len(set(ids)) == 80


def test_the_launcher_or_a_rank_is_killed(tmp_path):
    "Nothing is left running, and the run resumes"
    for victim in ("launcher", "rank"):
        process = torchrun("denoise", tmp_path/victim, "slow=0.02", "steps=100000", 'save_every="2 steps"', "keep_last=2")
        wait_for_line(process, "log 9")
        ranks = children_of(process.pid)
        assert len(ranks) == 2
        os.kill(process.pid if victim == "launcher" else ranks[1], signal.SIGKILL)
        wait_for(lambda ranks=ranks: not any(alive(pid) for pid in ranks), 60)
        process.kill()
        process.communicate()
        assert Trainer(Denoise(), config(steps=20, save_every="never"),
                       tmp_path/victim).fit(resume="auto").step >= 20


def watched_by_the_first_process(monkeypatch, command):
    "The end of a watch by a process whose parent is the first one, and the events of its end"
    def command_line(path):
        assert str(path) == "/proc/1/cmdline"
        if isinstance(command, OSError): raise command
        return command

    stopped, ended = threading.Event(), threading.Event()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr("audiolab.training.launching._signal_when_parent_dies", lambda number: None)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(Path, "read_bytes", command_line)
    return watch_parent(stopped.set, grace=.01, interval=.01), stopped, ended


def test_a_launcher_that_died_while_its_processes_were_loading(monkeypatch):
    "They have another parent by then, and end as well"
    _, stopped, ended = watched_by_the_first_process(monkeypatch, b"/sbin/init\0")
    assert stopped.wait(30) and ended.wait(30)


@pytest.mark.parametrize("command", [
    b"/usr/bin/python3\0/usr/bin/torchrun\0train.py\0", b"torchrun\0train.py\0",
    b"/usr/bin/python3\0/usr/bin/accelerate\0launch\0train.py\0", b"python\0start.py\0",
    PermissionError("hidden"), FileNotFoundError("hidden")])
def test_a_launcher_that_is_the_first_process_of_a_container_is_alive(monkeypatch, command):
    "Also where we may not look at it"
    end, stopped, ended = watched_by_the_first_process(monkeypatch, command)
    end()
    assert not stopped.is_set() and not ended.is_set()
