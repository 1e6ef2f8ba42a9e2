"Distances between sounds, and measures of generated sound."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "distances": ["MEL_BANDS", "MEL_WINDOWS", "MultiScaleMel", "MultiScaleSTFT", "cut_frames",
        "fft_size", "log_spectral_distance", "measure_distances", "mel_cepstral_distortion",
        "mel_distance", "multi_resolution_stft_distance", "multi_scale_stft_distance", "pesq",
        "scale_invariant_sdr", "stoi", "visqol"],
    "generated_sound": ["Table", "compare_table", "harmonicity", "long_term_spectral_distance",
        "long_term_spectrum", "loudness_spread", "measure", "modulation_index", "nearest_runs",
        "novelty", "occupancy_entropy", "plot_long_term_spectra", "pole_radius",
        "spectrogram_grid", "states_used"],
})
