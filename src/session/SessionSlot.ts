/**
 * The room that a worker has for sessions: one, unless configured otherwise.
 *
 * A worker whose slot is taken answers 429, and the autoscaler routes on or adds a worker. So nobody ever waits for a slot here.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { WorkerConfig } from "../config.ts"

/** Every slot is held by a session. Becomes 429. */
export class SlotOccupied extends Schema.TaggedError<SlotOccupied>()("SlotOccupied", {
  capacity: Schema.Int
}) {}

export class SessionSlot extends Context.Service<
  SessionSlot,
  {
    /** Takes a slot for as long as the scope is open, or fails at once. */
    readonly take: Effect.Effect<void, SlotOccupied, Scope.Scope>
  }
>()("null-pyworker/SessionSlot") {}

/** Slots for `capacity` sessions. */
export const make = Effect.fnUntraced(function* (capacity: number) {
  const slots = yield* Semaphore.make(capacity)
  const release = slots.release(1)
  return SessionSlot.of({
    take: Effect.flatMap(Effect.scope, (scope) =>
      Effect.flatMap(slots.takeIfAvailable(1), (taken) =>
        taken ? Scope.addFinalizer(scope, release) : new SlotOccupied({ capacity })
      )
    ).pipe(Effect.uninterruptible)
  })
})

/** As many slots as `MAX_SESSIONS` says. */
export const layer: Layer.Layer<SessionSlot, never, WorkerConfig> = Layer.effect(
  SessionSlot,
  Effect.flatMap(WorkerConfig, ({ maxSessions }) => make(maxSessions))
)

/** A fixed number of slots. */
export const layerCapacity = (capacity: number): Layer.Layer<SessionSlot> => Layer.effect(SessionSlot, make(capacity))
