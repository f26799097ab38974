"""Problems that claims are measured on, and the shipped loop in memory."""
