"""Runs notebooks as nbdev-test does, each in a process of its own that starts at once.

What takes seconds to import and keeps nothing of a notebook (torch, numba, the shell that runs the cells) is imported
once; each notebook is then run by a copy of this process, so nothing that it does reaches another. Nothing of audiolab
is imported here, and no thread is running when a copy is made.

As a program: reads lines of a notebook, a tab and the file for what it says; answers each with its exit status.
"""
import atexit
import gc
import os
import random
import sys
import threading
import traceback


def main():
    import matplotlib.pyplot, numba, numpy, scipy.signal, torch, torch._dynamo  # noqa: E401, F401
    from nbdev.test import nbdev_test
    gc.collect()
    gc.freeze()  # or a copy's first collection would copy every page
    for line in sys.stdin:
        notebook, log = line.rstrip("\n").split("\t")
        pid = os.fork()
        if not pid: end(run(nbdev_test, notebook, log))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run(nbdev_test, notebook, log):
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
    try: nbdev_test(notebook, n_workers=0)
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


if __name__ == "__main__":
    # the folder of this file: a notebook finds what is installed, not the helpers of the tests
    sys.path.pop(0)
    main()
