/**
 * A route of the worker's own: what it takes, what it does, what load it is (wire section 5).
 *
 * Whatever a handler does, the worker sees to the rest: who may ask, how long a request may wait, what is reported of it, and
 * that it ends with its session.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Headers from "effect/http/Headers"
import * as HttpBody from "effect/http/HttpBody"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import type * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import { MetricsReporter, type Work } from "../metrics/MetricsReporter.ts"
import { type AuthData, defaultCost, isWorkload } from "../protocol/AuthData.ts"
import { HandlerRequest } from "../protocol/SessionApi.ts"
import { type Session, Sessions } from "../session/Session.ts"
import { HandlerFailed, QueueTooLong, type Refusal, SessionGone } from "./Refusals.ts"
import { RequestAuth } from "./RequestAuth.ts"
import * as RequestBody from "./RequestBody.ts"

/** The one at a time that handlers without `parallel` wait for; the whole worker has one. */
export class Turn extends Context.Service<Turn, Semaphore.Semaphore>()("null-pyworker/Handler/Turn") {}

/** A turn for the handlers of one worker. */
export const layerTurn: Layer.Layer<Turn> = Layer.effect(Turn, Semaphore.make(1))

/** A route, ready to be served by a worker that has what it needs besides. */
export type Handler<R = never> = Layer.Layer<
  never,
  never,
  R | MetricsReporter | RequestAuth | Sessions | Turn | HttpRouter.HttpRouter | HttpRouter.Request<"Error", Refusal>
>

/** What every handler says of itself. */
export interface Options<P> {
  readonly route: `/${string}`
  /** What the request's `payload` must be. */
  readonly payload: Schema.Codec<P, unknown>
  /** The load that a request is, in workload units. What is no number from 0 up counts as 100, and so does saying nothing. */
  readonly workload?: (payload: P) => number
  /** Whether requests may be under way at the same time; else they take turns, in the order in which they came. */
  readonly parallel?: boolean
  /** Seconds of queue above which a request is refused with 429 instead of waiting. */
  readonly maxQueueTime?: number
}

/**
 * Serves `POST {route}` with an effect in this process; its result comes back as `{"result": …}`. A failure is answered with
 * 500 and its message, and reported as an error. A client that goes away interrupts the effect.
 */
export const make = <P, A extends Schema.Json, E, R>(
  options: Options<P> & { readonly run: (payload: P) => Effect.Effect<A, E, R> }
): Handler<R> =>
  serve(options, (payload) =>
    options.run(payload).pipe(
      Effect.map((result) => HttpServerResponse.jsonUnsafe({ result })),
      Effect.mapError((error) => new HandlerFailed({ status: 500, reason: messageOf(error) }))
    )
  )

/**
 * Serves `POST {route}` by a model server on this instance: POSTs the payload as JSON to `to`, and passes the answer on as it
 * comes, status, headers and bytes, no faster than the client takes it. A client that goes away cancels the call.
 */
export const forward = <P>(
  options: Options<P> & {
    /** URL of the model server's own route. */
    readonly to: string
    /** What to send instead of the payload. */
    readonly request?: (payload: P) => unknown
    /** What to answer instead of what came. */
    readonly response?: (
      response: HttpClientResponse.HttpClientResponse
    ) => Effect.Effect<HttpServerResponse.HttpServerResponse, { readonly message: string }>
  }
): Handler<HttpClient.HttpClient> => {
  const { request = (payload) => payload, response = passOn } = options
  return serve(
    options,
    Effect.fnUntraced(
      function* (payload) {
        const client = yield* HttpClient.HttpClient
        const asked = HttpClientRequest.bodyJsonUnsafe(HttpClientRequest.post(options.to), request(payload))
        return yield* response(yield* client.execute(asked))
      },
      Effect.mapError((error) => new HandlerFailed({ status: 502, reason: error.message }))
    )
  )
}

/** Headers that are about the connection to the model server, not about its answer. */
const hopByHop = [
  "connection",
  "content-length",
  "keep-alive",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade"
]

