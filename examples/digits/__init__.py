"""Robust fine-tuning in small: from rendered digits to handwritten ones, and away again.

A network learns printed digits in many guises, is fine-tuned on plain handwritten ones, and
is tested on both those and thirteen shifted sets that pre-training prepared it for better
than fine-tuning does. Everything comes from inside matplotlib and scikit-learn: no downloads.

In reading order: `glyphs`, `photos` and `warps` make images; `printed` and `shifts` make sets
of them, and `data` gathers the sets; `models`, `training` and `pretraining` train; `methods`
are what is compared, and `experiment` compares them; `summary`, `table` and `figure` show what
came out; `demo` is the program, `settings` its sizes, `storage` its files.
"""
