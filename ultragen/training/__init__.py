"""Training: the procedural world, its captions, and the stages of training."""
