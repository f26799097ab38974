"""``gft inspect``: every hypothesis of a convention tried on data, ranked, and told with its evidence."""
