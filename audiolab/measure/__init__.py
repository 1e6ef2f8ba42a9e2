"Distances between sounds, and measures of generated sound."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "distances": ["MEL_BANDS", "MEL_WINDOWS", "MultiScaleMel", "MultiScaleSTFT",
        "VOCODER_RESOLUTIONS", "WindowedMagnitude", "centred_frames", "cut_frames",
        "equal_mel_bands", "fft_size", "frames_in_block", "level_difference",
        "log_spectral_distance", "means_of_pieces", "mel_cepstral_distortion", "mel_distance",
        "mel_levels", "multi_resolution_stft_distance", "multi_scale_stft_distance",
        "offset_difference", "scale_invariant_sdr"],
    "generated_sound": ["as_float64", "as_mono", "autocorrelation", "feature_scale",
        "for_batches", "harmonicity", "long_term_spectral_distance", "long_term_spectrum",
        "loudness_spread", "measure", "modulation_index", "nearest_runs", "novelty",
        "occupancy_entropy", "pole_radius", "power_density", "runs_of_frames", "states_used"],
    "judges": ["judge_speech", "mean_marks"],
    "listeners": ["LISTENERS", "check_heard", "import_package", "measure_distances",
        "package_folder", "pesq", "stoi", "visqol", "visqol_model"],
    "pairs": ["SoundPair", "as_tensors", "check_finite", "check_lengths", "check_same_shape",
        "check_shape", "measure_each", "measure_together"],
    "sound_pictures": ["plot_long_term_spectra", "spectrogram_grid", "spectrogram_levels"],
    "speakers": ["SPEAKER_LEVEL", "SPEAKER_RATE", "SpeakerEncoder", "WINDOW_FRAMES",
        "WINDOW_STEP", "speaker_bands", "speaker_direction", "speaker_encoder",
        "speaker_similarity", "speaker_sound", "window_starts"],
    "speech_quality": ["MARKS", "dnsmos", "judged_sound"],
    "tables": ["Table", "compare_table", "format_value"],
    "words": ["WordEdits", "count_edits", "heard_words", "normalise_words", "spell_number",
        "whisper_tiny", "word_edits", "write_down"],
})
