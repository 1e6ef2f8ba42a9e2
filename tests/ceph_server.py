"A real S3 server on this machine: one Ceph monitor, one store of objects, one gateway, all on the loopback address."
import contextlib
import http.client
import http.server
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

PROGRAMS = "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph"
MISSING = "needs a Ceph gateway (Debian: apt-get install radosgw ceph-mon ceph-osd)"

CONF = """[global]
fsid = {fsid}
mon_host = [v1:127.0.0.1:{mon_port}]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_bind_msgr2 = false
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
pid_file = {folder}/run/$name.pid
log_file = {folder}/log/$name.log
mon_cluster_log_file = {folder}/log/cluster.log
mon_data = {folder}/mon
paxos_propose_interval = 0.05
mon_allow_pool_size_one = true
mon_data_avail_warn = 1
mon_data_avail_crit = 0
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
osd_data = {folder}/osd
osd_objectstore = bluestore
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_class_update_on_start = false
osd_crush_update_on_start = false
osd_memory_target = 939524096
osd_op_num_shards = 1
bluestore_block_size = 10737418240
bluestore_block_create = true
bluestore_fsck_on_mount = false
rgw_frontends = beast endpoint=127.0.0.1:{rgw_port}
rgw_data = {folder}/rgw
rgw_thread_pool_size = 32
rgw_num_rados_handles = 1
rgw_enable_usage_log = false
rgw_enable_ops_log = false
rgw_enable_gc_threads = true
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 1
rgw_gc_processor_max_time = 5
rgw_gc_max_objs = 4
rgw_lc_max_objs = 1
rgw_lc_max_worker = 1
rgw_run_sync_thread = false
rgw_dynamic_resharding = false
rgw_override_bucket_index_max_shards = 1
"""


def missing_programs(): return [p for p in PROGRAMS if not shutil.which(p)]


def free_ports(n):
    "Ports that nobody listens on"
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets: s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


