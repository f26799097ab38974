"""The commands of ``gft``, a file for each group, each a function whose signature is its options."""
