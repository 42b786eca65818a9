import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as SessionSlot from "../../src/session/SessionSlot.ts"

describe("SessionSlot", () => {
  it.effect.prop(
    "is held by as many scopes as there is room, and by nobody who was refused",
    [Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 4 })), Schema.Array(Schema.Boolean)],
    ([capacity, steps]) =>
      Effect.gen(function* () {
        const slot = yield* SessionSlot.make(capacity)
        const holders: Array<Scope.Closeable> = []
        for (const take of steps) {
          if (take) {
            const scope = yield* Scope.make()
            const taken = yield* Effect.exit(Scope.provide(slot.take, scope))
            assert.strictEqual(Exit.isSuccess(taken), holders.length < capacity)
            if (Exit.isSuccess(taken)) holders.push(scope)
            else yield* Scope.close(scope, Exit.void)
          } else {
            const scope = holders.shift()
            if (scope !== undefined) yield* Scope.close(scope, Exit.void)
          }
        }
      })
  )

  it.effect("never waits", () =>
    Effect.gen(function* () {
      const slot = yield* SessionSlot.make(1)
      yield* slot.take
      const refusal = yield* Effect.flip(slot.take)
      assert.deepInclude(refusal, { _tag: "SlotOccupied", capacity: 1 })
    })
  )
})
