"""Where rows come from: named tasks, files, folders and the Hub, as numbered classes in splits.

`load.py` is the way in; a source gives `raw.py` rows, and nothing here knows a backbone.
"""
