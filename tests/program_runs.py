"Runs of the `audiolab` program that tests share: in this process, and in a Python of its own."
import subprocess
import sys

from audiolab.apps import program as cli


def run(capsys, *args):
    code = cli.main(list(args))
    out = capsys.readouterr()
    return code, out.out, out.err


def python(program, *args, **more):
    "Run a program in a Python of its own"
    words = [sys.executable, "-c", program, *args]
    return subprocess.run(words, capture_output=True, text=True, **more)