class CephServer:
    "A Ceph gateway with one user. `with CephServer(folder) as server:`; `server.endpoint`, `server.access_key`, `server.secret_key`"
    def __init__(self, folder):
        self.top, self.processes = Path(folder), {}
        self.access_key = "AUDIOLAB" + secrets.token_hex(6).upper()
        self.secret_key = secrets.token_hex(20)

    def _prepare(self, name):
        self.folder, self.fsid = self.top/name, uuid.uuid4()
        self.mon_port, self.port = free_ports(2)
        self.endpoint, self.conf = f"http://127.0.0.1:{self.port}", self.folder/"ceph.conf"
        for place in ("run", "log", "mon", "osd", "rgw"):
            (self.folder/place).mkdir(parents=True, exist_ok=True)
        self.conf.write_text(CONF.format(folder=self.folder, fsid=self.fsid, mon_port=self.mon_port,
                                         rgw_port=self.port))

    def _environment(self):
        return os.environ | {"CEPH_CONF": str(self.conf), "HOME": str(self.folder)}

    def command(self, *args, timeout=60):
        "Run a program of Ceph to its end"
        r = subprocess.run([args[0], "-c", str(self.conf), *map(str, args[1:])],
                           capture_output=True, text=True, timeout=timeout, env=self._environment(),
                           cwd=self.folder)
        if r.returncode:
            raise RuntimeError(f"{' '.join(map(str, args))} ended with {r.returncode}: {r.stderr[-2000:]}")
        return r.stdout

    def daemon(self, name, *args):
        "Start a program of Ceph that stays until `stop`, or until we die: the watcher's pipe closes then, and it kills the group"
        if "watcher" not in self.processes:
            self.processes["watcher"] = subprocess.Popen(["sh", "-c", "cat > /dev/null; kill -9 0"],
                                                         stdin=subprocess.PIPE, process_group=0)
        with open(self.folder/"log"/f"{name}.out", "ab") as out:
            self.processes[name] = subprocess.Popen([args[0], "-c", str(self.conf), "-f",
                                                     *map(str, args[1:])], stdin=subprocess.DEVNULL,
                                                    stdout=out, stderr=out, cwd=self.folder,
                                                    env=self._environment(),
                                                    process_group=self.processes["watcher"].pid)

    def start(self, name):
        self._prepare(name)
        monmap = self.folder/"monmap"
        self.command("monmaptool", "--create", "--fsid", self.fsid, "--set-min-mon-release",
                     "pacific", "--addv", "a", f"[v1:127.0.0.1:{self.mon_port}]", monmap)
        self.command("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self.daemon("mon", "ceph-mon", "-i", "a")
        osd = uuid.uuid4()
        self.command("ceph", "osd", "new", osd)
        self.command("ceph", "osd", "crush", "add", "osd.0", "1", "host=here", "root=default")
        self.command("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self.daemon("osd", "ceph-osd", "-i", "0")
        self.start_gateway(wait=False)
        self.command("radosgw-admin", "user", "create", "--uid=audiolab", "--display-name=audiolab",
                     f"--access-key={self.access_key}", f"--secret-key={self.secret_key}",
                     timeout=30)
        self.wait_for_gateway()
        return self

    def start_gateway(self, wait=True):
        self.daemon("rgw", "radosgw", "-n", "client.rgw.a")
        if wait: self.wait_for_gateway()

    def wait_for_gateway(self, seconds=60):
        "Until it answers"
        end = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(self.endpoint, timeout=2).read()
                return
            except urllib.error.HTTPError: return  # an answer
            except OSError as cause:
                for name, process in self.processes.items():
                    if process.poll() is not None:
                        raise RuntimeError(f"{name} ended with {process.returncode}: {(self.folder/'log'/f'{name}.out').read_text()[-2000:]}") from cause
                if time.monotonic() > end:
                    raise RuntimeError(f"the gateway does not answer: {cause}") from cause
                time.sleep(0.1)

    def kill_gateway(self):
        "kill -9: requests in flight are cut"
        process = self.processes.pop("rgw")
        process.kill()
        process.wait()

    def stop(self):
        for process in self.processes.values(): process.kill()
        for process in self.processes.values(): process.wait()
        if "watcher" in self.processes: self.processes["watcher"].stdin.close()
        self.processes.clear()

    def __enter__(self):
        "A second try, since another program may have taken a port meanwhile"
        try: return self.start("first")
        except (RuntimeError, subprocess.TimeoutExpired):
            self.stop()
            return self._start_again()
        except BaseException:
            self.stop()
            raise

    def _start_again(self):
        try: return self.start("second")
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *args): self.stop()


class FaultProxy:
    """Stands before the server and harms requests. `fault(method, path, number)` names the harm for request `number`, counted from 0:
    None, "500", "501", "503", "cut" (the answer ends in the middle), "lost" (done, but no answer), "flip" (a bit of the answer), "flip-sent"
    (a bit of what is sent), "slow", "refuse-checksums"; `delay` seconds are added to each request"""
    def __init__(self, port, fault=lambda method, path, number: None, delay=0.0):
        self.target, self.fault, self.delay = port, fault, delay
        self.seen, self.lock = [], threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *args): pass
            def handle(self):
                with contextlib.suppress(OSError): super().handle()
            def answer(self): proxy.serve(self)
            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            def handle_error(self, *args): pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever,
                                       kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self
    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def serve(self, request):
        body = bytearray(request.rfile.read(int(request.headers.get("Content-Length") or 0)))
        with self.lock:
            number = len(self.seen)
            harm = self.fault(request.command, request.path, number)
            self.seen.append((request.command, request.path, harm))
        time.sleep(self.delay)
        checksum = any(k.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum",
                                             "x-amz-trailer")) for k in request.headers)
        if harm in ("500", "501", "503") or harm == "refuse-checksums" and checksum:
            code, name = {"500": (500, "InternalError"), "503": (503, "SlowDown")}.get(harm,
                (501, "NotImplemented"))
            text = f"<Error><Code>{name}</Code><Message>A header you provided implies functionality that is not implemented</Message></Error>".encode()
            return self.send(request, code, [("Content-Type", "application/xml")], text)
        if harm == "flip-sent" and body: body[len(body) // 2] ^= 4
        try:
            server = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
            server.putrequest(request.command, request.path, skip_host=True,
                              skip_accept_encoding=True)
            for key, value in request.headers.items():
                if key.lower() not in ("expect", "connection"): server.putheader(key, value)
            server.endheaders(bytes(body) or None)
            answer = server.getresponse()
            content, headers = bytearray(answer.read()), answer.getheaders()
            server.close()
        except (OSError, http.client.HTTPException): return self.hang_up(request)
        if harm == "lost": return self.hang_up(request)
        if harm == "flip" and content: content[len(content) // 2] ^= 4
        self.send(request, answer.status, headers, content, cut=harm == "cut", slow=harm == "slow")

    def hang_up(self, request):
        request.close_connection = True
        with contextlib.suppress(OSError): request.connection.shutdown(socket.SHUT_RDWR)

    def send(self, request, status, headers, content, cut=False, slow=False):
        request.send_response_only(status)
        for key, value in headers:
            if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                request.send_header(key, value)
        length = next((v for k, v in headers if k.lower() == "content-length"),
                      len(content)) if request.command == "HEAD" else len(content)
        request.send_header("Content-Length", str(length))
        request.end_headers()
        if request.command == "HEAD": return
        if cut:
            request.wfile.write(content[:len(content) // 2])
            request.wfile.flush()
            return self.hang_up(request)
        for start in range(0, len(content), 1 << 19 if slow else 1 << 26):
            request.wfile.write(content[start:start + (1 << 19 if slow else 1 << 26)])
            if slow:
                request.wfile.flush()
                time.sleep(0.01)


@contextlib.contextmanager
def lab_gateway(folder):
    "A gateway with the bucket `lab`, and a client for it"
    import boto3
    with CephServer(folder) as server:
        server.client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1",
                                     aws_access_key_id=server.access_key,
                                     aws_secret_access_key=server.secret_key)
        server.client.create_bucket(Bucket="lab")
        yield server
