import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientError from "effect/http/HttpClientError"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import type { Waiting } from "../../src/client/Endpoint.ts"
import * as Serverless from "../../src/client/Serverless.ts"

interface Call {
  readonly at: number
  readonly to: string
  // biome-ignore lint/suspicious/noExplicitAny: bodies off the wire
  readonly body: any
}

type Answer = { readonly status?: number; readonly body?: unknown; readonly text?: string } | "refused" | "silence"

const routed = (request_idx = 1, url = "http://worker") => ({ body: { url, signature: "s", cost: 100, request_idx, extra: 1 } })
const queued = (request_idx = 1) => ({ body: { request_idx } })
const opened = { status: 201, body: { session_id: "the-session", expiration: 60 } }

/** A platform that answers each call in turn as told by its path: the last answer stays. */
const platform = (answers: Record<string, ReadonlyArray<Answer>>) => {
  const calls: Array<Call> = []
  const left: Record<string, Array<Answer>> = Object.fromEntries(
    Object.entries({
      "/api/v0/endptjobs/": [{ body: { results: [{ id: 5, api_key: "endpoint-key", endpoint_name: "null", more: true }] } }],
      "/session/end": [{ body: {} }],
      ...answers
    }).map(([path, list]) => [path, [...list]])
  )
  const client = HttpClient.make((request, url) =>
    Effect.gen(function* () {
      const text = request.body._tag === "Uint8Array" ? new TextDecoder().decode(request.body.body) : "null"
      calls.push({
        at: yield* Effect.clockWith((clock) => clock.currentTimeMillis),
        to: url.pathname,
        body: JSON.parse(text)
      })
      const list = left[url.pathname] ?? []
      const answer = list.length > 1 ? list.shift() : list[0]
      if (answer === undefined) return assert.fail(`unexpected call to ${url.href}`)
      if (answer === "silence") return yield* Effect.never
      if (answer === "refused") {
        return yield* new HttpClientError.HttpClientError({
          reason: new HttpClientError.TransportError({ request, description: "connection refused" })
        })
      }
      return HttpClientResponse.fromWeb(
        request,
        new Response(answer.text ?? JSON.stringify(answer.body ?? null), { status: answer.status ?? 200 })
      )
    })
  )
  const layer = Serverless.layer(Serverless.platforms.local, { apiKey: Redacted.make("key") }).pipe(
    Layer.provide(Layer.succeed(HttpClient.HttpClient, client))
  )
  const endpoint = Effect.flatMap(Serverless.Serverless, (serverless) => serverless.getEndpoint("null")).pipe(
    Effect.provide(layer)
  )
  return { calls, endpoint, to: (path: string) => calls.filter((call) => call.to === path) }
}

describe("Serverless", () => {
  it.effect("says which endpoints there are when there is not the one asked for", () =>
    Effect.gen(function* () {
      const { getEndpoint } = yield* Serverless.Serverless
      const error = yield* Effect.flip(getEndpoint("other"))
      assert.strictEqual(error.message, "no endpoint other; the account has null")
    }).pipe(
      Effect.provide(
        Serverless.layer(Serverless.platforms.local, { apiKey: Redacted.make("key") }).pipe(
          Layer.provide(
            Layer.succeed(
              HttpClient.HttpClient,
              HttpClient.make((request) =>
                Effect.succeed(
                  HttpClientResponse.fromWeb(
                    request,
                    Response.json({ results: [{ id: 5, api_key: "k", endpoint_name: "null" }] })
                  )
                )
              )
            )
          )
        )
      )
    )
  )

  it.effect.each([401, 403])("does not go on without a key that the platform accepts (%s)", (status) =>
    Effect.gen(function* () {
      const { endpoint } = platform({ "/api/v0/endptjobs/": [{ status }] })
      assert.strictEqual((yield* Effect.flip(endpoint))._tag, "Unauthorised")
      const routing = yield* platform({ "/route/": [{ status }] }).endpoint
      assert.strictEqual((yield* Effect.flip(Effect.scoped(routing.session())))._tag, "Unauthorised")
    })
  )

  it.effect("lists the endpoint's workers, whatever figures they have", () =>
    Effect.gen(function* () {
      const { endpoint, to } = platform({
        "/get_endpoint_workers/": [{ body: [{ id: 3, status: "idle", cur_load: 100, new: 1 }, { id: 4 }] }]
      })
      const workers = yield* (yield* endpoint).workers
      assert.deepInclude(workers[0], { id: 3, status: "idle", cur_load: 100 })
      assert.deepInclude(workers[1], { id: 4, status: "UNKNOWN", reqs_working: 0 })
      assert.deepStrictEqual(to("/get_endpoint_workers/")[0]?.body, { id: 5, api_key: "key" })
    })
  )
})

