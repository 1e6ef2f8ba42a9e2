"SNAC, the multi-scale neural audio codec: trained, fine-tuned, measured, used. The public names of the room, loaded when they are first used."
from importlib import import_module

_NAMES = {name: module for module, names in {
    "config": "SnacError TrainConfig ModelConfig DATASET_CONFIGS MODELS as_config create_training_config create_snac_24khz_config create_snac_32khz_config create_snac_44khz_config create_snac_small_config",
    "snake": "Snake1d", "quantizer": "ResidualVectorQuantize VectorQuantize", "generator": "SNAC", "codebooks": "CodebookTrainer codebook_use",
    "pretrained": "from_pretrained save_pretrained describe",
    "discriminators": "MultiPeriodDiscriminator MultiScaleSTFTDiscriminator PeriodDiscriminator STFTDiscriminator",
    "losses": "feature_matching_loss discriminator_loss generator_loss mel_spectrogram_loss multi_scale_mel_loss stft_loss Balancer",
    "loudness": "true_peak normalise_loudness", "data": "AudioDataset AudioStream snap_segment make_loader open_training_data",
    "train": "train_main setup_models setup_optimizers setup_dataset train_step save_checkpoint snac_trainer SnacTask", "step": "Comparison make_discriminators",
    "codes": "Codes token_order unflatten save_codes load_codes", "codec": "Codec StreamDecoder compare_by_ear",
    "export": "export_onnx verify_onnx", "measure": "code_statistics", "evaluate": "evaluate_codec CodecEvaluation write_evaluation",
}.items() for name in names.split()} | {"main": "train"}
__all__ = list(_NAMES)


def __getattr__(name):
    if name not in _NAMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__(): return sorted([*globals(), *_NAMES])
