"""The original null worker: Vast's own framework with a session, a ping, and a consumer's health URL."""

import os
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from vastai import BenchmarkConfig, HandlerConfig, Worker, WorkerConfig

health = urlsplit(os.environ["BACKEND_HEALTH_URL"])


@asynccontextmanager
async def lifecycle():
    # The framework takes what it finds here for the result of an earlier benchmark, and so runs none.
    with open(".has_benchmark", "w") as file:
        file.write("100")
    yield


async def ping(**_):
    return {"ok": True}


Worker(
    WorkerConfig(
        model_server_url=f"{health.scheme}://{health.hostname}",
        model_server_port=health.port,
        model_healthcheck_url=health.path,
        lifecycle=lifecycle(),
        max_sessions=int(os.environ["MAX_SESSIONS"]),
        handlers=[
            HandlerConfig(
                route="/ping",
                allow_parallel_requests=True,
                remote_function=ping,
                workload_calculator=lambda _: 100.0,
                benchmark_config=BenchmarkConfig(generator=dict, runs=1, concurrency=1, do_warmup=False),
            )
        ],
    )
).run(host="127.0.0.1")
