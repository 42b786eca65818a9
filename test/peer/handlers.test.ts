/**
 * The peer's handled requests, handler settings and workload calculators, case by case: see CASES.md.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as Handler from "../../src/worker/Handler.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import { answering, authData, autoscaler, serving, until, url } from "./worker.ts"

const request = (payload: unknown = {}, more: Record<string, unknown> = {}) => ({ auth_data: authData(more), payload })

/** A handler whose work takes until the test opens the gate. */
const gated = (options: Partial<Handler.Options<Schema.JsonObject>> = {}) =>
  Effect.gen(function* () {
    const gate = yield* Deferred.make<void>()
    const begun: Array<Schema.Json> = []
    const handler = Handler.make({
      route: "/work",
      payload: Schema.JsonObject,
      ...options,
      run: ({ name = null }) =>
        Effect.andThen(
          Effect.sync(() => void begun.push(name)),
          Effect.as(Deferred.await(gate), name)
        )
    })
    return { begun, gate, handler }
  })

const echo = (options: Partial<Handler.Options<Schema.JsonObject>> = {}) =>
  Handler.make({ route: "/echo", payload: Schema.JsonObject, parallel: true, ...options, run: Effect.succeed })

/** Forwards to a model server that answers so, and says what it was asked. */
const forwarding = (
  answer: () => Response | undefined,
  options: Partial<Parameters<typeof Handler.forward<Schema.JsonObject>>[0]> = {}
) => {
  const asked: Array<{ readonly url: string; readonly body: unknown }> = []
  const model = answering((to, body) => {
    asked.push({ url: to.href, body: JSON.parse(body) })
    return answer()
  })
  const handler = Handler.forward({ route: "/predict", payload: Schema.JsonObject, to: "http://model/predict", ...options })
  return { asked, handler: Layer.provide(handler, model) as Handler.Handler }
}

