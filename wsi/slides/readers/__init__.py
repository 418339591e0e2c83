"""Readers: each keeps the contract of `wsi.slides.slide.Slide`."""
