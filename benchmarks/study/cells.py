"""The numbers that were fixed before the first run: test sets, seeds and learning rates."""

MODELS = ("mlp", "conv", "vit")
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (100, 101)
# The main methods were run at all of these, whichever validation chose.
CURVE_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

STYLE = ("invert", "photo", "fonts", "outlines", "fonts_photo")
CORRUPTION = ("noise", "impulse", "rotate", "shift", "contrast", "blur", "occlude", "stripes")
SHIFTS = STYLE + CORRUPTION
NEW_SHIFTS = ("jpeg", "elastic", "dots")
# No choice was made by these five or by the new ones.
HELD_BACK = ("fonts_photo", "impulse", "blur", "occlude", "stripes")
OPEN_SHIFTS = tuple(name for name in SHIFTS if name not in HELD_BACK)

# "head" is "reused" if it was pre-trained too, and "new" if it is fresh and unconstrained.
KEYS = ("model", "head", "method", "learning_rate", "setting", "pretrain_seed", "seed")
COLUMNS = (*KEYS, "seconds", "validation", "id", *SHIFTS, *NEW_SHIFTS)
