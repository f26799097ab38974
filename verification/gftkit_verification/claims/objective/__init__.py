"""T1 to T3, T9, T16 and T17: objectives, their gradients and targets."""
