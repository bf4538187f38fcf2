"""Cluster the students' neurons: linkage, cuts, one basis for all, layer by layer.

Arrays and records only: nothing in here trains.
"""
