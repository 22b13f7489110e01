"""The study behind `docs/sentiment.md`: methods on MiniLM, fine-tuned on one domain of texts.

In reading order: `cells` lists the runs and names the columns, `methods` are the methods, `runs`
carries them out, `report` turns rows into tables, `cost` measures steps, and `__main__` is the
program. The model, the texts and the training come from `examples/sentiment`.
"""
