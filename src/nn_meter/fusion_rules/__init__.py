"""Fusion rules as plain values: reading rule files, comparing them, and the map made of them.

Rule files of the runtimes that were asked on a real machine lie in ``data``.
"""
