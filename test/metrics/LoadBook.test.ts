import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as LoadBook from "../../src/metrics/LoadBook.ts"

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
        LoadBook.finish(book, work, step.as, 2)
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
      book.deleting.map(({ request_idx, status }): [number, string] => [request_idx, status]),
      expected
    )
  })

  it("leaves no rounding error behind when everything has ended", () => {
    const book = LoadBook.empty()
    const works = [0.1, 0.2, 0.3].map(
      (workload, requestIdx): LoadBook.Work => ({ kind: "session", requestIdx, workload, enteredQueueAt: 0, startedAt: 0 })
    )
    for (const work of works) LoadBook.begin(book, work)
    for (const work of works) LoadBook.finish(book, work, "Success", 1)
    assert.strictEqual(LoadBook.currentLoad(book), 0)
  })

  it("has nothing for the autoscaler to forget where there is no request_idx", () => {
    const book = LoadBook.empty()
    const work: LoadBook.Work = { kind: "session", requestIdx: undefined, workload: 100, enteredQueueAt: 0, startedAt: 0 }
    LoadBook.begin(book, work)
    LoadBook.finish(book, work, "Success", 1)
    assert.deepStrictEqual(book.deleting, [])
  })
})