describe("a request", () => {
  it.effect("is answered 422 when its body is no JSON", () =>
    Effect.gen(function* () {
      const { postText } = yield* serving({ handlers: [echo()] })
      assert.deepStrictEqual(yield* postText("/echo", "[[["), { status: 422, body: { error: "invalid JSON" } })
    })
  )

  it.effect("is answered 422 with what is wrong under each field's name", () =>
    Effect.gen(function* () {
      const strict = Handler.make({ route: "/x", payload: Schema.Struct({ field: Schema.Int }), run: () => Effect.succeed(null) })
      const { post } = yield* serving({ handlers: [strict] })
      const refused = yield* post("/x", request({ field: "bad" }))
      assert.strictEqual(refused.status, 422)
      assert.deepStrictEqual(Object.keys(refused.body.payload), ["field"])
    })
  )

  it.effect("is answered 410 when its session is not there, and never begins", () =>
    Effect.gen(function* () {
      const { begun, handler } = yield* gated()
      const { post } = yield* serving({ handlers: [handler] })
      assert.deepStrictEqual(yield* post("/work", { ...request(), session_id: "no-such-session" }), {
        status: 410,
        body: { error: "invalid session" }
      })
      assert.deepStrictEqual(begun, [])
    })
  )

  it.effect("is answered 401 while there is no key to check its signature by", () =>
    Effect.gen(function* () {
      const { begun, handler } = yield* gated()
      const noKey = Layer.provide(
        RequestAuth.layer,
        answering(() => Effect.never)
      )
      const { post } = yield* serving({ handlers: [handler], auth: noKey })
      assert.strictEqual((yield* post("/work", request())).status, 401)
      assert.deepStrictEqual(begun, [])
    })
  )

  it.effect("passes with the autoscaler's signature of this worker's URL, and with no other", () =>
    Effect.gen(function* () {
      const { pem, sign } = autoscaler()
      const keyed = Layer.provide(
        RequestAuth.layer,
        answering(() => new Response(pem))
      )
      const { post } = yield* serving({ handlers: [echo()], auth: keyed })
      const status = (signed: Record<string, string>) => Effect.map(post("/echo", request({}, signed)), (answer) => answer.status)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(yield* status({ url, signature: sign(url) }), 200)
      assert.strictEqual(yield* status({ url: `${url}/different`, signature: sign(url) }), 401)
      const elsewhere = "https://tenant.example/v1/predict"
      assert.strictEqual(yield* status({ url: elsewhere, signature: sign(elsewhere) }), 401)
    })
  )

  it.effect("is answered with the work's result", () =>
    Effect.gen(function* () {
      const { post } = yield* serving({ handlers: [echo()] })
      assert.deepStrictEqual(yield* post("/echo", request({ input: 1 })), { status: 200, body: { result: { input: 1 } } })
    })
  )

  it.effect("is answered 429 when the queue is longer than its handler lets it wait, and booked as rejected", () =>
    Effect.gen(function* () {
      const { begun, gate, handler } = yield* gated({ parallel: true, maxQueueTime: 10 })
      const { post, reporter, reports } = yield* serving({ handlers: [handler] })
      yield* reporter.ready({ loadtime: 1, maxPerf: 5 })
      const first = yield* Effect.forkChild(post("/work", request({ name: "first" })))
      yield* until(() => begun.length === 1)
      assert.strictEqual((yield* post("/work", request({ name: "second" }, { request_idx: 2 }))).status, 429)
      assert.deepStrictEqual(begun, ["first"])
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(first)
      yield* TestClock.adjust("3 seconds")
      assert.deepInclude(reports.deleted[0], { request_idx: 2, status: "Rejected" })
      assert.strictEqual(
        reports.statuses.reduce((sum, { rej_load }) => sum + rej_load, 0),
        100
      )
    })
  )

  // 500 today: see CASES.md.
  it.effect("is answered 429 by a worker that is not ready, whose queue has no end", () =>
    Effect.gen(function* () {
      const { begun, gate, handler } = yield* gated({ parallel: true, maxQueueTime: 10 })
      const { post } = yield* serving({ handlers: [handler] })
      const first = yield* Effect.forkChild(post("/work", request({ name: "first" })))
      yield* until(() => begun.length === 1)
      assert.strictEqual((yield* post("/work", request({ name: "second" }))).status, 429)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(first)
    })
  )

  it.effect("is answered 500 when its work fails, and booked as an error", () =>
    Effect.gen(function* () {
      const broken = Handler.make({
        route: "/x",
        payload: Schema.Json,
        run: () => Effect.fail(new Error("model exploded"))
      })
      const { post, reports } = yield* serving({ handlers: [broken] })
      assert.strictEqual((yield* post("/x", request())).status, 500)
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(reports.deleted[0], { request_idx: 1, status: "Error", success: false })
    })
  )

  it.effect("works when it is alone in the queue", () =>
    Effect.gen(function* () {
      const { post } = yield* serving({ handlers: [echo({ parallel: false })] })
      assert.strictEqual((yield* post("/echo", request())).status, 200)
    })
  )

  it.effect("waits its turn behind the request before it", () =>
    Effect.gen(function* () {
      const { begun, gate, handler } = yield* gated({ parallel: false })
      const { post, reports } = yield* serving({ handlers: [handler] })
      const first = yield* Effect.forkChild(post("/work", request({ name: "first" })))
      yield* until(() => begun.length === 1)
      const second = yield* Effect.forkChild(post("/work", request({ name: "second" }, { request_idx: 2 })))
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(begun, ["first"])
      assert.strictEqual(reports.statuses.at(-1)?.num_requests_working, 2)
      yield* Deferred.succeed(gate, undefined)
      assert.strictEqual((yield* Fiber.join(first)).status, 200)
      assert.strictEqual((yield* Fiber.join(second)).status, 200)
      assert.deepStrictEqual(begun, ["first", "second"])
    })
  )

  it.effect("that leaves the queue before its turn is cancelled, and never begins", () =>
    Effect.gen(function* () {
      const { begun, gate, handler } = yield* gated({ parallel: false })
      const { post, reports } = yield* serving({ handlers: [handler] })
      const first = yield* Effect.forkChild(post("/work", request({ name: "first" })))
      yield* until(() => begun.length === 1)
      const second = yield* Effect.forkChild(post("/work", request({ name: "second" }, { request_idx: 2 })))
      yield* TestClock.adjust("2 seconds")
      yield* Fiber.interrupt(second)
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(reports.deleted[0], { request_idx: 2, status: "Cancelled", success: true })
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(first)
      assert.deepStrictEqual(begun, ["first"])
    })
  )

  // Waits on and begins today: see CASES.md.
  it.effect("that waits its turn ends with its session, and never begins", () =>
    Effect.gen(function* () {
      const { begun, gate, handler } = yield* gated({ parallel: false })
      const { open, post } = yield* serving({ handlers: [handler] })
      const held = yield* open()
      const first = yield* Effect.forkChild(post("/work", request({ name: "first" }, { request_idx: 9 })))
      yield* until(() => begun.length === 1)
      const within = { auth_data: held.session_auth, payload: { name: "second" }, session_id: held.session_id }
      const second = yield* Effect.forkChild(post("/work", within))
      yield* TestClock.adjust("2 seconds")
      yield* post("/session/end", held)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.join(first)
      assert.strictEqual((yield* Fiber.join(second)).status, 410)
      assert.deepStrictEqual(begun, ["first"])
    })
  )

  // An error, and so still new load, today: see CASES.md.
  it.effect("that ends with its session is cancelled, and so no new load", () =>
    Effect.gen(function* () {
      const { begun, handler } = yield* gated({ parallel: true, workload: () => 7 })
      const { open, post, reports } = yield* serving({ handlers: [handler] })
      const held = yield* open()
      const within = { auth_data: held.session_auth, payload: {}, session_id: held.session_id }
      const asking = yield* Effect.forkChild(post("/work", within))
      yield* until(() => begun.length === 1)
      yield* post("/session/end", held)
      yield* Fiber.join(asking)
      yield* TestClock.adjust("3 seconds")
      assert.strictEqual(
        reports.statuses.reduce((sum, { new_load }) => sum + new_load, 0),
        100
      )
    })
  )

  // Begins when it comes in, by the report, today: see CASES.md.
  it.effect("is reported to begin when its turn comes", () =>
    Effect.gen(function* () {
      const { begun, gate, handler } = yield* gated({ parallel: false })
      const { post, reports } = yield* serving({ handlers: [handler] })
      const first = yield* Effect.forkChild(post("/work", request({ name: "first" })))
      yield* until(() => begun.length === 1)
      const second = yield* Effect.forkChild(post("/work", request({ name: "second" }, { request_idx: 2 })))
      yield* TestClock.adjust("7 seconds")
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.joinAll([first, second])
      yield* TestClock.adjust("2 seconds")
      const [, done] = reports.deleted
      assert.deepInclude(done, { request_idx: 2, entered_queue_at: 0, work_started_at: 7, work_completed_at: 7 })
    })
  )

  it.effect("finds no route where no handler is", () =>
    Effect.gen(function* () {
      const { post } = yield* serving({ handlers: [echo()] })
      assert.deepStrictEqual(yield* post("/unknown", request()), { status: 404, body: { error: "no such route" } })
    })
  )

  it.effect("finds each handler at its own route", () =>
    Effect.gen(function* () {
      const { handler } = forwarding(() => new Response("{}"), { route: "/v1/chat" })
      const { post } = yield* serving({ handlers: [echo(), handler] })
      assert.strictEqual((yield* post("/echo", request())).status, 200)
      assert.deepStrictEqual(yield* post("/v1/chat", request()), { status: 200, body: {} })
    })
  )
})

