"Speech from text: T3, taught a new language."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "alignment": ["AlignmentFigures", "WordTime", "alignment_figures", "attention_surplus",
        "best_path", "draw_alignment", "follow_back", "path_sharpness", "surety_of",
        "word_places", "word_times"],
    "language_tables": ["LanguageTable", "TTSError", "TextRule"],
    "practice_speech": ["AMHARIC", "ENGLISH", "SPEAKERS", "TEMPLATES", "as_table",
        "practice_corpus", "practice_sentences", "practice_voice", "speak_once"],
    "sampling": ["SamplingConfig", "code_probabilities", "cut_min_p", "cut_top_p", "draw_codes",
        "guided", "penalise_repeats", "sound_or_stop", "utterance_dice"],
})
