import { once } from "node:events"
import { createServer } from "node:http"
import { type AddressInfo, BlockList, connect } from "node:net"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { WorkerConfig } from "../../src/config.ts"
import * as OnClose from "../../src/session/OnClose.ts"
import { config } from "../worker/serving.ts"

const callback = { sessionId: "s1", route: "http://user/closed", payload: { job: 7 } }

/** A receiver that answers the n-th attempt as told, and never answers where it is told nothing. */
const delivering = Effect.fnUntraced(function* (status: (attempt: number) => number | undefined) {
  const attempts: Array<{ readonly at: number; readonly body: unknown; readonly key: string | undefined }> = []
  const client = HttpClient.make((request) =>
    Effect.gen(function* () {
      const text = request.body._tag === "Uint8Array" ? new TextDecoder().decode(request.body.body) : "null"
      const at = yield* Effect.clockWith((clock) => clock.currentTimeMillis)
      attempts.push({ at, body: JSON.parse(text), key: request.headers["idempotency-key"] })
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

  it.effect("sends the same key with every attempt, and is settled once by the answer", () =>
    Effect.gen(function* () {
      const { attempts, deliver } = yield* delivering((attempt) => (attempt < 3 ? 503 : 200))
      let settled = 0
      yield* deliver(
        callback,
        Effect.sync(() => void settled++)
      )
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(settled, 0)
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(settled, 1)
      assert.deepStrictEqual(
        attempts.map(({ key }) => key),
        ["s1", "s1", "s1"]
      )
    })
  )

  it.effect("is not settled by a worker that stops before the answer", () =>
    Effect.gen(function* () {
      const { deliver, stop } = yield* delivering(() => undefined)
      let settled = 0
      yield* deliver(
        callback,
        Effect.sync(() => void settled++)
      )
      yield* Effect.forkChild(stop)
      yield* TestClock.adjust("3 seconds")
      assert.strictEqual(settled, 0)
    })
  )

  it.effect("has no more than a hundred receivers hang at a time", () =>
    Effect.gen(function* () {
      const { attempts, deliver } = yield* delivering(() => undefined)
      yield* Effect.forEach(Array(2000).keys(), (n) => deliver({ ...callback, sessionId: `${n}` }, Effect.void))
      yield* TestClock.adjust("9 seconds")
      assert.strictEqual(attempts.length, 100)
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(attempts.length, 200)
    })
  )

  it.each([
    ["http://169.254.169.254/latest/meta-data/", true],
    ["http://169.254.0.1:8080/", true],
    ["http://0xa9fea9fe/", true],
    ["http://2852039166/", true],
    ["http://[fe80::1]/", true],
    ["http://[::ffff:169.254.169.254]/", true],
    ["http://[fd00:ec2::254]/", true],
    ["http://100.100.100.200/", true],
    ["http://168.63.129.16/", true],
    ["http://127.0.0.1:9000/done", false],
    ["http://[::1]:9000/done", false],
    ["http://10.0.0.7/done", false],
    ["https://example.com/done?x=169.254.169.254", false]
  ])("says of %s that it is forbidden: %s", (route, is) => {
    assert.strictEqual(OnClose.isForbidden(route), is)
  })

  describe("over the wire", () => {
    const outbound = (onCloseAllowPrivate: boolean) =>
      Effect.provide(
        OnClose.Outbound,
        Layer.provide(OnClose.layerOutboundNode, Layer.succeed(WorkerConfig, { ...config, onCloseAllowPrivate }))
      )

    // A Node that knows no block lists would really connect, so loopback is asked first whether this one does.
    const knowsBlockLists = Effect.promise(async () => {
      const blockList = new BlockList()
      blockList.addAddress("127.0.0.1")
      const [error] = await once(connect({ host: "127.0.0.1", port: 1, blockList }), "error")
      assert.strictEqual(error.code, "ERR_IP_BLOCKED")
    })

    it.live.each(["http://169.254.169.254:1/", "http://[fe80::1]:1/"])("is not even connected to %s", (route) =>
      Effect.gen(function* () {
        yield* knowsBlockLists
        const client = yield* outbound(false)
        const error = yield* Effect.flip(client.post(route))
        assert.match(JSON.stringify(error.cause, ["code", "cause", "message"]), /ERR_IP_BLOCKED/)
      })
    )

    it.live("does not follow a redirect", () =>
      Effect.gen(function* () {
        const asked: Array<string | undefined> = []
        const server = createServer((request, response) => {
          asked.push(request.url)
          response.writeHead(307, { location: "/elsewhere" }).end()
        })
        yield* Effect.acquireRelease(
          Effect.promise(() => once(server.listen(0, "127.0.0.1"), "listening")),
          () => Effect.sync(() => server.close())
        )
        const client = yield* outbound(false)
        const { status } = yield* client.post(`http://127.0.0.1:${(server.address() as AddressInfo).port}/closed`)
        assert.deepStrictEqual([status, asked], [307, ["/closed"]])
      })
    )
  })

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
