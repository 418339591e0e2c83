"""Synthetic slides with known truth, made from a seed: drawings, or mosaics of real pictures; not histology."""
