/**
 * An endpoint as its callers use it: requests go through the autoscaler to whichever worker has room.
 */

import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import type * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { type AuthData, defaultCost } from "../protocol/AuthData.ts"
import { type EndpointJob, RouteAnswer, type RouteRequest, WorkerInfo } from "../protocol/RouteApi.ts"
import { defaultLifetime, type Reservation, SessionCreated } from "../protocol/SessionApi.ts"
import * as Seconds from "../Seconds.ts"
import { NoWorkerInTime, RequestFailed, type Unauthorised } from "./Errors.ts"
import * as Session from "./Session.ts"
import { backoff, isTransient, post, refused, refuseUnauthorised } from "./Transport.ts"

/** What a request waits for: a worker to be free (`queued`), or the next try after a worker did not take it, and why. */
export interface Waiting {
  readonly state: "queued" | `retrying (${string})`
  readonly attempt: number
  readonly seconds: number
}

export interface RequestOptions {
  /** The load that the request is, in workload units: 100 unless given. */
  readonly cost?: number
  /** Seconds to wait for a worker; for ever unless given. */
  readonly timeout?: number
  /** Called each time the request has to keep waiting. */
  readonly onWaiting?: (waiting: Waiting) => Effect.Effect<void>
}

export interface SessionOptions extends RequestOptions {
  /** Seconds that the session lives without a sign of the client: 60 unless given. */
  readonly lifetime?: number
  /** Where the worker POSTs when the session closes. */
  readonly onCloseRoute?: string
  /** What it POSTs: an object, to which the session's id is added, or any JSON, which comes as `payload`. */
  readonly onClosePayload?: Schema.Json
}

export type RequestError = NoWorkerInTime | RequestFailed | Unauthorised

export interface Endpoint {
  readonly id: number
  readonly name: string
  /** Reserves a worker. Leaving the scope ends the session. */
  readonly session: (options?: SessionOptions) => Effect.Effect<Session.Session, RequestError, Scope.Scope>
  /** Sends one request to one of the handlers' routes and answers with its JSON. */
  readonly request: (
    route: string,
    payload: { readonly [key: string]: Schema.Json },
    options?: RequestOptions
  ) => Effect.Effect<Schema.Json, RequestError>
  /** The endpoint's workers, as the autoscaler sees them. */
  readonly workers: Effect.Effect<ReadonlyArray<WorkerInfo>, RequestFailed | Unauthorised>
}

export interface Connection {
  readonly job: EndpointJob
  readonly accountKey: Redacted.Redacted
  readonly autoscaler: string
  readonly client: HttpClient.HttpClient
  readonly clientFor: (url: string) => Effect.Effect<HttpClient.HttpClient, RequestFailed>
}

/** Seconds after which the autoscaler may forget a queued request that nobody asks for. */
const replayTimeout = 60
/** Seconds that the autoscaler may take to answer, a worker to open a session, and to serve any other request. */
const routeTimeout = 10
const createTimeout = 10
/** How often in a row the autoscaler may fail to answer, before a place in its queue is given up. */
const toleratedHiccups = 5
const requestTimeout = 600

