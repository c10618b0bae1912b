"""Manifests: Kubernetes and Istio objects as frozen models, read from YAML and checked.

Every field that is accepted here is honoured by the meshes that the harness renders, but for what only a
cluster can do: liveness probes, pauses before a stop and, on the local mesh, limits and isolation. Anything
else is an error that names object and field: a silently ignored route would make the proof a lie.
"""
