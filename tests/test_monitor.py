"The monitor without a browser: what it shows, what its buttons do, what it leaves, and that it never harms the run."
import base64, gc, logging, subprocess, sys, threading, time, weakref
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from audiolab.training import Control
from audiolab.watch import Monitor, watch
from audiolab.watch import SampleShelf
from audiolab.training import Event, RunFolder, Sample
from audiolab.training import Task, Trainer, TrainingConfig

TONE = .5*np.sin(np.arange(4000)/9).astype(np.float32)


def trainer(tmp_path="nowhere"):
    return SimpleNamespace(control=Control(), folder=tmp_path, listeners=[], error=None)


def start(step=0, resumed=None):
    return Event("start", step, 0, 0.,
                 dict(folder="runs/a", config={}, total_steps=100, steps_per_epoch=None,
                      parameters=1, device="cpu", resumed=resumed))


def log(step, loss=.5):
    return Event("log", step, 0, 1., dict(loss=loss, gradient_norm=.1, steps_per_second=10.,
                                          seconds_left=9., memory=3e8))
def sample(step, *names, level=1.):
    return Event("sample", step, 0, 1.,
                 dict(samples=[Sample(n, level*TONE, 8000,
                                      reference=TONE if n != "alone" else None) for n in names]))
def end(step, state="completed", reason=""):
    return Event("end", step, 0, 1., dict(state=state, reason=reason))


@pytest.fixture
def still():
    "A monitor whose painter sleeps: the test refreshes"
    return Monitor(trainer(), interval=3600)


def tell(monitor, *events):
    for event in events: monitor(event)
    monitor.refresh()
    return monitor


def test_it_shows_where_the_run_stands(still):
    assert "not started" in still.headline.value and still.pause.disabled and still.stop.disabled
    assert still.listen.disabled
    empty = still.curves.value
    tell(still, start(), log(10))
    assert "running at step 10/100" in still.headline.value and not still.pause.disabled
    assert not still.listen.disabled
    assert still.numbers.value == "loss 0.5000, 10 steps/s, 9s left, 300 MB, gradient norm 0.1000"
    assert still.curves.value != empty
    assert Image.open(BytesIO(still.curves.value)).size == (800, 260)


def test_buttons_ask_the_control(still):
    tell(still, start(), log(1))
    control = still.trainer.control
    still.pause.click()
    assert control.state == "paused" and still.pause.description == "Resume"
    assert "paused" in still.headline.value
    still.listen.click()
    assert control.poll() == {"sample"}
    still.pause.click()
    assert control.state == "running" and still.pause.description == "Pause"
    still.stop.click()
    assert (control.state, control.reason) == ("stopping", "stopped in the notebook")
    assert still.stop.disabled and still.pause.disabled


def test_samples_are_heard_and_kept(still):
    tell(still, start(), log(1))
    assert still.sounds.layout.display == "none"
    tell(still, sample(10, "one", "two"), sample(20, "one", "alone", level=.5))
    assert still.sounds.layout.display is None and [o[1] for o in still.history.options] == [10, 20]
    assert still.history.value == 20
    audio, rate = soundfile.read(BytesIO(still.output.value))
    assert rate == 8000 and np.abs(audio - .5*TONE).max() < 1e-3
    assert np.abs(soundfile.read(BytesIO(still.target.value))[0] - TONE).max() < 1e-3
    pair = still.spectrograms.value
    still.which.value = 1  # without a target
    assert still.target_box.layout.display == "none" and still.spectrograms.value != pair
    still.history.value = 10
    tell(still, sample(30, "one", "two"))
    assert still.history.value == 10  # who looks at an old one is left in peace
    still.history.value = 30
    tell(still, sample(40, "one", "two"))
    assert still.history.value == 40  # who looks at the newest sees the new one


