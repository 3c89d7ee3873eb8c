"""Tables of measured clips: rows, what measures them, what is stored, and what is reported."""
