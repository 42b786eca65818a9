/**
 * How a client speaks to a worker: one POST, and what its answer says of trying again.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Random from "effect/Random"
import type * as Schema from "effect/Schema"
import { RequestFailed, Unauthorised, WorkerGone } from "./Errors.ts"

/** The longest pause between two tries, in seconds. */
const longestPause = 5

/** Capped exponential backoff with jitter, in seconds. */
export const backoff = (attempt: number) =>
  Effect.map(Random.next, (jitter) => Math.min(2 ** Math.min(attempt, 20) + jitter, longestPause))

/** Worth another try: the worker has no room, is stopping or broken, or took too long. */
export const isTransient = (status: number) => status === 408 || status === 429 || status >= 500

export interface Answer {
  readonly status: number
  readonly body: Schema.Json
  /** Why there is no answer, where the status is ours. */
  readonly reason?: string
}

/**
 * POSTs JSON to a worker. Any status is an answer, a timeout counting as 408, except those that say the key is wrong; a
 * connection that fails means that the worker is gone.
 */
export const post = (
  client: HttpClient.HttpClient,
  url: string,
  body: unknown,
  timeout: number
): Effect.Effect<Answer, WorkerGone | Unauthorised | RequestFailed> =>
  HttpClientRequest.post(url).pipe(
    HttpClientRequest.bodyJsonUnsafe(body),
    client.execute,
    Effect.flatMap((response) => Effect.map(response.text, (text) => ({ status: response.status, text }))),
    Effect.timeoutOrElse({
      duration: Duration.seconds(timeout),
      orElse: () => Effect.succeed({ status: 408, text: "" })
    }),
    Effect.mapError((error) => new WorkerGone({ url, reason: error.message })),
    Effect.flatMap(({ status, text }) =>
      Effect.try({
        // What is no success may come from a proxy, which does not speak JSON.
        try: (): Answer => ({ status, body: status < 300 ? JSON.parse(text) : text }),
        catch: () => new RequestFailed({ what: url, reason: "the answer is no JSON" })
      })
    ),
    Effect.tap(refuseUnauthorised(url))
  )

/** Fails for a status that says that the key is wrong. */
export const refuseUnauthorised =
  (by: string) =>
  ({ status }: { readonly status: number }): Effect.Effect<void, Unauthorised> =>
    status === 401 || status === 403 ? Effect.fail(new Unauthorised({ by })) : Effect.void

/** The error of an answer that trying again does not mend. */
export const refused = (what: string, { body, status }: Answer) =>
  new RequestFailed({ what, reason: `status ${status}: ${typeof body === "string" ? body : JSON.stringify(body)}` })
