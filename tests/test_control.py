"A run obeys threads, files, signals and other processes, each wish once; two runs never share a folder."
import json, logging, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path

import pytest

from audiolab.training import control as module
from audiolab.training import (
    Control, ControlConfig, ControlError, RunLock, RunLocked, control_command, exit_code,
    send, stop_on_signals,
)

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
PATIENCE = 60  # s, for a busy machine


def until(condition, what="it"):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.01)
    return found


def script(code, *args, **kwargs):
    "A child process that runs `code`; its output can be read line by line"
    return subprocess.Popen([sys.executable, "-u", "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


# --- states

WISHES = ("pause", "resume", "stop", "sample", "save")
TABLE = {("running", "pause"): "paused", ("running", "stop"): "stopping", ("paused", "resume"): "running", ("paused", "stop"): "stopping"}


@pytest.mark.parametrize("state", ["running", "paused", "stopping", "stopped", "completed", "failed"])
@pytest.mark.parametrize("wish", WISHES)
def test_every_wish_in_every_state(state, wish):
    control = Control()
    if state == "paused": control.pause()
    elif state == "stopping": control.stop()
    elif state != "running": control.finish(state)
    assert control.state == state
    changed = getattr(control, wish)()
    alive = state in ("running", "paused", "stopping")
    assert control.state == TABLE.get((state, wish), state)
    assert changed == ((state, wish) in TABLE or (wish in ("sample", "save") and alive))
    assert control.poll() == ({wish} if wish in ("sample", "save") and alive else set())


def test_reasons_and_a_new_start():
    control = Control()
    control.stop("no patience left")
    control.finish("stopped"); assert control.reason == "no patience left"
    control.finish("failed", "NaN"); assert (control.state, control.reason) == ("failed", "NaN")
    with pytest.raises(ControlError, match="'running'"): control.finish("running")
    control.save() ; control.start()
    assert (control.state, control.reason, control.signal, control.poll()) == ("running", "", None, set())


def test_many_threads_lose_no_request_and_end_in_one_state():
    control, seen = Control(), []
    def wish(n):
        for _ in range(200): control.pause(); control.resume(); (control.sample if n % 2 else control.save)()
    threads = [threading.Thread(target=wish, args=(n,)) for n in range(4)]
    for t in threads: t.start()
    while any(t.is_alive() for t in threads): seen.append(control.poll()); time.sleep(0)
    control.sample(); control.save()
    assert control.poll() == {"sample", "save"} and control.state in ("running", "paused")
    assert set().union(*seen) <= {"sample", "save"}


def test_polling_costs_nothing(tmp_path):
    control = Control(tmp_path)
    def cost(n=20_000):
        begin = time.thread_time()
        for _ in range(n): control.poll(tmp_path)
        return (time.thread_time() - begin) / n
    assert min(cost() for _ in range(5)) < 2e-6


def test_looks_at_the_disk_at_most_twice_a_second(tmp_path, monkeypatch):
    looks, now, control = [], [100.0], Control(tmp_path)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.os, "lstat", lambda path: looks.append(path) or (_ for _ in ()).throw(FileNotFoundError))
    for _ in range(1000): control.poll(); now[0] += 0.01
    assert 18 <= len(looks) <= 21  # in ten seconds


# --- pausing

def test_pause_and_resume_from_another_thread():
    control, steps = Control(), []
    def loop():
        while control.state == "running" or (control.wait_while_paused() or control.state == "running"): steps.append(0); control.poll(); time.sleep(0.001)
        control.finish("stopped")
    thread = threading.Thread(target=loop); thread.start()
    until(lambda: len(steps) > 3, "a step")
    control.pause(); time.sleep(0.1)
    before = len(steps); time.sleep(0.2); assert len(steps) == before
    control.resume(); until(lambda: len(steps) > before + 3, "a step after the pause")
    control.pause(); control.stop(); thread.join(PATIENCE)
    assert not thread.is_alive() and control.state == "stopped"


def test_requests_while_paused(tmp_path):
    "With `act` they are fulfilled at once, without it they wait"
    control, acted = Control(tmp_path), []
    control.pause(); control.sample()
    threading.Timer(0.15, control.resume).start()
    control.wait_while_paused(); assert control.poll() == {"sample"}
    control.pause()
    def act(requests):
        acted.append(requests)
        if requests == {"sample"}: send(tmp_path, "save"); send(tmp_path, "resume")
    control.sample(); control.wait_while_paused(act)
    if len(acted) == 1: acted.append(control.poll())  # it may have seen both words at once
    assert acted == [{"sample"}, {"save"}] and control.state == "running"


# --- the control file

def look(control, folder):
    control._next_look = 0
    return control.poll(folder)


def test_every_command_by_file(tmp_path):
    control = Control()
    send(tmp_path, "pause"); look(control, tmp_path); assert control.state == "paused"
    send(tmp_path, "sample"); send(tmp_path, "save"); assert look(control, tmp_path) == {"sample", "save"}
    send(tmp_path, "resume"); look(control, tmp_path); assert control.state == "running"
    send(tmp_path, "stop"); look(control, tmp_path); assert (control.state, exit_code(control)) == ("stopping", 0)
    assert os.listdir(tmp_path) == []


def test_the_same_word_again_is_obeyed_again(tmp_path):
    control = Control()
    for _ in range(20): send(tmp_path, "sample"); assert look(control, tmp_path) == {"sample"}


def test_words_by_hand_and_unknown_ones(tmp_path, caplog):
    control = Control()
    (tmp_path / "control").write_text("  save\n\n faster\x1b[31m sample")
    assert look(control, tmp_path) == {"save", "sample"}
    assert len(caplog.records) == 1 and "'faster\\x1b[31m' is no command; there are pause" in caplog.text
    (tmp_path / "control").write_bytes(b"\xff\xfe\0 pause"); look(control, tmp_path)
    assert control.state == "paused" and "is no command" in caplog.records[-1].message


def test_an_empty_file_waits_for_its_words(tmp_path):
    control, path = Control(), tmp_path / "control"
    path.touch(); look(control, tmp_path); assert path.exists()
    path.write_text("pause"); look(control, tmp_path)
    assert control.state == "paused" and not path.exists()


def test_what_is_no_control_file_is_named_once(tmp_path, caplog):
    control, path = Control(), tmp_path / "control"
    path.mkdir(); look(control, tmp_path); look(control, tmp_path)
    assert [r.message for r in caplog.records] == [f"{path} is ignored: it is not a regular file"]
    path.rmdir(); caplog.clear()
    (tmp_path / "secret").write_text("stop"); path.symlink_to(tmp_path / "secret"); look(control, tmp_path)
    assert control.state == "running" and (tmp_path / "secret").exists() and "not a regular file" in caplog.text
    path.unlink(); caplog.clear()
    if hasattr(os, "mkfifo"): os.mkfifo(path); look(control, tmp_path); path.unlink()  # does not block
    path.write_bytes(b"stop " * 10_000_000); begin = time.thread_time(); look(control, tmp_path)
    assert time.thread_time() - begin < 0.2 and control.state == "running" and "more than 1000 bytes" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    def refuse(*args): raise PermissionError(13, "Permission denied")
    control = Control()
    (tmp_path / "control").write_text("stop"); monkeypatch.setattr(module.os, "rename", refuse)
    look(control, tmp_path); look(control, tmp_path)
    assert control.state == "running" and len(caplog.records) == 1 and "Permission denied" in caplog.text
    with pytest.raises(ControlError, match="check the folder and its permissions"): send(tmp_path, "stop")
    assert os.listdir(tmp_path) == ["control"]


def test_unread_commands_stay_few(tmp_path):
    for _ in range(500): send(tmp_path, "pause"); send(tmp_path, "resume"); send(tmp_path, "sample")
    assert (tmp_path / "control").read_text().split() == ["pause", "resume", "sample"]


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*args): raise OSError(95, "Operation not supported")
    monkeypatch.setattr(module.os, "link", refuse)
    control = Control()
    send(tmp_path, "pause"); send(tmp_path, "save")
    assert look(control, tmp_path) == {"save"} and control.state == "paused" and os.listdir(tmp_path) == []


