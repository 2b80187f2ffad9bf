"""Sweeps: which trials there are, who runs each, several in one program, and what came of them."""
