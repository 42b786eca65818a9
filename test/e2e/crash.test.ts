import { execFileSync } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { assert, describe, it } from "@effect/vitest"
import { command, eventually, freePort, listen, post, startReadyWorker } from "./harness.ts"

const auth = (request_idx: number) => ({ cost: 100, request_idx, signature: "the-signature", url: "http://127.0.0.1" })

const workspace = () => {
  const folder = mkdtempSync(join(tmpdir(), "null-pyworker-"))
  return { WORKSPACE_DIR: folder, [Symbol.dispose]: () => rmSync(folder, { recursive: true }) }
}

const create = (url: string, idx: number, payload: object = {}) =>
  post(`${url}/session/create`, { auth_data: auth(idx), payload })

describe("a worker that is killed and started again", () => {
  it("has the same session open, on the load report, and ends it when it was to end", async () => {
    await using autoscaler = await listen()
    using disk = workspace()
    const { WORKSPACE_DIR } = disk
    const killed = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    const { body: created } = await create(killed.url, 1, { lifetime: 3, on_close_payload: { job: 7 } })
    await killed.stop("SIGKILL")
    const reports = autoscaler.notes.length

    await using worker = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    const key = { session_id: created.session_id, session_auth: auth(1) }
    assert.deepInclude((await post(`${worker.url}/session/get`, key)).body, {
      session_id: created.session_id,
      auth_data: auth(1),
      lifetime: 3,
      expiration: created.expiration,
      on_close_payload: { job: 7 }
    })
    assert.strictEqual((await create(worker.url, 2)).status, 429)
    assert.strictEqual((await post(`${worker.url}/session/end`, { ...key, session_auth: auth(2) })).status, 401)
    const since = () => autoscaler.notes.slice(reports).map(({ body }) => body)
    await eventually("its load", () => since().some((body) => body.cur_load === 100 && body.working_request_idxs[0] === 1))
    const deleted = await eventually("expired", () =>
      since()
        .flatMap((body) => body.requests ?? [])
        .find((request) => request.request_idx === 1)
    )
    assert.strictEqual(deleted.status, "Success")
    assert.closeTo(deleted.work_completed_at, created.expiration, 1)
    assert.strictEqual((await create(worker.url, 3)).status, 201)
  })

  it("delivers what was still owed: callbacks and deletions, recognisable as the same", async () => {
    let deaf = true
    await using autoscaler = await listen(({ path }, response) => {
      response.statusCode = deaf && path === "/delete_requests/" ? 500 : 200
      response.end("{}")
    })
    await using user = await listen((_, response) => {
      response.statusCode = deaf ? 503 : 200
      response.end()
    })
    using disk = workspace()
    const { WORKSPACE_DIR } = disk
    const killed = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    const { body: created } = await create(killed.url, 1, { on_close_route: `${user.url}/closed`, on_close_payload: { job: 7 } })
    assert.strictEqual((await create(killed.url, 2)).status, 429)
    await post(`${killed.control}/release`, "")
    await eventually("tried", () => user.notes.length > 0 && autoscaler.to("/delete_requests/").length > 0)
    await killed.stop("SIGKILL")
    deaf = false
    const [tried, told] = [user.notes.length, autoscaler.to("/delete_requests/").length]

    await using worker = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    await eventually("delivered", () => user.notes.length > tried && autoscaler.to("/delete_requests/").length > told)
    const keys = user.notes.map(({ body, headers }) => [headers["idempotency-key"], body])
    assert.deepStrictEqual(
      keys,
      keys.map(() => [created.session_id, { job: 7, session_id: created.session_id }])
    )
    const deletions = autoscaler.to("/delete_requests/").map(({ body }) => body.requests)
    assert.deepStrictEqual(
      deletions.at(-1).map((request: { request_idx: number; status: string }) => [request.request_idx, request.status]),
      [
        [2, "Rejected"],
        [1, "Success"]
      ]
    )
    for (const repeated of deletions.slice(0, -1).flat()) assert.deepInclude(deletions.at(-1), repeated)

    assert.strictEqual(await worker.stop("SIGTERM"), 0)
    await using again = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    assert.notInclude(again.output(), "journal read")
  })

  it("hands a callback on to the next start when nobody answers it before the end", async () => {
    await using autoscaler = await listen()
    using disk = workspace()
    const { WORKSPACE_DIR } = disk
    const port = await freePort()
    const stopped = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    await create(stopped.url, 1, { on_close_route: `http://127.0.0.1:${port}/closed` })
    assert.strictEqual(await stopped.stop("SIGTERM"), 0)
    await using user = await listen(undefined, port)
    await using _worker = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    await eventually("delivered", () => user.notes.length === 1)
  })
})

describe("the journal", () => {
  it("is nobody else's to read, and keeps to one file for each worker", async () => {
    await using autoscaler = await listen()
    using disk = workspace()
    await using worker = await startReadyWorker(autoscaler, { JOURNAL_DIR: disk.WORKSPACE_DIR })
    await create(worker.url, 1)
    const files = readdirSync(disk.WORKSPACE_DIR)
    assert.deepStrictEqual(files, ["worker-42.sqlite", "worker-42.sqlite-wal"])
    for (const file of files) assert.strictEqual(statSync(join(disk.WORKSPACE_DIR, file)).mode & 0o777, 0o600)
    assert.include(readFileSync(join(disk.WORKSPACE_DIR, "worker-42.sqlite-wal"), "latin1"), "the-signature")
    assert.notInclude(worker.output(), "the-signature")
  })

  // A running process' limits can be changed on Linux only.
  it.skipIf(process.platform !== "linux")("is written again once there is room, with all that it missed", async () => {
    await using autoscaler = await listen()
    using disk = workspace()
    const { WORKSPACE_DIR } = disk
    const killed = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    const room = (bytes: string) => execFileSync("prlimit", [`--pid=${killed.process.pid}`, `--fsize=${bytes}:`])
    room("1000")
    const { body: created } = await create(killed.url, 1)
    await eventually("noticed", () => killed.output().includes("journal not written"))
    room("unlimited")
    // Real time: it is another process that waits before it tries again.
    await new Promise((resolve) => setTimeout(resolve, 10_500))
    await post(`${killed.url}/ping`, { auth_data: auth(1), payload: {}, session_id: created.session_id })
    await eventually("written again", () => killed.output().includes("journal written again"))
    await killed.stop("SIGKILL")
    await using worker = await startReadyWorker(autoscaler, { WORKSPACE_DIR })
    const key = { session_id: created.session_id, session_auth: auth(1) }
    assert.strictEqual((await post(`${worker.url}/session/end`, key)).status, 200)
  })

  it("on a disk that is full is given up with one error, and no request fails for it", async () => {
    await using autoscaler = await listen()
    using disk = workspace()
    const { WORKSPACE_DIR } = disk
    // A file may have 64 blocks and no more: what the kernel says then is what it says of a full disk.
    const limited = ["-c", `ulimit -f 64 && exec "$0" "$@"`, process.execPath, command, "worker"]
    await using worker = await startReadyWorker(autoscaler, { WORKSPACE_DIR }, limited, "sh")
    for (let idx = 0; idx < 50; idx++) {
      const created = await create(worker.url, idx, { on_close_payload: "x".repeat(10_000) })
      assert.strictEqual(created.status, 201, worker.output())
      const key = { session_id: created.body.session_id, session_auth: auth(idx) }
      assert.strictEqual((await post(`${worker.url}/session/end`, key)).status, 200)
    }
    assert.strictEqual(worker.output().match(/level=ERROR .*journal not written/g)?.length, 1)
  })
})
