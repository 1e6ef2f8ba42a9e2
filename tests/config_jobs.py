"A configuration that the tests share."
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len, Lt

from audiolab.config import load_config


class Window(Enum):
    HANN = "hann"
    FLAT = "flat"


@dataclass
class Schedule:
    "How the learning rate moves."
    warmup: Annotated[int, Ge(0)] = 100  # steps to full rate
    decay: Annotated[float, Gt(0), Le(1)] = 0.999  # factor a step


@dataclass
class Optim:
    "Optimiser."
    learning_rate: Annotated[float, Gt(0), Lt(1)] = 2e-4  # step size
    betas: tuple[float, float] = (0.8, 0.99)  # memory
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup=7))  # of the rate


@dataclass
class Layer:
    "One layer."
    width: Annotated[int, Ge(1)]  # channels
    kernel: int = 3  # taps


@dataclass
class Job:
    "A run."
    folders: list[Path]  # where the audio is
    batch_size: Annotated[int, Ge(1)] = 16  # segments a step
    lang: str = "en"  # language
    code: str = ""  # free text
    since: str = ""  # a date
    window: Window = Window.HANN  # analysis window
    mode: Literal["em", "viterbi"] = "em"  # training mode
    resume: Path|None = None  # checkpoint
    amp: bool = False  # half precision
    seed: int|Literal["random"] = 0  # of everything
    weights: dict[str, float] = field(default_factory=dict)  # of losses
    layers: list[Layer] = field(default_factory=list)  # of the network
    tags: Annotated[list[str], Len(0, 3)] = field(default_factory=list)  # for you
    optimizer: Optim = field(default_factory=Optim)  # optimiser
    teacher: Optim|None = None  # second optimiser


def loader(tmp_path):
    "Writes a text to a file and loads it"
    def load(text, suffix="yaml", cls=Job, required="folders: [a]\n", **kw):
        path = tmp_path/f"job.{suffix}"
        if suffix == "yaml" and not isinstance(text, bytes): text = required + text
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(cls, path, **kw)
    return load
