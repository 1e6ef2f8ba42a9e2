"The history of a run whose disk is full for a while, or whose folder goes elsewhere meanwhile."
import errno
import logging
import resource
import shutil

import pytest
from engine_tasks import Denoise, config

from audiolab.training import (
    Event, History, LastRow, Progress, Recorder, RunFolder, Trainer, read_history, recorder,
)


def log(step): return Event("log", step, 0, 0., {"loss": 1 / (step + 1)})


def steps_of(folder): return [row["step"] for row in read_history(folder)]


def test_rows_of_a_full_disk_are_written_when_there_is_room(tmp_path, caplog):
    "Where half a line had room, no half line stays"
    told = Recorder(Progress(), RunFolder(tmp_path))
    told.writing = True
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    def tell(count):
        for _ in range(count):
            told.tell("log", loss=.5)
            told.progress.step += 1
    tell(10)
    size = (tmp_path / "history.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try: tell(30)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "history.jsonl").stat().st_size == size
    tell(1)
    assert steps_of(tmp_path) == [*range(41)]
    assert caplog.text.count("cannot be written now") == 1


def test_rows_that_find_no_room_to_the_end_are_told(tmp_path, caplog, monkeypatch):
    history = History(tmp_path / "history.jsonl")
    history.append(log(0))
    def full(file, line): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("audiolab.training.events._write_whole", full)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space"): history.append(log(step))
    history.close()
    assert "the last 2 rows of the history cannot be written" in caplog.text
    assert steps_of(tmp_path) == [0]


def test_text_that_is_none_is_kept(tmp_path):
    history = History(tmp_path / "history.jsonl")
    history.append(Event("problem", 1, 0, 0., {"message": "caf\udce9"}))
    history.close()
    assert read_history(tmp_path)[0]["values"]["message"] == "caf\udce9"


@pytest.mark.filterwarnings("ignore:.*clipped")
@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_folder_that_goes_in_mid_run(tmp_path, caplog, how):
    "History and notes are whole at their place; all is written there, and the lock as well"
    run, seen = tmp_path / "run", []
    trainer = Trainer(Denoise(), config(steps=40, log_every=1, save_every="never"), run)
    def disturb(event):
        trainer.folder._history._next_look = 0  # as if a second had gone by
        if event.kind != "log" or event.step != 15: return
        if how == "moved": run.rename(tmp_path / "other")
        while how == "deleted" and run.exists():  # a thread may be writing into it
            shutil.rmtree(run, ignore_errors=True)
        if how == "replaced":  # an editor saves what it read
            (run / "new").write_bytes((run / "history.jsonl").read_bytes())
            (run / "new").replace(run / "history.jsonl")
        seen.append(event.step)
    trainer.listeners.append(disturb)
    with caplog.at_level(logging.WARNING): assert trainer.fit().state == "completed"
    rows = read_history(run)
    assert [row["step"] for row in rows if row["kind"] == "log"] == [*range(1, 41)]
    assert rows[0]["kind"] == "start" and rows[-1]["kind"] == "end" and seen == [15]
    assert {"config.yaml", "run.json", "history.jsonl"} <= {p.name for p in run.iterdir()}
    assert (run / "checkpoints" / "checkpoint_final.safetensors").exists()
    assert ("moved or deleted while its run goes on" in caplog.text) == (how != "replaced")
    assert not (run / "run.lock").exists()


def test_rates_after_a_resume_count_the_steps_of_this_start(monkeypatch):
    "Resumed at step 45, with five steps before it in the row that is written at step 50"
    now, rows = [100.], []
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now[0])
    told = Recorder(Progress(step=45, total_steps=100), None, [rows.append])
    told.row = LastRow(40, timed_from=45)
    told.restart_row({})
    told.progress.step, now[0] = 50, 101.
    told.means.note("loss", 1.)
    told.write_row({"net": .1}, {})
    told.restart_row({})  # a pause: what was before it is not timed
    told.progress.step = 51
    told.restart_row({})
    told.write_row({"net": .1}, {})
    first, second = (row.values for row in rows)
    assert (first["steps_per_second"], first["seconds_left"]) == (5., 10.)
    assert (second["steps_per_second"], second["seconds_left"]) == (None, None)


def test_the_seconds_of_a_start_never_go_back(tmp_path):
    "Setting up takes no time of the run"
    for steps in (7, 14):
        trainer, told = Trainer(Denoise(), config(steps=steps, log_every=5), tmp_path), []
        trainer.listeners.append(told.append)
        trainer.fit(resume="auto")
        seconds = [event.seconds for event in told]
        assert seconds == sorted(seconds) and told[0].kind == "start"
        assert seconds[0] == trainer.run.progress.clock.earlier
