import { once } from "node:events"
import { type IncomingMessage, request } from "node:http"
import { text } from "node:stream/consumers"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as fc from "fast-check"
import { WorkerConfig } from "../../src/config.ts"
import * as JsonRoute from "../../src/worker/JsonRoute.ts"
import * as Listener from "../../src/worker/Listener.ts"
import { SessionGone } from "../../src/worker/Refusals.ts"
import { freePort } from "../e2e/harness.ts"
import { config } from "./serving.ts"

const maxBodyBytes = 1000

const route = JsonRoute.make(
  "/route",
  Schema.Struct({ n: Schema.Int, text: Schema.optionalKey(Schema.String) }),
  ({ n, text }) => {
    if (n === 0) return Effect.die("bug")
    return n < 0 ? new SessionGone({ message: `${n}` }) : Effect.succeed({ status: 201, body: { n, text: text ?? null } })
  }
)

/** Serves routes on a port, and sends to it: in a body of known length, which takes the shortcut, or in chunks, which do not. */
const listening = Effect.fnUntraced(function* (...routes: ReadonlyArray<JsonRoute.JsonRoute>) {
  const port = yield* Effect.promise(freePort)
  yield* Layer.build(
    Listener.layer(Layer.empty, { port, host: Listener.loopback }, routes).pipe(
      Layer.provide([Listener.layerNode, Layer.succeed(WorkerConfig, { ...config, maxBodyBytes })])
    )
  )
  const send = async (body: Buffer | string, headers: Record<string, string | number>, path = "/route", method = "POST") => {
    const sent = request({ port, host: Listener.loopback, path, method, headers })
    sent.end(body)
    const [response] = (await once(sent, "response")) as [IncomingMessage]
    return { status: response.statusCode, body: await text(response), connection: response.headers.connection }
  }
  return {
    short: (body: Buffer | string, path?: string, method?: string) =>
      send(body, { "content-length": Buffer.byteLength(body) }, path, method),
    long: (body: Buffer | string) => send(body, { "transfer-encoding": "chunked" })
  }
})

describe("Shortcut", () => {
  it.live("answers what the long way answers, to any text", () =>
    Effect.gen(function* () {
      const { long, short } = yield* listening(route)
      const same = async (body: Buffer | string) => {
        const [one, other] = [await short(body), await long(body)]
        // The one that ends the connection is the one that Effect's server has answered.
        assert.deepStrictEqual([one.connection, other.connection], ["keep-alive", "close"])
        assert.deepStrictEqual([one.status, one.body], [other.status, other.body])
        return one
      }
      yield* Effect.promise(async () => {
        assert.deepInclude(await same('{"n":1,"text":"ü"}'), { status: 201, body: '{"n":1,"text":"ü"}' })
        assert.strictEqual((await same('{"n":-1}')).status, 410)
        assert.deepInclude(await same('{"n":0}'), { status: 500, body: '{"error":"internal error"}' })
        assert.strictEqual((await same('\ufeff{"n":1}')).status, 201)
        assert.strictEqual((await same(Buffer.from([0x7b, 0xff, 0x7d]))).status, 422)
        const body = fc.oneof(
          fc
            .record({ n: fc.oneof(fc.integer(), fc.json()), text: fc.oneof(fc.string(), fc.json()) })
            .map((it) => JSON.stringify(it)),
          fc.json(),
          fc.string()
        )
        await fc.assert(fc.asyncProperty(body, async (text) => void (await same(text.slice(0, 300)))))
      })
    }).pipe(Effect.scoped)
  )

  it.live("leaves to the long way what is not plain", () =>
    Effect.gen(function* () {
      const { short } = yield* listening(route)
      yield* Effect.promise(async () => {
        const tooLong = JSON.stringify({ n: 1, text: "x".repeat(maxBodyBytes) })
        assert.deepInclude(await short(tooLong), { status: 413, body: '{"error":"body too large"}' })
        assert.strictEqual((await short('{"n":1}', "/route?x=1")).status, 201)
        assert.strictEqual((await short('{"n":1}', "/elsewhere")).status, 404)
        assert.strictEqual((await short('{"n":1}', "/route", "PUT")).status, 404)
      })
    }).pipe(Effect.scoped)
  )

  it.live("ends what is under way with the listener, without an answer", () =>
    Effect.gen(function* () {
      const begun = yield* Deferred.make<void>()
      const ended = yield* Deferred.make<void>()
      const never = Deferred.succeed(begun, undefined).pipe(
        Effect.andThen(Effect.never),
        Effect.onInterrupt(() => Deferred.succeed(ended, undefined))
      )
      const scope = yield* Scope.make()
      const { short } = yield* Scope.provide(listening({ path: "/route", answer: () => never }), scope)
      const answer = Effect.promise(() => short("{}").then(String, (error) => error.code))
      const asked = yield* Effect.forkChild(answer)
      yield* Deferred.await(begun)
      yield* Scope.close(scope, Exit.void)
      yield* Deferred.await(ended)
      assert.strictEqual(yield* Fiber.join(asked), "ECONNRESET")
    })
  )
})
