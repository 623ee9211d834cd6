"""Quality control of single images, without a reference, and over time."""
