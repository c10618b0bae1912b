"""A kubectl whose cluster is a local mesh: real proxies and real logs, where no Kubernetes can be had.

What the API server says of itself was recorded from a real one (recorded/cluster.json). MESH_STATE names the
local mesh's folder. GATEWAY_PORT=1 makes it look as if the ingress gateway listened nowhere.
A Job's pods are processes on this machine. kubectl_client.py is the command; it hands all on to here.
"""

import contextlib
import csv
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
import yaml  # noqa: E402

from harness.manifests.base import Object  # noqa: E402
from harness.manifests.kubernetes import Deployment, Secret  # noqa: E402
from harness.manifests.lookup import of_kind  # noqa: E402
from harness.meshes.local import LocalMesh  # noqa: E402
from harness.meshes.mesh import GATEWAY  # noqa: E402
from harness.meshes.pods import workload_of  # noqa: E402

RECORDED: dict[str, Any] = json.loads((ROOT / "tests" / "recorded" / "cluster.json").read_text())
ISTIO = ("Gateway", "VirtualService", "DestinationRule")


def main(words: list[str]) -> None:
    options = [w for w in words if w.startswith("-")]
    words = [w for w in words if not w.startswith("-")]
    mesh = LocalMesh(Path(os.environ["MESH_STATE"]))
    match words:
        case ["config", "current-context"]:
            print("minikube")
        case ["config", "view"]:
            print("https://192.168.49.2:8443")
        case ["api-versions"]:
            print("\n".join(RECORDED["api_versions"]))
        case ["api-resources"]:
            print("wasmplugins.extensions.istio.io")  # as of Istio before 1.30
        case ["get", kinds, *names]:
            found = get(mesh, kinds, options)
            chosen = [item for item in found if not names or item["metadata"]["name"] in names]
            several = len(names) != 1
            print(json.dumps({"items": chosen} if several else chosen[0] if chosen else {}))
        case ["apply"]:
            for document in yaml.safe_load_all(sys.stdin.read()):
                if document["kind"] in ISTIO:
                    document["metadata"].pop("labels", None)
                    path = Path(os.environ["MESH_STATE"]) / "applied.yaml"
                    path.write_text(yaml.safe_dump(document))
                    print("\n".join(mesh.apply(path)))
                elif document["kind"] == "Job":
                    start_job(mesh, document)
                else:
                    print(f"{document['kind'].lower()}/{document['metadata']['name']} unchanged")
        case ["delete"]:
            path = Path(os.environ["MESH_STATE"]) / "deleted.yaml"
            path.write_text(sys.stdin.read())
            print("\n".join(mesh.delete(path)))
        case ["delete", "jobs.batch,services,serviceaccounts,authorizationpolicies.security.istio.io"]:
            delete_job(mesh)
        case ["scale", target]:
            [replicas] = [o.partition("=")[2] for o in options if o.startswith("--replicas=")]
            mesh.scale(target.partition("/")[2], int(replicas))
        case ["create"]:  # a dry run
            pass
        case ["wait", *_]:
            pass
        case ["logs", pod]:
            logs(mesh, pod, options)
        case ["exec", pod, "pilot-agent", "request", "GET", "clusters"]:
            print(mesh.runtime.admin(pod, "/clusters").replace("::127.0.0.1:", "::10.244.0.9:"))
        case ["exec", "service/store", "psql", *_]:
            [database] = [o.partition("=")[2] for o in options if o.startswith("--dbname=")]
            [sql] = [o.partition("=")[2] for o in options if o.startswith("--command=")]
            csv.writer(sys.stdout).writerows(mesh.query("store", database, sql))
        case ["exec", pod, "pilot-agent", "request", "GET", path]:
            print(config_dump(mesh, pod, path))
        case ["port-forward", _, _]:
            port = os.environ.get("GATEWAY_PORT") or mesh.runtime.listener(GATEWAY, "ingress").port
            print(f"Forwarding from 127.0.0.1:{port} -> 8080", flush=True)
            time.sleep(3600)
        case _:
            sys.exit(f"error: the double does not know: {' '.join(words)}")


