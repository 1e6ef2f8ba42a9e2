"Stores on other machines: folders, S3, the Hugging Face hub; copying there and back, verified."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "push_pull": ["MANIFEST", "PullConfig", "PushConfig", "Pusher", "get", "open_store",
        "parse_manifest", "pull", "pull_command", "push", "push_command", "put"],
    "s3_store": ["S3Store"],
    "store": ["FolderStore", "HubStore", "ObjectInfo", "StorageError", "Store", "Transfer",
        "check_name", "explain_hub_error", "fetch_object", "file_blocks", "file_errors",
        "read_small_object"],
})
