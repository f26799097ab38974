"""T4, T7, T8, T15 and T18: optima, their distance, temperature and anchor."""