describe("a payload", () => {
  const answered = (payload: Schema.Codec<Schema.Json, unknown>) =>
    Effect.map(serving({ handlers: [Handler.make({ route: "/x", payload, run: Effect.succeed })] }), ({ post }) => post)

  it.effect("comes through as it was sent", () =>
    Effect.gen(function* () {
      const post = yield* answered(Schema.JsonObject)
      assert.deepStrictEqual((yield* post("/x", request({ key: "v" }))).body, { result: { key: "v" } })
    })
  )

  it.effect("comes through as its parser makes it", () =>
    Effect.gen(function* () {
      const post = yield* answered(Schema.Struct({ count: Schema.FiniteFromString }))
      assert.deepStrictEqual((yield* post("/x", request({ count: "7" }))).body, { result: { count: 7 } })
    })
  )

  it.effect("is refused by name when it is no object", () =>
    Effect.gen(function* () {
      const post = yield* answered(Schema.JsonObject)
      const refused = yield* post("/x", request([1, 2, 3]))
      assert.strictEqual(refused.status, 422)
      assert.property(refused.body, "payload")
    })
  )

  it.effect("is refused when its parser refuses it, saying why", () =>
    Effect.gen(function* () {
      const even = Schema.Struct({ n: Schema.Int.check(Schema.makeFilter((n: number) => n % 2 === 0, { expected: "even" })) })
      const post = yield* answered(even)
      const refused = yield* post("/x", request({ n: 1 }))
      assert.strictEqual(refused.status, 422)
      assert.include(refused.body.payload.n, "even")
    })
  )

  it.effect("is answered 500 when its parser breaks", () =>
    Effect.gen(function* () {
      const broken = Schema.Json.check(
        Schema.makeFilter(() => {
          throw new Error("parser error")
        })
      )
      const post = yield* answered(broken)
      assert.deepStrictEqual(yield* post("/x", request()), { status: 500, body: { error: "internal error" } })
    })
  )
})

