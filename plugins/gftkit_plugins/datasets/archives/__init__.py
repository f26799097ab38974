"""Samples in archives: tar shards, parquet and arrow files."""
