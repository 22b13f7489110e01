"""The study behind `docs/study.md`: every method on the same data, tuned with equal effort.

In reading order: `cells` says what is run and names the columns; `models`, `shifts`, `sets` and
`pretraining` are what methods work on; `methods` are the methods, `training` and `runs` carry
them out; `plan` orders the work, `records` keeps it, `queue` does it. `selection`, `summary`,
`tables` and `figures` turn the rows into the page. `few_labels` and `continual` are scenarios of
their own. The program is `benchmarks/robustness.py`.
"""
