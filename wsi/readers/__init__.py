"""Readers: each keeps the contract of `wsi.slide.Slide`."""
