"A run obeys threads, files and signals, each wish once, at the end of a step."
import os
import signal
import threading
import time

import pytest
from child_processes import PATIENCE, says, script, until

from audiolab.training import (
    Control, ControlError, command_file, control, exit_code, send, stop_on_signals,
)

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


# --- states

WISHES = ("pause", "resume", "stop", "sample", "save")
TABLE = {("running", "pause"): "paused", ("running", "stop"): "stopping",
         ("paused", "resume"): "running", ("paused", "stop"): "stopping"}


def control_in(state):
    "A control that was brought to a state"
    control = Control()
    if state == "paused": control.pause()
    elif state == "stopping": control.stop()
    elif state != "running": control.finish(state)
    assert control.state == state
    return control


@pytest.mark.parametrize("state",
    ["running", "paused", "stopping", "stopped", "completed", "failed"])
@pytest.mark.parametrize("wish", WISHES)
def test_every_wish_in_every_state(state, wish):
    control = control_in(state)
    changed = getattr(control, wish)()
    alive = state in ("running", "paused", "stopping")
    requested = wish in ("sample", "save") and alive
    assert control.state == TABLE.get((state, wish), state)
    assert changed == ((state, wish) in TABLE or requested)
    assert control.poll() == ({wish} if requested else set())


def test_reasons_and_a_new_start():
    control = Control()
    control.stop("no patience left")
    control.finish("stopped")
    assert control.reason == "no patience left"
    control.finish("failed", "NaN")
    assert (control.state, control.reason) == ("failed", "NaN")
    with pytest.raises(ControlError, match="'running'"): control.finish("running")
    control.save()
    control.start()
    assert (control.state, control.reason, control.signal) == ("running", "", None)
    assert control.poll() == set()


def test_many_threads_lose_no_request_and_end_in_one_state():
    control, seen = Control(), []

    def wish(n):
        request = control.sample if n % 2 else control.save
        for _ in range(200):
            control.pause()
            control.resume()
            request()
    threads = [threading.Thread(target=wish, args=(n,)) for n in range(4)]
    for t in threads: t.start()
    while any(t.is_alive() for t in threads):
        seen.append(control.poll())
        time.sleep(0)
    control.sample()
    control.save()
    assert control.poll() == {"sample", "save"} and control.state in ("running", "paused")
    assert set().union(*seen) <= {"sample", "save"}


def test_polling_costs_no_more_than_a_few_looks_at_the_clock(tmp_path):
    control = Control(tmp_path)

    def cost(call, *args, n=20_000):
        begin = time.thread_time()
        for _ in range(n): call(*args)
        return time.thread_time() - begin
    pairs = [(cost(control.poll, tmp_path), cost(time.monotonic)) for _ in range(5)]
    assert min(poll for poll, _ in pairs) < 20*min(clock for _, clock in pairs)


