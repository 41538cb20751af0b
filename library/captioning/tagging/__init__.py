"""Tags by the models that come as ONNX files with a list of their tags."""
