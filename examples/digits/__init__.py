"""A small demo of robust fine-tuning, from rendered digits to handwritten ones.

A network is pre-trained on printed digits in many variations and fine-tuned on plain handwritten
ones. It is tested on more handwritten digits and on thirteen shifted sets, for which pre-training
prepares it better than fine-tuning does. All data come from matplotlib and scikit-learn; nothing
is downloaded.

In reading order: `glyphs`, `photos` and `warps` make images; `printed` and `shifts` make sets of
images, and `data` collects the sets; `models`, `training` and `pretraining` train; `methods` holds
the methods, and `experiment` compares them; `summary`, `table` and `figure` show the results;
`demo` is the program, `settings` its sizes, `storage` its files.
"""