def test_the_shelf_is_bounded_in_number_and_memory():
    shelf = SampleShelf(keep=10, max_bytes=10*2*TONE.nbytes)
    for step in range(1000): shelf.add(step, sample(step, "a").values["samples"])
    steps = [step for step, _ in shelf.items]
    assert len(steps) == 10 and (steps[0], steps[-1]) == (0, 999) and max(np.diff(steps)) < 400
    shelf.add(500, sample(500, "a").values["samples"])  # resumed
    assert shelf.items[-1][0] == 500
    heavy = SampleShelf(keep=10, max_bytes=1)
    for step in range(5): heavy.add(step, sample(step, "a").values["samples"])
    assert len(heavy.items) == 2


@pytest.mark.parametrize("event", [Event("problem", 5, 0, 1., {"message": "gradient is <nan>"}),
                                   log(5, loss=float("nan")), end(5, "failed", "RuntimeError: <broken>")],
                         ids=["problem", "nan", "failed"])
def test_trouble_is_red(still, event):
    tell(still, start(), log(1))
    assert still.box.layout.border_top == "1px solid #d0d0d0"
    tell(still, event)
    assert still.box.layout.border_top == "2px solid #c0392b" and "#c0392b" in still.headline.value
    said = still.trouble.value + still.headline.value
    # text is no markup
    assert ("&lt;nan&gt;" in said or "not a finite number" in said or "&lt;broken&gt;" in said)
    assert "<nan>" not in said


def test_many_problems_are_counted(still):
    tell(still, start(),
         *(Event("problem", n, 0, 1., {"message": f"trouble {n}"}) for n in range(50)))
    assert "50 problems" in still.trouble.value and "trouble 49" in still.trouble.value and "trouble 46" not in still.trouble.value


def test_a_background_run_that_cannot_begin_is_shown(still):
    still.trainer.error = RuntimeError("the folder is in use")
    still.refresh()
    assert "failed: the folder is in use" in still.headline.value
    assert still.box.layout.border_top.startswith("2px")


def test_a_second_monitor_replaces_the_first():
    t = trainer()
    listeners = t.listeners
    def other(event): return None
    t.listeners.append(other)
    first, second = Monitor(t), Monitor(t)
    assert listeners == [other, second] and first is not second


@pytest.mark.parametrize("first, expected", [(start(30, resumed="x"), [10, 20, 30]),
                                             (log(40), [10, 20, 30, 40])], ids=["resumed", "late"])
def test_it_reads_what_it_has_missed(tmp_path, first, expected):
    run = RunFolder(tmp_path/"run")
    for event in (start(), log(10), sample(10, "a"), log(20), log(30)): run.append(event)
    if first.kind == "log": run.append(first)
    run.close()
    monitor = tell(Monitor(trainer(run), interval=3600), first)
    assert monitor.run_curves.train["loss"].points()[0].tolist() == expected
    assert monitor.status.total_steps == 100 and "running" in monitor.headline.value


def test_the_painter_follows_and_ends_with_the_run():
    monitor = Monitor(trainer(), interval=.05)
    monitor(start())
    threads = {t.name for t in threading.enumerate()}
    assert "audiolab monitor" in threads
    for step in range(1, 6):
        monitor(log(step))
        deadline = time.monotonic() + 20
        while f"step {step}/" not in monitor.headline.value and time.monotonic() < deadline:
            time.sleep(.01)
        assert f"step {step}/" in monitor.headline.value
    monitor.trainer.control.finish("completed", "done")
    monitor(end(5, reason="done"))
    assert monitor.wait(20) and "completed at step 5/100: done" in monitor.headline.value
    assert not monitor.follower.stale
    monitor(start())  # the same trainer once more
    monitor.trainer.control.start()
    monitor(end(1, "stopped"))
    assert monitor.wait(20) and "stopped" in monitor.headline.value


def test_no_event_is_lost_between_threads():
    monitor = Monitor(trainer(), interval=.001)
    for step in range(1, 4001): monitor(log(step))
    monitor(end(4000))
    assert monitor.wait(60)
    curve = monitor.run_curves.train["loss"]
    assert len(curve._points)*curve.stride + len(curve._open) == 4000