const passOn = ({ headers, status, stream }: HttpClientResponse.HttpClientResponse) =>
  Effect.succeed(
    HttpServerResponse.stream(stream, {
      status,
      contentType: headers["content-type"] ?? "application/octet-stream",
      headers: Headers.removeMany(headers, hopByHop)
    })
  )

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error))

const serve = <P, R>(
  options: Options<P>,
  respond: (payload: P) => Effect.Effect<HttpServerResponse.HttpServerResponse, HandlerFailed, R>
): Handler<R> => {
  const read = RequestBody.read(HandlerRequest(options.payload))
  const workload = workloadOf(options)

  return HttpRouter.use(
    Effect.fnUntraced(function* (router) {
      const auth = yield* RequestAuth
      const sessions = yield* Sessions
      const reporter = yield* MetricsReporter
      const turn = yield* Turn
      const context = yield* Effect.context<R>()

      const sessionOf = Effect.fnUntraced(function* (id: string, authData: AuthData) {
        const session = yield* sessions.find(id, authData).pipe(Effect.catchTag("SessionUnknown", () => gone))
        yield* sessions.extend(session)
        return session
      })

      const mayWait = Effect.fnUntraced(function* (work: Work) {
        if (options.maxQueueTime === undefined) return
        const seconds = yield* reporter.queueTime
        if (seconds <= options.maxQueueTime) return
        yield* reporter.reject(work)
        return yield* new QueueTooLong({ seconds })
      })

      // A request ends with its session: before its answer by 410, in the middle of one by the end of the connection.
      const within = <E>(session: Session, answer: Effect.Effect<HttpServerResponse.HttpServerResponse, E, Scope.Scope>) =>
        Effect.gen(function* () {
          const ended = Effect.andThen(sessions.ended(session), gone)
          const response = yield* Effect.raceFirst(answer, ended)
          if (response.body._tag !== "Stream") return response
          const stream = Stream.interruptWhen(response.body.stream, ended)
          const { contentLength, contentType } = response.body
          return HttpServerResponse.setBody(response, HttpBody.stream(stream, contentType, contentLength))
        })

      const inTurn = (turnCame: Effect.Effect<void>) => Effect.andThen(Semaphore.takeScoped(turn, 1), turnCame)

      yield* router.add(
        "POST",
        options.route,
        Effect.gen(function* () {
          const request = yield* read
          yield* auth.verify(request.auth_data)
          const session = request.session_id === null ? undefined : yield* sessionOf(request.session_id, request.auth_data)
          const work: Work = {
            kind: session === undefined ? "request" : "request in session",
            requestIdx: request.auth_data.request_idx,
            workload: yield* workload(request.payload)
          }
          yield* mayWait(work)
          // Open until the answer is sent, streams included. A failure closes it here, before it becomes an answer like others.
          const booked = yield* Scope.fork(yield* Effect.scope)
          const turnCame = yield* Scope.provide(reporter.work(work), booked)
          const responded = Effect.suspend(() => Effect.provideContext(respond(request.payload), context))
          const answer = options.parallel === true ? responded : Effect.andThen(inTurn(turnCame), responded)
          return yield* (session === undefined ? answer : within(session, answer)).pipe(
            Effect.onError((cause) => Scope.close(booked, ending(cause)))
          )
        })
      )
    })
  )
}

// What ends with its session has not failed: its client, or the consumer, wanted no more of it.
const ending = (cause: Cause.Cause<Refusal>) =>
  cause.reasons.some((reason) => Cause.isFailReason(reason) && reason.error._tag === "SessionGone")
    ? Exit.interrupt()
    : Exit.failCause(cause)

const gone = Effect.fail(new SessionGone({ message: "invalid session" }))

// A load that is no load would corrupt the sums that the autoscaler scales by.
const workloadOf =
  <P>({ route, workload }: Options<P>) =>
  (payload: P) => {
    if (workload === undefined) return Effect.succeed(defaultCost)
    return Effect.try(() => workload(payload)).pipe(
      Effect.filterOrFail(isWorkload),
      Effect.catch(() => Effect.as(Effect.logWarning("workload fell back to the default", { route }), defaultCost))
    )
  }
