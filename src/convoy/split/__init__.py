"""A network cut in two, between an edge client and a cloud."""
