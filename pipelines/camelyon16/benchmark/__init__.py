"""The Camelyon16 benchmark: predictions beside truth, figures with their intervals, pages."""
