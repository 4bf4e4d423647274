"""Runs the pods of rendered manifests here, as a node would: `python -m support.deploy.pods MANIFESTS IMAGES`.

It is given namespaces of its own (`unshare --mount --net --pid`), where every pod has its network, with an address on
one bridge, and its file system: the machine's programs read-only, and what the pod mounts. Containers run as the user
that the pod names, without privileges, on a root that they cannot write to. Services are names in /etc/hosts; probes
come from the bridge. Then the hooks run: jobs, and the pod of `helm test`. What became of all is printed as JSON.

IMAGES is a JSON file: `environment` of every image, `binds` (folders of the machine by their place in a pod), and
whether `users` other than the present one can be had (in a user namespace of an unprivileged user there is but one).
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOTS = Path("/run/sparsity-pods")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
# What a base image has in /etc.
ETC = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "ld.so.conf", "ssl", "localtime", "alternatives")
NETWORK = "10.77.0"
_STOP = 30.0
_READY = 60.0
# Sooner than a node would ask again.
_POLL = 0.2


def sh(*command: str) -> None:
    """Runs a command that must succeed."""
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass
class Objects:
    """What was rendered, by kind and name."""

    namespace: str
    found: dict[tuple[str, str], dict[str, Any]]

    @classmethod
    def read(cls, path: Path, namespace: str) -> Objects:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
        return cls(namespace, {(each["kind"], each["metadata"]["name"]): each for each in documents})

    def kind(self, kind: str) -> list[dict[str, Any]]:
        return [document for (found, _), document in self.found.items() if found == kind]

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        """The files of a ConfigMap or a Secret."""
        data = self.found[kind, name].get("data", {})
        return {key: base64.b64decode(text) if kind == "Secret" else text.encode() for key, text in data.items()}


@dataclass
class Pod:
    """One pod, its network and its file system."""

    name: str
    address: str
    labels: dict[str, str]
    spec: dict[str, Any]
    objects: Objects
    images: dict[str, Any]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    roots: int = 0

    @property
    def root(self) -> Path:
        """Of the last container: each has its own."""
        return ROOTS / self.name / f"root-{self.roots}"

    def prepare(self, number: int) -> None:
        """Its network and its volumes."""
        sh("ip", "netns", "add", self.name)
        outer = f"v{number}"
        sh("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        sh("ip", "link", "set", outer, "master", "pods", "up")
        for command in ("addr add {}/24 dev eth0", "link set eth0 up", "link set lo up"):
            sh("ip", "-n", self.name, *command.format(self.address).split())
        for volume in self.spec.get("volumes", ()):
            self._make(volume)

    def _volume(self, name: str) -> Path:
        return ROOTS / self.name / "volumes" / name

    def _make(self, volume: dict[str, Any]) -> None:
        folder = self._volume(volume["name"])
        folder.mkdir(parents=True)
        source = volume.get("configMap") or volume.get("secret")
        if source is None:
            assert "emptyDir" in volume, f"no such volume here: {volume}"
            folder.chmod(0o777)
            return
        kind = "ConfigMap" if "configMap" in volume else "Secret"
        # As a node lays them out: files are links into a folder that is swapped whole.
        data = folder / "..2026_11_25"
        data.mkdir()
        (folder / "..data").symlink_to(data.name)
        for name, content in self.objects.files(kind, source.get("name") or source["secretName"]).items():
            (data / name).write_bytes(content)
            (folder / name).symlink_to(f"..data/{name}")

    def _assemble(self, container: dict[str, Any], hosts: str) -> None:
        """The container's file system at ``root``; read-only but for what it mounts."""
        self.roots += 1
        root = self.root
        root.mkdir(parents=True)
        sh("mount", "-t", "tmpfs", "root", str(root))
        for place in SYSTEM:
            if Path(place).is_symlink():
                (root / place[1:]).symlink_to(os.readlink(place))
            elif Path(place).is_dir():
                self._bind(place, place)
        (root / "etc").mkdir()
        for name in ETC:
            source = Path("/etc") / name
            if source.is_dir():
                shutil.copytree(source, root / "etc" / name, symlinks=True)
            elif source.exists():
                shutil.copy(source, root / "etc" / name)
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n{hosts}")
        (root / "proc").mkdir()
        sh("mount", "-t", "proc", "proc", str(root / "proc"))
        self._bind("/sys", "/sys")
        self._bind("/dev", "/dev", read_only=False)
        sh("mount", "-t", "tmpfs", "-o", "mode=1777,size=64m", "shm", str(root / "dev/shm"))
        mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", ())}
        for place, mount in mounts.items():
            self._bind(str(self._volume(mount["name"])), place, read_only=mount.get("readOnly", False))
        # After the volumes: the checkout may lie below /tmp, which is one.
        for place, source in self.images["binds"].items():
            self._bind(source, place)
        if container["securityContext"]["readOnlyRootFilesystem"]:
            sh("mount", "-o", "remount,ro", str(root))

    def _bind(self, source: str, place: str, *, read_only: bool = True) -> None:
        target = self.root / place[1:]
        target.mkdir(parents=True, exist_ok=True)
        sh("mount", "--rbind", source, str(target))
        if read_only:
            sh("mount", "-o", "remount,bind,ro", str(target))

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        made = dict(self.images["environment"])
        for entry in container.get("env", ()):
            origin = entry.get("valueFrom", {})
            if "fieldRef" in origin:
                value = {"metadata.name": self.name, "status.podIP": self.address}[origin["fieldRef"]["fieldPath"]]
            elif "secretKeyRef" in origin:
                reference = origin["secretKeyRef"]
                value = self.objects.files("Secret", reference["name"])[reference["key"]].decode()
            else:
                value = expanded(entry.get("value", ""), made)
            made[entry["name"]] = value
        return made

    def start(self, container: dict[str, Any], hosts: str) -> subprocess.Popen[bytes]:
        """Starts one container, on a file system of its own."""
        environment = self._environment(container)
        security = self.spec["securityContext"] | container["securityContext"]
        assert security["runAsNonRoot"]
        assert not security["allowPrivilegeEscalation"]
        user, group = str(security["runAsUser"]), str(security["runAsGroup"])
        self._assemble(container, hosts)
        command = [*container["command"], *container.get("args", ())]
        drop = ["setpriv"]
        if self.images["users"]:
            drop += ["--reuid", user, "--regid", group, "--groups", str(security["fsGroup"])]
        drop += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"]
        inside = [
            str(shutil.which("ip")),
            "netns",
            "exec",
            self.name,
            str(shutil.which("chroot")),
            str(self.root),
            *drop,
        ]
        log = open(ROOTS / self.name / f"{container['name']}.log", "wb")  # noqa: SIM115
        words = [expanded(word, environment) for word in command]
        process = subprocess.Popen([*inside, *words], stdout=log, stderr=log, env=environment)
        self.processes[container["name"]] = process
        return process

    def log(self, container: str) -> str:
        return (ROOTS / self.name / f"{container}.log").read_text(errors="replace")


