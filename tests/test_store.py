"""What the versions write: the steps of the lesson, and each claim on it where it is false, on every mesh."""

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from helpers import kill, wait_for

from harness.cluster.mesh import ClusterMesh
from harness.meshes.containers import ContainerMesh
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import ROOT, Mesh, MeshError
from harness.proof import counting, doctor, store_claims
from harness.proof.evidence import Claim
from harness.proof.report import table
from harness.proof.target import Target
from harness.proof.traffic import new_run
from harness.proof.verdict import Verdict
from harness.proof.watch import Watch, verify

OWN = ROOT / "recommendation" / "kubernetes.yaml"


def state(name: str) -> Path:
    return ROOT / "istio" / f"{name}.yaml"


def setting(name: str) -> Path:
    return ROOT / "recommendation" / "settings" / f"{name}.yaml"


def broken(verdict: Verdict) -> list[str]:
    """Return the ids of the claims that do not hold."""
    return [*verdict.failed(), *verdict.unproven()]


def told(mesh: Mesh) -> str:
    """Return what the doctor finds."""
    return "\n".join(map(str, doctor.examine(mesh, Target())))


class Shop:
    """Callers of a mesh, who write feedback on an item that nobody else writes on."""

    def __init__(self, mesh: Mesh) -> None:
        self._url = mesh.url()
        self.item = f"item-{new_run()}"

    def post(self, size: int = 5) -> requests.Response:
        return requests.post(self._url, data=b"x" * size, params={"item": self.item}, timeout=15)

    def read(self) -> requests.Response:
        return requests.get(self._url, params={"item": self.item}, timeout=15)

    def feedback(self) -> int:
        """Return how often there was feedback on the item."""
        answer = requests.get(
            self._url, params={"item": self.item}, headers={"accept": "application/json"}, timeout=15
        )
        return int(answer.json()["upstream"]["upstream"]["feedback"])


# --- the store --------------------------------------------------------------------------------------------


def test_what_callers_post_is_counted_in_answers_whatever_hears_it_in_the_dark(mesh: Mesh) -> None:
    mesh.apply(state("mirror"))
    shop = Shop(mesh)
    assert shop.read().text.endswith(", feedback: 0\n")
    for _ in range(3):
        assert shop.post().text.endswith(", 5 bytes received\n")
    assert shop.feedback() == 3
    assert requests.put(mesh.url(), data=b"x", params={"item": shop.item}, timeout=15).ok
    assert shop.feedback() == 3, "only a POST is kept"


@pytest.mark.not_on_cluster
def test_what_no_database_keeps_is_refused(mesh: Mesh) -> None:
    for item in ("a\0b", "x" * 201):
        answer = requests.post(mesh.url(), params={"item": item}, data=b"x", timeout=15)
        assert answer.status_code == 400
        assert answer.text == "customer => preference => 400 recommendation: 400 Bad Request\n"


@pytest.mark.not_on_cluster
def test_several_pods_make_the_table_at_once(mesh: Mesh) -> None:
    mesh.scale("recommendation-v1", 0)
    drop(mesh)
    mesh.scale("recommendation-v1", 4)
    shop = Shop(mesh)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: shop.post(), range(16)))
    assert [answer.status_code for answer in answers] == [200] * 16
    assert shop.feedback() == 16


def drop(mesh: Mesh) -> None:
    """Remove v1's table."""
    with as_owner(mesh, "DROP TABLE IF EXISTS feedback"):
        pass


@contextlib.contextmanager
def as_owner(mesh: Mesh, sql: str) -> Iterator[None]:
    """Run a statement on v1's database, in a transaction that is open meanwhile."""
    if isinstance(mesh, LocalMesh):
        with contextlib.closing(sqlite3.connect(mesh.state / "store" / "live.db", timeout=10)) as database:
            database.isolation_level = None
            database.execute("BEGIN EXCLUSIVE")
            database.execute(sql)
            yield
            database.execute("COMMIT")
        return
    assert isinstance(mesh, ContainerMesh)
    [store] = [each for pod, _, each in mesh.runtime.containers() if pod.startswith("store-")]
    code, output = store.exec_run(["psql", "--username=postgres", "--dbname=live", f"--command={sql}"])
    assert code == 0, output
    yield


def test_a_store_that_is_down_is_one_line_with_503_and_comes_back(mesh: Mesh) -> None:
    shop = Shop(mesh)
    assert shop.post().ok
    line = "customer => preference => 503 recommendation: 503 the store does not answer\n"
    with stopped(mesh):
        for answer in (shop.post(), shop.post()):
            assert (answer.status_code, answer.text) == (503, line)
        assert shop.read().status_code == (200 if isinstance(mesh, LocalMesh) else 503)
        assert requests.get(mesh.url(), timeout=15).ok, "who names no item needs no store"
    wait_for(lambda: shop.post().ok, "the store")


