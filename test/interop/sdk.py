"""The real `vastai` SDK against our control plane and workers: python sdk.py <client class> <control plane URL>.

Prints one JSON line a check and stops at the first that fails: what follows stands on it.
"""

import asyncio
import contextlib
import json
import re
import ssl
import sys
import time

import aiohttp
from aiohttp import web
from vastai.serverless.client import client as sdk
from vastai.serverless.client.session import Session

client_class, control_plane = sys.argv[1:]


@contextlib.contextmanager
def check(what):
    try:
        yield
    except BaseException as error:
        print(json.dumps({"check": what, "ok": False, "error": repr(error)}), flush=True)
        raise
    print(json.dumps({"check": what, "ok": True}), flush=True)


@contextlib.contextmanager
def raises(kind, text):
    try:
        yield
    except kind as error:
        assert text in str(error), f"{text!r} is not in {error!r}"
    else:
        raise AssertionError(f"no {kind.__name__}")


async def until(holds, within=10):
    """Reports travel to the control plane by themselves, at most one a second."""
    deadline = time.monotonic() + within
    while not (found := await holds()):
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.1)
    return found


@contextlib.asynccontextmanager
async def callback_receiver():
    received = asyncio.Queue()

    async def receive(request):
        await received.put(await request.json())
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/closed", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/closed", lambda: asyncio.wait_for(received.get(), 5)
    finally:
        await runner.cleanup()


async def main():
    kind = getattr(sdk, client_class)
    kind.SSL_CERT_URL = f"{control_plane}/static/jvastai_root.cer"
    urls = {"webserver_url": control_plane, "autoscaler_url": control_plane}
    async with (
        kind("local", **urls, max_poll_interval=1) as client,
        aiohttp.ClientSession() as http,
        callback_receiver() as receiver,
    ):
        await scenario(client, http, *receiver)


