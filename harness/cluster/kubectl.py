"""Run kubectl (or oc), and turn what it complains of into one line."""

import contextlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from harness import Json, settings
from harness.meshes.mesh import MeshError

RETRIES = 30
"""How often in a row a log may break off within 10 seconds."""

AGAIN = 20.0
"""For how many seconds an API server that has answered before is asked again, if it is away."""

AWAY = re.compile(
    "connection to the server|connection refused|connection reset|connection lost|Unable to connect|EOF|"
    "TLS handshake timeout|i/o timeout|leader changed|apiserver not ready|currently unable to handle"
)
"""How kubectl words that the API server is away."""

_answered: set[str] = set()
"""The contexts whose API servers have answered."""

REFUSAL = re.compile(
    r'User "([^"]+)" cannot (\S+) resource "([^"]+)" in API group "([^"]*)"(?: in the namespace "([^"]+)")?'
)
"""How the API server words that RBAC forbids something."""


class ForbiddenError(MeshError):
    """This user lacks a right, which the message names."""

    def __init__(self, user: str, verb: str, resource: str, group: str, namespace: str | None) -> None:
        kind = f"{resource}.{group}" if group else resource
        where = f"in namespace {namespace}" if namespace else "in the whole cluster"
        super().__init__(
            f"{user} may not {verb} {kind} {where}: whoever administers the cluster can give that right "
            "(docs/room.md), and NAMESPACE= names another namespace"
        )


@dataclass(frozen=True)
class Kubectl:
    """kubectl, held to one context: a context that is switched meanwhile must not redirect a command."""

    program: str
    context: str
    """Nothing in a pod without a kubeconfig."""
    namespace: str

    @classmethod
    def find(cls, namespace: str) -> "Kubectl":
        """Return the kubectl (or oc) of this machine, with its current context.

        In a pod it needs none: kubectl then asks the pod's own cluster, as the pod's ServiceAccount.

        :raises MeshError: there is none, or it has no context.
        """
        wanted = [name] if (name := settings.variable("KUBECTL")) else ["kubectl", "oc"]
        program = next((name for name in wanted if shutil.which(name)), None)
        if program is None:
            raise MeshError(f"{wanted[0]} is not installed: see https://kubernetes.io/docs/tasks/tools/")
        found = subprocess.run([program, "config", "current-context"], capture_output=True, text=True)
        context = "" if found.returncode else found.stdout.strip()
        if not context and not settings.in_pod():
            raise MeshError(
                f"{program} has no current context: start a cluster (minikube start, crc start), "
                f"or choose one ({program} config use-context NAME)"
            )
        return cls(program, context, namespace)

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs kubectl with ``words``."""
        context = [f"--context={self.context}"] if self.context else []
        return [self.program, *context, f"--namespace={self.namespace}", *words]

    def run(self, *words: str, given: str | None = None, timeout: float = 60) -> str:
        """Return what kubectl prints; ``given`` is its standard input.

        What only reads is tried again while the API server is away, if it has answered before.

        :raises ForbiddenError: this user lacks the right.
        :raises MeshError: it failed, or took longer than ``timeout`` seconds.
        """
        end = time.monotonic() + AGAIN
        while True:
            try:
                said = self._run(words, given, timeout)
            except MeshError as error:
                again = words[0] in ("get", "exec") and self.context in _answered and AWAY.search(str(error))
                if not again or time.monotonic() > end:
                    raise
                time.sleep(0.5)
                continue
            _answered.add(self.context)
            return said

    def _run(self, words: tuple[str, ...], given: str | None, timeout: float) -> str:
        try:
            done = subprocess.run(
                self.command(*words), input=given, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            raise MeshError(f"{self.program} {words[0]} did not answer in {timeout:g} s") from None
        if done.returncode:
            if refusal := REFUSAL.search(done.stderr):
                raise ForbiddenError(*refusal.groups())
            lines = [line for line in done.stderr.splitlines() if not line.startswith("command terminated")]
            complaint = lines[-1] if lines else "(it did not say why)"
            # What cannot be applied is quoted whole, in a patch of thousands of characters.
            said = re.sub(r'patch: Invalid value: "\{.*\}": ', "", complaint)
            raise MeshError(f"{self.program} {words[0]}: {said.removeprefix('error: ')}")
        return done.stdout

    def get(self, *words: str, given: str | None = None) -> Json:
        """Return what ``kubectl get`` finds, as JSON; an empty list where there is nothing."""
        said = self.run("get", *words, "--output=json", "--ignore-not-found", given=given)
        found: Json = json.loads(said or "{}")
        return found

    def items(self, *words: str, given: str | None = None) -> list[Json]:
        """Return the objects that ``kubectl get`` lists, or the one that it is asked for by name."""
        found = self.get(*words, given=given)
        return list(found.get("items", [found] if found else []))

    def readable(self, *words: str) -> list[Json] | None:
        """Return the objects that ``kubectl get`` lists; None if this user may not read them."""
        with contextlib.suppress(ForbiddenError):
            return self.items(*words)
        return None

    def start(self, *words: str, complaints: int = subprocess.DEVNULL) -> "subprocess.Popen[bytes]":
        """Start kubectl and let it run; its output can be read as it comes, ``complaints`` if wanted."""
        return subprocess.Popen(
            self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
        )


@cache
def api_versions(kubectl: Kubectl) -> list[str]:
    """Return the versions of APIs that the server has: ``networking.istio.io/v1``."""
    return kubectl.run("api-versions", "--request-timeout=10s").split()


def groups(kubectl: Kubectl) -> set[str]:
    """Return the API groups that the server has."""
    return {version.partition("/")[0] for version in api_versions(kubectl)}


EXTENSIONS = "trafficextensions.extensions.istio.io"


@cache
def has_extensions(kubectl: Kubectl) -> bool:
    """Say whether the server has Istio's TrafficExtensions: since 1.30. Their API group is older."""
    group = EXTENSIONS.partition(".")[2]
    if group not in groups(kubectl):
        return False
    return EXTENSIONS in kubectl.run("api-resources", f"--api-group={group}", "--output=name").split()


