"""What a browser shows: the picture of a target, a report to keep, and the live page."""
