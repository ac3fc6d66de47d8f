"""Faster equivalents of layers, behind one seam."""
