"""Pictures: in folders, and shipped inside Python packages."""
