"""Work of many independent parts: who does it, here or on a Ray cluster, and where results wait."""