def test_no_command_is_lost_between_processes(tmp_path, monkeypatch):
    "Three processes send while this one reads: each word of theirs arrives exactly once"
    code = """
import sys
from audiolab.training import control as control
control._COMMANDS, control._MAX_CONTROL = tuple(f"word{i}" for i in range(1000)), 100_000
for i in range(int(sys.argv[2]), 300, 3): control.send(sys.argv[1], f"word{i}")
"""
    monkeypatch.setattr(module, "_MAX_CONTROL", 100_000)
    senders, words, end = [script(code, tmp_path, n) for n in range(3)], [], time.monotonic() + PATIENCE
    while True:
        done = all(s.poll() is not None for s in senders)
        try: words += module._take(tmp_path / "control").split()
        except FileNotFoundError:
            if done: break
        assert time.monotonic() < end
        time.sleep(0.002)
    for s in senders: assert s.wait() == 0, s.communicate()[1]
    assert sorted(words) == sorted(f"word{i}" for i in range(300))
    assert os.listdir(tmp_path) == []


# --- signals

LOOP = """
import sys, time
from audiolab.training import Control, exit_code, stop_on_signals
control, step = Control(sys.argv[1]), 0
try:
    with stop_on_signals(control):
        print("ready")
        while control.state in ("running", "paused"):
            control.poll()
            if control.state == "paused": print("paused"); control.wait_while_paused(); print("awake")
            step += 1; time.sleep(0.01)
        print("saving", control.reason)
        if len(sys.argv) > 2: time.sleep(60)  # a slow save
        control.finish("stopped")
except KeyboardInterrupt: print("now"); control.finish("failed", "interrupted twice")
print(control.state); sys.exit(exit_code(control))
"""


