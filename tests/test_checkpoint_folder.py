"Folders of checkpoints: which is newest and best, what stays, what a crash leaves."
import os

import numpy as np
import pytest

from audiolab.files import (
    checkpoint_folder as state, CheckpointError, CheckpointFolder, load_state, pack_state,
    read_checkpoint, write_checkpoint,
)
from state_files import same, strict


def versions(folder): return sorted(p.stem for p in folder.glob("*.safetensors"))


def damage(path):
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        byte = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([byte[0] ^ 1]))


@strict
def test_retention(tmp_path):
    keeper = CheckpointFolder(tmp_path, keep_last=2, keep_every=5, keep_best=2, metric="loss")
    keeper.save("checkpoint_initial", {"w": np.zeros(1)})
    for epoch, loss in enumerate([9, 3, float("nan"), 1, 4, float("-inf"), 5, 3, 8], 1):
        keeper.save(f"checkpoint_epoch_{epoch}", {"w": np.full(3, epoch)}, {"epoch": str(epoch)},
                    metric_value=loss)
        assert (keeper.latest.stem == f"checkpoint_epoch_{epoch}"
                and read_checkpoint(keeper.latest)[1]["epoch"] == str(epoch))
    assert versions(tmp_path) == [
        "checkpoint_epoch_2", "checkpoint_epoch_4", "checkpoint_epoch_5", "checkpoint_epoch_8",
        "checkpoint_epoch_9", "checkpoint_initial"]
    assert keeper.best.stem == "checkpoint_epoch_4"
    # another metric: the file best.json names stays until a new best
    best = CheckpointFolder(tmp_path, keep_last=2, keep_best=1, metric="score", mode="max")
    best.save("checkpoint_epoch_10", {"w": np.ones(1)}, metric_value=float("nan"))
    assert best.best.stem == "checkpoint_epoch_4" and "checkpoint_epoch_4" in versions(tmp_path)
    best.save("checkpoint_epoch_11", {"w": np.ones(1)}, metric_value=0.5)
    best.save("checkpoint_epoch_12", {"w": np.ones(1)}, metric_value=0.4)
    assert best.best.stem == "checkpoint_epoch_11" and versions(tmp_path) == ["checkpoint_epoch_11",
        "checkpoint_epoch_12",
                                                                              "checkpoint_initial"]


def test_keep_all_and_bad_policies(tmp_path):
    keeper = CheckpointFolder(tmp_path, keep_last=0)
    for step in range(12): keeper.save(f"step_{step}", {})
    assert (len(versions(tmp_path)) == 12 and keeper.resolve().stem == "step_11"
            and keeper.best is None)
    for policy in ({"keep_last": 1}, {"keep_last": -2}, {"keep_best": -1}, {"mode": "low"}):
        with pytest.raises(CheckpointError): CheckpointFolder(tmp_path, **policy)


@strict
def test_auto_walks_back_to_what_verifies(tmp_path):
    keeper = CheckpointFolder(tmp_path / "run", keep_last=0)
    assert keeper.resolve("auto") is None
    # order of saving counts, not the number
    paths = [keeper.save(f"epoch_{n}", {"w": np.full(4, n)}) for n in (1, 2, 10, 9)]
    for n, path in enumerate(paths): os.utime(path, (1000 - n, 1000 - n))  # nor the time stamp
    assert keeper.resolve("auto") == paths[3]
    damage(paths[3])
    paths[2].write_bytes(paths[2].read_bytes()[:200])
    with pytest.warns(UserWarning) as record: assert keeper.resolve("auto") == paths[1]
    assert (["epoch_10" in str(r.message) for r in record] == [True, False]
            and "epoch_9" in str(record[1].message))
    for path in paths[:2]: damage(path)
    with pytest.warns(UserWarning, match="skipped"): assert keeper.resolve("auto") is None
    assert keeper.resolve(paths[0]) == keeper.resolve("epoch_1") == keeper.resolve("epoch_1.safetensors") == paths[0]
    with pytest.raises(CheckpointError, match="epoch_2"): keeper.resolve("epoch_77")


