"""The live page: what flows, what is proven of it, and the workshop's states at hand."""
