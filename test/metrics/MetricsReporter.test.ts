import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as LoadBook from "../../src/metrics/LoadBook.ts"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"

interface Post {
  readonly at: number
  readonly url: string
  // biome-ignore lint/suspicious/noExplicitAny: these are bodies off the wire
  readonly body: any
}

const identity = {
  id: 7,
  masterToken: Redacted.make("secret"),
  reportAddresses: ["http://one", "http://two"] as const,
  url: "https://1.2.3.4:3000"
}

/** A reporter against an autoscaler that answers each POST as `status` says. */
const reporting = Effect.fnUntraced(function* (status: (post: Post) => number = () => 200, addresses = identity.reportAddresses) {
  const posts: Array<Post> = []
  const client = HttpClient.make((request, url) =>
    Effect.gen(function* () {
      const text = request.body._tag === "Uint8Array" ? new TextDecoder().decode(request.body.body) : "null"
      const post = { at: yield* Effect.clockWith((clock) => clock.currentTimeMillis), url: url.href, body: JSON.parse(text) }
      posts.push(post)
      return HttpClientResponse.fromWeb(request, new Response("{}", { status: status(post) }))
    })
  )
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(
    Layer.provide(
      MetricsReporter.layerIdentity({ ...identity, reportAddresses: addresses }),
      Layer.succeed(HttpClient.HttpClient, client)
    ),
    scope
  )
  const reporter = yield* Effect.provide(MetricsReporter.MetricsReporter, context)
  const to = (route: string) => posts.filter((post) => post.url.endsWith(route))
  const stop = Scope.close(scope, Exit.void)
  // What is still tried when the test ends waits on a clock that somebody has to move.
  yield* Effect.addFinalizer(() => Effect.andThen(Effect.forkDetach(stop), TestClock.adjust("5 seconds")))
  return { reporter, statuses: () => to("/worker_status/"), deletes: () => to("/delete_requests/"), posts, stop }
})

const request = (requestIdx: number, workload = 100) => ({ kind: "request", requestIdx, workload }) as const

