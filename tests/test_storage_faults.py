"A real Ceph gateway: killed servers, killed clients, broken connections."
import hashlib
import logging
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from audiolab.remote import get, put, StorageError, Transfer
from ceph_server import FaultProxy
from store_tools import (
    a_file, content, fetch, hidden, MB, sha256, SMALL_PARTS, stored, uploads, write,
)


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


# --- a server that dies

def round_trip(ceph, s3, folder, size, caplog):
    caplog.set_level(logging.INFO, "audiolab")
    source, url = a_file(folder/"source", size), f"{s3}/file"
    with killed(ceph, after=size // 2) as report:
        write(url, source, Transfer(60, report=report), **SMALL_PARTS)
    parts = -(-size // SMALL_PARTS["part_size"])
    there = [int(record.message.split(": ")[-1].split()[0]) for record in caplog.records
             if "parts are there already" in record.message]
    # those that were sent before were not sent again
    assert there and parts // 2 - 1 <= max(there) <= parts
    assert (hashlib.sha256(stored(ceph, url)).hexdigest() == sha256(source)
            and uploads(ceph, url) == [])
    with killed(ceph, after=size // 2) as report:
        fetch(url, folder/"back", Transfer(60, report=report), **SMALL_PARTS)
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
    # nothing half visible
    assert stored(ceph, url) is None and (before := uploads(ceph, url)[0]) >= 2
    with FaultProxy(ceph.port) as proxy:
        write(url, source, Transfer(20), endpoint=proxy.endpoint, **SMALL_PARTS)
        assert sum("partNumber" in path for _, path, _ in proxy.seen) == 5 - before
    assert stored(ceph, url) == source.read_bytes()


def test_a_download_that_was_given_up_goes_on_later_by_range(ceph, s3, tmp_path):
    source, url = a_file(tmp_path/"source", 22 * MB), f"{s3}/file"
    put(source, url, **SMALL_PARTS)
    (tmp_path/"back").write_text("old")
    with killed(ceph, after=6 * MB) as report, pytest.raises(StorageError):
        fetch(url, tmp_path/"back", Transfer(0, report=report), **SMALL_PARTS)
    assert (tmp_path/"back").read_text() == "old"
    part, = hidden(tmp_path)
    have = (tmp_path/part).stat().st_size
    assert 5 * MB <= have < 22 * MB and (tmp_path/part).read_bytes() == content(22 * MB)[:have]
    moved = []
    with FaultProxy(ceph.port) as proxy:
        fetch(url, tmp_path/"back", Transfer(20, report=moved.append), endpoint=proxy.endpoint,
              **SMALL_PARTS)
        assert sum(method == "GET" for method, *_ in proxy.seen) == -(-(22 * MB - have) // (5 * MB))
    assert (moved[0] == have and sum(moved) == 22 * MB
            and sha256(tmp_path/"back") == sha256(source) and hidden(tmp_path) == [])


# --- a client that dies

CLIENT = """
import sys
from audiolab.remote import get, put
verb, a, b, endpoint = sys.argv[1:]
{"put": put, "get": get}[verb](a, b, endpoint=endpoint, part_size=5 << 20, multipart_above=5 << 20, threads=1, quiet=20)
"""


def killed_client(proxy, *args, when):
    "Start a client and kill it with -9 once `when()` holds"
    client = subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, args), proxy.endpoint],
                              stderr=subprocess.PIPE)
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
        killed_client(proxy, "put", source, url,
                      when=lambda: sum(parts in path for _, path, _ in proxy.seen) >= 3)
        assert stored(ceph, url) is None
        time.sleep(0.4)  # a request on its way ends
        before, = uploads(ceph, url)
        proxy.seen.clear()
        proxy.delay = 0
        put(source, url, endpoint=proxy.endpoint, **SMALL_PARTS)
        assert before >= 2 and sum(parts in path for _, path, _ in proxy.seen) == 4 - before
        assert stored(ceph, url) == source.read_bytes()
        proxy.delay = 0.2
        def size():
            return sum((tmp_path/name).stat().st_size for name in hidden(tmp_path))
        killed_client(proxy, "get", url, tmp_path/"back", when=lambda: size() >= 5 * MB)
        have = size()
        assert not (tmp_path/"back").exists() and have < 17 * MB
        proxy.seen.clear()
        proxy.delay = 0
        get(url, tmp_path/"back", endpoint=proxy.endpoint, **SMALL_PARTS)
        assert sum(method == "GET" for method,
                   *_ in proxy.seen) == -(-(17 * MB + 3 - have) // (5 * MB))
    assert sha256(tmp_path/"back") == sha256(source) and hidden(tmp_path) == []


# --- a network that lies

SLOW = [pytest.param(harm, marks=pytest.mark.slow) for harm in ("503", "lost", "slow")]


@pytest.mark.parametrize("harm", ["500", "cut", "flip", "flip-sent", *SLOW])
def test_faults_now_and_then_end_well(ceph, s3, tmp_path, harm):
    source, url, gets = a_file(tmp_path/"source", 6 * MB), f"{s3}/file", []
    def fault(method, path, number):
        if method == "GET" and path.endswith("/file"): gets.append(number)
        # once: what is damaged twice is thought damaged in the store
        if harm == "flip": return harm if gets == [number] else None
        return harm if number % 3 == 1 and method != "POST" else None
    with FaultProxy(ceph.port, fault) as proxy:
        put(source, url, endpoint=proxy.endpoint, quiet=60, **SMALL_PARTS)
        get(url, tmp_path/"back", endpoint=proxy.endpoint, quiet=60, **SMALL_PARTS)
        assert any(what == harm for *_, what in proxy.seen)
    assert (stored(ceph, url) == source.read_bytes() and sha256(tmp_path/"back") == sha256(source)
            and hidden(tmp_path) == [])


@pytest.mark.parametrize("harm, kind", [("cut", "transfer"), ("flip", "tampered")])
def test_faults_without_end_are_an_error_and_leave_the_old_file(ceph, s3, tmp_path, harm, kind):
    source, url = a_file(tmp_path/"source", 300_000), f"{s3}/file"
    put(source, url)
    (tmp_path/"back").write_text("old")
    with FaultProxy(ceph.port, lambda method, path, number: harm
                    if method == "GET" else None) as proxy, pytest.raises(StorageError) as caught:
        get(url, tmp_path/"back", endpoint=proxy.endpoint, quiet=0.5)
    assert caught.value.kind == kind and url in str(caught.value)
    assert (tmp_path/"back").read_text() == "old"


def test_a_lost_answer_to_the_last_request_is_no_second_upload(ceph, s3, tmp_path):
    source, url = a_file(tmp_path/"source", 12 * MB), f"{s3}/file"
    def lost(method, path, number):
        return "lost" if method == "POST" and "uploadId" in path else None
    with FaultProxy(ceph.port, lost) as proxy:
        put(source, url, endpoint=proxy.endpoint, quiet=20, **SMALL_PARTS)
        assert sum("partNumber" in path for _, path, _ in proxy.seen) == 3
    assert stored(ceph, url) == source.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_network_of_many_faults(ceph, s3, tmp_path, seed):
    "Equal by SHA-256 or an error; never a short or a wrong file under the final name"
    draw, source, url = np.random.default_rng(seed), a_file(tmp_path/"source", 17 * MB + seed,
                                                            seed), f"{s3}/file"
    def fault(*args):
        return str(draw.choice(["500", "503", "cut", "lost", "flip", "flip-sent",
                                               "slow"])) if draw.random() < 0.3 else None
    with FaultProxy(ceph.port, fault) as proxy:
        try: put(source, url, endpoint=proxy.endpoint, quiet=20, **SMALL_PARTS)
        except StorageError: pass
        assert stored(ceph, url) in (None, source.read_bytes())
        put(source, url, **SMALL_PARTS)
        try: get(url, tmp_path/"back", endpoint=proxy.endpoint, quiet=20, **SMALL_PARTS)
        except StorageError: assert not (tmp_path/"back").exists()
        else: assert sha256(tmp_path/"back") == sha256(source)
