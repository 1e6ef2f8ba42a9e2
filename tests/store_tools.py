"What the tests of stores share: a gateway, credentials, files."
import hashlib
from pathlib import Path

import numpy as np
import pytest

from audiolab.remote import fetch_object, open_store, StorageError

MB = 1 << 20
SMALL_PARTS = {"part_size": 5 * MB, "multipart_above": 5 * MB, "threads": 1}


def content(size, seed=0): return np.random.default_rng(seed).bytes(size)


def a_file(path, size, seed=0):
    path.write_bytes(content(size, seed))
    return path


def sha256(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def hidden(folder): return [p.name for p in Path(folder).iterdir() if p.name.startswith(".")]


def stored(ceph, url):
    "What the server has there, read by another client; None if nothing"
    try:
        return ceph.client.get_object(Bucket="lab",
                                      Key=url.removeprefix("s3://lab/"))["Body"].read()
    except ceph.client.exceptions.NoSuchKey: return None


def uploads(ceph, url):
    "Parts of each unfinished upload of an object"
    key = url.removeprefix("s3://lab/")
    found = ceph.client.list_multipart_uploads(Bucket="lab", Prefix=key).get("Uploads", [])
    return [len(ceph.client.list_parts(Bucket="lab", Key=key, UploadId=u["UploadId"]).get("Parts",
        [])) for u in found]


def write(url, path, transfer, **options):
    place, name = url.rsplit("/", 1)
    with open(path, "rb") as file: return open_store(place, **options).write(name, file, transfer)


def fetch(url, path, transfer, **options):
    place, name = url.rsplit("/", 1)
    return fetch_object(open_store(place, **options), name, path, transfer)


def fails(kind, words, action):
    with pytest.raises(StorageError) as caught: action()
    assert caught.value.kind == kind and words in str(caught.value), caught.value
    return str(caught.value)


def a_run(folder):
    for name, data in {"config.yaml": b"seed: 0\n", "history.jsonl": b"{}\n" * 100,
                       "checkpoints/checkpoint_step_10.safetensors": content(6 * MB),
                       "checkpoints/latest.json": b'{"file":"checkpoint_step_10.safetensors"}',
                       "samples/step 10/é.wav": content(1000), "empty": b"",
                       "run.lock": b"1", "control": b"stop",
                       ".config.yaml.part-0123456789abcdef": b"half"}.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(data)
    (folder/"link").symlink_to("/etc/passwd")
    return folder


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(Path(folder).rglob("*")) if p.is_file() and not p.is_symlink()}


PRIVATE = {"run.lock", "control", ".config.yaml.part-0123456789abcdef"}
