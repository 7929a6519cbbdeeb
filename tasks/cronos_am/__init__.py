"""CRONOS-AM: the convex head and the top blocks of the backbone, trained in turn.

`finetune.py` is the verb, `alternate.py` the loop.
"""
