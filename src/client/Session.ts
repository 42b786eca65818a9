/**
 * A reserved worker as its client holds it.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as HttpClient from "effect/http/HttpClient"
import type * as Schema from "effect/Schema"
import type { AuthData } from "../protocol/AuthData.ts"
import { type RequestFailed, SessionEnded, type Unauthorised, type WorkerGone } from "./Errors.ts"
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

export const make = (options: {
  readonly id: string
  readonly auth: AuthData
  readonly lifetime: number
  readonly client: HttpClient.HttpClient
}): Session => {
  const { auth, client, id, lifetime } = options
  const key = { session_id: id, session_auth: auth }

  const request = Effect.fnUntraced(function* (route: string, payload: { readonly [key: string]: Schema.Json }) {
    const url = `${auth.url}${route}`
    for (let attempt = 1; ; attempt++) {
      const answer = yield* post(client, url, { auth_data: auth, session_id: id, payload }, requestTimeout)
      if (answer.status < 300) return answer.body
      if (answer.status === 410) return yield* new SessionEnded({ sessionId: id })
      if (!isTransient(answer.status) || attempt === tries) return yield* refused(url, answer)
      yield* Effect.sleep(Duration.seconds(yield* backoff(attempt)))
    }
  })
  const ping = Effect.asVoid(request("/ping", {}))

  return {
    id,
    url: auth.url,
    ping,
    // Three chances a lifetime: one lost ping, or a slow one, does not lose the session.
    keepAlive: Effect.forever(Effect.delay(ping, Duration.seconds(lifetime / 3))),
    isOpen: Effect.flatMap(post(client, `${auth.url}/session/get`, key, sessionTimeout), (answer) => {
      if (answer.status === 200) return Effect.succeed(true)
      return answer.status === 400 ? Effect.succeed(false) : Effect.fail(refused(`${auth.url}/session/get`, answer))
    }),
    request,
    end: post(client, `${auth.url}/session/end`, key, sessionTimeout).pipe(
      Effect.flatMap(({ status }) => Effect.logDebug("session ended").pipe(Effect.annotateLogs({ session_id: id, status }))),
      Effect.catch((error) =>
        Effect.logWarning("session not ended").pipe(Effect.annotateLogs({ session_id: id, reason: error._tag }))
      )
    )
  }
}
