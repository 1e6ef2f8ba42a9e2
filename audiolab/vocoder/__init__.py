"A small network that makes sound from log-mel spectrograms."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "mel_vocoder": ["MelVocoder", "wanted_length"],
    "network": ["FrameBlock", "Vocoder", "VocoderModel", "answered_spectrum", "draft_features",
        "polish"],
    "phase_iteration": ["BandTables", "MelFormat", "VocoderError", "band_tables", "check_mel",
        "corrected", "first_guess", "griffin_lim", "iterate_phase", "magnitude_of", "phase_of",
        "to_sound", "to_spectrum"],
    "spectral_loss": ["SpectralLoss", "band_difference", "log_difference",
        "spectral_convergence"],
    "train": ["ResynthConfig", "VocoderConfig", "VocoderData", "VocoderTask", "at_some_level",
        "train_vocoder", "usual_training", "vocoder_apply_command", "vocoder_train_command",
        "vocoder_trainer"],
})