def says(process, word):
    for line in process.stdout:
        if line.startswith(word): return line.strip()
    raise AssertionError(f"never said {word!r}: {process.stderr.read()}")


@posix
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_a_signal_ends_the_run_after_its_step(tmp_path, name, code):
    process = script(LOOP, tmp_path); says(process, "ready")
    process.send_signal(getattr(signal, name))
    assert name in says(process, "saving"); says(process, "stopped")
    assert process.wait(PATIENCE) == code


@posix
def test_a_signal_ends_a_pause(tmp_path):
    process = script(LOOP, tmp_path); says(process, "ready")
    send(tmp_path, "pause"); says(process, "paused")
    process.send_signal(signal.SIGTERM); says(process, "awake"); says(process, "stopped")
    assert process.wait(PATIENCE) == 143


@posix
@pytest.mark.parametrize("first, second, wait", [("SIGINT", "SIGINT", 0.5), ("SIGUSR1", "SIGTERM", 0)])
def test_a_second_signal_ends_it_at_once(tmp_path, first, second, wait):
    process = script(LOOP, tmp_path, "slow"); says(process, "ready")
    process.send_signal(getattr(signal, first)); says(process, "saving"); time.sleep(wait)
    process.send_signal(getattr(signal, second)); says(process, "now")
    assert process.wait(PATIENCE) == 1


@posix
@pytest.mark.parametrize("launcher, count, gap", [("", 2, 0.0), ("torchrun", 2, 0.6)])
def test_one_wish_delivered_twice_counts_once(monkeypatch, launcher, count, gap):
    if launcher: monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    else: monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    control, now = Control(), [10.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with stop_on_signals(control):
        for _ in range(count): signal.raise_signal(signal.SIGTERM); now[0] += gap
        assert control.state == "stopping"
        now[0] += 2
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGTERM)


@posix
def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        control = Control()
        with stop_on_signals(control):
            signal.raise_signal(signal.SIGUSR1); assert control.state == "running"
            assert signal.getsignal(signal.SIGINT) is not before
        assert signal.getsignal(signal.SIGINT) is before and signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally: signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []
    def work():
        with stop_on_signals(Control()): seen.append(signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=work); thread.start(); thread.join()
    assert seen == [before]


@posix
def test_a_signal_while_the_lock_is_held_does_not_hang():
    control = Control()
    with stop_on_signals(control), control._changed:
        signal.raise_signal(signal.SIGTERM)
        assert control.state == "stopping" and "SIGTERM" in control.reason


def test_exit_codes():
    def code(state, number=None):
        control = Control(); control._number = number; control.finish(state)
        return exit_code(control)
    assert [code("completed"), code("stopped"), code("failed")] == [0, 0, 1]
    assert [code("stopped", signal.SIGINT), code("stopped", signal.SIGTERM)] == [130, 143]
    assert code("completed", signal.SIGTERM) == 0  # the last step was the last one anyway
    if hasattr(signal, "SIGUSR1"): assert code("stopped", signal.SIGUSR1) == 75


# --- the lock

HOLD = "import sys, time; from audiolab.training import RunLock; RunLock(sys.argv[1]).acquire(); print('held'); time.sleep(float(sys.argv[2]))"


def test_a_second_process_is_refused_and_a_killed_one_replaced(tmp_path):
    folder = tmp_path / "new" / "run"
    process = script(HOLD, folder, 60); says(process, "held")
    with pytest.raises(RunLocked, match=f"process {process.pid} on .*works in it; .*another folder"): RunLock(folder).acquire()
    process.kill(); process.wait()
    with RunLock(folder) as lock: assert f"process {process.pid}" in lock.note and "taken over" in lock.note
    assert os.listdir(folder) == []


def test_the_same_process_twice(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(RunLocked, match="works in it"): RunLock(tmp_path).acquire()
        assert (tmp_path / "run.lock").exists()
    with RunLock(tmp_path) as lock: assert lock.note == ""


def test_released_at_exit_without_a_with_block(tmp_path):
    process = script(HOLD, tmp_path, 0); assert process.wait(PATIENCE) == 0
    assert os.listdir(tmp_path) == []


def owner(**changes): return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "born": module._born(os.getpid()), "since": "then"} | changes)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_number_used_again_is_not_the_same_process(tmp_path):
    (tmp_path / "run.lock").write_text(owner(born="boot:1"))
    with RunLock(tmp_path) as lock: assert "taken over" in lock.note


