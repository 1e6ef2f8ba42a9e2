"A real Ceph gateway: objects that are not what they were, what is wrong in words, runs."
import hashlib
import logging
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from audiolab.remote import (
    get, open_store, pull, pull_command, PullConfig, push, push_command, PushConfig, put,
    StorageError, Transfer,
)
from ceph_server import FaultProxy, free_ports
from store_tools import (
    a_file, a_run, content, fails, fetch, hidden, MB, PRIVATE, sha256, SMALL_PARTS, stored, tree,
    uploads, write,
)


# --- objects that are not what they were

def test_a_tampered_object_is_refused(ceph, s3, tmp_path):
    source, url = a_file(tmp_path/"source", 100_000), f"{s3}/file"
    info = put(source, url)
    wrong = bytearray(source.read_bytes())
    wrong[5] ^= 1
    ceph.client.put_object(Bucket="lab", Key=url.removeprefix("s3://lab/"), Body=bytes(wrong),
                           Metadata={"sha256": info.digest[7:]})
    with pytest.raises(StorageError, match="tampered with") as caught: get(url, tmp_path/"back")
    assert (caught.value.kind == "tampered" and not (tmp_path/"back").exists()
            and hidden(tmp_path) == [])


def test_an_object_of_another_client_is_verified_by_its_tag(ceph, s3, tmp_path):
    key = s3.removeprefix("s3://lab/")
    ceph.client.put_object(Bucket="lab", Key=f"{key}/file", Body=b"plain")
    store = open_store(s3)
    assert store.head("file").digest == f"md5:{hashlib.md5(b'plain').hexdigest()}"
    assert get(f"{s3}/file", tmp_path).read_bytes() == b"plain"


def test_an_object_replaced_between_two_attempts_is_not_mixed(ceph, s3, tmp_path):
    old, new, url = a_file(tmp_path/"old", 12 * MB, 1), a_file(tmp_path/"new", 12 * MB,
        2), f"{s3}/file"
    put(old, url, **SMALL_PARTS)
    stop = threading.Event()
    with pytest.raises(StorageError, match="stopped"):
        fetch(url, tmp_path/"back", Transfer(report=lambda n: n and stop.set(), stop=stop),
              **SMALL_PARTS)
    before, = hidden(tmp_path)
    assert (tmp_path/before).stat().st_size > 0
    put(new, url, **SMALL_PARTS)
    fetch(url, tmp_path/"back", Transfer(), **SMALL_PARTS)
    assert sha256(tmp_path/"back") == sha256(new) and hidden(tmp_path) == []


def test_an_object_replaced_while_it_is_fetched_starts_over(ceph, s3, tmp_path):
    old, new, url = a_file(tmp_path/"old", 22 * MB, 1), a_file(tmp_path/"new", 22 * MB,
        2), f"{s3}/file"
    put(old, url, **SMALL_PARTS)
    once = []
    def replace(size):
        if size > 0 and not once: once.append(put(new, url, **SMALL_PARTS))
    fetch(url, tmp_path/"back", Transfer(report=replace), **SMALL_PARTS)
    assert once and sha256(tmp_path/"back") == sha256(new) and hidden(tmp_path) == []


def test_a_file_that_changed_after_its_first_parts_carries_the_right_digest(ceph, s3, tmp_path):
    "The unfinished upload agrees with the first parts of the new file, but was begun with the SHA-256 of the old one"
    source, url = a_file(tmp_path/"source", 22 * MB), f"{s3}/file"
    stop = threading.Event()
    done = [0]
    def report(n):
        done[0] += n
        if done[0] >= 10 * MB: stop.set()
    with pytest.raises(StorageError, match="stopped"):
        write(url, source, Transfer(report=report, stop=stop), **SMALL_PARTS)
    assert uploads(ceph, url)[0] >= 2
    with open(source, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"!" if source.read_bytes()[-1:] != b"!" else b"?")
    info = write(url, source, Transfer(), **SMALL_PARTS)
    assert info.digest == f"sha256:{sha256(source)}" and stored(ceph, url) == source.read_bytes()
    assert sha256(get(url, tmp_path/"back", **SMALL_PARTS)) == sha256(source)


