"""cri.py HANDLER DRIVER CHECK [ARG]: one check of containerd's CRI plugin, with HANDLER as runtime class.

Messages are {field number: value}, as numbered in kubernetes/cri-api's api.proto (runtime.v1): what a check sends and
reads is so little that generated code would be longer. `sweep` removes what checks left behind."""

import base64
import concurrent.futures
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.parse

import grpc
import yaml

HANDLER, DRIVER = sys.argv[1:3]
BOX, WEB = "docker.io/keel/box:1", "docker.io/keel/web:1"
PARENT = {"cgroupfs": "/kubepods", "systemd": "kubepods.slice"}[DRIVER]
POD, OWN, NODE = 0, 1, 2  # NamespaceMode
RUNNING, EXITED = 1, 2  # ContainerState


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))


def encode(message):
    out = b""
    for field, values in message.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, int):
                out += varint(field << 3) + varint(value)
                continue
            if isinstance(value, dict):
                value = encode(value)
            elif isinstance(value, str):
                value = value.encode()
            out += varint(field << 3 | 2) + varint(len(value)) + value
    return out


class Message:
    """What came back; its fields are read as what they are known to be."""

    def __init__(self, data):
        self.fields = {}
        at = 0

        def number():
            nonlocal at
            value = shift = 0
            while True:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    return value

        while at < len(data):
            key = number()
            if key & 7 == 0:
                value = number()
            else:
                size = {1: 8, 5: 4}.get(key & 7) or number()
                value, at = data[at : at + size], at + size
            self.fields.setdefault(key >> 3, []).append(value)

    def int(self, field):
        return self.fields.get(field, [0])[0]

    def text(self, field):
        return self.fields.get(field, [b""])[0].decode()

    def message(self, field):
        return Message(self.fields.get(field, [b""])[0])

    def messages(self, field):
        return [Message(each) for each in self.fields.get(field, [])]


channel = grpc.insecure_channel("unix:///run/containerd/containerd.sock")


def call(method, message=None):
    stub = channel.unary_unary(
        "/runtime.v1.RuntimeService/" + method, request_serializer=encode, response_deserializer=Message
    )
    return stub(message or {}, timeout=100, wait_for_ready=True)


def equal(actual, expected):
    assert actual == expected, f"{actual!r} is not {expected!r}"


def eventually(happened, otherwise=lambda: "", seconds=90):
    """Waits for what an engine does in its own time; the machine is slow."""
    end, pause = time.monotonic() + seconds, 0.05
    while not happened():
        assert time.monotonic() < end, f"not within {seconds} s; {otherwise()}"
        time.sleep(pause)
        pause = min(2 * pause, 0.8)


class Pod:
    def __init__(self, name, namespaces=None, handler=HANDLER, security=None):
        # The log directory is the pod's own; labels let `sweep` know it.
        self.name, self.logs = f"{handler}-{name}", f"/var/tmp/pods/{DRIVER}/{handler}-{name}"
        context = {**(security or {}), 1: namespaces or {2: OWN}}
        self.config = {
            1: {1: self.name, 2: self.name, 3: "default"},
            # With the host's network a pod has the host's name.
            2: "" if context[1].get(1) == NODE else name,
            3: self.logs,
            6: {1: "check", 2: HANDLER},
            8: {1: PARENT, 2: context},
        }
        self.id = call("RunPodSandbox", {1: self.config, 2: handler}).text(1)

    def container(self, name, *command, image=BOX, resources=None, security=None, mounts=(), start=True):
        config = {
            1: {1: name},
            2: {1: image},
            3: list(command),
            7: list(mounts),
            11: name + ".log",
            15: {1: resources or {}, 2: {3: {2: OWN}, **(security or {})}},
        }
        made = call("CreateContainer", {1: self.id, 2: config, 3: self.config}).text(1)
        if start:
            call("StartContainer", {1: made})
        return Container(made, f"{self.logs}/{name}.log")

    def address(self):
        return call("PodSandboxStatus", {1: self.id}).message(1).message(5).text(1)

    def remove(self):
        call("StopPodSandbox", {1: self.id})
        call("RemovePodSandbox", {1: self.id})


