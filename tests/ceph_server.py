"A real S3 server on this machine: one Ceph monitor, one store of objects, one gateway, all on the loopback address."
import contextlib, json, os, secrets, shutil, signal, socket, subprocess, time, urllib.error, urllib.request, uuid
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
        self.folder, self.processes = Path(folder), {}
        self.access_key, self.secret_key = "AUDIOLAB" + secrets.token_hex(6).upper(), secrets.token_hex(20)
        self.mon_port, self.port = free_ports(2)
        self.endpoint, self.conf = f"http://127.0.0.1:{self.port}", self.folder/"ceph.conf"
        self.fsid = uuid.uuid4()
        for name in ("run", "log", "mon", "osd", "rgw"): (self.folder/name).mkdir(parents=True, exist_ok=True)
        self.conf.write_text(CONF.format(folder=self.folder, fsid=self.fsid, mon_port=self.mon_port, rgw_port=self.port))

    def _environment(self): return os.environ | {"CEPH_CONF": str(self.conf), "HOME": str(self.folder)}

    def command(self, *args, timeout=60):
        "Run a program of Ceph to its end"
        r = subprocess.run([args[0], "-c", str(self.conf), *map(str, args[1:])], capture_output=True, text=True, timeout=timeout, env=self._environment(), cwd=self.folder)
        if r.returncode: raise RuntimeError(f"{' '.join(map(str, args))} ended with {r.returncode}: {r.stderr[-2000:]}")
        return r.stdout

    def daemon(self, name, *args):
        "Start a program of Ceph that stays; it dies with us"
        with open(self.folder/"log"/f"{name}.out", "ab") as out:
            self.processes[name] = subprocess.Popen([args[0], "-c", str(self.conf), "-f", *map(str, args[1:])], stdin=subprocess.DEVNULL,
                                                    stdout=out, stderr=out, cwd=self.folder, env=self._environment(), start_new_session=True)

    def start(self):
        monmap = self.folder/"monmap"
        self.command("monmaptool", "--create", "--fsid", self.fsid, "--set-min-mon-release", "pacific", "--addv", "a", f"[v1:127.0.0.1:{self.mon_port}]", monmap)
        self.command("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self.daemon("mon", "ceph-mon", "-i", "a")
        osd = uuid.uuid4()
        self.command("ceph", "osd", "new", osd)
        self.command("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self.daemon("osd", "ceph-osd", "-i", "0")
        self.start_gateway(wait=False)
        self.command("radosgw-admin", "user", "create", "--uid=audiolab", "--display-name=audiolab",
                     f"--access-key={self.access_key}", f"--secret-key={self.secret_key}")
        self.wait_for_gateway()
        return self

    def start_gateway(self, wait=True):
        self.daemon("rgw", "radosgw", "-n", "client.rgw.a")
        if wait: self.wait_for_gateway()

    def wait_for_gateway(self, seconds=60):
        "Until it answers"
        end = time.monotonic() + seconds
        while True:
            try: urllib.request.urlopen(self.endpoint, timeout=2).read(); return
            except urllib.error.HTTPError: return  # an answer
            except OSError as cause:
                for name, process in self.processes.items():
                    if process.poll() is not None:
                        raise RuntimeError(f"{name} ended with {process.returncode}: {(self.folder/'log'/f'{name}.out').read_text()[-2000:]}") from cause
                if time.monotonic() > end: raise RuntimeError(f"the gateway does not answer: {cause}") from cause
                time.sleep(0.1)

    def kill_gateway(self):
        "kill -9: requests in flight are cut"
        process = self.processes.pop("rgw")
        process.kill(); process.wait()

    def stop(self):
        for process in self.processes.values(): process.kill()
        for process in self.processes.values(): process.wait()
        self.processes.clear()

    def __enter__(self):
        try: return self.start()
        except BaseException: self.stop(); raise

    def __exit__(self, *args): self.stop()
