"""The harness is right about an application that nobody wrote for it: tests/foreign."""

import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from helpers import copy_project, free_port, run, wait_for

from harness.cluster.mesh import ClusterMesh
from harness.cluster.preflight import injection_label
from harness.manifests.read import documents
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT

FOREIGN = ROOT / "tests" / "foreign"
PRIMARY = {"destination": {"host": "pricing-primary"}}
CANARY = {"destination": {"host": "pricing-canary"}}
TARGET = ("--service", "pricing", "--namespace", "shop")


@dataclass
class Shop:
    """The foreign application on a local mesh, and commands about it as a user gives them."""

    checkout: Path
    port: int

    @property
    def url(self) -> str:
        """Where callers come in."""
        return f"http://127.0.0.1:{self.port}/quote/book"

    def run(self, *words: str, code: int = 0) -> str:
        """Return what a command prints; it must end with ``code``."""
        done = run(self.checkout, sys.executable, "-m", "harness", *words, NAMESPACE="shop")
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply objects."""
        path = self.checkout / "applied.yaml"
        path.write_text(yaml.safe_dump_all(documents))
        self.run("apply", str(path))

    def verify(self, *words: str, code: int = 0, size: int = 100) -> dict[str, Any]:
        """Return the verdict on traffic of the harness's own."""
        asked = ("verify", *TARGET, "--json", "--url", self.url, "--requests", str(size), *words)
        found: dict[str, Any] = json.loads(self.run(*asked, code=code))
        return found

    def watch(self, *words: str, code: int = 0) -> str:
        """Return what a watch prints."""
        return self.run("watch", *TARGET, *words, code=code)

    def ask(self, url: str, method: str = "GET", **headers: str) -> requests.Response:
        """Ask for something as storefront would: by its sidecar."""
        [pod] = (self.checkout / ".mesh" / "local" / "pods").glob("storefront-*")
        way = LocalMesh(pod.parent.parent).runtime.listener(pod.name, "outbound")
        proxies = {"http": f"http://{way.ip}:{way.port}"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.request(method, url, headers=named, proxies=proxies, timeout=30)


@contextmanager
def shoppers(ask: Callable[[int], requests.Response]) -> Iterator[list[int]]:
    """Yield a list to which each answer's status is added, while somebody asks on and on."""
    done = threading.Event()
    seen: list[int] = []

    def go_on() -> None:
        while not done.wait(0.05):
            seen.append(ask(len(seen)).status_code)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        wait_for(lambda: seen, "the first answer")
        yield seen
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Yield the shop, beside the workshop in namespace ``shop``."""
    shop = Shop(copy_project(tmp_path_factory.mktemp("foreign") / "checkout"), free_port())
    try:
        shop.run("up", "--port", str(shop.port))
        yield shop
    finally:
        shop.run("down")


@pytest.fixture
def shop(running: Shop) -> Shop:
    """Return the shop as its manifests say: mirrored to the canary."""
    running.run("apply", *(f"tests/foreign/{name}.yaml" for name in ("kubernetes", "gateway", "mirror")))
    return running


def canary(**changes: Any) -> dict[str, Any]:
    """Return the canary's Deployment with other labels or environment."""
    documents = yaml.safe_load_all((FOREIGN / "kubernetes.yaml").read_text())
    [found] = (d for d in documents if d["metadata"]["name"] == "pricing-canary" and "replicas" in d["spec"])
    template = found["spec"]["template"]
    environment = [{"name": n, "value": v} for n, v in changes.get("environment", {}).items()]
    template["spec"]["containers"][0]["env"] = environment
    template["metadata"]["labels"].update(changes.get("labels", {}))
    return dict(found)


def service(name: str, **selector: str) -> dict[str, Any]:
    """Return a Service."""
    ports = [{"name": "http", "port": 80, "targetPort": 9090}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": selector, "ports": ports}}  # fmt: skip


def rule(**http: Any) -> dict[str, Any]:
    """Return the VirtualService of pricing with one rule."""
    return {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "pricing"}, "spec": {"hosts": ["pricing"], "http": [http]}}  # fmt: skip


def states(verdict: dict[str, Any], state: str) -> list[str]:
    """Return the ids of the claims in a state."""
    return [claim["id"] for claim in verdict["claims"] if claim["state"] == state]


def claim(verdict: dict[str, Any], id: str) -> dict[str, Any]:
    """Return the claim with an id."""
    [found] = [claim for claim in verdict["claims"] if claim["id"] == id]
    return dict(found)


# --- verify -----------------------------------------------------------------------------------------------


def test_a_canary_that_names_no_version_gets_each_request_exactly_once(shop: Shop) -> None:
    verdict = shop.verify()
    assert verdict["verdict"] == "PASS"
    assert claim(verdict, "exactly-once")["figures"]["received"] == 100
    assert claim(verdict, "answered-by")["figures"] == {"leaks": 0, "pricing-primary": 100}


def test_a_stopped_canary_fails_exactly_once_alone(shop: Shop) -> None:
    shop.run("stop", "pricing-canary")
    verdict = shop.verify("--patience", "2", code=1)
    assert states(verdict, "fails") == ["exactly-once"]
    assert claim(verdict, "exactly-once")["figures"]["missing"] == 100


def test_a_canary_that_answers_500_fails_same_status_alone(shop: Shop) -> None:
    shop.apply(canary(environment={"STATUS": "500"}))
    verdict = shop.verify(code=1)
    assert states(verdict, "fails") == ["same-status"]
    assert claim(verdict, "answered")["figures"]["answered"] == 100


def test_a_canary_whose_answers_are_larger_fails_same_size_alone(shop: Shop) -> None:
    shop.apply(canary(environment={"CURRENCY": "Kronor"}))
    assert shop.verify()["verdict"] == "PASS"
    assert states(shop.verify("--same-size", code=1), "fails") == ["same-size"]


def test_a_canary_promoted_by_its_service_answers_all(shop: Shop) -> None:
    shop.apply(rule(route=[CANARY]))
    verdict = shop.verify()
    assert claim(verdict, "answered-by")["figures"] == {"leaks": 0, "pricing-canary": 100}
    assert claim(verdict, "silent")["statement"] == "pricing-primary received nothing"


def test_weights_between_services_are_judged(shop: Shop) -> None:
    shop.apply(rule(route=[{**PRIMARY, "weight": 80}, {**CANARY, "weight": 20}]))
    verdict = shop.verify(size=200)
    assert claim(verdict, "shares")["state"] == "holds"


def test_a_canary_that_nobody_mirrors_to_is_silent(shop: Shop) -> None:
    shop.apply(rule(route=[PRIMARY]))
    assert claim(shop.verify(), "silent")["statement"] == "pricing-canary received nothing"


def test_traffic_of_others_is_judged_along(shop: Shop) -> None:
    with shoppers(lambda n: requests.get(f"{shop.url}?by={n}", timeout=30)) as seen:
        verdict = shop.verify()
    assert verdict["verdict"] == "PASS"
    assert 100 < verdict["requests"] <= 100 + len(seen)
    assert claim(verdict, "exactly-once")["figures"]["received"] == verdict["requests"]


# --- what people write --------------------------------------------------------------------------------------


MATCHES: dict[str, dict[str, Any]] = {
    "user": {"headers": {"end-user": {"exact": "jason"}}},
    "cookie": {"headers": {"cookie": {"regex": "^(.*?;)?(user=jason)(;.*)?$"}}},
    "there": {"headers": {"X-Beta": {}}},
    "query": {"queryParams": {"sku": {"regex": "b[[:alpha:]]+"}}},
    "any-case": {"uri": {"prefix": "/V2"}, "ignoreUriCase": True},
    "path": {"uri": {"regex": "/v[0-9]/.*"}},
    "method": {"method": {"regex": "PUT|POST"}},
    "host": {"authority": {"prefix": "pricing.shop"}},
    "without": {"withoutHeaders": {"x-team": {"exact": "blue"}, "x-none": {"regex": "*"}}},
}


def test_a_rule_takes_the_requests_that_match(shop: Shop) -> None:
    rules = [{"match": [m], "name": n, "route": [PRIMARY], "headers": took(n)} for n, m in MATCHES.items()]
    rest = {"name": "rest", "route": [PRIMARY], "headers": took("rest")}
    spec = {"hosts": ["PRICING.shop.svc.cluster.local"], "http": [*rules, rest]}
    shop.apply({**rule(), "apiVersion": "networking.istio.io/v1beta1", "spec": spec})

    def rule_of(path: str = "/", host: str = "pricing", **request: str) -> str:
        return shop.ask(f"http://{host}{path}", **request).headers["x-took"]

    assert rule_of(end_user="jason") == "user"
    assert rule_of(cookie="a=b;user=jason") == "cookie"
    assert rule_of(x_beta="") == "there"
    assert rule_of("/?sku=book") == "query"
    assert rule_of("/v2/quote") == "any-case"
    assert rule_of("/v1/quote") == "path"
    assert rule_of(method="POST") == "method"
    assert rule_of(host="pricing.shop.svc.cluster.local") == "host"
    assert rule_of("/v/quote?sku=pen", end_user="Jason", cookie="user=jasons", x_team="red") == "without"
    assert rule_of(x_team="blue") == rule_of(x_none="any") == "rest"


def took(name: str) -> dict[str, Any]:
    """Return what tells callers which rule a request took."""
    return {"response": {"set": {"x-took": name}}}


def test_headers_are_set_added_and_removed_for_original_and_copy(shop: Shop) -> None:
    seen = {"x-price": "%UPSTREAM_CLUSTER_RAW%"}
    headers = {"response": {"set": seen, "add": {"x-by": "mesh"}, "remove": ["server"]}}
    shop.apply(rule(name="marked", route=[PRIMARY], mirror=CANARY["destination"], headers=headers))
    answer = shop.ask("http://pricing/")
    assert "pricing-primary" in answer.headers["x-price"]
    assert answer.headers["x-by"] == "mesh"
    assert shop.verify()["verdict"] == "PASS"


def test_faults_without_a_percentage_are_none(shop: Shop) -> None:
    fault = {"abort": {"httpStatus": 418}, "delay": {"fixedDelay": "90s"}}
    shop.apply(rule(name="mirror", route=[PRIMARY], mirror=CANARY["destination"], fault=fault))
    assert shop.verify()["verdict"] == "PASS"


def test_on_a_port_that_is_not_http_nothing_is_routed_and_it_is_said_everywhere(shop: Shop) -> None:
    pricing = service("pricing", component="pricing")
    pricing["spec"]["ports"][0]["name"] = "tcp-quotes"
    path = shop.checkout / "tcp.yaml"
    path.write_text(yaml.safe_dump(pricing))
    said = " ".join(shop.run("apply", str(path)).split())
    assert "warning: service/pricing spec.ports[0].name: Istio takes this port for tcp" in said
    said = "Istio takes the port of service/pricing for tcp, not for HTTP: no route counts there"
    assert said in " ".join(shop.run("status", *TARGET).split())
    verdict = shop.verify(code=2)
    assert said in claim(verdict, "understood")["detail"]
    assert "name the port http, http2 or grpc" in verdict["findings"][0]


def test_a_destination_on_another_port_than_callers_ask_for_leads_nowhere_as_on_istio(shop: Shop) -> None:
    primary = service("pricing-primary", component="pricing", track="stable")
    primary["spec"]["ports"][0]["port"] = 8080
    path = shop.checkout / "port.yaml"
    path.write_text(yaml.safe_dump(primary))
    said = " ".join(shop.run("apply", str(path)).split())
    assert "Service 'pricing-primary' has no port 80, by which callers ask, so this leads nowhere" in said
    verdict = shop.verify(code=1)
    assert "answered" in states(verdict, "fails")
    assert any("Service 'pricing-primary' has no port 80" in finding for finding in verdict["findings"])


def test_a_websocket_passes_the_gateway_and_the_sidecar(shop: Shop) -> None:
    with socket.create_connection(("127.0.0.1", shop.port), timeout=30) as caller:
        asked = "GET /quote/book HTTP/1.1\r\nhost: shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        caller.sendall(asked.encode() + b"hello")
        answer = caller.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert answer.endswith(b"\r\n\r\nhello")


# --- watch ------------------------------------------------------------------------------------------------


def test_a_watch_counts_the_traffic_that_flows(shop: Shop) -> None:
    with shoppers(lambda n: requests.get(f"{shop.url}?by={n}", timeout=30)) as seen:
        before = len(seen)
        verdict = json.loads(shop.watch("--for", "3s", "--json").splitlines()[-1])
    assert set(seen) == {200}
    assert verdict["verdict"] == "PASS"
    assert 0 < verdict["requests"] <= len(seen) - before
    assert claim(verdict, "exactly-once")["figures"]["received"] == verdict["requests"]


def test_a_watch_ends_at_the_first_leak_and_tells_its_story(shop: Shop) -> None:
    # Who wrote this Service forgot the track: the canary's pod stands behind it, too.
    shop.apply(service("pricing-primary", component="pricing"))
    with shoppers(lambda n: requests.get(f"{shop.url}?by={n}", timeout=30)):
        said = shop.watch("--until-failure", "--for", "60s", code=1)
    assert "FAIL answered-by: callers saw only pricing-primary" in said
    assert "pricing-canary got" in said
    assert "GET /v2/quote?sku=book&by=" in said


def test_callers_who_ask_the_canary_itself_are_a_leak(shop: Shop) -> None:
    with shoppers(lambda n: shop.ask(f"http://pricing-canary/v2/quote?sku=pen&n={n}")):
        verdict = shop.verify(code=1)
    assert states(verdict, "fails") == ["answered-by"]
    assert "callers asked pricing-canary itself" in verdict["claims"][-2]["detail"]


def test_callers_who_ask_the_primary_itself_are_nobodys_affair(shop: Shop) -> None:
    with shoppers(lambda n: shop.ask(f"http://pricing-primary/v2/quote?sku=pen&n={n}")):
        verdict = shop.verify()
    assert verdict["verdict"] == "PASS"
    assert verdict["requests"] == 100


# --- trace and status -------------------------------------------------------------------------------------


def test_a_request_id_tells_the_whole_story(shop: Shop) -> None:
    shop.ask("http://pricing/v2/quote?sku=once")
    [line] = wait_for(lambda: logged(shop, "pricing-canary", "sku=once"), "the copy")
    story = shop.run("trace", *TARGET, line.split('"')[9])
    first, *others = [pod.rsplit("-", 2)[0] for pod in re.findall(r"(\S+) (?:sent|got) ", story)]
    assert first == "storefront"
    assert set(others) == {"pricing-primary", "pricing-canary"}
    assert story.endswith("as it must be\n")


def logged(shop: Shop, workload: str, text: str) -> list[str]:
    """Return the lines of a workload's access logs that hold a text."""
    logs = (shop.checkout / ".mesh" / "local" / "pods").glob(f"{workload}-*/access.log")
    return [line for log in logs for line in log.read_text().splitlines() if text in line]


def test_a_status_names_the_versions_by_their_workloads(shop: Shop) -> None:
    said = shop.run("status", *TARGET)
    assert "virtualservice/pricing: all to pricing-primary; mirrored 100 % to pricing-canary" in said
    assert said.count("pricing-primary-") == 2


# --- on a cluster: pytest --mesh cluster tests/test_foreign.py, with REGISTRY set -------------------------

NAMESPACE = "dark-launch-foreign"


@pytest.fixture(scope="module")
def a_cluster() -> Iterator[ClusterMesh]:
    """Yield the cluster, on which the shop runs with shoppers of its own: the canary as a StatefulSet."""
    mesh = ClusterMesh(namespace=NAMESPACE)
    installation = mesh.installation
    installation.images.bring("tests-foreign")
    label, _, value = injection_label(installation.facts()).partition("=")
    metadata = {"name": NAMESPACE, "labels": {label: value}}
    installation.create([{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}])
    try:
        files = [FOREIGN / "kubernetes.yaml", FOREIGN / "mirror.yaml"]
        logs = ROOT / "istio" / "cluster" / "telemetry.yaml"
        written = [d for path in (logs, *files) for _, d in documents(path)]
        installation.create(foreign(installation.render(written)))
        for workload in ("deployment/pricing-primary", "statefulset/pricing-canary", "deployment/shoppers"):
            mesh.kubectl.run("rollout", "status", workload, "--timeout=90s", timeout=100)
        yield mesh
    finally:
        mesh.kubectl.run("delete", "namespace", NAMESPACE, "--wait=true", timeout=120)
        mesh.close()


def foreign(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the shop's documents as strangers write them, with shoppers that call from inside the mesh."""
    [storefront] = (d for d in documents if d["kind"] == "Deployment" and "store" in d["metadata"]["name"])
    shoppers = json.loads(json.dumps(storefront).replace("storefront", "shoppers"))
    container = shoppers["spec"]["template"]["spec"]["containers"][0]
    container["command"][-1] = "shopper"
    del container["readinessProbe"], container["livenessProbe"], container["ports"]
    shoppers["spec"]["template"]["spec"]["serviceAccountName"] = "storefront"
    for document in documents:
        document["metadata"].pop("labels")
        if document["kind"] == "Deployment" and document["metadata"]["name"] == "pricing-canary":
            document["kind"] = "StatefulSet"
            document["spec"]["serviceName"] = "pricing-canary"
    return [*documents, shoppers]


def watch_on_cluster() -> dict[str, Any]:
    """Return the verdict of a watch on the cluster."""
    asked = ("watch", "--mesh", "cluster", "--service", "pricing", "--namespace", NAMESPACE, "--json")
    done = run(ROOT, sys.executable, "-m", "harness", *asked, "--for", "5s", "--patience", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.only_on_cluster
def test_on_a_cluster_a_mirror_is_proven_from_the_proxies_alone(a_cluster: ClusterMesh) -> None:
    verdict = watch_on_cluster()
    assert verdict["requests"] > 10
    assert claim(verdict, "exactly-once")["figures"]["received"] == verdict["requests"]


@pytest.mark.only_on_cluster
def test_on_a_cluster_an_http_route_is_judged_like_a_virtual_service(a_cluster: ClusterMesh) -> None:
    canary = {"name": "pricing-canary", "port": 80}
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": canary}}
    rule = {"backendRefs": [{"name": "pricing-primary", "port": 80}], "filters": [mirror]}
    parent = {"group": "", "kind": "Service", "name": "pricing", "port": 80}
    route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
             "metadata": {"name": "pricing"}, "spec": {"parentRefs": [parent], "rules": [rule]}}  # fmt: skip
    a_cluster.installation.create([route])
    a_cluster.kubectl.run("delete", "virtualservice", "pricing")
    wait_for(lambda: "-dark-launch-foreign.pricing.0" in caller_log(a_cluster), "the route")
    verdict = watch_on_cluster()
    assert claim(verdict, "exactly-once")["figures"]["received"] == verdict["requests"] > 10


def caller_log(a_cluster: ClusterMesh) -> str:
    """Return the last lines of storefront's proxy, without blanks."""
    words = ("logs", "deployment/storefront", "--container=istio-proxy", "--tail=4")
    return a_cluster.kubectl.run(*words).replace(" ", "")
