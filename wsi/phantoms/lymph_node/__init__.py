"""Phantoms of H&E lymph nodes with metastases."""
