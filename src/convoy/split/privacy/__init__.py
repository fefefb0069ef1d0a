"""How much of a picture can be seen in what is sent: `convoy split privacy`.

Whoever reads what crosses a cut may have pictures of the same kind, send them through the first
half (it is a file on the edge machine), and train a network that goes the other way. So does this,
and shows what it sees.
"""
