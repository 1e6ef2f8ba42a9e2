"""One EM iteration (E-step and M-step) of a full-covariance Gaussian HMM: ours beside hmmlearn, pomegranate and dynamax.

Every implementation runs in a process of its own on one core, on the same frames from the same start. CPU seconds are the median over
iterations after one that warms up or compiles; memory is the peak resident size above what the imports take. The log-likelihood of the
start shows that all do the same work. A part of `benchmarks/ssgs.py`; by itself it is run as

    python benchmarks/_ssgs_em.py [--quick]
"""
import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time

STATES, FEATURES, LENGTH = 34, 12, 500
PEERS = {"ours float32": None, "ours float64": None, "hmmlearn log": "hmmlearn",
         "hmmlearn scaling": "hmmlearn",
         "pomegranate float32": "pomegranate", "dynamax float32": "dynamax", "dynamax float64": "dynamax"}

ONE_THREAD = {k: "1" for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
ONE_THREAD["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def generate(frames, length=LENGTH, n_states=STATES, n_features=FEATURES, seed=0):
    "Start parameters, and [frames / length, length, D] float64 frames drawn from a model near the start, so that no state is left without frames."
    import numpy as np
    rng = np.random.default_rng(seed)

    A = rng.random((n_states, n_states)) / n_states + 4 * np.eye(n_states)
    half = rng.standard_normal((n_states, n_features, n_features))
    A = A / A.sum(1, keepdims=True)
    means = 1.2 * rng.standard_normal((n_states, n_features))
    covariances = half @ half.transpose(0, 2, 1) / n_features + .2 * np.eye(n_features)
    count = frames // length
    cumulative, state = A.cumsum(1), rng.integers(n_states, size=count)
    path = np.empty((count, length), np.int64)
    for t in range(length):  # all sequences side by side
        path[:, t] = state
        state = (rng.random(count)[:, None] > cumulative[state]).sum(1).clip(max=n_states - 1)
    half, y = np.linalg.cholesky(covariances), rng.standard_normal((count, length, n_features))
    for k in range(n_states): y[path == k] = y[path == k] @ half[k].T + means[k]
    start = A * (1 + rng.random(A.shape)), means + .3 * rng.standard_normal(
        means.shape), covariances + .2 * np.eye(n_features)
    return (np.full(n_states, 1 / n_states), start[0] / start[0].sum(1, keepdims=True),
            *start[1:]), y


def ours(start, y, dtype):
    import torch
    from audiolab.ssgs import GaussianHMM, m_step
    from audiolab.ssgs import e_step
    torch.set_num_threads(1)
    model, sequences = GaussianHMM(*start), list(y)
    while True:
        statistics = e_step(model, sequences, dtype=getattr(torch, dtype))
        model = m_step(statistics, model)
        yield statistics.log_likelihood


def hmmlearn(start, y, implementation):
    from hmmlearn.hmm import GaussianHMM
    model = GaussianHMM(len(start[0]), "full", n_iter=1, implementation=implementation,
                        init_params="", covars_prior=0, covars_weight=0)
    model.startprob_, model.transmat_, model.means_, model.covars_ = start
    frames, lengths = y.reshape(-1, y.shape[-1]), [y.shape[1]] * len(y)
    while True:
        model.fit(frames, lengths)
        yield model.monitor_.history[-1]


def pomegranate(start, y, dtype):
    import numpy as np
    import torch
    from pomegranate.distributions import Normal
    from pomegranate.hmm import DenseHMM
    torch.set_num_threads(1)
    initial, A, means, covariances = (torch.tensor(np.asarray(x), dtype=torch.float32)
                                      for x in start)
    # its model has an end in each state: one chance in a million, and the rows sum to one with it
    ends = torch.full_like(initial, 1e-6)
    model = DenseHMM([Normal(m, c, covariance_type="full") for m, c in zip(means, covariances)],
                     edges=A * (1 - 1e-6), starts=initial, ends=ends)
    frames = torch.tensor(y, dtype=torch.float32)
    while True:
        with torch.no_grad():
            log_likelihood = float(model.summarize(frames).sum())
            model.from_summaries()
        yield log_likelihood


def dynamax(start, y, dtype):
    import jax
    jax.config.update("jax_enable_x64", dtype == "float64")
    import jax.numpy as jnp
    from dynamax.hidden_markov_model import GaussianHMM
    model = GaussianHMM(*start[2].shape)
    initial, A, means, covariances = (jnp.asarray(x, dtype) for x in start)
    parameters, properties = model.initialize(initial_probs=initial, transition_matrix=A,
                                              emission_means=means,
                                              emission_covariances=covariances)
    frames, memory = jnp.asarray(y, dtype), model.initialize_m_step_state(parameters, properties)

    @jax.jit
    def step(parameters, memory):
        statistics, log_likelihood = jax.vmap(lambda sequence: model.e_step(parameters,
                                                                            sequence))(frames)
        parameters, memory = model.m_step(parameters, properties, statistics, memory)
        return parameters, memory, log_likelihood.sum()

    while True:
        parameters, memory, log_likelihood = jax.block_until_ready(step(parameters, memory))
        yield float(log_likelihood)


def resident_mb(which="VmHWM"):
    "Peak resident size of this process so far in MB (`VmRSS`: the present one, where the system tells it)."
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(which)) / 1024
    except (OSError, StopIteration):
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024 ** 2)


