"Processes that tests start and listen to, and a patient wait."
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings

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


class Fork:
    """A copy of this process that runs a function, and is listened to as a child of `subprocess` is.

    It has torch and numba imported already, which takes a fresh Python seconds.
    """
    def __init__(self, function, *args, **environment):
        ends = os.pipe(), os.pipe()
        self.pid, self.returncode = os.fork(), None
        if not self.pid: _run_forked(function, args, environment, [write for _, write in ends])
        for _, write in ends: os.close(write)
        self.stdout, self.stderr = (open(read, errors="replace") for read, _ in ends)
        self.said, self.listeners = {}, []

    def poll(self): return self._wait(os.WNOHANG)
    def send_signal(self, number): self.poll() is None and os.kill(self.pid, number)
    def kill(self): self.send_signal(signal.SIGKILL)

    def _wait(self, flags):
        if self.returncode is None:
            found, status = os.waitpid(self.pid, flags)
            if found: self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def communicate(self, timeout=PATIENCE):
        "The rest of what it says, when it is over"
        def listen(name): self.said[name] = getattr(self, name).read()
        if not self.listeners:
            self.listeners = [threading.Thread(target=listen, args=[name], daemon=True)
                              for name in ("stdout", "stderr")]
            for thread in self.listeners: thread.start()
        end = time.monotonic() + timeout
        for thread in self.listeners: thread.join(max(0, end - time.monotonic()))
        if any(thread.is_alive() for thread in self.listeners):
            raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout)
        self._wait(0)
        return self.said["stdout"], self.said["stderr"]


def _run_forked(function, args, environment, outputs):
    "In the copy: nothing of the tests but what they have imported"
    code = 1
    try:
        gc.freeze()  # or its first collection would copy every page
        opened = [os.open(os.devnull, os.O_RDONLY), *outputs]
        for number, source in enumerate(opened): os.dup2(source, number)
        sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False, buffering=1)
                                             for number, mode in enumerate("rww"))
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGALRM"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        logging.root.handlers.clear()
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        code = function(*args) or 0
    except SystemExit as asked: code = asked.code if isinstance(asked.code, int) else 1
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def forked_ranks(function, *args, processes=2, **environment):
    "Copies of this process that find each other as those that torchrun starts do"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    return [Fork(function, *args, RANK=rank, LOCAL_RANK=rank, **place, **environment)
            for rank in map(str, range(processes))]


def forked(*functions):
    "Processes that each run a function; without the seconds that imports take"
    pids = []
    for function in functions:
        if not (pid := os.fork()):
            code = 1
            try:
                function()
                code = 0
            except BaseException: traceback.print_exc()
            finally: os._exit(code)
        pids.append(pid)
    return pids


def two(function):
    "Process ids of two ranks that run a function"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    def rank(number):
        def run():
            os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2",
                              MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            function()
        return run
    return forked(rank(0), rank(1))


def over(pid, seconds):
    "The exit code (minus the signal) of a process that ends in time; None if it goes on"
    until = time.monotonic()+seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found: return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until: return None
        time.sleep(.005)
