"""The geometry of a flow: how its samples travel, and where to place the steps."""
