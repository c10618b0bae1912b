"""The meshes, by name."""

from harness.cluster.mesh import ClusterMesh
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import STATE, Mesh, in_clone, must_be_clone
from harness.terminal import progress

MESHES = ["local", "containers", "cluster"]


def default_mesh() -> str:
    """Return the mesh to use if none is named: without the workshop's files there can only be a cluster."""
    return "local" if in_clone() else "cluster"


def make_mesh(name: str, port: int | None = None, namespace: str | None = None) -> Mesh:
    """Return the mesh called ``name``.

    :param port: its gateway's on 127.0.0.1, if it is to be started.
    :param namespace: the one of the Service to judge; none, if the workshop itself is meant.
    :raises MeshError: the workshop's files are needed, and are not here.
    """
    if name != "cluster" or namespace is None:
        must_be_clone("this" if name == "cluster" else f"the {name} mesh")
    if name == "cluster":
        return ClusterMesh(progress(), namespace)
    if name == "containers":
        # Here, since only this mesh needs testcontainers, which takes a while to import.
        from harness.meshes.containers import ContainerMesh

        return ContainerMesh(STATE / name, port, progress())
    return LocalMesh(STATE / name, port, progress())