def test_a_broken_painter_harms_nobody(monkeypatch, caplog):
    monitor = Monitor(trainer(), interval=.01)
    monkeypatch.setattr(monitor.plot, "draw", lambda curves: 1/0)
    with caplog.at_level(logging.CRITICAL, "audiolab.watch.monitor"):
        monitor(start()), monitor(log(1)), monitor(end(1))
        assert monitor.wait(20)
    assert "cannot paint: ZeroDivisionError" in monitor.trouble.value


def test_numbers_are_new_while_pictures_rest(monkeypatch):
    "A slow picture is painted seldom; what is cheap is not kept waiting"
    import audiolab.watch.monitor as module
    painted = []
    def slow(figure):
        painted.append(time.monotonic())
        time.sleep(.2)
        return b"\x89PNG"
    monkeypatch.setattr(module, "png_bytes", slow)
    monitor = Monitor(trainer(), interval=.05)
    painted.clear()
    began = time.monotonic()
    monitor(start())
    step = 0
    while time.monotonic() < began + 2.5:
        step += 1
        monitor(log(step))
        time.sleep(.02)
    assert len(painted) == 1
    assert int(monitor.headline.value.split("step ")[1].split("/")[0]) > step/2
    monitor(end(step))
    assert monitor.wait(20) and len(painted) == 2


def test_what_remains_is_a_picture(still, tmp_path):
    sent = []
    tell(still, start(), log(1), log(2))
    still.show()
    still._places = [SimpleNamespace(update=lambda data, **how: sent.append(data))]
    long = Sample("long", np.tile(TONE, 100), 8000, reference=TONE)
    tell(still, Event("sample", 3, 0, 1., {"samples": [long]}), end(3, "stopped", "by hand"))
    assert still.wait(20)
    (data,) = sent
    assert Image.open(BytesIO(base64.b64decode(data["image/png"]))).size == (960, 600) and data["text/plain"] == "stopped at step 3/100"
    assert not any("widget" in kind for kind in data)
    assert data["text/html"].count("<audio controls") == 2
    assert "output, the first 25.0 s" in data["text/html"]
    assert len(str(data)) < 900_000
    assert Image.open(still.save_picture(tmp_path/"run.png")).size == (960, 600)


def test_a_monitor_that_is_replaced_is_freed():
    "A notebook makes many of them, each with its samples and pictures"
    t = trainer()
    monitor = Monitor(t, interval=.05)
    monitor(start()), monitor(sample(5, "a"))
    sent = []
    monitor._places = [SimpleNamespace(update=lambda data, **how: sent.append(data))]
    gone = weakref.ref(monitor.plot)
    del monitor
    Monitor(t)
    gc.collect()
    assert gone() is None and len(sent) == 1


# ---- with the real trainer; the cells of test_monitor_ui.py use the same task

class Tones:
    "Batches of noisy tones, each made from its number"
    def __init__(self, size, count): self.size, self.count = size, count
    def __len__(self): return self.count
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

    def batches(self, epoch, start=0):
        for number in range(start, self.count):
            random = np.random.default_rng((epoch, number))
            clean = .5*np.sin(2*np.pi*random.uniform(100, 900, (self.size, 1))*np.arange(8000)/8000)
            yield [torch.tensor(o, dtype=torch.float32)
                   for o in (clean + .3*random.normal(size=clean.shape), clean)]


class Denoise(Task):
    "A filter that learns to take noise from tones"
    name = "denoise"

    def setup(self, loop):
        torch.manual_seed(0)
        self.net = loop.module("model", torch.nn.Conv1d(1, 1, 63, padding=31))
        loop.optimizer("model", torch.optim.Adam(self.net.parameters(), 3e-3))
        loop.data = Tones(1, 1000)

    def step(self, batch, loop):
        noisy, clean = batch
        loss = (self.net(noisy[:, None])[:, 0] - clean).square().mean()
        loop.update("model", loss)
        time.sleep(.002)  # a run that a person has time to watch
        return {"loss": loss.detach()}

    def sample(self, loop):
        noisy, clean = next(Tones(1, 1).batches(10**6))
        return [Sample("tone", self.net(noisy[:, None])[0, 0].numpy(), 8000,
                       reference=clean[0].numpy())]


