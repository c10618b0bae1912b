"""The cluster mesh: real Istio on Minikube, OpenShift Local or any other cluster, by kubectl."""
