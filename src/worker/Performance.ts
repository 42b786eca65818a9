/**
 * How much a worker can serve: the figure by which the autoscaler plans how many it needs (wire sections 7 and 8).
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Seconds from "../Seconds.ts"

/** No request of the benchmark succeeded. The worker is errored with this reason. */
export class BenchmarkFailed extends Schema.TaggedError<BenchmarkFailed>()("BenchmarkFailed", { reason: Schema.String }) {}

export class Performance extends Context.Service<
  Performance,
  {
    /** Workload a second that this worker serves. Asked once, when the backend has started. */
    readonly measure: Effect.Effect<number, BenchmarkFailed>
  }
>()("null-pyworker/Performance") {}

/** A figure that needs no measuring. At 100, one session of 100 is one worker. */
export const layerPinned = (maxPerf: number): Layer.Layer<Performance> =>
  Layer.succeed(Performance, { measure: Effect.succeed(maxPerf) })

/** A benchmark: what it asks of the backend, how often, and how much of it at a time. */
export interface Benchmark<P, E, R> {
  /** Makes the payload of one request. */
  readonly payload: Effect.Effect<P, never, R>
  /** The load that a payload is, in workload units. */
  readonly workload: (payload: P) => number
  /** Has the backend serve it. */
  readonly run: (payload: P) => Effect.Effect<unknown, E, R>
  /** How often the throughput is measured; the best counts: 8 unless given. */
  readonly runs?: number
  /** Requests under way at a time: 10 unless given. */
  readonly concurrency?: number
  /** Whether one request goes first that does not count, so that the backend loads what it needs: yes unless given. */
  readonly warmUp?: boolean
  /** Where the figure is kept, so that a restart on the same disk does not measure again. */
  readonly file?: string
}

/** Measures the backend's throughput. */
export const layerBenchmark = <P, E, R>(
  benchmark: Benchmark<P, E, R>
): Layer.Layer<Performance, never, R | FileSystem.FileSystem> =>
  Layer.effect(
    Performance,
    Effect.gen(function* () {
      const { concurrency = 10, file = ".has_benchmark", payload, run, runs = 8, warmUp = true, workload } = benchmark
      const files = yield* FileSystem.FileSystem
      const context = yield* Effect.context<R>()

      const once = Effect.gen(function* () {
        const started = yield* Seconds.monotonic
        const served = yield* Effect.forEach(
          Array(concurrency).keys(),
          () => Effect.flatMap(payload, (asked) => Effect.as(run(asked), workload(asked))).pipe(Effect.option),
          { concurrency: "unbounded" }
        )
        const load = served.reduce((sum, one) => sum + Option.getOrElse(one, () => 0), 0)
        return load / Math.max((yield* Seconds.monotonic) - started, Number.EPSILON)
      })

      const measured = Effect.gen(function* () {
        if (warmUp) yield* Effect.ignore(Effect.flatMap(payload, run))
        const figures = yield* Effect.replicateEffect(once, runs)
        const best = Math.max(...figures)
        if (best <= 0) return yield* new BenchmarkFailed({ reason: "No successful responses from benchmark" })
        yield* Effect.logInfo("benchmark", { max_perf: best, runs, concurrency })
        yield* files
          .writeFileString(file, String(best))
          .pipe(Effect.catch((error) => Effect.logWarning("benchmark not kept", error.message)))
        return best
      })

      const kept = files.readFileString(file).pipe(
        Effect.map(Number),
        Effect.filterOrFail((figure) => Number.isFinite(figure) && figure > 0),
        Effect.option
      )

      return {
        measure: Effect.flatMap(
          kept,
          Option.match({ onNone: () => Effect.provideContext(measured, context), onSome: Effect.succeed })
        )
      }
    })
  )