def test_a_crash_before_the_pointer_moves_loses_nothing(tmp_path, monkeypatch):
    keeper = CheckpointFolder(tmp_path)
    for n in (1, 2): keeper.save(f"epoch_{n}", {"w": np.full(4, n)})
    def crash(*args): raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(state, "_write_pointer", crash)
        keeper.save("epoch_3", {"w": np.full(4, 3)})
    assert (keeper.latest.stem == "epoch_2" and keeper.resolve("auto").stem == "epoch_3"
            and len(versions(tmp_path)) == 3)


def test_a_failed_save_changes_nothing(tmp_path, monkeypatch):
    keeper = CheckpointFolder(tmp_path)
    for n in (1, 2): keeper.save(f"epoch_{n}", {"w": np.full(4, n)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    def fail(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        keeper.save("epoch_3", {"w": np.zeros(4)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_only_sound_file_is_never_deleted(tmp_path, monkeypatch):
    keeper = CheckpointFolder(tmp_path, keep_best=0)
    keeper.save("epoch_1", {"w": np.ones(4)})
    damage(keeper.save("epoch_2", {"w": np.ones(4)}))
    write = write_checkpoint
    def rotten(*args):
        damage(path := write(*args))
        return path
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="nothing is deleted"):
        patch.setattr(state, "write_checkpoint", rotten)
        keeper.save("epoch_3", {"w": np.ones(4)})
    assert "epoch_1" in versions(tmp_path)
    with pytest.warns(UserWarning) as record: assert keeper.resolve().stem == "epoch_1"
    assert ["epoch_3" in str(record[0].message), "epoch_2" in str(record[1].message)] == [True,
        True]
    keeper.save("epoch_4", {"w": np.ones(4)})
    assert versions(tmp_path) == ["epoch_3", "epoch_4"]


@pytest.mark.parametrize("content",
                         ['{"file":"../outside.safetensors"}', '{"file":"/etc/passwd"}',
                          '{"file":"link.safetensors"}',
                          '{"file":"missing.safetensors"}', '{"file":".safetensors"}',
                                     '{"file":3}', '[]', '', '{"file":"a\\u0000.safetensors"}',
                                     '{"file":"' + "x" * 20000 + '"}',
                                     "[" * 5000, '{"file":"folder.safetensors"}',
                                     '{"file":"a\\\\b.safetensors"}'])
def test_pointers_never_leave_the_folder(tmp_path, content):
    folder = tmp_path / "run"
    keeper = CheckpointFolder(folder)
    outside = write_checkpoint(tmp_path / "outside.safetensors", {})
    inside = keeper.save("epoch_1", {})
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "folder.safetensors").mkdir()
    (folder / "latest.json").write_text(content)
    assert (keeper.latest is None and keeper.resolve("latest") is None
            and keeper.resolve("auto") == inside)
    keeper.save("epoch_2", {})
    assert keeper.latest.stem == "epoch_2" and outside.exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".hidden", "", "a\0", "x" * 300, "a\nb",
                                  "-x", "..", "a\\b"])
def test_names_never_leave_the_folder(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot name"):
        CheckpointFolder(tmp_path / "run").save(name, {})
    assert not list(tmp_path.iterdir())


def test_nested_state_in_a_folder(tmp_path):
    keeper = CheckpointFolder(tmp_path)
    keeper.save("step_1", *pack_state({"step": 1, "w": (np.ones(2), 0.1)}))
    assert same(load_state(keeper.resolve())[0], {"step": 1, "w": (np.ones(2), 0.1)})


def test_only_what_was_saved_here_is_newer(tmp_path):
    "Weights that somebody else put there have no place in the order of saving"
    folder = CheckpointFolder(tmp_path)
    first, second = (folder.save(f"checkpoint_{n}", {"w": np.full(3, n)}) for n in (1, 2))
    for name in ("voice", "anna"):
        write_checkpoint(tmp_path/f"{name}.safetensors", {"w": np.ones(3)})
    assert folder.files == [first, second]
    assert folder.newer_than(first) == [second]
    assert folder.newer_than(tmp_path/"voice.safetensors") == [first, second]
    for path in (first, second): path.unlink()
    assert folder.newer_than(tmp_path/"voice.safetensors") == []
