"""What a forward pass, the decoding and a whole run cost here, beside the dense model and the
floor that the machine sets."""
