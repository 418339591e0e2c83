"""Metastases in lymph nodes, after Liu et al. 2017 and the Camelyon16 challenge."""
