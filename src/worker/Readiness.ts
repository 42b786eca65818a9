/**
 * When the user's own process has started, and when it has failed, by its own word.
 *
 * Being started is the first part of becoming ready; the health probe's word is the next (wire section 7).
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ChildProcess from "effect/process/ChildProcess"
import { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"

/** The user's process said that it cannot work. The worker is errored with this reason. */
export class BackendFailed extends Schema.TaggedError<BackendFailed>()("BackendFailed", { reason: Schema.String }) {}

export class Readiness extends Context.Service<
  Readiness,
  {
    /** Runs for as long as the worker does: runs `started` once, when the process has started, and fails when it fails. */
    readonly watch: (started: Effect.Effect<void>) => Effect.Effect<never, BackendFailed>
  }
>()("null-pyworker/Readiness") {}

/** Started as soon as the worker is: there is nothing to wait for, or the health probe tells. */
export const layerLifecycle: Layer.Layer<Readiness> = Layer.succeed(Readiness, {
  watch: (started) => Effect.andThen(started, Effect.never)
})

/** What lines of a log mean, each told by a text that the line contains. */
export interface LogLines {
  readonly file: string
  /** The process has started. */
  readonly onLoad: ReadonlyArray<string>
  /** The process cannot work; the text becomes the worker's error. */
  readonly onError: ReadonlyArray<string>
  /** Worth repeating in the worker's own log. */
  readonly onInfo?: ReadonlyArray<string>
}

/**
 * Started, or failed, by what the process writes into its log file, read from its beginning. The file may come later than the
 * worker, and may be rotated: coreutils' `tail -F` follows it, for as long as this process lives.
 */
export const layerLog = ({ file, onError, onInfo = [], onLoad }: LogLines): Layer.Layer<Readiness, never, ChildProcessSpawner> =>
  Layer.effect(
    Readiness,
    Effect.map(ChildProcessSpawner, (spawner) => ({
      watch: (started) => {
        const saying = (line: string) => (text: string) => line.includes(text)
        let loaded = false
        return spawner
          .streamLines(ChildProcess.make("tail", ["--lines=+1", "-F", `--pid=${process.pid}`, file], { stderr: "ignore" }))
          .pipe(
            Stream.runForEach((line) => {
              const failure = onError.find(saying(line))
              if (failure !== undefined) return new BackendFailed({ reason: failure })
              const told = onInfo.some(saying(line)) ? Effect.logInfo(line) : Effect.void
              if (loaded || !onLoad.some(saying(line))) return told
              loaded = true
              return Effect.andThen(told, started)
            }),
            // Only a broken instance has no tail; a killed one is started again, and says nothing twice.
            Effect.catchTag("PlatformError", (error) => Effect.logWarning("the log is not followed", error.message)),
            Effect.repeat(Schedule.spaced("1 second")),
            Effect.andThen(Effect.never)
          )
      }
    }))
  )
