"Files that can be trusted: written whole or not at all, verified when read, never run as code."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "background_writer": ["CheckpointWriter"],
    "checkpoint_file": ["CONTROL_CHARACTERS", "CheckpointError", "CheckpointInfo", "HOST_DIGEST",
        "TEMP_NAME", "TensorInfo", "VerifyReport", "being_written", "canonical_json",
        "checked_tensor", "count_elements", "durable_write", "fresh_bytes", "inspect_checkpoint",
        "is_torch_tensor", "open_regular", "parse_json", "read_checkpoint", "read_header",
        "read_tensor", "remove_stale_temps", "sync_folder", "verify_checkpoint",
        "write_checkpoint"],
    "checkpoint_folder": ["CheckpointFolder", "load_state", "pack_state", "read_npz",
        "save_state", "unpack_state"],
})
