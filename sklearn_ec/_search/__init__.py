"""Which shape, activation and students: the search, the groups, what they gave."""