describe("a request's workload", () => {
  const booked = (workload?: (payload: Schema.JsonObject) => number, payload: Schema.Json = {}) =>
    Effect.gen(function* () {
      const { post, reports } = yield* serving({ handlers: [echo(workload === undefined ? {} : { workload })] })
      yield* post("/echo", request(payload))
      yield* TestClock.adjust("2 seconds")
      return reports.statuses.reduce((sum, { cur_perf }) => sum + cur_perf, 0)
    })

  it.effect("is 100 when nobody says", () => Effect.map(booked(), (load) => assert.strictEqual(load, 100)))

  it.effect("is what its handler makes of the payload", () =>
    Effect.map(
      booked(({ a, b }) => (a as Array<number>).length * (b as Array<number>).length, { a: [1, 2, 3], b: [4, 5] }),
      (load) => assert.strictEqual(load, 6)
    )
  )

  it.effect("is 100 when its handler cannot say", () =>
    Effect.map(
      booked(() => {
        throw new Error("bad input")
      }),
      (load) => assert.strictEqual(load, 100)
    )
  )

  it.effect.each([-1, Number.NaN, Number.POSITIVE_INFINITY, 1e300])("is 100 when its handler says %d", (said) =>
    Effect.map(
      booked(() => said),
      (load) => assert.strictEqual(load, 100)
    )
  )
})

describe("a forwarded request", () => {
  it.effect("POSTs its payload to the model server and brings back status, type and body", () =>
    Effect.gen(function* () {
      const { asked, handler } = forwarding(
        () => new Response('{"ok": true}', { status: 201, headers: { "content-type": "application/json" } })
      )
      const { send } = yield* serving({ handlers: [handler] })
      const response = yield* send("/predict", JSON.stringify(request({ input: {} })))
      assert.strictEqual(response.status, 201)
      assert.strictEqual(response.headers.get("content-type"), "application/json")
      assert.strictEqual(yield* Effect.promise(() => response.text()), '{"ok": true}')
      assert.deepStrictEqual(asked, [{ url: "http://model/predict", body: { input: {} } }])
    })
  )

  it.effect("passes a stream on as it comes, and is under way until its end", () =>
    Effect.gen(function* () {
      const more = yield* Deferred.make<void>()
      const chunks = Stream.make("chunk1").pipe(
        Stream.concat(Stream.fromEffect(Effect.as(Deferred.await(more), "chunk2"))),
        Stream.encodeText
      )
      const { handler } = forwarding(
        () => new Response(Stream.toReadableStream(chunks), { headers: { "content-type": "text/event-stream" } })
      )
      const { reports, send } = yield* serving({ handlers: [handler] })
      const response = yield* send("/predict", JSON.stringify(request()))
      assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
      const reader = (response.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream()).getReader()
      assert.deepStrictEqual(yield* Effect.promise(() => reader.read()), { done: false, value: "chunk1" })
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(reports.statuses.at(-1)?.num_requests_working, 1)
      yield* Deferred.succeed(more, undefined)
      assert.deepStrictEqual(yield* Effect.promise(() => reader.read()), { done: false, value: "chunk2" })
      assert.isTrue((yield* Effect.promise(() => reader.read())).done)
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(reports.deleted[0], { request_idx: 1, status: "Success" })
    })
  )

  it.effect("sends what its handler makes of the payload", () =>
    Effect.gen(function* () {
      const { asked, handler } = forwarding(() => new Response("{}"), {
        request: ({ raw = null }) => ({ parsed: raw })
      })
      const { post } = yield* serving({ handlers: [handler] })
      yield* post("/predict", request({ raw: "value" }))
      assert.deepStrictEqual(asked[0]?.body, { parsed: "value" })
    })
  )

  it.effect("is answered as its handler makes the answer", () =>
    Effect.gen(function* () {
      const { handler } = forwarding(() => new Response("{}"), {
        response: () => Effect.succeed(HttpServerResponse.text("custom", { status: 201 }))
      })
      const { send } = yield* serving({ handlers: [handler] })
      const response = yield* send("/predict", JSON.stringify(request()))
      assert.strictEqual(response.status, 201)
      assert.strictEqual(yield* Effect.promise(() => response.text()), "custom")
    })
  )

  it.effect("is answered 502 when the answer cannot be made, and booked as an error", () =>
    Effect.gen(function* () {
      const { handler } = forwarding(() => new Response("{}"), {
        response: () => Effect.fail(new Error("generator failed"))
      })
      const { post, reports } = yield* serving({ handlers: [handler] })
      assert.strictEqual((yield* post("/predict", request())).status, 502)
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(reports.deleted[0], { status: "Error", success: false })
    })
  )

  it.effect("is answered 502 when the model server cannot be reached, and booked as an error", () =>
    Effect.gen(function* () {
      const { handler } = forwarding(() => undefined)
      const { post, reports } = yield* serving({ handlers: [handler] })
      assert.strictEqual((yield* post("/predict", request())).status, 502)
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(reports.deleted[0], { status: "Error", success: false })
    })
  )
})
