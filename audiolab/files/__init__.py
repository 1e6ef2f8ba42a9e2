"Files that can be trusted: written whole or not at all, verified when read, never run as code."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "atomic": ["HOST_DIGEST", "TEMP_NAME", "WriteError", "being_written", "check_space",
        "durable_write", "make_folders", "remove_stale_temps", "replacing", "settle",
        "sync_folder", "temporary_beside", "temporary_path"],
    "background_writer": ["BackgroundWorker", "CheckpointWriter", "Copier"],
    "checkpoint_file": ["CheckpointError", "CheckpointInfo", "DTYPE_NAMES", "TensorInfo",
        "VerifyReport", "check_storable", "checked_tensor", "count_elements", "fresh_bytes",
        "inspect_checkpoint", "is_plain_array", "is_torch_tensor", "open_regular",
        "read_checkpoint", "read_header", "read_tensor", "refuse_damage", "save_bytes",
        "start_digest", "verify_checkpoint", "write_checkpoint"],
    "checkpoint_folder": ["CheckpointFolder", "Retention", "SavedCheckpoint"],
    "nested_state": ["STATE_KEY", "load_state", "pack_state", "save_state", "unpack_state"],
    "npz": ["read_npz"],
    "strict_json": ["CONTROL_CHARACTERS", "MAX_JSON", "canonical_json", "parse_json"],
    "untrusted_pickle": ["archived_pickle", "damaged_entries", "read_torch_file", "scan_pickle"],
    "weights_file": ["LazyTensors", "LoadReport", "load_into", "read_into", "save_weights"],
})
