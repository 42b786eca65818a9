/**
 * The peer's metrics and their reports, case by case: see CASES.md.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import { answering } from "./worker.ts"

type Kind = MetricsReporter.Work["kind"]

/** A worker whose reports all arrive. */
const booking = Effect.gen(function* () {
  const services = yield* Layer.build(MetricsReporter.layerTest)
  const reporter = yield* Effect.provide(MetricsReporter.MetricsReporter, services)
  const { deleted, statuses } = yield* Effect.provide(MetricsReporter.RecordedReports, services)
  const begin = Effect.fnUntraced(function* (requestIdx: number, workload: number, kind: Kind = "request") {
    const scope = yield* Scope.make()
    yield* Scope.provide(reporter.work({ kind, requestIdx, workload }), scope)
    return (exit: Exit.Exit<unknown, unknown>) => Scope.close(scope, exit)
  })
  /** The next report, of all that is booked by now. */
  const reported = Effect.map(TestClock.adjust("2 seconds"), () => statuses.at(-1))
  const sum = (field: "new_load" | "rej_load" | "cur_perf") => statuses.reduce((total, status) => total + status[field], 0)
  return { begin, deleted, reported, reporter, statuses, sum }
})

describe("a request", () => {
  it.effect("is load from its beginning", () =>
    Effect.gen(function* () {
      const { begin, reported } = yield* booking
      yield* begin(1, 2.5)
      assert.deepInclude(yield* reported, {
        new_load: 2.5,
        cur_load: 2.5,
        num_requests_working: 1,
        num_requests_recieved: 1,
        working_request_idxs: [1]
      })
    })
  )

  it.effect("is no load after its end, and the autoscaler's to forget", () =>
    Effect.gen(function* () {
      const { begin, deleted, reported } = yield* booking
      const end = yield* begin(2, 1)
      yield* TestClock.adjust("5 seconds")
      yield* end(Exit.void)
      assert.deepInclude(yield* reported, { cur_load: 0, num_requests_working: 0, working_request_idxs: [] })
      assert.deepStrictEqual(deleted, [
        { request_idx: 2, success: true, status: "Success", entered_queue_at: 0, work_started_at: 0, work_completed_at: 5 }
      ])
    })
  )

  it.effect("that succeeds is load served", () =>
    Effect.gen(function* () {
      const { begin, deleted, reported, sum } = yield* booking
      const end = yield* begin(1, 4)
      yield* end(Exit.void)
      yield* reported
      assert.strictEqual(sum("cur_perf"), 4)
      assert.deepInclude(deleted[0], { status: "Success", success: true })
    })
  )

  it.effect("that fails is no success, and nothing served", () =>
    Effect.gen(function* () {
      const { begin, deleted, reported, sum } = yield* booking
      const end = yield* begin(5, 1)
      yield* end(Exit.fail("boom"))
      yield* reported
      assert.strictEqual(sum("cur_perf"), 0)
      assert.strictEqual(sum("new_load"), 1)
      assert.deepInclude(deleted[0], { request_idx: 5, status: "Error", success: false })
    })
  )

  it.effect("that is cancelled was no new load, and counts as a success", () =>
    Effect.gen(function* () {
      const { begin, deleted, reported, sum } = yield* booking
      const end = yield* begin(9, 0.5)
      yield* end(Exit.interrupt())
      yield* reported
      assert.strictEqual(sum("new_load"), 0)
      assert.deepInclude(deleted[0], { request_idx: 9, status: "Cancelled", success: true })
    })
  )

  it.effect("that is refused is load rejected, received, and the autoscaler's to forget", () =>
    Effect.gen(function* () {
      const { deleted, reported, reporter } = yield* booking
      yield* reporter.reject({ kind: "request", requestIdx: 11, workload: 3 })
      assert.deepInclude(yield* reported, { rej_load: 3, num_requests_recieved: 1, num_requests_working: 0 })
      assert.deepInclude(deleted[0], { request_idx: 11, status: "Rejected", success: false })
    })
  )

  it.effect("in a session adds to the sums, and is part of the session otherwise", () =>
    Effect.gen(function* () {
      const { begin, deleted, reported, sum } = yield* booking
      const end = yield* begin(100, 2, "request in session")
      assert.deepInclude(yield* reported, { cur_load: 0, num_requests_working: 0, num_requests_recieved: 0 })
      assert.strictEqual(sum("new_load"), 2)
      yield* end(Exit.void)
      yield* reported
      assert.strictEqual(sum("cur_perf"), 2)
      assert.deepStrictEqual(deleted, [])
    })
  )

  it.effect("in a session that is refused is load rejected, and part of the session otherwise", () =>
    Effect.gen(function* () {
      const { deleted, reported, reporter } = yield* booking
      yield* reporter.reject({ kind: "request in session", requestIdx: 20, workload: 1.5 })
      assert.deepInclude(yield* reported, { rej_load: 1.5, num_requests_recieved: 0 })
      assert.deepStrictEqual(deleted, [])
    })
  )

  it.effect("does not take the place of another that has no number either", () =>
    Effect.gen(function* () {
      const { reported, reporter } = yield* booking
      const scope = yield* Scope.make()
      for (let times = 0; times < 2; times++) {
        yield* Scope.provide(reporter.work({ kind: "request", requestIdx: undefined, workload: 1 }), scope)
      }
      assert.deepInclude(yield* reported, { cur_load: 2, num_requests_working: 2, working_request_idxs: [] })
    })
  )
})

