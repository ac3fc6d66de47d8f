"""How a layer is computed fast, behind one seam."""
