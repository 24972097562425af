"""Inputs of the figures worked in plain NumPy from the papers' formulas."""

# Cosines of four images (rows) with four texts and two more of a queue: the student's, the momentum twin's.
STUDENT = [
    [0.60, 0.10, 0.30, -0.10, 0.05, 0.20],
    [0.05, 0.70, 0.00, 0.15, 0.40, -0.20],
    [0.45, 0.20, 0.20, 0.10, 0.00, 0.30],
    [-0.05, 0.25, 0.10, 0.55, 0.15, 0.10],
]
TWIN = [
    [0.55, 0.12, 0.33, -0.08, 0.02, 0.22],
    [0.08, 0.66, 0.03, 0.11, 0.42, -0.15],
    [0.50, 0.18, 0.15, 0.12, 0.03, 0.28],
    [0.00, 0.22, 0.14, 0.60, 0.10, 0.05],
]
TAU, ALPHA = 0.07, 0.4
