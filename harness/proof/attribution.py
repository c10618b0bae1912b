"""Attribution: what a line of a proxy's log says of the target: who asked, by which rule, and who got it."""

from harness.meshes.scene import Pod
from harness.proof.applied import GATEWAY, MESH, serves_mesh
from harness.proof.rules import DOMAIN, Destination
from harness.proof.story import BESIDE, DIRECT, UNCOUNTED, UNKNOWN, Call
from harness.proof.target import Routing
from harness.rendering.accesslog import Hop

# A caller's proxy that answers so has handed the request to nobody, and sent no copy of it.
_NOBODY = {"UH", "NR", "NC", "FI", "RL", "UAEX", "DC"}

KINDS = 10_000
"""How many kinds of calls are remembered; callers choose the hosts in them, so there may be any number."""


class Attribution:
    """Tells hops by what is applied and runs."""

    def __init__(self, routing: Routing, edges: dict[tuple[str, str], None] | None = None) -> None:
        """Tell hops; ``edges`` gets which workload was seen to call which host."""
        self._routing, self._edges = routing, {} if edges is None else edges
        self._calls: dict[tuple[str | int, ...], Call | None] = {}
        """What calls of one kind say; None: they are to others."""
        hosts = {destination.host for destination in routing.destinations}
        ports = [port for host in hosts for port in routing.backends.ports_of(host)]
        inbound = [str(port.get("targetPort") or port["port"]) for port in ports]
        self._version_at: dict[str, str] = {}
        """Address (``10.0.0.1``, or ``127.0.0.1:8080``) → the version whose pod has it."""
        self._inbound: dict[str, set[str]] = {}
        """Pod → its ports that are the target's; none: it is not known which it has."""
        for name, version in routing.version_of_pod.items():
            pod = routing.pods[name]
            self._version_at |= dict.fromkeys(pod.addresses, version)
            self._inbound[name] = {str(pod.ports.get(port, port)) for port in inbound if pod.ports}

    def version_that_got(self, pod: str, hop: Hop) -> str | None:
        """Return the version at whose proxy a request to the target arrived; None if it is another's."""
        ports = self._inbound.get(pod)
        if ports is None or (ports and hop.cluster.split("|", 2)[1] not in ports):
            return None
        return self._routing.version_of_pod[pod]

    def call_of(self, pod: str, hop: Hop) -> Call | None:
        """Return what a hop at a caller's proxy says of a request to the target; None if it is to others."""
        kind = pod, hop.authority, hop.cluster, hop.upstream, hop.route, hop.status, hop.flags, hop.details
        if kind not in self._calls:
            if len(self._calls) >= KINDS:
                self._calls.clear()
            self._calls[kind] = self._new_call(pod, hop)
        return self._calls[kind]

    def _new_call(self, pod: str, hop: Hop) -> Call | None:
        caller = self._routing.pods.get(pod)
        if caller is None:
            return None
        if "|" in hop.cluster:
            self._edges[caller.workload, hop.cluster.rpartition("|")[2]] = None
        version = self.version_of_call(hop)
        if self.is_for_target(caller, hop):
            place = self.rule_of(hop, GATEWAY if caller.gateway else MESH)
            rule = UNKNOWN if place is None else place
        elif version is None:
            return None
        elif not self._routing.target.counts(caller):
            rule = UNCOUNTED
        else:
            rule = DIRECT if self._routing.is_dark(version) else BESIDE
        routed = hop.upstream != "-"
        copied = routed or _NOBODY.isdisjoint(hop.flags.split(","))
        return Call(rule, version, hop.status, hop.answered, routed, copied)

    def is_for_target(self, caller: Pod, hop: Hop) -> bool:
        """Say whether a caller's request asked for the target, and the caller counts."""
        if not self._routing.target.counts(caller):
            return False
        host = hop.cluster.rpartition("|")[2]
        if caller.gateway:
            return host in self._routing.gateway_hosts
        asked = hop.authority.rpartition(":")[0] if ":" in hop.authority else hop.authority
        if asked.lower().rstrip(".") in self._names_for(caller.namespace):
            return True
        # A rule may have rewritten the authority, but then it has a name of its own.
        return (MESH, hop.route) in self._routing.called and host in self._routing.hosts

    def _names_for(self, namespace: str) -> set[str]:
        """Return the hosts by which callers of a namespace ask for the target, without a port.

        What a VirtualService of the target's names beside it takes the same rules.
        """
        routing = self._routing
        spec = routing.services[routing.host].get("spec", {})
        names = {*(spec.get("clusterIPs") or []), spec.get("clusterIP") or ""} - {"", "None"}
        taken = [found for found in routing.sources if serves_mesh(found)]
        for host in (routing.host, *(host for found in taken for host in routing.applied.hosts_of(found))):
            names.add(host)
            short = host.removesuffix(f".{DOMAIN}")
            if short != host:
                names |= {short, f"{short}.svc", short.removesuffix(f".{namespace}")}
        return names

    def rule_of(self, hop: Hop, scope: str) -> int | None:
        """Return the place of the rule that a call took, by the route's name; None: it cannot be told."""
        called, rules = self._routing.called, self._routing.rules
        nameless = hop.route in ("-", "default") and (scope, hop.route) not in called
        places = called.get((scope, "" if nameless else hop.route), [])
        return places[0] if len({rules[place] for place in places}) == 1 else None

    def version_of_call(self, hop: Hop) -> str | None:
        """Return the version whose pod got a call: by its address, or by a cluster with one version."""
        if hop.upstream == "-":
            return None
        # Some proxies name a pod by its address alone, others by address and port.
        known = self._version_at.get(hop.upstream) or self._version_at.get(hop.upstream.rpartition(":")[0])
        if known or hop.cluster.count("|") != 3:
            return known
        _, port, subset, host = hop.cluster.split("|")
        exact = Destination(host, subset, int(port) if port.isdecimal() else 0)
        destinations = self._routing.destinations
        behind = destinations.get(exact) or destinations.get(Destination(host, subset)) or ()
        return behind[0] if len(behind) == 1 else None
