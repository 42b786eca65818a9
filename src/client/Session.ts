/**
 * A reserved worker as its client holds it.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as HttpClient from "effect/http/HttpClient"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type * as Schema from "effect/Schema"
import type { AuthData } from "../protocol/AuthData.ts"
import * as Seconds from "../Seconds.ts"
import { type RequestFailed, SessionEnded, type Unauthorised, WorkerGone } from "./Errors.ts"
import { backoff, isTransient, post, refused } from "./Transport.ts"

export type SessionError = SessionEnded | WorkerGone | Unauthorised | RequestFailed

export interface Session {
  readonly id: string
  /** The worker that is reserved. */
  readonly url: string
  /** Shows the worker that the client is alive: the session lives its whole lifetime from here. */
  readonly ping: Effect.Effect<void, SessionError>
  /** Pings for as long as it runs, and fails when the session is lost. Fork it, or race the work with it. */
  readonly keepAlive: Effect.Effect<never, SessionError>
  /** Whether the worker still holds the session. */
  readonly isOpen: Effect.Effect<boolean, Unauthorised | WorkerGone | RequestFailed>
  /** Sends a request to one of the worker's handlers, in the session, and answers with its JSON. */
  readonly request: (route: string, payload: { readonly [key: string]: Schema.Json }) => Effect.Effect<Schema.Json, SessionError>
  /** Ends the session now; leaving its scope does the same. A session that cannot be ended has ended, or will by its lifetime. */
  readonly end: Effect.Effect<void>
}

/** Seconds that a worker may take to answer, about a session and in one. */
const sessionTimeout = 10
const requestTimeout = 600
/** How often a request in a session is tried, because its worker cannot be exchanged for another. */
const tries = 5

/** Answers to `/session/end` after which there is no session any more: it was ended now, or before. */
const hasEnded = new Set([200, 400, 410])

/** Whether a ping that failed so may come through the next time. */
const isRetriable = (error: SessionError) => error._tag === "WorkerGone" || error._tag === "RequestFailed"

export const make = (options: {
  readonly id: string
  readonly auth: AuthData
  readonly lifetime: number
  readonly client: HttpClient.HttpClient
}): Session => {
  const { auth, client, id, lifetime } = options
  const key = { session_id: id, session_auth: auth }

  const send = Effect.fnUntraced(function* (route: string, payload: { readonly [key: string]: Schema.Json }, timeout: number) {
    const url = `${auth.url}${route}`
    for (let attempt = 1; ; attempt++) {
      const answer = yield* post(client, url, { auth_data: auth, session_id: id, payload }, timeout)
      if (answer.status < 300) return answer.body
      if (answer.status === 410) return yield* new SessionEnded({ sessionId: id })
      if (!isTransient(answer.status) || attempt === tries) return yield* refused(url, answer)
      yield* Effect.sleep(Duration.seconds(yield* backoff(attempt)))
    }
  })
  const ping = Effect.asVoid(send("/ping", {}, sessionTimeout))

  // Three pings a lifetime, and as long as the last one that came through still counts, more where one does not.
  const keepAlive = Effect.gen(function* () {
    let alive = yield* Seconds.monotonic
    let pause = lifetime / 3
    while (true) {
      yield* Effect.sleep(Duration.seconds(pause))
      const asked = yield* Seconds.monotonic
      const pinged = yield* Effect.result(Effect.timeoutOption(ping, Duration.seconds(lifetime / 3)))
      const lost = Result.isFailure(pinged) && !isRetriable(pinged.failure)
      if (lost) return yield* Effect.fail(pinged.failure)
      const arrived = Result.isSuccess(pinged) && Option.isSome(pinged.success)
      if (arrived) alive = asked
      else if ((yield* Seconds.monotonic) - alive >= lifetime) {
        return yield* Result.isFailure(pinged)
          ? Effect.fail(pinged.failure)
          : new WorkerGone({ url: auth.url, reason: "no answer to any ping for a lifetime" })
      }
      pause = arrived ? lifetime / 3 : lifetime / 12
    }
  })

  return {
    id,
    url: auth.url,
    ping,
    keepAlive,
    isOpen: Effect.flatMap(post(client, `${auth.url}/session/get`, key, sessionTimeout), (answer) => {
      if (answer.status === 200) return Effect.succeed(true)
      return answer.status === 400 ? Effect.succeed(false) : Effect.fail(refused(`${auth.url}/session/get`, answer))
    }),
    request: (route, payload) => send(route, payload, requestTimeout),
    end: post(client, `${auth.url}/session/end`, key, sessionTimeout).pipe(
      Effect.filterOrFail(
        ({ status }) => hasEnded.has(status),
        (answer) => refused("/session/end", answer)
      ),
      Effect.retry({ times: 2, schedule: Schedule.spaced("500 millis") }),
      Effect.catch((error) => Effect.logWarning("session not ended", { session_id: id, reason: error.message })),
      Effect.asVoid
    )
  }
}
