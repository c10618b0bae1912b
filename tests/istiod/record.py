"""Record what istiod sends to the workshop's proxies for each manifest, beside what it sends at the start.

Run it in a clone whose workshop is deployed (``make deploy``), with kubectl and istioctl on the PATH:

    .venv/bin/python tests/istiod/record.py              # all, in some five minutes
    .venv/bin/python tests/istiod/record.py mirror       # some, beside what is recorded already
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from istiod.shape import MANIFESTS, STATE, plain  # noqa: E402

NAMESPACE = "tutorial"


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def kubectl(*words: str) -> str:
    return run("kubectl", "-n", NAMESPACE, *words)


def pod(namespace: str, labels: str) -> str:
    found = json.loads(run("kubectl", "-n", namespace, "get", "pods", "-l", labels, "-o", "json"))["items"]
    return f"{found[0]['metadata']['name']}.{namespace}"


def configuration(what: str, name: str) -> Any:
    return json.loads(run("istioctl", "proxy-config", what, name, "-o", "json"))


def snapshot() -> dict[str, Any]:
    """Return what preference's sidecar and the gateway have now, when it has not changed for a moment."""
    sidecar, gateway = pod(NAMESPACE, "app=preference"), pod("istio-system", "istio=ingressgateway")
    before = None
    while True:
        time.sleep(1.5)
        found = plain(
            configuration("routes", sidecar), configuration("routes", gateway),
            configuration("clusters", sidecar),
        )  # fmt: skip
        if found == before:
            return found
        before = found


def main() -> None:
    for path in STATE:
        kubectl("apply", "-f", str(path))
    base = snapshot()
    version = run("istioctl", "version", "--remote=true", "--output=json")
    istiod = json.loads(version)["meshVersion"][0]["Info"]["version"]
    names = sys.argv[1:] or [path.stem for path in MANIFESTS]
    known = json.loads((HERE / "recorded.json").read_text())["manifests"] if sys.argv[1:] else {}
    recorded: dict[str, Any] = {"istiod": istiod, "start": base, "manifests": known}
    for path in [path for path in MANIFESTS if path.stem in names]:
        kubectl("apply", "-f", str(path))
        found = snapshot()
        changed = {
            part: {k: v for k, v in found[part].items() if base[part].get(k) != v}
            | {k: None for k in base[part] if k not in found[part]}
            for part in base
        }
        recorded["manifests"][path.stem] = changed
        print(path.stem, {part: sorted(names) for part, names in changed.items()})
        kubectl("delete", "--ignore-not-found", "-f", str(path))
        for state in STATE:
            kubectl("apply", "-f", str(state))
        snapshot()  # a whole second must lie between objects, to tell which is older
    lines = [f"{json.dumps(name)}: {dump(changed)}" for name, changed in recorded.pop("manifests").items()]
    parts = [f"{json.dumps(name)}: {dump(value)}" for name, value in recorded.items()]
    text = ",\n".join([*parts, '"manifests": {\n' + ",\n".join(lines) + "\n}"])
    (HERE / "recorded.json").write_text("{\n" + text + "\n}\n")


def dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


if __name__ == "__main__":
    main()
