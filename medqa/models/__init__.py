"""The network that ships with medqa (safetensors), and its model card."""
