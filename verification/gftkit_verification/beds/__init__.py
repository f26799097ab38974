"""Test beds: problems of known answer, the shipped loop on them, likely slips, and the statistics of measurements."""
