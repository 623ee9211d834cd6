"""Threshold profiles, one TOML file each."""
