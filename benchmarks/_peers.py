"""What benchmarks/engine.py stands on: implementations in processes of their own that take turns, and tables of what they measured.

A machine is never quite quiet, and gets slower or faster over minutes. Therefore the peers of a comparison all live at once, are asked for one
repetition after the other in turn, and each repetition is set against the one of the reference in the same round; medians are over rounds.
"""
import ctypes
import gc
import importlib.metadata
import logging
import multiprocessing
import os
import platform
import re
import sys
import time
import traceback
import warnings
from statistics import median

from _ssgs_em import ONE_THREAD, resident_mb

os.environ |= ONE_THREAD  # before anything imports a numerical library


def _forget_peak():
    "Let the peak of this process begin anew, where the system can do that."
    gc.collect()
    try: ctypes.CDLL(None).malloc_trim(0)  # memory freed before does not count as used again
    except (OSError, AttributeError): pass
    try:
        with open("/proc/self/clear_refs", "w") as file: file.write("5")
    except OSError: pass


def children_seconds():
    "CPU seconds of the processes that this one has started and that still run (0 where the system does not tell)."
    total = 0.
    for process in multiprocessing.active_children():
        try:
            with open(f"/proc/{process.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12]))/os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError): pass
    return total


def _measure(run, before):
    if before: before()
    _forget_peak()
    present = resident_mb("VmRSS")
    workers = children_seconds()
    begin = time.perf_counter()
    cpu = time.process_time()
    result = run()
    measured = dict(wall_s=time.perf_counter() - begin, cpu_s=time.process_time() - cpu)
    measured |= dict(peak_mb=max(resident_mb() - present, 0.),
                     workers_s=max(children_seconds() - workers, 0.))
    return measured | (result if isinstance(result, dict) else {})


def short(error):
    "The last line of an error, without the folders in it."
    text = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {re.sub(r'(/[^/ ]+)+/', '', text)}"[:160]


def _serve(setup, name, settings, pipe):
    "What a peer's process does: set up, then one measurement for each request."
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)  # frameworks greet
    try:
        begin = time.process_time()
        made = setup(name, **settings)
        run, before = made if isinstance(made, tuple) else (made, None)
        pipe.send(dict(setup_s=time.process_time() - begin))
        while pipe.recv(): pipe.send(_measure(run, before))
    except EOFError: pass
    except BaseException as error: pipe.send(dict(error=short(error), trace=traceback.format_exc()))


class Peer:
    "One implementation: `setup(name, **settings)` returns what to time, or a pair with what to do before each time."

    def __init__(self, setup, name, **settings):
        self.name, self.error = name, None
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(setup, name, settings, theirs))
        self.process.start()
        theirs.close()
        self._answer()

    def _answer(self):
        try: answer = self.pipe.recv()
        except EOFError: answer = dict(error=f"its process died (exit code {self.process.exitcode})")
        if "error" in answer:
            self.error = answer["error"]
            if os.environ.get("BENCHMARK_TRACE"): sys.stderr.write(answer.get("trace", ""))
        return answer

    def ask(self):
        if self.error: return None
        try: self.pipe.send(True)
        except OSError: pass
        answer = self._answer()
        return None if self.error else answer

    def close(self):
        try: self.pipe.send(False)
        except OSError: pass
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def compare(setup, names, rounds=5, **settings):
    "A row for each name, in order: medians over the rounds, and the rounds themselves; or why there is none. The first round does not count."
    peers = []
    try:
        peers = [Peer(setup, name, **settings) for name in names]
        table = {name: [] for name in names}
        for number in range(rounds + 1):
            # nobody always follows the same neighbour
            for peer in peers if number % 2 else peers[::-1]:
                if (found := peer.ask()) is not None and number: table[peer.name].append(found)
    finally:
        for peer in peers: peer.close()
    rows = []
    for peer in peers:
        if peer.error:
            rows.append(dict(name=peer.name, error=peer.error))
            continue
        keys = table[peer.name][0]
        rows.append(dict(name=peer.name, rounds=table[peer.name],
                         **{key: median(r[key] for r in table[peer.name]) for key in keys}))
    return rows


def paired(row, other, key, combine=lambda a, b: a/b):
    "Median over rounds of a measurement set against that of another row in the same round."
    return median(combine(a[key], b[key]) for a, b in zip(row["rounds"], other["rounds"]))


def find(rows, name):
    return next((row for row in rows if row["name"] == name and "error" not in row), None)


def table(rows, columns):
    "Markdown; `columns`: heading -> text of a row."
    lines = ["| implementation | " + " | ".join(columns) + " |", "|" + "---|"*(len(columns) + 1)]
    for row in rows:
        cells = ([row["error"], *[""]*(len(columns) - 1)] if "error" in row
                 else [text(row) for text in columns.values()])
        lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return "\n".join(lines)


def show(*text): print(*text, sep="\n\n", end="\n\n", flush=True)


def header(title, libraries, *more):
    "What is measured, on what machine, with which versions."
    versions = []
    for name in libraries:
        try: versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError: versions.append(f"{name} not installed")
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration): pass
    load = [f"load {os.getloadavg()[0]:.1f}"] if hasattr(os, "getloadavg") else []
    show(f"# {title}", "; ".join([f"{cpu}, {os.cpu_count()} cores", *more, f"Python {platform.python_version()}", *versions, *load]))


def verdict(what, value, limit, at_most=True, text="{:.3g}"):
    "A line on a target."
    good = value <= limit if at_most else value >= limit
    show(f"**{'met' if good else 'MISSED'}**: {what}: {text.format(value)} (target: at {'most' if at_most else 'least'} {text.format(limit)})")
    return good
