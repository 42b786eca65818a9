import { generateKeyPairSync, sign } from "node:crypto"
import { once } from "node:events"
import { connect } from "node:net"
import { assert, describe, it } from "@effect/vitest"
import { signedMessage } from "../../src/protocol/AuthData.ts"
import { eventually, freePort, listen, post, run, startReadyWorker, startWorker } from "./harness.ts"

const auth = (request_idx: number, more: object = {}) => ({
  cost: 100,
  endpoint: "null",
  reqnum: request_idx,
  request_idx,
  signature: "unsigned",
  url: "http://127.0.0.1",
  ...more
})

const create = (url: string, auth_data: unknown, payload: object = {}) => post(`${url}/session/create`, { auth_data, payload })

describe("a session", () => {
  it("is created, shown, pinged, refused to others, and ended", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const session_auth = auth(1, { an_unknown_field: { of: ["the", "autoscaler"] } })
    const created = await create(worker.url, session_auth, { lifetime: 30, on_close_route: null, on_close_payload: null })
    assert.strictEqual(created.status, 201)
    const { session_id } = created.body
    assert.match(session_id, /^[0-9a-f]{32}$/)
    assert.closeTo(created.body.expiration, Date.now() / 1000 + 30, 5)

    const key = { session_id, session_auth }
    assert.deepInclude((await post(`${worker.url}/session/get`, key)).body, {
      session_id,
      auth_data: session_auth,
      lifetime: 30,
      expiration: created.body.expiration,
      on_close_route: null,
      on_close_payload: null
    })
    assert.deepStrictEqual(await post(`${worker.url}/session/health`, key), { status: 200, body: { ok: true } })
    assert.deepStrictEqual(await post(`${worker.url}/ping`, { auth_data: session_auth, payload: {}, session_id }), {
      status: 200,
      body: { result: { ok: true } }
    })
    assert.isAbove((await post(`${worker.url}/session/get`, key)).body.expiration, created.body.expiration)

    assert.strictEqual((await create(worker.url, auth(2))).status, 429)
    assert.strictEqual((await post(`${worker.url}/session/end`, { session_id, session_auth: auth(2) })).status, 401)
    assert.deepStrictEqual(await post(`${worker.url}/session/end`, key), {
      status: 200,
      body: { ended: true, removed_session: session_id }
    })
    assert.strictEqual((await post(`${worker.url}/session/end`, key)).status, 400)
    assert.strictEqual((await post(`${worker.url}/session/get`, key)).status, 400)
    assert.deepStrictEqual(await post(`${worker.url}/session/health`, key), { status: 200, body: { ok: false } })
    assert.strictEqual((await post(`${worker.url}/ping`, { auth_data: session_auth, payload: {}, session_id })).status, 410)
  })

  it("is load while it is open and deleted as a success, each told at once", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const statuses = () => autoscaler.to("/worker_status/").map(({ body }) => body)
    const created = await create(worker.url, auth(7))
    await eventually("load reported", () => statuses().at(-1)?.cur_load === 100)
    assert.deepInclude(statuses().at(-1), { id: 42, mtoken: "the-master-token", new_load: 100, working_request_idxs: [7] })
    await post(`${worker.plain}/session/end`, { session_id: created.body.session_id, session_auth: auth(7) })
    const deleted = await eventually("deleted", () => autoscaler.to("/delete_requests/")[0])
    assert.deepInclude(deleted.body, { worker_id: 42, mtoken: "the-master-token" })
    assert.deepInclude(deleted.body.requests[0], { request_idx: 7, success: true, status: "Success" })
    await eventually("no load reported", () => statuses().at(-1)?.cur_load === 0)
  })

  it("goes to one of a thousand that ask at once", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const answers = await Promise.all(Array.from({ length: 1000 }, (_, idx) => create(worker.url, auth(idx))))
    const count = (status: number) => answers.filter((answer) => answer.status === status).length
    assert.deepStrictEqual([count(201), count(429)], [1, 999])
    const deleted = () => autoscaler.to("/delete_requests/").flatMap(({ body }) => body.requests)
    await eventually("999 deleted", () => deleted().length >= 999)
    assert.strictEqual(new Set(deleted().map((request) => request.request_idx)).size, 999)
    const sum = (field: string) => autoscaler.to("/worker_status/").reduce((total, { body }) => total + body[field], 0)
    await eventually("all reported", () => sum("rej_load") === 99_900)
    assert.strictEqual(sum("new_load"), 100)
  })

  it("ends by its lifetime", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const { body } = await create(worker.url, auth(1), { lifetime: 0.2 })
    const deleted = await eventually("expired", () => autoscaler.to("/delete_requests/")[0])
    assert.isAtLeast(deleted.at / 1000, body.expiration - 0.01)
    assert.strictEqual((await create(worker.url, auth(2))).status, 201)
  })

  it("is released by the consumer on the control port", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    assert.deepStrictEqual((await post(`${worker.control}/release`, "")).body, { released: false, reason: "no active session" })
    const { body } = await create(worker.url, auth(1))
    assert.deepStrictEqual(await post(`${worker.control}/release`, ""), {
      status: 200,
      body: { released: true, session_ids: [body.session_id] }
    })
    assert.strictEqual((await create(worker.url, auth(2))).status, 201)
  })

  it("calls back when it closes, without holding up the answer", async () => {
    await using autoscaler = await listen()
    let hang = true
    await using user = await listen((_, response) => hang || response.end())
    await using worker = await startReadyWorker(autoscaler)
    const { body } = await create(worker.url, auth(1), { on_close_route: `${user.url}/closed`, on_close_payload: { job: 7 } })
    const ended = await post(`${worker.url}/session/end`, { session_id: body.session_id, session_auth: auth(1) })
    assert.strictEqual(ended.status, 200)
    await eventually("called back", () => user.notes.length === 1)
    assert.deepStrictEqual(user.notes[0]?.body, { job: 7, session_id: body.session_id })
    hang = false
    assert.strictEqual((await create(worker.url, auth(2))).status, 201)
  })
})

