"The terminal's lines and bar, TensorBoard's files, and curves whose size is bounded."
import contextlib
import logging, math, sys
from io import StringIO

import numpy as np
import pytest

from audiolab.watch import Curve, HistoryPlot, RunCurves, plot_history, plot_sample
from audiolab.watch import scale_axis, short_duration, short_value, smooth, sound_decibels
from audiolab.watch import RunStatus, TensorBoardLogger, TerminalProgress, epoch_summary
from audiolab.training import Event, RunFolder, Sample


def start(step=0, total=1000, per_epoch=100, resumed=None, folder="runs/a", config=None):
    return Event("start", step, step//(per_epoch or 1), 0.,
                 dict(folder=str(folder), config=config or {}, total_steps=total,
                      steps_per_epoch=per_epoch,
                                                                 parameters=1200, device="cpu",
                                                                 resumed=resumed))


def log(step, loss=.5, **more):
    return Event("log", step, step//100, step/10,
                 dict(loss=loss, gradient_norm=.1, learning_rate=1e-4, steps_per_second=10.,
                                                                                  seconds_left=90.,
                                                                                  memory=3e8) |
                                                                                  more)


def end(step, state="completed", reason="all steps are done"):
    return Event("end", step, step//100, step/10, dict(state=state, reason=reason))


def tell(listener, *events):
    for event in events: listener(event)
    return listener


@pytest.mark.parametrize("value, text", [(0.0234, "0.0234"), (9.5e-5, "0.000095"), (1e-3, "0.0010"),
                                         (9.9999e-4, "0.001"), (-.5, "-0.5000"),
                                         (123.456, "123.46"),
    (99999., "99999"), (1e5, "1.00e+05"), (1e-7, "1.00e-07"), (0, "0.0000"), (math.inf, "inf"),
    (math.nan, "nan"), (1, "1.0000")])
def test_numbers(value, text): assert short_value(value) == text


@pytest.mark.parametrize("seconds, text", [(0, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (3599.7, "1h 00m"), (86399, "23h 59m"), (90000, "1d 01h"), (0.2, "0s")])
def test_durations(seconds, text): assert short_duration(seconds) == text


def test_a_log_file_gets_lines_and_no_bar(caplog):
    "One line each interval, whatever the number of events; summaries and trouble always"
    with caplog.at_level(logging.INFO, "audiolab.watch.terminal"):
        progress = TerminalProgress(interval=3600)
        tell(progress, start(), *map(log, range(1, 400)), Event("problem", 400, 4, 1., {"message": "bad"}), end(400))
        assert [(r.levelname, r.getMessage().split(",")[0]) for r in caplog.records] == [
            ("INFO", "Training in runs/a on cpu: 1"), ("WARNING", "step 400: bad"), ("INFO", "Completed at epoch 5/10")]
        caplog.clear()
        tell(TerminalProgress(interval=0), start(), log(1), log(2))
        assert len(caplog.records) == 3 and caplog.records[-1].getMessage() == \
            "epoch 1/10, step 2/1000, loss 0.5000, 10 steps/s, 1m 30s left, 300 MB, gradient norm 0.1000, learning rate 0.0001"


def test_why_a_run_failed_is_left_to_the_error_that_ends_it(caplog):
    with caplog.at_level(logging.INFO, "audiolab.watch.terminal"):
        tell(TerminalProgress(), start(), end(3, "failed", "no sound"))
        tell(TerminalProgress(), start(), end(3, "stopped", "by hand"))
    said = [record.getMessage() for record in caplog.records[1::2]]
    assert said == ["Failed at epoch 1/10, step 3/1000 (0s)",
                    "Stopped at epoch 1/10, step 3/1000: by hand (0s)"]


def test_where_nobody_set_up_logging_lines_go_to_stderr(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("audiolab.watch.terminal"), "isEnabledFor",
                        lambda level: False)
    tell(TerminalProgress(interval=0), start(), log(1))
    said = capsys.readouterr()
    assert not said.out and "step 1/1000" in said.err and "\r" not in said.err


def test_the_bar_moves_in_one_line():
    class Terminal(StringIO):
        def isatty(self): return True
    screen = Terminal()
    progress = tell(TerminalProgress(stream=screen), start(), log(1))
    progress._due = 0.
    tell(progress, log(500), Event("problem", 501, 5, 1., {"message": "nan {loss}"}),
         Event("state", 510, 5, 1., {"state": "paused", "reason": ""}), end(512, "stopped", "by hand"))
    text = screen.getvalue()
    assert " 50%|" in text and "500/1000 [loss 0.5000, 10 steps/s, 1m 30s left" in text
    assert "warning: step 501: nan {loss}\n" in text
    assert "Paused at epoch 6/10, step 510/1000\n" in text
    assert text.rstrip().endswith("Stopped at epoch 6/10, step 512/1000: by hand (51s)")
    assert "left" not in text.split("512/1000 [")[1].split("]")[0]


def test_a_run_without_end_and_without_epochs():
    screen = StringIO()
    tell(TerminalProgress(style="bar", stream=screen), start(total=None, per_epoch=None),
         log(70, seconds_left=None))
    assert "70 steps [loss 0.5000" in screen.getvalue() and "poch" not in screen.getvalue() and "endless" in screen.getvalue()


def test_names_may_hold_braces():
    screen = StringIO()
    tell(TerminalProgress(style="bar", stream=screen), start(),
         Event("log", 3, 0, 1., {"{x}_loss": 1., "gradient_norm/{0}": 2.}))
    assert "{x}_loss 1.0000" in screen.getvalue()


def test_validation_between_epochs_is_said_once():
    screen = StringIO()
    def at(kind, step, **values): return Event(kind, step, 0, 1., values)
    progress = TerminalProgress(interval=3600, style="lines", stream=screen)
    tell(progress, start(), at("validation", 50, loss=.25, pesq=3.), log(60),
         at("validation", 100, loss=.2),
         at("epoch", 100, train=dict(loss=.4), validation=dict(loss=.2), seconds=5., best=True,
            epochs=10), log(120))
    text = screen.getvalue()
    assert "Validation at step 50: loss 0.2500, pesq 3.0000" in text
    assert "Validation at step 100" not in text and "Val Loss: 0.2000" in text


def test_summaries_of_other_tasks():
    def epoch(train, validation, best=True):
        return Event("epoch", 10, 0, 1.,
                     dict(train=train, validation=validation, seconds=3., best=best, epochs=None))
    text = epoch_summary(epoch({"generator/loss": 2., "discriminator/loss": .5, "gradient_norm/generator": 9.}, {"si_sdr": 12.}), best_metric="si_sdr")
    assert text == "Epoch 1 - 3s\n  Train Losses: Generator: 2.0000, Discriminator: 0.5000\n  Val SI SDR: 12\n  ✓ New best validation si sdr: 12"
    assert epoch_summary(epoch({}, None, False)) == "Epoch 1 - 3s"


def test_the_best_metric_is_found_in_any_config():
    from audiolab.training import TrainingConfig
    for config in (TrainingConfig(steps=1, best_metric="pesq"),
                   {"training": {"best_metric": "pesq"}}):
        status = RunStatus()
        status.take(start(config=config))
        assert status.best_metric == "pesq"


def test_status_of_a_restart():
    "A second start forgets the trouble of the first"
    status = RunStatus()
    for event in (start(), Event("problem", 3, 0, 1., {"message": "nan"}), end(4, "failed", "nan"),
                  start(2, resumed="x")):
        status.take(event)
    assert (status.state, status.problems, status.step, status.reason) == ("running", [], 2, None)


# ---- TensorBoard

def board(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return EventAccumulator(str(folder),
                            size_guidance=dict(scalars=0, audio=0, images=0, tensors=0)).Reload()


@pytest.fixture
def tensorboard():
    for name in ("tensorboard",): pytest.importorskip(name, reason="needs tensorboard (pip install 'audiolab[tensorboard]')")


def test_tensorboard_after_a_kill_and_a_resume(tensorboard, tmp_path):
    "Steps that are made again replace those of the killed run"
    run = RunFolder(tmp_path/"run")
    first = tell(TensorBoardLogger(), start(folder=run.path),
                 *(log(s, loss=1.) for s in range(1, 11)))
    first._writer.flush()  # killed: no end
    tell(TensorBoardLogger(), start(6, resumed="checkpoint", folder=run.path),
         *(log(s, loss=2.) for s in range(7, 13)), end(12))
    assert [(e.step, e.value) for e in board(run.logs).Scalars("train/loss")] == [
        (s, 1. if s < 7 else 2.) for s in range(1, 13)]


def test_tensorboard_holds_sound_pictures_and_config(tensorboard, tmp_path):
    tone = .5*np.sin(np.arange(8000)/9).astype(np.float32)
    odd = [Sample("loud", 3*tone, 8000), Sample("nan", np.full(100, np.nan, np.float32), 8000),
           Sample("empty", tone[:0], 8000, reference=tone),
           Sample("pair", tone, 8000, reference=tone)]
    from audiolab.training import TrainingConfig
    tell(TensorBoardLogger(tmp_path), start(config=TrainingConfig(steps=5)),
         Event("validation", 5, 0, 1., {"loss": .1, "note": "text", "sure": True}),
         Event("sample", 5, 0, 1., {"samples": odd}),
         Event("problem", 6, 0, 1., {"message": "bad"}), end(7))
    found = board(tmp_path)
    tags = found.Tags()
    assert set(tags["audio"]) == {"loud", "nan", "empty target", "pair", "pair target"}
    assert len(tags["images"]) == 4
    assert [t for t in tags["scalars"] if t.startswith("validation")] == ["validation/loss"]
    texts = {t: found.Tensors(t)[0].tensor_proto.string_val[0].decode() for t in tags["tensors"]
             if "text_summary" in t}
    assert "| batch_size | 16 |" in texts["config/text_summary"] and "bad" in texts["problems/text_summary"]
    import soundfile
    from io import BytesIO
    audio, rate = soundfile.read(BytesIO(found.Audio("pair")[0].encoded_audio_string))
    assert rate == 8000 and len(audio) == 8000 and np.abs(audio - tone).max() < 1e-3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_goes_on_after_a_full_disk(tensorboard, tmp_path, caplog, monkeypatch):
    resource = pytest.importorskip("resource", reason="needs limits of a process")
    monkeypatch.setattr(TensorBoardLogger, "patience", .05)
    logger, limits = TensorBoardLogger(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    tell(logger, start(), *(log(s) for s in range(1, 11)))
    logger._writer.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        for step in range(11, 31):
            tell(logger, log(step))
            if logger._writer:
                with contextlib.suppress(OSError): logger._writer.flush()
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tell(logger, *(log(s) for s in range(31, 41)), end(40))
    boards = [board(path) for path in tmp_path.iterdir()]
    steps = sorted(e.step for b in boards if "train/loss" in b.Tags()["scalars"]
                   for e in b.Scalars("train/loss"))
    assert steps[:10] == [*range(1, 11)] and steps[-10:] == [*range(31, 41)]
    assert steps == sorted(set(steps)) and len(steps) > 30
    assert "TensorBoard's files cannot be written now" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_of_a_folder_that_is_moved(tensorboard, tmp_path):
    run = RunFolder(tmp_path/"run")
    logger = tell(TensorBoardLogger(), start(folder=run.path), log(1))
    (tmp_path/"run").rename(tmp_path/"other")
    tell(logger, log(2), end(2))
    assert [e.step for e in board(run.logs).Scalars("train/loss")] == [2]


def test_tensorboard_is_for_the_first_process(tensorboard, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    tell(TensorBoardLogger(tmp_path/"logs"), start(), log(1), end(1))
    assert not (tmp_path/"logs").exists()


def test_without_tensorboard_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"audiolab\[tensorboard\]"): TensorBoardLogger()


# ---- curves

def test_a_curve_keeps_its_extremes_and_its_mean():
    random, curve = np.random.default_rng(0), Curve(limit=50)
    values = random.normal(size=12_800)
    for step, value in enumerate(values): curve.add(step, value)
    steps, means, lows, highs = curve.points()
    assert len(steps) < 50 and (np.diff(steps) > 0).all() and (lows <= means).all()
    assert (means <= highs).all()
    assert lows.min() == values.min() and highs.max() == values.max()
    assert abs(means.mean() - values.mean()) < .02


def test_what_is_not_finite_is_left_out_of_curves():
    curve = Curve()
    for step, value in enumerate([1., math.nan, math.inf, 2.]): curve.add(step, value)
    assert curve.points()[0].tolist() == [0, 3]
    assert Curve().points().shape == (4, 0)


def test_smoothing_has_no_bias_and_no_lag_of_a_constant():
    assert np.allclose(smooth(np.full(7, 4.)), 4.) and len(smooth(np.zeros(0))) == 0
    noise = np.random.default_rng(0).normal(size=300)
    assert smooth(noise).std() < .5*noise.std()


def test_a_resumed_run_draws_one_line():
    curves = RunCurves()
    for event in (start(), *(log(s) for s in range(10, 110, 10)), start(50, resumed="x"),
                  *(log(s) for s in range(60, 90, 10))):
        curves.take(event)
    assert curves.train["loss"].points()[0].tolist() == [10, 20, 30, 40, 50, 60, 70, 80]


@pytest.mark.parametrize("low, high", [(1e-9, 1e9), (.31, .45), (1., 1.), (-3., 5.), (0., 0.),
                                       (0., 1e-12), (1e-300, 1e300), (2e7, 2.0000001e7)])
def test_axes_of_any_range_have_readable_ticks(low, high):
    from audiolab.audio import AudioFigure
    figure = AudioFigure(figsize=(4, 2))
    axis = figure.add_axes((.1, .1, .8, .8))
    scale_axis(axis, [low], [high])
    figure.canvas.draw()
    bottom, top = axis.get_ylim()
    assert bottom < top and bottom <= max(low, high*1e-20) and high <= top
    assert 1 <= len(axis.get_yticks()) <= 7


@pytest.mark.parametrize("rows", [[], [start()], [start(), log(1)], [log(1, loss=math.nan)],
                                  [Event("validation", 3, 0, 1., {"loss": 1.})],
                                  [Event("log", 1, 0, 1., {"accuracy": .5})]],
                         ids=["nothing", "start", "one", "nan", "validation", "no-loss"])
def test_pictures_of_next_to_nothing(rows): assert plot_history(rows)._repr_png_()[0][:4] == b"\x89PNG"


def test_the_same_plot_is_drawn_again():
    "Only the data change, so that a long run costs what a short one costs"
    plot, curves = HistoryPlot(), RunCurves()
    for step in range(1, 500):
        curves.take(log(step, loss=1/step))
        if step in (5, 499):
            lines = [line for axis in plot.draw(curves).axes for line in axis.lines]
        if step == 5: before = lines
    assert len(lines) == len(before) and all(a is b for a, b in zip(lines, before))
    assert len(lines[0].get_xdata()) <= 600


@pytest.mark.parametrize("audio", [np.zeros(0), np.zeros(1), np.full(50, np.nan),
                                   np.zeros((1, 4000)), 1e30*np.ones(3000), np.zeros(2_000_000)],
                         ids=["empty", "one", "nan", "2d", "huge", "long"])
def test_odd_sounds_have_spectrograms(audio):
    picture = sound_decibels(audio.astype(np.float32), 16000)
    assert picture.shape[0] <= 128 and picture.shape[1] <= 400 and not np.isnan(picture).any()
    plot_sample(Sample("odd", audio.astype(np.float32), 16000))._repr_png_()


def test_a_long_title_keeps_its_beginning_and_stays_inside():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    curves = RunCurves()
    for event in (start(), log(10), log(20)): curves.take(event)
    figure = HistoryPlot().draw(curves, "completed\nstep 20/20, " + "gradient norm/generator 164.89, "*20)
    FigureCanvasAgg(figure).draw()
    box = figure._suptitle.get_window_extent()
    assert box.x0 > 0 and box.x1 < figure.bbox.width
    assert "completed\nstep 20/20" in figure.get_suptitle()
