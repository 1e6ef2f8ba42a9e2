"Processes that tests start and listen to, and a patient wait."
import subprocess
import sys
import time

import psutil

PATIENCE = 60  # s, for a busy machine


def until(condition, what="it"):
    "The first true answer of a condition, asked again and again"
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.01)
    return found


def script(code, *args, **kwargs):
    "A child process that runs `code`; its output can be read line by line"
    command = [sys.executable, "-u", "-c", code, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **kwargs)


def children_of(pid):
    "The processes that a process has started"
    try: return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess: return []


def says(process, word):
    "The next line of a child that begins with a word"
    for line in process.stdout:
        if line.startswith(word): return line.strip()
    raise AssertionError(f"never said {word!r}: {process.stderr.read()}")
