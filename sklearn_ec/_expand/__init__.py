"""Train students that are wider than the sought network, and polish single networks."""
