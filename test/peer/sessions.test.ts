/**
 * The peer's session routes, case by case: see CASES.md.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import * as OnClose from "../../src/session/OnClose.ts"
import * as Handler from "../../src/worker/Handler.ts"
import { answering, authData, serving, until } from "./worker.ts"

const sessionRoutes = ["/session/health", "/session/get", "/session/end"]

const ping = Handler.make({
  route: "/ping",
  payload: Schema.JsonObject,
  workload: () => 0,
  parallel: true,
  run: () => Effect.succeed({ ok: true })
})

describe("a body that is no request", () => {
  it.effect.each([...sessionRoutes, "/session/create"])("is answered 422 by %s when it is no JSON", (route) =>
    Effect.gen(function* () {
      const { postText } = yield* serving()
      assert.deepStrictEqual(yield* postText(route, "{"), { status: 422, body: { error: "invalid JSON" } })
    })
  )

  it.effect.each(sessionRoutes)("is answered 422 by %s when it names no session", (route) =>
    Effect.gen(function* () {
      const { post } = yield* serving()
      const missing = yield* post(route, { session_auth: {} })
      assert.strictEqual(missing.status, 422)
      assert.strictEqual(missing.body.error, "missing session_id")
      const empty = yield* post(route, { session_id: "", session_auth: {} })
      assert.strictEqual(empty.status, 422)
      assert.include(empty.body.error, "session_id")
    })
  )

  it.effect.each([
    ["auth_data", { auth_data: null, payload: {} }],
    ["auth_data", { payload: {} }],
    ["payload", { auth_data: authData(), payload: null }],
    ["payload", { auth_data: authData() }]
  ])("is answered 422 by /session/create when %s is null or missing, and takes no slot", ([field, body]) =>
    Effect.gen(function* () {
      const { open, post } = yield* serving()
      const refused = yield* post("/session/create", body)
      assert.strictEqual(refused.status, 422)
      assert.include(refused.body.error, field)
      assert.notStrictEqual((yield* open()).session_id, "undefined")
    })
  )
})

describe("/session/health", () => {
  it.effect("is not ok for a session that is not there, which is no error", () =>
    Effect.gen(function* () {
      const { post } = yield* serving()
      for (const body of [{ session_id: "nope" }, { session_id: "nope", session_auth: null }]) {
        assert.deepStrictEqual(yield* post("/session/health", body), { status: 200, body: { ok: false } })
      }
    })
  )

  it.effect("is ok for whoever holds the session's auth_data", () =>
    Effect.gen(function* () {
      const { open, post } = yield* serving()
      assert.deepStrictEqual(yield* post("/session/health", yield* open()), { status: 200, body: { ok: true } })
    })
  )

  it.effect("refuses whoever holds another auth_data, or none", () =>
    Effect.gen(function* () {
      const { open, post } = yield* serving()
      const { session_id } = yield* open()
      for (const session_auth of [authData({ request_idx: 2 }), null, undefined]) {
        const refused = yield* post("/session/health", { session_id, session_auth })
        assert.strictEqual(refused.status, 401)
        assert.include(refused.body.error, "session_auth")
      }
    })
  )
})

describe("/session/get", () => {
  it.effect("answers 400 for a session that is not there", () =>
    Effect.gen(function* () {
      const { post } = yield* serving()
      for (const session_auth of [{}, null]) {
        const unknown = yield* post("/session/get", { session_id: "nope", session_auth })
        assert.strictEqual(unknown.status, 400)
        assert.isString(unknown.body.error)
      }
    })
  )

  it.effect("shows all of a session to whoever holds its auth_data", () =>
    Effect.gen(function* () {
      const { open, post } = yield* serving()
      yield* TestClock.adjust("100 seconds")
      const payload = { lifetime: 30, on_close_route: "http://user/closed", on_close_payload: { a: 1 } }
      const held = yield* open(payload)
      assert.deepStrictEqual(yield* post("/session/get", held), {
        status: 200,
        body: { session_id: held.session_id, auth_data: held.session_auth, expiration: 130, created_at: 100, ...payload }
      })
    })
  )

  it.effect("refuses whoever holds another auth_data", () =>
    Effect.gen(function* () {
      const { open, post } = yield* serving()
      const { session_id } = yield* open()
      assert.strictEqual((yield* post("/session/get", { session_id, session_auth: { role: "b" } })).status, 401)
    })
  )
})

describe("/session/create", () => {
  it.effect("answers 201 with the session's id and when it ends", () =>
    Effect.gen(function* () {
      const { post } = yield* serving()
      const created = yield* post("/session/create", { auth_data: authData(), payload: { lifetime: 45, on_close_route: null } })
      assert.strictEqual(created.status, 201)
      assert.deepStrictEqual(Object.keys(created.body).sort(), ["expiration", "session_id"])
      assert.strictEqual(created.body.expiration, 45)
    })
  )

  it.effect("gives a session 60 s when the client does not say", () =>
    Effect.gen(function* () {
      const { open, post } = yield* serving()
      assert.deepInclude((yield* post("/session/get", yield* open({}))).body, { lifetime: 60, expiration: 60 })
    })
  )

  it.effect("answers 429 when every slot is taken, and books the load as rejected", () =>
    Effect.gen(function* () {
      const { open, post, reports } = yield* serving({ capacity: 1 })
      yield* open()
      const more = yield* post("/session/create", { auth_data: authData({ request_idx: 2, cost: 7 }), payload: { lifetime: 10 } })
      assert.strictEqual(more.status, 429)
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(reports.statuses.at(-1), { cur_load: 100, rej_load: 7 })
      assert.deepInclude(reports.deleted[0], { request_idx: 2, status: "Rejected", success: false })
    })
  )

  it.effect("takes a callback without a payload for it", () =>
    Effect.gen(function* () {
      const { callbacks, open, post } = yield* serving()
      const held = yield* open({ lifetime: 12, on_close_route: "http://user/closed" })
      assert.deepInclude((yield* post("/session/get", held)).body, {
        on_close_route: "http://user/closed",
        on_close_payload: null
      })
      yield* post("/session/end", held)
      assert.deepStrictEqual(callbacks, [{ sessionId: held.session_id, route: "http://user/closed", payload: null }])
    })
  )

  it.effect("keeps the callback and its payload for the end of the session", () =>
    Effect.gen(function* () {
      const { callbacks, open, post } = yield* serving()
      const held = yield* open({ lifetime: 20, on_close_route: "http://user/closed", on_close_payload: { tag: "x" } })
      assert.deepStrictEqual(callbacks, [])
      yield* post("/session/end", held)
      assert.deepStrictEqual(callbacks, [{ sessionId: held.session_id, route: "http://user/closed", payload: { tag: "x" } }])
    })
  )

  it.effect("gives ids that nobody can guess", () =>
    Effect.gen(function* () {
      const { open } = yield* serving({ capacity: 100 })
      const ids = yield* Effect.forEach(Array(100).fill(undefined), () => Effect.map(open(), ({ session_id }) => session_id))
      assert.strictEqual(new Set(ids).size, 100)
      for (const id of ids) assert.match(id, /^[0-9a-f]{32,}$/)
    })
  )
})

describe("/session/end", () => {
  it.effect("answers 400 for a session that is not there", () =>
    Effect.gen(function* () {
      const { post } = yield* serving()
      const unknown = yield* post("/session/end", { session_id: "ghost", session_auth: { x: 1 } })
      assert.deepStrictEqual(unknown, { status: 400, body: { error: "session with id ghost not found" } })
    })
  )

  it.effect("leaves a session open for whoever holds another auth_data", () =>
    Effect.gen(function* () {
      const { callbacks, open, post } = yield* serving()
      const held = yield* open({ on_close_route: "http://user/closed" })
      assert.strictEqual((yield* post("/session/end", { ...held, session_auth: { ok: false } })).status, 401)
      assert.deepStrictEqual((yield* post("/session/health", held)).body, { ok: true })
      assert.deepStrictEqual(callbacks, [])
    })
  )

  it.effect("ends the session, as a success", () =>
    Effect.gen(function* () {
      const { open, post, reports } = yield* serving()
      const held = yield* open()
      assert.deepStrictEqual(yield* post("/session/end", held), {
        status: 200,
        body: { ended: true, removed_session: held.session_id }
      })
      assert.deepStrictEqual((yield* post("/session/health", held)).body, { ok: false })
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(reports.deleted[0], { request_idx: 1, status: "Success", success: true })
      assert.deepInclude(reports.statuses.at(-1), { cur_load: 0, num_requests_working: 0 })
    })
  )

  it.effect("answers 410 when somebody else closes the session meanwhile", () =>
    Effect.gen(function* () {
      const { open, post } = yield* serving({
        // The other closer comes between our look and our close.
        sessions: (sessions) => ({
          ...sessions,
          close: (session, reason) => Effect.andThen(sessions.close(session, "consumer"), sessions.close(session, reason))
        })
      })
      const ended = yield* post("/session/end", yield* open())
      assert.strictEqual(ended.status, 410)
      assert.include(ended.body.error, "already closed")
    })
  )

  it.effect("ends what its session has in flight", () =>
    Effect.gen(function* () {
      let started = false
      const stuck = Handler.make({
        route: "/stuck",
        payload: Schema.JsonObject,
        run: () =>
          Effect.andThen(
            Effect.sync(() => {
              started = true
            }),
            Effect.never
          )
      })
      const { open, post } = yield* serving({ handlers: [stuck] })
      const held = yield* open()
      const body = { auth_data: held.session_auth, payload: {}, session_id: held.session_id }
      const asking = yield* Effect.forkChild(post("/stuck", body))
      yield* until(() => started)
      assert.isUndefined(asking.pollUnsafe())
      assert.strictEqual((yield* post("/session/end", held)).status, 200)
      assert.deepStrictEqual(yield* Fiber.join(asking), { status: 410, body: { error: "invalid session" } })
    })
  )
})

describe("an open session", () => {
  it.effect("has its whole lifetime before it after a request in it, and no more", () =>
    Effect.gen(function* () {
      const { open, post } = yield* serving({ handlers: [ping] })
      const held = yield* open({ lifetime: 30 })
      const body = { auth_data: held.session_auth, payload: {}, session_id: held.session_id }
      yield* TestClock.adjust("20 seconds")
      for (let times = 0; times < 3; times++) {
        assert.deepStrictEqual(yield* post("/ping", body), { status: 200, body: { result: { ok: true } } })
      }
      assert.strictEqual((yield* post("/session/get", held)).body.expiration, 50)
    })
  )

  it.effect("is extended by nobody who holds another auth_data", () =>
    Effect.gen(function* () {
      const { open, post } = yield* serving({ handlers: [ping] })
      const held = yield* open({ lifetime: 30 })
      yield* TestClock.adjust("20 seconds")
      const other = { auth_data: authData({ request_idx: 2 }), payload: {}, session_id: held.session_id }
      assert.strictEqual((yield* post("/ping", other)).status, 401)
      assert.strictEqual((yield* post("/session/get", held)).body.expiration, 30)
    })
  )

  it.effect("ends at its expiration, with its callback", () =>
    Effect.gen(function* () {
      const { callbacks, open, post } = yield* serving()
      const held = yield* open({ lifetime: 10, on_close_route: "http://user/closed" })
      yield* TestClock.adjust("9999 millis")
      assert.deepStrictEqual((yield* post("/session/health", held)).body, { ok: true })
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual((yield* post("/session/health", held)).body, { ok: false })
      assert.strictEqual(callbacks.length, 1)
    })
  )

  it.effect("calls nobody at its end when no callback was asked for", () =>
    Effect.gen(function* () {
      const { callbacks, open, post } = yield* serving()
      yield* post("/session/end", yield* open({ on_close_route: null, on_close_payload: { ignored: true } }))
      assert.deepStrictEqual(callbacks, [])
    })
  )
})

describe("a callback", () => {
  const outbound = Layer.effect(OnClose.Outbound, HttpClient.HttpClient)
  /** Delivers one callback to a receiver that answers the n-th attempt so, and says what it was sent. */
  const delivering = Effect.fnUntraced(function* (payload: Schema.Json, answer: (attempt: number) => Response | undefined) {
    const posts: Array<{ readonly url: string; readonly body: unknown }> = []
    const receiver = answering((to, body) => {
      posts.push({ url: to.href, body: JSON.parse(body) })
      return answer(posts.length)
    })
    const { deliver } = yield* Effect.provide(
      OnClose.OnClose,
      yield* Layer.build(OnClose.layer.pipe(Layer.provide(outbound), Layer.provide(receiver)))
    )
    yield* deliver({ sessionId: "cb", route: "http://user/hook", payload }, Effect.void)
    yield* TestClock.adjust("1 millis")
    return posts
  })

  it.effect.each<[string, Schema.Json, unknown]>([
    ["an object", { foo: "bar" }, { foo: "bar", session_id: "cb" }],
    ["a scalar", "done", { payload: "done", session_id: "cb" }],
    ["nothing", null, { session_id: "cb" }]
  ])("brings the session's id with %s as its payload", ([, payload, body]) =>
    Effect.gen(function* () {
      const posts = yield* delivering(payload, () => new Response("ok"))
      assert.deepStrictEqual(posts, [{ url: "http://user/hook", body }])
    })
  )

  it.effect.each<[string, Response | undefined]>([
    ["answers 503", new Response("unavailable", { status: 503 })],
    ["cannot be reached", undefined]
  ])("harms nobody when its receiver %s, and is tried again", ([, broken]) =>
    Effect.gen(function* () {
      const posts = yield* delivering({}, (attempt) => (attempt === 1 ? broken : new Response("ok")))
      assert.strictEqual(posts.length, 1)
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(posts.length, 2)
    })
  )
})
