"Words left in a file are obeyed once each, whoever writes and whatever lies there."
import json
import logging
import os
import socket
import time
from pathlib import Path

import pytest
from child_processes import PATIENCE, says, script

from audiolab.training import (
    Control, ControlConfig, ControlError, command_file, control_command, exit_code, send,
)


def look(control, folder):
    "Poll as if half a second had passed"
    control._file.next_look = 0
    return control.poll(folder)


def test_every_command_by_file(tmp_path):
    control = Control()
    send(tmp_path, "pause")
    look(control, tmp_path)
    assert control.state == "paused"
    send(tmp_path, "sample")
    send(tmp_path, "save")
    assert look(control, tmp_path) == {"sample", "save"}
    send(tmp_path, "resume")
    look(control, tmp_path)
    assert control.state == "running"
    send(tmp_path, "stop")
    look(control, tmp_path)
    assert (control.state, exit_code(control)) == ("stopping", 0)
    assert os.listdir(tmp_path) == []


def test_the_same_word_again_is_obeyed_again(tmp_path):
    control = Control()
    for _ in range(20):
        send(tmp_path, "sample")
        assert look(control, tmp_path) == {"sample"}


def test_words_by_hand_and_unknown_ones(tmp_path, caplog):
    control = Control()
    (tmp_path / "control").write_text("  save\n\n faster\x1b[31m sample")
    assert look(control, tmp_path) == {"save", "sample"}
    assert len(caplog.records) == 1
    assert "'faster\\x1b[31m' is no command; there are pause" in caplog.text
    (tmp_path / "control").write_bytes(b"\xff\xfe\0 pause")
    look(control, tmp_path)
    assert control.state == "paused" and "is no command" in caplog.records[-1].message


def test_an_empty_file_waits_for_its_words(tmp_path):
    control, path = Control(), tmp_path / "control"
    path.touch()
    look(control, tmp_path)
    assert path.exists()
    path.write_text("pause")
    look(control, tmp_path)
    assert control.state == "paused" and not path.exists()


def test_what_is_no_control_file_is_named_once(tmp_path, caplog):
    control, path = Control(), tmp_path / "control"
    path.mkdir()
    look(control, tmp_path)
    look(control, tmp_path)
    assert [r.message for r in caplog.records] == [f"{path} is ignored: it is not a regular file"]
    path.rmdir()
    caplog.clear()
    (tmp_path / "secret").write_text("stop")
    path.symlink_to(tmp_path / "secret")
    look(control, tmp_path)
    assert control.state == "running" and (tmp_path / "secret").exists()
    assert "not a regular file" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path):
    control = Control()
    os.mkfifo(tmp_path / "control")
    look(control, tmp_path)
    assert control.state == "running"


def test_of_a_huge_file_little_is_read(tmp_path, caplog, monkeypatch):
    control, asked, read = Control(), [], os.read
    (tmp_path / "control").write_bytes(b"stop " * 10_000_000)

    def noting(fd, size):
        asked.append(size)
        return read(fd, size)
    monkeypatch.setattr(command_file.os, "read", noting)
    look(control, tmp_path)
    assert asked == [1001] and control.state == "running"
    assert "more than 1000 bytes" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    def refuse(*args): raise PermissionError(13, "Permission denied")
    control = Control()
    (tmp_path / "control").write_text("stop")
    monkeypatch.setattr(command_file.os, "rename", refuse)
    look(control, tmp_path)
    look(control, tmp_path)
    assert control.state == "running"
    assert len(caplog.records) == 1 and "Permission denied" in caplog.text
    with pytest.raises(ControlError, match="check the folder and its permissions"):
        send(tmp_path, "stop")
    assert os.listdir(tmp_path) == ["control"]


def test_unread_commands_stay_few(tmp_path):
    for _ in range(500):
        for word in ("pause", "resume", "sample"): send(tmp_path, word)
    assert (tmp_path / "control").read_text().split() == ["pause", "resume", "sample"]


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*args): raise OSError(95, "Operation not supported")
    monkeypatch.setattr(command_file.os, "link", refuse)
    control = Control()
    send(tmp_path, "pause")
    send(tmp_path, "save")
    assert look(control, tmp_path) == {"save"} and control.state == "paused"
    assert os.listdir(tmp_path) == []


SEND = """
import sys
from audiolab.training import command_file
command_file._COMMANDS, command_file._MAX_FILE = tuple(f"word{i}" for i in range(1000)), 100_000
for i in range(int(sys.argv[2]), 300, 3): command_file.send(sys.argv[1], f"word{i}")
"""


def test_no_command_is_lost_between_processes(tmp_path, monkeypatch):
    "Three processes send while this one reads: each word of theirs arrives exactly once"
    monkeypatch.setattr(command_file, "_MAX_FILE", 100_000)
    senders, words = [script(SEND, tmp_path, n) for n in range(3)], []
    end = time.monotonic() + PATIENCE
    while True:
        done = all(s.poll() is not None for s in senders)
        try: words += command_file._take_words(tmp_path / "control")
        except FileNotFoundError:
            if done: break
        assert time.monotonic() < end
        time.sleep(0.002)
    for s in senders: assert s.wait() == 0, s.communicate()[1]
    assert sorted(words) == sorted(f"word{i}" for i in range(300))
    assert os.listdir(tmp_path) == []


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
    caplog.set_level(logging.INFO, "audiolab.training")
    process = script(LIVE, tmp_path)
    says(process, "ready")
    answers = {"sample": "sample", "save": "save", "pause": "paused", "resume": "resumed",
               "stop": "ended"}
    for command, answer in answers.items():
        assert control_command(ControlConfig(tmp_path, command, wait=PATIENCE)) == 0
        says(process, answer)
    assert process.wait(PATIENCE) == 0
    assert f"process {process.pid}" in caplog.text and "has taken 'stop'" in caplog.text


def lock(**changes):
    "What a lock of this process says, but for some changes"
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "born": None, "since": "then"}
    return json.dumps(owner | changes)


def test_command_without_a_live_run(tmp_path, caplog):
    caplog.set_level(logging.INFO, "audiolab.training")
    with pytest.raises(ControlError, match="no such folder"):
        control_command(ControlConfig(tmp_path / "nowhere", "stop"))
    for content in (None, lock(pid=2**22 + 1)):
        if content: (tmp_path / "run.lock").write_text(content)
        with pytest.raises(ControlError, match="no run is alive there"):
            control_command(ControlConfig(tmp_path, "stop"))
    assert os.listdir(tmp_path) == ["run.lock"]
    (tmp_path / "run.lock").write_text(lock())
    with pytest.raises(ControlError, match="'faster' is no command"):
        control_command(ControlConfig(tmp_path, "faster"))
    assert control_command(ControlConfig(tmp_path, "stop", wait=0.1)) == 0
    assert "has not taken 'stop' yet" in caplog.text


def test_command_line_form():
    from audiolab.config import config_cli
    resolved = config_cli(ControlConfig, ["runs/a", "pause"], prog="audiolab control",
                          positional=True, description="", presets=None)
    assert resolved.config == ControlConfig(Path("runs/a"), "pause")
