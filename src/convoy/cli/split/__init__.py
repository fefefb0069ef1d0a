"""`convoy split`: a network between an edge client and a cloud. One file per sub-verb.

`light.py` has the verbs that do without torch and Ray, `app.py` all of them.
"""
