"""Speed and memory of SSGS beside other libraries, as tables in Markdown: learning, analysis and synthesis, each on the same data for all.

    python benchmarks/ssgs.py [--quick] [--only em analysis synthesis] [--device cuda]

Every implementation runs in a process of its own on one core and is warmed up (and compiled) by one run that does not count. Times are CPU
seconds, the median of five runs or more. Memory is the peak resident size above what the imports take; in brackets what the input alone
takes. The tables of `--device` are in seconds of wall time, since a GPU's work is no CPU time. A library that is absent is listed as such. The memory of whatever uses numba
includes some 60 MB for its runtime compiler.
"""
import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _ssgs_em as em
from _peers import header, show

RATE, HOP, SIZE = 16_000, 256, 1024  # Hz, samples, samples
LIBRARIES = ("numpy", "scipy", "numba", "torch", "librosa", "hmmlearn", "pomegranate", "dynamax", "jax")


# ---- what child processes do: each function sets up, and returns what to time;
# memory is told apart at each stage

def audio(folder, frames):
    return __import__("numpy").load(Path(folder)/"audio.npy",
                                    mmap_mode="r")[:(frames - 1)*HOP].copy()


def windowed(x):
    "The frames that `audiolab` analyses, centred and windowed: [frames, SIZE] float32."
    import numpy as np
    from audiolab.ssgs import hann_window, n_frames
    padded = np.pad(x, SIZE//2 + HOP)[HOP:]
    frames = np.lib.stride_tricks.sliding_window_view(padded, SIZE)[::HOP][:n_frames(len(x), HOP)]
    return frames*hann_window(SIZE).astype(np.float32)


def prediction_gain(predictor, x):
    "Mean of power over residual power in dB, over each fiftieth frame: how well A(z) = 1 + sum a_k z^-k predicts."
    import numpy as np
    from scipy.signal import lfilter
    frames = windowed(x)[::50]
    residual = np.stack([lfilter([1, *a], [1], frame) for a,
                         frame in zip(np.asarray(predictor, float)[::50], frames)])
    return float(10*np.log10(((frames**2).sum(1) + 1e-9)/((residual**2).sum(1) + 1e-9)).mean())


def analysis(kind, order, frames, folder):
    "Setup of one analysis: (what to time, what to ask of its result)."
    if kind.startswith("librosa"): import librosa
    from audiolab.ssgs import lpc, sound_frames
    yield
    x = audio(folder, frames)
    if kind.startswith("librosa"):
        import numpy as np
        y = windowed(x)
        def each(): return np.stack([librosa.lpc(frame, order=order) for frame in y])
        yield (each if "frame" in kind else lambda: librosa.lpc(
            y, order=order, axis=-1)), lambda a: dict(gain_db=prediction_gain(a[:, 1:], x))
    elif kind == "ours, LPC":
        yield lambda: lpc.levinson(lpc.condition(lpc.autocorrelation(x, order, SIZE, HOP), RATE))[
            0], lambda a: dict(gain_db=prediction_gain(a, x))
    elif kind == "ours, LPC and LSF":
        yield lambda: lpc.analyse(x, RATE, order, SIZE, HOP), lambda r: dict(
            gain_db=prediction_gain(lpc.lsf_to_lpc(r[0]), x))
    else:
        def whole():
            tracks = sound_frames.analyse_frames(x, RATE, order, SIZE, HOP)
            return tracks, tracks.residual()
        yield whole, lambda r: dict(gain_db=prediction_gain(lpc.lsf_to_lpc(r[0].lsf), x))


def filtering(kind, order, seconds, folder):
    "Setup of one synthesis filter: the envelopes of recorded sound, excited by noise."
    import numpy as np
    from scipy.signal import lfilter

    from audiolab.ssgs import lattice, lpc
    yield
    frames = round(seconds*RATE/HOP) + 1
    lsf, log_rms = lpc.analyse(audio(folder, frames), RATE, order, SIZE, HOP)
    parcor = lattice.lsf_to_parcor(lsf)
    excitation = np.random.default_rng(0).standard_normal((frames - 1)*HOP)
    def level(y): return dict(rms_db=float(10*np.log10((y**2).mean())))
    if kind.startswith("ours"):
        yield lambda: lattice.lattice_synthesis(excitation, parcor, log_rms, HOP), level
        return
    a = np.concatenate([np.ones((frames, 1)), lpc.parcor_to_lpc(parcor)], 1)
    gain = np.exp(log_rms)*np.sqrt((1 - parcor**2).prod(1))

    def run():
        out, state = np.empty(len(excitation)), np.zeros(order)
        for t in range(frames - 1):
            out[t*HOP:(t + 1)*HOP], state = lfilter(gain[t:t + 1], a[t],
                                                    excitation[t*HOP:(t + 1)*HOP], zi=state)
        return out
    yield run, level


def training(folder, quick):
    "A small model of the corpus, as a checkpoint with its training audio."
    from audiolab.audio import instrument_corpus
    from audiolab.ssgs import SpectralStateGuidedSynthesis
    yield
    files = instrument_corpus(Path(folder)/"corpus", n_files=6 if quick else 24, sample_rate=RATE)
    yield (lambda: SpectralStateGuidedSynthesis(n_states=8 if quick else 34).train(
        files, RATE, 5).save_checkpoint(Path(folder)/"model")), lambda path: {}


def generation(kind, fidelity, seconds, folder):
    "Setup of one excitation at one fidelity."
    from audiolab.ssgs import SpectralStateGuidedSynthesis
    yield
    model = SpectralStateGuidedSynthesis.load_checkpoint(Path(folder)/"model.safetensors")
    yield lambda: model.generate(seconds, RATE, fidelity, kind,
                                 seed=0), lambda y: dict(samples=len(y))


def device_em(kind, frames, length, device, iterations):
    "EM with torch operations on a device (pieces of 500 frames with 32 of overlap), or compiled on its processor; wall seconds of an iteration."
    import numpy as np
    import torch

    from audiolab.ssgs import GaussianHMM, m_step
    from audiolab.ssgs import e_step
    start, y = em.generate(frames, length)
    dtype, compiled = getattr(torch, kind.split()[-1]), kind.startswith("compiled")
    on_gpu = device.startswith("cuda") and not compiled
    model = GaussianHMM(*start)
    sequences = list(y.astype(kind.split()[-1]))
    seconds = []
    likelihood = []
    for _ in range(iterations + 1):
        if on_gpu: torch.cuda.synchronize(device)
        begin = time.perf_counter()
        statistics = e_step(model, sequences, dtype=dtype, device="cpu" if compiled else device,
                            use_numba=compiled)
        model = m_step(statistics, model)
        if on_gpu: torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
        likelihood.append(statistics.log_likelihood)
    return dict(wall_s=float(np.median(seconds[1:])), log_likelihood=likelihood[0],
                last=likelihood[-1],
                device_mb=torch.cuda.max_memory_allocated(device)/2**20 if on_gpu else 0.)


TASKS = dict(analysis=analysis, filtering=filtering, training=training, generation=generation)


def work(task, repeats=5, **settings):
    "What a child process does: a dict of measurements."
    import logging
    import warnings
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if task == "device": return device_em(**settings)
    import numpy as np
    stages = TASKS[task](**settings)
    next(stages)  # the imports
    imports = em.resident_mb("VmRSS")
    run, ask = next(stages)  # the input
    data, seconds = em.resident_mb("VmRSS"), []
    for _ in range(repeats + 1):
        result = None  # so that two results are never there at once
        begin = time.process_time()
        result = run()
        seconds.append(time.process_time() - begin)
    peak = em.resident_mb()
    return dict(cpu_s=float(np.median(seconds[1:] or seconds)), peak_mb=max(peak, data) - imports,
                data_mb=data - imports) | ask(result)


def child(task, **settings):
    "`work` in a process of its own on one thread; a dict with `error` where a library is absent or it fails."
    kind = settings.get("kind", "")
    if kind.startswith("librosa") and importlib.util.find_spec("librosa") is None:
        return dict(name=kind, error="not installed")
    command = [sys.executable, os.path.abspath(__file__), "--child",
               json.dumps(dict(task=task, **settings), default=str)]
    done = subprocess.run(command, capture_output=True, text=True,
                          env=os.environ | ({} if kind.startswith("torch on") else em.ONE_THREAD))
    if done.returncode:
        return dict(name=kind, error="failed: " + (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][-160:])
    return dict(name=kind) | json.loads(done.stdout.splitlines()[-1])


# ---- tables

def table(rows, columns, references=()):
    "Markdown of the rows; `columns`: heading -> text of a row; and one column of CPU time ratios for each reference row."
    base = {r["name"]: r.get("cpu_s") for r in rows}
    heads = ["implementation", *columns, *(f"x {n}" for n in references)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|"*len(heads)]
    for r in rows:
        if "error" in r: cells = [r["error"], *[""]*(len(heads) - 2)]
        else:
            cells = [text(r) for text in columns.values()] + [
                f"{r['cpu_s']/base[n]:.2f}x" if base.get(n) else "-" for n in references]
        lines.append("| " + " | ".join([r["name"], *cells]) + " |")
    return "\n".join(lines)


MEMORY = {"peak MB above imports (data)": lambda r: f"{r['peak_mb']:.0f} ({r['data_mb']:.0f})"}


def show_em(quick):
    frames = 7_000 if quick else 70_000
    show(f"## EM, K = {em.STATES}, D = {em.FEATURES}, full covariance, sequences of {em.LENGTH} frames", em.table(em.compare(frames), reference="ours"))
    if not quick:
        show("### As the audio grows", em.table(em.growth()), "### Memory of many frames",
             em.table(em.memory()))


def show_analysis(quick, folder):
    frames = 7_000 if quick else 70_000
    columns = {"CPU s": lambda r: f"{r['cpu_s']:.3f}", "us / frame": lambda r: f"{1e6*r['cpu_s']/frames:.1f}", **MEMORY, "prediction gain (dB)": lambda r: f"{r['gain_db']:.2f}"}
    for order in (12, 18):
        kinds = ["ours, LPC", "ours, LPC and LSF", "ours, whole", "librosa.lpc, frame by frame", "librosa.lpc, batch"]
        rows = [child("analysis", kind=k, order=order, frames=frames, folder=folder) for k in kinds]
        show(f"## Analysis of {frames:,} frames of {SIZE} samples, hop {HOP}, order {order}",
             table(rows, columns, ("ours, LPC", "ours, whole")))
    show("LPC: autocorrelation and Levinson's recursion, from the waveform, windowing included. Whole: line spectral frequencies, loudness, lattice "
         "residual, pitch and voicing. librosa's `lpc` is Burg's method, in float32, and is given the same frames ready windowed, which is not timed.")


def show_synthesis(quick, folder):
    seconds = 10 if quick else 60
    columns = {"CPU s": lambda r: f"{r['cpu_s']:.4f}", "x real time": lambda r: f"{seconds/r['cpu_s']:,.0f}", **MEMORY, "level (dB)": lambda r: f"{r['rms_db']:.1f}"}
    for order in (12, 18):
        rows = [child("filtering", kind=k, order=order, seconds=seconds, folder=folder) for k in ("ours, normalised lattice", "scipy.signal.lfilter")]
        show(f"## Synthesis filter, {seconds} s at {RATE} Hz, order {order}",
             table(rows, columns, ("ours, normalised lattice",)))
    show("The lattice interpolates coefficients and gain between frames; `lfilter` is run on each hop with coefficients that stay put, its state carried on.")
    trained = child("training", folder=folder, quick=quick, repeats=0)
    if "error" in trained:
        show(trained["error"])
        return
    from audiolab.ssgs import EXCITATIONS
    lines = ["| excitation | " + " | ".join(f"fidelity {f}: CPU s (x real time)" for f in (
        0, .5, 1)) + " | largest peak MB above imports (model) |", "|---|---|---|---|---|"]
    for name in EXCITATIONS:
        rows = [child("generation", kind=name, fidelity=f, seconds=seconds, folder=folder)
                for f in (0, .5, 1)]
        cells = [r.get("error") or f"{r['cpu_s']:.3f} ({seconds/r['cpu_s']:,.0f})" for r in rows]
        good = [r for r in rows if "error" not in r]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {max((r['peak_mb'] for r in good), default=0):.0f} ({max((r['data_mb'] for r in good), default=0):.0f}) |")
    show(f"## `generate({seconds})`, a model of {8 if quick else 34} states and order 18",
         "\n".join(lines), "At fidelity 1 the model plays its recordings, whatever the excitation.",
         f"Training it ({6 if quick else 24} files, 5 iterations, analysis included, without a warm-up) took {trained['cpu_s']:.2f} CPU s.")


def show_device(device, quick):
    import torch
    show(f"## EM on {device}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        show("CUDA is not available here.")
        return
    lines = ["| implementation | frames | wall s / iteration | x compiled, one core | peak device MB | log-likelihood of the start | after the last iteration |", "|---|---|---|---|---|---|---|"]
    for frames, length in ((7_000, 500),) if quick else ((70_000, 500), (70_000, 70_000),
                                                         (700_000, 500), (700_000, 700_000)):
        for dtype in ("float32", "float64"):
            rows = [child("device", kind=f"{k} {dtype}", frames=frames, length=length,
                          device=device, iterations=5) for k in ("compiled", f"torch on {device}")]
            for r in rows:
                shape = f"{frames//length} x {length:,}"
                if "error" in r:
                    lines.append(f"| {r['name']} | {shape} | {r['error']} | | | | |")
                    continue
                ratio = f"{r['wall_s']/rows[0]['wall_s']:.2f}x" if "error" not in rows[0] else "-"
                lines.append(f"| {r['name']} | {shape} | {r['wall_s']:.4f} | {ratio} | {r['device_mb']:.0f} | {r['log_likelihood']:.3f} | {r['last']:.3f} |")
    show("\n".join(lines), "On the device, sequences are cut into pieces of about 500 frames with 32 of overlap, and all pieces step together.")


def material(folder, quick):
    "One waveform for analysis and synthesis: short pieces of music, repeated, with noise at -80 dB so that no frame is silent."
    import numpy as np

    from audiolab.audio import read_audio
    from audiolab.audio import instrument_corpus
    files = instrument_corpus(Path(folder)/"corpus", n_files=6 if quick else 24, sample_rate=RATE)
    once = np.concatenate([read_audio(f, sample_rate=RATE, mono=True)[0] for f in files])
    x = np.resize(once, (7_000 if quick else 70_000)*HOP) + 1e-4*np.random.default_rng(
        0).standard_normal((7_000 if quick else 70_000)*HOP)
    np.save(Path(folder)/"audio.npy", x.astype(np.float32))


def main():
    parser = argparse.ArgumentParser(description="CPU time and memory of SSGS beside other libraries, as Markdown")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data or less")
    parser.add_argument("--only", nargs="+", choices=("em", "analysis", "synthesis", "device"),
                        help="only these tables")
    parser.add_argument("--device", help="also EM with torch on this device: cuda, cuda:1, or cpu to see the same path on the processor")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(work(**json.loads(args.child))))
        return
    parts = args.only or ["em", "analysis", "synthesis"] + ["device"]*bool(args.device)
    header("SSGS benchmarks", LIBRARIES)
    if "em" in parts: show_em(args.quick)
    with tempfile.TemporaryDirectory() as folder:
        if {"analysis", "synthesis"} & set(parts): material(folder, args.quick)
        if "analysis" in parts: show_analysis(args.quick, folder)
        if "synthesis" in parts: show_synthesis(args.quick, folder)
    if "device" in parts: show_device(args.device or "cuda", args.quick)


if __name__ == "__main__": main()
