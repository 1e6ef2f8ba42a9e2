"Small runs of an encoder for tests: lessons of the parametric teacher, settings, what is left."
import json

from run_remains import fit_until

from audiolab.voice import as_config, make_lessons, ParametricTeacher, voice_trainer

COUNTS = {"train": 24, "val": 8, "test": 4}


def small_lessons(folder, counts=COUNTS, seconds=.5):
    "Clips of half a second, four of each voice"
    return make_lessons(folder, ParametricTeacher(seconds=seconds), counts=counts)


def settings(lessons, folder, **changes):
    "Of a run that is over soon, with dropout and augmentation"
    return {"data_dir": str(lessons), "checkpoint_dir": str(folder), "batch_size": 8, "epochs": 2,
            "hidden_dim": 16, "num_layers": 1, "num_heads": 1, "dropout": .2, "augment_prob": .5,
            "num_workers": 0, "device": "cpu", "use_amp": False, "lr": 3e-3, "log_interval": 1,
            "save_interval": 1, "keep_checkpoints": 0, "crop_seconds_min": .3,
            "crop_seconds_max": .5, "speak_samples": False, "use_tensorboard": False} | changes


def fit(given, resume=None, listeners=()):
    return voice_trainer(as_config(given), listeners).fit(resume)


def stopped_at(given, step, resume=None):
    "A run that is asked to stop after a step"
    return fit_until(voice_trainer(as_config(given)), step, resume)


def epochs(folder):
    "training_history.json without times"
    rows = json.loads((folder/"training_history.json").read_text())
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]
