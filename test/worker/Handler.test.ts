import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { MetricsReporter } from "../../src/metrics/MetricsReporter.ts"
import { Sessions } from "../../src/session/Session.ts"
import * as Handler from "../../src/worker/Handler.ts"
import { serving } from "./serving.ts"

const auth = (request_idx: number) => ({ url: "http://worker", request_idx })
const request = (request_idx: number, payload: unknown = {}, session_id: string | null = null) => ({
  auth_data: auth(request_idx),
  payload,
  session_id
})
const Prompt = Schema.Struct({ prompt: Schema.String })

/** Other fibers and promises get on until this holds; nothing here waits for time to pass. */
const until = (holds: () => boolean) => Effect.yieldNow.pipe(Effect.repeat({ until: holds, times: 10_000 }))

describe("make", () => {
  it.live("answers with the effect's result, typed by the payload's schema", () =>
    Effect.gen(function* () {
      const shout = Handler.make({
        route: "/shout",
        payload: Prompt,
        workload: ({ prompt }) => prompt.length,
        run: ({ prompt }) => Effect.succeed(prompt.toUpperCase())
      })
      const { post, reports } = yield* serving([shout])
      assert.deepStrictEqual(yield* post("/shout", request(1, { prompt: "hello" })), { status: 200, body: { result: "HELLO" } })
      const refused = yield* post("/shout", request(2, { prompt: 7 }))
      assert.deepInclude(refused, { status: 422 })
      assert.deepInclude(refused.body, { payload: { prompt: "Expected string" } })
      yield* until(() => reports.deleted.length > 0)
      assert.deepInclude(reports.deleted[0], { request_idx: 1, status: "Success" })
      assert.strictEqual(reports.deleted.length, 1)
    })
  )

  it.live.each([
    ["fails", Effect.fail(new Error("out of memory")), "out of memory"],
    ["crashes", Effect.die(new Error("bug")), "internal error"]
  ] as const)("answers 500 and reports an error when the effect %s", ([, run, error]) =>
    Effect.gen(function* () {
      const { post, reports } = yield* serving([Handler.make({ route: "/x", payload: Schema.Json, run: () => run })])
      assert.deepStrictEqual(yield* post("/x", request(1)), { status: 500, body: { error } })
      yield* until(() => reports.deleted.length > 0)
      assert.deepInclude(reports.deleted[0], { request_idx: 1, status: "Error", success: false })
    })
  )

  it.live("interrupts the effect when its client goes away, and reports a cancelled request", () =>
    Effect.gen(function* () {
      const interrupted = yield* Deferred.make<void>()
      const started = yield* Deferred.make<void>()
      const run = () =>
        Deferred.succeed(started, undefined).pipe(
          Effect.andThen(Effect.never),
          Effect.onInterrupt(() => Deferred.succeed(interrupted, undefined))
        )
      const { reports, send } = yield* serving([Handler.make({ route: "/x", payload: Schema.Json, run })])
      const client = yield* Effect.forkChild(send("/x", request(1)))
      yield* Deferred.await(started)
      yield* Fiber.interrupt(client)
      yield* Deferred.await(interrupted)
      yield* until(() => reports.deleted.length > 0)
      assert.deepInclude(reports.deleted[0], { request_idx: 1, status: "Cancelled", success: true })
    })
  )

  it.live.each([() => Number.NaN, () => -1, () => Number.POSITIVE_INFINITY, () => assert.fail("calculator broken")])(
    "falls back to 100 of load when the calculator gives none (%#)",
    (workload) =>
      Effect.gen(function* () {
        const { post, reports } = yield* serving([
          Handler.make({ route: "/x", payload: Schema.Json, workload, run: () => Effect.succeed(null) })
        ])
        assert.strictEqual((yield* post("/x", request(1))).status, 200)
        yield* until(() => reports.statuses.some((status) => status.cur_perf > 0))
        assert.strictEqual(
          reports.statuses.reduce((sum, status) => sum + status.new_load, 0),
          100
        )
      })
  )

  const gated = Effect.gen(function* () {
    const running: Array<unknown> = []
    const gate = yield* Deferred.make<void>()
    const run = (payload: Schema.Json) => {
      running.push(payload)
      return Effect.as(Deferred.await(gate), null)
    }
    return { gate, run, running }
  })

  it.live("takes requests one at a time, in the order in which they came, unless told otherwise", () =>
    Effect.gen(function* () {
      const { gate, run, running } = yield* gated
      const { post } = yield* serving([
        Handler.make({ route: "/a", payload: Schema.Json, run }),
        Handler.make({ route: "/b", payload: Schema.Json, run }),
        Handler.make({ route: "/parallel", payload: Schema.Json, parallel: true, run })
      ])
      const fibers: Array<Fiber.Fiber<unknown>> = []
      for (const [idx, route] of ["/a", "/b", "/a", "/parallel"].entries()) {
        fibers.push(yield* Effect.forkChild(post(route, request(idx, idx))))
        // Real requests, so that only real time tells that one has arrived before the next is sent.
        yield* Effect.sleep(5)
      }
      assert.deepStrictEqual(running, [0, 3])
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.awaitAll(fibers)
      assert.deepStrictEqual(running, [0, 3, 1, 2])
    })
  )

  it.live("refuses with 429 when the queue is longer than maxQueueTime", () =>
    Effect.gen(function* () {
      const { gate, run } = yield* gated
      const { post, reports, services } = yield* serving([
        Handler.make({ route: "/x", payload: Schema.Json, maxQueueTime: 1, parallel: true, run })
      ])
      // The worker serves 100 a second, and each request is 100.
      const { ready } = yield* Effect.provide(MetricsReporter, services)
      yield* ready({ loadtime: 1, maxPerf: 100 })
      const first = yield* Effect.forkChild(post("/x", request(1)))
      const second = yield* Effect.forkChild(post("/x", request(2)))
      yield* until(() => reports.statuses.at(-1)?.num_requests_working === 2)
      assert.strictEqual((yield* post("/x", request(3))).status, 429)
      yield* Deferred.succeed(gate, undefined)
      yield* Fiber.awaitAll([first, second])
      yield* until(() => reports.deleted.length === 3)
      assert.deepInclude(reports.deleted[0], { request_idx: 3, status: "Rejected" })
    })
  )

  it.live("ends requests with their session: 410 before the answer", () =>
    Effect.gen(function* () {
      const { gate, run, running } = yield* gated
      const { post, services } = yield* serving([Handler.make({ route: "/x", payload: Schema.Json, run })])
      const { session_id } = (yield* post("/session/create", { auth_data: auth(1), payload: {} })).body
      const asked = yield* Effect.forkChild(post("/x", request(1, {}, String(session_id))))
      yield* until(() => running.length === 1)
      yield* Effect.provide(
        Effect.flatMap(Sessions, (sessions) => sessions.closeAll("consumer")),
        services
      )
      assert.deepStrictEqual(yield* Fiber.join(asked), { status: 410, body: { error: "invalid session" } })
      assert.strictEqual((yield* post("/x", request(1, {}, String(session_id)))).status, 410)
      yield* Deferred.succeed(gate, undefined)
    })
  )

  it.live("refuses a request in a session that is somebody else's", () =>
    Effect.gen(function* () {
      const { post } = yield* serving([Handler.make({ route: "/x", payload: Schema.Json, run: () => Effect.succeed(1) })])
      const { session_id } = (yield* post("/session/create", { auth_data: auth(1), payload: {} })).body
      assert.strictEqual((yield* post("/x", request(2, {}, String(session_id)))).status, 401)
      assert.strictEqual((yield* post("/x", request(1, {}, String(session_id)))).status, 200)
    })
  )
})

