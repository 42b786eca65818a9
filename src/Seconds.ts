/**
 * Time as the wire counts it: in seconds, with fractions.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

const epochOf = (clock: Clock.Clock) => clock.currentTimeMillisUnsafe() / 1000
const monotonicOf = (clock: Clock.Clock) => Number(clock.monotonicTimeNanosUnsafe()) / 1e9

/** Now, since the epoch: what others are told. */
export const epoch: Effect.Effect<number> = Clock.clockWith((clock) => Effect.succeed(epochOf(clock)))

/** Now, since some moment in the past: what durations are measured by, because no clock step moves it. */
export const monotonic: Effect.Effect<number> = Clock.clockWith((clock) => Effect.succeed(monotonicOf(clock)))

/** Now by both, for a moment that others are told of and that something is measured from. */
export const now: Effect.Effect<{ readonly epoch: number; readonly monotonic: number }> = Clock.clockWith((clock) =>
  Effect.succeed({ epoch: epochOf(clock), monotonic: monotonicOf(clock) })
)
