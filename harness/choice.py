"""The meshes, by name."""

from harness.cluster.mesh import ClusterMesh
from harness.meshes.local import LocalMesh
from harness.meshes.mesh import STATE, Mesh
from harness.terminal import progress

MESHES = ["local", "containers", "cluster"]


def make_mesh(name: str, port: int | None = None) -> Mesh:
    """Return the mesh called ``name``; ``port`` is its gateway's on 127.0.0.1, if it is to be started."""
    state = STATE / name
    if name == "containers":
        # Here, since only this mesh needs testcontainers, which takes a while to import.
        from harness.meshes.containers import ContainerMesh

        return ContainerMesh(state, port, progress())
    if name == "cluster":
        return ClusterMesh(progress())
    return LocalMesh(state, port, progress())
