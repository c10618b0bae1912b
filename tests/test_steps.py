"""The table of steps, what the pages make of it, where one stands on a mesh, and the exercises."""

import re
from typing import Any

import pytest
import requests
from helpers import here_only
from test_readme import commands

from harness import HarnessError
from harness.exercise import BREAKS, begin, judge
from harness.meshes.envoymesh import EnvoyMesh
from harness.meshes.mesh import ROOT, Mesh, quietly
from harness.steps import HINTS, PROVEN, SHADOW, STEPS, announce, state_after
from harness.workshop import catch_up, examine, mark, standing

CLAIMS = set(re.findall(r"`([a-z-]+)`", (ROOT / "docs" / "claims.md").read_text()))


# --- the table ------------------------------------------------------------------------------------------


def test_steps_are_numbered_and_name_claims_that_there_are() -> None:
    assert [step.number for step in STEPS] == list(range(1, len(STEPS) + 1))
    for step in STEPS:
        assert CLAIMS.issuperset((*step.holds, *step.fails))
    assert CLAIMS.issuperset(HINTS)
    assert HINTS.keys() >= {id for step in STEPS for id in (*step.holds, *step.fails)}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.page)
def test_a_page_has_its_steps_title_and_commands_and_ends_with_its_check(step: Any) -> None:
    page = step.path.read_text()
    assert page.startswith(f"# {step.number}. {step.title}\n\n")
    typed = [re.sub(r" 2>.*", "", command) for command, _ in commands(step.path)]
    shown = iter(typed)
    for command in step.commands:
        assert f"make {command}" in shown, f"{command} is missing, or at another place"
    assert step not in PROVEN or typed[-1] == "make check"
    assert "<details>" in page
    assert step.goal.splitlines()[0] in page
    assert announce(step, "cluster")[-1].startswith(f"The page: docs/{step.page}.md.")


def test_a_state_is_what_the_commands_until_then_leave() -> None:
    stopped, release = state_after(4), state_after(9)
    assert (stopped.stopped, state_after(5).stopped) == (True, False)
    for led, subset in ((state_after(6), "v1"), (release, "v2")):
        for rule in led.applied["virtualservice/recommendation"].document["spec"]["http"]:
            assert [route["destination"]["subset"] for route in rule["route"]] == [subset]
    assert release.applied["trafficextension/compare"].file == "istio/compare.yaml"
    assert release.applied["secret/recommendation-v2"].file.endswith("wrong-while-mirrored.yaml")


def test_the_agendas_of_the_trainers_guide_add_up() -> None:
    minutes = {f"{step.number}": step.minutes for step in STEPS}
    agendas = re.findall(
        r"^## (\d+) minutes\n(.*?)(?=^## )", (ROOT / "docs" / "trainer.md").read_text(), re.M | re.S
    )
    assert [total for total, _ in agendas] == ["45", "90", "180"]
    for total, agenda in agendas:
        rows = re.findall(r"^\| (\S+)[^|]* \| (\d+) \|", agenda, re.MULTILINE)
        assert sum(int(each) for _, each in rows) == int(total)
        assert all(minutes.get(number, int(each)) == int(each) for number, each in rows)


# --- on a mesh ------------------------------------------------------------------------------------------


@pytest.mark.of_any_mesh
def test_catching_up_leads_to_a_step_from_any_state(mesh: Mesh) -> None:
    for number in (8,) if mesh.name == "cluster" else (9, 4, 6):
        catch_up(mesh, number)
        assert standing(mesh) == number
        assert examine(mesh, STEPS[number - 1])[0] == 0
    if mesh.name == "cluster":
        catch_up(mesh, 0)


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_step_that_is_not_done_says_what_is_missing_and_what_to_do(mesh: EnvoyMesh) -> None:
    def undone(number: int) -> str:
        code, lines = examine(mesh, STEPS[number - 1])
        assert code == 1
        assert lines[0].startswith(f"step {number} is not done: ")
        return "\n".join(lines)

    assert standing(mesh) in (1, 2)  # other tests may have sent something
    assert "make apply F=istio/mirror.yaml" in undone(3)
    mesh.apply(ROOT / "istio" / "mirror.yaml")
    assert f"runs: make stop W={SHADOW}" in undone(4)
    assert "make bail-out" in undone(6)
    assert "make apply F=istio/compare.yaml" in undone(8)
    mesh.apply(ROOT / "recommendation" / "settings" / "without-rights.yaml")
    assert "secret/recommendation-v2 is not as in recommendation/kubernetes.yaml" in undone(3)
    with pytest.raises(HarnessError, match=r"as after no step .*make check STEP=3"):
        standing(mesh)
    assert examine(mesh, STEPS[10])[0] == 2


# --- the exercises --------------------------------------------------------------------------------------


@pytest.mark.of_any_mesh
@pytest.mark.parametrize("broken", ["label", *here_only(*(b for b in BREAKS if b != "label"))])
def test_each_broken_mirror_is_told_until_it_is_mended(mesh: EnvoyMesh, broken: str) -> None:
    begin(mesh, 2, broken)
    code, lines = judge(mesh, None, quietly)
    assert (code, lines[0]) == (1, "the mirror is not mended")
    if broken == "fuse":
        # The routes read as they must, and only the proof tells.
        assert any("FAIL  v2 received every request exactly once" in line for line in lines)
        assert any(HINTS["exactly-once"] in line for line in lines)
        mesh.apply(ROOT / "istio" / "destination-rule.yaml")
        assert judge(mesh, None, quietly) == (0, [f"mended, and no caller noticed: {BREAKS[broken]}"])
        assert not mark(mesh).exists()


@pytest.mark.not_on_cluster
@pytest.mark.of_any_mesh
def test_a_defect_counts_as_found_when_the_proof_shows_it(mesh: EnvoyMesh) -> None:
    begin(mesh, 1, "feedback")
    mesh.apply(ROOT / "istio" / "compare.yaml", ROOT / "istio" / "mirror-twice.yaml")
    assert judge(mesh, "bytes", quietly)[0] == 1, "that is another defect"
    assert judge(mesh, "feedback", quietly) == (0, ["found, and no caller noticed: feedback"])


@pytest.mark.of_any_mesh
def test_an_exercise_that_harms_a_caller_is_not_solved(mesh: EnvoyMesh) -> None:
    begin(mesh, 1, "bytes")
    with pytest.raises(HarnessError, match="ANSWER=status, feedback, bytes"):
        judge(mesh, None, quietly)
    mesh.apply(ROOT / "istio" / "promote.yaml")
    assert b"v2" in requests.get(mesh.url(), timeout=30).content
    code, [line] = judge(mesh, "bytes", quietly)
    assert (code, line[:28]) == (1, "1 callers saw v2, or got a f")
