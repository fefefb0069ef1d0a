"""A network between an edge client and a cloud, cut where it pays (Ichinose et al., 2018).

What an edge client needs (`manifest`, `codecs`, `pictures`, `sessions`, `costs`, `client`) and what
a server needs (`server`) imports neither torch nor Ray.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # of connections that end, users hear from us
