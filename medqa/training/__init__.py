"""How the shipped network `gray` is made."""
