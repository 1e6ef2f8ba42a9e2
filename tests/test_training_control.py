"The loop, asked from outside: threads, signals, listeners, errors"
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from audiolab.files import CheckpointFolder
from audiolab.training import Control, Distributed, Requests, Trainer, read_history

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Denoise, config, start, wait_for, wait_for_line
from fault_runs import one_thread  # noqa: F401


# control

def test_pause_resume_stop_and_sample_from_another_thread(tmp_path):
    seen, trainer = [], Trainer(Denoise(slow=.002),
                                config(steps=100_000, save_every="never"), tmp_path)
    trainer.listeners.append(seen.append)
    trainer.fit(background=True)
    wait_for(lambda: any(event.kind == "log" for event in seen))
    trainer.control.pause()
    wait_for(lambda: seen[-1].kind == "state")
    step = trainer.loop.step
    time.sleep(.2)
    assert trainer.loop.step == step
    trainer.control.resume()
    wait_for(lambda: trainer.loop.step > step)
    trainer.control.sample()
    wait_for(lambda: any(event.kind == "sample" for event in seen))
    trainer.control.stop()
    result = trainer.join(30)
    assert (result.state, result.reason) == ("stopped", "stopped by hand")
    assert CheckpointFolder(tmp_path/"checkpoints").resolve("auto").stem == f"checkpoint_step_{result.step}"
    assert [event.values["state"] for event in seen if event.kind == "state"] == ["paused", "running"]


def test_an_error_in_the_background_is_raised_by_join(tmp_path):
    class Broken(Denoise):
        def step(self, batch, loop): raise ZeroDivisionError("in the middle of a step")
    trainer = Trainer(Broken(), config(), tmp_path)
    trainer.fit(background=True)
    with pytest.raises(ZeroDivisionError): trainer.join()
    # half a step is not saved
    assert trainer.control.state == "failed" and not list(tmp_path.glob("checkpoints/*"))


def test_a_run_in_the_background_is_stopped_and_saved_when_python_ends(tmp_path):
    code = ("import sys, time; sys.path.insert(0, sys.argv[1])\nfrom engine_tasks import *\n"
            "trainer = Trainer(Denoise(slow=.01), config(steps=10_000, save_every='never'), sys.argv[2]); trainer.fit(background=True)\n"
            "while trainer.loop is None or trainer.loop.step < 5: time.sleep(.01)")
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "terminate" not in done.stderr and CheckpointFolder(tmp_path/"checkpoints").resolve("auto")
    assert read_history(tmp_path)[-1]["values"]["reason"] == "Python ended"


def test_a_run_in_the_background_stays_in_its_folder(tmp_path, monkeypatch):
    "A notebook that goes to another folder does not take the checkpoints along"
    (tmp_path/"elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(Denoise(slow=.002), config(steps=100_000, save_every="5 steps"), "run")
    trainer.fit(background=True)
    wait_for(lambda: trainer.loop is not None and trainer.loop.step > 3)
    monkeypatch.chdir("elsewhere")
    reached = trainer.loop.step
    wait_for(lambda: trainer.loop.step > reached+10)
    trainer.control.stop()
    result = trainer.join(30)
    assert not list((tmp_path/"elsewhere").iterdir()) and str(result.folder) == "run"
    latest = CheckpointFolder(tmp_path/"run/checkpoints").resolve("auto")
    assert latest.stem == f"checkpoint_step_{result.step}" and read_history(tmp_path/"run")[-1]["kind"] == "end"


def test_a_failure_outside_a_step_is_saved_first(tmp_path):
    class Deaf(Denoise):
        def validate(self, loop): raise OSError("the loudspeaker is gone")
    with pytest.raises(OSError, match="loudspeaker"):
        Trainer(Deaf(), config(save_every="never"), tmp_path).fit()
    assert CheckpointFolder(tmp_path/"checkpoints").resolve("auto").stem == "checkpoint_step_7"
    assert read_history(tmp_path)[-1]["values"]["state"] == "failed"


def test_a_listener_that_fails_loses_its_place_not_the_run(tmp_path, caplog):
    def broken(event): raise KeyError("widget")
    seen, trainer = [], Trainer(Denoise(), config(steps=10, log_every=1), tmp_path, [broken])
    trainer.listeners.append(seen.append)
    assert trainer.fit().state == "completed" and seen[-1].kind == "end"
    assert broken not in trainer.listeners and caplog.text.count("listener failed") == 2


def test_a_listener_that_fails_for_a_while_keeps_its_place(tmp_path):
    heard = []
    def moody(event):
        if event.kind == "log" and 5 <= event.step < 10: raise OSError("No space left on device")
        if event.kind == "log": heard.append(event.step)
    trainer = Trainer(Denoise(), config(steps=20, log_every=1), tmp_path, [moody])
    trainer.fit()
    assert moody in trainer.listeners and heard == [1, 2, 3, 4, *range(10, 21)]


class Two(Distributed):
    "As one of two processes, of which the other asks for nothing"
    def __init__(self): super().__init__(world=2)
    def most(self, flags): return flags


@pytest.mark.parametrize("place", [Distributed(), Two()], ids=["one process", "several"])
@pytest.mark.parametrize("together", [True, False])
def test_wishes_in_a_pause_are_acted_on_in_it(place, together):
    "Also those that came with the pause; a person may switch the machine off after them"
    control, acted = Control(), []
    requests = Requests(config(save_every="never"), control=control, place=place)
    requests.act = lambda asked: (acted.append((control.state, asked)), control.resume())
    control.pause()
    later = threading.Timer(.1, control.save)
    later.start() if not together else control.save()
    due = requests.due()
    later.cancel()
    assert acted == [("paused", {"save"})] and due.save == "" and control.state == "running"


QUEUED_AGAIN = pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow)


@pytest.mark.parametrize("number, code", [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), QUEUED_AGAIN])
def test_signals_save_and_end(number, code, tmp_path):
    process = start("denoise", tmp_path, "slow=0.01", "steps=100000", 'save_every="never"')
    wait_for_line(process, "log")
    process.send_signal(number)
    process.communicate(timeout=60)
    last = CheckpointFolder(tmp_path/"checkpoints").resolve("auto")
    assert process.returncode == code and last.stem == f"checkpoint_step_{read_history(tmp_path)[-1]['step']}"


def test_a_second_signal_ends_at_once(tmp_path):
    "It does not wait for a step that would take hours; two different ones are never one wish delivered twice"
    process = start("denoise", tmp_path, "slow=10000", "steps=100000")
    wait_for_line(process, "start")
    time.sleep(.5)
    for _ in range(12):  # what is raised while Python clears up an import is dropped
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        try: process.communicate(timeout=10)
        except subprocess.TimeoutExpired: continue
        break
    assert process.returncode
    assert not [row for row in read_history(tmp_path) if row["kind"] == "log"]
