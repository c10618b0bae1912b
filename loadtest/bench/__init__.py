"""What the mirror, the sidecars and the proof cost: ``make bench``."""
