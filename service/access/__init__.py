"""Who may ask, how much, and what is noted of those who change something."""
