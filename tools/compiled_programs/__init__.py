"""What a compiled program runs and moves, and the least time that takes, from its text."""
