import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { Display } from "../../src/client/Display.ts"
import type { Endpoint } from "../../src/client/Endpoint.ts"
import { staircase } from "../../src/client/Plan.ts"
import * as Seconds from "../../src/Seconds.ts"

describe("staircase", () => {
  it.effect("pings each session from its opening on, however long the others take", () => {
    const events: Array<[number, string]> = []
    const note = (event: string) =>
      Effect.gen(function* () {
        events.push([yield* Seconds.epoch, event])
      })
    let opened = 0
    const endpoint: Endpoint = {
      id: 1,
      name: "null",
      request: () => Effect.die("not asked for"),
      workers: Effect.succeed([]),
      session: () =>
        Effect.gen(function* () {
          const id = String(++opened)
          // The second and third workers take minutes to start.
          yield* Effect.sleep(Duration.minutes(opened === 1 ? 0 : 5))
          yield* note(`open ${id}`)
          yield* Effect.addFinalizer(() => note(`end ${id}`))
          const ping = note(`ping ${id}`)
          return {
            id,
            url: "http://worker",
            ping,
            keepAlive: Effect.forever(Effect.delay(ping, "20 seconds")),
            isOpen: Effect.succeed(true),
            request: () => Effect.succeed(null),
            end: Effect.void
          }
        })
    }
    return Effect.gen(function* () {
      const demo = yield* Effect.forkChild(staircase(endpoint, { interval: 30, plateau: 300 }))
      yield* Effect.repeat(TestClock.adjust("5 seconds"), { times: 200 })
      yield* Fiber.join(demo)
      const at = (event: string) => events.filter(([, name]) => name === event).map(([time]) => time)
      assert.deepStrictEqual([at("open 1"), at("open 2"), at("open 3")], [[0], [330], [360]])
      assert.deepStrictEqual([at("end 1"), at("end 2"), at("end 3")], [[660], [690], [720]])
      assert.strictEqual(at("ping 1").length, 32)
    }).pipe(Effect.provide(Layer.succeed(Display, { say: () => Effect.void, waiting: () => Effect.void })))
  })
})
