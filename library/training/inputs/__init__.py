"""From a batch to what the denoiser takes: latents and encoded captions, from caches or fresh."""
