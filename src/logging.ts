/**
 * How the log is written: one line an event, to read or as JSON.
 */
import * as Effect from "effect/Effect"
import { CurrentRedactedNames } from "effect/http/UrlParams"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { type ConfigRefused, logConfig } from "./config.ts"

/** The form of a line that `LOG_FORMAT` asks for. */
export const format: Effect.Effect<Logger.Logger<unknown, string>, ConfigRefused> = Effect.map(logConfig, ({ format }) =>
  format === "json" ? Logger.formatJson : Logger.formatLogFmt
)

// Writing costs a busy worker more than all else about a line, so what is logged in one turn of the event loop is written at its
// end in one go, or when the process leaves before.
const writeEachTurn = Effect.gen(function* () {
  let lines = ""
  const write = () => {
    if (lines !== "") process.stdout.write(lines)
    lines = ""
  }
  yield* Effect.acquireRelease(
    Effect.sync(() => process.on("exit", write)),
    () => Effect.sync(() => process.off("exit", write)).pipe(Effect.andThen(Effect.sync(write)))
  )
  return (line: string) => {
    if (lines === "") setImmediate(write)
    lines += `${line}\n`
  }
})

/**
 * Logs to standard output in the form of `LOG_FORMAT`, from the level of `LOG_LEVEL` up. Errors of requests show no query of
 * their URL, whose parameters are often secrets.
 */
export const layer: Layer.Layer<never, ConfigRefused> = Layer.unwrap(
  Effect.gen(function* () {
    const { level } = yield* logConfig
    const lineFormat = yield* format
    return Layer.mergeAll(
      Logger.layer([Effect.map(writeEachTurn, (write) => Logger.map(lineFormat, write))]),
      Layer.succeed(References.MinimumLogLevel, level),
      Layer.succeed(CurrentRedactedNames, [/./])
    )
  })
)