export const make = ({ accountKey, autoscaler, client, clientFor, job }: Connection): Endpoint => {
  const ask = <A>(route: string, body: unknown, answer: Schema.Codec<A, unknown>) =>
    HttpClientRequest.post(`${autoscaler}${route}`).pipe(
      HttpClientRequest.bearerToken(job.api_key),
      HttpClientRequest.bodyJsonUnsafe(body),
      client.execute,
      Effect.timeout(Duration.seconds(routeTimeout)),
      Effect.tap(refuseUnauthorised(autoscaler)),
      Effect.flatMap(HttpClientResponse.filterStatusOk),
      Effect.flatMap(HttpClientResponse.schemaBodyJson(answer)),
      Effect.catchTag(["HttpClientError", "SchemaError", "TimeoutError"], (error) =>
        Effect.fail(new RequestFailed({ what: `${autoscaler}${route}`, reason: error.message }))
      )
    )

  // One request's way to a worker that takes it: it waits in the autoscaler's queue, and goes back there when the worker it
  // was given has no room, is broken or gone. Waiting can be interrupted; a request that is under way is seen through, so
  // that no session is opened which nobody knows of.
  const send = Effect.fnUntraced(function* (
    request: { readonly route: string; readonly payload: unknown; readonly timeout: number },
    { cost = defaultCost, onWaiting, timeout }: RequestOptions,
    interruptible: <A, E>(self: Effect.Effect<A, E>) => Effect.Effect<A, E>
  ) {
    const started = yield* Seconds.monotonic
    let requestIdx = 0
    let attempt = 0

    const wait = (state: Waiting["state"], pause: number) =>
      Effect.gen(function* () {
        attempt += 1
        const waited = (yield* Seconds.monotonic) - started
        if (timeout !== undefined && waited >= timeout) return yield* new NoWorkerInTime({ seconds: timeout })
        if (onWaiting !== undefined) yield* onWaiting({ state, attempt, seconds: waited })
        yield* Effect.sleep(Duration.seconds(timeout === undefined ? pause : Math.min(pause, timeout - waited)))
      }).pipe(interruptible)

    const route = Effect.suspend(() => {
      const body: typeof RouteRequest.Encoded = {
        endpoint: job.endpoint_name,
        api_key: job.api_key,
        cost,
        request_idx: requestIdx,
        replay_timeout: replayTimeout
      }
      return interruptible(ask("/route/", body, RouteAnswer))
    })

    let hiccups = 0
    while (true) {
      const asked = yield* Effect.result(route)
      if (Result.isFailure(asked)) {
        hiccups += 1
        if (asked.failure._tag === "Unauthorised" || hiccups === toleratedHiccups) return yield* Effect.fail(asked.failure)
        yield* wait(`retrying (${asked.failure.message})`, yield* backoff(attempt))
        continue
      }
      hiccups = 0
      const routed = asked.success
      requestIdx = routed.request_idx ?? requestIdx
      if (!("url" in routed)) {
        const longest = yield* backoff(attempt)
        yield* wait("queued", attempt === 0 ? 1 : yield* Random.nextBetween(0.1, longest))
        continue
      }
      const auth: AuthData = routed
      const url = `${auth.url}${request.route}`
      const workerClient = yield* interruptible(clientFor(auth.url))
      const answer = yield* post(
        workerClient,
        url,
        { auth_data: auth, session_id: null, payload: request.payload },
        request.timeout
      ).pipe(Effect.catchTag("WorkerGone", ({ reason }) => Effect.succeed({ status: 503, body: null, reason })))
      if (answer.status < 300) return { auth, client: workerClient, body: answer.body }
      if (!isTransient(answer.status)) return yield* refused(url, answer)
      yield* wait(`retrying (${answer.reason ?? `status ${answer.status}`})`, yield* backoff(attempt))
    }
  })

  return {
    id: job.id,
    name: job.endpoint_name,
    session: (options = {}) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.gen(function* () {
          const reservation: Reservation = {
            lifetime: options.lifetime ?? defaultLifetime,
            on_close_route: options.onCloseRoute ?? null,
            on_close_payload: options.onClosePayload ?? null
          }
          const opened = yield* send({ route: "/session/create", payload: reservation, timeout: createTimeout }, options, restore)
          const { session_id } = yield* Schema.decodeUnknownEffect(SessionCreated)(opened.body).pipe(
            Effect.mapError((error) => new RequestFailed({ what: `${opened.auth.url}/session/create`, reason: error.message }))
          )
          const { auth, client } = opened
          const session = Session.make({ id: session_id, auth, lifetime: reservation.lifetime, client })
          yield* Effect.addFinalizer(() => session.end)
          return session
        })
      ),
    request: (route, payload, options = {}) =>
      Effect.map(send({ route, payload, timeout: requestTimeout }, options, identity), ({ body }) => body),
    workers: ask("/get_endpoint_workers/", { id: job.id, api_key: Redacted.value(accountKey) }, Schema.Array(WorkerInfo))
  }
}
