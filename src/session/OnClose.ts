/**
 * Tells the user that a session has closed, by the callback that the client asked for (wire section 6).
 *
 * A delivery is a fiber of its own: it never holds up the answer to `/session/end` or the slot. It is tried again with
 * backoff until the receiver answers, and a worker that stops gives what is under way a last chance.
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"

/** What a client asked to be told when its session closes. */
export interface Callback {
  readonly sessionId: string
  readonly route: string
  readonly payload: Schema.Json
}

export class OnClose extends Context.Service<
  OnClose,
  {
    /** Takes the callback over and returns at once. */
    readonly deliver: (callback: Callback) => Effect.Effect<void>
  }
>()("null-pyworker/OnClose") {}

/** An attempt that is worth another: no answer, or one that says so. */
class Undelivered extends Schema.TaggedError<Undelivered>()("Undelivered", { reason: Schema.String }) {}

const attemptTimeout = Duration.seconds(10)
/** About ten minutes of trying. */
const backoff = Schedule.min([Schedule.exponential("500 millis"), Schedule.spaced("1 minute")]).pipe(
  Schedule.jittered,
  Schedule.upTo({ times: 16 })
)
/** What deliveries under way get when the worker stops, and how often they then try. */
const lastChance = Duration.millis(2500)
const lastSpacing = Duration.millis(250)

/** The body that the receiver gets: the payload, with the session's id unless it brings its own. */
export const body = ({ payload, sessionId }: Callback): { readonly [key: string]: Schema.Json } => {
  return Object.assign({ session_id: sessionId }, isFields(payload) ? payload : payload === null ? {} : { payload })
}

// User info and query are where callers put their secrets.
const withoutSecrets = (route: string) => {
  const { origin, pathname } = new URL(route)
  return `${origin}${pathname}`
}

const isFields = Schema.is(Schema.JsonObject)

const make = Effect.gen(function* () {
  const client = yield* HttpClient.HttpClient
  const stopping = yield* Latch.make(false)
  const deliveries = yield* FiberSet.make<void>()
  yield* Effect.addFinalizer(() =>
    Effect.andThen(stopping.open, FiberSet.awaitEmpty(deliveries).pipe(Effect.timeoutOption(lastChance)))
  )

  const attempt = (callback: Callback) =>
    HttpClientRequest.post(callback.route).pipe(
      HttpClientRequest.bodyJsonUnsafe(body(callback)),
      client.execute,
      Effect.flatMap((response) => Effect.as(response.arrayBuffer, response.status)),
      Effect.timeout(attemptTimeout),
      Effect.mapError((error) => new Undelivered({ reason: error.message })),
      Effect.filterOrFail(
        (status) => status < 500 && status !== 408 && status !== 429,
        (status) => new Undelivered({ reason: `status ${status}` })
      )
    )

  // A stopping worker does not sit out a long wait: it tries again at once, and then often.
  const patience = Schedule.modifyDelay(backoff, ({ duration }) =>
    Effect.sleep(duration).pipe(
      Effect.raceFirst(Effect.andThen(stopping.await, Effect.sleep(lastSpacing))),
      Effect.as(Duration.zero)
    )
  )

  return OnClose.of({
    deliver: (callback) =>
      attempt(callback).pipe(
        Effect.retry(patience),
        Effect.matchEffect({
          onSuccess: (status) =>
            status < 400
              ? Effect.logInfo("on_close delivered")
              : Effect.logWarning("on_close refused by its receiver").pipe(Effect.annotateLogs({ status })),
          onFailure: ({ reason }) => Effect.logError("on_close lost").pipe(Effect.annotateLogs({ reason }))
        }),
        Effect.onInterrupt(() => Effect.logError("on_close lost: the worker stopped before its receiver answered")),
        Effect.annotateLogs({ session_id: callback.sessionId, route: withoutSecrets(callback.route) }),
        FiberSet.run(deliveries),
        Effect.asVoid
      )
  })
})

/** Delivers over HTTP. */
export const layer: Layer.Layer<OnClose, never, HttpClient.HttpClient> = Layer.effect(OnClose, make)
