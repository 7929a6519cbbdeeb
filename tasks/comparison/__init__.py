"""The verb `compare`: which rows, one process a method, what is finished, tests, words, report.

`run.py` is the way in; the methods themselves are in `tasks/methods`.
"""
