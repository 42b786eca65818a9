import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { WorkerConfig } from "../../src/config.ts"
import { ping } from "../../src/main.ts"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import * as OnClose from "../../src/session/OnClose.ts"
import * as Session from "../../src/session/Session.ts"
import * as SessionSlot from "../../src/session/SessionSlot.ts"
import * as Refusals from "../../src/worker/Refusals.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import * as WorkerServer from "../../src/worker/WorkerServer.ts"

/** The public port's routes without a port. */
const serving = Effect.fnUntraced(function* (write: FileSystem.FileSystem["writeFileString"]) {
  const services = yield* Layer.build(
    Session.layer.pipe(
      Layer.provide(Layer.succeed(OnClose.OnClose, { deliver: () => Effect.void })),
      Layer.provide(SessionSlot.layerCapacity(1)),
      Layer.provideMerge(MetricsReporter.layerTest),
      Layer.provideMerge(RequestAuth.layerOff),
      Layer.provideMerge(FileSystem.layerNoop({ writeFileString: write })),
      Layer.provideMerge(
        Layer.succeed(WorkerConfig, {
          id: 1,
          masterToken: Redacted.make("the-token"),
          reportAddresses: ["http://autoscaler"],
          url: "http://worker",
          port: 3000,
          httpPort: 3001,
          controlPort: 18999,
          tls: Option.none(),
          signaturePolicy: "off",
          healthUrl: Option.none(),
          maxSessions: 1
        })
      )
    )
  )
  const app = yield* Effect.acquireRelease(
    Effect.sync(() =>
      HttpRouter.toWebHandler(
        Layer.merge(WorkerServer.routes([ping]), Refusals.layer).pipe(Layer.provide(Layer.succeedContext(services))),
        {
          disableLogger: true
        }
      )
    ),
    ({ dispose }) => Effect.promise(dispose)
  )
  const post = (path: string, body: unknown, headers: Record<string, string> = {}) =>
    Effect.promise(async () => {
      const response = await app.handler(
        new Request(`http://worker${path}`, { method: "POST", headers, body: JSON.stringify(body) })
      )
      return { status: response.status, body: (await response.json()) as Record<string, unknown> }
    })
  return { post, services }
})

describe("the public port", () => {
  it.effect("asks the instance for an update when the holder of the master token says so", () =>
    Effect.gen(function* () {
      const written: Array<string> = []
      const { post } = yield* serving((path) => Effect.sync(() => void written.push(path)))
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
      const { post } = yield* serving(() => Effect.die("disk on fire"))
      const broken = yield* post("/pyworker/update", {}, { authorization: "Bearer the-token" })
      assert.deepStrictEqual(broken, { status: 500, body: { error: "internal error" } })
      assert.strictEqual((yield* post("/ping", { auth_data: { url: "u" }, payload: {} })).status, 200)
    })
  )

  it.effect("sends clients elsewhere once the worker stops", () =>
    Effect.gen(function* () {
      const { post, services } = yield* serving(() => Effect.void)
      const create = { auth_data: { url: "u" }, payload: {} }
      const { session_id } = (yield* post("/session/create", create)).body
      yield* Effect.flatMap(Session.Sessions, (sessions) => sessions.shutdown).pipe(Effect.provide(services))
      assert.strictEqual((yield* post("/session/create", create)).status, 503)
      assert.strictEqual((yield* post("/session/end", { session_id, session_auth: { url: "u" } })).status, 400)
    })
  )

  it.effect("books a ping that is in no session, and has the autoscaler forget it", () =>
    Effect.gen(function* () {
      const { post, services } = yield* serving(() => Effect.void)
      const reports = yield* Effect.provide(MetricsReporter.RecordedReports, services)
      yield* post("/ping", { auth_data: { url: "u", request_idx: 5 }, payload: {} })
      yield* Effect.yieldNow
      assert.deepInclude(reports.deleted[0], { request_idx: 5, status: "Success" })
    })
  )
})
