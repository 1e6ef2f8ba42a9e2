"What is left of a run, for comparing two of them."
import json

import numpy as np

from audiolab.files import read_checkpoint, unpack_state


def fit_until(trainer, step, resume=None):
    "A run that is asked to stop after a step"
    trainer.listeners.append(lambda event: event.step >= step and trainer.control.stop())
    return trainer.fit(resume)


def weights(path):
    return {name: value.tobytes() for name, value in read_checkpoint(path)[0].items()
            if not name.startswith("training.")}


def state(path):
    "What a run remembers, without the time that it took"
    found = unpack_state(*read_checkpoint(path))["training"]
    found.pop("seconds")
    return json.dumps(found, sort_keys=True, default=lambda value: np.asarray(value).tolist())
