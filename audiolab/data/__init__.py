"Recordings to train on: clips, manifests, crops, loaders, streams, packed stores, tables of the hub."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "clips": ["AudioFiles", "Clip", "ClipSource", "DataError", "ScanReport", "Subset",
        "file_digest", "pair_files", "scan_audio", "work_all"],
    "hub_tables": ["GROUP_COLUMNS", "HubClips", "HubStream", "ShardReader", "open_clips",
        "open_hub_table", "open_table"],
    "loader": ["BatchReader", "Bucket", "Loader", "LoaderBase", "Order", "UNREADABLE", "collate",
        "exception_text"],
    "manifest": ["ScanConfig", "Segments", "WholeClips", "keyed_rng", "read_manifest",
        "scan_command", "split_clips", "target_frames", "write_durably", "write_manifest"],
    "packed": ["PackedClips", "PackedStore", "PackedWriter", "pack"],
    "streams": ["ExampleStream", "Stream", "StreamLane", "StreamLoader"],
})