@contextlib.contextmanager
def stopped(mesh: Mesh) -> Iterator[None]:
    """Keep v1's database from answering."""
    if isinstance(mesh, LocalMesh):
        with as_owner(mesh, "CREATE TABLE IF NOT EXISTS lock (id)"):
            yield
    else:
        mesh.scale("store", 0)
        yield
        mesh.scale("store", 1)


@pytest.mark.not_on_cluster
def test_a_store_that_hangs_is_one_line_with_503(mesh: Mesh) -> None:
    if not isinstance(mesh, ContainerMesh):
        pytest.skip("only an engine can freeze a pod")
    shop = Shop(mesh)
    assert shop.post().ok
    [store] = [each for pod, _, each in mesh.runtime.containers() if pod.startswith("store-")]
    store.pause()
    try:
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: shop.post(), range(20)))
    finally:
        store.unpause()
    assert {answer.status_code for answer in answers} == {503}
    wait_for(lambda: shop.post().ok, "the store")


@pytest.mark.not_on_cluster  # when its kubelet starts the store anew is not known
def test_what_callers_were_told_is_stored_is_stored_though_the_store_is_killed(mesh: Mesh) -> None:
    if not isinstance(mesh, ContainerMesh):
        pytest.skip("SQLite is no process of its own")
    mesh.apply(state("mirror"))
    crashed = threading.Timer(1.0, crash, [mesh])
    crashed.start()
    verdict = verify(mesh, Target(), 1000, concurrency=4)
    crashed.join()
    assert "store-read" not in broken(verdict), table(verdict)
    stored = verdict.claim("stored")
    assert stored.holds, table(verdict)
    assert stored.figures["writes"] > 100


def crash(mesh: ContainerMesh) -> None:
    """Kill PostgreSQL, and have it started again."""
    kill(mesh, "store")
    mesh.up()


def test_roles_keep_to_their_databases(mesh: Mesh) -> None:
    if isinstance(mesh, LocalMesh):
        pytest.skip("SQLite has no roles")
    with pytest.raises(MeshError, match="read-only"):
        mesh.query("store", "live", "DELETE FROM feedback")
    connect = "postgresql://shadow:shadow-workshop-only@127.0.0.1/live"
    with pytest.raises(MeshError, match=r'permission denied for database "live"|CONNECT privilege'):
        mesh.query("store", connect, "SELECT 1")


@pytest.mark.only_on_cluster
@pytest.mark.of_any_mesh
def test_on_a_cluster_the_network_keeps_others_from_the_store_and_v2_from_others(mesh: ClusterMesh) -> None:
    def python(workload: str, code: str) -> str:
        words = ("exec", f"deployment/{workload}", "--", "python3", "-c", code)
        return mesh.kubectl.run(*words).strip()

    # What PostgreSQL answers to who asks for TLS: no, in plain text.
    ask = (
        "import socket; s = socket.create_connection(('store', 5432), 5); s.settimeout(5);"
        "s.sendall(bytes([0, 0, 0, 8, 4, 210, 22, 47])); print(s.recv(1))"
    )
    assert python("recommendation-v1", ask) == python("recommendation-v2", ask) == "b'N'"
    assert python("customer", ask) == "b''"
    call = (
        "import urllib.request as r, urllib.error as e\n"
        "try: print(r.urlopen('http://customer:8080/', timeout=5).status)\n"
        "except e.HTTPError as error: print(error.code)\n"
        "except ConnectionResetError: print('reset')"
    )
    assert python("recommendation-v2", call) == "reset"
    assert python("preference", call) == "403", "it reaches customer, whose own policy refuses it"


# --- the lesson -------------------------------------------------------------------------------------------


def test_the_damage_callers_see_feedback_doubled_and_the_verdict_says_by_whom(mesh: Mesh) -> None:
    mesh.apply(state("mirror"), setting("wrong-while-mirrored"))
    shop = Shop(mesh)
    assert shop.post().ok
    wait_for(lambda: shop.feedback() == 2, "v2's row")
    verdict = verify(mesh, Target(), 100)
    assert broken(verdict) == ["stored"], table(verdict)
    claim = verdict.claim("stored")
    assert claim.statement == "v1's store holds every write once, and none by v2"
    assert claim.figures == {"writes": 50, "once": 0, "lost": 0, "doubled": 50, "foreign": 50}
    assert len(claim.examples) == 3
    assert "v2 gets copies of writes, and writes them to v1's database 'live' as well" in told(mesh)

    mesh.apply(state("mirror-reads"))
    assert verify(mesh, Target(), 100).passed
    assert told(mesh) == ""