describe("the worker's condition", () => {
  it.effect("is loaded by how long that took, and at what it can do", () =>
    Effect.gen(function* () {
      const { reported, reporter } = yield* booking
      assert.deepInclude(yield* reported, { loadtime: 0, max_perf: 0 })
      yield* reporter.ready({ loadtime: 5, maxPerf: 128 })
      assert.deepInclude(yield* reported, { loadtime: 5, max_perf: 128, error_msg: "" })
    })
  )

  it.effect("is errored by the reason, and loses no load over it", () =>
    Effect.gen(function* () {
      const { begin, reported, reporter, sum } = yield* booking
      yield* begin(1, 10)
      yield* reporter.errored("failed to load")
      assert.deepInclude(yield* reported, { error_msg: "failed to load", loadtime: 0 })
      assert.strictEqual(sum("new_load"), 10)
    })
  )
})

/** A reporter whose n-th POST is answered so. */
const reporting = Effect.fnUntraced(function* (
  answer: (post: number, to: URL) => Response | undefined | Effect.Effect<never> = () => new Response("{}"),
  reportAddresses: readonly [string, ...Array<string>] = ["http://one", "http://two"]
) {
  // biome-ignore lint/suspicious/noExplicitAny: these are bodies off the wire
  const posts: Array<{ readonly url: string; readonly body: any }> = []
  const identity = { id: 1, masterToken: Redacted.make("abcdefghijklmno"), reportAddresses, url: "http://worker:9000" }
  const autoscaler = answering((to, body) => {
    posts.push({ url: to.href, body: JSON.parse(body) })
    return answer(posts.length, to)
  })
  const scope = yield* Scope.make()
  const services = yield* Layer.buildWithScope(Layer.provide(MetricsReporter.layerIdentity(identity), autoscaler), scope)
  // What is still tried when the test ends waits on a clock that somebody has to move.
  yield* Effect.addFinalizer(() =>
    Effect.andThen(Effect.forkDetach(Scope.close(scope, Exit.void)), TestClock.adjust("5 seconds"))
  )
  const to = (route: string) => posts.filter((post) => post.url.endsWith(route))
  const reporter = yield* Effect.provide(MetricsReporter.MetricsReporter, services)
  return { reporter, statuses: () => to("/worker_status/"), deletes: () => to("/delete_requests/") }
})

const rejected = (requestIdx: number, workload = 1) => ({ kind: "request", requestIdx, workload }) as const

/** One failure of each kind that a POST can have. */
const failures: Array<[string, () => Response | undefined | Effect.Effect<never>]> = [
  ["is answered by an error", () => new Response("", { status: 500 })],
  ["cannot be sent", () => undefined],
  ["is not answered within 10 s", () => Effect.never]
]

