"""Serves the models of `convoy split export` over the Open Inference Protocol, version 2.

    server = Server(Options(folder=Path("exported"), port=0, http_port=0))
    addresses = await server.start()              # Addresses(grpc="127.0.0.1:40231", http=...)
    await server.stop()

Layers, from the bottom: `refusals`, what clients are told; `repository`, what is served;
`requests`, what came in, checked and decoded; `batching`; `security`, `metrics` and `logs`; `core`,
which every request goes through; `grpc_front` and `http_front`, which translate; `serving`, which
starts and ends.
"""
