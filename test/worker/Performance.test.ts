import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as PlatformError from "effect/PlatformError"
import * as TestClock from "effect/testing/TestClock"
import * as Performance from "../../src/worker/Performance.ts"

/** A disk that holds what was written to it. */
const disk = (files: Record<string, string> = {}) =>
  FileSystem.layerNoop({
    readFileString: (path) =>
      path in files
        ? Effect.succeed(files[path] ?? "")
        : Effect.fail(PlatformError.systemError({ _tag: "NotFound", module: "FileSystem", method: "readFileString" })),
    writeFileString: (path, text) =>
      Effect.sync(() => {
        files[path] = text
      })
  })

const measure = Effect.flatMap(Performance.Performance, (performance) => performance.measure)

describe("layerBenchmark", () => {
  it.effect("takes the best of its runs, after a request that does not count, and keeps the figure", () =>
    Effect.gen(function* () {
      const files: Record<string, string> = {}
      let asked = 0
      const layer = Performance.layerBenchmark({
        payload: Effect.sync(() => ++asked),
        workload: () => 50,
        // Loading takes a minute, a request two seconds at first and one from the fifth on.
        run: (n) => Effect.sleep(n === 1 ? "1 minutes" : n <= 5 ? "2 seconds" : "1 seconds"),
        runs: 3,
        concurrency: 4,
        file: "perf"
      }).pipe(Layer.provide(disk(files)))
      const measuring = yield* Effect.forkChild(Effect.provide(measure, layer))
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 70 })
      assert.strictEqual(yield* Fiber.join(measuring), 200)
      assert.strictEqual(asked, 13)
      assert.strictEqual(files.perf, "200")
      assert.strictEqual(yield* Effect.provide(measure, layer), 200)
      assert.strictEqual(asked, 13)
    })
  )

  it.effect("counts only what succeeds, and fails when nothing does", () =>
    Effect.gen(function* () {
      const benchmark = (run: (n: number) => Effect.Effect<void, string>) => {
        let asked = 0
        return Performance.layerBenchmark({
          payload: Effect.sync(() => ++asked),
          workload: () => 100,
          run: (n) => Effect.delay(run(n), "1 seconds"),
          runs: 1,
          concurrency: 2,
          warmUp: false
        }).pipe(Layer.provide(disk()))
      }
      const half = yield* Effect.forkChild(
        Effect.provide(
          measure,
          benchmark((n) => (n === 1 ? Effect.fail("no") : Effect.void))
        )
      )
      const none = yield* Effect.forkChild(
        Effect.flip(
          Effect.provide(
            measure,
            benchmark(() => Effect.fail("no"))
          )
        )
      )
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 3 })
      assert.strictEqual(yield* Fiber.join(half), 100)
      assert.strictEqual((yield* Fiber.join(none))._tag, "BenchmarkFailed")
    })
  )

  it.effect("measures again when what was kept is no figure", () =>
    Effect.gen(function* () {
      const layer = Performance.layerBenchmark({
        payload: Effect.succeed(null),
        workload: () => 10,
        run: () => Effect.sleep("1 seconds"),
        runs: 1,
        concurrency: 1,
        warmUp: false,
        file: "perf"
      }).pipe(Layer.provide(disk({ perf: "a torn fi" })))
      const measuring = yield* Effect.forkChild(Effect.provide(measure, layer))
      yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 2 })
      assert.strictEqual(yield* Fiber.join(measuring), 10)
    })
  )
})
