/**
 * A worker as a process: its settings, its log, its signals, and what the autoscaler hears of one that cannot run.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { type HttpClient, TracerDisabledWhen } from "effect/http/HttpClient"
import type { ServeError } from "effect/http/HttpServerError"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Runtime from "effect/Runtime"
import { type ConfigRefused, logConfig, reportIdentity, WorkerConfig, workerConfig } from "../config.ts"
import * as Logging from "../logging.ts"
import * as MetricsReporter from "../metrics/MetricsReporter.ts"
import * as OnClose from "../session/OnClose.ts"
import * as Listener from "./Listener.ts"
import type { CertificateUnreadable } from "./WorkerServer.ts"

/** What a worker may need of the process that it runs in. */
export type Surroundings = WorkerConfig | HttpClient | OnClose.Outbound | Listener.Listener | NodeServices.NodeServices

/** A worker that is complete but for its surroundings: `Worker.layer` on `Worker.layerServices`, or on services of your own. */
export type CompleteWorker<A> = Layer.Layer<A, ServeError | CertificateUnreadable, Surroundings>

/** An instance kills what is still there 10 s after SIGTERM; by then we have left by ourselves. */
const leaveWithin = 7500

const leaveInTime = Layer.effectDiscard(
  Effect.addFinalizer(() => Effect.sync(() => setTimeout(() => process.exit(0), leaveWithin).unref()))
)

/** Tells the autoscaler why there is no worker, for as long as `until` takes. */
const reportFailure = <A>(reason: string, until: (reporter: MetricsReporter.MetricsReporter["Service"]) => Effect.Effect<A>) =>
  Effect.flatMap(reportIdentity, (identity) =>
    Effect.gen(function* () {
      const reporter = yield* MetricsReporter.MetricsReporter
      yield* reporter.errored(`Worker Server failed to launch: ${reason}`)
      return yield* until(reporter)
    }).pipe(Effect.provide(MetricsReporter.layerIdentity(identity)))
  )

/** How long the autoscaler may take to be told of a setting that cannot be used. */
const tellWithin = "8 seconds"

// The process stays, so that the reason stays with the autoscaler until somebody acts on it.
const failed = ({ message }: { readonly message: string }) =>
  Effect.andThen(
    Effect.logError("worker failed to launch", { reason: message }),
    reportFailure(message, () => Effect.never)
  )

const launch = <A>(worker: CompleteWorker<A>, config: WorkerConfig["Service"]) =>
  leaveInTime.pipe(
    Layer.provide(worker),
    Layer.provide(OnClose.layerOutboundNode),
    Layer.provide(Layer.succeed(WorkerConfig, config)),
    Layer.launch,
    Effect.catchTags({ CertificateUnreadable: failed, ServeError: ({ cause }) => failed({ message: String(cause) }) })
  )

/**
 * Runs a worker until it is interrupted, then closes what is open, delivers what is due, and ends.
 *
 * A setting that cannot be used is told to the autoscaler, if it listens, and then fails the process. A worker that cannot be
 * launched is reported every 10 s for as long as the process lives.
 */
export const run = <A>(worker: CompleteWorker<A>): Effect.Effect<never, ConfigRefused> =>
  Effect.all([workerConfig, logConfig]).pipe(
    Effect.tapError(({ message }) =>
      reportFailure(message, ({ told }) => Effect.timeoutOption(told, tellWithin)).pipe(
        Effect.provideService(References.MinimumLogLevel, "None"),
        Effect.ignore
      )
    ),
    Effect.flatMap(([config]) => Effect.provide(launch(worker, config), Logging.layer)),
    Effect.provide([NodeHttpClient.layerNodeHttpOptions({ keepAlive: true }), NodeServices.layer, Listener.layerNode]),
    // Nobody collects spans here, and no report or callback is to have headers that the framework's own do not have.
    Effect.provideService(TracerDisabledWhen, () => true)
  )

// Being told to stop is no failure.
const teardown: Runtime.Teardown = (exit, onExit) =>
  Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause) ? onExit(0) : Runtime.defaultTeardown(exit, onExit)

/**
 * Runs an effect as the process. SIGTERM and SIGINT interrupt it and end in exit code 0. A failure is told in one line on
 * standard error, a defect with all that is known of it.
 */
export const runProcess = <A, E extends { readonly message: string }>(effect: Effect.Effect<A, E>): void =>
  effect.pipe(
    Effect.tapError(({ message }) => (message === "" ? Effect.void : Console.error(message))),
    Effect.tapDefect((defect) => Effect.logFatal(defect)),
    NodeRuntime.runMain({ disableErrorReporting: true, teardown })
  )

/** Runs a worker as the process: the one line that a worker's own file needs. */
export const runMain = <A>(worker: CompleteWorker<A>): void => runProcess(run(worker))