class Container:
    def __init__(self, id, log):
        self.id, self.log = id, log

    def status(self):
        return call("ContainerStatus", {1: self.id}).message(1)

    def wait(self):
        """Its exit code and the reason given for it, once it has ended."""
        eventually(lambda: self.status().int(3) == EXITED, lambda: f"it said {self.said()!r}")
        return self.status().int(7), self.status().text(10)

    def said(self):
        """Its output, out of lines of `TIME stdout|stderr F|P TEXT`."""
        with open(self.log) as log:
            return "\n".join(line.rstrip("\n").split(" ", 3)[3] for line in log)

    def run(self, *command):
        """Exit code and output of one more program, in one call."""
        answer = call("ExecSync", {1: self.id, 2: list(command), 3: 60})
        return answer.int(3), answer.text(1).strip()

    def pid(self):
        answer = call("ContainerStatus", {1: self.id, 2: 1})
        info = dict((entry.text(1), entry.text(2)) for entry in answer.messages(2))
        return yaml.safe_load(info["info"])["pid"]

    def limit(self, file):
        with open(f"/proc/{self.pid()}/cgroup") as cgroup:
            path = cgroup.read().strip().removeprefix("0::")
        with open(f"/sys/fs/cgroup{path}/{file}") as limit:
            return limit.read().strip()


def by_runtime_class():
    with open("runtimeclass.yaml") as file:
        handler = yaml.safe_load(file)
    with open("pod.yaml") as file:
        spec = yaml.safe_load(file)["spec"]
    equal(spec["runtimeClassName"], handler["metadata"]["name"])
    name = handler["handler"] if HANDLER == "keel" else HANDLER
    pod = Pod("by-class", handler=name)
    (container,) = spec["containers"]
    made = pod.container(container["name"], *container["command"], image=container["image"])
    equal(made.status().int(3), RUNNING)
    equal(made.run("hostname"), (0, "by-class"))
    # It is that runtime which keeps its state.
    root = f"/run/containerd/runc/k8s.io/{made.id}"
    assert os.path.isdir(root), f"no {root}"
    pod.remove()
    assert not os.path.isdir(root), f"{root} is left"


def containers():
    pod = Pod("containers")
    good = pod.container("good", "sh", "-c", "echo out; echo err >&2")
    bad = pod.container("bad", "sh", "-c", "exit 42")
    equal(good.wait(), (0, "Completed"))
    equal(bad.wait(), (42, "Error"))
    equal(sorted(good.said().split()), ["err", "out"])
    missing = pod.container("missing", "nonesuch", start=False)
    try:
        call("StartContainer", {1: missing.id})
        raise AssertionError("a program that is not there was started")
    except grpc.RpcError as error:
        assert "executable file not found" in error.details() or "no such file" in error.details(), error.details()
    pod.remove()


def stream(url, stdin=b""):
    """What a program prints that is run by a URL of Exec: a WebSocket, each message with its channel as first byte."""
    address = urllib.parse.urlparse(url)
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    connection.sendall(
        f"GET {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
        "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n".encode()
    )
    answer = connection.makefile("rb")
    equal(answer.readline().split()[1], b"101")
    while answer.readline().strip():
        pass
    if stdin:
        # Final binary frame, masked (with zeros).
        connection.sendall(struct.pack("!BB4x", 0x82, 0x80 | len(stdin) + 1) + b"\0" + stdin)
    out = b""
    while True:
        head = answer.read(2)
        if len(head) < 2 or head[0] & 15 == 8:
            return out.decode()
        size = head[1] & 127
        if size > 125:
            (size,) = struct.unpack("!H" if size == 126 else "!Q", answer.read(2 if size == 126 else 8))
        data = answer.read(size)
        if data[:1] == b"\1":
            out += data[1:]


def execs():
    pod = Pod("execs")
    one = pod.container("one", "sleep", "1000")
    equal(one.run("sh", "-c", "echo out; exit 7"), (7, "out"))
    ask = {1: one.id, 2: ["sh", "-c", "read line; echo got $line"], 4: 1, 5: 1, 6: 1}
    equal(stream(call("Exec", ask).text(1), b"words\n"), "got words\n")
    ask = {1: one.id, 2: ["sh", "-c", "test -t 0 && echo terminal"], 3: 1, 4: 1, 5: 1}
    equal(stream(call("Exec", ask).text(1)), "terminal\r\n")
    pod.remove()


