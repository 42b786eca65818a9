import { assert, describe, it } from "@effect/vitest"
import { account } from "../../src/local/Local.ts"
import { eventually, freePort, run } from "./harness.ts"

const key = { VAST_API_KEY: account.apiKey }

/** The control plane on a port of its own, and the client's arguments that lead to it. */
const startControlPlane = async (...flags: ReadonlyArray<string>) => {
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const plane = run(["local", "--port", String(port), ...flags])
  await eventually("control plane", () => plane.output().includes("control plane on"))
  const workers = async () => {
    const response = await fetch(`${url}/get_endpoint_workers/`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ id: account.endpoint.id, api_key: account.apiKey })
    })
    return (await response.json()) as ReadonlyArray<{ id: number; status: string; cur_load: number }>
  }
  return { ...plane, url, workers, client: ["client", "--endpoint", account.endpoint.name, "--web", url, "--autoscaler", url] }
}

describe("the demonstration", () => {
  it.each(["http", "https"])("starts three workers, closes three sessions, and sees the workers go, over %s", async (scheme) => {
    await using demo = run(["local", "--demo", "--port", String(await freePort()), ...(scheme === "https" ? ["--tls"] : [])])
    assert.strictEqual(await demo.exit, 0, demo.output())
    assert.match(demo.output(), /workers started {2}3\nsessions closed {2}3 Success, 0 Cancelled, 0 Error\nworkers left {5}0\n$/)
    assert.match(demo.output(), new RegExp(`session 3 reserved ${scheme}://127.0.0.1:`))
    assert.match(demo.output(), /session 1 queued, attempt 1, 0 s\n/)
  })
})

describe("the client", () => {
  it("holds one reservation for as long as it was told", async () => {
    await using plane = await startControlPlane("--max-workers", "1")
    await using client = run([...plane.client, "--hold", "1"], key)
    await eventually("reserved", async () => (await plane.workers()).some((worker) => worker.cur_load === 100))
    assert.strictEqual(await client.exit, 0, client.output())
    assert.match(client.output(), /session reserved http:\/\/127\.0\.0\.1:\d+ after [\d.]+ s/)
    await eventually("released", async () => (await plane.workers()).every((worker) => worker.cur_load === 0))
    assert.strictEqual(await plane.stop("SIGTERM"), 0)
    assert.match(plane.output(), /request done.*status=Success/)
    assert.notMatch(plane.output(), /Cancelled|Rejected/)
  })

  it("ends what is open on Ctrl-C, while it holds and while it waits", async () => {
    await using plane = await startControlPlane("--max-workers", "1", "--inactivity-timeout", "60")
    await using holder = run([...plane.client, "--hold", "600"], key)
    await eventually("reserved", () => holder.output().includes("reserved"))
    await using waiter = run(plane.client, key)
    await eventually("queued", () => waiter.output().includes("queued, attempt 2"))
    assert.strictEqual(await waiter.stop("SIGINT"), 0)
    assert.strictEqual(await holder.stop("SIGINT"), 0)
    assert.match(holder.output(), /session closed\n$/)
    await eventually("released", async () => (await plane.workers()).every((worker) => worker.cur_load === 0))
  })

  it("says in one line what is wrong", async () => {
    await using plane = await startControlPlane()
    const fails = async (args: ReadonlyArray<string>, environment: Record<string, string>, code: number, line: RegExp) => {
      await using client = run(args, environment)
      assert.strictEqual(await client.exit, code, client.output())
      assert.match(client.output(), line)
      assert.notMatch(client.output(), /\n./)
    }
    await fails(plane.client, {}, 78, /^VAST_API_KEY is not set/)
    await fails(plane.client, { VAST_API_KEY: "wrong" }, 1, /does not accept the key/)
    await fails(plane.client.with(2, "other"), key, 1, /^no endpoint other; the account has null/)
    const nowhere = `http://127.0.0.1:${await freePort()}`
    await fails(["client", "--endpoint", "null", "--web", nowhere, "--autoscaler", nowhere], key, 1, /the list of endpoints/)
  })
})

describe("the control plane", () => {
  it("replaces a worker whose process dies", async () => {
    await using plane = await startControlPlane("--min-load", "100", "--max-workers", "1")
    const ready = (id: number) => async () =>
      (await plane.workers()).some((worker) => worker.id === id && worker.status === "idle")
    await eventually("ready", ready(1))
    const pid = Number(/worker=1 pid=(\d+)/.exec(plane.output())?.[1])
    process.kill(pid, "SIGKILL")
    await eventually("replaced", ready(2))
  })

  it("stops its workers when it is stopped", async () => {
    await using plane = await startControlPlane("--min-load", "200", "--max-workers", "2")
    await eventually("ready", async () => (await plane.workers()).filter((worker) => worker.status === "idle").length === 2)
    const pids = Array.from(plane.output().matchAll(/pid=(\d+)/g), ([, pid]) => Number(pid))
    assert.strictEqual(pids.length, 2)
    assert.strictEqual(await plane.stop("SIGINT"), 0)
    for (const pid of pids) assert.throws(() => process.kill(pid, 0))
  })
})
