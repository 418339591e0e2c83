"""Synthetic slides with known truth, made from a seed. They are drawings, not histology."""
