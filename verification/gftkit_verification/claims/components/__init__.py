"""Every registered component keeps its contract."""
