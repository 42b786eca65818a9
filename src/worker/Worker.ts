/**
 * A worker put together: its servers, and the way from started to ready, errored or stopped (wire section 7).
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import type * as HttpClient from "effect/http/HttpClient"
import type { ServeError } from "effect/http/HttpServerError"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type { WorkerConfig } from "../config.ts"
import * as MetricsReporter from "../metrics/MetricsReporter.ts"
import * as Seconds from "../Seconds.ts"
import * as OnClose from "../session/OnClose.ts"
import * as Session from "../session/Session.ts"
import * as SessionSlot from "../session/SessionSlot.ts"
import * as ControlServer from "./ControlServer.ts"
import type { Handler } from "./Handler.ts"
import * as HealthProbes from "./HealthProbe.ts"
import { HealthProbe } from "./HealthProbe.ts"
import * as RequestAuth from "./RequestAuth.ts"
import * as WorkerServer from "./WorkerServer.ts"

const probeEvery = Duration.seconds(10)
/** How long a consumer may take to become healthy. */
const healthyWithin = Duration.seconds(300)
/** Workload a second that the worker claims to serve. A session is 100, so one session is one worker. */
const maxPerf = 100

/**
 * Watches over the worker's condition: ready once requests can be verified and the consumer was healthy, errored for good when
 * either fails.
 */
export const watch = Effect.gen(function* () {
  const reporter = yield* MetricsReporter.MetricsReporter
  const auth = yield* RequestAuth.RequestAuth
  const probe = yield* HealthProbe
  const started = yield* Seconds.monotonic

  const firstHealthy = probe.check.pipe(
    Effect.tapError(({ reason }) => Effect.logInfo("waiting for the consumer").pipe(Effect.annotateLogs({ reason }))),
    Effect.retry(Schedule.spaced(probeEvery)),
    Effect.timeoutOrElse({
      duration: healthyWithin,
      orElse: () => new HealthProbes.HealthCheckFailed({ reason: `not healthy within ${Duration.toSeconds(healthyWithin)} s` })
    })
  )

  return yield* Effect.gen(function* () {
    yield* Effect.all([auth.ready, firstHealthy], { concurrency: "unbounded", discard: true })
    const loadtime = (yield* Seconds.monotonic) - started
    yield* reporter.ready({ loadtime, maxPerf })
    yield* Effect.logInfo("ready").pipe(Effect.annotateLogs({ loadtime }))
    return yield* Effect.delay(probe.check, probeEvery).pipe(Effect.forever)
  }).pipe(
    Effect.catch(({ reason }) =>
      Effect.andThen(reporter.errored(reason), Effect.logError("errored").pipe(Effect.annotateLogs({ reason })))
    )
  )
})

// Torn down before the servers that it is built after: whoever still gets through is told that the worker stops.
const lifecycle = Layer.effectDiscard(
  Effect.gen(function* () {
    const sessions = yield* Session.Sessions
    yield* Effect.addFinalizer(() => sessions.shutdown)
    yield* Effect.forkScoped(watch)
  })
)

/** A worker with these handlers, on the services that it is given. */
export const layer = <R = never>(handlers: ReadonlyArray<Handler<R>>) =>
  lifecycle.pipe(Layer.provideMerge(Layer.mergeAll(WorkerServer.layer(handlers), ControlServer.layer)))

/** A worker with these handlers and the services of an instance. */
export const layerConfigured = (
  handlers: ReadonlyArray<Handler>
): Layer.Layer<
  ControlServer.ControlServer,
  ServeError | WorkerServer.CertificateUnreadable,
  WorkerConfig | HttpClient.HttpClient | FileSystem.FileSystem
> =>
  layer(handlers).pipe(
    Layer.provide(Session.layer),
    Layer.provide([SessionSlot.layer, OnClose.layer, HealthProbes.layer, RequestAuth.layer]),
    Layer.provide(MetricsReporter.layer)
  )
