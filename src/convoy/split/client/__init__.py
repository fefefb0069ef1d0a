"""The edge client of a split network. Imports neither torch nor Ray.

from convoy.split.client import Client

with Client("exported", "grpcs://cloud.example:8001", ca="ca.pem", token=token) as client:
    for result in client.map(pictures):
        print(result.name, result.label, result.where)

async with AsyncClient("exported", "grpcs://cloud.example:8001") as client:
    async for result in client.stream(pictures):
        ...
"""

from convoy.split.client.blocking import Client
from convoy.split.client.client import AsyncClient
from convoy.split.client.options import Options
from convoy.split.client.results import Result, Summary

__all__ = ["AsyncClient", "Client", "Options", "Result", "Summary"]
