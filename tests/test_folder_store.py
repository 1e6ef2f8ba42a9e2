"Folders as stores, names and manifests."
import json
import os
import subprocess

import pytest
from hypothesis import given, strategies

from audiolab.remote import (
    check_name, fetching, FolderStore, get, parse_manifest, pull, push, put, StorageError, Transfer,
)
from store_tools import a_file, a_run, content, fails, MB, PRIVATE, tree


# --- runs

@pytest.mark.parametrize("name", ["../up", "/var/abs", "a/../../up", "nul\0", "a\nb", "C:\\x", "..",
                                  "manifest.json", "x" * 300])
def test_a_hostile_manifest_writes_nothing(tmp_path, name):
    (tmp_path/"far").mkdir()
    (tmp_path/"far/manifest.json").write_text(json.dumps({"format": "audiolab.manifest",
                                                          "version": 1,
                                                          "files": [{"name": name, "size": 1,
                                                              "sha256": "0" * 64}]}))
    fails("tampered", "not to be trusted", lambda: pull(tmp_path/"far", tmp_path/"back"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["far"]


def test_manifests_are_bounded(tmp_path):
    def entry(i):
        return {"name": f"f{i}", "size": 10, "sha256": "0" * 64}
    def text(files):
        return json.dumps({"format": "audiolab.manifest", "version": 1,
                                         "files": files}).encode()
    fails("tampered", "more than 3 files",
          lambda: parse_manifest(text([entry(i) for i in range(4)]), max_files=3))
    fails("tampered", "two names that clash", lambda: parse_manifest(text([entry(1), entry(1)])))
    for broken in (b"", b"[]", b"{", b"[" * 100_000,
                   b'{"format": "audiolab.manifest", "version": 2, "files": []}', text([[]]),
                   text([{}]), text(7)):
        fails("tampered", "not to be trusted", lambda broken=broken: parse_manifest(broken))
    (tmp_path/"far").mkdir()
    with open(tmp_path/"far/manifest.json", "wb") as file: file.truncate(1 << 30)
    fails("tampered", "more than", lambda: pull(tmp_path/"far", tmp_path/"back"))


@given(strategies.text(max_size=60))
def test_names_stay_in_their_folder(name):
    try: check_name(name)
    except StorageError: return
    folder = os.path.abspath("folder")
    path = os.path.normpath(os.path.join(folder, name))
    assert (path.startswith(folder + os.sep) and "\0" not in name
            and os.path.relpath(path, folder) == name)


# --- folders

def test_a_folder_as_a_file_address(tmp_path):
    run = a_run(tmp_path/"run")
    url = (tmp_path/"far away").as_uri()
    push(run, url, sidecar=True)
    assert tree(pull(url, tmp_path/"back")) == {name: data for name, data in tree(run).items()
                                                if name not in PRIVATE}
    r = subprocess.run(["sha256sum", "-c", "config.yaml.sha256"], cwd=tmp_path/"far away",
                       capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout == "config.yaml: OK\n"
    fails("missing", "no such file", lambda: pull(f"{url}/nothing", tmp_path/"x"))
    assert pull(f"{url}/config.yaml", tmp_path/"one").read_bytes() == b"seed: 0\n"
    (tmp_path/"far away/config.yaml").write_bytes(b"seed: 7\n")
    fails("tampered", "tampered", lambda: get(f"{url}/config.yaml", tmp_path/"two"))
    put(run/"config.yaml", f"{url}/")  # replaces the stale digest too
    assert get(f"{url}/config.yaml", tmp_path/"two").read_bytes() == b"seed: 0\n"


def test_a_full_disk_and_a_read_only_folder_are_named(tmp_path, monkeypatch):
    source = a_file(tmp_path/"source", 1000)
    (tmp_path/"plain").write_text("")
    fails("file", "check the path", lambda: put(source, tmp_path/"plain/file"))
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    fails("file", "disk has 10 free", lambda: get(source, tmp_path/"back"))
    assert not (tmp_path/"back").exists()


def test_two_processes_do_not_fetch_one_file_at_once(tmp_path):
    source = a_file(tmp_path/"source", 1000)
    info = FolderStore(tmp_path).head("source")
    with fetching.partial_file(tmp_path/"back", f"{tmp_path}/source", info.version):
        fails("file", "another process", lambda: get(source, tmp_path/"back"))
    assert get(source, tmp_path/"back").read_bytes() == source.read_bytes()


def test_a_growing_file_is_sent_as_it_was_at_the_start(tmp_path):
    log = a_file(tmp_path/"log", 3 * MB)
    def grow(size):
        with open(log, "ab") as file: file.write(b"more")
    with open(log, "rb") as file:
        info = FolderStore(tmp_path/"far").write("log", file, Transfer(report=grow))
    assert info.size == 3 * MB and (tmp_path/"far/log").read_bytes() == content(3 * MB)