describe("a report of the worker's status", () => {
  it.effect("goes to the autoscaler, and what it carried is not carried again", () =>
    Effect.gen(function* () {
      const { reporter, statuses } = yield* reporting()
      yield* reporter.reject(rejected(1, 5))
      yield* TestClock.adjust("12 seconds")
      assert.strictEqual(statuses()[0]?.url, "http://one/worker_status/")
      assert.deepInclude(statuses()[0]?.body, {
        id: 1,
        mtoken: "abcdefghijklmno",
        version: "1.1.0",
        rej_load: 5,
        url: "http://worker:9000"
      })
      assert.deepInclude(statuses()[1]?.body, { rej_load: 0 })
    })
  )

  it.effect("that arrives nowhere is carried by the next", () =>
    Effect.gen(function* () {
      let broken = true
      const { reporter, statuses } = yield* reporting(() => new Response("", { status: broken ? 500 : 200 }))
      yield* reporter.reject(rejected(1, 9))
      yield* TestClock.adjust("8500 millis")
      assert.strictEqual(statuses().length, 6)
      broken = false
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(statuses()[6]?.body, { rej_load: 9 })
    })
  )

  it.effect.each(failures)("is tried again when it %s", ([, failure]) =>
    Effect.gen(function* () {
      const { statuses } = yield* reporting((post) => (post === 1 ? failure() : new Response("{}")))
      yield* TestClock.adjust("14 seconds")
      assert.deepStrictEqual(
        statuses()
          .slice(0, 2)
          .map(({ url }) => url),
        ["http://one/worker_status/", "http://one/worker_status/"]
      )
    })
  )

  it.effect("goes to the next address when three attempts at one have failed", () =>
    Effect.gen(function* () {
      const { statuses } = yield* reporting((_, { host }) => new Response("", { status: host === "one" ? 500 : 200 }))
      yield* TestClock.adjust("6 seconds")
      assert.deepStrictEqual(
        statuses().map(({ url }) => new URL(url).host),
        ["one", "one", "one", "two"]
      )
    })
  )

  it.effect("leaves no trace of the master token in the log, not even when it fails", () => {
    const logged: Array<string> = []
    const log = Logger.layer([Logger.map(Logger.formatJson, (line) => void logged.push(line))])
    return Effect.gen(function* () {
      const { statuses } = yield* reporting(() => new Response("", { status: 500 }))
      yield* TestClock.adjust("15 seconds")
      assert.strictEqual(statuses()[0]?.body.mtoken, "abcdefghijklmno")
      assert.include(logged.join(), "report not delivered")
      assert.notInclude(logged.join(), "abcdefg")
    }).pipe(Effect.provideService(References.MinimumLogLevel, "Trace"), Effect.provide(log))
  })

  it.effect("comes every 10 s from a worker that is not ready, and first within a second", () =>
    Effect.gen(function* () {
      const { statuses } = yield* reporting()
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(statuses().length, 1)
      yield* TestClock.adjust("9999 millis")
      assert.strictEqual(statuses().length, 1)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(statuses().length, 2)
    })
  )

  it.effect("does not come from a ready worker while nothing changes, until 10 s have passed", () =>
    Effect.gen(function* () {
      const { reporter, statuses } = yield* reporting()
      yield* reporter.ready({ loadtime: 1, maxPerf: 100 })
      yield* TestClock.adjust("9999 millis")
      assert.strictEqual(statuses().length, 1)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(statuses().length, 2)
    })
  )

  it.effect("comes at once when something changes", () =>
    Effect.gen(function* () {
      const { reporter, statuses } = yield* reporting()
      yield* reporter.ready({ loadtime: 1, maxPerf: 100 })
      yield* TestClock.adjust("5 seconds")
      const before = statuses().length
      yield* reporter.reject(rejected(1))
      yield* TestClock.adjust("1 millis")
      assert.strictEqual(statuses().length, before + 1)
    })
  )
})

describe("a report of what the autoscaler may forget", () => {
  it.effect("is not sent where nobody takes it", () =>
    Effect.gen(function* () {
      const { deletes, reporter } = yield* reporting(undefined, ["https://cloud.vast.ai/api/v0", "http://internal"])
      yield* reporter.reject(rejected(1))
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(
        deletes().map(({ url, body }) => [url, body.requests.length]),
        [["http://internal/delete_requests/", 1]]
      )
    })
  )

  it.effect("is not sent while there is nothing to forget", () =>
    Effect.gen(function* () {
      const { deletes } = yield* reporting()
      yield* TestClock.adjust("1 minutes")
      assert.deepStrictEqual(deletes(), [])
    })
  )

  it.effect("says of each request how it ended, all in one", () =>
    Effect.gen(function* () {
      const { deletes, reporter } = yield* reporting()
      yield* reporter.reject(rejected(9))
      yield* TestClock.adjust("1 millis")
      const scope = yield* Scope.make()
      yield* Scope.provide(reporter.work(rejected(1)), scope)
      yield* reporter.reject(rejected(2))
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(
        deletes().map(({ body }) =>
          body.requests.map((request: { request_idx: number; success: boolean }) => [request.request_idx, request.success])
        ),
        [
          [[9, false]],
          [
            [2, false],
            [1, true]
          ]
        ]
      )
    })
  )

  it.effect.each(failures)("is tried again when it %s, and then not sent again", ([, failure]) =>
    Effect.gen(function* () {
      let failed = false
      const { deletes, reporter } = yield* reporting((_, { pathname }) => {
        if (failed || pathname !== "/delete_requests/") return new Response("{}")
        failed = true
        return failure()
      })
      yield* reporter.reject(rejected(5))
      yield* TestClock.adjust("1 minutes")
      assert.deepStrictEqual(
        deletes().map(({ body }) => body.requests[0].request_idx),
        [5, 5]
      )
    })
  )

  it.effect("keeps its requests when every attempt fails", () =>
    Effect.gen(function* () {
      let broken = true
      const { deletes, reporter } = yield* reporting(() => new Response("", { status: broken ? 500 : 200 }), ["http://one"])
      yield* reporter.reject(rejected(7))
      yield* TestClock.adjust("4500 millis")
      assert.strictEqual(deletes().length, 3)
      broken = false
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(
        deletes()[3]?.body.requests.map((request: { request_idx: number }) => request.request_idx),
        [7]
      )
    })
  )
})
