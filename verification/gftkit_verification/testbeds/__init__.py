"""Test beds of claims: problems of known answer, the shipped loop on them, likely slips, and measurements.

The packages ``problems``, ``loops``, ``slips`` and ``measuring`` build on each other in this order. Nothing is imported
here: a claim, or a test, loads only the beds that it uses.
"""