describe("a signature", () => {
  it("is required, of the autoscaler's, for this worker", async () => {
    const keys = generateKeyPairSync("rsa", { modulusLength: 2048 })
    await using autoscaler = await listen((note, response) =>
      response.end(note.path === "/pubkey/" ? keys.publicKey.export({ type: "spki", format: "pem" }) : "{}")
    )
    await using worker = await startReadyWorker(autoscaler, { UNSECURED: "false" })
    const signed = (url: string) => sign("RSA-SHA256", Buffer.from(signedMessage(url)), keys.privateKey).toString("base64")
    const elsewhere = "http://127.0.0.1:1"
    for (const forged of [
      auth(1, { url: worker.url }),
      auth(1, { url: worker.url, signature: signed(elsewhere) }),
      auth(1, { url: elsewhere, signature: signed(elsewhere) })
    ]) {
      assert.strictEqual((await create(worker.url, forged)).status, 401)
      assert.strictEqual((await post(`${worker.url}/ping`, { auth_data: forged, payload: {} })).status, 401)
    }
    const good = auth(1, { url: worker.url, signature: signed(worker.url) })
    assert.strictEqual((await post(`${worker.url}/ping`, { auth_data: good, payload: {} })).status, 200)
    assert.strictEqual((await create(worker.url, good)).status, 201)
  })
})

