"The loop: exact resume at every step, averages, early stopping, and folders"
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from audiolab.files import read_checkpoint
from audiolab.training import RunLocked, Trainer, TrainingConfig, read_history

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Adversarial, Denoise, Mixture, config, copy_run, rows, state_of
from fault_runs import one_thread  # noqa: F401


@pytest.mark.parametrize("task", [Denoise, Adversarial, Mixture])
def test_resume_is_exact_at_every_step(task, tmp_path):
    "Weights, optimizers, averages, counters and history of a run resumed at any step equal those of one that was never stopped"
    steps = 24  # of five epochs, which see all that happens every so many steps twice
    Trainer(task(), config(steps=steps), tmp_path/"whole").fit()
    whole = state_of(tmp_path/"whole"/"checkpoints"/"checkpoint_final.safetensors")
    history = rows(tmp_path/"whole")
    for step in range(1, steps):
        copy_run(tmp_path/"whole", tmp_path/f"from_{step}", step)
        settings = config(steps=steps, save_every="never")
        result = Trainer(task(), settings, tmp_path/f"from_{step}").fit(resume="auto")
        assert (result.state, result.step) == ("completed", steps)
        assert state_of(tmp_path/f"from_{step}"/"checkpoints"/
                        "checkpoint_final.safetensors") == whole, f"resumed at step {step}"
        assert rows(tmp_path/f"from_{step}") == history, f"resumed at step {step}"


@pytest.mark.parametrize("workers, after", [(0, 2), (2, 0), (1, 2)])
def test_resume_does_not_depend_on_workers(workers, after, tmp_path):
    Trainer(Denoise(workers), config(), tmp_path/"whole").fit()
    whole = state_of(tmp_path/"whole"/"checkpoints"/"checkpoint_final.safetensors")
    for step in (5, 13, 22):
        copy_run(tmp_path/"whole", tmp_path/f"from_{step}", step)
        Trainer(Denoise(after), config(save_every="never"), tmp_path/f"from_{step}").fit(resume="auto")
        assert state_of(tmp_path/f"from_{step}"/"checkpoints"/
                        "checkpoint_final.safetensors") == whole


def test_accumulation_equals_the_large_batch(tmp_path):
    "Four batches of 4 move the weights as one of 16 does, where items do not see each other"
    items = 48  # whole updates: what is left of an epoch is a smaller one
    results = []
    for name, settings in {"large": dict(batch_size=16),
                           "accumulated": dict(batch_size=4, accumulate=4)}.items():
        task = Denoise(items=items, statistics=False)
        few = config(**settings, steps=8, ema_decay=0, save_every="never")
        Trainer(task, few, tmp_path/name).fit()
        results.append(read_checkpoint(tmp_path/name/"model_final.safetensors")[0])
    for key in results[0]: np.testing.assert_allclose(results[0][key], results[1][key], atol=1e-5)


def test_bfloat16_trains_and_keeps_weights_in_float32(tmp_path):
    result = Trainer(Denoise(), config(precision="bfloat16"), tmp_path).fit()
    tensors = read_checkpoint(tmp_path/"model_final.safetensors")[0]
    assert result.state == "completed" and {str(value.dtype) for value in tensors.values()} <= {"float32", "int64"}


def test_best_and_final_hold_the_averaged_weights(tmp_path):
    trainer = Trainer(Denoise(), config(ema_decay=.95), tmp_path)
    trainer.fit()
    loop, final = trainer.loop, read_checkpoint(tmp_path/"model_final.safetensors")[0]
    with loop.average.swapped():
        for key, value in loop.modules["net"].state_dict().items():
            np.testing.assert_array_equal(final[f"net.{key}"], value.numpy())
    best = min(row["values"]["loss"] for row in read_history(tmp_path) if row["kind"] == "validation")
    assert trainer.result.best == best and (tmp_path/"best_model.safetensors").is_file()


def test_early_stopping(tmp_path):
    class Worse(Denoise):
        def validate(self, loop): return {"loss": 1. + loop.step}
    result = Trainer(Worse(), config(validate_every="2 steps", patience=3), tmp_path).fit()
    assert (result.state, result.step, result.best) == ("completed", 8, 3.)
    assert "not become better" in result.reason


def test_a_nan_metric_never_wins(tmp_path):
    class Odd(Denoise):
        def validate(self, loop): return {"loss": float("nan") if loop.step != 14 else 5.}
    assert Trainer(Odd(), config(), tmp_path).fit().best == 5.


def test_wrong_metric_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="accuracy.*is not among.*loss"):
        Trainer(Denoise(), config(best_metric="accuracy"), tmp_path).fit()


def test_a_run_needs_an_end_and_an_interval_that_can_be_read(tmp_path):
    with pytest.raises(ValueError, match="set steps or epochs"):
        Trainer(Denoise(), TrainingConfig(), tmp_path)
    with pytest.raises(ValueError, match="no interval"): Trainer(Denoise(), config(save_every="often"), tmp_path)
    with pytest.raises(ValueError, match="smaller batch_size"):
        Trainer(Denoise(items=3), config(), tmp_path).fit()


def test_an_earlier_run_is_moved_aside(tmp_path):
    for _ in range(3): Trainer(Denoise(), config(steps=2), tmp_path).fit()
    assert sorted(path.name for path in tmp_path.glob("previous-*")) == ["previous-1", "previous-2"]
    assert (tmp_path/"previous-1"/"checkpoints"/"checkpoint_final.safetensors").is_file()


def test_two_runs_in_one_folder(tmp_path):
    trainer = Trainer(Denoise(slow=.02), config(steps=10_000), tmp_path)
    trainer.fit(background=True)
    while not (tmp_path/"run.lock").exists(): time.sleep(.01)
    with pytest.raises(RunLocked, match="works in it"):
        Trainer(Denoise(), config(), tmp_path).fit(resume="auto")
    trainer.control.stop()
    assert trainer.join(30).state == "stopped"
