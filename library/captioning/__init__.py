"""Captions of images by models, BLIP and GIT; the pipeline from files through a model to what is written."""
