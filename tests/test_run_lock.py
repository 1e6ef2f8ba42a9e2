"Two runs never share a folder, and a dead one does not keep it."
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from child_processes import PATIENCE, says, script, until

from audiolab.training import Control, RunLock, RunLocked, live_owner, run_lock, send

HOLD = """
import sys, time
from audiolab.training import RunLock
RunLock(sys.argv[1]).acquire(); print('held'); time.sleep(float(sys.argv[2]))
"""


def test_a_second_process_is_refused_and_a_killed_one_replaced(tmp_path):
    folder = tmp_path / "new" / "run"
    process = script(HOLD, folder, 60)
    says(process, "held")
    why = f"process {process.pid} on .*works in it; .*another folder"
    with pytest.raises(RunLocked, match=why): RunLock(folder).acquire()
    process.kill()
    process.wait()
    with RunLock(folder) as lock:
        assert f"process {process.pid}" in lock.note and "taken over" in lock.note
    assert os.listdir(folder) == []


def test_the_same_process_twice(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(RunLocked, match="works in it"): RunLock(tmp_path).acquire()
        assert (tmp_path / "run.lock").exists()
    with RunLock(tmp_path) as lock: assert lock.note == ""


def test_released_at_exit_without_a_with_block(tmp_path):
    assert script(HOLD, tmp_path, 0).wait(PATIENCE) == 0
    assert os.listdir(tmp_path) == []


def owner(**changes):
    "What a lock of this process says, but for some changes"
    mine = {"pid": os.getpid(), "host": socket.gethostname(),
            "born": run_lock._process_birth(os.getpid()), "since": "then"}
    return json.dumps(mine | changes)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_number_used_again_is_not_the_same_process(tmp_path):
    (tmp_path / "run.lock").write_text(owner(born="boot:1"))
    with RunLock(tmp_path) as lock: assert "taken over" in lock.note


def test_without_proc_a_living_number_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_process_birth", lambda pid: None)
    (tmp_path / "run.lock").write_text(owner(pid=os.getppid()))
    with pytest.raises(RunLocked): RunLock(tmp_path).acquire()


def test_another_machine_is_believed(tmp_path):
    (tmp_path / "run.lock").write_text(owner(host="elsewhere", pid=2**22 + 1))
    why = "on elsewhere .*delete run.lock there and start again"
    with pytest.raises(RunLocked, match=why): RunLock(tmp_path).acquire()
    (tmp_path / "run.lock").unlink()
    with RunLock(tmp_path): pass


needs_flock = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs locks of the kernel")


@needs_flock
def test_a_killed_owner_of_another_host_name_is_replaced_at_once(tmp_path):
    "A new pod, or a job that was put into the queue again"
    process = script("import socket\nsocket.gethostname = lambda: 'node-17'" + HOLD, tmp_path, 60)
    says(process, "held")
    assert live_owner(tmp_path)["host"] == "node-17"
    with pytest.raises(RunLocked, match="on node-17 .*stop that one"): RunLock(tmp_path).acquire()
    process.kill()
    process.wait()
    assert live_owner(tmp_path) is None
    with RunLock(tmp_path) as lock: assert "taken over" in lock.note


@needs_flock
def test_a_living_owner_whose_number_is_unknown_here_keeps_its_folder(tmp_path):
    "As in another container: its number is none of ours, and its host has the same name"
    process = script(HOLD, tmp_path, 60)
    says(process, "held")
    for change in {"pid": 2**22 + 1}, {"pid": 2**22 + 1, "space": "another"}, {"born": "boot:1"}:
        (tmp_path / "run.lock").write_text(owner(held=True, **change))
        with pytest.raises(RunLocked, match="works in it"): RunLock(tmp_path).acquire()
    process.kill()
    process.wait()


@needs_flock
def test_processes_that_outlive_their_run_do_not_keep_its_folder(tmp_path):
    fork = "import os\nif (pid := os.fork()): print(f'child {pid}')\nelse: print = str\n"
    hold = HOLD.replace("print('held')", "exec(os.environ['FORK']); print('held')")
    process = script("import os" + hold, tmp_path, 60, env=os.environ | {"FORK": fork})
    child = int(says(process, "child ").split()[1])
    says(process, "held")
    process.kill()
    process.wait()
    try:
        os.kill(child, 0)
        with RunLock(tmp_path) as lock: assert "taken over" in lock.note
    finally: os.kill(child, signal.SIGKILL)


@needs_flock
@pytest.mark.parametrize("alive", [True, False])
def test_a_disk_that_locks_for_one_machine_only(tmp_path, monkeypatch, alive):
    "The lock of another machine is free here; its time tells whether it lives"
    path, other = tmp_path / "run.lock", owner(host="b", space="another boot/1", held=True)
    path.write_text(other)
    monkeypatch.setattr(run_lock, "_BEAT", .03)
    if not alive:
        with RunLock(tmp_path) as lock: assert "taken over" in lock.note
        return
    with open(path) as file:
        signs = run_lock.SignsOfLife(file.fileno())
        try:
            with pytest.raises(RunLocked, match="on b "): RunLock(tmp_path).acquire()
        finally: signs.end()
    assert path.read_text() == other


def test_a_run_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "_BEAT", .01)
    with RunLock(tmp_path) as lock: assert run_lock._is_refreshed(lock.path)


