"Settings: strict YAML, other names, layers, checking with exact errors, flags."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "checking": ["IS_REQUIRED", "check_tree"],
    "command_line": ["config_cli"],
    "config_files": ["Resolved", "config_leaves", "config_of", "describe_config", "load_config",
        "resolve_layers", "save_config"],
    "layers": ["Layer", "changed_part", "dataclass_in", "default_tree", "field_types",
        "fill_sections", "holds_key", "merge_layers", "overlay", "stack_layers", "to_plain"],
    "setting_names": ["describe_aliases", "flags_of_own_names", "own_names", "without_retired"],
    "strict_yaml": ["ConfigError", "MAX_DEPTH", "PlainTree", "Problem", "config_error",
        "did_you_mean", "dotted_path", "read_config_file", "read_scalar", "write_value"],
})