describe("MetricsReporter", () => {
  it.effect("sends the wire's fields", () =>
    Effect.gen(function* () {
      const { reporter, statuses } = yield* reporting()
      yield* reporter.ready({ loadtime: 1.5, maxPerf: 100 })
      yield* TestClock.adjust("1 millis")
      const { additional_disk_usage, disk_usage, ...body } = statuses()[0]?.body ?? {}
      assert.strictEqual(typeof additional_disk_usage, "number")
      assert.isAbove(disk_usage, 0)
      assert.deepStrictEqual(body, {
        id: 7,
        mtoken: "secret",
        version: "1.1.0",
        loadtime: 1.5,
        new_load: 0,
        cur_load: 0,
        rej_load: 0,
        cur_perf: 0,
        max_perf: 100,
        error_msg: "",
        num_requests_working: 0,
        num_requests_recieved: 0,
        working_request_idxs: [],
        cur_capacity: 0,
        max_capacity: 0,
        url: "https://1.2.3.4:3000"
      })
    })
  )

  it.effect("sends a change at once, the following at most one a second, and a heartbeat every 10 s", () =>
    Effect.gen(function* () {
      const { reporter, statuses } = yield* reporting()
      const at = () => statuses().map((post) => post.at)
      yield* TestClock.adjust("5 seconds")
      assert.deepStrictEqual(at(), [1000])
      yield* reporter.reject(request(1))
      yield* TestClock.adjust("1 millis")
      assert.deepStrictEqual(at(), [1000, 5000])
      yield* reporter.reject(request(2))
      yield* reporter.reject(request(3))
      yield* TestClock.adjust("999 millis")
      assert.deepStrictEqual(at(), [1000, 5000, 6000])
      yield* TestClock.adjust("30 seconds")
      assert.deepStrictEqual(at(), [1000, 5000, 6000, 16000, 26000, 36000])
    })
  )

  it.effect("books a request while its scope is open, and reports it deleted once", () =>
    Effect.gen(function* () {
      const { deletes, reporter, statuses } = yield* reporting()
      yield* TestClock.adjust("2 seconds")
      const scope = yield* Scope.make()
      yield* Scope.provide(reporter.work(request(42)), scope)
      yield* TestClock.adjust("1 seconds")
      assert.deepInclude(statuses().at(-1)?.body, {
        new_load: 100,
        cur_load: 100,
        num_requests_working: 1,
        working_request_idxs: [42]
      })
      yield* TestClock.adjust("5 seconds")
      yield* Scope.close(scope, Exit.void)
      yield* TestClock.adjust("1 seconds")
      assert.deepInclude(statuses().at(-1)?.body, { new_load: 0, cur_load: 0, cur_perf: 100, num_requests_recieved: 1 })
      assert.deepStrictEqual(
        deletes().map((post) => post.body),
        [
          {
            worker_id: 7,
            mtoken: "secret",
            requests: [
              {
                request_idx: 42,
                success: true,
                status: "Success",
                entered_queue_at: 2,
                work_started_at: 2,
                work_completed_at: 8
              }
            ]
          }
        ]
      )
    })
  )

  it.effect.each([
    { exit: Exit.void, status: "Success", success: true },
    { exit: Exit.interrupt(), status: "Cancelled", success: true },
    { exit: Exit.fail("no"), status: "Error", success: false },
    { exit: Exit.die("bug"), status: "Error", success: false }
  ])("says $status by how the scope closed", ({ exit, status, success }) =>
    Effect.gen(function* () {
      const { deletes, reporter } = yield* reporting()
      const scope = yield* Scope.make()
      yield* Scope.provide(reporter.work({ kind: "request", requestIdx: 1, workload: 1 }), scope)
      yield* Scope.close(scope, exit)
      yield* TestClock.adjust("1 seconds")
      assert.deepInclude(deletes()[0]?.body.requests[0], { status, success })
    })
  )

  it.effect("loses nothing that is booked while a report is on its way, or that did not arrive", () =>
    Effect.gen(function* () {
      let broken = true
      const { deletes, posts, reporter, statuses } = yield* reporting(() => (broken ? 500 : 200))
      yield* reporter.reject(request(1, 10))
      yield* TestClock.adjust("3 seconds")
      yield* reporter.reject(request(2, 5))
      yield* TestClock.adjust("5 minutes")
      const tried = posts.length
      assert.isAbove(tried, 10)
      const refused = statuses().length
      broken = false
      yield* TestClock.adjust("1 minutes")
      const sums = statuses()
        .slice(refused)
        .reduce((sum, { body }) => sum + body.rej_load, 0)
      assert.strictEqual(sums, 15)
      const done = deletes().at(-1)?.body.requests
      assert.deepStrictEqual(
        done.map((request: { request_idx: number; status: string }) => [request.request_idx, request.status]),
        [
          [1, "Rejected"],
          [2, "Rejected"]
        ]
      )
      const after = deletes().length
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(deletes().length, after)
    })
  )

  it.effect("keeps an hour's deletions and sums while nobody listens, and then delivers them all, in order", () =>
    Effect.gen(function* () {
      let broken = true
      const { deletes, posts, reporter, statuses } = yield* reporting(() => (broken ? 500 : 200))
      for (let second = 0; second < 3600; second++) {
        yield* reporter.reject(request(second))
        yield* TestClock.adjust("1 seconds")
      }
      // Two addresses, three attempts, two kinds of report: it slows down to one round of these in 20 s or so.
      assert.isBelow(posts.length, 12 * (3600 / 15))
      const tried = [statuses().length, deletes().length]
      broken = false
      yield* TestClock.adjust("40 seconds")
      const arrived = deletes()
        .slice(tried[1])
        .flatMap(({ body }) => body.requests)
      assert.deepStrictEqual(
        arrived.map(({ request_idx }) => request_idx),
        Array.from(Array(3600).keys())
      )
      const sums = statuses().slice(tried[0])
      assert.strictEqual(
        sums.reduce((sum, { body }) => sum + body.rej_load, 0),
        360_000
      )
    })
  )

  it.effect("does not come back in step with other workers", () =>
    Effect.gen(function* () {
      const workers = yield* Effect.forEach(Array(20).keys(), () => reporting(() => 500))
      yield* TestClock.adjust("10 minutes")
      const last = workers.map(({ statuses }) => statuses().at(-1)?.at)
      assert.isAbove(new Set(last).size, 15)
    })
  )

  it.effect("runs what is to be done once the autoscaler has been told of a deletion, and not before", () =>
    Effect.gen(function* () {
      let broken = true
      const { reporter } = yield* reporting(() => (broken ? 500 : 200))
      const deletion = LoadBook.deletion({ kind: "session", requestIdx: 1, enteredQueueAt: 1, startedAt: 1 }, "Success", 2)
      assert.isNotNull(deletion)
      let told = 0
      yield* reporter.forget(
        deletion,
        Effect.sync(() => void told++)
      )
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(told, 0)
      broken = false
      yield* TestClock.adjust("1 minutes")
      assert.strictEqual(told, 1)
    })
  )

  it.effect("sends deleted requests in batches, all that wait at a time", () =>
    Effect.gen(function* () {
      const { deletes, reporter } = yield* reporting()
      yield* Effect.forEach(Array(2500).keys(), (idx) => reporter.reject(request(idx)), { discard: true })
      yield* TestClock.adjust("1 seconds")
      // One round may have begun before all were booked; the next takes all the rest.
      assert.isAtMost(new Set(deletes().map(({ at }) => at)).size, 2)
      assert.isTrue(deletes().every(({ body }) => body.requests.length <= 1000))
      const sent = deletes().flatMap(({ body }) => body.requests.map((request: { request_idx: number }) => request.request_idx))
      assert.deepStrictEqual(sent, Array.from(Array(2500).keys()))
    })
  )

  it.effect("tries an address three times 2 s apart, then the next", () =>
    Effect.gen(function* () {
      const { statuses } = yield* reporting((post) => (post.url.startsWith("http://one") ? 503 : 200))
      yield* TestClock.adjust("9 seconds")
      assert.deepStrictEqual(
        statuses().map((post) => [post.at, new URL(post.url).host]),
        [
          [1000, "one"],
          [3000, "one"],
          [5000, "one"],
          [5000, "two"]
        ]
      )
    })
  )

  it.effect("does not send deleted requests where they are not taken", () =>
    Effect.gen(function* () {
      const { deletes, reporter } = yield* reporting(() => 200, ["https://cloud.vast.ai/api/v0", "http://two"] as never)
      yield* reporter.reject(request(1))
      yield* TestClock.adjust("1 seconds")
      assert.deepStrictEqual(
        deletes().map((post) => post.url),
        ["http://two/delete_requests/"]
      )
    })
  )

  it.effect("never counts an errored worker as loaded, and keeps the first reason", () =>
    Effect.gen(function* () {
      const { reporter, statuses } = yield* reporting()
      yield* reporter.errored("broken")
      yield* reporter.ready({ loadtime: 3, maxPerf: 100 })
      yield* reporter.errored("still broken")
      yield* TestClock.adjust("12 seconds")
      for (const { body } of statuses()) assert.deepInclude(body, { error_msg: "broken", loadtime: 0, max_perf: 0 })
    })
  )

  it.effect("sends what is booked before it stops, and stops within 3 s when nobody answers", () =>
    Effect.gen(function* () {
      const { deletes, reporter, statuses, stop } = yield* reporting()
      yield* TestClock.adjust("2 seconds")
      yield* reporter.reject(request(1))
      yield* stop
      assert.strictEqual(statuses().at(-1)?.body.rej_load, 100)
      assert.strictEqual(deletes().length, 1)

      const deaf = yield* reporting(() => 500)
      yield* deaf.reporter.reject(request(1))
      const stopping = yield* Effect.forkChild(deaf.stop)
      yield* TestClock.adjust("3 seconds")
      assert.isDefined(stopping.pollUnsafe())
    })
  )
})
