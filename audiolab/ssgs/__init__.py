"Spectral-state guided synthesis. The public names of the room, loaded when they are first used."
from importlib import import_module

_NAMES = {
    "SpectralStateGuidedSynthesis": "model", "TrainConfig": "train", "train_model": "train", "ssgs_trainer": "train", "find_audio_files": "train", "read_all": "train",
    "EXCITATIONS": "excitation", "register_excitation": "excitation", "Controls": "excitation", "Stream": "synthesis", "Recordings": "synthesis", "States": "synthesis",
    "GaussianHMM": "hmm", "Prior": "hmm", "fit": "fit", "select_n_states": "fit", "analyse": "lpc", "analyse_frames": "lattice",
    "FrameQueryResult": "retrieval", "FeatureIndex": "retrieval", "read_legacy": "formats",
    "fidelity_sweep": "evaluate", "evaluate": "evaluate", "Dashboard": "dashboard", "write_report": "report", "e_step": "inference",
}
__all__ = list(_NAMES)


def __getattr__(name):
    if name not in _NAMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__(): return sorted([*globals(), *_NAMES])
