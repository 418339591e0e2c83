"""Antibody-mediated rejection in kidney transplants: capillaries counted and graded."""
