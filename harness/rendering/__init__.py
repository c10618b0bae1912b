"""Render manifests for Envoy as Istio's control plane renders them. Pure: objects in, dictionaries out.

All sidecars share one list of clusters and one list of routes; the ingress gateway has routes of its own.
Defaults are Istio's, not Envoy's: no route timeout, two retries, unlimited circuit breakers, least-request
load balancing, no ``-shadow`` on a mirrored request's Host.
"""