def test_unfinished_uploads_of_others_are_left_alone_until_they_are_old(ceph, s3, tmp_path):
    url, key = f"{s3}/file", f"{s3.removeprefix('s3://lab/')}/file"
    begun = ceph.client.create_multipart_upload(Bucket="lab", Key=key)["UploadId"]
    ceph.client.upload_part(Bucket="lab", Key=key, UploadId=begun, PartNumber=1,
                            Body=content(5 * MB, 9))
    source = a_file(tmp_path/"source", 12 * MB)
    write(url, source, Transfer(), **SMALL_PARTS)
    assert uploads(ceph, url) == [1]
    open_store(s3, **SMALL_PARTS).finish(Transfer())
    assert uploads(ceph, url) == [1]
    open_store(s3, stale_after=0.0, **SMALL_PARTS).finish(Transfer())
    assert uploads(ceph, url) == [] and stored(ceph, url) == source.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 5 * MB, 5 * MB + 1, 10 * MB])
def test_sizes_at_the_edges(ceph, s3, tmp_path, size):
    source = a_file(tmp_path/"source", size)
    assert put(source, f"{s3}/", **SMALL_PARTS).size == size
    assert get(f"{s3}/source", tmp_path/"back", **SMALL_PARTS).read_bytes() == source.read_bytes()


def test_what_is_there_is_not_sent_again(ceph, s3, tmp_path):
    source = a_file(tmp_path/"source", 12 * MB)
    put(source, f"{s3}/file", **SMALL_PARTS)
    with FaultProxy(ceph.port) as proxy:
        put(source, f"{s3}/file", endpoint=proxy.endpoint, **SMALL_PARTS)
        assert {method for method, path, _ in proxy.seen} <= {"HEAD", "GET"}
    get(f"{s3}/file", tmp_path/"back")
    with FaultProxy(ceph.port) as proxy:
        get(f"{s3}/file", tmp_path/"back", endpoint=proxy.endpoint)
        assert [method for method, *_ in proxy.seen] == ["HEAD"]


# --- what is wrong, in words

def test_errors_name_the_place_and_the_remedy(ceph, s3, tmp_path, monkeypatch, caplog):
    source = a_file(tmp_path/"source", 1000)
    fails("bucket", "no such bucket", lambda: put(source, "s3://no-such-lab/file"))
    fails("bucket", "no such bucket", lambda: get("s3://no-such-lab/file", tmp_path/"x"))
    fails("missing", f"{s3}/nothing: there is no such object",
          lambda: get(f"{s3}/nothing", tmp_path/"x"))
    fails("missing", "no such file", lambda: put(tmp_path/"nothing", f"{s3}/file"))
    fails("url", "can be used", lambda: put(source, "s3://B@d Bucket/file".replace("@", "_")))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" * 8)
    assert "wrong" * 8 not in fails("access", "", lambda: put(source, f"{s3}/file"))
    fails("access", "", lambda: get(f"{s3}/file", tmp_path/"x"))
    assert "trying again" not in caplog.text  # it would stay wrong
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    fails("access", "", lambda: push(source, f"{s3}/file"))
    assert not (tmp_path/"x").exists()


def test_no_rights_on_the_bucket_of_another_user(ceph, s3, tmp_path, monkeypatch):
    ceph.command("radosgw-admin", "user", "create", "--uid=guest", "--display-name=guest",
                 "--access-key=GUEST", "--secret-key=guestguest")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "GUEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guestguest")
    fails("access", "no right to do that", lambda: put(a_file(tmp_path/"source", 10), f"{s3}/file"))


def test_no_credentials_and_no_server(no_aws, tmp_path, monkeypatch, caplog):
    source = a_file(tmp_path/"source", 1000)
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    fails("credentials", "AWS_ACCESS_KEY_ID",
          lambda: put(source, "s3://lab/file", endpoint=endpoint))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    fails("unreachable", "cannot be reached",
          lambda: put(source, "s3://lab/file", endpoint=endpoint, quiet=0))
    fails("unreachable", "cannot be reached",
          lambda: get("s3://lab/file", tmp_path/"x", endpoint=endpoint, quiet=0))
    fails("stopped", "time given", lambda: put(source, "s3://lab/file", endpoint=endpoint,
                                               total=0.1))
    assert caplog.text.count("trying again") <= 1  # after a pause the time was over


@pytest.mark.parametrize("module, extra, url",
                         [("boto3", "s3", "s3://lab/file"),
                          ("huggingface_hub", "hf", "hf://me/model/file")])
def test_a_missing_extra_is_named(no_aws, tmp_path, monkeypatch, module, extra, url):
    monkeypatch.setitem(sys.modules, module, None)
    fails("extra", f"pip install 'audiolab[{extra}]'",
          lambda: put(a_file(tmp_path/"source", 10), url))