def get(mesh: LocalMesh, kinds: str, options: list[str]) -> list[dict[str, Any]]:
    selector = next((o.partition("=")[2] for o in options if o.startswith("--selector=")), "")
    recorded = {
        "nodes": "nodes", "mutatingwebhookconfigurations": "injectors", "services": "gateways",
    }  # fmt: skip
    if any(o.startswith("--field-selector=") for o in options):
        return []
    if selector == "app=istiod":
        return list(RECORDED["control_planes"])
    if kinds == "services":
        for port in RECORDED["gateways"][0]["spec"]["ports"]:
            port.pop("nodePort")  # no node answers here: callers need a port-forward
    if kinds in recorded:
        return list(RECORDED[recorded[kinds]])
    if kinds == "namespace":
        return [RECORDED["namespace"]]
    if kinds == "pods" and "app=loadtest" in selector:
        return [
            pod for pod in job_pods(mesh) if "index" not in selector or pod["metadata"]["name"] == "job-0"
        ]
    objects = mesh.routes()
    if kinds in ("secret", "secrets"):
        encoded = {s.metadata.name: {k: b64encode(v.encode()).decode() for k, v in s.values.items()}
                   for s in of_kind(objects, Secret)}  # fmt: skip
        return [{"metadata": {"name": name}, "data": data} for name, data in encoded.items()]
    if kinds.startswith("services,"):
        pods = [pod_json(*pod) for pod in mesh_pods(mesh)] if kinds.endswith(",pods") else []
        return [*(as_json(o) for o in objects if o.kind in ("Service", "Deployment")), *pods]
    if kinds == "envoyfilters.networking.istio.io":
        return []
    if kinds == "deployments,pods":
        return [*map(rolled_out, of_kind(objects, Deployment)), *(pod_json(*pod) for pod in mesh_pods(mesh))]
    if kinds == "deployments":
        return [as_json(o) for o in of_kind(objects, Deployment)]
    if kinds == "jobs.batch":
        return [{"metadata": {"name": "loadtest"}, "status": {}}]
    if kinds == "pod":
        return [*job_pods(mesh), *(pod_json(*pod) for pod in mesh_pods(mesh))]
    if kinds == "pods":
        wanted = dict(part.split("=") for part in selector.split(",")) if selector else {}
        pods = [pod_json(*pod) for pod in mesh_pods(mesh)]
        return [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]
    return [as_json(o) for o in objects if o.kind in ISTIO]


def as_json(found: Object) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(found.model_dump_json(by_alias=True, exclude_unset=True))
    data["metadata"].update(
        namespace="tutorial", uid="0", resourceVersion="1", creationTimestamp="2026-11-22T09:23:36Z"
    )
    return data


def rolled_out(found: Deployment) -> dict[str, Any]:
    counts = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), found.spec.replicas)
    data = as_json(found)
    data["metadata"]["generation"] = 1
    return {**data, "status": {**counts, "observedGeneration": 1}}


def mesh_pods(mesh: LocalMesh) -> list[tuple[str, str, dict[str, str]]]:
    """Return name, address and labels of each pod that runs."""
    deployments = {d.metadata.name: d for d in of_kind(mesh.routes(), Deployment)}
    pods = [(pod.name, pod.address) for pod in mesh.pods() if pod.state == "Running"]
    labels = {GATEWAY: {"istio": "ingressgateway"}}
    return [(n, a, labels.get(n) or deployments[workload_of(n)].labels) for n, a in pods]


def pod_json(name: str, address: str, labels: dict[str, str]) -> dict[str, Any]:
    """Return a pod as the API server gives it; all are at one IP address here, so it bears a port."""
    labels = {**labels, "app.kubernetes.io/part-of": "dark-launch", "pod-template-hash": "5d4"}
    owner = {"kind": "ReplicaSet", "name": f"{workload_of(name)}-5d4"}
    proxy = {"name": "istio-proxy", "ready": True, "containerID": name, "state": {"running": {}}}
    app = {"name": labels.get("app", "app"), "ready": True, "state": {"running": {}}}
    containers = [{"name": app["name"]}] if name != GATEWAY else [{"name": "istio-proxy"}]
    return {
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "istio-system" if name == GATEWAY else "tutorial", "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": {
            "serviceAccountName": "default",
            "containers": containers,
            "initContainers": [{"name": "istio-proxy"}],
        },
        "status": {
            "phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [app], "initContainerStatuses": [proxy],
        },
    }  # fmt: skip


