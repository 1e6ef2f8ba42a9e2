"Files and runs to a real Ceph gateway and back: killed servers, killed clients, broken connections, hostile objects."
import base64
import hashlib
import http.server
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies

from audiolab.remote import fetching
from audiolab.remote import FolderStore, StorageError, Transfer, check_name, fetch_object
from audiolab.remote import (
    PullConfig, PushConfig, Pusher, get, open_store, parse_manifest, pull, pull_command, push,
    push_command, put,
)
from ceph_server import MISSING, CephServer, FaultProxy, free_ports, missing_programs

MB = 1 << 20
SMALL_PARTS = {"part_size": 5 * MB, "multipart_above": 5 * MB, "threads": 1}


@pytest.fixture(scope="session")
def ceph(tmp_path_factory):
    "A Ceph gateway of its own for this test session, with the bucket `lab`"
    if missing_programs(): pytest.skip(MISSING)
    import boto3
    with CephServer(tmp_path_factory.mktemp("ceph")) as server:
        server.client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1",
                                     aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key)
        server.client.create_bucket(Bucket="lab")
        yield server


@pytest.fixture
def no_aws(monkeypatch, tmp_path):
    "Nothing of the machine's own AWS settings"
    for name in [name for name in os.environ if name.startswith("AWS_")]: monkeypatch.delenv(name)
    for name, value in {"AWS_CONFIG_FILE": tmp_path/"no", "AWS_SHARED_CREDENTIALS_FILE": tmp_path/"no", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def s3(ceph, no_aws, monkeypatch, request):
    "Credentials in the environment, as boto3 finds them; an address of this test's own"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ceph.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ceph.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", ceph.endpoint)
    return f"s3://lab/{abs(hash(request.node.nodeid)):x}"


def content(size, seed=0): return np.random.default_rng(seed).bytes(size)


def a_file(path, size, seed=0):
    path.write_bytes(content(size, seed))
    return path


def sha256(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def hidden(folder): return [p.name for p in Path(folder).iterdir() if p.name.startswith(".")]


def stored(ceph, url):
    "What the server has there, read by another client; None if nothing"
    try: return ceph.client.get_object(Bucket="lab", Key=url.removeprefix("s3://lab/"))["Body"].read()
    except ceph.client.exceptions.NoSuchKey: return None


def uploads(ceph, url):
    "Parts of each unfinished upload of an object"
    key = url.removeprefix("s3://lab/")
    found = ceph.client.list_multipart_uploads(Bucket="lab", Prefix=key).get("Uploads", [])
    return [len(ceph.client.list_parts(Bucket="lab", Key=key, UploadId=u["UploadId"]).get("Parts", [])) for u in found]


@contextmanager
def killed(ceph, after, down=0.5):
    "A progress report that kills the gateway with -9 once `after` bytes went through; it comes back `down` seconds later"
    done, thread = [0], []

    def back():
        time.sleep(down)
        ceph.start_gateway()

    def report(size):
        done[0] += size
        if done[0] >= after and not thread:
            ceph.kill_gateway()
            thread.append(threading.Thread(target=back))
            thread[0].start()

    try: yield report
    finally:
        assert thread, "the server was never killed"
        thread[0].join()


def write(url, path, transfer, **options):
    place, name = url.rsplit("/", 1)
    with open(path, "rb") as file: return open_store(place, **options).write(name, file, transfer)


def fetch(url, path, transfer, **options):
    place, name = url.rsplit("/", 1)
    return fetch_object(open_store(place, **options), name, path, transfer)


# --- a server that dies

def round_trip(ceph, s3, folder, size, caplog):
    caplog.set_level(logging.INFO, "audiolab")
    source, url = a_file(folder/"source", size), f"{s3}/file"
    with killed(ceph, after=size // 2) as report: write(url, source, Transfer(60, report=report), **SMALL_PARTS)
    parts = -(-size // SMALL_PARTS["part_size"])
    there = [int(record.message.split(": ")[-1].split()[0]) for record in caplog.records if "parts are there already" in record.message]
    assert there and parts // 2 - 1 <= max(there) <= parts  # those that were sent before were not sent again
    assert hashlib.sha256(stored(ceph, url)).hexdigest() == sha256(source) and uploads(ceph, url) == []
    with killed(ceph, after=size // 2) as report: fetch(url, folder/"back", Transfer(60, report=report), **SMALL_PARTS)
    assert sha256(folder/"back") == sha256(source) and hidden(folder) == []


def test_a_server_killed_in_the_middle_of_an_upload_and_of_a_download(ceph, s3, tmp_path, caplog):
    round_trip(ceph, s3, tmp_path, 22 * MB + 1, caplog)


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_200_megabytes(ceph, s3, tmp_path, caplog):
    round_trip(ceph, s3, tmp_path, 200 * MB + 1, caplog)


def test_an_upload_that_was_given_up_goes_on_later(ceph, s3, tmp_path):
    source, url = a_file(tmp_path/"source", 22 * MB), f"{s3}/file"
    with killed(ceph, after=10 * MB) as report, pytest.raises(StorageError) as caught:
        write(url, source, Transfer(0, report=report), **SMALL_PARTS)
    assert caught.value.kind == "unreachable" and "cannot be reached" in str(caught.value)
    assert stored(ceph, url) is None and (before := uploads(ceph, url)[0]) >= 2  # nothing half visible
    with FaultProxy(ceph.port) as proxy:
        write(url, source, Transfer(20), endpoint=proxy.endpoint, **SMALL_PARTS)
        assert sum("partNumber" in path for _, path, _ in proxy.seen) == 5 - before
    assert stored(ceph, url) == source.read_bytes()


def test_a_download_that_was_given_up_goes_on_later_by_range(ceph, s3, tmp_path):
    source, url = a_file(tmp_path/"source", 22 * MB), f"{s3}/file"
    put(source, url, **SMALL_PARTS)
    (tmp_path/"back").write_text("old")
    with killed(ceph, after=6 * MB) as report, pytest.raises(StorageError): fetch(url, tmp_path/"back", Transfer(0, report=report), **SMALL_PARTS)
    assert (tmp_path/"back").read_text() == "old"
    part, = hidden(tmp_path)
    have = (tmp_path/part).stat().st_size
    assert 5 * MB <= have < 22 * MB and (tmp_path/part).read_bytes() == content(22 * MB)[:have]
    moved = []
    with FaultProxy(ceph.port) as proxy:
        fetch(url, tmp_path/"back", Transfer(20, report=moved.append), endpoint=proxy.endpoint, **SMALL_PARTS)
        assert sum(method == "GET" for method, *_ in proxy.seen) == -(-(22 * MB - have) // (5 * MB))
    assert moved[0] == have and sum(moved) == 22 * MB and sha256(tmp_path/"back") == sha256(source) and hidden(tmp_path) == []


# --- a client that dies

CLIENT = """
import sys
from audiolab.remote import get, put
verb, a, b, endpoint = sys.argv[1:]
{"put": put, "get": get}[verb](a, b, endpoint=endpoint, part_size=5 << 20, multipart_above=5 << 20, threads=1, quiet=20)
"""


def killed_client(proxy, *args, when):
    "Start a client and kill it with -9 once `when()` holds"
    client = subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, args), proxy.endpoint], stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 60
        while not when():
            assert client.poll() is None and time.monotonic() < end, client.stderr.read()
            time.sleep(0.02)
    finally: client.kill()
    client.communicate()
    assert client.returncode == -signal.SIGKILL


def test_a_client_killed_in_the_middle_of_put_and_of_get(ceph, s3, tmp_path):
    source, url, parts = a_file(tmp_path/"source", 17 * MB + 3), f"{s3}/file", "partNumber"
    with FaultProxy(ceph.port, delay=0.2) as proxy:
        killed_client(proxy, "put", source, url, when=lambda: sum(parts in path for _, path, _ in proxy.seen) >= 3)
        assert stored(ceph, url) is None
        time.sleep(0.4)  # a request on its way ends
        before, = uploads(ceph, url)
        proxy.seen.clear(); proxy.delay = 0
        put(source, url, endpoint=proxy.endpoint, **SMALL_PARTS)
        assert before >= 2 and sum(parts in path for _, path, _ in proxy.seen) == 4 - before
        assert stored(ceph, url) == source.read_bytes()
        proxy.delay = 0.2
        size = lambda: sum((tmp_path/name).stat().st_size for name in hidden(tmp_path))
        killed_client(proxy, "get", url, tmp_path/"back", when=lambda: size() >= 5 * MB)
        have = size()
        assert not (tmp_path/"back").exists() and have < 17 * MB
        proxy.seen.clear(); proxy.delay = 0
        get(url, tmp_path/"back", endpoint=proxy.endpoint, **SMALL_PARTS)
        assert sum(method == "GET" for method, *_ in proxy.seen) == -(-(17 * MB + 3 - have) // (5 * MB))
    assert sha256(tmp_path/"back") == sha256(source) and hidden(tmp_path) == []


# --- a network that lies

SLOW = [pytest.param(harm, marks=pytest.mark.slow) for harm in ("503", "lost", "slow")]


@pytest.mark.parametrize("harm", ["500", "cut", "flip", "flip-sent", *SLOW])
def test_faults_now_and_then_end_well(ceph, s3, tmp_path, harm):
    source, url, gets = a_file(tmp_path/"source", 6 * MB), f"{s3}/file", []
    def fault(method, path, number):
        if method == "GET" and path.endswith("/file"): gets.append(number)
        if harm == "flip": return harm if gets == [number] else None  # once: what is damaged twice is thought damaged in the store
        return harm if number % 3 == 1 and method != "POST" else None
    with FaultProxy(ceph.port, fault) as proxy:
        put(source, url, endpoint=proxy.endpoint, quiet=60, **SMALL_PARTS)
        get(url, tmp_path/"back", endpoint=proxy.endpoint, quiet=60, **SMALL_PARTS)
        assert any(what == harm for *_, what in proxy.seen)
    assert stored(ceph, url) == source.read_bytes() and sha256(tmp_path/"back") == sha256(source) and hidden(tmp_path) == []


@pytest.mark.parametrize("harm, kind", [("cut", "transfer"), ("flip", "tampered")])
def test_faults_without_end_are_an_error_and_leave_the_old_file(ceph, s3, tmp_path, harm, kind):
    source, url = a_file(tmp_path/"source", 300_000), f"{s3}/file"
    put(source, url)
    (tmp_path/"back").write_text("old")
    with FaultProxy(ceph.port, lambda method, path, number: harm if method == "GET" else None) as proxy, pytest.raises(StorageError) as caught:
        get(url, tmp_path/"back", endpoint=proxy.endpoint, quiet=0.5)
    assert caught.value.kind == kind and url in str(caught.value)
    assert (tmp_path/"back").read_text() == "old"


def test_a_lost_answer_to_the_last_request_is_no_second_upload(ceph, s3, tmp_path):
    source, url = a_file(tmp_path/"source", 12 * MB), f"{s3}/file"
    lost = lambda method, path, number: "lost" if method == "POST" and "uploadId" in path else None
    with FaultProxy(ceph.port, lost) as proxy:
        put(source, url, endpoint=proxy.endpoint, quiet=20, **SMALL_PARTS)
        assert sum("partNumber" in path for _, path, _ in proxy.seen) == 3
    assert stored(ceph, url) == source.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_network_of_many_faults(ceph, s3, tmp_path, seed):
    "Equal by SHA-256 or an error; never a short or a wrong file under the final name"
    draw, source, url = np.random.default_rng(seed), a_file(tmp_path/"source", 17 * MB + seed, seed), f"{s3}/file"
    fault = lambda *args: str(draw.choice(["500", "503", "cut", "lost", "flip", "flip-sent", "slow"])) if draw.random() < 0.3 else None
    with FaultProxy(ceph.port, fault) as proxy:
        try: put(source, url, endpoint=proxy.endpoint, quiet=20, **SMALL_PARTS)
        except StorageError: pass
        assert stored(ceph, url) in (None, source.read_bytes())
        put(source, url, **SMALL_PARTS)
        try: get(url, tmp_path/"back", endpoint=proxy.endpoint, quiet=20, **SMALL_PARTS)
        except StorageError: assert not (tmp_path/"back").exists()
        else: assert sha256(tmp_path/"back") == sha256(source)


# --- objects that are not what they were

def test_a_tampered_object_is_refused(ceph, s3, tmp_path):
    source, url = a_file(tmp_path/"source", 100_000), f"{s3}/file"
    info = put(source, url)
    wrong = bytearray(source.read_bytes()); wrong[5] ^= 1
    ceph.client.put_object(Bucket="lab", Key=url.removeprefix("s3://lab/"), Body=bytes(wrong), Metadata={"sha256": info.digest[7:]})
    with pytest.raises(StorageError, match="tampered with") as caught: get(url, tmp_path/"back")
    assert caught.value.kind == "tampered" and not (tmp_path/"back").exists() and hidden(tmp_path) == []


def test_an_object_of_another_client_is_verified_by_its_tag(ceph, s3, tmp_path):
    key = s3.removeprefix("s3://lab/")
    ceph.client.put_object(Bucket="lab", Key=f"{key}/file", Body=b"plain")
    store = open_store(s3)
    assert store.head("file").digest == f"md5:{hashlib.md5(b'plain').hexdigest()}"
    assert get(f"{s3}/file", tmp_path).read_bytes() == b"plain"


def test_an_object_replaced_between_two_attempts_is_not_mixed(ceph, s3, tmp_path):
    old, new, url = a_file(tmp_path/"old", 12 * MB, 1), a_file(tmp_path/"new", 12 * MB, 2), f"{s3}/file"
    put(old, url, **SMALL_PARTS)
    stop = threading.Event()
    with pytest.raises(StorageError, match="stopped"): fetch(url, tmp_path/"back", Transfer(report=lambda n: n and stop.set(), stop=stop), **SMALL_PARTS)
    before, = hidden(tmp_path)
    assert (tmp_path/before).stat().st_size > 0
    put(new, url, **SMALL_PARTS)
    fetch(url, tmp_path/"back", Transfer(), **SMALL_PARTS)
    assert sha256(tmp_path/"back") == sha256(new) and hidden(tmp_path) == []


def test_an_object_replaced_while_it_is_fetched_starts_over(ceph, s3, tmp_path):
    old, new, url = a_file(tmp_path/"old", 22 * MB, 1), a_file(tmp_path/"new", 22 * MB, 2), f"{s3}/file"
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
    with pytest.raises(StorageError, match="stopped"): write(url, source, Transfer(report=report, stop=stop), **SMALL_PARTS)
    assert uploads(ceph, url)[0] >= 2
    with open(source, "r+b") as file: file.seek(-1, 2); file.write(b"!" if source.read_bytes()[-1:] != b"!" else b"?")
    info = write(url, source, Transfer(), **SMALL_PARTS)
    assert info.digest == f"sha256:{sha256(source)}" and stored(ceph, url) == source.read_bytes()
    assert sha256(get(url, tmp_path/"back", **SMALL_PARTS)) == sha256(source)


def test_unfinished_uploads_of_others_are_left_alone_until_they_are_old(ceph, s3, tmp_path):
    url, key = f"{s3}/file", f"{s3.removeprefix('s3://lab/')}/file"
    begun = ceph.client.create_multipart_upload(Bucket="lab", Key=key)["UploadId"]
    ceph.client.upload_part(Bucket="lab", Key=key, UploadId=begun, PartNumber=1, Body=content(5 * MB, 9))
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

def fails(kind, words, action):
    with pytest.raises(StorageError) as caught: action()
    assert caught.value.kind == kind and words in str(caught.value), caught.value
    return str(caught.value)


def test_errors_name_the_place_and_the_remedy(ceph, s3, tmp_path, monkeypatch, caplog):
    source = a_file(tmp_path/"source", 1000)
    fails("bucket", "no such bucket", lambda: put(source, "s3://no-such-lab/file"))
    fails("bucket", "no such bucket", lambda: get("s3://no-such-lab/file", tmp_path/"x"))
    fails("missing", f"{s3}/nothing: there is no such object", lambda: get(f"{s3}/nothing", tmp_path/"x"))
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
    ceph.command("radosgw-admin", "user", "create", "--uid=guest", "--display-name=guest", "--access-key=GUEST", "--secret-key=guestguest")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "GUEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guestguest")
    fails("access", "no right to do that", lambda: put(a_file(tmp_path/"source", 10), f"{s3}/file"))


def test_no_credentials_and_no_server(no_aws, tmp_path, monkeypatch, caplog):
    source = a_file(tmp_path/"source", 1000)
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    fails("credentials", "AWS_ACCESS_KEY_ID", lambda: put(source, "s3://lab/file", endpoint=endpoint))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A"); monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    fails("unreachable", "cannot be reached", lambda: put(source, "s3://lab/file", endpoint=endpoint, quiet=0))
    fails("unreachable", "cannot be reached", lambda: get("s3://lab/file", tmp_path/"x", endpoint=endpoint, quiet=0))
    fails("stopped", "time given", lambda: put(source, "s3://lab/file", endpoint=endpoint, total=0.1))
    assert caplog.text.count("trying again") <= 1  # after a pause the time was over


@pytest.mark.parametrize("module, extra, url", [("boto3", "s3", "s3://lab/file"), ("huggingface_hub", "hf", "hf://me/model/file")])
def test_a_missing_extra_is_named(no_aws, tmp_path, monkeypatch, module, extra, url):
    monkeypatch.setitem(sys.modules, module, None)
    fails("extra", f"pip install 'audiolab[{extra}]'", lambda: put(a_file(tmp_path/"source", 10), url))


def test_servers_that_refuse_the_checksums_of_boto3(ceph, s3, tmp_path):
    for size in (1000, 6 * MB):
        source, url = a_file(tmp_path/"source", size), f"{s3}/file{size}"
        with FaultProxy(ceph.port, lambda *args: "refuse-checksums") as proxy:
            fails("checksums", "checksums='when_required'", lambda: put(source, url, endpoint=proxy.endpoint, **SMALL_PARTS))
            put(source, url, endpoint=proxy.endpoint, checksums="when_required", **SMALL_PARTS)
            assert sha256(get(url, tmp_path/"back", endpoint=proxy.endpoint, checksums="when_required")) == sha256(source)


def test_secrets_are_nowhere(ceph, s3, tmp_path, caplog):
    caplog.set_level(logging.DEBUG, "audiolab")
    store = open_store(s3)
    text = [repr(store), repr(vars(store)), repr(PushConfig(Path("x"), s3))]
    put(a_file(tmp_path/"source", 1000), f"{s3}/file")
    text.append(fails("url", "without credentials", lambda: open_store(f"s3://{ceph.access_key}:{ceph.secret_key}@lab/x")))
    assert ceph.secret_key not in "".join([*text, caplog.text])


# --- runs

def a_run(folder):
    for name, data in {"config.yaml": b"seed: 0\n", "history.jsonl": b"{}\n" * 100, "checkpoints/checkpoint_step_10.safetensors": content(6 * MB),
                       "checkpoints/latest.json": b'{"file":"checkpoint_step_10.safetensors"}', "samples/step 10/é.wav": content(1000), "empty": b"",
                       "run.lock": b"1", "control": b"stop", ".config.yaml.part-0123456789abcdef": b"half"}.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(data)
    (folder/"link").symlink_to("/etc/passwd")
    return folder


def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file() and not p.is_symlink()}


PRIVATE = {"run.lock", "control", ".config.yaml.part-0123456789abcdef"}


def test_a_run_comes_back_as_it_was(ceph, s3, tmp_path):
    run = a_run(tmp_path/"run")
    with FaultProxy(ceph.port) as proxy:
        push(run, s3, endpoint=proxy.endpoint, **SMALL_PARTS)
        order = list(dict.fromkeys(path.split("?")[0].rsplit("/", 1)[1] for method, path, _ in proxy.seen if method in ("PUT", "POST")))
        assert order[-2:] == ["latest.json", "manifest.json"]
        proxy.seen.clear()
        push(run, s3, endpoint=proxy.endpoint, **SMALL_PARTS)
        assert not [path for method, path, _ in proxy.seen if method in ("PUT", "POST")]
    back = pull(s3, tmp_path/"back")
    assert tree(back) == {name: data for name, data in tree(run).items() if name not in PRIVATE}


def test_an_unfinished_push_is_not_seen(ceph, s3, tmp_path):
    run = a_run(tmp_path/"run")
    with FaultProxy(ceph.port, lambda method, path, number: "501" if path.endswith("manifest.json") and method == "PUT" else None) as proxy:
        fails("checksums", "refused", lambda: push(run, s3, endpoint=proxy.endpoint, quiet=0))
    fails("missing", "no such object", lambda: pull(s3, tmp_path/"back"))
    push(run, s3)
    before = tree(pull(s3, tmp_path/"back"))
    (run/"config.yaml").write_text("seed: 1\n")
    with FaultProxy(ceph.port, lambda method, path, number: "501" if path.endswith("manifest.json") and method == "PUT" else None) as proxy:
        fails("checksums", "refused", lambda: push(run, s3, endpoint=proxy.endpoint, quiet=0))
    fails("tampered", "not what the manifest lists", lambda: pull(s3, tmp_path/"third"))  # old manifest, new file: said, not mixed
    assert tree(tmp_path/"back") == before


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


@pytest.mark.parametrize("name", ["../up", "/var/abs", "a/../../up", "nul\0", "a\nb", "C:\\x", "..", "manifest.json", "x" * 300])
def test_a_hostile_manifest_writes_nothing(tmp_path, name):
    (tmp_path/"far").mkdir()
    (tmp_path/"far/manifest.json").write_text(json.dumps({"format": "audiolab.manifest", "version": 1,
                                                          "files": [{"name": name, "size": 1, "sha256": "0" * 64}]}))
    fails("tampered", "not to be trusted", lambda: pull(tmp_path/"far", tmp_path/"back"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["far"]


def test_manifests_are_bounded(tmp_path):
    entry = lambda i: {"name": f"f{i}", "size": 10, "sha256": "0" * 64}
    text = lambda files: json.dumps({"format": "audiolab.manifest", "version": 1, "files": files}).encode()
    fails("tampered", "more than 3 files", lambda: parse_manifest(text([entry(i) for i in range(4)]), max_files=3))
    fails("tampered", "two names that clash", lambda: parse_manifest(text([entry(1), entry(1)])))
    for broken in (b"", b"[]", b"{", b"[" * 100_000, b'{"format": "audiolab.manifest", "version": 2, "files": []}', text([[]]), text([{}]), text(7)):
        fails("tampered", "not to be trusted", lambda: parse_manifest(broken))
    (tmp_path/"far").mkdir()
    with open(tmp_path/"far/manifest.json", "wb") as file: file.truncate(1 << 30)
    fails("tampered", "more than", lambda: pull(tmp_path/"far", tmp_path/"back"))


@given(strategies.text(max_size=60))
def test_names_stay_in_their_folder(name):
    try: check_name(name)
    except StorageError: return
    folder = os.path.abspath("folder")
    path = os.path.normpath(os.path.join(folder, name))
    assert path.startswith(folder + os.sep) and "\0" not in name and os.path.relpath(path, folder) == name


# --- folders

def test_a_folder_as_a_file_address(tmp_path):
    run = a_run(tmp_path/"run")
    url = (tmp_path/"far away").as_uri()
    push(run, url, sidecar=True)
    assert tree(pull(url, tmp_path/"back")) == {name: data for name, data in tree(run).items() if name not in PRIVATE}
    r = subprocess.run(["sha256sum", "-c", "config.yaml.sha256"], cwd=tmp_path/"far away", capture_output=True, text=True)
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
    with open(log, "rb") as file: info = FolderStore(tmp_path/"far").write("log", file, Transfer(report=grow))
    assert info.size == 3 * MB and (tmp_path/"far/log").read_bytes() == content(3 * MB)


# --- while a model trains

def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def threads_that_send(pusher):
    "Names of the threads in which the pusher talks to its store, gathered from now on"
    names, send = set(), pusher.worker.mirror.send
    def noted(*args):
        names.add(threading.current_thread().name)
        send(*args)
    pusher.worker.mirror.send = noted
    return names


def test_a_pusher_sends_checkpoints_and_their_pointers(ceph, s3, tmp_path):
    run = a_run(tmp_path/"run")
    with FaultProxy(ceph.port, delay=0.02) as proxy, Pusher(s3, run, endpoint=proxy.endpoint) as pusher:
        senders = threads_that_send(pusher)
        for step in (20, 30, 40):
            path = a_file(run/f"checkpoints/checkpoint_step_{step}.safetensors", 500_000, step)
            pusher.submit(path, "best" if step == 30 else "step")
            path.unlink()  # pruned at once; the bytes are sent all the same
        assert pusher.close(30) == [] and pusher.problems == []
        assert senders == {"pusher"}  # training never waits for the network
        puts = [path.rsplit("/", 1)[1] for method, path, _ in proxy.seen if method == "PUT"]
    assert pusher.pushed[-2:] == [f"checkpoints/checkpoint_step_{n}.safetensors" for n in (30, 40)]
    assert puts.index("checkpoint_step_30.safetensors") < puts.index("best.json") < puts.index("manifest.json", puts.index("best.json"))
    back = pull(s3, tmp_path/"back")
    assert json.loads((back/"checkpoints/latest.json").read_text()) == {"file": "checkpoint_step_40.safetensors"}
    assert json.loads((back/"checkpoints/best.json").read_text()) == {"file": "checkpoint_step_30.safetensors"}
    assert (back/"checkpoints/checkpoint_step_30.safetensors").read_bytes() == content(500_000, 30) and (back/"history.jsonl").exists()


def test_of_those_that_wait_the_newest_is_sent_but_best_and_final_are_kept(tmp_path):
    gate, far = threading.Event(), tmp_path/"far"
    class Slow(FolderStore):
        def write(self, name, file, transfer): gate.wait(20); return super().write(name, file, transfer)
    pusher = Pusher(str(far))
    pusher.worker.mirror._store = Slow(far)
    for name, kind in ("a", "step"), ("b", "step"), ("best1", "best"), ("c", "step"), ("e", "epoch"), ("best2", "best"), ("d", "step"), ("final", "final"):
        pusher.submit(a_file(tmp_path/name, 10), kind)
        if name == "a": wait_for(lambda: pusher.worker.queue.now)
    gate.set()
    assert pusher.close(20) == [] and pusher.pushed == ["a", "best1", "e", "best2", "d", "final"]
    assert json.loads((far/"latest.json").read_text()) == {"file": "final"} and json.loads((far/"best.json").read_text()) == {"file": "best2"}


def test_training_goes_on_without_the_server_and_what_waits_is_sent_when_it_is_back(ceph, s3, tmp_path):
    told = []
    ceph.kill_gateway()
    try:
        pusher = Pusher(s3, on_problem=told.append, quiet=0.2, pause=0.3)
        senders = threads_that_send(pusher)
        pusher.submit(a_file(tmp_path/"best", 1000), "best")
        wait_for(lambda: told)
        assert "best was not pushed yet" in told[0] and "cannot be reached" in told[0]
    finally: ceph.start_gateway()
    assert senders == {"pusher"}
    assert pusher.close(30) == [] and pusher.pushed == ["best"] and stored(ceph, f"{s3}/best") == content(1000)


def test_the_end_has_a_deadline_and_names_what_was_not_pushed(no_aws, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A"); monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    pusher = Pusher("s3://lab/run", endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    for name in ("one", "two"): pusher.submit(a_file(tmp_path/name, 10), "best")
    lost = []
    closing = threading.Thread(target=lambda: lost.extend(pusher.close(0.5)), daemon=True)
    closing.start()
    closing.join(60)  # an attempt alone would have two minutes
    assert lost == ["one", "two"]
    assert "not pushed before the end: one, two" in pusher.problems[-1]
    pusher.submit(tmp_path/"one")
    assert "closed" in pusher.problems[-1]


def test_a_pusher_tells_of_what_will_not_pass(ceph, s3, tmp_path):
    told = []
    def listener(message): told.append(message); raise ValueError("a listener's own mistake")
    pusher = Pusher("s3://no-such-lab/run", on_problem=listener)
    pusher.submit(a_file(tmp_path/"one", 10), "best")
    pusher.submit(tmp_path/"nothing")
    assert pusher.close(20) == []
    assert any("no such bucket" in message for message in told) and any("nothing was not pushed" in message for message in told)


# --- commands

def test_commands(ceph, s3, tmp_path, capsys, monkeypatch):
    from audiolab.config import config_cli
    monkeypatch.chdir(tmp_path)
    run = a_run(tmp_path/"run")
    config = config_cli(PushConfig, [str(run), s3, "--checksums", "when_required"], positional=True).config
    assert push_command(config) == 0 and "6 files" in capsys.readouterr().out
    config = config_cli(PullConfig, [s3, "--folder", "there"], positional=True).config
    assert pull_command(config) == 0 and "there: verified" in capsys.readouterr().out
    assert tree("there") == {name: data for name, data in tree(run).items() if name not in PRIVATE}
    assert pull_command(PullConfig(s3)) == 0 and tree(s3.rsplit("/", 1)[1]) == tree("there")


# --- the Hub

class Hub:
    "The answers of huggingface.co to the calls that are used, for one model; small files inside the commit, *.safetensors as large files"
    def __init__(self):
        self.files, self.large, self.seen, self.harm, hub = {}, {}, [], None, self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *args): pass
            def do_GET(self): hub.get(self)
            do_HEAD = do_GET
            def do_POST(self): hub.post(self)
            def do_PUT(self): hub.put(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, request, status, content=b"", **headers):
        request.send_response(status)
        for key, value in {"Content-Length": len(content), "Content-Type": "application/json", **headers}.items(): request.send_header(key.replace("_", "-"), str(value))
        request.end_headers()
        if request.command != "HEAD": request.wfile.write(content)

    def get(self, request):
        self.seen.append((request.command, request.path, request.headers.get("Authorization"), request.headers.get("Range")))
        if not request.path.startswith("/me/model/"): return self.reply(request, 404, X_Error_Code="RepoNotFound")
        if request.headers.get("Authorization") != "Bearer hf_right": return self.reply(request, 401)
        name = urllib.parse.unquote(request.path.split("/resolve/main/")[1])
        if name not in self.files: return self.reply(request, 404, X_Error_Code="EntryNotFound")
        data = self.files[name]
        tag = hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers = {"ETag": f'"{tag}"', "X_Repo_Commit": "0" * 40}
        if request.command == "HEAD": return self.reply(request, 200, **headers | {"Content-Length": len(data)})
        start = int((request.headers.get("Range") or "bytes=0-")[6:-1])
        part = data[start:]
        if self.harm == "cut":
            self.harm = None
            request.send_response(200)
            request.send_header("Content-Length", str(len(part))); request.end_headers()
            request.wfile.write(part[:len(part) // 2]); request.wfile.flush()
            request.close_connection = True
            return
        if self.harm == "flip": part = part[:5] + bytes([part[5] ^ 1]) + part[6:]
        self.reply(request, 206 if start else 200, part, **headers)

    def post(self, request):
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.seen.append((request.command, request.path, request.headers.get("Authorization"), None))
        if request.headers.get("Authorization") != "Bearer hf_right": return self.reply(request, 403)
        if "/preupload/" in request.path:
            files = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.reply(request, 200, json.dumps({"files": files}).encode())
        if request.path.endswith("/info/lfs/objects/batch"):
            found = [{"oid": o["oid"], "size": o["size"], "authenticated": True, "actions": {"upload": {"href": f"{self.endpoint}/large/{o['oid']}"}}}
                     for o in json.loads(body)["objects"]]
            return self.reply(request, 200, json.dumps({"transfer": "basic", "objects": found}).encode())
        assert "/commit/main" in request.path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file": self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "lfsFile": self.files[entry["value"]["path"]] = self.large[entry["value"]["oid"]]
        self.reply(request, 200, json.dumps({"commitUrl": f"{self.endpoint}/me/model/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}).encode())

    def put(self, request):
        data = request.rfile.read(int(request.headers["Content-Length"]))
        self.large[request.path.rsplit("/", 1)[1]] = data
        self.seen.append((request.command, request.path, None, None))
        self.reply(request, 200)

    def __enter__(self): threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start(); return self
    def __exit__(self, *args): self.server.shutdown(); self.server.server_close()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub.constants as constants
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with Hub() as hub: yield hub


def test_the_real_hub_client_against_a_loopback_stub_pushes_a_run_as_one_commit(hub, tmp_path):
    run = a_run(tmp_path/"run")
    push(run, "hf://me/model/runs/7", endpoint=hub.endpoint)
    assert sum("/commit/" in path for _, path, *_ in hub.seen) == 1 and len(hub.large) == 1
    back = pull("hf://me/model/runs/7", tmp_path/"back", endpoint=hub.endpoint)
    assert tree(back) == {name: data for name, data in tree(run).items() if name not in PRIVATE}


def test_the_real_hub_client_against_a_loopback_stub_resumes_and_verifies(hub, tmp_path):
    for name in ("a.safetensors", "a.bin"):
        source, url = a_file(tmp_path/name, 3 * MB), f"hf://me/model/{name}"
        put(source, url, endpoint=hub.endpoint)
        hub.harm = "cut"
        get(url, tmp_path/"back", endpoint=hub.endpoint)
        assert sha256(tmp_path/"back") == sha256(source) and int([entry[3] for entry in hub.seen if entry[3]][-1][6:-1]) >= MB
        (tmp_path/"back").unlink()
        hub.harm = "flip"
        fails("tampered", "tampered with", lambda: get(url, tmp_path/"back", endpoint=hub.endpoint))
        assert not (tmp_path/"back").exists()
        hub.harm = None


def test_the_real_hub_client_against_a_loopback_stub_says_what_is_wrong(hub, tmp_path, monkeypatch):
    source = a_file(tmp_path/"source", 10)
    fails("missing", "no such file", lambda: get("hf://me/model/nothing", tmp_path/"x", endpoint=hub.endpoint))
    fails("bucket", "no such repository", lambda: get("hf://me/other/file", tmp_path/"x", endpoint=hub.endpoint))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf_wrong" not in fails("access", "no right", lambda: put(source, "hf://me/model/file", endpoint=hub.endpoint))
    fails("credentials", "hf auth login", lambda: get("hf://me/model/file", tmp_path/"x", endpoint=hub.endpoint))
    fails("unreachable", "cannot be reached", lambda: get("hf://me/model/file", tmp_path/"x", endpoint=f"http://127.0.0.1:{free_ports(1)[0]}", quiet=0))
