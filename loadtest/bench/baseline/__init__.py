"""The chain as a first draft would have it: what the services are measured against."""
