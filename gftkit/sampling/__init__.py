"""Sampling a flow: what is solved, by which steps and noise, how many samples, and where they go."""
