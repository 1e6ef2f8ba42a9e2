"The real client of the Hub against a server on this machine."
import base64
import hashlib
import http.server
import json
import threading
import urllib.parse

import pytest

from audiolab.remote import get, pull, push, put
from ceph_server import free_ports
from store_tools import a_file, a_run, fails, MB, PRIVATE, sha256, tree


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
        for key, value in {"Content-Length": len(content), "Content-Type": "application/json",
                           **headers}.items():
            request.send_header(key.replace("_", "-"), str(value))
        request.end_headers()
        if request.command != "HEAD": request.wfile.write(content)

    def get(self, request):
        self.seen.append((request.command, request.path, request.headers.get("Authorization"),
                          request.headers.get("Range")))
        if not request.path.startswith("/me/model/"):
            return self.reply(request, 404, X_Error_Code="RepoNotFound")
        if request.headers.get("Authorization") != "Bearer hf_right":
            return self.reply(request, 401)
        name = urllib.parse.unquote(request.path.split("/resolve/main/")[1])
        if name not in self.files: return self.reply(request, 404, X_Error_Code="EntryNotFound")
        data = self.files[name]
        tag = hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers = {"ETag": f'"{tag}"', "X_Repo_Commit": "0" * 40}
        if request.command == "HEAD":
            return self.reply(request, 200, **headers | {"Content-Length": len(data)})
        start = int((request.headers.get("Range") or "bytes=0-")[6:-1])
        part = data[start:]
        if self.harm == "cut":
            self.harm = None
            request.send_response(200)
            request.send_header("Content-Length", str(len(part)))
            request.end_headers()
            request.wfile.write(part[:len(part) // 2])
            request.wfile.flush()
            request.close_connection = True
            return
        if self.harm == "flip": part = part[:5] + bytes([part[5] ^ 1]) + part[6:]
        self.reply(request, 206 if start else 200, part, **headers)

    def post(self, request):
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.seen.append((request.command, request.path, request.headers.get("Authorization"),
                          None))
        if request.headers.get("Authorization") != "Bearer hf_right":
            return self.reply(request, 403)
        if "/preupload/" in request.path:
            files = [{"path": f["path"], "uploadMode": "lfs"
                      if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False}
                      for f in json.loads(body)["files"]]
            return self.reply(request, 200, json.dumps({"files": files}).encode())
        if request.path.endswith("/info/lfs/objects/batch"):
            found = [{"oid": o["oid"], "size": o["size"], "authenticated": True,
                      "actions": {"upload": {"href": f"{self.endpoint}/large/{o['oid']}"}}}
                     for o in json.loads(body)["objects"]]
            return self.reply(request, 200,
                              json.dumps({"transfer": "basic", "objects": found}).encode())
        assert "/commit/main" in request.path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "lfsFile":
                self.files[entry["value"]["path"]] = self.large[entry["value"]["oid"]]
        self.reply(request, 200,
                   json.dumps({"commitUrl": f"{self.endpoint}/me/model/commit/{'0' * 40}",
                               "commitOid": "0" * 40, "success": True}).encode())

    def put(self, request):
        data = request.rfile.read(int(request.headers["Content-Length"]))
        self.large[request.path.rsplit("/", 1)[1]] = data
        self.seen.append((request.command, request.path, None, None))
        self.reply(request, 200)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05},
                         daemon=True).start()
        return self
    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()


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
        assert (sha256(tmp_path/"back") == sha256(source)
                and int([entry[3] for entry in hub.seen if entry[3]][-1][6:-1]) >= MB)
        (tmp_path/"back").unlink()
        hub.harm = "flip"
        fails("tampered", "tampered with",
              lambda url=url: get(url, tmp_path/"back", endpoint=hub.endpoint))
        assert not (tmp_path/"back").exists()
        hub.harm = None


def test_the_real_hub_client_against_a_loopback_stub_says_what_is_wrong(hub, tmp_path, monkeypatch):
    source = a_file(tmp_path/"source", 10)
    fails("missing", "no such file", lambda: get("hf://me/model/nothing", tmp_path/"x",
                                                 endpoint=hub.endpoint))
    fails("bucket", "no such repository",
          lambda: get("hf://me/other/file", tmp_path/"x", endpoint=hub.endpoint))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "hf_wrong" not in fails("access", "no right",
                                   lambda: put(source, "hf://me/model/file", endpoint=hub.endpoint))
    fails("credentials", "hf auth login",
          lambda: get("hf://me/model/file", tmp_path/"x", endpoint=hub.endpoint))
    fails("unreachable", "cannot be reached",
          lambda: get("hf://me/model/file", tmp_path/"x",
                      endpoint=f"http://127.0.0.1:{free_ports(1)[0]}", quiet=0))