def expanded(text: str, environment: dict[str, str]) -> str:
    """Kubernetes' $(NAME)."""
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), text)


def probe(pod: Pod, container: dict[str, Any], kind: str) -> bool:
    """Whether a probe passes now."""
    asked = container[kind]
    if "tcpSocket" in asked:
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        port = asked["tcpSocket"]["port"]
        try:
            socket.create_connection((pod.address, ports.get(port, port)), 1.0).close()
        except OSError:
            return False
        return True
    with grpc.insecure_channel(f"{pod.address}:{asked['grpc']['port']}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(
                health_pb2.HealthCheckRequest(service=asked["grpc"]["service"]), timeout=asked.get("timeoutSeconds", 1)
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def workloads(objects: Objects) -> list[tuple[str, dict[str, Any]]]:
    """Name and template of every pod that the manifests ask for."""
    found = []
    for document in (*objects.kind("StatefulSet"), *objects.kind("Deployment")):
        for number in range(document["spec"]["replicas"]):
            found.append((f"{document['metadata']['name']}-{number}", document["spec"]["template"]))
    return found


def hosts_of(objects: Objects, pods: list[Pod]) -> str:
    """What the cluster's DNS would say."""
    lines = []
    for service in objects.kind("Service"):
        wanted = service["spec"]["selector"].items()
        name = f"{service['metadata']['name']}.{objects.namespace}.svc.cluster.local"
        lines += [f"{pod.address} {name}" for pod in pods if wanted <= pod.labels.items()]
    return "\n".join(lines) + "\n"


def run_once(pod: Pod, hosts: str, seconds: float) -> int:
    """Runs the one container of a hook to its end."""
    (container,) = pod.spec["containers"]
    return pod.start(container, hosts).wait(seconds)


def await_ready(pods: list[Pod]) -> None:
    """Waits for every startup probe, as long as it says, then for readiness, which routers have once workers do."""
    for pod in pods:
        (container,) = pod.spec["containers"]
        startup = container["startupProbe"]
        deadline = time.monotonic() + startup["periodSeconds"] * startup["failureThreshold"]
        while not probe(pod, container, "startupProbe"):
            code = pod.processes[container["name"]].poll()
            if code is not None or time.monotonic() > deadline:
                sys.exit(f"{pod.name} did not start ({code}):\n{pod.log(container['name'])[-4000:]}")
            time.sleep(_POLL)
    deadline = time.monotonic() + _READY
    for pod in pods:
        (container,) = pod.spec["containers"]
        for kind in ("readinessProbe", "livenessProbe"):
            while not probe(pod, container, kind):
                if time.monotonic() > deadline:
                    sys.exit(f"{pod.name}: {kind} fails:\n{pod.log(container['name'])[-4000:]}")
                time.sleep(_POLL)


def stop(pods: list[Pod]) -> dict[str, int]:
    """SIGTERM to every container; its exit code."""
    for pod in pods:
        for process in pod.processes.values():
            process.terminate()
    codes = {}
    for pod in pods:
        for name, process in pod.processes.items():
            if not name.startswith("model"):
                codes[f"{pod.name}/{name}"] = process.wait(_STOP)
    return codes


def main(manifests: str, images: str) -> None:
    """Runs everything, and prints what became of it."""
    sh("mount", "--make-rprivate", "/")
    sh("mount", "-t", "tmpfs", "run", "/run")
    ROOTS.mkdir()
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "link", "add", "pods", "type", "bridge")
    sh("ip", "addr", "add", f"{NETWORK}.1/24", "dev", "pods")
    sh("ip", "link", "set", "pods", "up")
    objects = Objects.read(Path(manifests), "ns")
    image = json.loads(Path(images).read_text())
    pods: list[Pod] = []

    def made(name: str, template: dict[str, Any]) -> Pod:
        number = len(pods) + 10
        pod = Pod(name, f"{NETWORK}.{number}", template["metadata"]["labels"], template["spec"], objects, image)
        pod.prepare(number)
        pods.append(pod)
        return pod

    running = [made(name, template) for name, template in workloads(objects)]
    hosts = hosts_of(objects, running)
    for pod in running:
        for container in pod.spec.get("initContainers", ()):
            code = pod.start(container, hosts).wait(120)
            if code:
                sys.exit(f"{pod.name}/{container['name']} ended with {code}: {pod.log(container['name'])}")
        for container in pod.spec["containers"]:
            pod.start(container, hosts)
    await_ready(running)
    report: dict[str, Any] = {"ready": [pod.name for pod in running], "hooks": {}}
    hooks = [(job["metadata"]["name"], job["spec"]["template"]) for job in objects.kind("Job")]
    hooks += [(pod["metadata"]["name"], pod) for pod in objects.kind("Pod")]
    for name, template in hooks:
        hook = made(name, template)
        for _ in range(100):
            code = run_once(hook, hosts, 180)
            if not code:
                break
            time.sleep(_POLL)
        container = hook.spec["containers"][0]["name"]
        report["hooks"][name] = {"code": code, "output": hook.log(container)}
    report["codes"] = stop(running)
    report["logs"] = {pod.name: pod.log(pod.spec["containers"][0]["name"])[-20000:] for pod in running}
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:3])