def limits():
    pod = Pod("limits")
    files = ["memory.max", "cpu.max", "cpuset.cpus"]
    one = pod.container("one", "sleep", "1000", resources={1: 100000, 2: 50000, 3: 512, 4: 64 << 20, 5: 500, 6: "0"})
    equal([one.limit(file) for file in files], ["67108864", "50000 100000", "0"])
    equal(one.run("cat", "/proc/1/oom_score_adj", "/sys/fs/cgroup/memory.max"), (0, "500\n67108864"))
    call("UpdateContainerResources", {1: one.id, 2: {1: 100000, 2: 25000, 4: 96 << 20, 6: "1"}})
    equal([one.limit(file) for file in files], ["100663296", "25000 100000", "1"])
    if DRIVER == "systemd":
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        equal(one.limit("memory.max"), "100663296")
        with open(f"/proc/{one.pid()}/cgroup") as cgroup:
            equal(cgroup.read(), f"0::/kubepods.slice/cri-containerd-{one.id}.scope\n")
    stats = call("ContainerStats", {1: one.id}).message(1)
    equal(stats.message(1).text(1), one.id)
    assert stats.message(2).message(2).int(1) > 0 and stats.message(3).message(2).int(1) > 0, stats.fields
    pod.remove()


def out_of_memory():
    pod = Pod("oom")
    limit = {4: 16 << 20, 10: 16 << 20}
    one = pod.container("one", "tail", "-c", "100m", "/dev/zero", resources=limit)
    equal(one.wait()[0], 137)
    # Again and again: the shim begins to watch a cgroup after its container has started, and systemd removes it with
    # its last process, whether or not the shim has looked.
    forever = "while :; do tail -c 100m /dev/zero; sleep 0.2; done"
    more = pod.container("more", "sh", "-c", forever, resources=limit)
    eventually(lambda: more.status().text(10) == "OOMKilled")
    call("StopContainer", {1: more.id, 2: 0})
    equal(more.wait(), (137, "OOMKilled"))
    pod.remove()


def confined():
    pod = Pod("confined", security={6: 1})
    look = ["sh", "-c", "grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status | cut -f2; id -u; touch /x 2>&1"]
    tight = {1: {2: ["ALL"]}, 5: {1: 1000}, 7: 1, 11: 1, 12: {1: 1000}, 15: {1: 0}}
    one = pod.container("tight", *look, security=tight)
    equal(one.wait(), (1, "Error"))
    equal(one.said().split("\n"), ["0000000000000000", "1", "2", "1000", "touch: /x: Read-only file system"])
    open_one = pod.container("open", *look, security={2: 1})
    equal(open_one.wait(), (0, "Completed"))
    equal(open_one.said().split("\n"), ["000001ffffffffff", "0", "0", "0"])
    added = pod.container("added", *look, security={1: {1: ["NET_ADMIN"], 2: ["ALL"]}, 15: {1: 1}})
    equal(added.wait()[0], 0)
    equal(added.said().split("\n"), ["0000000000001000", "0", "0", "0"])
    pod.remove()


def stops():
    pod = Pod("stops")
    kind = pod.container("kind", "sh", "-c", 'trap "exit 3" TERM; while :; do sleep 0.1; done')
    deaf = pod.container("deaf", "sleep", "1000")  # pid 1 without a handler
    call("StopContainer", {1: kind.id, 2: 30})
    equal(kind.wait(), (3, "Error"))
    since = time.monotonic()
    call("StopContainer", {1: deaf.id, 2: 2})
    equal(deaf.wait()[0], 137)
    assert time.monotonic() - since >= 2, "killed before its time"
    pod.remove()


def network():
    pod = Pod("network")
    pod.container("web", image=WEB, resources={4: 64 << 20})
    one = pod.container("one", "sleep", "1000")
    ask = "for i in 1 2 3 4 5 6; do wget -q -O - http://%s/ && break; sleep 1; done"
    equal(one.run("sh", "-c", ask % "127.0.0.1"), (0, "welcome"))
    answer = subprocess.run(["curl", "-sfm10", f"http://{pod.address()}/"], capture_output=True, text=True)
    equal(answer.stdout, "welcome\n")
    pod.remove()


