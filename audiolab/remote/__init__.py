"Stores on other machines: folders, S3, the Hugging Face hub; copying there and back, verified."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "fetching": ["Fetch", "fetch_object", "partial_file", "read_small_object"],
    "file_parts": ["FileParts", "Window", "cut_file"],
    "folder_store": ["FolderStore"],
    "hub_store": ["HubRepository", "HubStore", "explain_hub_error"],
    "manifest": ["MANIFEST", "POINTERS", "is_complete", "manifest_bytes", "parse_manifest",
        "run_files", "without_clashes"],
    "push_pull": ["PullConfig", "PushConfig", "RunLedger", "check_address", "describe_file",
        "get", "open_store", "pull", "pull_command", "push", "push_command", "put", "store_file"],
    "pusher": ["PushQueue", "PushWorker", "Pusher", "RunMirror", "WaitingFile", "check_push"],
    "s3_store": ["Bucket", "S3Store", "Sending", "Uploads"],
    "store": ["CHUNK", "ObjectInfo", "StorageError", "Store", "Transfer", "check_name",
        "file_blocks", "file_errors"],
})
