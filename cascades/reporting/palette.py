"""Colors of figures and charts."""

from __future__ import annotations

INK, FAINT = '#24292f', '#8c959f'
# Distinguishable with any color vision, in light and dark: six of Okabe and Ito's, and two more.
PALETTE = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7f6a3f', '#7b7fb5')
