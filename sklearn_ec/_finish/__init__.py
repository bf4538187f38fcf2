"""From an over-wide network to the certified one: prune, merge, resolve signs."""
