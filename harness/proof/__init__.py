"""The proof: what routes promise, what callers and proxies saw, and whether the two agree."""
