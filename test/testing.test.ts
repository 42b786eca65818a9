import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { Handler } from "../src/index.ts"
import * as Testing from "../src/testing.ts"

const double = Handler.make({
  route: "/double",
  payload: Schema.Struct({ n: Schema.Int }),
  run: ({ n }) => Effect.succeed(2 * n)
})
const ping = Handler.make({
  route: "/ping",
  payload: Schema.Json,
  workload: () => 0,
  parallel: true,
  run: () => Effect.succeed({})
})

/** Second by second, so that everything in between happens at its own time. */
const pass = (seconds: number) => Effect.repeat(TestClock.adjust("1 seconds"), { times: seconds - 1 })

describe("the test kit", () => {
  it.effect("shows the autoscaler replacing a worker whose consumer dies", () =>
    Effect.gen(function* () {
      const consumer = yield* Testing.ScriptedHealth
      const { workers } = yield* Testing.Platform
      yield* consumer.healthy
      yield* pass(5)
      assert.deepStrictEqual(
        (yield* workers).map(({ id, status }) => [id, status]),
        [[1, "idle"]]
      )
      yield* consumer.unhealthy("out of memory")
      yield* pass(20)
      yield* consumer.healthy
      yield* pass(30)
      const [replacement] = yield* workers
      assert.isAbove(replacement?.id ?? 0, 1)
      assert.strictEqual(replacement?.status, "idle")
    }).pipe(Effect.provide(Testing.layer({ handlers: [double], parameters: { min_load: 100 } })))
  )

  it.effect("reserves, works and releases like the real thing", () =>
    Effect.gen(function* () {
      yield* (yield* Testing.ScriptedHealth).healthy
      const { endpoint, history } = yield* Testing.Platform
      const work = yield* Effect.forkChild(
        Effect.scoped(Effect.flatMap(endpoint.session({ lifetime: 10 }), (session) => session.request("/double", { n: 21 })))
      )
      yield* pass(10)
      assert.deepStrictEqual(yield* Fiber.join(work), { result: 42 })
      yield* pass(2)
      const { outcomes, workersStarted } = yield* history
      assert.deepStrictEqual([workersStarted, Array.from(outcomes.values())], [1, ["Success"]])
    }).pipe(Effect.provide(Testing.layer({ handlers: [double, ping] })))
  )
})
