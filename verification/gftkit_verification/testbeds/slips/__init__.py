"""Shipped functions and components, and likely slips in their place."""
