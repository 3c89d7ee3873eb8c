"""People's clips as latents that transformers are trained on."""
