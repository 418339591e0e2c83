"""One number for a slide: of its heatmap, by name or by a forest."""
