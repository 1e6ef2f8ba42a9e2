"Run folders made before the loop was built anew open, go on to their end, and keep what they hold"
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.files import read_checkpoint, unpack_state
from audiolab.training import Trainer, read_history

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Adversarial, Denoise, Mixture, config, rows
from fault_runs import one_thread  # noqa: F401

RUNS = Path(__file__).parent/"data"/"runs"  # each stopped at step 18 or 19 of 40
TASKS = {"denoise": (Denoise, {"ema_decay": 0.}), "adversarial": (Adversarial, {}),
         "mixture": (Mixture, {})}


@pytest.fixture(scope="module", params=TASKS)
def resumed(request, tmp_path_factory):
    "Name, folder and result of an old run that was taken up and brought to its end"
    task, changes = TASKS[request.param]
    folder = tmp_path_factory.mktemp("runs")/request.param
    shutil.copytree(RUNS/request.param, folder)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    result = Trainer(task(), config(save_every="never", **changes), folder).fit(resume="auto")
    torch.set_num_threads(before)
    return request.param, folder, result


def old_checkpoint(name): return next((RUNS/name/"checkpoints").glob("*.safetensors"))


def shape_of(value):
    "The keys and kinds of a nest, without its numbers"
    if isinstance(value, dict): return {key: shape_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)): return [shape_of(item) for item in value]
    return type(value).__name__


def test_an_old_run_goes_on_to_its_end(resumed):
    name, folder, result = resumed
    start = [row for row in read_history(folder) if row["kind"] == "start"][-1]
    assert (result.state, result.step) == ("completed", 40)
    assert start["step"] in (18, 19) and start["values"]["resumed"] == f"checkpoints/{old_checkpoint(name).name}"
    assert not list(folder.glob("previous-*"))


def test_its_history_is_kept(resumed):
    name, folder, _ = resumed
    old = [row for row in read_history(RUNS/name) if row["kind"] not in ("end", "state")]
    assert read_history(folder)[:len(old)] == old


def test_the_rest_of_its_history_is_that_of_an_unbroken_run_of_old(resumed):
    name, folder, _ = resumed
    then = {(kind, step): values for kind, step, _, values in json.loads((RUNS/f"{name}_unbroken.json").read_text()) if kind == "validation" or step > 21}
    now = {(kind, step): values for kind, step, _, values in rows(folder) if kind == "validation"
           or step > 21}
    assert now.keys() == then.keys()
    for key, values in then.items():
        if key[0] == "epoch" and key[1] <= 25: continue
        numbers = {k: v for k, v in values.items() if isinstance(v, float) and k != "seconds"}
        assert now[key].keys() == values.keys()
        for k, v in numbers.items(): np.testing.assert_allclose(now[key][k], v, rtol=1e-3, err_msg=f"{key}, {k}")


def test_what_it_writes_has_the_same_keys(resumed):
    name, folder, _ = resumed
    (old, notes), (new, new_notes) = (read_checkpoint(path)
                                      for path in (old_checkpoint(name), folder/"checkpoints"/"checkpoint_final.safetensors"))
    assert list(new) == list(old)
    assert set(new_notes) - {"audiolab.saved"} == set(notes) - {"audiolab.saved"}
    state, new_state = (unpack_state(*found)["training"]
                        for found in ((old, notes), (new, new_notes)))
    for one in (state, new_state):
        for key in ("sums", "epoch_sums"): one[key] = {}  # depends on when it was written
    assert new_state.pop("taken") >= 0 and new_state.pop("epoch_by_steps") == []
    for optimizer in new_state["optimizers"].values():  # these are of later
        assert all("names" in group for group in optimizer.pop("groups"))
    for data in new_state["data"]: assert data.pop("sounds")  # as is the fingerprint
    assert list(new_state) == list(state) and shape_of(new_state) == shape_of(state)