def test_a_store_of_its_own_holds_what_v1_wrote_row_by_row(mesh: Mesh) -> None:
    mesh.apply(state("mirror"))
    verdict = verify(mesh, Target(), 100)
    assert verdict.passed, table(verdict)
    claim = verdict.claim("same-writes")
    assert claim.detail == "50 of 50 the same, 0 missing, 0 different"

    mesh.apply(setting("planted-defect"))
    verdict = verify(mesh, Target(), 100)
    assert broken(verdict) == ["same-writes"], table(verdict)
    claim = verdict.claim("same-writes")
    assert claim.figures["different"] + claim.figures["same"] == claim.figures["rows"] == 50
    assert 0 < claim.figures["different"] < 50
    assert f"(bytes {claim.figures['different']} x; bytes: 1" in claim.detail


def test_credentials_that_cannot_write_harm_v2_alone(mesh: Mesh) -> None:
    mesh.apply(state("mirror"), setting("without-rights"))
    verdict = verify(mesh, Target(), 100)
    assert broken(verdict) == ["same-status"], table(verdict)
    assert verdict.claim("stored").figures["once"] == 50
    assert "where v2's role 'shadow' may not write" in told(mesh)


@pytest.mark.not_on_cluster
def test_a_unique_key_bears_copies_and_hides_who_wrote(mesh: Mesh) -> None:
    mesh.apply(state("mirror"), setting("idempotent"))
    shop = Shop(mesh)
    for n in range(1, 4):
        assert shop.post().ok
        assert shop.feedback() == n
    figures = verify(mesh, Target(), 100).claim("stored").figures
    assert figures["lost"] == figures["doubled"] == 0
    assert figures["once"] + figures["foreign"] == figures["writes"] == 50


def test_a_release_needs_the_live_store_and_no_mirror_to_it(mesh: Mesh) -> None:
    mesh.apply(state("canary"))
    verdict = verify(mesh, Target(), 200)
    assert broken(verdict) == ["one-store"], table(verdict)
    assert verdict.claim("one-store").detail == "v1: live; v2: shadow"
    assert "v2 answers callers, but writes to 'shadow', where nobody else reads" in told(mesh)

    mesh.apply(setting("wrong-while-mirrored"))
    verdict = verify(mesh, Target(), 200)
    assert verdict.passed, table(verdict)
    assert verdict.claim("stored").statement == "the store of v1 and v2 holds every write once"
    assert told(mesh) == ""
    mesh.apply(state("promote"))
    assert verify(mesh, Target(), 100).passed


# --- what is not there, and what cannot be read -------------------------------------------------------------


def judged_after(mesh: Mesh, sql: str) -> Claim:
    """Return the claim on v1's store where somebody changes its rows before they are read."""
    watch = Watch(mesh, Target())
    watch.follow()
    try:
        shop = Shop(mesh)
        for _ in range(5):
            assert shop.post().ok
        watch.settle()
        with as_owner(mesh, sql.format(shop.item)):
            pass
        return watch.verdict().claim("stored")
    finally:
        watch.close()


@pytest.mark.not_on_cluster
def test_a_write_that_is_lost_or_doubled_is_told(mesh: Mesh) -> None:
    claim = judged_after(mesh, "DELETE FROM feedback WHERE item = '{}'")
    assert (claim.state, claim.figures["lost"], claim.figures["writes"]) == ("fails", 5, 5)
    again = (
        "INSERT INTO feedback (request_id, item, bytes, version) "
        "SELECT request_id, item, bytes, version FROM feedback WHERE item = '{}'"
    )
    claim = judged_after(mesh, again)
    assert (claim.state, claim.figures["doubled"], claim.figures["lost"]) == ("fails", 5, 0)


@pytest.mark.of_any_mesh
@pytest.mark.not_on_cluster
def test_more_writes_than_are_compared_prove_nothing(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (counting, store_claims):
        monkeypatch.setattr(module, "MOST", 10)
    verdict = verify(mesh, Target(), 50)
    assert broken(verdict) == ["store-read"], table(verdict)
    assert "more than the 10 that are compared" in verdict.claim("store-read").detail


@pytest.mark.of_any_mesh
@pytest.mark.not_on_cluster
def test_a_store_that_cannot_be_read_proves_nothing(mesh: Mesh) -> None:
    if isinstance(mesh, LocalMesh):
        mesh.scale("recommendation-v1", 0)
        store = mesh.state / "store"
        kept = store.rename(mesh.state / "kept")
        store.mkdir()
        (store / "live.db").write_text("not a database" * 100)
    else:
        mesh.scale("store", 0)
    try:
        verdict = verify(mesh, Target(), 20)
        assert "store-read" in verdict.unproven()
        assert verdict.exit_code != 0
    finally:
        if isinstance(mesh, LocalMesh):
            shutil.rmtree(store)
            kept.rename(store)
        else:
            mesh.scale("store", 1)
