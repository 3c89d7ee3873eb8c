"""The commands of `python -m ultragen`, a file for each kind. Importing one adds its commands."""
