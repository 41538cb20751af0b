"""Captions and tags of images by models: BLIP and GIT, and the taggers that come as ONNX files."""
