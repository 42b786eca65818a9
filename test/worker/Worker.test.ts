import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import * as HealthProbe from "../../src/worker/HealthProbe.ts"
import * as Performance from "../../src/worker/Performance.ts"
import * as Readiness from "../../src/worker/Readiness.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import * as Worker from "../../src/worker/Worker.ts"

const services = (auth: Layer.Layer<RequestAuth.RequestAuth> = RequestAuth.layerOff) =>
  Layer.mergeAll(HealthProbe.layerTest, MetricsReporter.layerTest, Performance.layerPinned(100), Readiness.layerLifecycle, auth)

const latest = Effect.map(MetricsReporter.RecordedReports, ({ statuses }) => statuses.at(-1))

describe("watch", () => {
  it.effect("reports ready, with the seconds it took, once the consumer is healthy", () =>
    Effect.gen(function* () {
      const consumer = yield* HealthProbe.ScriptedHealth
      yield* Effect.forkChild(Worker.watch)
      yield* TestClock.adjust("55 seconds")
      assert.deepInclude(yield* latest, { loadtime: 0, max_perf: 0, error_msg: "" })
      yield* consumer.healthy
      yield* TestClock.adjust("5 seconds")
      assert.deepInclude(yield* latest, { loadtime: 60, max_perf: 100, error_msg: "" })
    }).pipe(Effect.provide(services()))
  )

  it.effect("is errored when the consumer does not become healthy within 300 s", () =>
    Effect.gen(function* () {
      const consumer = yield* HealthProbe.ScriptedHealth
      yield* Effect.forkChild(Worker.watch)
      yield* TestClock.adjust("299 seconds")
      assert.deepInclude(yield* latest, { error_msg: "" })
      yield* TestClock.adjust("1 seconds")
      yield* consumer.healthy
      yield* TestClock.adjust("30 seconds")
      assert.deepInclude(yield* latest, { error_msg: "not healthy within 300 s", loadtime: 0 })
    }).pipe(Effect.provide(services()))
  )

  it.effect("is errored within 10 s of the consumer failing, and stays so", () =>
    Effect.gen(function* () {
      const consumer = yield* HealthProbe.ScriptedHealth
      yield* consumer.healthy
      yield* Effect.forkChild(Worker.watch)
      yield* TestClock.adjust("20 seconds")
      yield* consumer.unhealthy("out of memory")
      yield* TestClock.adjust("11 seconds")
      assert.deepInclude(yield* latest, { error_msg: "out of memory" })
      yield* consumer.healthy
      yield* TestClock.adjust("1 minutes")
      assert.deepInclude(yield* latest, { error_msg: "out of memory" })
    }).pipe(Effect.provide(services()))
  )

  it.effect("is not ready, and then errored, without the autoscaler's key", () =>
    Effect.gen(function* () {
      yield* (yield* HealthProbe.ScriptedHealth).healthy
      yield* Effect.forkChild(Worker.watch)
      yield* TestClock.adjust("14 seconds")
      assert.deepInclude(yield* latest, { loadtime: 0, error_msg: "" })
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(yield* latest, { loadtime: 0, error_msg: "no key" })
    }).pipe(
      Effect.provide(
        services(
          Layer.succeed(RequestAuth.RequestAuth, {
            verify: () => Effect.void,
            ready: Effect.delay(new RequestAuth.PublicKeyUnavailable({ reason: "no key" }), "15 seconds")
          })
        )
      )
    )
  )
})
