import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { ping } from "../../src/main.ts"
import * as Session from "../../src/session/Session.ts"
import { serving } from "./serving.ts"

describe("the public port", () => {
  it.effect("asks the instance for an update when the holder of the master token says so", () =>
    Effect.gen(function* () {
      const written: Array<string> = []
      const { post } = yield* serving([ping], (path) => Effect.sync(() => void written.push(path)))
      assert.strictEqual((yield* post("/pyworker/update", {}, { authorization: "Bearer no" })).status, 401)
      assert.deepStrictEqual(written, [])
      assert.deepStrictEqual(yield* post("/pyworker/update", {}, { authorization: "Bearer the-token" }), {
        status: 200,
        body: { ok: true }
      })
      assert.deepStrictEqual(written, ["/.force_update"])
    })
  )

  it.effect("answers 500 in JSON, and goes on, when something breaks that nobody foresaw", () =>
    Effect.gen(function* () {
      const { post } = yield* serving([ping], () => Effect.die("disk on fire"))
      const broken = yield* post("/pyworker/update", {}, { authorization: "Bearer the-token" })
      assert.deepStrictEqual(broken, { status: 500, body: { error: "internal error" } })
      assert.strictEqual((yield* post("/ping", { auth_data: { url: "u" }, payload: {} })).status, 200)
    })
  )

  it.effect("sends clients elsewhere once the worker stops", () =>
    Effect.gen(function* () {
      const { post, services } = yield* serving([ping])
      const create = { auth_data: { url: "u" }, payload: {} }
      const { session_id } = (yield* post("/session/create", create)).body
      yield* Effect.flatMap(Session.Sessions, (sessions) => sessions.shutdown).pipe(Effect.provide(services))
      assert.strictEqual((yield* post("/session/create", create)).status, 503)
      assert.strictEqual((yield* post("/session/end", { session_id, session_auth: { url: "u" } })).status, 400)
    })
  )

  it.effect("lets no callback go to a metadata address, unless it is told that it may", () =>
    Effect.gen(function* () {
      const create = { auth_data: { url: "u" }, payload: { on_close_route: "http://169.254.169.254/latest/" } }
      const refused = yield* (yield* serving([ping])).post("/session/create", create)
      assert.strictEqual(refused.status, 422)
      assert.match(String(refused.body.error), /payload\.on_close_route/)
      const daring = yield* serving([ping], undefined, { onCloseAllowPrivate: true })
      assert.strictEqual((yield* daring.post("/session/create", create)).status, 201)
    })
  )

  it.effect("books a ping that is in no session, and has the autoscaler forget it", () =>
    Effect.gen(function* () {
      const { post, reports } = yield* serving([ping])
      yield* post("/ping", { auth_data: { url: "u", request_idx: 5 }, payload: {} })
      yield* Effect.yieldNow
      assert.deepInclude(reports.deleted[0], { request_idx: 5, status: "Success" })
    })
  )
})