def must_have_extensions(kubectl: Kubectl) -> None:
    """Raise a MeshError unless the server has Istio's TrafficExtensions."""
    if not has_extensions(kubectl):
        raise MeshError(
            "this Istio has no TrafficExtension, which came with 1.30: status, size and time of answers "
            "are compared without it"
        )


def served(kubectl: Kubectl, kinds: Iterable[str]) -> list[str]:
    """Return those of kinds (``pods``, ``gateways.networking.istio.io``) that the server has."""

    def is_served(kind: str) -> bool:
        group = kind.partition(".")[2]
        return has_extensions(kubectl) if kind == EXTENSIONS else not group or group in groups(kubectl)

    return [kind for kind in kinds if is_served(kind)]


class ContainerLog:
    """What one container logs, as it comes. A stream that breaks off is opened again where it ended."""

    def __init__(self, kubectl: Kubectl, pod: str, container: str, *since: str, id: str = "") -> None:
        """Follow the log of a pod's container, from the start or from what ``since`` says to kubectl.

        :param id: the container's, if it is known already.
        :raises MeshError: the API server does not answer.
        """
        self._kubectl, self._pod, self._container = kubectl, pod, container
        self._closed = threading.Event()
        self._id = id or container_status(kubectl.get("pod", pod), container).get("containerID")
        self._process = self._open(*since)

    def _open(self, *since: str) -> "subprocess.Popen[bytes]":
        words = ["logs", "--follow", "--timestamps", self._pod, f"--container={self._container}", "--tail=-1"]
        return self._kubectl.start(*words, *since)

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait()

    def __iter__(self) -> Iterator[bytes]:
        last, count = b"", 0  # the time of the last line, and how many bore it: runtimes log in batches
        failures, runs = 0, True
        while True:
            opened, resumed, known = time.monotonic(), last, count
            assert self._process.stdout
            with self._process.stdout as lines:
                for line in lines:
                    if not line.endswith(b"\n"):
                        break  # cut off: it will come whole
                    stamp, _, text = line.partition(b" ")
                    if resumed and stamp <= resumed and (stamp < resumed or known):
                        known -= stamp == resumed
                        continue
                    last, count = stamp, count + 1 if stamp == last else 1
                    yield text
            self._end()
            failures = 0 if time.monotonic() - opened > 10 else failures + 1
            if self._closed.is_set() or not runs or failures > RETRIES:
                return
            with contextlib.suppress(MeshError):  # else another try
                status = container_status(self._kubectl.get("pod", self._pod), self._container)
                if status.get("containerID") != self._id:
                    return  # it is gone, or another one runs in its place
                runs = "running" in status.get("state", {})  # else a last look
            self._closed.wait(0.5)
            # Of that second all is sent again: the API server knows no fractions.
            self._process = self._open(*[f"--since-time={last.decode()}"] if last else [])
            if self._closed.is_set():
                self._end()

    def close(self) -> None:
        self._closed.set()
        self._end()


def container_status(pod: Json, container: str) -> Json:
    """Return the status of a pod's container, be it an init container or not; nothing if there is none."""
    status = pod.get("status", {})
    found = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return next((s for s in found if s["name"] == container), {})
