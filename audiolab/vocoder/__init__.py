"A small network that makes sound from log-mel spectrograms."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "network": ["MelFormat", "MelVocoder", "Vocoder", "VocoderError", "VocoderModel",
        "griffin_lim"],
    "train": ["ResynthConfig", "SpectralLoss", "VocoderConfig", "VocoderTask", "train_vocoder",
        "vocoder_apply_command", "vocoder_train_command", "vocoder_trainer"],
})
