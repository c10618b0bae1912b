"""What the applied routes promise: who answers a request, and who gets a copy."""

from collections.abc import Iterable
from dataclasses import dataclass

from harness import HarnessError
from harness.manifests.base import Object
from harness.manifests.istio import Destination, HTTPMatchRequest, HTTPRoute, VirtualService
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import find_service, of_kind, short_host, subsets

HOST = "recommendation"
"""The Service whose versions are compared."""


# Headers of which the harness cannot tell what a sidecar will see.
_SET_BY_PROXIES = (
    "x-request-id", "x-forwarded-", "x-envoy-", "host", "connection", "content-length", "transfer-encoding",
    "accept-encoding",
)  # fmt: skip


@dataclass(frozen=True)
class Expectation:
    """What must happen to a request.

    :param answers: (version, share) of those that answer callers; the share (0 to 1) is None where no
        route sets it.
    :param copies: (version, percentages of its mirrors) of those that get copies.
    """

    answers: tuple[tuple[str, float | None], ...]
    copies: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def describe(self) -> str:
        """Return it in words."""
        names = [version for version, _ in self.answers]
        if not names:
            return "to nobody (404)"
        words = f"all to {names[0]}" if len(names) == 1 else f"to {' and '.join(names)}"
        if len(names) > 1 and None not in dict(self.answers).values():
            words = ", ".join(f"{100 * (share or 0):g} % to {version}" for version, share in self.answers)
        mirrors = [f"mirrored {percent:g} % to {v}" for v, many in self.copies for percent in many]
        return "; ".join([words, *mirrors])


def versions(objects: Iterable[Object]) -> dict[str, str]:
    """Return the workloads behind the Service: workload → its label ``version``."""
    objects = list(objects)
    service = find_service(objects, HOST)
    selector = service.spec.selector if service else {"app": HOST}
    return {
        d.metadata.name: d.labels.get("version", d.metadata.name)
        for d in of_kind(objects, Deployment)
        if selector.items() <= d.labels.items()
    }


Rule = tuple[list[HTTPMatchRequest], Expectation]


def promises(objects: Iterable[Object]) -> list[Rule]:
    """Return what the routes among ``objects`` promise for the Service: (matches, Expectation), in order."""
    objects = list(objects)
    for virtual_service in of_kind(objects, VirtualService):
        spec = virtual_service.spec
        if "mesh" in spec.gateways and HOST in map(short_host, spec.hosts):
            return [(route.match, _promise(objects, route)) for route in spec.http]
    everyone = _behind(objects, Destination(host=HOST))
    return [([], Expectation(answers=tuple((version, None) for version in everyone)))]


def promise_for(rules: Iterable[Rule], method: str, path: str, headers: dict[str, str]) -> Expectation:
    """Return what must happen to a request; one that no rule matches is answered by nobody (404).

    :raises HarnessError: that cannot be told.
    """
    for matches, expectation in rules:
        if not matches or any(_matches(m, method, path, headers) for m in matches):
            return expectation
    return Expectation(answers=())


def _matches(match: HTTPMatchRequest, method: str, path: str, headers: dict[str, str]) -> bool:
    if match.uri and not match.uri.matches(path.partition("?")[0]):
        return False
    if match.method and not match.method.matches(method):
        return False
    for name, wanted in match.headers.items():
        if name.startswith(_SET_BY_PROXIES):
            raise HarnessError(
                f"a route matches header '{name}', which proxies set: its requests cannot be judged"
            )
        if name not in headers or not wanted.matches(headers[name]):
            return False
    return True


def _promise(objects: list[Object], route: HTTPRoute) -> Expectation:
    answers: dict[str, float | None] = {}
    for destination, share in route.shares():
        behind = _behind(objects, destination)
        for version in behind:
            known = answers.get(version, 0.0)
            answers[version] = known + share if len(behind) == 1 and known is not None else None
    copies: dict[str, tuple[float, ...]] = {}
    for destination, percent in route.copies():
        behind = _behind(objects, destination)
        if len(behind) > 1:
            raise HarnessError(
                f"a mirror without a subset reaches {' and '.join(behind)} by chance: name a subset"
            )
        for version in behind:
            copies[version] = (*copies.get(version, ()), percent)
    return Expectation(answers=tuple(answers.items()), copies=tuple(copies.items()))


def _behind(objects: list[Object], destination: Destination) -> list[str]:
    """Return the versions that stand behind a destination."""
    if short_host(destination.host) != HOST:
        return []
    labels = subsets(objects, HOST)[destination.subset].labels if destination.subset else {}
    names = versions(objects)
    found = [
        names[d.metadata.name]
        for d in of_kind(objects, Deployment)
        if d.metadata.name in names and labels.items() <= d.labels.items()
    ]
    return list(dict.fromkeys(found))
