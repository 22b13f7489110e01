"""Digits and letters drawn from the TrueType fonts that come with matplotlib."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

# A dozen to pre-train on. The held-out fonts have other families or slants, and `cmmi10` has
# old-style figures.
PRETRAINING_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10"),
)
HELD_OUT_FONTS = (
    *("DejaVuSerif-Italic", "STIXGeneralBolIta", "cmss10", "cmtt10", "cmti10", "cmmi10"),
)
STYLES = ("regular", "thick", "outline")
DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Glyphs are drawn large, with `PIXELS_PER_PIXEL` pixels for one of the final 16x16 image, so that a
# warp resamples them only once.
SIZE = 64
PIXELS_PER_PIXEL = 4
HEIGHT = 48  # of every character; three quarters of the canvas, so that a warp may enlarge it
_FONT_SIZE = 96  # drawn larger still, then reduced to `HEIGHT`
_STROKE = 5  # half of the width of an outline, in pixels of the drawing


@cache
def glyphs(fonts: tuple[str, ...], styles: tuple[str, ...], characters: str = DIGITS) -> np.ndarray:
    """Ink of every character, `[fonts, styles, characters, 64, 64]` in [0, 1]; 1 is ink."""
    ink = [[[_glyph(f, s, text) for text in characters] for s in styles] for f in fonts]
    # Smoothed just enough to sample every fourth pixel without aliasing.
    smooth = (0.0, 0.0, 0.0, PIXELS_PER_PIXEL / 2.5, PIXELS_PER_PIXEL / 2.5)
    return ndimage.gaussian_filter(np.asarray(ink, np.float32), smooth)


def _glyph(font: str, style: str, text: str) -> np.ndarray:
    """One character, `[64, 64]`, scaled to `HEIGHT` and centred."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    # The basic layout is always available. The other one may place characters differently.
    face = ImageFont.truetype(path, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    drawing = Image.new("L", (3 * _FONT_SIZE, 3 * _FONT_SIZE))
    draw = ImageDraw.Draw(drawing)
    at = (_FONT_SIZE, _FONT_SIZE // 2)
    draw.text(at, text, fill=255, font=face, stroke_width=0 if style == "regular" else _STROKE)
    if style == "outline":
        draw.text(at, text, fill=0, font=face)
    cut = drawing.crop(drawing.getbbox())
    width = min(round(cut.width * HEIGHT / cut.height), SIZE)
    canvas = Image.new("L", (SIZE, SIZE))
    canvas.paste(
        cut.resize((width, HEIGHT), Image.Resampling.LANCZOS),
        ((SIZE - width) // 2, (SIZE - HEIGHT) // 2),
    )
    return np.asarray(canvas, np.float32) / 255
