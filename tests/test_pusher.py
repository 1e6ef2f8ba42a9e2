"Checkpoints are pushed while a model trains."
import json
import threading
import time

from audiolab.remote import FolderStore, pull, Pusher
from ceph_server import FaultProxy, free_ports
from store_tools import a_file, a_run, content, stored


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
    with FaultProxy(ceph.port, delay=0.02) as proxy, Pusher(s3, run,
                                                            endpoint=proxy.endpoint) as pusher:
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
    assert ((back/"checkpoints/checkpoint_step_30.safetensors").read_bytes()
            == content(500_000, 30) and (back/"history.jsonl").exists())


def test_of_those_that_wait_the_newest_is_sent_but_best_and_final_are_kept(tmp_path):
    gate, far = threading.Event(), tmp_path/"far"
    class Slow(FolderStore):
        def write(self, name, file, transfer):
            gate.wait(20)
            return super().write(name, file, transfer)
    pusher = Pusher(str(far))
    pusher.worker.mirror._store = Slow(far)
    for name, kind in ("a", "step"), ("b", "step"), ("best1", "best"), ("c", "step"), ("e",
        "epoch"), ("best2", "best"), ("d", "step"), ("final", "final"):
        pusher.submit(a_file(tmp_path/name, 10), kind)
        if name == "a": wait_for(lambda: pusher.worker.queue.now)
    gate.set()
    assert pusher.close(20) == [] and pusher.pushed == ["a", "best1", "e", "best2", "d", "final"]
    assert (json.loads((far/"latest.json").read_text()) == {"file": "final"}
            and json.loads((far/"best.json").read_text()) == {"file": "best2"})


def test_training_goes_on_without_the_server_and_what_waits_is_sent_when_it_is_back(ceph, s3,
    tmp_path):
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
    assert (pusher.close(30) == [] and pusher.pushed == ["best"]
            and stored(ceph, f"{s3}/best") == content(1000))


def test_the_end_has_a_deadline_and_names_what_was_not_pushed(no_aws, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
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
    def listener(message):
        told.append(message)
        raise ValueError("a listener's own mistake")
    pusher = Pusher("s3://no-such-lab/run", on_problem=listener)
    pusher.submit(a_file(tmp_path/"one", 10), "best")
    pusher.submit(tmp_path/"nothing")
    assert pusher.close(20) == []
    assert (any("no such bucket" in message for message in told)
            and any("nothing was not pushed" in message for message in told))
