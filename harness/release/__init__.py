"""The release: from dark to everybody, step by step, each left only when the proof lets go of it."""
