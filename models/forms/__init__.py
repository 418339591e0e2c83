"""Other programs' models: WSInfer's folder form, ONNX."""
