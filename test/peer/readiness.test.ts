/**
 * The peer's log actions, benchmark and worker, case by case: see CASES.md.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as PlatformError from "effect/PlatformError"
import { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import * as HealthProbe from "../../src/worker/HealthProbe.ts"
import * as Performance from "../../src/worker/Performance.ts"
import * as Readiness from "../../src/worker/Readiness.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import * as Worker from "../../src/worker/Worker.ts"

/** What a worker makes of a log of these lines. */
const reading = Effect.fnUntraced(function* (lines: ReadonlyArray<string>, actions: Partial<Readiness.LogLines>) {
  const logged: Array<unknown> = []
  const log = Readiness.layerLog({ file: "/model.log", onLoad: [], onError: [], ...actions }).pipe(
    Layer.provide(Layer.mock(ChildProcessSpawner)({ streamLines: () => Stream.concat(Stream.fromIterable(lines), Stream.never) }))
  )
  let started = 0
  const watching = yield* Effect.flatMap(Readiness.Readiness, ({ watch }) => watch(Effect.sync(() => void started++))).pipe(
    Effect.flip,
    Effect.provide(log),
    Effect.provide(Logger.layer([Logger.make(({ message }) => void logged.push(message))])),
    Effect.forkChild
  )
  yield* TestClock.adjust("1 seconds")
  const failed = watching.pollUnsafe() === undefined ? undefined : (yield* Fiber.join(watching)).reason
  return { failed, logged: logged.flat(), started }
})

describe("a line of the backend's log", () => {
  it.effect("means nothing when nobody says what it means", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* reading(["Model loaded"], {}), { failed: undefined, logged: [], started: 0 })
    })
  )

  it.effect.each(["Model loaded", "Ready"])("means started by any of the texts for that: %s", (line) =>
    Effect.gen(function* () {
      const { started } = yield* reading([`12:00 INFO ${line}.`], { onLoad: ["Model loaded", "Ready"] })
      assert.strictEqual(started, 1)
    })
  )

  it.effect("means failed, with the text as the reason", () =>
    Effect.gen(function* () {
      const { failed } = yield* reading(["12:00 Error occurred: oom"], { onError: ["Error occurred"] })
      assert.strictEqual(failed, "Error occurred")
    })
  )

  it.effect("is repeated in the worker's log when it is worth that", () =>
    Effect.gen(function* () {
      const { logged } = yield* reading(["12:00 Info message", "else"], { onInfo: ["Info message"] })
      assert.deepStrictEqual(logged, ["12:00 Info message"])
    })
  )

  it.effect("has its own meaning beside others'", () =>
    Effect.gen(function* () {
      const actions = { onLoad: ["load1"], onError: ["err1"], onInfo: ["info1"] }
      assert.deepStrictEqual(yield* reading(["info1", "load1", "err1"], actions), {
        failed: "err1",
        logged: ["info1"],
        started: 1
      })
    })
  )

  // Not started today: see CASES.md.
  it.effect("may mean two things at once", () =>
    Effect.gen(function* () {
      const { logged, started } = yield* reading(["INFO Server is up"], { onLoad: ["Server is up"], onInfo: ["INFO"] })
      assert.deepStrictEqual(logged, ["INFO Server is up"])
      assert.strictEqual(started, 1)
    })
  )
})

/** A disk that keeps nothing. */
const disk = FileSystem.layerNoop({
  readFileString: () =>
    Effect.fail(PlatformError.systemError({ _tag: "NotFound", module: "FileSystem", method: "readFileString" })),
  writeFileString: () => Effect.void
})

/** What a worker with this benchmark reports in the end. */
const benchmarked = Effect.fnUntraced(function* <P>(benchmark: Partial<Performance.Benchmark<P, unknown, never>>) {
  const performance = Performance.layerBenchmark({
    payload: Effect.die("no payload"),
    workload: () => 100,
    run: () => Effect.sleep("1 seconds"),
    runs: 2,
    concurrency: 2,
    warmUp: false,
    ...benchmark
  }).pipe(Layer.provide(disk))
  const services = yield* Layer.build(
    Layer.mergeAll(MetricsReporter.layerTest, HealthProbe.layerStub, Readiness.layerLifecycle, RequestAuth.layerOff, performance)
  )
  const { statuses } = yield* Effect.provide(MetricsReporter.RecordedReports, services)
  yield* Effect.forkChild(Effect.provide(Worker.watch, services))
  yield* Effect.repeat(TestClock.adjust("1 seconds"), { times: 10 })
  return statuses.at(-1)
})

describe("a benchmark", () => {
  it.effect("asks with the payloads that it makes", () =>
    Effect.gen(function* () {
      const asked: Array<unknown> = []
      const payload = Effect.sync(() => ({ from_generator: true }))
      const status = yield* benchmarked({
        payload,
        run: (made) =>
          Effect.andThen(
            Effect.sync(() => void asked.push(made)),
            Effect.sleep("1 seconds")
          )
      })
      assert.deepStrictEqual(asked, Array(4).fill({ from_generator: true }))
      assert.deepInclude(status, { max_perf: 200, error_msg: "" })
    })
  )

  it.effect("counts requests that succeed alone", () =>
    Effect.gen(function* () {
      let asked = 0
      const run = () =>
        Effect.delay(
          Effect.suspend(() => (++asked % 2 === 0 ? Effect.fail("500") : Effect.void)),
          "1 seconds"
        )
      assert.deepInclude(yield* benchmarked({ payload: Effect.succeed(null), run }), { max_perf: 100, error_msg: "" })
    })
  )

  it.effect("makes the worker errored when nothing succeeds", () =>
    Effect.gen(function* () {
      const status = yield* benchmarked({ payload: Effect.succeed(null), run: () => Effect.fail("500") })
      assert.deepInclude(status, { loadtime: 0, error_msg: "No successful responses from benchmark" })
    })
  )

  // Loading for ever today: see CASES.md.
  it.effect("makes the worker errored when no payload can be made", () =>
    Effect.gen(function* () {
      const status = yield* benchmarked({ payload: Effect.die(new Error("generator failed")) })
      assert.include(status?.error_msg, "generator failed")
    })
  )
})
