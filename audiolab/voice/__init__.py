"Voices of synthesizers: what they are made of, and a recording turned into one."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "kokoro": ["KokoroTeacher", "MOST_SOUNDS", "PACKAGE", "TIMBRE", "USUAL", "joined_row",
        "packaged_graph", "read_voices", "sound_tokens", "split_rows"],
    "parametric_speech": ["BINS", "BURST", "GAINS", "HISSES", "HOP", "Letters", "OTHER", "PAUSE",
        "ParametricTeacher", "RATE", "SUNG", "VOWEL", "WIDTHS", "WINDOW", "at_samples",
        "glottal_source", "hiss_place", "letter_segments", "overlap_add", "pitch_track",
        "pulse_places", "say", "smooth", "sound_of", "spell", "throat"],
    "parametric_style": ["FACTORS", "MOST", "MOST_RATE", "ParametricStyles", "directions_at",
        "draw_factors", "read_steps"],
    "phonetics": ["ESPEAK_LOCK", "ESPEAK_VOICES", "choose_voice", "espeak_library", "phonemes"],
    "style": ["ROW_TOLERANCE", "StyleError", "StyleSpace", "VoiceStyle", "blend", "check_rows",
        "check_same_teacher", "perturb", "slerp", "slerp_rows", "stack_styles", "unit_rows"],
    "style_basis": ["StyleBasis", "active_rows", "fit_basis", "principal_directions"],
    "style_files": ["MAX_STYLE_FILE", "load_style", "named_space", "read_tree", "save_style",
        "style_json"],
    "style_sampler": ["MODES", "SamplerConfig", "StyleSampler", "random_style", "stepped"],
    "supertonic": ["PAUSE_SECONDS", "SUPERTONIC_NOTICE", "SupertonicTeacher", "check_pace",
        "files_digest", "global_noise", "model_folder", "model_languages", "model_revision",
        "say_with_engine", "stub_duration", "stub_estimator", "stub_text", "stub_vocoder",
        "supertonic_package", "write_stub_engine"],
    "teacher": ["SILENT", "Speech", "SpeechFailed", "Teacher", "check_lesson", "check_spoken",
        "speaking_rate"],
})
