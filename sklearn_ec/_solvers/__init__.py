"""Least squares on stacked networks: Levenberg, dense and matrix-free, and exact Jacobians."""
