"Sound: files read and written, spectra, figures and players, levels, corpora to practise on."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "corpora": ["KINDS", "MissingProgram", "SENTENCES", "VOICES", "bell", "demo_corpus", "drum",
        "espeak", "flute", "instrument_corpus", "log", "pad", "phrase", "plucked_string",
        "speech_corpus"],
    "levels": ["loudness", "normalise_loudness", "true_peak"],
    "sound_files": ["AudioError", "AudioFigure", "AudioInfo", "EXTENSIONS", "MAX_CHANNELS",
        "MAX_SAMPLES", "RATE_LIMITS", "SequentialSoundFile", "UNKNOWN_FRAMES", "check_rate",
        "decode_frames", "find_audio_files", "log_mel", "mel_filterbank", "mp3_with_index",
        "open_sound", "play", "preroll_frames", "probe_audio", "read_audio", "read_blocks",
        "resample", "show_audio", "stft", "why_not_audio", "write_audio"],
})
