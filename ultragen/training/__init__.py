"""The training of the embedded model, stage by stage."""
