import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as OnClose from "../../src/session/OnClose.ts"

const callback = { sessionId: "s1", route: "http://user/closed", payload: { job: 7 } }

/** A receiver that answers the n-th attempt as told, and never answers where it is told nothing. */
const delivering = Effect.fnUntraced(function* (status: (attempt: number) => number | undefined) {
  const attempts: Array<{ readonly at: number; readonly body: unknown }> = []
  const client = HttpClient.make((request) =>
    Effect.gen(function* () {
      const text = request.body._tag === "Uint8Array" ? new TextDecoder().decode(request.body.body) : "null"
      attempts.push({ at: yield* Effect.clockWith((clock) => clock.currentTimeMillis), body: JSON.parse(text) })
      const answer = status(attempts.length)
      if (answer === undefined) return yield* Effect.never
      return HttpClientResponse.fromWeb(request, new Response("", { status: answer }))
    })
  )
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(Layer.provide(OnClose.layer, Layer.succeed(OnClose.Outbound, client)), scope)
  const { deliver } = yield* Effect.provide(OnClose.OnClose, context)
  return { attempts, deliver, stop: Scope.close(scope, Exit.void) }
})

describe("OnClose", () => {
  it.each([
    [null, { session_id: "s1" }],
    [{ a: 1 }, { session_id: "s1", a: 1 }],
    [{ session_id: "mine" }, { session_id: "mine" }],
    [[1, 2], { session_id: "s1", payload: [1, 2] }],
    ["text", { session_id: "s1", payload: "text" }],
    [0, { session_id: "s1", payload: 0 }]
  ])("sends the payload %j as %j", (payload, body) => {
    assert.deepStrictEqual(OnClose.body({ ...callback, payload }), body)
  })

  it.effect("does not hold up whoever closes the session", () =>
    Effect.gen(function* () {
      const { attempts, deliver, stop } = yield* delivering(() => undefined)
      yield* deliver(callback, Effect.void)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(attempts.length, 1)
      const stopping = yield* Effect.forkChild(stop)
      yield* TestClock.adjust("3 seconds")
      assert.isDefined(stopping.pollUnsafe())
    })
  )

  it.effect("tries again with growing pauses until the receiver answers", () =>
    Effect.gen(function* () {
      const { attempts, deliver } = yield* delivering((attempt) => (attempt < 5 ? 503 : 200))
      yield* deliver(callback, Effect.void)
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(attempts.length, 5)
      const pauses = attempts.slice(1).map(({ at }, index) => at - (attempts[index]?.at ?? 0))
      pauses.forEach((pause, index) => {
        assert.isAtLeast(pause, 500 * 2 ** index * 0.8)
        assert.isAtMost(pause, 500 * 2 ** index * 1.2 + 1)
      })
    })
  )

  it.effect("takes no for an answer", () =>
    Effect.gen(function* () {
      const { attempts, deliver } = yield* delivering(() => 404)
      yield* deliver(callback, Effect.void)
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(attempts.length, 1)
    })
  )

  it.effect("gives up an attempt after 10 s", () =>
    Effect.gen(function* () {
      const { attempts, deliver } = yield* delivering((attempt) => (attempt === 1 ? undefined : 200))
      yield* deliver(callback, Effect.void)
      yield* TestClock.adjust("9 seconds")
      assert.strictEqual(attempts.length, 1)
      yield* TestClock.adjust("3 seconds")
      assert.strictEqual(attempts.length, 2)
    })
  )

  it.effect("cuts a long pause short when the worker stops, and tries once more", () =>
    Effect.gen(function* () {
      let up = false
      const { attempts, deliver, stop } = yield* delivering(() => (up ? 200 : 500))
      yield* deliver(callback, Effect.void)
      yield* TestClock.adjust("20 seconds")
      const before = attempts.length
      up = true
      const stopping = yield* Effect.forkChild(stop)
      yield* TestClock.adjust("250 millis")
      assert.strictEqual(attempts.length, before + 1)
      assert.isDefined(stopping.pollUnsafe())
    })
  )
})
