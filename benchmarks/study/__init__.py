"""The study behind `docs/study.md`: every method on the same data, tuned with equal effort.

In reading order: `cells` names the columns and seeds. `sets`, `models` and `pretraining` are what
methods work on, `methods` are the methods, `training` trains. `runs`, `continual` and
`segmentation` turn a training into rows, and `benchmarks/robustness.py` runs recorded rows again.
`summary`, `tables` and `figures` are made from the recorded rows; `report` puts them on the pages.
"""
