"""Load on the mesh: Locust sends it, and the harness judges every request."""