def namespaces():
    shared = {3: {2: POD}}
    pod = Pod("shared", namespaces={2: POD})
    first = pod.container("first", "sleep", "777", security=shared)
    second = pod.container("second", "sleep", "1000", security=shared)
    status, processes = second.run("ps", "-o", "args")
    assert status == 0 and "sleep 777" in processes, processes
    call("StopContainer", {1: first.id, 2: 0})
    equal(first.wait()[0], 137)
    pod.remove()
    hosts = {1: NODE, 2: NODE, 3: NODE}
    pod = Pod("hosts", namespaces=hosts)
    one = pod.container("one", "sleep", "1000", security={3: hosts})
    for kind in ["net", "pid", "ipc"]:
        equal(one.run("readlink", f"/proc/self/ns/{kind}"), (0, os.readlink(f"/proc/self/ns/{kind}")))
    pod.remove()


def user_namespace():
    # Of each runtime its own: containerd chowns a copy of the image for them.
    first = 200000 if HANDLER == "keel" else 300000
    mapping = {1: first, 2: 0, 3: 65536}
    users = {2: OWN, 5: {1: POD, 2: mapping, 3: mapping}}
    pod = Pod("users", namespaces=users)
    one = pod.container("one", "sleep", "1000", security={3: users})
    equal(one.run("cat", "/proc/self/uid_map")[1].split(), ["0", str(first), "65536"])
    equal(one.run("sh", "-c", "touch /tmp/x && stat -c %u /tmp/x /bin"), (0, "0\n0"))
    equal(os.stat(f"/proc/{one.pid()}").st_uid, first)
    pod.remove()


def install(manifest):
    """The pod of a DaemonSet's template: its init containers one after the other, then its containers."""
    with open(manifest) as file:
        spec = yaml.safe_load(file)["spec"]["template"]["spec"]
    namespaces = {2: NODE if spec.get("hostPID") else OWN}
    pod = Pod("install", namespaces=namespaces, security={6: 1})
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}

    def container(wanted):
        mounts = [{1: mount["mountPath"], 2: volumes[mount["name"]]} for mount in wanted.get("volumeMounts", [])]
        privileged = wanted.get("securityContext", {}).get("privileged", False)
        command = wanted["command"] + wanted.get("args", [])
        context = {2: int(privileged), 3: namespaces}
        return pod.container(wanted["name"], *command, image=wanted["image"], mounts=mounts, security=context)

    def process():
        show = ["systemctl", "show", "--property=MainPID", "--value", "containerd"]
        return subprocess.run(show, capture_output=True, text=True, check=True).stdout.strip()

    def answers():
        try:
            return call("Version")
        except grpc.RpcError:
            return None  # that connection was to the one before

    before = process()
    for wanted in spec["initContainers"]:
        made = container(wanted)
        equal((made.wait(), made.said()), ((0, "Completed"), ""))
    eventually(lambda: process() not in [before, "0"] and answers())
    for wanted in spec["containers"]:
        equal(container(wanted).status().int(3), RUNNING)
    pod.remove()


def settings(manifest, box):
    """What the installer of the manifest writes into the settings of each version is what stands in the box."""
    with open(manifest) as file:
        (installer,) = yaml.safe_load(file)["spec"]["template"]["spec"]["initContainers"]
    (script,) = installer["args"]
    with open(box, "rb") as file:
        (wanted,) = tomllib.load(file)["plugins"].values()
    for version, plugin in [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")]:
        with tempfile.TemporaryDirectory() as host:
            config = f"{host}/config.toml"
            with open(config, "w") as file:
                file.write(f"version = {version}\n")
            # Twice, as on a node that is started again. Of the script's commands those that write settings.
            alone = "cp() { :; }; mv() { :; }; nsenter() { :; }\n" + script.replace("/host/containerd", host)
            for _ in range(2):
                subprocess.run(["sh", "-euc", alone], check=True)
            with open(config, "rb") as file:
                equal(tomllib.load(file), {"version": version, "plugins": {plugin: wanted}})


def soak(count):
    """As many containers, ten at a time, in as many pods."""

    def some(first):
        pod = Pod(f"soak-{first}", namespaces={1: NODE, 2: OWN})  # a network for each would take longer than the rest
        for number in range(first, int(count), 10):
            one = pod.container(f"n{number}", "echo", str(number))
            equal((one.wait(), one.said()), ((0, "Completed"), str(number)))
            call("RemoveContainer", {1: one.id})
        pod.remove()

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        list(pool.map(some, range(10)))


def sweep():
    for pod in call("ListPodSandbox", {1: {3: {1: "check", 2: HANDLER}}}).messages(1):
        call("StopPodSandbox", {1: pod.text(1)})
        call("RemovePodSandbox", {1: pod.text(1)})


globals()[sys.argv[3]](*sys.argv[4:])
