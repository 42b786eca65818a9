/**
 * The null worker as a process: a worker whose only handler answers pings.
 */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import { type ConfigRefused, logConfig, reportIdentity, WorkerConfig, workerConfig } from "./config.ts"
import * as Logging from "./logging.ts"
import * as MetricsReporter from "./metrics/MetricsReporter.ts"
import * as Handler from "./worker/Handler.ts"
import * as Worker from "./worker/Worker.ts"

/** Shows that the client is alive, and so extends its session. It is no load. */
export const ping = Handler.make({
  route: "/ping",
  payload: Schema.JsonObject,
  workload: () => 0,
  parallel: true,
  run: () => Effect.succeed({ ok: true })
})

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

const launch = (config: WorkerConfig["Service"]) =>
  leaveInTime.pipe(
    Layer.provide(Worker.layerConfigured([ping])),
    Layer.provide(Layer.succeed(WorkerConfig, config)),
    Layer.launch,
    Effect.catchTags({ CertificateUnreadable: failed, ServeError: ({ cause }) => failed({ message: String(cause) }) })
  )

// The process stays, so that the reason stays with the autoscaler until somebody acts on it.
const failed = ({ message }: { readonly message: string }) =>
  Effect.andThen(
    Effect.logError("worker failed to launch").pipe(Effect.annotateLogs({ reason: message })),
    reportFailure(message, () => Effect.never)
  )

/**
 * Runs the null worker until it is interrupted, then closes what is open, delivers what is due, and ends.
 *
 * A setting that cannot be used is told to the autoscaler, if it listens, and then fails the process.
 */
export const run: Effect.Effect<never, ConfigRefused> = Effect.all([workerConfig, logConfig]).pipe(
  Effect.tapError(({ message }) =>
    reportFailure(message, ({ told }) => Effect.timeoutOption(told, tellWithin)).pipe(
      Effect.provideService(References.MinimumLogLevel, "None"),
      Effect.ignore
    )
  ),
  Effect.flatMap(([config]) => Effect.provide(launch(config), Logging.layer)),
  Effect.provide([NodeHttpClient.layerNodeHttp, NodeFileSystem.layer])
)
