"""Runs notebooks as nbdev-test does, and Python programs, each in a process of its own that starts at once.

What takes seconds to import and keeps nothing of them (torch, numba, the shell that runs the cells) is imported
once; each is then run by a copy of this process, so nothing that it does reaches another. Nothing of audiolab
is imported here, and no thread is running when a copy is made. Figures are drawn, but not packed: nobody looks at them.

As a program: reads lines of JSON, ["notebook", log, path] or ["python", log, folder, name, arguments...], where name is a
Python file or `audiolab`; answers each with its exit status. What was said is in the log.
"""
import atexit
import base64
import functools
import gc
import json
import os
import random
import runpy
import subprocess
import sys
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAAC0lEQVR42mNgAAEAAAYAAW0oEC8AAAAASUVORK5CYII=")


def main():
    works = {"notebook": functools.partial(prepare(), n_workers=0), "python": python}
    gc.collect()
    gc.freeze()  # or a copy's first collection would copy every page
    for line in sys.stdin:
        kind, log, *words = json.loads(line)
        pid = os.fork()
        if not pid: end(run(works[kind], words, log))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def prepare():
    "Import what is slow to import, and do what every notebook would have done once"
    import IPython.core.magics.execution, matplotlib.pyplot, numba, numpy  # noqa: E401, F401
    import scipy.signal, torch, torch._dynamo  # noqa: E401, F401
    import pandas, pyarrow, pydantic, ruamel.yaml, soundfile, soxr, xxhash  # noqa: E401, F401
    import fastcore.test, IPython.core.crashhandler, sqlite3  # noqa: E401, F401
    import matplotlib_inline.backend_inline  # noqa: F401
    import nbdev.config
    from IPython.core import pylabtools
    from matplotlib.backends.registry import backend_registry
    from nbdev.test import nbdev_test
    backend_registry.list_all()  # looks through all installed packages
    nbdev.config._load_toml = functools.cache(nbdev.config._load_toml)
    numba.njit(lambda x: x.sum() + 1)(numpy.ones(2))  # its types and its compiler
    pylabtools.print_figure = drawn
    assert threading.active_count() == 1
    return nbdev_test


def drawn(figure, **as_what):
    "In place of IPython's: draw a figure once and without a finer grid, and answer with a picture of almost nothing"
    if not figure.axes and not figure.lines: return None
    figure.canvas.draw()
    return PIXEL


def python(folder, name, *arguments):
    "Run a file, or the program `audiolab`, as `python` and a shell do in that folder"
    os.chdir(folder)
    sys.argv = [name, *arguments]
    if name == "audiolab":
        from audiolab.apps.program import main
        sys.exit(main())
    sys.path.insert(0, folder)
    runpy.run_path(name, run_name="__main__")


def run(work, words, log):
    "In the copy: its input is empty, its output a file, and its random numbers begin anew"
    import numpy, torch  # noqa: E401
    opened = os.open(os.devnull, os.O_RDONLY), os.open(log,
                                                       os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for target, source in ((0, opened[0]), (1, opened[1]), (2, opened[1])): os.dup2(source, target)
    for descriptor in opened: os.close(descriptor)
    sys.stdin = open(0, closefd=False)
    random.seed()
    numpy.random.seed()
    torch.seed()
    try: work(*words)
    except SystemExit as asked: return asked.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(status):
    "As a program does, but for the second and a half in which Python takes torch apart"
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else bool(status))


class Runner:
    "The program, from the side of a test"
    def __init__(self, folder):
        "`folder` for what is said"
        env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
        env |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self.log, pipe = folder/"log", subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=env, text=True,
                                        stdin=pipe, stdout=pipe)

    def __call__(self, kind, *words):
        "The exit status of a piece of work as text, '' where the program itself ended, and what was said"
        line = json.dumps([kind, str(self.log), *map(str, words)])
        print(line, file=self.process.stdin, flush=True)
        status = self.process.stdout.readline().strip()
        said = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        self.log.unlink(missing_ok=True)
        return status, said

    def close(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


if __name__ == "__main__":
    # the folder of this file: a notebook finds what is installed, not the helpers of the tests
    sys.path.pop(0)
    main()
