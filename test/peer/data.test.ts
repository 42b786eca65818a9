/**
 * The peer's data types, case by case: see CASES.md.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import { vi } from "vitest"
import * as LoadBook from "../../src/metrics/LoadBook.ts"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import * as AuthData from "../../src/protocol/AuthData.ts"
import * as Handler from "../../src/worker/Handler.ts"
import { authData, serving } from "./worker.ts"

const disk = vi.hoisted(() => ({ usedGiB: 10, path: "" }))
vi.mock("node:fs", async (importOriginal) => ({
  ...(await importOriginal<typeof import("node:fs")>()),
  statfsSync: (path: string) => {
    disk.path = path
    return { bsize: 2 ** 20, blocks: 2 ** 20, bfree: 2 ** 20 - disk.usedGiB * 2 ** 10 }
  }
}))

describe("auth_data", () => {
  const decode = Schema.decodeUnknownSync(AuthData.AuthData)

  it("has every field that the autoscaler gives", () => {
    assert.deepStrictEqual(decode(authData()), authData())
  })

  it("keeps fields that we do not know, for whoever compares it whole", () => {
    assert.deepStrictEqual(decode(authData({ extra: "kept" })), authData({ extra: "kept" }))
  })

  it("may be as little as a debug client sends", () => {
    assert.strictEqual(AuthData.workload(decode({ url: "http://worker", request_idx: 1 })), 100)
  })
})

describe("what a handler's route takes", () => {
  const asking = Effect.map(
    serving({
      handlers: [
        Handler.make({
          route: "/predict",
          payload: Schema.Struct({ value: Schema.Int }),
          workload: ({ value }) => value,
          run: Effect.succeed
        })
      ]
    }),
    (worker) => ({ ...worker, ask: (body: unknown) => worker.post("/predict", body) })
  )

  it.effect("is auth_data and a payload, with no session or in one", () =>
    Effect.gen(function* () {
      const { ask, open } = yield* asking
      const answer = { status: 200, body: { result: { value: 7 } } }
      const held = yield* open()
      for (const session_id of [undefined, null, held.session_id]) {
        assert.deepStrictEqual(yield* ask({ auth_data: authData(), payload: { value: 7 }, session_id }), answer)
      }
    })
  )

  it.effect.each<[string, unknown, unknown]>([
    ["auth_data", { payload: { value: 1 } }, { auth_data: "field missing" }],
    ["payload", { auth_data: authData() }, { payload: "field missing" }],
    ["auth_data's fields", { auth_data: { cost: "1" }, payload: { value: 1 } }, { auth_data: { url: "missing parameter" } }],
    ["the payload's fields", { auth_data: authData(), payload: {} }, { payload: { value: "missing parameter" } }],
    [
      "both",
      { auth_data: { cost: "1" }, payload: {} },
      { auth_data: { url: "missing parameter" }, payload: { value: "missing parameter" } }
    ]
  ])("is refused with what is missing of %s", ([, body, fields]) =>
    Effect.gen(function* () {
      const { ask } = yield* asking
      const refused = yield* ask(body)
      assert.strictEqual(refused.status, 422)
      const { error, ...named } = refused.body
      assert.isString(error)
      assert.deepStrictEqual(named, fields)
    })
  )

  it.effect("is as much load as its payload says", () =>
    Effect.gen(function* () {
      const { ask, reports } = yield* asking
      yield* ask({ auth_data: authData(), payload: { value: 42 } })
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(
        reports.statuses.reduce((sum, { cur_perf }) => sum + cur_perf, 0),
        42
      )
    })
  )
})

describe("disk usage", () => {
  it.effect("is that of the root in GiB, and what was added since the last report that arrived", () =>
    Effect.gen(function* () {
      disk.usedGiB = 10
      const services = yield* Layer.build(MetricsReporter.layerTest)
      const { statuses } = yield* Effect.provide(MetricsReporter.RecordedReports, services)
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(disk.path, "/")
      assert.deepInclude(statuses.at(-1), { disk_usage: 10, additional_disk_usage: 0 })
      disk.usedGiB = 13
      yield* TestClock.adjust("10 seconds")
      assert.deepInclude(statuses.at(-1), { disk_usage: 13, additional_disk_usage: 3 })
      yield* TestClock.adjust("10 seconds")
      assert.deepInclude(statuses.at(-1), { disk_usage: 13, additional_disk_usage: 0 })
    })
  )
})

describe("load", () => {
  const working = Effect.fnUntraced(function* (maxPerf: number, works: ReadonlyArray<MetricsReporter.Work>) {
    const services = yield* Layer.build(MetricsReporter.layerTest)
    const reporter = yield* Effect.provide(MetricsReporter.MetricsReporter, services)
    const { statuses } = yield* Effect.provide(MetricsReporter.RecordedReports, services)
    if (maxPerf > 0) yield* reporter.ready({ loadtime: 1, maxPerf })
    const scope = yield* Scope.make()
    for (const work of works) yield* Scope.provide(reporter.work(work), scope)
    yield* TestClock.adjust("2 seconds")
    return { status: statuses.at(-1), queueTime: yield* reporter.queueTime }
  })
  const request = (requestIdx: number, workload: number) => ({ kind: "request", requestIdx, workload }) as const
  const session = (requestIdx: number, workload: number) => ({ kind: "session", requestIdx, workload }) as const

  it.effect("is nothing to begin with", () =>
    Effect.gen(function* () {
      const { queueTime, status } = yield* working(0, [])
      assert.strictEqual(queueTime, 0)
      assert.deepInclude(status, {
        new_load: 0,
        cur_load: 0,
        rej_load: 0,
        cur_perf: 0,
        max_perf: 0,
        error_msg: "",
        num_requests_working: 0,
        num_requests_recieved: 0,
        working_request_idxs: []
      })
    })
  )

  it.effect("is the sum of what is under way, each by its number", () =>
    Effect.gen(function* () {
      const { status } = yield* working(0, [request(10, 2.5), request(20, 3.5)])
      assert.deepInclude(status, { cur_load: 6, working_request_idxs: [10, 20] })
    })
  )

  it.effect("makes a queue of its requests, by what the worker does in a second", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* working(10, [request(1, 4), request(2, 6)])).queueTime, 1)
    })
  )

  it.effect("makes no queue of its sessions", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* working(100, [session(1, 50)])).queueTime, 0)
      const mixed = yield* working(5, [session(1, 100), request(2, 10)])
      assert.strictEqual(mixed.queueTime, 2)
      assert.deepInclude(mixed.status, { cur_load: 110 })
    })
  )

  // Infinity today: see CASES.md.
  it.effect("makes a queue that is long, but a number, before the worker is ready", () =>
    Effect.gen(function* () {
      const { queueTime } = yield* working(0, [request(1, 3)])
      assert.isTrue(Number.isFinite(queueTime))
    })
  )

  it.effect("that is new is what was received and not cancelled, and never less than nothing", () =>
    Effect.gen(function* () {
      const services = yield* Layer.build(MetricsReporter.layerTest)
      const reporter = yield* Effect.provide(MetricsReporter.MetricsReporter, services)
      const { statuses } = yield* Effect.provide(MetricsReporter.RecordedReports, services)
      const scopes = [yield* Scope.make(), yield* Scope.make()] as const
      yield* Scope.provide(reporter.work(request(1, 7)), scopes[0])
      yield* Scope.provide(reporter.work(request(2, 3)), scopes[1])
      yield* Scope.close(scopes[1], Exit.interrupt())
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(statuses.at(-1), { new_load: 7 })
      yield* Scope.close(scopes[0], Exit.interrupt())
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(statuses.at(-1), { new_load: 0 })
    })
  )

  it("is taken whole for a report, and given back when it did not arrive", () => {
    const book = LoadBook.empty()
    const work: LoadBook.Work = { ...request(1, 5), enteredQueueAt: 0, startedAt: 0 }
    LoadBook.begin(book, work)
    LoadBook.finish(book, work, "Success")
    LoadBook.reject(book, { ...work, workload: 2 })
    const taken = LoadBook.takeSums(book)
    assert.deepStrictEqual(taken, { received: 5, cancelled: 0, rejected: 2, served: 5 })
    assert.deepStrictEqual(LoadBook.takeSums(book), { received: 0, cancelled: 0, rejected: 0, served: 0 })
    LoadBook.giveBack(book, taken)
    assert.deepStrictEqual(LoadBook.takeSums(book), taken)
  })
})
