import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Scaling from "../../src/local/Scaling.ts"

const parameters = { ...Scaling.defaults, max_workers: 5, inactivity_timeout: 10 }
const busy = (id: number) => ({ id, perf: 100, load: 100, idleFor: 0 })
const idle = (id: number, idleFor: number) => ({ id, perf: 100, load: 0, idleFor })

describe("decide", () => {
  it("starts a worker for each session that waits", () => {
    assert.deepStrictEqual(Scaling.decide(parameters, 300, []), { start: 3, stop: [] })
    assert.deepStrictEqual(Scaling.decide(parameters, 100, [busy(1), busy(2)]), { start: 1, stop: [] })
  })

  it("starts none for a session that an idle or coming worker will take", () => {
    assert.deepStrictEqual(Scaling.decide(parameters, 100, [busy(1), idle(2, 0)]), { start: 0, stop: [] })
  })

  it("never goes above max_workers", () => {
    assert.deepStrictEqual(Scaling.decide(parameters, 10_000, [busy(1)]), { start: 4, stop: [] })
  })

  it("keeps min_load's workers, and headroom by target_util", () => {
    assert.strictEqual(Scaling.decide({ ...parameters, min_load: 200 }, 0, []).start, 2)
    assert.strictEqual(Scaling.decide({ ...parameters, target_util: 0.5 }, 100, []).start, 2)
  })

  it("spreads the queue over target_queue_time", () => {
    assert.strictEqual(Scaling.decide({ ...parameters, target_queue_time: 4 }, 400, []).start, 1)
  })

  it("stops the longest idle of the surplus after inactivity_timeout, never one with load", () => {
    const workers = [busy(1), idle(2, 11), idle(3, 30), idle(4, 9)]
    assert.deepStrictEqual(Scaling.decide(parameters, 0, workers), { start: 0, stop: [3, 2] })
    assert.deepStrictEqual(Scaling.decide({ ...parameters, min_load: 300 }, 0, workers), { start: 0, stop: [3] })
  })

  const Natural = (maximum: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum }))
  const Worker = Schema.Struct({ load: Schema.Literals([0, 50, 100]), idleFor: Natural(30) })

  it.prop(
    "stays between what is needed and what is allowed",
    [Schema.Array(Worker).check(Schema.isMaxLength(5)), Natural(10), Natural(500)],
    ([workers, sessions, min_load]) => {
      const active = workers.map((worker, id) => ({ id, perf: 100, ...worker, idleFor: worker.load > 0 ? 0 : worker.idleFor }))
      const { start, stop } = Scaling.decide({ ...parameters, min_load }, sessions * 100, active)
      const after = active.length + start - stop.length
      const load = active.reduce((sum, worker) => sum + worker.load, 0) + sessions * 100
      assert.isAtMost(after, Math.max(parameters.max_workers, active.length))
      assert.isAtLeast(after * 100, Math.min(parameters.max_workers * 100, Math.max(load, min_load)))
      assert.isTrue(start === 0 || stop.length === 0)
      for (const id of stop) assert.strictEqual(active[id]?.load, 0)
    }
  )
})