def work(name, frames, length, iterations):
    "What a child process does: a dict of measurements."
    import logging
    import warnings
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    library, kind = name.split()
    import numpy as np  # first the imports, so that memory above them can be told
    importlib.import_module(dict(hmmlearn="hmmlearn.hmm", pomegranate="pomegranate.hmm", dynamax="dynamax.hidden_markov_model").get(library, "audiolab.ssgs.inference"))
    imports = resident_mb("VmRSS")
    start, y = generate(frames, length)
    data = resident_mb()
    steps, seconds, likelihood = globals()[library](start, y, kind), [], []
    for _ in range(iterations + 1):
        begin = time.process_time()
        likelihood.append(next(steps))
        seconds.append(time.process_time() - begin)
    return dict(name=name, frames=frames, cpu_s=float(np.median(seconds[1:])), first_s=seconds[0],
                log_likelihood=likelihood[0],
                peak_mb=resident_mb() - imports, data_mb=data - imports, imports_mb=imports)


def measure(name, frames=70_000, length=LENGTH, iterations=5):
    "Runs one implementation in a process of its own on one thread: a dict of measurements, or with `error` where it fails or is not installed."
    if PEERS[name] and importlib.util.find_spec(PEERS[name]) is None:
        return dict(name=name, frames=frames, error="not installed")
    command = [sys.executable, os.path.abspath(__file__), "--child", name, "--frames", str(frames),
               "--length", str(length), "--iterations", str(iterations)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD)
    if done.returncode:
        return dict(name=name, frames=frames, error="failed: " +
                    (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def compare(frames=70_000, iterations=5, names=tuple(PEERS)):
    "Every implementation on the same frames."
    return [measure(n, frames, iterations=iterations) for n in names]


def growth(frames=(7_000, 70_000, 700_000), iterations=5):
    "Our cost as the audio grows, and with one long sequence in place of many of 500 frames."
    rows = [measure(n, T, iterations=iterations) for T in frames for n in ("ours float32", "ours float64")]
    rows += [measure(n, frames[1], frames[1], iterations) | {"name": n + ", one sequence"}
             for n in ("ours float32", "ours float64")]
    return rows


def memory(frames=350_000):
    "Peak memory at many frames, in short sequences and as one."
    return [measure(n, frames, length, 5) | {"name": f"{n}, {frames // length} x {length}"}
            for n in ("ours float32", "ours float64") for length in (LENGTH, frames)]


def table(rows, reference=None):
    "The rows as a Markdown table; with the row of a `reference` the ratios of CPU time to ours."
    base = {r["name"]: r.get("cpu_s") for r in rows}
    def ratio(r, n): return f"{r['cpu_s'] / base[n]:.1f}x" if base.get(n) else "-"
    lines = ["| implementation | frames | CPU s / iteration | x ours float32 | x ours float64 | peak MB above imports (data) | log-likelihood of the start |",
             "|---|---|---|---|---|---|---|"]
    for r in rows:
        if "error" in r:
            lines.append(f"| {r['name']} | {r['frames']:,} | {r['error'][:60]} | | | | |")
            continue
        ratios = (ratio(r, "ours float32"), ratio(r, "ours float64")) if reference else ("", "")
        lines.append(f"| {r['name']} | {r['frames']:,} | {r['cpu_s']:.4f} | {ratios[0]} | {ratios[1]} | {r['peak_mb']:.0f} ({r['data_mb']:.0f}) | {r['log_likelihood']:.3f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="EM of a Gaussian HMM: CPU time and memory beside other libraries")
    parser.add_argument("--quick", action="store_true", help="7,000 frames only")
    for name in ("--child", "--frames", "--length", "--iterations"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(work(args.child, int(args.frames), int(args.length),
                              int(args.iterations))))
        return
    frames = 7_000 if args.quick else 70_000
    print(f"## EM, K = {STATES}, D = {FEATURES}, full covariance, one core\n\n" +
          table(compare(frames), reference="ours"))
    if not args.quick:
        print("\n## Growth\n\n" + table(growth()) + "\n\n## Memory\n\n" + table(memory()))


if __name__ == "__main__": main()
