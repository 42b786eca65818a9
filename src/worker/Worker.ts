/**
 * A worker put together: its servers, and the way from started to ready, errored or stopped (wire section 7).
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as WorkerConfig from "../config.ts"
import * as MetricsReporter from "../metrics/MetricsReporter.ts"
import * as Seconds from "../Seconds.ts"
import * as OnClose from "../session/OnClose.ts"
import * as Session from "../session/Session.ts"
import * as SessionJournal from "../session/SessionJournal.ts"
import * as SessionSlot from "../session/SessionSlot.ts"
import * as ControlServer from "./ControlServer.ts"
import type { Handler } from "./Handler.ts"
import * as HealthProbe from "./HealthProbe.ts"
import * as Listener from "./Listener.ts"
import * as Performance from "./Performance.ts"
import * as Readiness from "./Readiness.ts"
import * as RequestAuth from "./RequestAuth.ts"
import * as WorkerServer from "./WorkerServer.ts"

const probeEvery = Duration.seconds(10)
/** How long a consumer may take to become healthy. */
const healthyWithin = Duration.seconds(300)

/**
 * Watches over the worker's condition. It is ready once its backend has started, its performance is known, requests can be
 * verified and the consumer was healthy; it is errored, for good, when any of that fails, then or later.
 */
export const watch = Effect.gen(function* () {
  const reporter = yield* MetricsReporter.MetricsReporter
  const auth = yield* RequestAuth.RequestAuth
  const performance = yield* Performance.Performance
  const probe = yield* HealthProbe.HealthProbe
  const readiness = yield* Readiness.Readiness
  const launched = yield* Seconds.monotonic
  const started = yield* Deferred.make<void>()

  const firstHealthy = probe.check.pipe(
    Effect.tapError(({ reason }) => Effect.logInfo("waiting for the consumer", { reason })),
    Effect.retry(Schedule.spaced(probeEvery)),
    Effect.timeoutOrElse({
      duration: healthyWithin,
      orElse: () => new HealthProbe.HealthCheckFailed({ reason: `not healthy within ${Duration.toSeconds(healthyWithin)} s` })
    })
  )

  const serve = Effect.gen(function* () {
    yield* Deferred.await(started)
    const maxPerf = yield* performance.measure
    yield* Effect.all([auth.ready, firstHealthy], { concurrency: "unbounded", discard: true })
    const loadtime = (yield* Seconds.monotonic) - launched
    yield* reporter.ready({ loadtime, maxPerf })
    yield* Effect.logInfo("ready", { loadtime, max_perf: maxPerf })
    return yield* Effect.delay(probe.check, probeEvery).pipe(Effect.forever)
  })

  return yield* Effect.raceFirst(serve, readiness.watch(Effect.asVoid(Deferred.succeed(started, undefined)))).pipe(
    Effect.catchDefect((defect) => Effect.fail({ reason: `crashed: ${defect}` })),
    Effect.catch(({ reason }) => Effect.andThen(reporter.errored(reason), Effect.logError("errored", { reason })))
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

/**
 * A worker with these handlers, on the services that it is given: each of them can be another than the instance's, by
 * providing another layer of it.
 */
export const layer = <R = never>(options: { readonly handlers: ReadonlyArray<Handler<R>> }) =>
  lifecycle.pipe(Layer.provideMerge(Layer.mergeAll(WorkerServer.layer(options.handlers), ControlServer.layer)))

/** Workload a second of a worker that is one session: 100, which is what a session is. */
const oneSession = 100

/** The services of an instance, by its environment: what `layer` needs, except for what its handlers do. */
export const layerServices = Session.layer.pipe(
  Layer.provideMerge(SessionSlot.layer),
  Layer.provideMerge(OnClose.layer),
  Layer.provideMerge(MetricsReporter.layer),
  // Last to be provided, so last to go: until then debts are being settled.
  Layer.provideMerge(SessionJournal.layer),
  Layer.provideMerge(
    Layer.mergeAll(HealthProbe.layer, RequestAuth.layer, Readiness.layerLifecycle, Performance.layerPinned(oneSession))
  )
)

/** A worker with these handlers, on an instance. */
export const layerFromEnv = <R = never>(options: { readonly handlers: ReadonlyArray<Handler<R>> }) =>
  layer(options).pipe(
    Layer.provide(layerServices),
    Layer.provide([OnClose.layerOutboundNode, Listener.layerNode]),
    Layer.provide(WorkerConfig.layerFromEnv)
  )
