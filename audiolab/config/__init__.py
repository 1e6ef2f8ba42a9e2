"Settings: strict YAML, other names, layers, checking with exact errors, flags."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "layers": ["Resolved", "config_cli", "describe_config", "load_config", "save_config",
        "to_plain"],
    "setting_names": ["describe_aliases", "flags_of_own_names", "own_names"],
    "strict_yaml": ["ConfigError", "MAX_DEPTH", "PlainTree", "Problem", "config_error",
        "did_you_mean", "dotted_path", "read_config_file", "read_scalar", "write_value"],
})
