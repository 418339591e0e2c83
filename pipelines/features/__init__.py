"""Embeddings of a slide's cells, for slide-level models of this and of other programs. Commands enter it alone."""
