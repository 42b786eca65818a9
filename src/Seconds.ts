/**
 * Time as the wire counts it: in seconds, with fractions.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

/** Now, since the epoch: what others are told. */
export const epoch: Effect.Effect<number> = Effect.map(Clock.currentTimeMillis, (millis) => millis / 1000)

/** Now, since some moment in the past: what durations are measured by, because no clock step moves it. */
export const monotonic: Effect.Effect<number> = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e9)