@needs_flock
def test_a_folder_that_is_moved_in_mid_run_is_locked_again(tmp_path, monkeypatch):
    "And where it went, the next run may begin"
    monkeypatch.setattr(run_lock, "_BEAT", .01)
    run, other = tmp_path / "run", tmp_path / "other"
    with RunLock(run) as lock:
        run.rename(other)
        run.mkdir()
        until(lock.path.exists)
        until(lambda: live_owner(run))
        with RunLock(other) as second: assert "taken over" in second.note
        with pytest.raises(RunLocked): RunLock(run).acquire()
    assert os.listdir(run) == []


def test_without_locks_of_the_kernel(tmp_path, monkeypatch):
    "Windows, and some network disks: process numbers decide, where they mean something"
    monkeypatch.setattr(run_lock, "_try_to_hold", lambda fd: None)
    with RunLock(tmp_path) as lock:
        assert live_owner(tmp_path)["pid"] == os.getpid()
        with pytest.raises(RunLocked, match="works in it; stop"): RunLock(tmp_path).acquire()
    assert os.listdir(tmp_path) == []
    lock.path.write_text(owner(pid=2**22 + 1))
    with RunLock(tmp_path) as lock: assert "gone" in lock.note
    lock.path.write_text(owner(pid=2**22 + 1, space="another container"))
    with pytest.raises(RunLocked, match="delete run.lock there"): RunLock(tmp_path).acquire()


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", '{"pid": "1"}', '{"pid": -1, "host": "", "born": null, "since": ""}',
    "[" * 1999, "\0" * 100, '{"pid": 1e999}', "x" * 100_000])
def test_a_torn_lock_is_taken_over(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    with RunLock(tmp_path) as lock: assert "unreadable" in lock.note
    assert os.listdir(tmp_path) == []


def test_huge_process_numbers(tmp_path):
    (tmp_path / "run.lock").write_text(owner(pid=10**30))
    with RunLock(tmp_path) as lock: assert "gone" in lock.note


RACE = """
import sys
from audiolab.training import RunLock, RunLocked
print("ready"); sys.stdin.readline()
won = False
for _ in range(30):
    try: RunLock(sys.argv[1]).acquire(); won = True; break
    except RunLocked: pass
print("tried"); sys.stdin.readline()
if won: print("won")
"""


def test_of_many_that_find_a_dead_lock_one_wins(tmp_path):
    "The winner holds its lock until all have tried"
    (tmp_path / "run.lock").write_text(owner(pid=2**22 + 1))
    racers = [script(RACE, tmp_path, stdin=subprocess.PIPE) for _ in range(4)]
    for r in racers: says(r, "ready")
    for r in racers:
        r.stdin.write("go\n")
        r.stdin.flush()
    for r in racers: says(r, "tried")
    said = [r.communicate("go home\n", timeout=PATIENCE)[0] for r in racers]
    assert sum("won" in text for text in said) == 1, said


def test_release_leaves_the_lock_of_another(tmp_path):
    lock = RunLock(tmp_path).acquire()
    (tmp_path / "run.lock").write_text(owner(host="elsewhere"))
    lock.release()
    assert (tmp_path / "run.lock").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_release_it(tmp_path):
    with RunLock(tmp_path) as lock:
        if (pid := os.fork()) == 0:
            lock.release()
            os._exit(0)
        os.waitpid(pid, 0)
        assert lock.path.exists()


def test_an_old_command_does_not_stop_a_new_run(tmp_path, caplog):
    send(tmp_path, "stop")
    with RunLock(tmp_path):
        control = Control(tmp_path)
        assert control.poll() == set() and control.state == "running"
    assert "a command to an earlier run was dropped" in caplog.text
