/**
 * What the `client` command does with an endpoint: hold one reservation, or show how an endpoint scales with three.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import type { Endpoint, RequestError, Waiting } from "./Endpoint.ts"
import type { Session, SessionError } from "./Session.ts"

/** Where a plan says what happens, and what it waits for meanwhile. */
export class Display extends Context.Service<
  Display,
  {
    readonly say: (line: string) => Effect.Effect<void>
    /** What `who` waits for; empty when it waits no more. */
    readonly waiting: (who: string, state: string) => Effect.Effect<void>
  }
>()("null-pyworker/client/Display") {}

const eraseLine = "\r\u001b[K"

/**
 * On a terminal the waiting is one live line below what is said and logged; elsewhere each news of it is a line of its own.
 */
export const layerDisplay = (options: {
  readonly write: (text: string) => void
  readonly live: boolean
  readonly logFormat: Logger.Logger<unknown, string>
}): Layer.Layer<Display> => {
  const { live, logFormat, write } = options
  const states = new Map<string, string>()
  const statusLine = () => Array.from(states, ([who, state]) => `${who} ${state}`).join(" | ")
  const print = (line: string) => write(live ? `${eraseLine}${line}\n${statusLine()}` : `${line}\n`)
  return Layer.merge(
    Layer.succeed(Display, {
      say: (line) => Effect.sync(() => print(line)),
      waiting: (who, state) =>
        Effect.sync(() => {
          if (state === "") states.delete(who)
          else states.set(who, state)
          if (live) write(`${eraseLine}${statusLine()}`)
          else if (state !== "") print(`${who} ${state}`)
        })
    }),
    Logger.layer([Logger.map(logFormat, print)])
  )
}

const describe = ({ attempt, seconds, state }: Waiting) => `${state}, attempt ${attempt}, ${Math.round(seconds)} s`

// A reservation that the plan holds: opened, announced, kept alive, and announced again when it ends.
const reserve = Effect.fnUntraced(function* (endpoint: Endpoint, who: string, lifetime: number) {
  const { say, waiting } = yield* Display
  const asked = yield* Clock.currentTimeMillis
  yield* say(`${who} asks for a worker of ${endpoint.name}`)
  yield* Effect.addFinalizer(() => say(`${who} closed`))
  const session = yield* endpoint
    .session({ lifetime, onWaiting: (state) => waiting(who, describe(state)) })
    .pipe(Effect.ensuring(waiting(who, "")))
  const seconds = ((yield* Clock.currentTimeMillis) - asked) / 1000
  yield* say(`${who} reserved ${session.url} after ${seconds.toFixed(1)} s (session ${session.id})`)
  return session
})

const lifetime = 60

/** Holds one reservation for so many seconds. */
export const hold = (
  endpoint: Endpoint,
  options: { readonly seconds: number }
): Effect.Effect<void, RequestError | SessionError, Display> =>
  Effect.scoped(
    Effect.gen(function* () {
      const session = yield* reserve(endpoint, "session", lifetime)
      yield* Effect.raceFirst(Effect.sleep(Duration.seconds(options.seconds)), session.keepAlive)
    })
  )

/** Opens three sessions `interval` seconds apart, holds them for `plateau` seconds, and closes them `interval` seconds apart. */
export const staircase = (
  endpoint: Endpoint,
  options: { readonly interval: number; readonly plateau: number }
): Effect.Effect<void, RequestError | SessionError, Display> =>
  Effect.scoped(
    Effect.gen(function* () {
      const scope = yield* Effect.scope
      const step = Duration.seconds(options.interval)

      const open = Effect.fnUntraced(function* (number: number) {
        yield* Effect.sleep(Duration.times(step, number - 1))
        const own = yield* Scope.fork(scope)
        const session = yield* Scope.provide(reserve(endpoint, `session ${number}`, lifetime), own)
        return { session, close: Scope.close(own, Exit.void) }
      })
      const steps = yield* Effect.forEach([1, 2, 3], open, { concurrency: "unbounded" })
      yield* (yield* Display).say(`all ${steps.length} held for ${options.plateau} s`)
      yield* stayingAlive(
        steps.map(({ session }) => session),
        Effect.sleep(Duration.seconds(options.plateau))
      )
      for (const [index, { close }] of steps.entries()) {
        const left = steps.slice(index + 1).map(({ session }) => session)
        yield* close
        if (left.length > 0) yield* stayingAlive(left, Effect.sleep(step))
      }
    })
  )

const stayingAlive = (sessions: ReadonlyArray<Session>, wait: Effect.Effect<void>): Effect.Effect<void, SessionError> =>
  Effect.raceAllFirst([wait, ...sessions.map((session) => session.keepAlive)])
