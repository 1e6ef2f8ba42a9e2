"Files that can be trusted: written whole or not at all, verified when read, never run as code."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "atomic": ["HOST_DIGEST", "TEMP_NAME", "WriteError", "being_written", "durable_write",
        "make_folders", "remove_stale_temps", "replacing", "settle", "sync_folder",
        "temporary_beside", "temporary_path"],
    "background_writer": ["CheckpointWriter"],
    "checkpoint_file": ["CONTROL_CHARACTERS", "CheckpointError", "CheckpointInfo", "TensorInfo",
        "VerifyReport", "canonical_json", "checked_tensor", "count_elements", "fresh_bytes",
        "inspect_checkpoint", "is_torch_tensor", "open_regular", "parse_json", "read_checkpoint",
        "read_header", "read_tensor", "save_bytes", "verify_checkpoint", "write_checkpoint"],
    "checkpoint_folder": ["CheckpointFolder", "load_state", "pack_state", "read_npz",
        "save_state", "unpack_state"],
    "untrusted_pickle": ["archived_pickle", "read_torch_file", "scan_pickle"],
})
