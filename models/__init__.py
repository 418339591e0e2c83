"""Networks, training and engines: tensors never leave this package."""