describe("a bad request", () => {
  const unknown = { session_id: "unknown", session_auth: {} }
  const deep = `${'{"a":'.repeat(2000)}1${"}".repeat(2000)}`
  const cases: ReadonlyArray<readonly [route: string, body: unknown, status: number, names: RegExp]> = [
    ["/session/create", "", 422, /invalid JSON/],
    ["/session/create", "{", 422, /invalid JSON/],
    ["/session/create", "[]", 422, /body/],
    ["/session/create", "null", 422, /body/],
    ["/session/create", {}, 422, /auth_data.*payload/],
    ["/session/create", { auth_data: null, payload: {} }, 422, /auth_data/],
    ["/session/create", { auth_data: auth(1), payload: null }, 422, /payload/],
    ["/session/create", { auth_data: { ...auth(1), url: 1 }, payload: {} }, 422, /auth_data\.url/],
    ["/session/create", { auth_data: auth(1, { cost: -1 }), payload: {} }, 422, /auth_data\.cost/],
    ["/session/create", { auth_data: auth(1, { cost: 1e308 }), payload: {} }, 422, /auth_data\.cost/],
    ["/session/create", { auth_data: auth(1, { cost: "1".repeat(400) }), payload: {} }, 422, /auth_data\.cost/],
    ["/session/create", `"${"x".repeat(2 ** 20)}"`, 413, /too large/],
    ["/session/create", { auth_data: auth(1, { request_idx: "x" }), payload: {} }, 422, /auth_data\.request_idx/],
    ["/session/create", { auth_data: auth(1), payload: { lifetime: "60" } }, 422, /payload\.lifetime/],
    ["/session/create", { auth_data: auth(1), payload: { lifetime: null } }, 422, /payload\.lifetime/],
    ["/session/create", { auth_data: auth(1), payload: { lifetime: 0 } }, 422, /payload\.lifetime/],
    [
      "/session/create",
      { auth_data: auth(1), payload: { on_close_route: "file:///etc/passwd" } },
      422,
      /payload\.on_close_route/
    ],
    ["/session/create", `{"auth_data":${deep},"payload":{}}`, 422, /nested/],
    ["/session/end", {}, 422, /session_id/],
    ["/session/end", { session_id: "" }, 422, /session_id/],
    ["/session/end", { session_id: 5, session_auth: {} }, 422, /session_id/],
    ["/session/end", { session_id: "x", session_auth: "string" }, 422, /session_auth/],
    ["/session/end", unknown, 400, /not found/],
    ["/session/get", unknown, 400, /not found/],
    ["/session/get", { session_auth: {} }, 422, /session_id/],
    ["/session/health", "7", 422, /body/],
    ["/ping", {}, 422, /auth_data.*payload/],
    ["/ping", { auth_data: auth(1), payload: "text" }, 422, /payload/],
    ["/ping", { auth_data: auth(1), payload: {}, session_id: 7 }, 422, /session_id/],
    ["/ping", { auth_data: auth(1), payload: {}, session_id: "unknown" }, 410, /invalid session/],
    ["/pyworker/update", {}, 401, /unauthorized/],
    ["/no/such/route", {}, 404, /route/]
  ]

  it("gets a 4xx in JSON that names the field, and changes nothing", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    for (const [route, body, status, names] of cases) {
      const answer = await post(`${worker.url}${route}`, body)
      const what = `${route} ${JSON.stringify(body).slice(0, 100)} -> ${JSON.stringify(answer)}`
      assert.strictEqual(answer.status, status, what)
      assert.match(answer.body.error, names, what)
    }
    assert.strictEqual((await create(worker.url, auth(1))).status, 201)
    assert.strictEqual((await post(`${worker.plain}/session/create`, {})).status, 404)
    assert.strictEqual((await post(`${worker.url}/release`, "")).status, 404)
    assert.deepStrictEqual(autoscaler.to("/delete_requests/"), [])
  })

  it("cannot update a worker without its master token, nor one that has none", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    await using open = await startReadyWorker(autoscaler, { MASTER_TOKEN: "" })
    for (const authorization of ["", "Bearer", "Bearer ", "Bearer wrong", "the-master-token"]) {
      assert.strictEqual((await post(`${worker.url}/pyworker/update`, "", { authorization })).status, 401, authorization)
      assert.strictEqual((await post(`${open.url}/pyworker/update`, "", { authorization })).status, 401, authorization)
    }
  })
})

describe("stopping", () => {
  it.each(["SIGTERM", "SIGINT"] as const)(
    "by %s closes the session as a success, with callback and last reports",
    async (signal) => {
      await using autoscaler = await listen()
      await using user = await listen()
      await using worker = await startReadyWorker(autoscaler)
      const { body } = await create(worker.url, auth(9), { on_close_route: `${user.url}/closed` })
      const asked = Date.now()
      assert.strictEqual(await worker.stop(signal), 0)
      assert.isBelow(Date.now() - asked, 8000)
      assert.deepStrictEqual(
        user.notes.map((note) => note.body),
        [{ session_id: body.session_id }]
      )
      assert.deepInclude(autoscaler.to("/delete_requests/").at(-1)?.body.requests[0], { request_idx: 9, status: "Success" })
      const sum = (field: string) => autoscaler.to("/worker_status/").reduce((total, note) => total + note.body[field], 0)
      assert.strictEqual(autoscaler.to("/worker_status/").at(-1)?.body.cur_load, 0)
      assert.deepStrictEqual([sum("new_load"), sum("cur_perf")], [100, 100])
    }
  )

  it("takes less than 8 s when nobody answers and a client sends half a request", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const deaf = await listen(() => {})
    const slow = connect(worker.port, "127.0.0.1")
    slow.on("error", () => {})
    await once(slow, "connect")
    slow.write("POST /session/create HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    await create(worker.url, auth(1), { on_close_route: `${deaf.url}/closed` })
    await autoscaler[Symbol.asyncDispose]()
    const asked = Date.now()
    assert.strictEqual(await worker.stop("SIGTERM"), 0)
    assert.isBelow(Date.now() - asked, 8000)
    slow.destroy()
    await deaf[Symbol.asyncDispose]()
  })
})