def test_without_proc_a_living_number_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_born", lambda pid: None)
    (tmp_path / "run.lock").write_text(owner(pid=os.getppid()))
    with pytest.raises(RunLocked): RunLock(tmp_path).acquire()


def test_another_machine_is_believed(tmp_path):
    (tmp_path / "run.lock").write_text(owner(host="elsewhere", pid=2**22 + 1))
    with pytest.raises(RunLocked, match="on elsewhere .*delete run.lock there and start again"): RunLock(tmp_path).acquire()
    (tmp_path / "run.lock").unlink()
    with RunLock(tmp_path): pass


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "1"}', '{"pid": -1, "host": "", "born": null, "since": ""}', "[" * 1999, "\0" * 100,
                                     '{"pid": 1e999}', "x" * 100_000])
def test_a_torn_lock_is_taken_over(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    with RunLock(tmp_path) as lock: assert "unreadable" in lock.note
    assert os.listdir(tmp_path) == []


def test_huge_process_numbers(tmp_path):
    (tmp_path / "run.lock").write_text(owner(pid=10**30))
    with RunLock(tmp_path) as lock: assert "gone" in lock.note


def test_of_many_that_find_a_dead_lock_one_wins(tmp_path):
    code = """
import sys, time
from audiolab.training import RunLock, RunLocked
print("ready"); sys.stdin.readline()
for _ in range(30):
    try: RunLock(sys.argv[1]).acquire(); print("won"); time.sleep(1.5); break
    except RunLocked: pass
print("end")
"""
    (tmp_path / "run.lock").write_text(owner(pid=2**22 + 1))
    racers = [script(code, tmp_path, stdin=subprocess.PIPE) for _ in range(4)]
    for r in racers: says(r, "ready")
    for r in racers: r.stdin.write("go\n"); r.stdin.flush()
    out = [r.communicate(timeout=PATIENCE)[0] for r in racers]
    assert sum("won" in o for o in out) == 1, out


def test_release_leaves_the_lock_of_another(tmp_path):
    lock = RunLock(tmp_path).acquire()
    (tmp_path / "run.lock").write_text(owner(host="elsewhere"))
    lock.release(); assert (tmp_path / "run.lock").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_release_it(tmp_path):
    with RunLock(tmp_path) as lock:
        if (pid := os.fork()) == 0:
            lock.release(); os._exit(0)
        os.waitpid(pid, 0)
        assert lock.path.exists()


def test_an_old_command_does_not_stop_a_new_run(tmp_path, caplog):
    send(tmp_path, "stop")
    with RunLock(tmp_path):
        control = Control(tmp_path)
        assert look(control, tmp_path) == set() and control.state == "running"
    assert "a command to an earlier run was dropped" in caplog.text


# --- the command

LIVE = """
import sys
from audiolab.training import Control, RunLock
import time
with RunLock(sys.argv[1]):
    control = Control(sys.argv[1]); print("ready")
    while control.state != "stopping":
        time.sleep(0.01)
        for request in sorted(control.poll()): print(request)
        if control.state == "paused": print("paused"); control.wait_while_paused(); print("resumed")
print("ended")
"""


def test_command_from_another_process(tmp_path, caplog):
    caplog.set_level(logging.INFO, "audiolab.training.control")
    process = script(LIVE, tmp_path); says(process, "ready")
    for command, answer in {"sample": "sample", "save": "save", "pause": "paused", "resume": "resumed", "stop": "ended"}.items():
        assert control_command(ControlConfig(tmp_path, command, wait=PATIENCE)) == 0
        says(process, answer)
    assert process.wait(PATIENCE) == 0 and f"process {process.pid}" in caplog.text and "has taken 'stop'" in caplog.text


def test_command_without_a_live_run(tmp_path, caplog):
    caplog.set_level(logging.INFO, "audiolab.training.control")
    with pytest.raises(ControlError, match="no such folder"): control_command(ControlConfig(tmp_path / "nowhere", "stop"))
    with pytest.raises(ControlError, match="no run is alive there"): control_command(ControlConfig(tmp_path, "stop"))
    (tmp_path / "run.lock").write_text(owner(pid=2**22 + 1))
    with pytest.raises(ControlError, match="no run is alive there"): control_command(ControlConfig(tmp_path, "stop"))
    assert os.listdir(tmp_path) == ["run.lock"]
    (tmp_path / "run.lock").write_text(owner())
    with pytest.raises(ControlError, match="'faster' is no command"): control_command(ControlConfig(tmp_path, "faster"))
    assert control_command(ControlConfig(tmp_path, "stop", wait=0.1)) == 0 and "has not taken 'stop' yet" in caplog.text


def test_command_line_form():
    from audiolab.config import config_cli
    resolved = config_cli(ControlConfig, ["runs/a", "pause"], prog="audiolab control", positional=True, description="", presets=None)
    assert resolved.config == ControlConfig(Path("runs/a"), "pause")
