"""Concept LoRAs, learnt from prompts alone: erasing and enhancing concepts, sliders."""