def test_servers_that_refuse_the_checksums_of_boto3(ceph, s3, tmp_path):
    for size in (1000, 6 * MB):
        source, url = a_file(tmp_path/"source", size), f"{s3}/file{size}"
        with FaultProxy(ceph.port, lambda *args: "refuse-checksums") as proxy:
            there = {"endpoint": proxy.endpoint, **SMALL_PARTS}
            fails("checksums", "checksums='when_required'", partial(put, source, url, **there))
            put(source, url, endpoint=proxy.endpoint, checksums="when_required", **SMALL_PARTS)
            assert sha256(get(url, tmp_path/"back", endpoint=proxy.endpoint,
                              checksums="when_required")) == sha256(source)


def test_secrets_are_nowhere(ceph, s3, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "audiolab")
    store = open_store(s3)
    text = [repr(store), repr(vars(store)), repr(PushConfig(Path("x"), s3))]
    put(a_file(tmp_path/"source", 1000), f"{s3}/file")
    text.append(fails("url", "without credentials",
                      lambda: open_store(f"s3://{ceph.access_key}:{ceph.secret_key}@lab/x")))
    assert ceph.secret_key not in "".join([*text, caplog.text])


# --- runs

def test_a_run_comes_back_as_it_was(ceph, s3, tmp_path):
    run = a_run(tmp_path/"run")
    with FaultProxy(ceph.port) as proxy:
        push(run, s3, endpoint=proxy.endpoint, **SMALL_PARTS)
        order = list(dict.fromkeys(path.split("?")[0].rsplit("/", 1)[1] for method, path,
                                   _ in proxy.seen if method in ("PUT", "POST")))
        assert order[-2:] == ["latest.json", "manifest.json"]
        proxy.seen.clear()
        push(run, s3, endpoint=proxy.endpoint, **SMALL_PARTS)
        assert not [path for method, path, _ in proxy.seen if method in ("PUT", "POST")]
    back = pull(s3, tmp_path/"back")
    assert tree(back) == {name: data for name, data in tree(run).items() if name not in PRIVATE}


def test_an_unfinished_push_is_not_seen(ceph, s3, tmp_path):
    run = a_run(tmp_path/"run")
    with FaultProxy(ceph.port, lambda method, path, number: "501" if path.endswith("manifest.json")
                    and method == "PUT" else None) as proxy:
        fails("checksums", "refused", lambda: push(run, s3, endpoint=proxy.endpoint, quiet=0))
    fails("missing", "no such object", lambda: pull(s3, tmp_path/"back"))
    push(run, s3)
    before = tree(pull(s3, tmp_path/"back"))
    (run/"config.yaml").write_text("seed: 1\n")
    with FaultProxy(ceph.port, lambda method, path, number: "501" if path.endswith("manifest.json")
                    and method == "PUT" else None) as proxy:
        fails("checksums", "refused", lambda: push(run, s3, endpoint=proxy.endpoint, quiet=0))
    # without a manifest that tells of it nothing was replaced
    assert tree(pull(s3, tmp_path/"third")) == tree(tmp_path/"back") == before


def test_a_run_pushed_while_it_is_pulled_is_pulled_anew(ceph, s3, tmp_path):
    run = a_run(tmp_path/"run")
    push(run, s3)
    def fault(method, path, number):
        if method == "GET" and path.endswith("safetensors") and not pushed:
            (run/"config.yaml").write_text("seed: 1\n")
            pushed.append(push(run, s3))
    pushed = []
    with FaultProxy(ceph.port, fault) as proxy: pull(s3, tmp_path/"back", endpoint=proxy.endpoint)
    assert pushed and (tmp_path/"back/config.yaml").read_text() == "seed: 1\n"


# --- commands

def test_commands(ceph, s3, tmp_path, capsys, monkeypatch):
    from audiolab.config import config_cli
    monkeypatch.chdir(tmp_path)
    run = a_run(tmp_path/"run")
    config = config_cli(PushConfig, [str(run), s3, "--checksums", "when_required"],
                        positional=True).config
    assert push_command(config) == 0 and "6 files" in capsys.readouterr().out
    config = config_cli(PullConfig, [s3, "--folder", "there"], positional=True).config
    assert pull_command(config) == 0 and "there: verified" in capsys.readouterr().out
    assert tree("there") == {name: data for name, data in tree(run).items() if name not in PRIVATE}
    assert pull_command(PullConfig(s3)) == 0 and tree(s3.rsplit("/", 1)[1]) == tree("there")
