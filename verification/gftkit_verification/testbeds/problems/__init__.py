"""Problems of known answer: flows, pairs, equations, and the laws that belong to them."""
