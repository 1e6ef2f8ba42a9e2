"A model in slices learns, saves and resumes as a whole one does, to the bit."
import numpy as np
import pytest
import torch
from child_processes import forked_ranks
from engine_tasks import TASKS, Adversarial, config, ended, network, rows, state_of

from audiolab.files import read_checkpoint
from audiolab.training import Distributed, Learner, Run, RunFolder, Trainer, join, own_part



def make(*runs):
    "In each of two processes: runs one after the other (task, folder, options, settings, resume)"
    torch.set_num_threads(1)
    group = torch.distributed
    leave_for_good, group.destroy_process_group = group.destroy_process_group, lambda: None
    for name, folder, options, settings, resume in runs:
        Trainer(TASKS[name](**options), config(**settings), folder).fit(resume=resume)
    leave_for_good()


def run_in_pair(function, *args):
    "Run a function in two processes; what they say, where all went well"
    codes, said, errors = zip(*map(ended, forked_ranks(function, *args)))
    assert codes == (0, 0), errors
    return said


def branch(source, target, step):
    "A run as it was on the disk after the save of a step"
    (target/"checkpoints").mkdir(parents=True)
    name = f"checkpoints/checkpoint_step_{step}.safetensors"
    for file in (name, "history.jsonl"): (target/file).write_bytes((source/file).read_bytes())


def final(folder): return state_of(folder/"checkpoints"/"checkpoint_final.safetensors")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    "A run in two whole copies and one in slices, which went on from each other's checkpoints"
    import torch._dynamo, torch.distributed.fsdp  # noqa: E401, F401  # once, not in four copies
    folder, task = tmp_path_factory.mktemp("runs"), "adversarial"
    settings = {"steps": 9, "accumulate": 2, "clip_norm": .05, "sample_every": "6 steps",
                "recompute": True}
    run_in_pair(make, (task, folder/"whole", {}, settings, None),
                (task, folder/"slices", {}, settings | {"shard": True}, None))
    branch(folder/"whole", folder/"into_slices", 5)
    for name in ("out_of_slices", "alone"): branch(folder/"slices", folder/name, 5)
    run_in_pair(make, (task, folder/"into_slices", {}, settings | {"shard": True}, "auto"),
                (task, folder/"out_of_slices", {}, settings, "auto"))
    Trainer(Adversarial(), config(**settings), folder/"alone").fit(resume="auto")
    return folder


def test_slices_learn_what_whole_copies_learn(both):
    "Weights, moments, averages, counters and history after 9 steps, and each checkpoint before"
    assert final(both/"slices") == final(both/"whole")
    assert rows(both/"slices") == rows(both/"whole")
    for step in range(1, 9):
        one, other = (state_of(both/name/f"checkpoints/checkpoint_step_{step}.safetensors")
                      for name in ("slices", "whole"))
        assert one == other, f"step {step}"


def test_one_file_opens_anywhere(both):
    "Whole copies go on from slices, slices from whole copies, to the bit; and one process alone"
    assert final(both/"into_slices") == final(both/"whole")
    assert final(both/"out_of_slices") == final(both/"whole")
    assert rows(both/"into_slices") == rows(both/"out_of_slices") == rows(both/"whole")
    (alone, _), (whole, _) = final(both/"alone"), final(both/"whole")
    assert alone.keys() == whole.keys()


def test_what_is_exported_is_whole(both):
    for name in ("model_final", "best_model"):
        one, other = ({key: np.asarray(value).tobytes() for key, value in tensors.items()}
                      for tensors, _ in (read_checkpoint(both/run/f"{name}.safetensors")
                                         for run in ("slices", "whole")))
        assert one == other


def hold_a_part():
    "In each of two processes: say how much of a network is here, and why what is refused is"
    place = join("cpu")
    def why(call):
        try: call()
        except ValueError as error: return str(error)
    learner = Learner(config(shard=True), place)
    net = learner.networks.add("net", network())
    own = sum(own_part(p).numel() for p in net.parameters())
    loose, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Linear(2, 2)
    learner.networks.add("other", other, wrap=False)
    print(own, sum(p.numel() for p in net.parameters()), sep="\n")
    print(why(lambda: learner.optimizer("a", torch.optim.Adafactor(net.parameters()))))
    print(why(lambda: learner.optimizer("a", torch.optim.SGD([loose]))))
    mixed = [*net.parameters(), *other.parameters()]
    print(why(lambda: learner.optimizer("a", torch.optim.SGD(mixed))))
    print(why(Learner(config(shard=True), place).networks.check_shards))
    place.leave()


def test_each_process_holds_its_part():
    "What is refused is refused before the first step, with the remedy"
    parts = [out.splitlines() for out in run_in_pair(hold_a_part)]
    own, (_, whole, *refusals) = [int(lines[0]) for lines in parts], parts[0]
    assert sum(own) == int(whole) and max(own) < .75*int(whole)
    for refusal, remedy in zip(refusals, ("use AdamW", "make it after `loop.module`",
                                          "make one for each", "set shard to false")):
        assert remedy in refusal


def test_a_task_that_moves_weights_by_itself_is_refused(tmp_path):
    class Moving(Adversarial): shardable = False
    place = Distributed(rank=0, world=2)
    with pytest.raises(ValueError, match="set shard to false"):
        Run.make(Moving(), config(shard=True), RunFolder(tmp_path), place)
    with pytest.raises(ValueError, match="set pause_frees_device"):
        settings = config(shard=True, pause_frees_device=True)
        Run.make(Adversarial(), settings, RunFolder(tmp_path), place)
    assert not Run.make(Moving(), config(shard=True), RunFolder(tmp_path)).learner.networks.shard