async def scenario(client, http, on_close_route, closed):
    trust = await client.get_ssl_context()

    async def post(url, body):
        """What the SDK never sends, or whose status it does not tell."""
        async with http.post(url, json=body, ssl=trust) as response:
            return response.status, await response.json()

    def key(handle, **other_auth):
        return {"session_id": handle.session_id, "session_auth": {**handle.auth_data, **other_auth}}

    def handle_of(session, session_id=None, **other_auth):
        """A handle that believes that its session is open, whatever the worker thinks."""
        auth = {**session.auth_data, **other_auth}
        return Session(endpoint, session_id or session.session_id, session.lifetime, session.expiration, session.url, auth)

    def get(session):
        return endpoint.get_session(session.session_id, session.auth_data)

    async def worker_with_load(load):
        [worker] = await endpoint.get_workers()
        return worker if worker.cur_load == load else None

    with check("get_endpoint finds the endpoint by its name, and no other"):
        endpoint = await client.get_endpoint("null")
        assert endpoint.name == "null"
        with raises(Exception, "could not be found"):
            await client.get_endpoint("nil")
        await endpoint.refresh(block=True)
        assert endpoint.data.config.max_workers == 1

    with check("get_workers is empty before anybody needs a worker"):
        assert await endpoint.get_workers() == []

    with check("a request without a session waits for a worker and is answered"):
        result = await endpoint.request("/ping", {}, timeout=30)
        assert result["ok"] and result["response"] == {"result": {"ok": True}}, result

    payload = {"job": 7, "text": "naïve"}
    with check("session opens a session on a worker over TLS, verified against our root"):
        assert trust.verify_mode == ssl.CERT_REQUIRED and trust.check_hostname
        first = await endpoint.session(lifetime=30, on_close_route=on_close_route, on_close_payload=payload, timeout=30)
        assert first.open and first.url.startswith("https://127.0.0.1:") and first.auth_data["url"] == first.url
        assert 0 < first.expiration - time.time() <= 30

    with check("a client that does not know our root refuses the worker"):
        with raises(aiohttp.ClientConnectorCertificateError, "certificate"):
            await http.post(f"{first.url}/session/health", json=key(first))

    with check("is_open is true for an open session"):
        assert await first.is_open()

    with check("a ping answers, and gives the session its whole lifetime anew"):
        before = await get(first)
        await asyncio.sleep(1)
        result = await first.request("/ping", {})
        assert result["ok"] and result["response"] == {"result": {"ok": True}}, result
        after = await get(first)
        assert before.lifetime == after.lifetime == 30
        # Not a lifetime on top of what was left, as the original would have it.
        assert 0.9 < after.expiration - before.expiration < 5, (before.expiration, after.expiration)

    with check("get_session gives the session back by id and auth_data"):
        found = await get(first)
        assert found.auth_data == first.auth_data and found.url == first.url and found.open
        assert found.session_id == first.session_id

    with check("/session/get tells what the session's closing will call"):
        status, state = await post(f"{first.url}/session/get", key(first))
        assert status == 200 and state["on_close_route"] == on_close_route and state["on_close_payload"] == payload, state

    with check("get_workers lists the worker with its load while it is reserved"):
        worker = await until(lambda: worker_with_load(100))
        assert worker.reqs_working == 1 and worker.perf == 100, worker
        assert worker.started_at <= worker.loaded_at <= time.time()

    with check("a wrong session_auth is refused with 401"):
        for route in ("get", "health", "end"):
            status, answer = await post(f"{first.url}/session/{route}", key(first, reqnum=-1))
            assert status == 401, (route, status, answer)
        with raises(Exception, "session_auth is not valid"):
            await endpoint.get_session(first.session_id, {**first.auth_data, "reqnum": -1})
        result = await handle_of(first, reqnum=-1).request("/ping", {})
        assert result["status"] == 401, result

    with check("a request to an unknown session is answered 410"):
        stranger = handle_of(first, session_id="unknown")
        result = await endpoint.request("/ping", {}, session=stranger)
        assert result["status"] == 410 and not result["ok"], result
        with raises(ValueError, "closed session"):
            await stranger.request("/ping", {})
        assert not stranger.open

    create = {"payload": {"lifetime": 30}, "session_id": None}
    with check("an occupied worker refuses a signed create with 429"):
        auth = {**first.auth_data, "request_idx": 10**6}
        status, answer = await post(f"{first.url}/session/create", {**create, "auth_data": auth})
        assert status == 429, (status, answer)

    with check("session times out while the only worker is occupied"):
        with raises(TimeoutError, "imed out"):
            await endpoint.session(timeout=2)

    with check("close lets in the session that waits for the worker"):
        waiting = asyncio.ensure_future(endpoint.session(lifetime=30, timeout=30))
        await asyncio.sleep(2)
        assert not waiting.done()
        await first.close()
        second = await waiting
        assert second.session_id != first.session_id and second.auth_data["request_idx"] != first.auth_data["request_idx"]

    with check("closing calls on_close_route once, with the payload and the session's id"):
        assert await closed() == {**payload, "session_id": first.session_id}

    with check("a closed session is closed for every handle to it"):
        assert not first.open
        with raises(ValueError, "closed session"):
            await first.request("/ping", {})
        with raises(Exception, "Failed to get session"):
            await get(first)
        with raises(Exception, "Failed to get session"):
            await found.is_open()
        with raises(ValueError, "closed session"):
            await found.request("/ping", {})
        assert not found.open
        await found.close()
        assert await second.is_open()

    with check("the worker's load falls to 0 when its session has closed"):
        await until(lambda: worker_with_load(100))
        async with second:
            pass
        worker = await until(lambda: worker_with_load(0))
        assert worker.reqs_working == 0, worker

    with check("a forged signature is refused with 401 and takes no slot"):
        forged = {"signature": "A" * len(second.auth_data["signature"])}
        status, answer = await post(f"{second.url}/session/create", {**create, "auth_data": {**second.auth_data, **forged}})
        assert status == 401, (status, answer)
        result = await handle_of(second, **forged).request("/ping", {})
        assert result["status"] == 401, result

    with check("a field of auth_data that nobody knows survives"):
        auth = {**second.auth_data, "future": {"tier": [1, 2.5, None, "ü"]}}
        status, created = await post(f"{second.url}/session/create", {**create, "auth_data": auth})
        assert status == 201, (status, created)
        third = await endpoint.get_session(created["session_id"], auth)
        assert third.auth_data == auth
        with raises(Exception, "session_auth is not valid"):
            await endpoint.get_session(created["session_id"], second.auth_data)
        assert (await third.request("/ping", {}))["ok"]
        await third.close()

    with check("a session whose lifetime ran out is noticed"):
        started = time.monotonic()
        brief = await endpoint.session(lifetime=1.5, on_close_route=on_close_route, timeout=30)
        opened = time.monotonic()
        assert await closed() == {"session_id": brief.session_id}
        assert time.monotonic() - started > 1.5 and time.monotonic() - opened < 3
        with raises(ValueError, "closed session"):
            await brief.request("/ping", {})
        assert not brief.open

    with check("the worker keeps an idle connection longer than the SDK does"):
        # The SDK drops it after 15 s. Were the worker first, a request could meet the closing, and the SDK give its session up.
        async with http.post(f"{brief.url}/session/health", json=key(brief), ssl=trust) as response:
            promised = re.search(r"timeout=(\d+)", response.headers.get("Keep-Alive", ""))
        assert promised is None or int(promised[1]) > 15, promised

    with check("a ready worker is one by the SDK's own rule"):
        [worker] = await endpoint.get_workers()
        assert worker.status.lower() == "idle" and worker.measured_perf > 0, worker


asyncio.run(main())