def test_looks_at_the_disk_at_most_twice_a_second(tmp_path, monkeypatch):
    looks, now, control = [], [100.0], Control(tmp_path)

    def look(path):
        looks.append(path)
        raise FileNotFoundError
    monkeypatch.setattr(command_file.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(command_file.os, "lstat", look)
    for _ in range(1000):
        control.poll()
        now[0] += 0.01
    assert 18 <= len(looks) <= 21  # in ten seconds


# --- pausing

def test_pause_and_resume_from_another_thread():
    "While it is paused a loop makes no step, however many requests it fulfils"
    control, steps, acted, asleep = Control(), [], [], threading.Event()

    def loop():
        while control.state in ("running", "paused"):
            steps.append(0)
            time.sleep(0.001)
            if control.state == "paused": asleep.set()
            control.wait_while_paused(acted.append)
        control.finish("stopped")
    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    until(lambda: len(steps) > 3, "a step")
    control.pause()
    assert asleep.wait(PATIENCE)
    before = len(steps)
    for _ in range(3):
        heard = len(acted)
        control.sample()
        until(lambda seen=heard: len(acted) > seen, "a sample in the pause")
    assert len(steps) == before
    control.resume()
    until(lambda: len(steps) > before + 3, "a step after the pause")
    control.pause()
    control.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive() and control.state == "stopped"


def test_requests_while_paused(tmp_path):
    "With `act` they are fulfilled at once, without it they wait"
    control, acted = Control(tmp_path), []
    control.pause()
    control.sample()
    threading.Timer(0.15, control.resume).start()
    control.wait_while_paused()
    assert control.poll() == {"sample"}
    control.pause()

    def act(requests):
        acted.append(requests)
        if requests != {"sample"}: return
        send(tmp_path, "save")
        send(tmp_path, "resume")
    control.sample()
    control.wait_while_paused(act)
    if len(acted) == 1: acted.append(control.poll())  # it may have seen both words at once
    assert acted == [{"sample"}, {"save"}] and control.state == "running"


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
            if control.state == "paused":
                print("paused"); control.wait_while_paused(); print("awake")
            step += 1; time.sleep(0.01)
        print("saving", control.reason)
        if len(sys.argv) > 2: time.sleep(60)  # a slow save
        control.finish("stopped")
except KeyboardInterrupt: print("now"); control.finish("failed", "interrupted twice")
print(control.state); sys.exit(exit_code(control))
"""


@posix
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 75)])
def test_a_signal_ends_the_run_after_its_step(tmp_path, name, code):
    process = script(LOOP, tmp_path)
    says(process, "ready")
    process.send_signal(getattr(signal, name))
    assert name in says(process, "saving")
    says(process, "stopped")
    assert process.wait(PATIENCE) == code


@posix
def test_a_signal_ends_a_pause(tmp_path):
    process = script(LOOP, tmp_path)
    says(process, "ready")
    send(tmp_path, "pause")
    says(process, "paused")
    process.send_signal(signal.SIGTERM)
    says(process, "awake")
    says(process, "stopped")
    assert process.wait(PATIENCE) == 143


@posix
@pytest.mark.parametrize("first, second, wait",
    [("SIGINT", "SIGINT", 0.5), ("SIGUSR1", "SIGTERM", 0)])
def test_a_second_signal_ends_it_at_once(tmp_path, first, second, wait):
    process = script(LOOP, tmp_path, "slow")
    says(process, "ready")
    process.send_signal(getattr(signal, first))
    says(process, "saving")
    time.sleep(wait)
    process.send_signal(getattr(signal, second))
    says(process, "now")
    assert process.wait(PATIENCE) == 1


@posix
@pytest.mark.parametrize("launcher, count, gap", [("", 2, 0.0), ("torchrun", 2, 0.6)])
def test_one_wish_delivered_twice_counts_once(monkeypatch, launcher, count, gap):
    if launcher: monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    else: monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    wanted, now = Control(), [10.0]
    monkeypatch.setattr(control.time, "monotonic", lambda: now[0])
    with stop_on_signals(wanted):
        for _ in range(count):
            signal.raise_signal(signal.SIGTERM)
            now[0] += gap
        assert wanted.state == "stopping"
        now[0] += 2
        with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGTERM)


@posix
def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        control = Control()
        with stop_on_signals(control):
            signal.raise_signal(signal.SIGUSR1)
            assert control.state == "running"
            assert signal.getsignal(signal.SIGINT) is not before
        assert signal.getsignal(signal.SIGINT) is before
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally: signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_outside_the_main_thread_signals_are_left_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_on_signals(Control()): seen.append(signal.getsignal(signal.SIGTERM))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@posix
def test_a_signal_while_the_lock_is_held_does_not_hang():
    control = Control()
    with stop_on_signals(control), control._run.changed:
        signal.raise_signal(signal.SIGTERM)
        assert control.state == "stopping" and "SIGTERM" in control.reason


def test_exit_codes():
    def code(state, number=None):
        control = Control()
        control._run.signal = number
        control.finish(state)
        return exit_code(control)
    assert [code("completed"), code("stopped"), code("failed")] == [0, 0, 1]
    assert [code("stopped", signal.SIGINT), code("stopped", signal.SIGTERM)] == [130, 143]
    assert code("completed", signal.SIGTERM) == 0  # the last step was the last one anyway
    if hasattr(signal, "SIGUSR1"): assert code("stopped", signal.SIGUSR1) == 75
