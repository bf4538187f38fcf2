"""What all steps share: records, activations, coordinates, networks forward, symmetries."""
