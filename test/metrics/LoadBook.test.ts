import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as LoadBook from "../../src/metrics/LoadBook.ts"
import type { DeletedRequest } from "../../src/protocol/Report.ts"

/** One thing that happens to a worker's load, on the n-th request of a kind. */
const Step = Schema.Union([
  Schema.Struct({ begin: Schema.Literals(["request", "session", "request in session"]), workload: Schema.Int }),
  Schema.Struct({ reject: Schema.Literals(["request", "session"]), workload: Schema.Int }),
  Schema.Struct({ finish: Schema.Int, as: Schema.Literals(["Success", "Cancelled", "Error"]) }),
  Schema.Struct({ report: Schema.Literals(["arrives", "fails"]) })
])

describe("LoadBook", () => {
  it.prop("accounts for every request once, whichever reports arrive", [Schema.Array(Step)], ([steps]) => {
    const book = LoadBook.empty()
    const arrived = { received: 0, cancelled: 0, rejected: 0, served: 0 }
    const truth = { received: 0, cancelled: 0, rejected: 0, served: 0 }
    const forget = (request: DeletedRequest | null) => request && LoadBook.forget(book, { request, told: Effect.void })
    const open: Array<LoadBook.Work> = []
    const expected: Array<[number, string]> = []
    let idx = 0

    for (const step of steps) {
      if ("report" in step) {
        const sums = LoadBook.takeSums(book)
        if (step.report === "fails") LoadBook.giveBack(book, sums)
        else for (const key of Object.keys(sums) as Array<keyof LoadBook.Sums>) arrived[key] += sums[key]
      } else if ("finish" in step) {
        const [work] = open.splice(Math.abs(step.finish) % Math.max(open.length, 1), 1)
        if (work === undefined) continue
        LoadBook.finish(book, work, step.as)
        forget(LoadBook.deletion(work, step.as, 2))
        if (step.as === "Success") truth.served += work.workload
        if (step.as === "Cancelled") truth.cancelled += work.workload
        if (work.kind !== "request in session") expected.push([work.requestIdx ?? -1, step.as])
      } else {
        const kind = "begin" in step ? step.begin : step.reject
        const work: LoadBook.Work = {
          kind,
          requestIdx: ++idx,
          workload: Math.abs(step.workload),
          enteredQueueAt: 1,
          startedAt: 1
        }
        if ("begin" in step) {
          LoadBook.begin(book, work)
          open.push(work)
          truth.received += work.workload
        } else {
          LoadBook.reject(book, work)
          forget(LoadBook.deletion(work, "Rejected", 0))
          truth.rejected += work.workload
          expected.push([idx, "Rejected"])
        }
      }
      assert.strictEqual(
        LoadBook.currentLoad(book),
        open.filter((work) => work.kind !== "request in session").reduce((sum, work) => sum + work.workload, 0)
      )
    }
    const left = LoadBook.takeSums(book)
    for (const key of Object.keys(left) as Array<keyof LoadBook.Sums>) assert.strictEqual(arrived[key] + left[key], truth[key])
    assert.deepStrictEqual(
      book.deleting.map(({ request }): [number, string] => [request.request_idx, request.status]),
      expected
    )
  })

  it("leaves no rounding error behind when everything has ended", () => {
    const book = LoadBook.empty()
    const works = [0.1, 0.2, 0.3].map(
      (workload, requestIdx): LoadBook.Work => ({ kind: "session", requestIdx, workload, enteredQueueAt: 0, startedAt: 0 })
    )
    for (const work of works) LoadBook.begin(book, work)
    for (const work of works) LoadBook.finish(book, work, "Success")
    assert.strictEqual(LoadBook.currentLoad(book), 0)
  })

  it("keeps a bounded number of deletions, the newest", () => {
    const book = LoadBook.empty()
    const request = (request_idx: number): DeletedRequest => ({
      request_idx,
      success: true,
      status: "Success",
      entered_queue_at: 1,
      work_started_at: 1,
      work_completed_at: 2
    })
    const givenUp = Array.from(Array(250_000).keys()).flatMap((idx) =>
      LoadBook.forget(book, { request: request(idx), told: Effect.void })
    )
    assert.isAtMost(book.deleting.length, 100_000)
    assert.isAtLeast(book.deleting.length, 99_000)
    assert.deepStrictEqual(
      [...givenUp, ...book.deleting].map((deletion) => deletion.request.request_idx),
      Array.from(Array(250_000).keys())
    )
  })

  it("has nothing for the autoscaler to forget where there is no request_idx", () => {
    const work = { requestIdx: undefined, enteredQueueAt: 0, startedAt: 0 }
    assert.isNull(LoadBook.deletion({ ...work, kind: "session" }, "Success", 1))
    assert.isNull(LoadBook.deletion({ ...work, kind: "request in session", requestIdx: 1 }, "Success", 1))
  })
})
