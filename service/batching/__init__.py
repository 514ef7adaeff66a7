"""Who is computed together with whom, and when."""
