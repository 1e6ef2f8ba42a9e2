"Mixtures and budgets under the engine: a run stopped anywhere goes on as if it had not been."
import pytest
from engine_tasks import Denoise, Hums, config, rows, state_of

from audiolab.data import Budget, ExampleStream, Loader, Mixture, StreamLoader, StreamMixture
from audiolab.training import Trainer

WEIGHTS = {"few": .4, "many": .6}


class Mixed(Denoise):
    "Batches of a mixture, of items or of so many samples"
    def __init__(self, bucket=None, **more):
        super().__init__(statistics=False, **more)
        self.bucket = bucket

    def data(self, loop):
        mixture = Mixture({"few": Hums(5), "many": Hums(31)}, WEIGHTS, items=40)
        size = None if self.bucket else loop.config.batch_size
        return Loader(mixture, size, bucket=self.bucket, seed=loop.seed, num_workers=self.workers)


class MixedStreams(Denoise):
    "Batches of a mixture of streams"
    def data(self, loop):
        def items(count): return lambda epoch: (Hums(count).item(i, epoch) for i in range(count))
        streams = {"few": ExampleStream(items(5)), "many": ExampleStream(items(31))}
        return StreamLoader(StreamMixture(streams, WEIGHTS, rows=40), loop.config.batch_size,
                            shuffle_buffer=12, seed=loop.seed, num_workers=self.workers, lanes=2)


def in_budget(**more): return Mixed(Budget(128*7), **more)


TASKS = {"items": Mixed, "budget": in_budget, "streams": MixedStreams}


def final(folder): return state_of(folder/"checkpoints"/"checkpoint_final.safetensors")


def copy_run(source, target, step):
    "A run as it was on the disk after the save of a step"
    (target/"checkpoints").mkdir(parents=True)
    for path in (source/"checkpoints").glob(f"checkpoint_step_{step}.*"):
        (target/"checkpoints"/path.name).write_bytes(path.read_bytes())
    (target/"history.jsonl").write_bytes((source/"history.jsonl").read_bytes())


@pytest.mark.parametrize("kind", TASKS)
def test_resumed_after_any_batch(kind, tmp_path):
    settings = {"steps": 14, "warmup": 0., "sample_every": "never"}
    Trainer(TASKS[kind](), config(**settings), tmp_path/"whole").fit()
    whole, history = final(tmp_path/"whole"), rows(tmp_path/"whole")
    for step in (1, 4, 5, 6, 9, 10, 11, 13):  # an epoch has five or six batches
        folder = tmp_path/f"from_{step}"
        copy_run(tmp_path/"whole", folder, step)
        task = TASKS[kind](workers=step % 3)
        result = Trainer(task, config(save_every="never", **settings), folder).fit(resume="auto")
        assert (result.state, result.step) == ("completed", 14)
        assert final(folder) == whole
        told = rows(folder)
        if kind != "streams": assert told == history
        # the end of a stream's epoch shows after the save of its last step, and is told again
        else: assert list(dict.fromkeys(row[:3] for row in told)) == [row[:3] for row in history]
