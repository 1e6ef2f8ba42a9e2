"Speech from text: T3, taught a new language."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "alignment": ["AlignmentFigures", "WordTime", "alignment_figures", "attention_surplus",
        "best_path", "draw_alignment", "follow_back", "path_sharpness", "surety_of",
        "word_places", "word_times"],
    "conditioning": ["ConditionEncoder", "Perceiver", "PromptAttention"],
    "language_tables": ["LanguageTable", "TTSError", "TextRule"],
    "packed_attention": ["Documents", "KeyValueCache", "attention_way", "document_attention",
        "document_mask", "masked_attention", "sliced_attention"],
    "packs": ["IGNORED", "Pack", "PackLayout", "Utterance", "check_utterance", "count_rows",
        "joined_order", "make_pack"],
    "practice_speech": ["AMHARIC", "ENGLISH", "SPEAKERS", "TEMPLATES", "as_table",
        "practice_corpus", "practice_sentences", "practice_voice", "speak_once"],
    "rotary": ["rotary_angles", "rotary_speeds", "turn"],
    "sampling": ["SamplingConfig", "code_probabilities", "cut_min_p", "cut_top_p", "draw_codes",
        "guided", "penalise_repeats", "sound_or_stop", "utterance_dice"],
    "t3": ["GatedFeedForward", "LearnedPositions", "LlamaBlock", "LlamaStack", "SelfAttention",
        "T3", "compare_starts", "init_t3", "reference_logits"],
    "t3_config": ["EXTRA_SPEECH", "EXTRA_TEXT", "PARTS", "T3Config", "UNUSED_ROWS",
        "config_text", "count_parts", "parse_config", "tensor_shapes"],
})