def denoising(folder):
    return Trainer(Denoise(), TrainingConfig(steps=10**5, log_every=10, validate_every="never",
                                             sample_every="never", save_every="never",
                                             device="cpu"), folder)


def test_with_the_real_trainer(tmp_path):
    "Pause stands still, Sample now answers while paused, Stop saves, and a second run goes on at that step"
    first = denoising(tmp_path)
    monitor = watch(first, interval=.1)
    until(lambda: monitor.status.step >= 20)
    monitor.pause.click()
    until(lambda: monitor.status.state == "paused")
    here = first.loop.step
    monitor.listen.click()
    until(lambda: monitor.output.value)
    assert first.loop.step == here and soundfile.info(BytesIO(monitor.output.value)).frames == 8000
    monitor.pause.click()
    until(lambda: first.loop.step > here + 5)
    monitor.stop.click()
    result = first.join(60)
    assert result.state == "stopped" and monitor.wait(60) and f"step {result.step}/100000: stopped in the notebook" in monitor.headline.value

    second = denoising(tmp_path)
    again = watch(second, resume="auto", interval=.1)
    until(lambda: again.status.step > result.step + 20)
    again.stop.click()
    second.join(60)
    assert again.wait(60)
    steps = again.run_curves.train["loss"].points()[0]
    # one curve, from the first step on
    assert steps[0] == 10 and (np.diff(steps) > 0).all() and steps[-1] > result.step


def test_a_live_run_is_watched_again(tmp_path):
    "As by a cell that is run twice: the new panel has all curves and its buttons steer the run"
    trainer = denoising(tmp_path)
    first = watch(trainer, interval=.1)
    until(lambda: first.status.step >= 30)
    second = watch(trainer, interval=.1)
    assert second.status.step >= 30 and second.state == "running" and trainer.listeners == [second]
    with pytest.raises(RuntimeError, match="watch.trainer."): first.show()
    second.listen.click()
    until(lambda: second.output.value)
    second.pause.click()
    until(lambda: second.status.state == "paused")
    third = watch(trainer, interval=.1)
    assert third.pause.description == "Resume" and "paused" in third.headline.value
    assert third.output.value == second.output.value
    third.stop.click()
    assert trainer.join(60).state == "stopped" and third.wait(60)
    steps = third.run_curves.train["loss"].points()[0]
    assert steps[0] == 10 and (np.diff(steps) > 0).all()


ELSEWHERE = """
import sys
from test_monitor import denoising
denoising(sys.argv[1]).fit()
"""


def test_a_run_of_another_process_is_watched_and_steered(tmp_path):
    folder = tmp_path/"run"
    process = subprocess.Popen([sys.executable, "-c", ELSEWHERE, str(folder)],
                               cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    until(lambda: (folder/"history.jsonl").exists())
    monitor = watch(folder, interval=.1)
    until(lambda: monitor.status.step >= 20)
    monitor.pause.click()
    until(lambda: monitor.state == "paused" and monitor.pause.description == "Resume")
    monitor.listen.click()
    until(lambda: monitor.output.value)
    assert soundfile.info(BytesIO(monitor.output.value)).frames == 8000
    monitor.stop.click()
    assert process.wait(60) == 0 and monitor.wait(60) and monitor.state == "stopped"
    again = watch(str(folder))  # it is over: shown as it was
    assert again.state == "stopped" and again.status.step == monitor.status.step


def test_two_runs_in_one_folder(tmp_path):
    "The second is refused, and its panel says so"
    first = denoising(tmp_path)
    first.fit(background=True)
    until(lambda: first.loop and first.loop.step)
    second = denoising(tmp_path)
    monitor = watch(second, interval=.1)
    until(lambda: second.error)
    assert monitor.wait(30) and "failed" in monitor.headline.value
    assert monitor.box.layout.border_top.startswith("2px")
    first.control.stop()
    first.join(60)


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "that did not happen"
        time.sleep(.01)
