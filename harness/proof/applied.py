"""What is applied: which route rules a host, by which rules, and which subsets the host has."""

from operator import itemgetter

from harness import Json
from harness.manifests.values import covers, most_specific
from harness.meshes.scene import Scene, named
from harness.proof.rules import RouteRule, full_name, rule_of, rule_of_http_route

MESH, GATEWAY = "mesh", "gateway"

ROOT = "istio-system"
"""Istio's root namespace: what stands there without a selector holds everywhere."""


def serves_mesh(found: Json) -> bool:
    """Say whether sidecars take a VirtualService; they may take any HTTPRoute."""
    return "mesh" in (found["spec"].get("gateways") or ["mesh"])


def serves_gateways(found: Json) -> bool:
    """Say whether a gateway takes a VirtualService or an HTTPRoute."""
    if found["kind"] == "HTTPRoute":
        return any(p.get("kind", "Gateway") == "Gateway" for p in found["spec"].get("parentRefs") or [])
    return any(gateway != "mesh" for gateway in found["spec"].get("gateways") or [])


class Applied:
    """What a scene's objects say of routes; its functions are Istio's rules of who takes which."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.of_kind = scene, scene.of_kind

    def namespace_of(self, found: Json) -> str:
        return str(found["metadata"].get("namespace") or self.scene.namespace)

    def hosts_of(self, found: Json) -> list[str]:
        """Return the hosts of a VirtualService as Istio's registry has them."""
        home = self.namespace_of(found)
        return [full_name(host.lower(), home) for host in found["spec"].get("hosts") or []]

    def virtual_services(self) -> list[Json]:
        """Return the VirtualServices, the oldest first: of two for one host, Istio's sidecars take the older.

        https://istio.io/latest/docs/ops/best-practices/traffic-management/#split-virtual-services
        """
        return sorted(self.of_kind("VirtualService"), key=_age)

    def is_visible(self, found: Json, namespace: str) -> bool:
        """Say whether proxies of a namespace are told of an object: its ``exportTo``."""
        exported = found["spec"].get("exportTo") or ["*"]
        here = {"*", namespace} | ({"."} if self.namespace_of(found) == namespace else set())
        return not here.isdisjoint(exported)

    def ruling(self, host: str, namespace: str) -> list[Json]:
        """Return what routes a host for the sidecars of a namespace, the one that counts first.

        An HTTPRoute of the Service overrules VirtualServices; an exact host overrules a wildcard, and a
        longer one a shorter one.
        """
        of_service, matching = [], []
        for found in self.of_kind("HTTPRoute"):
            for parent in found["spec"].get("parentRefs") or []:
                where = parent.get("namespace") or self.namespace_of(found)
                if parent.get("kind") == "Service" and full_name(parent["name"], where) == host:
                    of_service.append(found)
        for found in self.virtual_services():
            wanted = [(name == host, len(name)) for name in self.hosts_of(found) if covers(name, host)]
            if wanted and serves_mesh(found) and self.is_visible(found, namespace):
                matching.append((max(wanted), found))
        matching.sort(key=itemgetter(0), reverse=True)  # of equals, the oldest stays first
        return [*of_service, *(found for _, found in matching)]

    def rules_of(self, found: Json, scope: str = "") -> list[RouteRule]:
        """Return the rules of a VirtualService or an HTTPRoute, in order.

        :param scope: whose proxies take them; sidecars, or else gateways, if it is not named.
        """
        scope = scope or (MESH if serves_mesh(found) else GATEWAY)
        read, field = (rule_of_http_route, "rules") if found["kind"] == "HTTPRoute" else (rule_of, "http")
        rules, namespace = enumerate(found["spec"].get(field) or []), self.namespace_of(found)
        return [read(namespace, found, i, rule, scope) for i, rule in rules if _is_for(rule, scope)]

    def destination_rules(self, host: str) -> list[Json]:
        """Return the DestinationRules for a host, the oldest first: its own, or the longest wildcard's."""
        rules = sorted(self.of_kind("DestinationRule"), key=_age)
        hosts = [full_name(rule["spec"].get("host", ""), self.namespace_of(rule)) for rule in rules]
        return most_specific(zip(hosts, rules, strict=True), host)

    def subsets_of(self, host: str) -> dict[str, tuple[str, Json]]:
        """Return the subsets that DestinationRules give a host, by name, each behind where it stands.

        Of two with one name, Istio takes the older rule's.
        """
        found: dict[str, tuple[str, Json]] = {}
        for rule in self.destination_rules(host):
            for i, subset in enumerate(rule["spec"].get("subsets") or []):
                found.setdefault(subset["name"], (f"{named(rule)} spec.subsets[{i}]", subset))
        return found


def _age(found: Json) -> tuple[str, str]:
    return str(found["metadata"].get("creationTimestamp") or ""), found["metadata"]["name"]


def _is_for(http: Json, scope: str) -> bool:
    """Say whether proxies of a scope take a rule: its matches may name gateways."""
    named = [match.get("gateways") for match in http.get("match") or [{}]]
    return any(not gateways or any((g == "mesh") == (scope == MESH) for g in gateways) for gateways in named)