describe("forward", () => {
  /** A model server that answers as told. */
  const model = (answer: (body: unknown) => Response | "refused") =>
    Layer.succeed(
      HttpClient.HttpClient,
      HttpClient.make((request, url) =>
        Effect.gen(function* () {
          assert.strictEqual(url.href, "http://model/v1/generate")
          const text = request.body._tag === "Uint8Array" ? new TextDecoder().decode(request.body.body) : "null"
          const response = answer(JSON.parse(text))
          if (response === "refused") return yield* Effect.die("the test needs no refusal")
          return HttpClientResponse.fromWeb(request, response)
        })
      )
    )

  it.live("passes the answer on as it comes: status, headers, bytes", () =>
    Effect.gen(function* () {
      const bytes = 'data: {"a": 1}\n\ndata: \u00e9\u20ac\n\ndata: [DONE]\n\n'
      const generate = Handler.forward({ route: "/generate", payload: Prompt, to: "http://model/v1/generate" }).pipe(
        Layer.provide(
          model((body) => {
            assert.deepStrictEqual(body, { prompt: "hi" })
            return new Response(bytes, { status: 206, headers: { "content-type": "text/event-stream", "x-model": "m1" } })
          })
        )
      )
      const { reports, send } = yield* serving([generate])
      const response = yield* send("/generate", request(1, { prompt: "hi" }))
      assert.strictEqual(response.status, 206)
      assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
      assert.strictEqual(response.headers.get("x-model"), "m1")
      assert.strictEqual(yield* Effect.promise(() => response.text()), bytes)
      yield* until(() => reports.deleted.length > 0)
      assert.deepInclude(reports.deleted[0], { request_idx: 1, status: "Success" })
    })
  )

  it.live("is load until the last byte is sent, and cancels the call when its client goes away", () =>
    Effect.gen(function* () {
      let cancelled = false
      const endless = () =>
        new ReadableStream({
          start: (controller) => controller.enqueue(new TextEncoder().encode("first ")),
          cancel: () => {
            cancelled = true
          }
        })
      const generate = Handler.forward({ route: "/generate", payload: Prompt, to: "http://model/v1/generate" }).pipe(
        Layer.provide(model(() => new Response(endless())))
      )
      const { reports, send } = yield* serving([generate])
      const response = yield* send("/generate", request(1, { prompt: "hi" }))
      const reader = response.body?.getReader()
      const first = yield* Effect.promise(async () => reader?.read())
      assert.strictEqual(new TextDecoder().decode(first?.value), "first ")
      yield* until(() => reports.statuses.at(-1)?.cur_load === 100)
      assert.strictEqual(reports.deleted.length, 0)
      yield* Effect.promise(async () => reader?.cancel())
      yield* until(() => cancelled && reports.deleted.length > 0)
      assert.isTrue(cancelled)
      assert.deepInclude(reports.deleted[0], { request_idx: 1 })
      assert.notStrictEqual(reports.deleted[0]?.status, "Error")
    })
  )

  it.live("ends a stream with its session", () =>
    Effect.gen(function* () {
      const endless = () => new ReadableStream({ start: (controller) => controller.enqueue(new TextEncoder().encode("first ")) })
      const generate = Handler.forward({ route: "/generate", payload: Prompt, to: "http://model/v1/generate" }).pipe(
        Layer.provide(model(() => new Response(endless())))
      )
      const { post, send, services } = yield* serving([generate])
      const { session_id } = (yield* post("/session/create", { auth_data: auth(1), payload: {} })).body
      const response = yield* send("/generate", request(1, { prompt: "hi" }, String(session_id)))
      const reader = response.body?.getReader()
      yield* Effect.promise(async () => reader?.read())
      yield* Effect.provide(
        Effect.flatMap(Sessions, (sessions) => sessions.closeAll("consumer")),
        services
      )
      const rest = yield* Effect.promise(
        () =>
          reader?.read().then(
            () => "ended",
            () => "cut"
          ) ?? Promise.resolve("none")
      )
      assert.strictEqual(rest, "cut")
    })
  )

  it.live("maps the request and the answer when asked", () =>
    Effect.gen(function* () {
      const generate = Handler.forward({
        route: "/generate",
        payload: Prompt,
        to: "http://model/v1/generate",
        request: ({ prompt }) => ({ messages: [prompt] }),
        response: (response) => Effect.map(response.json, (body) => HttpServerResponse.jsonUnsafe({ mapped: body }))
      }).pipe(Layer.provide(model((body) => Response.json(body))))
      const { post } = yield* serving([generate])
      assert.deepStrictEqual(yield* post("/generate", request(1, { prompt: "hi" })), {
        status: 200,
        body: { mapped: { messages: ["hi"] } }
      })
    })
  )
})
