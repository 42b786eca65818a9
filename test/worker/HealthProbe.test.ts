import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import * as HealthProbe from "../../src/worker/HealthProbe.ts"

const check = Effect.flatMap(HealthProbe.HealthProbe, (probe) => probe.check)

const asking = (answer: Effect.Effect<Response>) =>
  HealthProbe.layerUrl("http://consumer/health?deep=1").pipe(
    Layer.provide(
      Layer.succeed(
        HttpClient.HttpClient,
        HttpClient.make((request, url) => {
          assert.strictEqual(url.href, "http://consumer/health?deep=1")
          return Effect.map(answer, (response) => HttpClientResponse.fromWeb(request, response))
        })
      )
    )
  )

describe("layerUrl", () => {
  it.effect("finds a consumer healthy that answers 200", () =>
    check.pipe(Effect.provide(asking(Effect.sync(() => new Response("whatever")))))
  )

  it.effect.each([204, 302, 404, 503])("finds a consumer unhealthy that answers %s", (status) =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(check)
      assert.strictEqual(error.reason, `Healthcheck failed with status: ${status}`)
    }).pipe(Effect.provide(asking(Effect.sync(() => new Response(null, { status })))))
  )

  it.effect("finds a consumer unhealthy that has not answered after 10 s", () =>
    Effect.gen(function* () {
      const checking = yield* Effect.forkChild(Effect.flip(check))
      yield* TestClock.adjust("9999 millis")
      assert.isUndefined(checking.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.isDefined(checking.pollUnsafe())
    }).pipe(Effect.provide(asking(Effect.never)))
  )
})

describe("layerStub", () => {
  it.effect("is healthy", () => check.pipe(Effect.provide(HealthProbe.layerStub)))
})