def logs(mesh: LocalMesh, pod: str, options: list[str]) -> None:
    folder, ending = mesh.state / "pods" / pod, ["-F"]
    log = folder / ("access.log" if "--container=istio-proxy" in options else "app.log")
    if pod.startswith("job-"):
        pid = (mesh.state / pod / "pid").read_text()
        log, ending = mesh.state / pod / "log", ["-f", f"--pid={pid}"]
    if "--follow" not in options:
        print(log.read_text(), end="")
        return
    # A line has the same time whenever it is asked for, and seven share one, as some runtimes have it.
    # LOGS_BREAK_OFF=n cuts every stream after n new lines, in the middle of a line.
    since = next((o.partition("=")[2] for o in options if o.startswith("--since-time=")), "")
    left = int(os.environ.get("LOGS_BREAK_OFF", "-1"))
    recent = any(option.startswith("--since=") for option in options)
    # --since=10s: the log begins with a time in brackets.
    limit = (datetime.now(UTC) - timedelta(seconds=10)).isoformat(timespec="milliseconds")
    old = itertools.takewhile(lambda line: line[1:24] < limit, log.read_text().splitlines() if recent else ())
    first = len(list(old))
    with subprocess.Popen(
        ["tail", "-n", f"+{first + 1}", *ending, str(log)], stdout=subprocess.PIPE, text=True
    ) as tail:
        assert tail.stdout
        signal.signal(signal.SIGTERM, lambda *_: (tail.kill(), sys.exit(143)))
        for number, line in enumerate(tail.stdout, first):
            stamp = f"2026-11-22T09:23:36.{number // 7:09}Z"
            left -= stamp >= since
            if left == 0:
                print(stamp, line[: len(line) // 2], end="", flush=True)
                tail.kill()
                sys.exit("error: unexpected EOF")
            print(stamp, line, end="", flush=True)


def start_job(mesh: LocalMesh, job: dict[str, Any]) -> None:
    """Run each pod's command here: the gateway is at its address, and /tmp is the pod's own."""
    [container] = job["spec"]["template"]["spec"]["containers"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    for index in range(job["spec"]["completions"]):
        folder = mesh.state / f"job-{index}"
        folder.mkdir()
        [*words, script] = container["command"]
        script = script.replace("/tmp", str(folder)).replace(  # noqa: S108
            "--master-host loadtest", "--master-host 127.0.0.1"
        )
        environment = {
            **os.environ, **{v["name"]: v["value"] for v in container["env"]},
            "JOB_COMPLETION_INDEX": str(index), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LOCUST_HOST": f"{mesh.url()}", "LOCUST_MASTER_BIND_PORT": port, "LOCUST_MASTER_NODE_PORT": port,
        }  # fmt: skip
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                ["sh", "-c", '"$@"; echo $? >"$0"', str(folder / "code"), *words, script], cwd=ROOT,
                env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        (folder / "pid").write_text(str(process.pid))


def job_pods(mesh: LocalMesh) -> list[dict[str, Any]]:
    pods = []
    for folder in sorted(mesh.state.glob("job-*")):
        state: dict[str, Any] = {"running": {}}
        if (folder / "code").exists():
            state = {"terminated": {"exitCode": int((folder / "code").read_text()), "reason": "Error"}}
        elif not runs(int((folder / "pid").read_text())):
            state = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
        pods.append(
            {
                "metadata": {"name": folder.name},
                "status": {"containerStatuses": [{"name": "locust", "state": state}]},
            }
        )
    return pods


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def delete_job(mesh: LocalMesh) -> None:
    for folder in mesh.state.glob("job-*"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)
        shutil.rmtree(folder)


def config_dump(mesh: LocalMesh, pod: str, path: str) -> str:
    """Return what the proxy runs, in the form in which Istio renders it."""
    dump = json.loads(mesh.runtime.admin(pod, f"/{path}"))
    for config in dump["configs"]:
        config["route_config"]["name"] = "8080"
        for host in config["route_config"]["virtual_hosts"]:
            for route in host["routes"]:
                mirrors = route.get("route", {}).get("request_mirror_policies", [])
                for mirror in mirrors:
                    fraction = mirror["runtime_fraction"]["default_value"]
                    if fraction["numerator"] == 1_000_000:
                        mirror["runtime_fraction"]["default_value"] = {"numerator": 100}
    return json.dumps(dump)


def serve(where: str) -> None:
    """Run each command that comes by a socket in a copy of this process: its imports are done.

    It ends when its standard input does, as the process that started it ends.
    """
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(where)
        listener.listen(64)
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Run one command, as kubectl_client.py sends it, with that process's files; end when that does."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    request = json.loads(b"".join(pieces(connection, int(size))))
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (it is the process's)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])

    def end_with_the_client() -> None:
        connection.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_the_client, daemon=True).start()
    code: Any = 1
    try:
        main(request["words"])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        print(*([ended.code] if isinstance(ended.code, str) else []), end="\n" * (code == 1), file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(str(code).encode())
    os._exit(code)


def pieces(connection: socket.socket, size: int) -> Iterator[bytes]:
    """Yield what comes until it is ``size`` bytes."""
    while size > 0:
        piece = connection.recv(size)
        size -= len(piece)
        yield piece


if __name__ == "__main__":
    serve(sys.argv[1])