describe("a session", () => {
  it.effect("is reserved with what the autoscaler gave, and ended when its scope is left", () =>
    Effect.gen(function* () {
      const { endpoint, to } = platform({ "/route/": [routed()], "/session/create": [opened] })
      const reserve = (yield* endpoint).session({ lifetime: 30, onCloseRoute: "http://me", onClosePayload: { job: 1 } })
      const session = yield* Effect.scoped(reserve)
      assert.strictEqual(session.id, "the-session")
      assert.deepStrictEqual(to("/route/")[0]?.body, {
        endpoint: "null",
        api_key: "endpoint-key",
        cost: 100,
        request_idx: 0,
        replay_timeout: 60
      })
      assert.deepStrictEqual(to("/session/create")[0]?.body, {
        auth_data: routed().body,
        session_id: null,
        payload: { lifetime: 30, on_close_route: "http://me", on_close_payload: { job: 1 } }
      })
      assert.deepStrictEqual(to("/session/end")[0]?.body, { session_id: "the-session", session_auth: routed().body })
    })
  )

  it.effect("waits in the queue under its number, and says so", () =>
    Effect.gen(function* () {
      const { endpoint, to } = platform({ "/route/": [queued(7), queued(7), queued(7), routed(7)], "/session/create": [opened] })
      const news: Array<Waiting> = []
      const session = (yield* endpoint).session({ onWaiting: (waiting) => Effect.sync(() => void news.push(waiting)) })
      const fiber = yield* Effect.forkChild(Effect.scoped(session))
      yield* TestClock.adjust("999 millis")
      assert.strictEqual(to("/route/").length, 1)
      yield* TestClock.adjust("1 millis")
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 12 })
      assert.isDefined(fiber.pollUnsafe())
      assert.deepStrictEqual(
        to("/route/").map(({ body }) => body.request_idx),
        [0, 7, 7, 7]
      )
      assert.deepStrictEqual(
        news.map(({ attempt, state }) => [state, attempt]),
        [
          ["queued", 1],
          ["queued", 2],
          ["queued", 3]
        ]
      )
      const polls = to("/route/").map((call) => call.at)
      polls.slice(1).forEach((at, index) => {
        assert.isAtMost(at - (polls[index] ?? 0), 5001)
      })
    })
  )

  it.effect("goes through the autoscaler again when a worker has no room, is broken, silent or gone", () =>
    Effect.gen(function* () {
      const { endpoint, to } = platform({
        "/route/": [routed(3)],
        "/session/create": [{ status: 429 }, { status: 500 }, "silence", "refused", opened]
      })
      const fiber = yield* Effect.forkChild(Effect.scoped((yield* endpoint).session()))
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 45 })
      assert.strictEqual(fiber.pollUnsafe()?._tag, "Success")
      assert.deepStrictEqual(
        to("/route/").map(({ body }) => body.request_idx),
        [0, 3, 3, 3, 3]
      )
      const tries = to("/session/create").map((call) => call.at)
      tries.slice(1).forEach((at, index) => {
        assert.isAtMost(at - (tries[index] ?? 0), 15_001)
      })
    })
  )

  it.effect("keeps its place in the queue through a hiccup of the autoscaler or of a proxy", () =>
    Effect.gen(function* () {
      const { endpoint, to } = platform({
        "/route/": [queued(9), { status: 502 }, "refused", routed(9)],
        "/session/create": [{ status: 502, text: "<html>" }, opened]
      })
      const fiber = yield* Effect.forkChild(Effect.scoped((yield* endpoint).session()))
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 30 })
      assert.strictEqual(fiber.pollUnsafe()?._tag, "Success")
      assert.deepStrictEqual(
        to("/route/").map(({ body }) => body.request_idx),
        [0, 9, 9, 9, 9]
      )
      const down = yield* platform({ "/route/": ["refused"] }).endpoint
      const failing = yield* Effect.forkChild(Effect.flip(Effect.scoped(down.session())))
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 30 })
      assert.strictEqual((yield* Fiber.join(failing))._tag, "RequestFailed")
    })
  )

  it.effect("outlives pings that get lost or hang, for as long as the last one still counts", () =>
    Effect.gen(function* () {
      const pong = { body: { result: { ok: true } } }
      const { endpoint } = platform({
        "/route/": [routed()],
        "/session/create": [opened],
        "/ping": ["refused", "silence", pong, "refused"]
      })
      const session = yield* (yield* endpoint).session({ lifetime: 60 })
      const lost = yield* Effect.forkChild(Effect.flip(session.keepAlive))
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 78 })
      assert.isUndefined(lost.pollUnsafe())
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 30 })
      assert.strictEqual((yield* Fiber.join(lost))._tag, "WorkerGone")
    })
  )

  it.effect("does not try again where that cannot help", () =>
    Effect.gen(function* () {
      const refused = yield* platform({ "/route/": [routed()], "/session/create": [{ status: 422, body: { error: "bad" } }] })
        .endpoint
      assert.match((yield* Effect.flip(Effect.scoped(refused.session()))).message, /status 422: \{"error":"bad"\}/)
      const forged = yield* platform({ "/route/": [routed()], "/session/create": [{ status: 401 }] }).endpoint
      assert.strictEqual((yield* Effect.flip(Effect.scoped(forged.session())))._tag, "Unauthorised")
    })
  )

  it.effect("gives up when its time is over", () =>
    Effect.gen(function* () {
      const { endpoint } = platform({ "/route/": [queued()] })
      const fiber = yield* Effect.forkChild(Effect.flip(Effect.scoped((yield* endpoint).session({ timeout: 10 }))))
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 8 })
      assert.isUndefined(fiber.pollUnsafe())
      yield* Effect.repeat(TestClock.adjust("500 millis"), { times: 3 })
      assert.deepInclude(yield* Fiber.join(fiber), { _tag: "NoWorkerInTime", seconds: 10 })
    })
  )

  it.effect("is not left behind by who is interrupted while the worker opens it", () =>
    Effect.gen(function* () {
      const { endpoint, to } = platform({ "/route/": [routed()], "/session/create": ["silence", opened] })
      const scope = yield* Scope.make()
      const fiber = yield* Effect.forkChild(Scope.provide((yield* endpoint).session(), scope))
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(to("/session/create").length, 1)
      const interrupting = yield* Effect.forkChild(Fiber.interrupt(fiber))
      yield* TestClock.adjust("5 seconds")
      assert.isUndefined(interrupting.pollUnsafe())
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 10 })
      assert.isDefined(interrupting.pollUnsafe())
      assert.strictEqual(to("/session/create").length, 1)
    })
  )

  it.effect("is kept alive three times a lifetime, until the worker says that it has ended", () =>
    Effect.gen(function* () {
      const pong = { body: { result: { ok: true } } }
      const { endpoint, to } = platform({
        "/route/": [routed()],
        "/session/create": [opened],
        "/ping": [pong, pong, { status: 503 }, pong, { status: 410 }]
      })
      const session = yield* (yield* endpoint).session({ lifetime: 60 })
      const lost = yield* Effect.forkChild(Effect.flip(session.keepAlive))
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 85 })
      assert.isDefined(lost.pollUnsafe())
      assert.strictEqual((yield* Fiber.join(lost))._tag, "SessionEnded")
      assert.deepStrictEqual(
        to("/ping")
          .map(({ at, body }) => [Math.floor(at / 1000), body.session_id])
          .slice(0, 3),
        [
          [20, "the-session"],
          [40, "the-session"],
          [60, "the-session"]
        ]
      )
    })
  )

  it.effect("knows whether it is open, and when its worker is gone", () =>
    Effect.gen(function* () {
      const { endpoint } = platform({
        "/route/": [routed()],
        "/session/create": [opened],
        "/session/get": [{ body: {} }, { status: 400 }, "refused"],
        "/work": [{ body: { result: 42 } }, "refused"]
      })
      const session = yield* (yield* endpoint).session()
      assert.isTrue(yield* session.isOpen)
      assert.isFalse(yield* session.isOpen)
      assert.strictEqual((yield* Effect.flip(session.isOpen))._tag, "WorkerGone")
      assert.deepStrictEqual(yield* session.request("/work", { n: 1 }), { result: 42 })
      assert.strictEqual((yield* Effect.flip(session.request("/work", {})))._tag, "WorkerGone")
    })
  )
})