describe("starting", () => {
  it("exits 78 with one line on a bad setting, and tells the autoscaler", async () => {
    await using autoscaler = await listen()
    await using worker = await startWorker(autoscaler, { BACKEND_HEALTH_URL: "/health" })
    assert.strictEqual(await worker.exit, 78)
    const line = 'BACKEND_HEALTH_URL="/health": it must be an absolute http or https URL'
    assert.strictEqual(worker.output(), `${line}\n`)
    const [report] = autoscaler.to("/worker_status/")
    assert.deepInclude(report?.body, {
      id: 42,
      loadtime: 0,
      error_msg: `Worker Server failed to launch: ${line}`,
      url: worker.url
    })
  })

  it("tells the autoscaler of a bad setting even when it does not listen the first time, and of the log's settings too", async () => {
    let deaf = 1
    await using autoscaler = await listen((_, response) => {
      response.statusCode = deaf-- > 0 ? 503 : 200
      response.end("{}")
    })
    await using worker = await startWorker(autoscaler, { LOG_FORMAT: "xml" })
    assert.strictEqual(await worker.exit, 78)
    assert.match(autoscaler.to("/worker_status/").at(-1)?.body.error_msg, /LOG_FORMAT="xml": it must be text or json/)
    assert.isAtLeast(autoscaler.notes.length, 2)
  })

  it("exits 78 even where there is nobody to tell", async () => {
    await using worker = run(["worker"])
    assert.strictEqual(await worker.exit, 78)
    assert.match(worker.output(), /^CONTAINER_ID is not set: it must be .*\n$/)
  })

  it("stays and reports when its port is taken, until it is told to stop", async () => {
    await using autoscaler = await listen()
    const [, port] = autoscaler.url.split("127.0.0.1:")
    await using worker = await startWorker(autoscaler, { WORKER_PORT: String(port), [`VAST_TCP_PORT_${port}`]: "1" })
    const failed = await eventually("reported", () => autoscaler.to("/worker_status/").find(({ body }) => body.error_msg !== ""))
    assert.match(failed.body.error_msg, /^Worker Server failed to launch: .*EADDRINUSE/)
    assert.strictEqual(failed.body.loadtime, 0)
    assert.strictEqual(await worker.stop("SIGTERM"), 0)
  })

  it("stays and reports when it has no certificate", async () => {
    await using autoscaler = await listen()
    await using worker = await startWorker(autoscaler, {
      USE_SSL: "true",
      INSTANCE_CERT: "/nowhere.crt",
      INSTANCE_KEY: "/nowhere.key"
    })
    const failed = await eventually("reported", () => autoscaler.to("/worker_status/").find(({ body }) => body.error_msg !== ""))
    assert.match(failed.body.error_msg, /\/nowhere\.crt/)
    assert.match(failed.body.url, /^https:/)
    assert.strictEqual(await worker.stop("SIGTERM"), 0)
  })

  it("asks the consumer's health URL, query and all, and has no health of its own then", async () => {
    await using autoscaler = await listen()
    await using consumer = await listen()
    await using worker = await startReadyWorker(autoscaler, { BACKEND_HEALTH_URL: `${consumer.url}/health?deep=1` })
    assert.deepStrictEqual(
      consumer.notes.map((note) => note.path),
      ["/health?deep=1"]
    )
    assert.strictEqual((await fetch(`${worker.control}/health`)).status, 404)
    await using stub = await startReadyWorker(autoscaler)
    assert.strictEqual((await fetch(`${stub.control}/health`)).status, 200)
  })
})

describe("the log", () => {
  it("is one JSON object a line when asked, and never holds a secret", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler, {
      LOG_FORMAT: "json",
      LOG_LEVEL: "trace",
      VAST_SIGNATURE: "warn",
      UNSECURED: "false"
    })
    await using loud = await startWorker(autoscaler, { BACKEND_HEALTH_URL: "//the-user:the-password@x" })
    assert.strictEqual(await loud.exit, 78)
    assert.notMatch(loud.output(), /the-user|the-password/)
    const secret = auth(3, { signature: "the-signature", url: "http://127.0.0.1/the-url" })
    const { body } = await create(worker.url, secret, {
      on_close_route: `http://the-user:the-password@127.0.0.1:${await freePort()}/x?token=the-query`
    })
    await create(worker.url, secret)
    await post(`${worker.url}/session/end`, { session_id: body.session_id, session_auth: auth(4) })
    await worker.stop("SIGTERM")
    const lines = worker.output().trim().split("\n")
    for (const line of lines) assert.containsAllKeys(JSON.parse(line), ["level", "message", "timestamp"])
    assert.isTrue(lines.some((line) => line.includes("session opened")))
    assert.notMatch(worker.output(), /the-master-token|the-signature|the-url|the-user|the-password|the-query/)
  })
})
