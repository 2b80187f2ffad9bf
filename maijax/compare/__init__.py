"""Small beside large: scaling fits, predictions that are kept and scored, comparisons."""
