"""The monitor `memorisation`: whether a run memorises its data."""
