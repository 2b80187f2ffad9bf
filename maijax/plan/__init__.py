"""What a run would take on a machine that nobody here has: time, memory, traffic, cost."""
