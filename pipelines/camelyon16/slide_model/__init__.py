"""Slide scores: one number made of a slide's heatmap, by a named rule or by a forest."""
