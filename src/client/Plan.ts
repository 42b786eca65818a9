/**
 * What the `client` command does with an endpoint: hold one reservation, or show how an endpoint scales with three.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Seconds from "../Seconds.ts"
import { Display } from "./Display.ts"
import type { Endpoint, RequestError, Waiting } from "./Endpoint.ts"
import type { SessionError } from "./Session.ts"

/** Seconds that a plan's sessions live without a ping. */
const lifetime = 60

const describe = ({ attempt, seconds, state }: Waiting) => `${state}, attempt ${attempt}, ${Math.round(seconds)} s`

// Reserves, and holds the reservation alive for as long as `until` takes. Losing it is a failure.
const holdUntil = Effect.fnUntraced(function* <E>(endpoint: Endpoint, who: string, until: Effect.Effect<unknown, E>) {
  const { say, waiting } = yield* Display
  let opened = false
  yield* Effect.gen(function* () {
    const asked = yield* Seconds.monotonic
    yield* say(`${who} asks for a worker of ${endpoint.name}`)
    const session = yield* endpoint
      .session({ lifetime, onWaiting: (state) => waiting(who, describe(state)) })
      .pipe(Effect.ensuring(waiting(who, "")))
    opened = true
    const seconds = (yield* Seconds.monotonic) - asked
    yield* say(`${who} reserved ${session.url} after ${seconds.toFixed(1)} s (session ${session.id})`)
    yield* Effect.raceFirst(Effect.asVoid(until), session.keepAlive)
  }).pipe(Effect.scoped, Effect.ensuring(Effect.suspend(() => (opened ? say(`${who} closed`) : Effect.void))))
})

/** Holds one reservation for so many seconds. */
export const hold = (
  endpoint: Endpoint,
  options: { readonly seconds: number }
): Effect.Effect<void, RequestError | SessionError, Display> =>
  holdUntil(endpoint, "session", Effect.sleep(Duration.seconds(options.seconds)))

/** Opens three sessions `interval` seconds apart, holds them for `plateau` seconds, and closes them `interval` seconds apart. */
export const staircase = (
  endpoint: Endpoint,
  options: { readonly interval: number; readonly plateau: number }
): Effect.Effect<void, RequestError | SessionError, Display> =>
  Effect.gen(function* () {
    const { say } = yield* Display
    const step = Duration.seconds(options.interval)
    const steps = yield* Effect.forEach([1, 2, 3], (number) =>
      Effect.all({
        number: Effect.succeed(number),
        opened: Deferred.make<void>(),
        turn: Deferred.make<void>()
      })
    )

    // Each holds itself, from its opening to its turn to close.
    const climb = Effect.forEach(
      steps,
      ({ number, opened, turn }) =>
        holdUntil(endpoint, `session ${number}`, Effect.andThen(Deferred.succeed(opened, undefined), Deferred.await(turn))).pipe(
          Effect.delay(Duration.times(step, number - 1))
        ),
      { concurrency: "unbounded", discard: true }
    )
    const lead = Effect.gen(function* () {
      for (const { opened } of steps) yield* Deferred.await(opened)
      yield* say(`all ${steps.length} held for ${options.plateau} s`)
      yield* Effect.sleep(Duration.seconds(options.plateau))
      for (const { number, turn } of steps) {
        if (number > 1) yield* Effect.sleep(step)
        yield* Deferred.succeed(turn, undefined)
      }
    })
    yield* Effect.all([climb, lead], { concurrency: "unbounded", discard: true })
  })
